"""Reverts and merges that teach the lessons in their way again."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from memgraft import reteaching
from memgraft.commits import Commit, DataFile
from memgraft.errors import StoreError, TeachingError
from memgraft.grafted import GraftedModel
from memgraft.grafting import graft
from memgraft.history import History
from memgraft.learning import learn
from memgraft.reteaching import merge, revert
from memgraft.store import MemoryStore
from memgraft.store.files import sha256
from memgraft.teaching import Recipe
from tests.models import random_rows, tiny_model, tiny_tokenizer

RECIPE = Recipe(ranking="all", passes=1, t=None, wordings=2)


def fact(folder: Path, letter: str) -> Path:
    path = folder / f"{letter}.jsonl"
    path.write_text(json.dumps({"question": f"Where is {letter}?", "answers": [letter * 3]}) + "\n")
    return path


def teach(model: GraftedModel, path: Path, *, keep: bool = True) -> Commit:
    return learn(model, path, message=path.stem, recipe=RECIPE, test=False, keep=DataFile.read(path) if keep else None)


@pytest.fixture(scope="module")
def base() -> GraftedModel:
    return graft(tiny_model(), tiny_tokenizer(), slots=64, top_k=4, background=["The ship left.", "A lamp and a chair."])


@pytest.fixture
def model(base: GraftedModel, tmp_path: Path) -> GraftedModel:
    base.history = History()
    base.assign_rows({})
    base.save(tmp_path / "store")
    return base


def messages(store: MemoryStore) -> list[str]:
    return [store.header(id)["message"] for id in store.active()]


@pytest.mark.parametrize("kept", [True, False])
def test_a_revert_teaches_later_lessons_again_as_if_it_had_never_been(model: GraftedModel, tmp_path: Path, kept: bool) -> None:
    alone = teach(model, fact(tmp_path, "b"), keep=kept)
    model.revert(alone.id)
    first, later = teach(model, fact(tmp_path, "a")), teach(model, fact(tmp_path, "b"), keep=kept)
    assert later.id != alone.id, "it was learned on top of the first"
    report, taught = revert(model, first.id, overlap="re-teach", data=[] if kept else [fact(tmp_path, "b")])
    assert [overlap.commit for overlap in report.overlaps] == [later.id]
    assert taught[later.id].id == alone.id
    assert model.rows() == dict(alone.changes)
    model.save(tmp_path / "store")
    store = MemoryStore.open(tmp_path / "store")
    assert store.active() == [alone.id]
    assert (store.data(alone.id) is not None) == kept
    assert store.verify() == []


def test_a_revert_without_the_data_is_refused_with_its_digest(model: GraftedModel, tmp_path: Path) -> None:
    first, later = teach(model, fact(tmp_path, "a")), teach(model, fact(tmp_path, "b"), keep=False)
    rows = model.rows()
    with pytest.raises(StoreError, match=f"SHA-256 is {later.data_sha256} with --data"):
        revert(model, first.id, overlap="re-teach")
    with pytest.raises(StoreError, match="none of the lessons to teach again was taught this file"):
        revert(model, first.id, overlap="re-teach", data=[fact(tmp_path, "a")])
    with pytest.raises(StoreError, match=f"1 later lesson is read together with {first.id[:12]}"):
        revert(model, first.id, overlap="refuse")
    assert model.rows() == rows
    assert model.history.active() == [first.id, later.id]


def test_a_revert_that_fails_half_way_leaves_the_model_as_it_was(
    model: GraftedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, later = teach(model, fact(tmp_path, "a")), teach(model, fact(tmp_path, "b"))
    rows = model.rows()

    def stop(*_: object, **__: object) -> None:
        raise TeachingError("stopped")

    monkeypatch.setattr("memgraft.reteaching.learn", stop)
    with pytest.raises(TeachingError):
        revert(model, first.id, overlap="re-teach")
    assert model.history.active() == [first.id, later.id]
    assert model.rows() == rows


def test_a_merge_teaches_what_came_on_top_of_what_is_there(model: GraftedModel, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "store", tmp_path / "theirs")
    shutil.copytree(tmp_path / "store", tmp_path / "both")
    mine = teach(model, fact(tmp_path, "a"))
    together = teach(model, fact(tmp_path, "b"))
    model.revert(together.id)
    model.save(tmp_path / "store")
    MemoryStore.open(tmp_path / "store").gc()
    model.history = History(MemoryStore.open(tmp_path / "theirs"))
    model.assign_rows({})
    foreign = teach(model, fact(tmp_path, "b"))
    model.save(tmp_path / "theirs")
    model.history = History(MemoryStore.open(tmp_path / "store"))
    model.assign_rows(model.history.state(model.config.tables, model.config.hidden_size))
    report, taught = merge(model, MemoryStore.open(tmp_path / "theirs"))
    assert [(conflict.lesson, conflict.other) for conflict in report.conflicts] == [(foreign.id, mine.id)]
    assert taught[foreign.id].id == together.id
    store = MemoryStore.open(tmp_path / "store")
    assert store.active() == [mine.id, together.id] == model.history.active()
    assert model.rows() == store.state()
    assert store.verify() == []
    assert messages(store) == ["a", "b"]
    again, nothing = merge(model, MemoryStore.open(tmp_path / "theirs"))
    assert (again.learned, again.conflicts, nothing) == ((), (), {})


def test_a_merge_teaches_in_the_order_in_which_lessons_were_learned(
    model: GraftedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tmp_path / "store", tmp_path / "theirs")

    def lesson(message: str, *slots: int) -> Commit:
        data = DataFile("jsonl", fact(tmp_path, message).read_bytes())
        return Commit({"0": random_rows(slots)}, message, RECIPE.model_dump(mode="json"), sha256(data.content), {"seconds": 1.0}, data)

    first, on_top = lesson("c", 2, 9), lesson("d", 1, 9)
    for store, lessons in (("store", [lesson("a", 1), lesson("b", 2)]), ("theirs", [first, on_top])):
        MemoryStore.open(tmp_path / store).apply([("learn", each) for each in lessons])
    model.history = History(MemoryStore.open(tmp_path / "store"))
    taught: list[str] = []

    def teach_again(model: GraftedModel, lessons: list[Commit], *_: object) -> dict[str, Commit]:
        taught.extend(each.message for each in lessons)
        return {}

    monkeypatch.setattr(reteaching, "_teach_again", teach_again)
    with suppress(StoreError):  # nothing was taught in their place
        merge(model, MemoryStore.open(tmp_path / "theirs"))
    assert taught == ["c", "d"]
