"""A small store to test with: two tables of 16 slots, three values wide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from memgraft.commits import Commit, Rows
from memgraft.config import MemoryConfig
from memgraft.fingerprint import BaseFingerprint, TokenizerFingerprint, WeightSample
from memgraft.store import MemoryStore, StoreSpec

MEMORY = {"keys": torch.arange(6.0).reshape(2, 3).bfloat16(), "scale": torch.tensor(1.5)}
USAGE = {"0.slots": torch.tensor([1, 5]), "0.accesses": torch.tensor([2, 9])}
TEXTS = ["Der Fuß, 東京 and 🙂", 'a line\nbreak, a "quote", a\u2028separator', ""]

Make = Callable[[Path], MemoryStore]
Lesson = Callable[..., Commit]


@pytest.fixture(scope="session")
def spec() -> StoreSpec:
    return StoreSpec(
        memgraft_version="0.1.0",
        memory=MemoryConfig(layers=(1, 3), hidden_size=3, slots=16, top_k=4, heads=1, key_dim=4),
        model="organisation/model",
        dtype="bfloat16",
        base=BaseFingerprint(
            facts={"hidden_size": 3, "rope_theta": 10000.0}, weights=(WeightSample(name="w", shape=(2, 3), values=(0.5,)),)
        ),
        tokenizer=TokenizerFingerprint(vocab_size=7, special_tokens={"eos": 0}, probes_sha256="0" * 64),
        background={"source": "self", "seed": 0, "temperature": 1.0},
        calibration={"whiten": True, "ridge": 0.001, "tokens": [64, 128]},
    )


@pytest.fixture(scope="session")
def make(spec: StoreSpec) -> Make:
    """Makes an empty store at a path."""
    return lambda path: MemoryStore.create(path, spec, MEMORY, USAGE, TEXTS)


@pytest.fixture
def store(make: Make, tmp_path: Path) -> MemoryStore:
    return make(tmp_path / "store")


@pytest.fixture(scope="session")
def lesson() -> Lesson:
    """Makes a lesson from a message and, per table, slot → value: `lesson("a", {"0": {3: 1.5}})`."""

    def build(message: str = "a lesson", changes: Mapping[str, Mapping[int, float]] | None = None, **record: object) -> Commit:
        tables = {
            table: Rows(
                torch.tensor(sorted(rows), dtype=torch.int64),
                torch.tensor([[rows[slot], -rows[slot], 1.0] for slot in sorted(rows)], dtype=torch.float32).reshape(-1, 3),
            )
            for table, rows in (changes or {"0": {3: 1.5, 7: 0.1}, "1": {0: 2.0}}).items()
        }
        return Commit(tables, message, {"passes": 6, "writer": "least-interference", "rates": [0.1, 1e-8]}, "d" * 64, record)

    return build
