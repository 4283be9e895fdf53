"""The memory store: what is put in comes back, lessons add up, and reverted ones leave no trace in the sum."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memgraft.commits import Commit, Rows, sum_rows
from memgraft.config import MemoryConfig
from memgraft.errors import StoreError
from memgraft.store import HistoryEntry, MemoryStore, StoreSpec, files
from memgraft.store import manifest as layout
from memgraft.store.folder import describe
from memgraft.store.lessons import encode

from .conftest import MEMORY, TEXTS, USAGE, Lesson, Make


def bits(state: dict[str, Rows]) -> dict[str, tuple[bytes, bytes]]:
    return {table: (rows.slots.numpy().tobytes(), rows.values.numpy().tobytes()) for table, rows in state.items()}


def test_what_was_stored_comes_back(store: MemoryStore, spec: StoreSpec) -> None:
    again = MemoryStore.open(store.path)
    assert again.spec == spec
    assert again.background_texts() == TEXTS
    for stored, given_tensors in ((again.memory_tensors(), MEMORY), (again.usage_tensors(), USAGE)):
        assert stored.keys() == given_tensors.keys()
        for name, tensor in given_tensors.items():
            assert stored[name].dtype == tensor.dtype
            assert torch.equal(stored[name], tensor)
    assert again.verify() == []


def test_a_new_store_has_an_empty_history_and_an_empty_state(store: MemoryStore) -> None:
    assert store.history() == []
    assert store.active() == []
    state = store.state()
    assert list(state) == ["0", "1"]
    assert all(rows == Rows.empty(3) for rows in state.values())


def test_a_lesson_comes_back_with_its_header_and_record(store: MemoryStore, lesson: Lesson) -> None:
    taught = lesson("products", seconds=12.5, learned=2, from_elsewhere=["a", None])
    entry = store.append(taught)
    again = MemoryStore.open(store.path)
    assert (entry.op, entry.commit, entry.message, entry.rows) == ("learn", taught.id, "products", 3)
    assert again.history() == [entry]
    assert again.commit(taught.id) == taught
    assert again.record(taught.id) == {"seconds": 12.5, "learned": 2, "from_elsewhere": ["a", None]}
    assert again.commit(taught.id).record == again.record(taught.id)
    assert again.header(taught.id) == {"format_version": 1, **taught.header()}
    assert again.verify() == []


def test_a_lesson_is_found_by_any_prefix_of_its_id_that_only_it_has(store: MemoryStore, lesson: Lesson) -> None:
    lessons = [lesson(str(number)) for number in range(17)]  # two of seventeen must share their first digit
    for taught in lessons:
        store.append(taught)
    for taught in lessons:
        others = [other.id for other in lessons if other.id != taught.id]
        length = next(n for n in range(1, 65) if not any(other.startswith(taught.id[:n]) for other in others))
        assert store.resolve(taught.id[:length]) == taught.id
        assert store.resolve(taught.id[:length].upper()) == taught.id
        if length > 1:
            with pytest.raises(StoreError, match="lessons have an id that starts with"):
                store.resolve(taught.id[: length - 1])
    for prefix in ("", "xyz", "../"):
        with pytest.raises(StoreError, match="no lesson has an id that starts with"):
            store.commit(prefix)


def test_equal_lessons_have_equal_bytes(make: Make, lesson: Lesson, tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        store = make(tmp_path / name)
        taught = lesson("equal")
        tables = dict(reversed(taught.changes.items()))
        store.append(Commit(tables, taught.message, dict(reversed(taught.recipe.items())), taught.data_sha256, {"where": name}))
        contents.append((store.path / f"commits/{taught.id}.safetensors").read_bytes())
    assert contents[0] == contents[1]


def test_a_lesson_s_file_explains_itself_outside_its_store(store: MemoryStore, lesson: Lesson) -> None:
    from safetensors import safe_open

    taught = lesson("shared by mail")
    store.append(taught)
    with safe_open(store.path / f"commits/{taught.id}.safetensors", "pt") as file:
        assert json.loads(file.metadata()["memgraft"])["message"] == "shared by mail"
        assert sorted(file.keys()) == ["slots.0", "slots.1", "values.0", "values.1"]


def test_revert_restores_the_state_before_the_lesson_bit_for_bit(store: MemoryStore, lesson: Lesson) -> None:
    first, second = lesson("first", {"0": {3: 0.1, 5: 7.0}}), lesson("second", {"0": {3: 1e9, 4: 2.0}, "1": {2: 1.0}})
    store.append(first)
    before = store.state()
    store.append(second)
    assert bits(store.state()) != bits(before)
    store.revert(second.id)
    assert bits(store.state()) == bits(before)
    store.revert(first.id)
    assert store.state() == {"0": Rows.empty(3), "1": Rows.empty(3)}
    assert [entry.op for entry in store.history()] == ["learn", "learn", "revert", "revert"]
    assert store.verify() == []


def test_revert_reports_which_later_active_lessons_share_slots_and_how_much_it_takes_from_them(store: MemoryStore, lesson: Lesson) -> None:
    earlier = lesson("earlier", {"0": {3: 1.0}})
    taken = lesson("taken back", {"0": {3: 2.0, 5: 3.0, 6: 1.0}, "1": {9: 1.0}})
    apart = lesson("apart", {"0": {4: 1.0}, "1": {3: 1.0}})
    gone = lesson("gone", {"0": {3: 1.0}})
    sharing = lesson("sharing", {"0": {3: 9.0, 5: 9.0, 7: 9.0}, "1": {9: 9.0}})
    for taught in (earlier, taken, apart, gone, sharing):
        store.append(taught)
    store.revert(gone.id)
    expected = math.sqrt((4 + 4 + 1) + (9 + 9 + 1) + (1 + 1 + 1))  # rows are (v, -v, 1) at slots 3 and 5 of table 0, 9 of table 1
    assert [overlap.commit for overlap in store.overlaps(taken.id)] == [sharing.id]
    report = store.revert(taken.id[:8])
    assert (report.commit, report.rows) == (taken.id, 4)
    (overlap,) = report.overlaps
    assert (overlap.commit, overlap.message, overlap.shared_slots) == (sharing.id, "sharing", 3)
    assert overlap.l2 == pytest.approx(expected, rel=1e-6)


def test_revert_of_a_lesson_without_rows_or_without_later_ones_reports_no_overlap(store: MemoryStore, lesson: Lesson) -> None:
    empty, last = lesson("empty", {"0": {}, "1": {}}), lesson("last")
    store.append(empty)
    store.append(last)
    assert store.revert(last.id).overlaps == ()
    store.append(last)
    assert store.revert(empty.id).overlaps == ()


def test_learning_an_active_lesson_again_is_refused(store: MemoryStore, lesson: Lesson) -> None:
    store.append(lesson())
    with pytest.raises(StoreError, match="active already; revert it first"):
        store.append(lesson())
    assert len(store.history()) == 1


def test_reverting_twice_is_refused(store: MemoryStore, lesson: Lesson) -> None:
    store.append(lesson())
    store.revert(lesson().id)
    with pytest.raises(StoreError, match="reverted already"):
        store.revert(lesson().id)


def test_a_reverted_lesson_can_be_learned_again_with_another_record(store: MemoryStore, lesson: Lesson) -> None:
    store.append(lesson(seconds=1))
    first = store.state()
    store.revert(lesson().id)
    store.append(lesson(seconds=2))
    assert bits(store.state()) == bits(first)
    assert store.active() == [lesson().id]
    assert store.record(lesson().id) == {"seconds": 2}
    assert json.loads((store.path / f"records/{lesson().id}.json").read_text()) == {"seconds": 1}
    assert MemoryStore.open(store.path).verify() == []


actions = st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=14)
values = st.floats(width=32, min_value=-(2.0**60), max_value=2.0**60)
tables = st.dictionaries(st.sampled_from("01"), st.dictionaries(st.integers(0, 15), values, max_size=6), max_size=2)


@given(contents=st.lists(tables, min_size=6, max_size=6), actions=actions)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_after_any_history_the_state_is_the_sum_of_the_active_lessons(
    contents: list[dict[str, dict[int, float]]],
    actions: list[tuple[int, bool]],
    make: Make,
    lesson: Lesson,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files, "sync", lambda descriptor: None)
    pool = [lesson(f"lesson {number}", changes) for number, changes in enumerate(contents)]
    active: list[Commit] = []
    learned = 0
    with tempfile.TemporaryDirectory() as folder:
        store = make(Path(folder) / "store")
        for number, learn in actions:
            taught = pool[number]
            allowed = learn == all(other.id != taught.id for other in active)
            if allowed and learn:
                store.append(taught)
                active.append(taught)
                learned += 1
            elif allowed:
                store.revert(taught.id)
                active = [other for other in active if other.id != taught.id]
            else:
                with pytest.raises(StoreError):
                    store.append(taught) if learn else store.revert(taught.id)
        again = MemoryStore.open(store.path)
        assert again.active() == [taught.id for taught in active]
        assert sum(entry.op == "learn" for entry in again.history()) == learned
        expected = {name: sum_rows([taught.changes[name] for taught in active if name in taught.changes], 3) for name in ("0", "1")}
        assert bits(again.state()) == bits(expected)
        assert again.verify() == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"changes": {"2": Rows.empty(3)}}, "'2': no such table, the memory has 0, 1"),
        ({"changes": {"0": Rows.empty(4)}}, "4 wide, expected 3"),
        ({"changes": {"0": Rows(torch.tensor([16]), torch.ones(1, 3))}}, r"\[0, 16\)"),
        ({"changes": {"0": Rows(torch.tensor([2, 2]), torch.ones(2, 3))}}, "strictly increasing"),
        ({"changes": {"0": Rows(torch.tensor([2]), torch.full((1, 3), math.nan))}}, "not finite"),
        ({"recipe": {"rate": math.inf}}, "not plain JSON"),
        ({"recipe": {1: "key"}}, "JSON keys must be text"),
        ({"record": {"loss": math.nan}}, "not plain JSON"),
        ({"record": {"tensor": torch.zeros(1)}}, "not plain JSON"),
        ({"record": {"seconds": "12"}}, "record: seconds: Input should be a valid number"),
        ({"message": "\ud800"}, "not plain JSON.*Unicode"),
        ({"message": "x" * 4001}, "4001 characters, at most 4000"),
    ],
)
def test_a_lesson_that_does_not_fit_is_refused(store: MemoryStore, lesson: Lesson, change: dict[str, Any], problem: str) -> None:
    good = lesson()
    fields = {name: getattr(good, name) for name in ("changes", "message", "recipe", "data_sha256", "record")}
    with pytest.raises(StoreError, match=problem) as error:
        store.append(Commit(**fields | change))
    assert "nothing was changed" in str(error.value)
    assert "\n" not in str(error.value)
    assert store.history() == MemoryStore.open(store.path).history() == []


@pytest.mark.parametrize("name", ["store", "deep/er/store"])
def test_a_store_can_be_made_in_a_new_folder_or_an_empty_one(make: Make, tmp_path: Path, name: str) -> None:
    assert make(tmp_path / name).verify() == []
    (tmp_path / "empty").mkdir()
    assert make(tmp_path / "empty").verify() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"empty", name.partition("/")[0]})


def test_a_store_is_not_made_over_something_else(make: Make, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    make(tmp_path / "store")
    for name in ("folder", "file", "store"):
        with pytest.raises(StoreError, match="exists already and is not an empty folder; choose another name"):
            make(tmp_path / name)
    assert (tmp_path / "folder/mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    assert MemoryStore.open(tmp_path / "store").verify() == []


def test_a_store_does_not_take_the_place_of_the_current_folder(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (Path(), tmp_path):
        with pytest.raises(StoreError, match="is the current folder, whose place a store can't take; name a new folder in it"):
            make(name)
    assert not list(tmp_path.iterdir())
    assert make(Path("store")).verify() == []


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX")
@pytest.mark.parametrize("mode", [0o700, 0o750, 0o2775])
def test_a_store_in_an_empty_folder_keeps_the_folders_permissions_from_the_start(
    make: Make, tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = tmp_path / "store", set[int]()
    folder.mkdir()
    folder.chmod(mode)
    write_file = files.write_file

    def noting(path: Path, data: bytes) -> None:
        seen.add(path.parent.stat().st_mode & 0o7777)
        write_file(path, data)

    monkeypatch.setattr(files, "write_file", noting)
    make(folder)
    assert seen == {mode}
    assert folder.stat().st_mode & 0o7777 == mode


def test_a_store_whose_empty_folders_got_lost_on_the_way_is_whole(store: MemoryStore, lesson: Lesson) -> None:
    for name in ("commits", "records"):
        (store.path / name).rmdir()
    again = MemoryStore.open(store.path)
    assert again.verify() == []
    again.append(lesson())
    assert MemoryStore.open(store.path).verify() == []


def test_a_store_can_be_made_through_a_link_and_opened_through_one(make: Make, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    make(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert MemoryStore.open(tmp_path / "link").verify() == MemoryStore.open(tmp_path / "real").verify() == []


def test_a_relative_path_means_the_folder_that_it_meant_when_it_was_given(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = make(Path("store"))
    opened = MemoryStore.open("./store")
    monkeypatch.chdir(tmp_path.parent)
    assert store.path == opened.path == tmp_path / "store"
    assert store.verify() == opened.verify() == []


def test_what_json_can_not_hold_is_refused_before_anything_is_made(spec: StoreSpec, tmp_path: Path) -> None:
    for texts, background in ((["\udfff"], {}), ([], {"temperature": math.nan})):
        with pytest.raises(StoreError, match="can't be stored"):
            MemoryStore.create(tmp_path / "store", spec.model_copy(update={"background": background}), {}, {}, texts)
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_share_memory_or_need_a_gradient_can_be_stored(spec: StoreSpec, tmp_path: Path) -> None:
    whole = torch.arange(6.0).requires_grad_()
    store = MemoryStore.create(tmp_path / "store", spec, {"whole": whole, "part": whole[2:4], "columns": whole.reshape(2, 3).T}, {}, [])
    stored = store.memory_tensors()
    assert stored["part"].tolist() == [2.0, 3.0]
    assert torch.equal(stored["columns"], whole.reshape(2, 3).T)


def test_two_store_objects_do_not_lose_each_other_s_lessons(store: MemoryStore, lesson: Lesson) -> None:
    other = MemoryStore.open(store.path)
    store.append(lesson("a"))
    other.append(lesson("b", {"0": {1: 1.0}}))
    store.append(lesson("c", {"0": {2: 1.0}}))
    assert [entry.message for entry in MemoryStore.open(store.path).history()] == ["a", "b", "c"]
    assert [entry.message for entry in store.history()] == ["a", "b", "c"]
    assert [entry.message for entry in other.history()] == ["a", "b"]
    assert other.state()["0"].slots.tolist() == [1, 3, 7]


def test_a_second_writer_is_told_who_writes_and_readers_are_not_kept_out(store: MemoryStore, lesson: Lesson) -> None:
    other = MemoryStore.open(store.path)
    with store.lock():
        with pytest.raises(StoreError, match=f"process {os.getpid()} is writing to this store; wait"):
            other.append(lesson())
        store.append(lesson("within the lock"))
        assert [entry.message for entry in MemoryStore.open(store.path).history()] == ["within the lock"]
        with pytest.raises(StoreError, match="is writing to this store"):
            other.revert(lesson("within the lock").id)
    other.append(lesson("after it"))
    assert [entry.message for entry in other.history()] == ["within the lock", "after it"]


def test_an_error_within_the_lock_is_the_caller_s_own_and_frees_it(store: MemoryStore, lesson: Lesson) -> None:
    with pytest.raises(FileNotFoundError), store.lock():
        raise FileNotFoundError("data.jsonl")
    MemoryStore.open(store.path).append(lesson())


def test_a_writer_in_another_process_is_named(store: MemoryStore, lesson: Lesson) -> None:
    code = """
