"""What can be told of an installation and of a store without teaching anything: versions, speed, integrity, use of the slots.

Shape suffixes: M slots with any background use, R written rows.
"""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from typing import TYPE_CHECKING, Any

import memgraft

if TYPE_CHECKING:
    from torch import Tensor

    from memgraft.config import MemoryConfig
    from memgraft.store import MemoryStore
    from memgraft.usage import Usage

REQUIRED = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic", "typer", "rich", "filelock")
OPTIONAL = ("gguf", "datasets", "peft", "jinja2", "matplotlib")
_HUB_SHARE = 0.01  # of all slots: those that are read most


def versions() -> dict[str, str | None]:
    """Versions of Python, memgraft and the packages it uses; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "memgraft": memgraft.__version__}
    for package in REQUIRED + OPTIONAL:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def machine() -> dict[str, Any]:
    """Processors, threads, accelerator, and milliseconds of one matrix product (256 × 1024 × 1024) per dtype on the CPU."""
    import torch

    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    milliseconds = {name: round(_product_seconds(getattr(torch, name)) * 1e3, 3) for name in ("float32", "bfloat16")}
    return {"cpus": os.cpu_count(), "torch_threads": torch.get_num_threads(), "accelerator": accelerator, "product_ms": milliseconds}


def _product_seconds(dtype: Any) -> float:
    import torch

    a, b = torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return min(times)


def dtype_hint(product_ms: dict[str, float]) -> str:
    """Which dtype teaches faster on this CPU."""
    ratio = product_ms["bfloat16"] / product_ms["float32"]
    product = "on this CPU a matrix product in bfloat16"
    if ratio > 1.25:
        return f"{product} takes {ratio:.1f} times as long as in float32: use --dtype float32 if the memory suffices"
    if ratio < 0.8:
        return f"{product} is {1 / ratio:.1f} times as fast as in float32: use --dtype bfloat16"
    return f"{product} is about as fast as in float32"


def examine(store: MemoryStore) -> dict[str, Any]:
    """A store's facts, faults and health, as JSON. Reads everything in it."""
    faults = store.verify()
    spec = store.spec
    learned = {entry.commit for entry in store.history() if entry.op == "learn"}
    facts: dict[str, Any] = {
        "path": str(store.path),
        "model": spec.model,
        "dtype": spec.dtype,
        "made_with": spec.memgraft_version,
        "layers": list(spec.memory.layers),
        "answer_layer": spec.memory.answer_layer,
        "slots": spec.memory.slots,
        "top_k": spec.memory.top_k,
        "heads": spec.memory.heads,
        "lessons": {"learned": len(learned), "active": len(store.active())},
        "bytes": sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file()),
        "background": dict(spec.background),
        "faults": faults,
    }
    if not faults:
        from memgraft.commits import union_slots
        from memgraft.persistence import stored_usage

        usage, lessons = stored_usage(store), {id: store.slots(id) for id in store.active()}
        with_cues = [slots for id, slots in lessons.items() if store.cues(id) is not None]
        facts["behind_cues"] = {"lessons": len(with_cues), "rows": sum(len(each) for slots in with_cues for each in slots.values())}
        # Rows behind cues are a lesson's own: they take no slot from other texts.
        written = [slots for id, slots in lessons.items() if store.cues(id) is None]
        facts["tables"] = {
            name: table_health(usage[name], union_slots(slots[name] for slots in written if name in slots), spec.memory.slots)
            for name in spec.memory.tables
        }
        facts["usage_age"] = usage_age(spec.memory, len(store.active()))
    return facts


def table_health(usage: Usage, written: Tensor, slots: int) -> dict[str, Any]:
    """How evenly the background uses a table's slots, and where lessons wrote.

    Args:
        usage: of the background.
        written: (R,) slots that the active lessons wrote which every text reads.
        slots: of the table.
    """
    total = int(usage.accesses.sum())
    hubs = max(1, round(_HUB_SHARE * slots))
    top = int(usage.accesses.sort(descending=True).values[:hubs].sum())
    read = int((usage.document_frequency_of(written) > 0).sum())
    return {
        "background_tokens": usage.tokens,
        "background_documents": usage.batches,
        "slots_used": len(usage.slots) / slots,
        "hub_accesses": top / total if total else 0.0,
        "rows_written": len(written),
        "rows_also_read_by_background": read / len(written) if len(written) else 0.0,
    }


def usage_age(memory: MemoryConfig, lessons: int) -> str:
    """How true the background usage still is, which was counted once, with the memory empty.

    What enters the first memory layer is computed by the base model alone, so its addresses never change. What enters a later
    one moves with what the earlier ones were taught.
    """
    if not lessons:
        return "counted with the memory empty, as it is now"
    if len(memory.layers) == 1:
        return "counted with the memory empty; still exact, as nothing taught changes what the only memory layer reads"
    plural = "s" if lessons > 1 else ""
    later = ", ".join(str(layer) for layer in memory.layers[1:])
    return (
        f"counted with the memory empty, {lessons} lesson{plural} ago; still exact for the memory layer at block {memory.layers[0]}, "
        f"a snapshot for block {later}"
    )


def base_mismatch(store: MemoryStore, model: str | None, trust_remote_code: bool = False) -> str | None:
    """Loads the base model and says how it, or its tokenizer, is not the one that the store was made for; None when it is.

    Raises:
        GraftError: it can't be loaded.
    """
    from memgraft.fingerprint import BaseFingerprint, TokenizerFingerprint
    from memgraft.models import load_model

    loaded = load_model(model or store.spec.model, trust_remote_code=trust_remote_code)
    tokenizer = TokenizerFingerprint.of(loaded.tokenizer)
    return store.spec.base.mismatch(BaseFingerprint.of(loaded.model)) or store.spec.tokenizer.mismatch(tokenizer)
