"""Cues of lessons in a store: kept whole, part of a lesson's identity, and checked when they are read."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from memgraft.commits import Commit
from memgraft.cues import Cues
from memgraft.errors import StoreError
from memgraft.history import History
from memgraft.store import MemoryStore, lessons
from tests.store.conftest import Lesson, Make

WIDTH = 4  # queries of the store's memory: one head, key_dim 4


def cues_of(*facts: int, least: float = 0.5) -> Cues:
    keys = torch.nn.functional.normalize(torch.arange(1.0, 1 + WIDTH * len(facts)).reshape(-1, WIDTH), dim=-1)
    return Cues(keys, torch.full((len(facts),), least), torch.tensor(facts, dtype=torch.int64))


def cued(lesson: Lesson, message: str, cues: Cues | None, slot: int = 3) -> Commit:
    return replace(lesson(message, {"0": {slot: 1.5}}), cues=cues)


def scoped(history: History) -> list[object]:
    return [history.content(id) for id in history.scoped()]


def test_a_store_gives_back_a_lesson_s_cues(store: MemoryStore, lesson: Lesson) -> None:
    commit = cued(lesson, "with cues", cues_of(0, 0, 1))
    store.append(commit)
    again = MemoryStore.open(store.path)
    found = again.commit(commit.id).cues
    assert found is not None
    assert found.equal(cues_of(0, 0, 1))
    kept = again.cues(commit.id)
    assert kept is not None
    assert kept.equal(found)
    assert again.changes(commit.id) == commit.changes
    assert again.verify() == []
    assert again.header(commit.id)["format_version"] == 3


def test_cues_are_part_of_a_lesson_s_identity(lesson: Lesson) -> None:
    ids = [cued(lesson, "a", cues).id for cues in (None, cues_of(0), cues_of(0, 0), cues_of(0, 1), cues_of(0, 0, least=0.6))]
    assert len(set(ids)) == len(ids)
    assert cued(lesson, "a", None).id == lesson("a", {"0": {3: 1.5}}).id


def test_a_memory_reads_its_active_lessons_with_cues_one_by_one(store: MemoryStore, lesson: Lesson) -> None:
    first, second = cued(lesson, "first", cues_of(0, 0)), cued(lesson, "second", cues_of(0, 1), slot=5)
    store.append(first)
    history = History(MemoryStore.open(store.path))
    assert scoped(history) == [(first.changes, first.cues)]
    history.learn(second)
    assert scoped(history) == [(first.changes, first.cues), (second.changes, second.cues)]
    assert not any(len(rows) for rows in history.state(("0", "1"), 3).values())
    history.revert(first.id)
    assert scoped(history) == [(second.changes, second.cues)]
    history.revert(second.id)
    assert scoped(history) == []


def test_lessons_without_cues_are_summed_and_leave_the_others_alone(store: MemoryStore, lesson: Lesson) -> None:
    first, everywhere = cued(lesson, "first", cues_of(0)), cued(lesson, "second", None, slot=5)
    for commit in (first, everywhere):
        store.append(commit)
    history = History(MemoryStore.open(store.path))
    assert scoped(history) == [(first.changes, first.cues)]
    assert history.state(("0", "1"), WIDTH)["0"] == store.state()["0"] == everywhere.changes["0"]


def test_lessons_with_cues_overlap_where_a_text_opens_both(store: MemoryStore, lesson: Lesson) -> None:
    same, other = cues_of(0, 0, least=0.9), Cues(-cues_of(0).keys, torch.tensor([0.9]), torch.zeros(1, dtype=torch.int64))
    first = cued(lesson, "first", same)
    for commit in (first, cued(lesson, "same subject", same), cued(lesson, "another", other), cued(lesson, "everywhere", None)):
        store.append(commit)
    found = ["same subject", "everywhere"]
    assert [overlap.message for overlap in store.overlaps(first.id)] == found
    assert [overlap.message for overlap in History(store).revert(first.id).overlaps] == found


def record_of(taught: dict[str, str | None]) -> dict[str, object]:
    return {"taught": taught, "ids": list(taught)}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_a_superseded_fact_is_closed_whatever_the_order_of_the_lessons(lesson: Lesson, order: tuple[int, ...]) -> None:
    old = replace(cued(lesson, "old", cues_of(0, 1)), record=record_of({"head": None, "colour": None}))
    new = replace(cued(lesson, "new", cues_of(0)), record=record_of({"new-head": "head"}))
    other = replace(cued(lesson, "other", cues_of(0)), record=record_of({"shape": "no fact of any lesson"}))
    history = History()
    for number in order:
        history.learn((old, new, other)[number])
    assert history.scoped() == {(old, new, other)[number].id: frozenset({0, 2} if number == 0 else ()) for number in order}
    history.revert(new.id)
    assert history.scoped()[old.id] == frozenset()
    assert history.scoped({"colour"})[old.id] == {1, 3}


def test_of_lessons_that_supersede_each_other_the_last_one_counts(lesson: Lesson) -> None:
    history, lessons = History(), []
    for turn, (id, superseded) in enumerate([("a", None), ("b", "a"), ("a", "b")]):
        lessons.append(replace(cued(lesson, f"turn {turn}", cues_of(0)), record=record_of({id: superseded})))
        history.learn(lessons[-1])
    assert [bool(closed) for closed in history.scoped().values()] == [True, True, False]


@pytest.mark.parametrize("corrected_first", [False, True])
def test_a_correction_does_not_overlap_the_fact_that_it_closes(make: Make, lesson: Lesson, tmp_path: Path, corrected_first: bool) -> None:
    cues = cues_of(0, 0, least=0.9)
    old = replace(cued(lesson, "old", cues), record=record_of({"head": None}))
    new = replace(cued(lesson, "new", cues), record=record_of({"new-head": "head"}))
    same = replace(cued(lesson, "same subject", cues), record=record_of({"colour": None}))
    first, second = (new, old) if corrected_first else (old, new)

    def with_lessons(name: str, *commits: Commit) -> MemoryStore:
        made = make(tmp_path / name)
        for commit in commits:
            made.append(commit)
        return made

    both = with_lessons("both", first, second, same)
    expected = ["same subject"] if corrected_first else []  # no text reads the old fact with anything
    assert [overlap.message for overlap in both.overlaps(first.id)] == expected
    assert [overlap.message for overlap in History(both).revert(first.id).overlaps] == expected
    merged, other = with_lessons("merged", first), with_lessons("other", second)
    assert merged.merge_plan(other).conflicts == ()
    assert merged.merge(other).learned == (second.id,)
    assert [conflict.message for conflict in merged.merge_plan(with_lessons("third", same)).conflicts] == ["same subject"]
    other.export(second.id, tmp_path / "lesson.safetensors")
    imported = with_lessons("imported", first)
    assert imported.import_(tmp_path / "lesson.safetensors").overlaps == ()


def test_a_lesson_that_is_not_learned_yet_overlaps_nothing_that_it_will_close(lesson: Lesson) -> None:
    cues = cues_of(0, 0, least=0.9)
    old = replace(cued(lesson, "old", cues), record=record_of({"head": None}))
    new = cued(lesson, "new", cues)
    history = History()
    history.learn(old)
    assert [overlap.message for overlap in history.overlaps(new, history.active())] == ["old"]
    assert history.overlaps(replace(new, record={"taught": {"new-head": "head"}}), history.active()) == ()


@pytest.mark.parametrize("ids", [5, "head", [["head"], {"head": 1}, None], {"head": 0}], ids=str)
def test_ids_that_make_no_sense_close_nothing(lesson: Lesson, ids: object) -> None:
    strange = replace(cued(lesson, "old", cues_of(0)), record={"taught": {"head": None}, "ids": ids})
    history = History()
    history.learn(strange)
    assert history.scoped({"head"}) == {strange.id: frozenset()}


def test_a_difference_counts_the_rows_of_lessons_with_cues_one_by_one(store: MemoryStore, lesson: Lesson) -> None:
    for message in ("first", "second"):
        store.append(cued(lesson, message, cues_of(0)))
    found = store.diff("start", "now").tables["0"]
    assert found.rows == 2
    one = float(lesson("first", {"0": {3: 1.5}}).changes["0"].values.norm())
    assert found.l2 == pytest.approx(2**0.5 * one)


def test_cues_travel_with_exported_and_merged_lessons(store: MemoryStore, make: Make, lesson: Lesson, tmp_path: Path) -> None:
    commit = cued(lesson, "a", cues_of(0, 0))
    store.append(commit)
    store.export(commit.id, tmp_path / "lesson.safetensors")
    imported, merged = make(tmp_path / "imported"), make(tmp_path / "merged")
    imported.import_(tmp_path / "lesson.safetensors")
    merged.merge(store)
    for other in (imported, merged):
        assert equal(other.commit(commit.id).cues, cues_of(0, 0))


@pytest.mark.parametrize(
    ("cues", "problem"),
    [
        (Cues(torch.ones(1, WIDTH + 1), torch.ones(1), torch.zeros(1, dtype=torch.int64)), "cues: keys must be torch.float32"),
        (Cues(torch.ones(1, WIDTH), torch.tensor([float("inf")]), torch.zeros(1, dtype=torch.int64)), "cues: least are not finite"),
        (Cues(torch.ones(1, WIDTH), torch.ones(1), torch.zeros(1, dtype=torch.int64)), "cues: keys must have unit length"),
        (cues_of(0, least=-100.0), "cues: least must be more than 0"),
        (cues_of(0, 2), "cues: facts must count up from 0"),
        (Cues.empty(WIDTH), "cues: there are none"),
    ],
)
def test_what_can_not_be_cues_is_not_stored(store: MemoryStore, lesson: Lesson, cues: Cues, problem: str) -> None:
    with pytest.raises(StoreError) as error:
        store.append(cued(lesson, "a", cues))
    assert problem in str(error.value)
    assert MemoryStore.open(store.path).history() == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"cues.least": None}, "unexpected tensors, such as 'cues.least'"),
        ({"cues.more": torch.ones(1)}, "unexpected tensors, such as 'cues.more'"),
        ({"cues.facts": torch.tensor([0, 2])}, "cues: facts must count up from 0"),
        ({"cues.keys": torch.ones(2, 3)}, "cues: keys must be torch.float32 of shape (2, 4)"),
        ({"cues.keys": torch.full((2, WIDTH), float("nan"))}, "cues: keys are not finite"),
    ],
)
def test_damaged_cues_are_refused(
    spec: object, store: MemoryStore, lesson: Lesson, tmp_path: Path, change: dict[str, Tensor | None], problem: str
) -> None:
    tensors = lessons.tensors_of(cued(lesson, "a", cues_of(0, 0)))
    changed = {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None}
    data = safetensors.torch.save(changed, {"memgraft": json.dumps({})})
    with pytest.raises(StoreError) as error:
        lessons.decode(data, store.spec.memory, "here")
    assert problem in str(error.value)
    path = tmp_path / "lesson.safetensors"
    path.write_bytes(data)
    with pytest.raises(StoreError) as error:
        lessons.read_cues(path, store.spec.memory)
    assert problem in str(error.value)


def equal(one: Cues | None, other: Cues | None) -> bool:
    return one is not None and other is not None and one.equal(other)