import sys
from memgraft.store import MemoryStore
with MemoryStore.open(sys.argv[1]).lock():
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code, store.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"process {holder.pid} is writing"):
            store.append(lesson())
        holder.communicate("")
    store.append(lesson())


def test_a_store_that_was_replaced_since_it_was_opened_is_not_written_to(
    make: Make, spec: StoreSpec, lesson: Lesson, tmp_path: Path
) -> None:
    store = make(tmp_path / "store")
    store.path.rename(tmp_path / "moved")
    MemoryStore.create(tmp_path / "store", spec.model_copy(update={"model": "another/model"}), {}, {}, [])
    with pytest.raises(StoreError, match="another store was put in its place"):
        store.append(lesson())


def filled(store: MemoryStore, lessons: list[Commit]) -> MemoryStore:
    """A store with many lessons, written at once instead of one by one."""
    entries, history = dict(store._manifest.files), []
    for taught in lessons:
        changes, header, record = encode(taught, store.spec.memory, "")
        id = taught.id
        for name, data in {layout.changes_name(id): changes, layout.header_name(id): header, layout.record_name(id, 1): record}.items():
            (store.path / name).write_bytes(data)
            entries[name] = describe(data)
        history.append(HistoryEntry(op="learn", commit=id, when="2026-01-01T00:00:00+00:00", message=taught.message, rows=taught.rows))
    (store.path / "manifest.json").write_bytes(layout.Manifest(files=entries, history=tuple(history)).to_bytes())
    return MemoryStore.open(store.path)


