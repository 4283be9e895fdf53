"""Merging stores and taking single lessons over: exact where lessons are apart, never silent where they are not."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memgraft.commits import Commit, DataFile, Rows
from memgraft.errors import StoreError
from memgraft.store import MemoryStore, StoreSpec, files

from .conftest import MEMORY, TEXTS, USAGE, Lesson, Make

State = dict[str, Rows]
LESSONS = 6


def bits(state: State) -> dict[str, tuple[bytes, bytes]]:
    return {table: (rows.slots.numpy().tobytes(), rows.values.numpy().tobytes()) for table, rows in state.items()}


def apart(lesson: Lesson, number: int) -> Commit:
    """The number-th of six lessons that share no slot."""
    value = 0.1 * (number + 1) * (-1) ** number
    return lesson(f"lesson {number}", {"0": {number: value, number + LESSONS: 3 * value}, "1": {15 - number: -value}})


def act(store: MemoryStore, pool: list[Commit], actions: list[tuple[int, str]]) -> None:
    """Learns and reverts as far as the history allows it, and collects."""
    for number, action in actions:
        active = pool[number].id in store.active()
        if action == "gc":
            store.gc()
        elif (action == "learn") != active:
            store.append(pool[number]) if action == "learn" else store.revert(pool[number].id)


actions = st.lists(st.tuples(st.integers(0, LESSONS - 1), st.sampled_from(["learn", "learn", "revert", "gc"])), max_size=6)


@given(shared=actions, own=st.tuples(actions, actions, actions))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_merges_of_lessons_that_are_apart_commute_and_associate(
    shared: list[tuple[int, str]],
    own: tuple[list[tuple[int, str]], ...],
    make: Make,
    lesson: Lesson,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files, "sync", lambda descriptor: None)
    pool = [apart(lesson, number) for number in range(LESSONS)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        act(make(folder / "shared"), pool, shared)
        for store, steps in zip("abc", own, strict=True):
            shutil.copytree(folder / "shared", folder / store)
            act(MemoryStore.open(folder / store), pool, steps)

        def merged(into: str, *others: str) -> str:
            made = f"({into} {' '.join(others)})"
            shutil.copytree(folder / into, folder / made)
            for other in others:
                MemoryStore.open(folder / made).merge(MemoryStore.open(folder / other))
            assert MemoryStore.open(folder / made).verify() == []
            return made

        def state(store: str) -> object:
            return bits(MemoryStore.open(folder / store).state())

        left, right = merged("a", "b", "c"), merged("a", merged("b", "c"))
        assert state(left) == state(right)
        assert state(merged("a", "b")) == state(merged("b", "a"))
        assert state(merged("c", "a", "b")) == state(left)
        again = MemoryStore.open(folder / left).merge(MemoryStore.open(folder / right))
        assert (again.learned, again.reverted) == ((), ())
        assert state(left) == state(right)


@given(before=actions, number=st.integers(0, LESSONS - 1))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_reverting_what_was_just_learned_is_the_identity(
    before: list[tuple[int, str]], number: int, make: Make, lesson: Lesson, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "sync", lambda descriptor: None)
    pool = [lesson(f"lesson {i}", {"0": {i % 3: 0.1 * (i + 1), 5: 1e9 * i}}) for i in range(LESSONS)]
    with tempfile.TemporaryDirectory() as folder:
        store = make(Path(folder) / "store")
        act(store, pool, before)
        if pool[number].id not in store.active():
            state = bits(store.state())
            store.append(pool[number])
            store.revert(pool[number].id)
            assert bits(store.state()) == state


@pytest.fixture
def two(make: Make, tmp_path: Path, lesson: Lesson) -> tuple[MemoryStore, MemoryStore]:
    """Copies of a store with one lesson."""
    make(tmp_path / "ours").append(lesson("shared", {"0": {1: 1.0}}))
    shutil.copytree(tmp_path / "ours", tmp_path / "theirs")
    return MemoryStore.open(tmp_path / "ours"), MemoryStore.open(tmp_path / "theirs")


def test_a_merge_brings_lessons_records_and_kept_data(two: tuple[MemoryStore, MemoryStore], lesson: Lesson) -> None:
    ours, theirs = two
    content = b'{"text": "taught"}\n'
    commit = Commit(lesson("x", {"0": {2: 2.0}}).changes, "theirs", {}, files.sha256(content), {"seconds": 3}, DataFile("jsonl", content))
    theirs.append(commit)
    report = ours.merge(theirs)
    assert report.learned == (commit.id,)
    assert ours.record(commit.id) == {"seconds": 3}
    assert ours.data(commit.id) == DataFile("jsonl", content)
    assert bits(ours.state()) == bits(theirs.state())
    assert MemoryStore.open(ours.path).verify() == []


def test_what_one_store_took_back_is_taken_back_in_both(two: tuple[MemoryStore, MemoryStore], lesson: Lesson) -> None:
    ours, theirs = two
    shared = ours.active()[0]
    theirs.revert(shared)
    assert ours.merge(theirs).reverted == (shared,)
    assert ours.active() == []
    theirs.append(lesson("shared", {"0": {1: 1.0}}))
    assert ours.merge(theirs).learned == (shared,)
    assert theirs.merge(ours).learned == ()


def test_lessons_on_shared_slots_are_refused_or_summed_by_choice_and_named(two: tuple[MemoryStore, MemoryStore], lesson: Lesson) -> None:
    ours, theirs = two
    mine, foreign = lesson("mine", {"0": {1: 5.0, 4: 1.0, 7: 2.0}}), lesson("foreign", {"0": {4: 3.0, 7: 4.0, 9: 1.0}})
    ours.append(mine)
    theirs.append(foreign)
    before = bits(ours.state())
    with pytest.raises(
        StoreError, match=rf"1 lesson would be read together .* {foreign.id[:12]} with {mine.id[:12]} \(at 2 slots.*nothing was changed"
    ):
        ours.merge(theirs)
    assert bits(ours.state()) == before
    report = ours.merge(theirs, "sum")
    (conflict,) = report.conflicts
    assert (conflict.lesson, conflict.other, conflict.shared_slots) == (foreign.id, mine.id, 2)
    assert conflict.l2 == pytest.approx((1 + 1 + 1 + 4 + 4 + 1) ** 0.5)
    assert ours.active() == [ours.history()[0].commit, mine.id, foreign.id]


def test_a_lesson_that_was_learned_on_what_the_other_store_took_back_is_a_conflict(
    two: tuple[MemoryStore, MemoryStore], lesson: Lesson
) -> None:
    ours, theirs = two
    shared, on_top = ours.active()[0], lesson("on top", {"0": {1: 2.0}})
    ours.append(on_top)
    theirs.revert(shared)
    for into, other in ((ours, theirs), (theirs, ours)):
        with pytest.raises(StoreError, match=f"{on_top.id[:12]} with {shared[:12]}"):
            into.merge(other)


def test_stores_with_other_keys_or_another_base_are_not_merged(
    two: tuple[MemoryStore, MemoryStore], spec: StoreSpec, lesson: Lesson, tmp_path: Path
) -> None:
    ours, _ = two
    other_keys = MemoryStore.create(tmp_path / "keys", spec, {**MEMORY, "scale": torch.tensor(2.0)}, USAGE, TEXTS)
    base = spec.base.model_copy(update={"facts": {"hidden_size": 4}})
    other_base = MemoryStore.create(tmp_path / "base", spec.model_copy(update={"base": base}), MEMORY, USAGE, TEXTS)
    slots = spec.memory.model_copy(update={"slots": 25})
    other_size = MemoryStore.create(tmp_path / "size", spec.model_copy(update={"memory": slots}), MEMORY, USAGE, TEXTS)
    for other, reason in (
        (other_keys, "its keys differ"),
        (other_base, "another base model: .*hidden_size is 4"),
        (other_size, "slots: 25"),
    ):
        pattern = reason.replace("slots: 25", "differs in slots: 25 instead of 16")
        with pytest.raises(StoreError, match=pattern):
            ours.merge(other)


def test_a_damaged_store_is_not_merged(two: tuple[MemoryStore, MemoryStore], lesson: Lesson) -> None:
    ours, theirs = two
    entry = theirs.append(lesson("damaged", {"0": {8: 1.0}}))
    path = theirs.path / f"commits/{entry.commit}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(StoreError, match="damaged, its SHA-256"):
        ours.merge(MemoryStore.open(theirs.path))
    assert len(ours.history()) == 1


def test_a_lesson_that_was_taken_back_there_is_checked_as_well(two: tuple[MemoryStore, MemoryStore], lesson: Lesson) -> None:
    """Else its files would stand in for the lesson when that is learned here."""
    ours, theirs = two
    real, other = lesson("real", {"0": {8: 1.0}}), lesson("other", {"0": {8: 9.0}})
    for taught in (real, other):
        theirs.append(taught)
        theirs.revert(taught.id)
    false = (theirs.path / f"commits/{other.id}.safetensors").read_bytes()
    (theirs.path / f"commits/{real.id}.safetensors").write_bytes(false)
    manifest = json.loads((theirs.path / "manifest.json").read_text())
    manifest["files"][f"commits/{real.id}.safetensors"] = [len(false), files.sha256(false)]
    (theirs.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=f"{real.id}.safetensors: holds another lesson"):
        ours.merge(MemoryStore.open(theirs.path))
    assert len(ours.history()) == 1


@pytest.mark.parametrize("false", [{"message": "harmless"}, {"rows": 0}], ids=str)
@pytest.mark.parametrize("known", [False, True], ids=["a lesson that comes", "a lesson that is taken back"])
def test_a_history_that_does_not_repeat_its_lessons_is_not_merged(
    two: tuple[MemoryStore, MemoryStore], lesson: Lesson, false: dict[str, object], known: bool
) -> None:
    ours, theirs = two
    if known:
        theirs.revert(ours.active()[0])
    else:
        theirs.append(lesson("new", {"0": {8: 1.0}}))
    path = theirs.path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["history"][-1].update(false)
    path.write_text(json.dumps(manifest))
    before = ours.history()
    with pytest.raises(StoreError, match=f"message or rows of {theirs.history()[-1].commit[:12]} are not the lesson's own"):
        ours.merge(MemoryStore.open(theirs.path))
    assert MemoryStore.open(ours.path).history() == before


def test_kept_data_that_is_not_what_its_name_says_is_not_merged(two: tuple[MemoryStore, MemoryStore], lesson: Lesson) -> None:
    ours, theirs = two
    content, false = b'{"text": "taught"}\n', b'{"text": "forged"}\n'
    theirs.append(Commit(lesson("x", {"0": {2: 2.0}}).changes, "m", {}, files.sha256(content), {}, DataFile("jsonl", content)))
    name = f"data/{files.sha256(content)}.jsonl"
    (theirs.path / name).write_bytes(false)
    manifest = json.loads((theirs.path / "manifest.json").read_text())
    manifest["files"][name] = [len(false), files.sha256(false)]
    (theirs.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="its SHA-256 is not its name"):
        ours.merge(MemoryStore.open(theirs.path))
    assert len(ours.history()) == 1


def test_a_merge_does_not_remove_what_a_tag_needs(two: tuple[MemoryStore, MemoryStore], lesson: Lesson) -> None:
    ours, theirs = two
    shared = ours.active()[0]
    ours.tag("kept")
    before = bits(ours.state("kept"))
    theirs.revert(shared)
    theirs.append(lesson("shared", {"0": {1: 1.0}}))
    theirs.revert(shared)
    theirs.gc()
    with pytest.raises(StoreError, match=rf"removed the lesson {shared[:12]}, which the tag 'kept' needs; nothing was changed: .* tag"):
        ours.merge(theirs)
    assert bits(ours.state("kept")) == before
    ours.untag("kept")
    ours.merge(theirs)
    assert MemoryStore.open(ours.path).verify() == []


class TestOneFile:
    def test_takes_a_lesson_to_another_store(self, two: tuple[MemoryStore, MemoryStore], lesson: Lesson, tmp_path: Path) -> None:
        ours, theirs = two
        entry = theirs.append(lesson("to go", {"0": {2: 0.1}, "1": {3: 7.0}}, seconds=4))
        theirs.export(entry.commit[:8], tmp_path / "lesson.safetensors")
        report = ours.import_(tmp_path / "lesson.safetensors")
        assert (report.commit, report.overlaps) == (entry.commit, ())
        assert bits(ours.state()) == bits(theirs.state())
        assert ours.record(entry.commit) == {"seconds": 4}
        with pytest.raises(StoreError, match="active already"):
            ours.import_(tmp_path / "lesson.safetensors")
        with pytest.raises(StoreError, match="exists already"):
            theirs.export(entry.commit, tmp_path / "lesson.safetensors")

    def test_is_refused_or_summed_where_slots_are_shared(
        self, two: tuple[MemoryStore, MemoryStore], lesson: Lesson, tmp_path: Path
    ) -> None:
        ours, theirs = two
        entry = theirs.append(lesson("over", {"0": {1: 2.0}}))
        theirs.export(entry.commit, tmp_path / "lesson.safetensors")
        with pytest.raises(StoreError, match=r"read together with 1 active ones.*nothing was changed"):
            ours.import_(tmp_path / "lesson.safetensors")
        assert len(ours.history()) == 1
        assert [overlap.shared_slots for overlap in ours.import_(tmp_path / "lesson.safetensors", "sum").overlaps] == [1]

    @pytest.mark.parametrize(
        ("damage", "problem"),
        [
            (lambda data: b"", "not a safetensors file"),
            (lambda data: struct.pack("<Q", 1 << 60) + data[8:], "not a safetensors file"),
            (lambda data: data[:-1], "incomplete|header"),
            (lambda data: data.replace(b'\\"shared\\"', b'\\"sharec\\"'), "holds"),
            (lambda data: data.replace(b'\\"format_version\\":4', b'\\"format_version\\":9'), "newer memgraft"),
            (lambda data: data.replace(b'\\"record\\"', b'\\"recorg\\"'), "missing, unknown"),
            (lambda data: data.replace(b"memgraft", b"mengraft"), "not a lesson that"),
        ],
    )
    def test_that_is_damaged_is_refused(
        self, store: MemoryStore, lesson: Lesson, tmp_path: Path, damage: Callable[[bytes], bytes], problem: str
    ) -> None:
        store.append(lesson("shared"))
        path = tmp_path / "lesson.safetensors"
        store.export(lesson("shared").id, path)
        store.revert(lesson("shared").id)
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(StoreError) as error:
            store.import_(path)
        assert any(part in str(error.value) for part in problem.split("|")), error.value
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("about", "problem"),
        [
            ({"record": {"seconds": "long"}}, "record: seconds: Input should be a valid number"),
            ({"record": {"overlaps": [{"lesson": "a"}]}}, "record: overlaps.0.shared_slots: Field required"),
            ({"record": {"facts": {"learned": 1}}}, "record: facts: Input should be a valid list"),
            ({"record": {"taught": {"a\nb": 1}}}, "record: taught.a b: Input should be a valid string"),
            ({"message": "\ud800"}, "half a surrogate pair"),
            ({"recipe": {"rate": 1e999}}, "is not JSON"),
            ({"recipe": {"rate": "1e999"}}, "the number 1e999 is too large"),
        ],
    )
    def test_with_a_foreign_description_is_refused_in_one_line(
        self, two: tuple[MemoryStore, MemoryStore], lesson: Lesson, tmp_path: Path, about: dict[str, object], problem: str
    ) -> None:
        ours, theirs = two
        entry = theirs.append(lesson("to go", {"0": {2: 0.1}}))
        path = tmp_path / "lesson.safetensors"
        theirs.export(entry.commit, path)
        describe_anew(path, about)
        with pytest.raises(StoreError) as error:
            ours.import_(path)
        assert problem in str(error.value)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
        assert len(ours.history()) == 1

    def test_keeps_what_this_version_does_not_know_of_its_record(
        self, two: tuple[MemoryStore, MemoryStore], lesson: Lesson, tmp_path: Path
    ) -> None:
        ours, theirs = two
        entry = theirs.append(lesson("to go", {"0": {2: 0.1}}))
        path = tmp_path / "lesson.safetensors"
        theirs.export(entry.commit, path)
        record = {"energy": {"joules": 5}, "facts": [{"learned": True, "tries": 3}], "seconds": None}
        describe_anew(path, {"record": record})
        assert ours.import_(path).commit == entry.commit
        assert MemoryStore.open(ours.path).record(entry.commit) == record

    def test_that_is_larger_than_any_lesson_is_refused_before_it_is_read(self, store: MemoryStore, tmp_path: Path) -> None:
        with (tmp_path / "huge").open("wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(StoreError, match=r"has \d+ bytes where at most"):
            store.import_(tmp_path / "huge")


def describe_anew(path: Path, change: dict[str, object]) -> None:
    """Replaces parts of what an exported lesson says of itself; the text 1e999 becomes a number."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    about = json.loads(header["__metadata__"]["memgraft"]) | change
    header["__metadata__"]["memgraft"] = json.dumps(about).replace('"1e999"', "1e999")
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", [path.name for path in sorted(GOLDEN.iterdir())])
def test_stores_of_every_format_are_read_and_changed(name: str, lesson: Lesson, tmp_path: Path) -> None:
    store = MemoryStore.open(shutil.copytree(GOLDEN / name, tmp_path / "store"))
    assert store.verify() == []
    assert store.spec.memory.threshold == 0, "stores from before it answer as they did"
    assert [entry.message for entry in store.history()] == ["first", "second", "first", "first"]
    scoped = name in ("format-3", "format-4")  # lessons with cues, each of which is read by itself
    if scoped:
        assert not len(store.state()["0"])
        slots = {table: {int(slot) for id in store.active() for slot in store.slots(id).get(table, ())} for table in ("0", "answers")}
        assert slots == ({"0": {3, 4, 7}, "answers": set()} if name == "format-3" else {"0": {3, 4}, "answers": {0, 2}})
    else:
        assert store.state()["0"].slots.tolist() == [3, 4, 7]
        assert store.state()["0"].values[0].tolist() == [1.75, -1.75, 2.0]
    cues = [store.cues(id) for id in store.active()]
    assert [each and len(each) for each in cues] == ([1, 2] if scoped else [None, None])
    anchors = [each and each.anchors and len(each.anchors) for each in cues]
    assert anchors == ([None, 3] if name == "format-4" else [None, None])
    store.tag("migrated")
    store.append(lesson("new", {"0": {5: 0.5}}))
    store.revert(store.history()[1].commit)
    store.gc()
    store.revert(lesson("new", {"0": {5: 0.5}}).id)
    store.gc()
    again = MemoryStore.open(store.path)
    assert again.verify() == []
    assert json.loads((store.path / "manifest.json").read_text())["format_version"] == 4
    assert bits(again.state("migrated")) == bits(MemoryStore.open(GOLDEN / name).state())
