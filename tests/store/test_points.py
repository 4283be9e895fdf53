"""Points of a history: tags, differences, and what `gc` may remove."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from memgraft.commits import Commit, DataFile, Rows
from memgraft.errors import StoreError
from memgraft.store import MemoryStore, StoreSpec, files, folder
from memgraft.store import manifest as layout
from memgraft.store.manifest import Manifest

from .conftest import Lesson


@pytest.fixture
def taught(store: MemoryStore, lesson: Lesson) -> MemoryStore:
    """Three lessons of one slot each, 1 to 3, the second of them reverted."""
    for number in (1, 2, 3):
        store.append(lesson(f"lesson {number}", {"0": {number: float(number)}}))
    store.revert(store.active()[1])
    return store


def slots(store: MemoryStore, at: str) -> list[int]:
    return [int(slot) for slot in store.state(at)["0"].slots]


def test_the_memory_can_be_read_as_it_was_at_any_point(taught: MemoryStore) -> None:
    first, second, third = (entry.commit for entry in taught.history()[:3])
    assert [slots(taught, at) for at in ("start", first, second[:10], third, "now")] == [[], [1], [1, 2], [1, 2, 3], [1, 3]]
    with pytest.raises(StoreError, match="no lesson has an id"):
        taught.state("zzz")


def test_a_tag_names_a_point_and_the_lesson_learned_there(taught: MemoryStore, lesson: Lesson) -> None:
    taught.tag("after-two", taught.history()[1].commit)
    taught.tag("v1")
    taught.append(lesson("later", {"0": {9: 1.0}}))
    again = MemoryStore.open(taught.path)
    assert again.tags() == {"after-two": 2, "v1": 4}
    assert (slots(again, "after-two"), slots(again, "v1")) == ([1, 2], [1, 3])
    assert again.header("after-two")["message"] == "lesson 2"
    with pytest.raises(StoreError, match="'v1' marks no lesson"):
        again.revert("v1")
    again.tag("v1")
    assert again.tags()["v1"] == 5
    again.untag("v1")
    with pytest.raises(StoreError, match="no tag is called 'v1'"):
        again.untag("v1")
    assert MemoryStore.open(taught.path).verify() == []


@pytest.mark.parametrize("name", ["", "now", "start", "abc123", "-x", "a b", "a/b", "..", "x" * 65, "é", "a\n"])
def test_a_tag_can_not_be_mistaken_for_anything_else(taught: MemoryStore, name: str) -> None:
    with pytest.raises(StoreError, match="a tag can't be called"):
        taught.tag(name)
    assert MemoryStore.open(taught.path).tags() == {}


def test_the_difference_of_two_points_is_told_in_lessons_rows_and_size(taught: MemoryStore) -> None:
    first, second, third = (entry.commit for entry in taught.history()[:3])
    found = taught.diff(second, "now")
    assert (found.learned, found.reverted, found.reordered) == ((third,), (second,), False)
    assert found.tables["0"].rows == 2
    assert found.tables["0"].l2 == pytest.approx(math.sqrt((4 + 4 + 1) + (9 + 9 + 1)))
    assert found.tables["1"].rows == 0
    assert taught.diff("now", first).reverted == (third,)
    taught.append(taught.commit(second))
    assert taught.diff(third, "now").reordered
    assert taught.diff(third, "now").tables["0"].rows == 0


def names(store: MemoryStore) -> set[str]:
    return {str(path.relative_to(store.path)) for path in store.path.rglob("*") if path.is_file() and not path.name.startswith(".")}


def test_gc_removes_the_files_of_reverted_lessons_and_keeps_their_history(taught: MemoryStore) -> None:
    second = taught.history()[1].commit
    state, before = taught.state(), names(taught)
    report = taught.gc()
    assert report.lessons == (second,)
    assert report.bytes > 0
    assert before - names(taught) == {f"commits/{second}.safetensors", f"commits/{second}.json", f"records/{second}.json"}
    again = MemoryStore.open(taught.path)
    assert again.verify() == []
    assert again.state() == state
    assert [entry.op for entry in again.history()] == ["learn", "learn", "learn", "revert", "gc"]
    for use in (lambda: again.commit(second), lambda: again.header(second), lambda: again.state(second)):
        with pytest.raises(StoreError):
            use()
    with pytest.raises(StoreError, match="was reverted already"):
        again.revert(second)
    assert again.gc().lessons == ()


def test_a_reader_that_opens_while_gc_removes_sees_the_store_before_or_after(taught: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read, waiting = folder.read_manifest, [True]

    def slow(path: Path) -> Manifest:
        manifest = read(path)
        if waiting:
            waiting.clear()
            taught.gc()
        return manifest

    reader = MemoryStore.open(taught.path)
    monkeypatch.setattr(folder, "read_manifest", slow)
    assert MemoryStore.open(taught.path).history()[-1].op == "gc"
    assert reader.verify() == [], "opened before gc, it is looked at as it is now"
    (taught.path / layout.MEMORY).unlink()
    with pytest.raises(StoreError, match="missing"):
        MemoryStore.open(taught.path)
    assert "missing" in reader.verify()[0]


def test_a_store_of_other_keys_in_its_place_takes_no_lesson(taught: MemoryStore, lesson: Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    read = folder.read_manifest

    def other(path: Path) -> Manifest:
        manifest = read(path)
        return manifest.model_copy(update={"files": {**manifest.files, layout.MEMORY: (1, "0" * 64)}})

    monkeypatch.setattr(folder, "read_manifest", other)
    with pytest.raises(StoreError, match="another store was put in its place"):
        taught.append(lesson("one more", {"0": {5: 1.0}}))


def test_a_lesson_that_gc_removed_can_be_learned_again(taught: MemoryStore, lesson: Lesson) -> None:
    commit = lesson("lesson 2", {"0": {2: 2.0}}, seconds=7)
    taught.gc()
    taught.append(commit)
    assert slots(taught, "now") == [1, 2, 3]
    assert taught.record(commit.id) == {"seconds": 7}
    assert MemoryStore.open(taught.path).verify() == []


def test_gc_keeps_what_a_tag_needs(taught: MemoryStore) -> None:
    taught.tag("all", taught.history()[2].commit)
    assert taught.gc().lessons == ()
    assert slots(taught, "all") == [1, 2, 3]
    taught.untag("all")
    assert len(taught.gc().lessons) == 1


def test_data_is_kept_once_for_all_lessons_that_were_taught_it(store: MemoryStore, lesson: Lesson) -> None:
    content = b'{"text": "taught"}\n'
    kept = [Commit(lesson(message).changes, message, {}, files.sha256(content), data=DataFile("jsonl", content)) for message in ("a", "b")]
    for commit in kept:
        store.append(commit)
    assert os.listdir(store.path / "data") == [f"{files.sha256(content)}.jsonl"]
    store.revert(kept[0].id)
    store.gc()
    assert store.data(kept[1].id) == DataFile("jsonl", content)
    store.revert(kept[1].id)
    store.gc()
    assert os.listdir(store.path / "data") == []
    assert MemoryStore.open(store.path).verify() == []


def test_data_that_is_not_what_was_taught_is_not_kept(store: MemoryStore, lesson: Lesson) -> None:
    with pytest.raises(StoreError, match="is not what the lesson"):
        store.append(Commit(lesson().changes, "m", {}, "d" * 64, data=DataFile("txt", b"other")))
    assert store.history() == []


def test_a_data_folder_that_is_a_link_is_not_written_through(store: MemoryStore, lesson: Lesson, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (store.path / "data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="data: not a real folder"):
        store.append(Commit(lesson().changes, "m", {}, files.sha256(b"x"), data=DataFile("txt", b"x")))
    assert os.listdir(tmp_path / "elsewhere") == []


def test_rows_that_are_bf16_numbers_take_half_the_space_and_lose_nothing(store: MemoryStore, spec: StoreSpec, tmp_path: Path) -> None:
    wide = spec.memory.model_copy(update={"hidden_size": 256, "slots": 4096})
    store = MemoryStore.create(tmp_path / "wide", spec.model_copy(update={"memory": wide}), {}, {}, [])
    exact = Rows(torch.arange(1000), torch.randn(1000, 256, generator=torch.Generator().manual_seed(0)))
    rounded = Rows(exact.slots, exact.values.bfloat16().float())
    sizes = []
    for rows in (exact, rounded):
        entry = store.append(Commit({"0": rows}, "m", {}, "d" * 64))
        sizes.append((store.path / f"commits/{entry.commit}.safetensors").stat().st_size)
        assert store.commit(entry.commit).changes["0"] == rows
    assert sizes[1] < 0.51 * sizes[0]
    assert MemoryStore.open(store.path).verify() == []


def test_several_steps_are_one_change(store: MemoryStore, lesson: Lesson) -> None:
    a, b = lesson("a"), lesson("b", {"0": {1: 1.0}})
    store.append(a)
    with pytest.raises(StoreError, match="active already"):
        store.apply([("revert", a), ("learn", b), ("learn", b)])
    assert MemoryStore.open(store.path).active() == [a.id]
    store.apply([("revert", a), ("learn", b)])
    assert MemoryStore.open(store.path).active() == [b.id]


def test_a_revert_can_be_refused_for_the_sake_of_later_lessons(store: MemoryStore, lesson: Lesson) -> None:
    first, later = lesson("first", {"0": {1: 1.0}}), lesson("later", {"0": {1: 2.0}})
    store.append(first)
    store.append(later)
    with pytest.raises(StoreError, match=rf"1 later lesson is read together with {first.id[:12]}, such as {later.id[:12]} \(at 1 slots"):
        store.revert(first.id, "refuse")
    assert store.active() == [first.id, later.id]
    store.revert(later.id, "refuse")
    assert store.active() == [first.id]