def test_a_history_of_ten_thousand_lessons_is_read(store: MemoryStore) -> None:
    entries, history = dict(store._manifest.files), []
    stand_in = store.path / "stand-in"
    stand_in.write_bytes(b"{}")
    for number in range(10_000):
        id = files.sha256(str(number).encode())
        for name in (layout.changes_name(id), layout.header_name(id), layout.record_name(id, 1)):
            os.link(stand_in, store.path / name)
            entries[name] = describe(b"{}")
        history.append(HistoryEntry(op="learn", commit=id, when="2026-01-01T00:00:00+00:00", message=f"lesson {number}", rows=500))
    (store.path / "manifest.json").write_bytes(layout.Manifest(files=entries, history=tuple(history)).to_bytes())
    assert MemoryStore.open(store.path).history() == history


def test_reverting_one_of_a_thousand_lessons_names_all_that_share_its_slots(spec: StoreSpec, tmp_path: Path) -> None:
    memory = MemoryConfig(layers=(1,), hidden_size=64, slots=65_536)
    store = MemoryStore.create(tmp_path / "store", spec.model_copy(update={"memory": memory}), {}, {}, [])
    generator = torch.Generator().manual_seed(0)
    lessons = []
    for number in range(1_000):
        slots = torch.randperm(memory.slots, generator=generator)[:500].sort().values
        lessons.append(Commit({"0": Rows(slots, torch.randn(500, 64, generator=generator))}, str(number), {}, "d" * 64))
    store = filled(store, lessons)
    report = store.revert(lessons[2].id)
    expected = {taught.message for taught in lessons[3:] if torch.isin(taught.changes["0"].slots, lessons[2].changes["0"].slots).any()}
    assert {overlap.message for overlap in report.overlaps} == expected


def test_the_history_is_read_without_importing_torch(store: MemoryStore, lesson: Lesson) -> None:
    store.append(lesson("light"))
    code = """
import sys
from memgraft.store import MemoryStore
print(MemoryStore.open(sys.argv[1]).history()[0].message, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, store.path], capture_output=True, text=True, check=True)
    assert done.stdout == "light False\n"
