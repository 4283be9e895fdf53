"""Lessons of a model, saved or not: order, ids, overlaps, and states that are exact sums."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from memgraft.commits import Commit, Rows, sum_rows
from memgraft.errors import StoreError
from memgraft.history import History
from memgraft.store import MemoryStore, files, folder
from memgraft.store.reading import StoreReader
from tests.models import HIDDEN, fill, random_rows, tiny_graft

TABLES = ("0", "1")


def lesson(message: str, *slots: int, table: str = "0", seed: int = 0) -> Commit:
    return Commit({table: random_rows(slots, seed=seed, size=1e3)}, message, {"passes": 6}, "d" * 64, {"seconds": 1.0})


FIRST, SECOND, THIRD = lesson("first", 1, 2, 3, seed=1), lesson("second", 3, 4, seed=2), lesson("third", 2, 4, 60, seed=3)


def learned(*commits: Commit) -> History:
    history = History()
    for commit in commits:
        history.learn(commit)
    return history


def store(path: Path) -> MemoryStore:
    """An empty store for two tables."""
    model = tiny_graft(layers=(0, 1))
    model.save(path)
    return MemoryStore.open(path)


def state(history: History) -> dict[str, Rows]:
    return history.state(TABLES, HIDDEN)


def test_a_history_starts_empty() -> None:
    history = History()
    assert history.active() == []
    assert not history.saved
    assert all(not len(rows) and rows.width == HIDDEN for rows in state(history).values())


def test_the_state_is_the_sum_of_the_lessons_in_order() -> None:
    history = learned(FIRST, SECOND, THIRD)
    assert history.active() == [FIRST.id, SECOND.id, THIRD.id]
    assert state(history) == {"0": sum_rows([c.changes["0"] for c in (FIRST, SECOND, THIRD)], HIDDEN), "1": Rows.empty(HIDDEN)}
    assert state(learned(THIRD, lesson("elsewhere", 5, table="1")))["1"].slots.tolist() == [5]


@pytest.mark.parametrize("gone", range(3))
def test_reverting_a_lesson_leaves_bit_for_bit_the_sum_of_the_others(gone: int) -> None:
    lessons = [FIRST, SECOND, THIRD]
    history = learned(*lessons)
    report = history.revert(lessons[gone].id)
    others = lessons[:gone] + lessons[gone + 1 :]
    assert (report.commit, report.rows) == (lessons[gone].id, lessons[gone].rows)
    assert history.active() == [commit.id for commit in others]
    assert state(history) == state(learned(*others))


def test_reverting_all_lessons_leaves_no_row() -> None:
    history = learned(FIRST, SECOND)
    history.revert(SECOND.id)
    history.revert(FIRST.id)
    assert not len(state(history)["0"])


def test_a_revert_reports_the_later_lessons_on_its_slots_with_the_size_of_what_they_lose() -> None:
    report = learned(FIRST, SECOND, THIRD, lesson("elsewhere", 50)).revert(FIRST.id)
    assert [(overlap.commit, overlap.message, overlap.shared_slots) for overlap in report.overlaps] == [
        (SECOND.id, "second", 1),
        (THIRD.id, "third", 1),
    ]
    slot_3 = FIRST.changes["0"].values[2]
    assert report.overlaps[0].l2 == pytest.approx(slot_3.norm().item())
    assert learned(FIRST, SECOND).revert(SECOND.id).overlaps == ()


def test_a_revert_reports_the_same_of_lessons_that_are_in_a_store(tmp_path: Path) -> None:
    history = History(store(tmp_path / "store"))
    for commit in (FIRST, SECOND, THIRD):
        history.learn(commit)
    history.save()
    expected = learned(FIRST, SECOND, THIRD).revert(FIRST.id)
    assert History(MemoryStore.open(tmp_path / "store")).revert(FIRST.id) == history.revert(FIRST.id) == expected


def test_slots_of_another_table_dont_overlap() -> None:
    assert learned(FIRST, lesson("other table", 1, 2, 3, table="1")).revert(FIRST.id).overlaps == ()


def test_lessons_are_found_by_the_start_of_their_id() -> None:
    history = learned(FIRST, SECOND)
    assert history.resolve(FIRST.id[:8].upper()) == FIRST.id
    assert history.commit(SECOND.id[:8]) == SECOND
    for prefix in ("", "zzzz"):
        with pytest.raises(StoreError, match="no active lesson has an id that starts with"):
            history.resolve(prefix)
    many = learned(*(lesson(f"lesson {number}", 1) for number in range(17)))
    shared = next(prefix for prefix in "0123456789abcdef" if sum(id.startswith(prefix) for id in many.active()) > 1)
    with pytest.raises(StoreError, match=r"\d lessons have an id that starts with"):
        many.resolve(shared)


def test_the_same_lesson_twice_is_refused_until_it_is_reverted() -> None:
    history = learned(FIRST)
    with pytest.raises(StoreError, match="is active already; revert it first"):
        history.learn(FIRST)
    assert history.active() == [FIRST.id]
    history.revert(FIRST.id)
    history.learn(FIRST)
    assert history.active() == [FIRST.id]


class TestSaving:
    def test_brings_the_store_up_to_date_with_learned_and_reverted_lessons(self, tmp_path: Path) -> None:
        history = History(store(tmp_path / "store"))
        history.learn(FIRST)
        history.learn(SECOND)
        history.revert(FIRST.id)
        unsaved = state(history)
        assert MemoryStore.open(tmp_path / "store").history() == []
        history.save()
        assert history.saved
        reopened = MemoryStore.open(tmp_path / "store")
        assert [(entry.op, entry.commit) for entry in reopened.history()] == [
            ("learn", FIRST.id),
            ("learn", SECOND.id),
            ("revert", FIRST.id),
        ]
        assert state(History(reopened)) == state(history) == unsaved
        assert reopened.commit(SECOND.id).record == {"seconds": 1.0}

    def test_goes_on_where_the_store_ended(self, tmp_path: Path) -> None:
        first = History(store(tmp_path / "store"))
        first.learn(FIRST)
        first.save()
        again = History(MemoryStore.open(tmp_path / "store"))
        assert again.active() == [FIRST.id]
        assert again.commit(FIRST.id) == FIRST
        again.learn(SECOND)
        assert state(again) == state(learned(FIRST, SECOND))
        with pytest.raises(StoreError, match="is active already"):
            again.learn(FIRST)
        again.revert(FIRST.id)
        again.save()
        again.save()  # nothing is left to save
        assert [entry.op for entry in MemoryStore.open(tmp_path / "store").history()] == ["learn", "learn", "revert"]

    def test_to_another_store_takes_the_active_lessons_along(self, tmp_path: Path) -> None:
        model = tiny_graft(layers=(0, 1))
        model.save(tmp_path / "old")
        history = model.history
        history.learn(FIRST)
        history.save()
        history.learn(SECOND)
        history.learn(THIRD)
        history.revert(SECOND.id)
        expected = state(history)
        model.save(tmp_path / "new")
        assert history.saved
        assert history.store is not None
        assert history.store.path == tmp_path / "new"
        assert state(history) == expected
        assert MemoryStore.open(tmp_path / "new").active() == [FIRST.id, THIRD.id]
        assert state(History(MemoryStore.open(tmp_path / "new"))) == expected
        assert MemoryStore.open(tmp_path / "old").active() == [FIRST.id]

    def test_that_fails_keeps_what_is_not_saved_yet(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        history = History(store(tmp_path / "store"))
        history.learn(FIRST)
        history.learn(SECOND)

        def full_disk(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(files, "rename", full_disk)
            with pytest.raises(StoreError, match="no space left"):
                history.save()
        assert not history.saved
        assert MemoryStore.open(tmp_path / "store").active() == []
        history.save()
        assert MemoryStore.open(tmp_path / "store").active() == [FIRST.id, SECOND.id]

    def test_that_would_lose_sight_of_another_processs_lesson_is_refused(self, tmp_path: Path) -> None:
        ours, theirs = History(store(tmp_path / "store")), History(MemoryStore.open(tmp_path / "store"))
        theirs.learn(FIRST)
        theirs.save()
        ours.learn(SECOND)
        with pytest.raises(StoreError, match=r"another process changed the store since it was loaded; nothing was changed: load it again"):
            ours.save()
        assert not ours.saved
        assert MemoryStore.open(tmp_path / "store").active() == [FIRST.id]
        theirs.learn(THIRD)
        theirs.save()
        assert MemoryStore.open(tmp_path / "store").active() == [FIRST.id, THIRD.id]

    def test_that_was_interrupted_after_the_stores_change_goes_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        history = History(store(tmp_path / "store"))
        history.learn(FIRST)
        commit_change = folder.commit_change

        def interrupted(*arguments: Any) -> None:
            commit_change(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(folder, "commit_change", interrupted)
            with pytest.raises(KeyboardInterrupt):
                history.save()
        assert MemoryStore.open(tmp_path / "store").active() == [FIRST.id]
        assert not history.saved
        history.save()
        assert history.saved
        assert state(history) == state(learned(FIRST))
        history.learn(SECOND)
        history.save()
        assert [entry.commit for entry in MemoryStore.open(tmp_path / "store").history()] == [FIRST.id, SECOND.id]

    def test_goes_on_where_only_tags_came_or_lessons_came_and_went(self, tmp_path: Path) -> None:
        history = History(store(tmp_path / "store"))
        other = MemoryStore.open(tmp_path / "store")
        other.append(FIRST)
        other.revert(FIRST.id)
        other.gc()
        other.tag("here")
        history.learn(FIRST)
        history.save()
        assert MemoryStore.open(tmp_path / "store").active() == [FIRST.id]
        assert MemoryStore.open(tmp_path / "store").verify() == []
        assert state(History(MemoryStore.open(tmp_path / "store"))) == state(history)

    def test_a_view_is_its_own_also_where_its_store_object_saw_more(self, tmp_path: Path) -> None:
        history = History(store(tmp_path / "store"))
        assert history.store is not None
        MemoryStore.open(tmp_path / "store").append(FIRST)
        history.store.tag("now-it-reads-the-new-history")
        assert history.active() == []
        assert not len(state(history)["0"])
        history.learn(SECOND)
        with pytest.raises(StoreError, match="another process changed the store"):
            history.save()


def test_a_models_rows_follow_its_history() -> None:
    model = tiny_graft(layers=(0, 1))
    for commit in (FIRST, SECOND, THIRD):
        model.history.learn(commit)
    report = model.revert(SECOND.id[:10])
    assert [overlap.commit for overlap in report.overlaps] == [THIRD.id]
    assert model.rows() == state(learned(FIRST, THIRD))
    model.revert(THIRD.id)
    model.revert(FIRST.id)
    assert model.rows() == {"0": Rows.empty(HIDDEN), "1": Rows.empty(HIDDEN)}
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    with torch.no_grad(), model.without_memory():
        expected = model(**inputs).logits
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected)
        assert not torch.equal(fill(model)(**inputs).logits, expected)


def test_a_revert_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_graft(layers=(0, 1))
    for commit in (FIRST, SECOND):
        model.history.learn(commit)
    model.recall()
    rows = model.rows()
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "recall", lambda self: (_ for _ in ()).throw(StoreError("can't read")))
        with pytest.raises(StoreError, match="can't read"):
            model.revert(SECOND.id)
    assert model.history.active() == [FIRST.id, SECOND.id]
    assert model.rows() == rows
    model.revert(SECOND.id)
    assert model.rows() == state(learned(FIRST))


def test_each_lesson_of_a_store_is_read_once_however_often_later_ones_ask_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = store(tmp_path / "store")
    kept.apply([("learn", FIRST), ("learn", SECOND)])
    read: list[str] = []
    for what in ("record", "cues"):
        plain = getattr(StoreReader, what)

        def counted(self: StoreReader, id: str, what: str = what, plain: Callable[..., object] = plain) -> object:
            read.append(f"{what} of {id}")
            return plain(self, id)

        monkeypatch.setattr(StoreReader, what, counted)
    history = History(kept)
    for _ in range(3):
        copy = history.copy()
        assert copy.scoped() == history.scoped() == {}
        assert copy.closing({}) == {}
        assert copy.facts() == set()
    assert len(read) == len(set(read)) == 4
