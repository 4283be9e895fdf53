"""Bytes a fact beside a LoRA adapter's, and what a store of many lessons costs: `python -m benchmarks.store_sizes`.

Bytes a fact are those of the first benchmark's lesson (`results/first/runs.jsonl`), counted again with fp32 and with bf16 rows.
Seconds are of the work behind the commands, without the start of Python, on random lessons. Writes results/store/sizes.json.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.reliability.world import MEMORY, World, random_lesson
from memgraft.commits import Commit, Rows
from memgraft.comparison.runs import read_runs
from memgraft.store import MemoryStore, lessons
from memgraft.store.folder import describe
from memgraft.store.manifest import HistoryEntry, Manifest, changes_name, header_name, record_name

RUNS = Path("results/first/runs.jsonl")
OUTPUT = Path("results/store/sizes.json")
WIDTH = 576  # of SmolLM2-135M's residual stream


def bytes_per_fact() -> dict[str, Any]:
    """What the first benchmark's arms wrote."""
    runs = list(read_runs(RUNS).values())
    last = {run["recipe"]["arm"]: run for run in runs}
    memory = last["least-interference"]
    lora = next(run for run in last.values() if run["bytes"] and not run["rows"])
    facts = memory["recipe"]["protocol"]["facts"]
    sizes = {kind: lesson_bytes(memory["rows"], kind == "bf16") for kind in ("fp32", "bf16")}
    row = {kind: (lesson_bytes(1000, kind == "bf16") - lesson_bytes(0, kind == "bf16")) / 1000 for kind in ("fp32", "bf16")}
    return {
        "facts": facts,
        "rows": memory["rows"],
        "lesson_bytes": sizes,
        "lesson_bytes_per_fact": {kind: size / facts for kind, size in sizes.items()},
        "lesson_bytes_of_100_facts": {kind: lesson_bytes(round(100 * memory["rows"] / facts), kind == "bf16") for kind in sizes},
        "lora_r16_bytes": lora["bytes"],
        "lora_r16_bytes_per_fact": lora["bytes"] / facts,
        "rows_per_fact_of_100_facts_as_large_as_lora": {kind: lora["bytes"] / 100 / size for kind, size in row.items()},
    }


def lesson_bytes(rows: int, half: bool) -> int:
    """Bytes of the file of a lesson with so many rows."""
    values = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(0))
    memory = MEMORY.model_copy(update={"hidden_size": WIDTH, "slots": 65_536, "layers": (10,)})
    commit = Commit({"0": Rows(torch.arange(rows), values.bfloat16().float() if half else values)}, "m", {}, "d" * 64)
    return len(lessons.encode(commit, memory, "")[0])


def fill(store: MemoryStore, count: int, rows: int) -> MemoryStore:
    """So many lessons, written at once instead of one by one."""
    entries, history = dict(store.manifest.files), []
    for number in range(count):
        commit = random_lesson(number, rows)
        changes, header, record = lessons.encode(commit, store.spec.memory, "")
        id = commit.id
        for name, data in {changes_name(id): changes, header_name(id): header, record_name(id, 1): record}.items():
            (store.path / name).write_bytes(data)
            entries[name] = describe(data)
        history.append(HistoryEntry(op="learn", commit=id, when="2026-01-01T00:00:00+00:00", message=commit.message, rows=commit.rows))
    (store.path / "manifest.json").write_bytes(Manifest(files=entries, history=tuple(history)).to_bytes())
    return MemoryStore.open(store.path)


def fastest(action: Callable[[], object]) -> dict[str, float]:
    """Wall and processor seconds of the fastest of three; they differ where the machine does other work."""
    taken = []
    for _ in range(3):
        wall, processor = time.perf_counter(), time.process_time()
        action()
        taken.append((time.perf_counter() - wall, time.process_time() - processor))
    return {"wall": round(min(wall for wall, _ in taken), 4), "processor": round(min(processor for _, processor in taken), 4)}


def main() -> None:
    """The command."""
    with tempfile.TemporaryDirectory() as folder:
        many = World(Path(folder), 0, lessons=4)
        path = fill(MemoryStore.open(many.empty), 10_000, rows=2).path
        log = fastest(lambda: MemoryStore.open(path).history())
    with tempfile.TemporaryDirectory() as folder:
        thousand = World(Path(folder), 0, lessons=4)
        store = fill(MemoryStore.open(thousand.empty), 1_000, rows=500)
        ids = iter(store.active())
        revert = fastest(lambda: store.revert(next(ids)))
        state = fastest(store.state)
    result = {
        "command": "python -m benchmarks.store_sizes",
        "machine": platform.machine(),
        "python": platform.python_version(),
        **bytes_per_fact(),
        "seconds": {"log_of_10000_lessons": log, "revert_one_of_1000_lessons": revert, "state_of_1000_lessons": state},
    }
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
