"""Everything, in full or in short: `python -m benchmarks.reliability [--short]`; writes results/reliability/."""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reliability.faults import inject_everywhere
from benchmarks.reliability.fuzz import fuzz_many
from benchmarks.reliability.kills import Kill, kill_many
from benchmarks.reliability.power import cut_many
from benchmarks.reliability.resume import kill_and_resume

FULL = {"kills": 1000, "power_cuts": 1000, "fault_rounds": 3, "fuzzed": 100_000, "guided": 20_000, "resume": 20}
SHORT = {"kills": 20, "power_cuts": 20, "fault_rounds": 0, "fuzzed": 300, "guided": 0, "resume": 2}
MEMORY_DISK = Path("/dev/shm")


def run(sizes: dict[str, int], save: Callable[[dict[str, Any], list[Kill]], None]) -> None:
    """All parts, one after another; after each, `save` gets the summary so far and where each kill fell."""
    fast = MEMORY_DISK if MEMORY_DISK.is_dir() else None
    kills: list[Kill] = []
    summary: dict[str, Any] = {"first_failures": []}

    def done(failures: list[str], **numbers: int) -> None:
        summary["first_failures"] = [*summary.pop("first_failures"), *failures][:10]
        save(summary | numbers, kills)
        summary.update(numbers)

    # On a disk that flushes at once, kills fall between the flushes as well.
    places = [None, fast] if fast else [None]
    for number, place in enumerate(places):
        with tempfile.TemporaryDirectory(dir=place) as folder:
            kills += kill_many(Path(folder), sizes["kills"] // len(places), seed=number)
    done(
        [kill.problem for kill in kills if kill.problem],
        kills=len(kills),
        kills_inside_write_windows=sum(kill.inside for kill in kills),
        lost_commits=sum(kill.lost for kill in kills),
        corrupt_after_kill=sum(bool(kill.problem) for kill in kills),
    )
    with tempfile.TemporaryDirectory(dir=fast) as folder:
        points, equal = kill_and_resume(Path(folder), sizes["resume"])
    done([], resume_points=points, resume_bit_equal=equal)
    with tempfile.TemporaryDirectory(dir=fast) as folder:
        cuts = cut_many(Path(folder), sizes["power_cuts"])
    done(cuts, power_cuts=sizes["power_cuts"], power_cut_failures=len(cuts))
    with tempfile.TemporaryDirectory(dir=fast) as folder:
        injected, unmet = inject_everywhere(Path(folder), sizes["fault_rounds"])
    done(unmet, faults_injected=injected, fault_failures=len(unmet))
    guided, crashes = guided_fuzz(sizes["guided"])
    done([], guided_inputs=guided, guided_failures=crashes)
    with tempfile.TemporaryDirectory(dir=fast) as folder:
        failures = fuzz_many(Path(folder), sizes["fuzzed"])
    done(failures, fuzzed_files=sizes["fuzzed"], fuzz_failures=len(failures))


def guided_fuzz(runs: int) -> tuple[int, int]:
    """Inputs that the coverage-guided fuzzer read, and whether it stopped at one; none where Atheris is not installed."""
    if not runs:
        return 0, 0
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.reliability.guided", folder, str(runs)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No module named 'atheris'" in ended.stderr:
        return 0, 0
    done = re.findall(r"Done (\d+) (?:runs )?in", ended.stderr)
    return int(done[-1]) if done else 0, int(ended.returncode != 0)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a few of each, to see that it works")
    parser.add_argument("--output", type=Path, default=Path("results/reliability"))
    given = parser.parse_args()
    start = time.perf_counter()
    about = {"command": "python -m benchmarks.reliability" + " --short" * given.short, "python": platform.python_version()}
    given.output.mkdir(parents=True, exist_ok=True)

    def save(summary: dict[str, Any], kills: list[Kill]) -> None:
        numbers = {**summary, **about, "seconds": round(time.perf_counter() - start)}
        (given.output / "summary.json").write_text(json.dumps(numbers, indent=2) + "\n")
        rows = ["operation\tlast call\twrite window\tchange is there"]
        for kill in kills:
            rows.append("\t".join((kill.operation, kill.event, "inside" if kill.inside else "outside", "yes" if kill.changed else "no")))
        (given.output / "kills.tsv").write_text("\n".join(rows) + "\n")
        print(json.dumps(numbers), flush=True)

    run(SHORT if given.short else FULL, save)


if __name__ == "__main__":
    main()
