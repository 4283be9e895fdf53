"""Lessons that are killed at random points and gone on with end in the same commit as one that was left alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reliability.world import PRIMITIVES
from memgraft.checkpoints import Checkpoints
from memgraft.grafted import GraftedModel
from memgraft.grafting import graft
from memgraft.history import History
from memgraft.learning import learn
from memgraft.store import MemoryStore, files
from memgraft.teaching import Recipe, Step
from memgraft.writers import Adam, LeastInterference
from tests.models import tiny_model, tiny_tokenizer

TEXTS = [f"{word} {number}: the ship left in the {word}." for number, word in enumerate(("morning", "night", "fog", "rain") * 5)]
FACTS = [{"question": f"Where is box {n}?", "answers": [answer]} for n, answer in enumerate(("here", "there", "away", "gone"))]
RECIPES = (
    Recipe(passes=4, wordings=3, t=40, writer=Adam()),
    Recipe(passes=4, wordings=3, t=40, writer=LeastInterference(), until_loss=3.0, row_dtype="bfloat16"),
)


def kill_and_resume(folder: Path, points: int, seed: int = 0) -> tuple[int, int]:
    """So many lessons killed once or twice and resumed; how many there were, and how many ended in the same commit."""
    rng = random.Random(seed)
    model = graft(tiny_model(), tiny_tokenizer(), slots=1024, top_k=4, background=TEXTS, layers=(0, 1))
    empty = folder / "empty"
    model.save(empty)
    data = folder / "facts.jsonl"
    data.write_text("".join(json.dumps(fact) + "\n" for fact in FACTS))
    killed = equal = 0
    for index, recipe in enumerate(RECIPES):
        alone = folder / f"alone{index}"
        shutil.copytree(empty, alone)
        calls = _teach(model, alone, data, recipe, None)
        expected = MemoryStore.open(alone).active()
        for _ in range(points // len(RECIPES)):
            path = folder / "store"
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(empty, path)
            for _ in range(rng.choice((1, 1, 2))):
                _teach(model, path, data, recipe, rng.randint(1, calls - 1))
            killed += 1
            _teach(model, path, data, recipe, None)
            store = MemoryStore.open(path)
            left = [file.name for file in path.iterdir() if "checkpoint" in file.name]
            equal += store.active() == expected and store.verify() == [] and not left
    return killed, equal


def _teach(model: GraftedModel, path: Path, data: Path, recipe: Recipe, kill_at: int | None) -> int:
    """Teaches in a fork, going on with what is there; dies at a call of the file layer or the end of a step. The calls that it made."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            os.write(writer, str(_work(model, path, data, recipe, kill_at)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        told = stream.read()
    os.waitpid(child, 0)
    return int(told or 0)


def _work(model: GraftedModel, path: Path, data: Path, recipe: Recipe, kill_at: int | None) -> int:
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(primitive: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            count()
            return primitive(*args)

        return call

    for name in PRIMITIVES:
        setattr(files, name, counted(getattr(files, name)))

    def on_step(step: Step) -> None:
        count()

    store = MemoryStore.open(path)
    model.history = History(store)
    checkpoints = Checkpoints(store, every=0, resume=True)
    with store.lock():
        if not store.active():
            learn(model, data, message="m", recipe=recipe, test=False, checkpoints=checkpoints, on_step=on_step)
            model.history.save()
        checkpoints.remove()
    return calls
