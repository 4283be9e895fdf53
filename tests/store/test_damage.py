"""Damaged, hostile and newer stores: one line that names the file and the way out, never a traceback or a wrong memory."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memgraft.commits import Commit, Rows
from memgraft.errors import StoreError
from memgraft.store import MemoryStore
from memgraft.store.files import sha256

from .conftest import Lesson

Manifest = dict[str, Any]


@pytest.fixture
def taught(store: MemoryStore, lesson: Lesson) -> MemoryStore:
    store.append(lesson("first", seconds=1))
    return store


def rewrite(store: MemoryStore, change: Callable[[Manifest], object]) -> None:
    """Changes the manifest as someone with an editor would."""
    path = store.path / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def put(store: MemoryStore, name: str, data: bytes) -> None:
    """Replaces a file and its entry in the manifest, so that only its content is wrong."""
    (store.path / name).write_bytes(data)
    rewrite(store, lambda manifest: manifest["files"].update({name: [len(data), sha256(data)]}))


def refusal(action: Callable[[], object], *parts: str) -> str:
    with pytest.raises(StoreError) as error:
        action()
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


def test_what_is_no_store_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    refusal(lambda: MemoryStore.open(tmp_path / "none"), "none: no such folder", "memgraft graft MODEL -o")
    refusal(lambda: MemoryStore.open(tmp_path), "no memory store, it has no manifest.json", "memgraft graft")
    (tmp_path / "file").write_text("")
    refusal(lambda: MemoryStore.open(tmp_path / "file"), "no such folder")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "not JSON"),
        (b'{"format_version": 1, "files": {', "not JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[]", "expected a JSON object, got list"),
        (b'{"format_version": 1, "format_version": 1}', "'format_version' appears twice"),
        (b'{"format_version": NaN}', "NaN is not JSON"),
        (b'{"a":' * 50_000, "nested too deeply"),
        (b"{}", "format_version must be a positive integer, got None"),
        (b'{"format_version": "1"}', "must be a positive integer, got '1'"),
        (b'{"format_version": true}', "must be a positive integer, got True"),
        (b'{"format_version": 0}', "must be a positive integer, got 0"),
        (b'{"format_version": 1}', "files: Field required"),
    ],
)
def test_a_manifest_that_can_not_be_read_is_refused(taught: MemoryStore, data: bytes, problem: str) -> None:
    (taught.path / "manifest.json").write_bytes(data)
    refusal(lambda: MemoryStore.open(taught.path), "manifest.json: ", problem)


def test_a_newer_format_is_refused_whatever_else_it_says(taught: MemoryStore) -> None:
    (taught.path / "manifest.json").write_text('{"format_version": 5, "something": "new"}')
    refusal(lambda: MemoryStore.open(taught.path), "written by a newer memgraft (format 5, this one reads up to 4); upgrade memgraft")


ANOTHER = "e" * 64


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m.update(extra=1), "extra: Extra inputs are not permitted"),
        (lambda m: m["history"][0].update(extra=1), "history.0.extra: Extra inputs"),
        (lambda m: m["history"][0].update(op="merge"), "history.0.op"),
        (lambda m: m["history"][0].update(commit="../../etc/passwd"), "history.0.commit"),
        (lambda m: m["history"][0].update(commit=ANOTHER[:-1] + "\n"), "history.0.commit"),
        (lambda m: m["history"][0].update(rows=-1), "history.0.rows"),
        (lambda m: m["history"][0].update(rows="3"), "history.0.rows"),
        (lambda m: m["history"][0].update(message="m" * 4001), "history.0.message: String should have at most 4000 characters"),
        (lambda m: m["history"].append(m["history"][0]), "history entry 1: learn of"),
        (lambda m: m["history"].insert(0, {**m["history"][0], "op": "revert"}), "history entry 0: revert of"),
        (lambda m: m["history"].clear(), "lists a file that no lesson has"),
        (lambda m: m["history"].append({**m["history"][0], "commit": ANOTHER}), f'does not list: "commits/{ANOTHER}'),
        (lambda m: m["files"].pop("usage.safetensors"), 'does not list: "usage.safetensors"'),
        (lambda m: m["files"].update({"../outside": [1, ANOTHER]}), 'lists a file that no lesson has: "../outside"'),
        (lambda m: m["files"].update({"/etc/passwd": [1, ANOTHER]}), 'lists a file that no lesson has: "/etc/passwd"'),
        (lambda m: m["files"].update({"commits/../../x": [1, ANOTHER]}), "lists a file that no lesson has"),
        (lambda m: m["files"].update({"a\nb" * 999: [1, ANOTHER]}), "lists a file that no lesson has"),
        (lambda m: m["files"].update({"config.json": [-1, ANOTHER]}), "files.config.json.0"),
        (lambda m: m["files"].update({"config.json": [1.5, ANOTHER]}), "files.config.json.0"),
        (lambda m: m["files"].update({"config.json": [1, "E" * 64]}), "files.config.json.1"),
        (lambda m: m["files"].update({"config.json": 10**400}), "files.config.json"),
        (lambda m: m["files"].update({"config.json": [1 << 62, ANOTHER]}), "config.json: has"),
    ],
)
def test_a_manifest_that_contradicts_itself_or_leads_out_of_the_store_is_refused(
    taught: MemoryStore, change: Callable[[Manifest], object], problem: str
) -> None:
    rewrite(taught, change)
    refusal(lambda: MemoryStore.open(taught.path), problem, "restore")


def members(store: MemoryStore) -> list[str]:
    return sorted(store._manifest.files)


MEMBERS = range(7)  # configuration, memory, usage, background, and a lesson's three files


@pytest.mark.parametrize("index", MEMBERS)
@pytest.mark.parametrize("damage", ["missing", "truncated", "grown", "link", "dangling link", "folder", "fifo", "socket name"])
def test_a_file_that_is_missing_cut_or_not_a_file_is_found_when_the_store_is_opened(taught: MemoryStore, index: int, damage: str) -> None:
    name = members(taught)[index]
    path = taught.path / name
    data = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[:-1])
    elif damage == "grown":
        path.write_bytes(data + b"\n")
    elif damage == "link":
        (taught.path / "elsewhere").write_bytes(data)
        path.symlink_to(taught.path / "elsewhere")
    elif damage == "dangling link":
        path.symlink_to("nowhere")
    elif damage == "folder":
        path.mkdir()
    elif damage == "fifo":
        os.mkfifo(path)
    refusal(lambda: MemoryStore.open(taught.path), str(path), "restore it from a copy of the store")
    assert any(str(path) in problem for problem in taught.verify())


def use_everything(path: Path) -> None:
    store = MemoryStore.open(path)
    store.memory_tensors(), store.usage_tensors(), store.background_texts(), store.state()
    for id in store.active():
        store.commit(id)


@pytest.mark.parametrize("index", MEMBERS)
def test_a_changed_byte_in_any_file_is_found_before_the_file_is_used(taught: MemoryStore, index: int) -> None:
    name = members(taught)[index]
    path = taught.path / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert any(str(path) in problem for problem in taught.verify())
    refusal(
        lambda: use_everything(taught.path), str(path), "damaged, its SHA-256 is not the manifest's; restore it from a copy of the store"
    )


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_is_met_with_anything_but_a_readable_error(taught: MemoryStore, data: st.DataObject) -> None:
    path = taught.path / data.draw(st.sampled_from(["manifest.json", *members(taught)]))
    content = path.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    damaged = content[:start] + data.draw(st.binary(max_size=3)) + content[start + data.draw(st.integers(0, 3)) :]
    path.write_bytes(damaged)
    try:
        if path.name == "manifest.json":
            with suppress(StoreError):
                use_everything(taught.path)
        elif damaged != content:
            refusal(lambda: use_everything(taught.path), str(path))
        else:
            use_everything(taught.path)
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("folder", ["commits", "records"])
def test_a_folder_of_the_store_that_is_a_link_is_refused(taught: MemoryStore, folder: str, tmp_path: Path) -> None:
    shutil.move(taught.path / folder, tmp_path / "elsewhere")
    refusal(lambda: MemoryStore.open(taught.path), f"{folder}: missing, or not a real folder")
    (taught.path / folder).symlink_to(tmp_path / "elsewhere")
    refusal(lambda: MemoryStore.open(taught.path), f"{folder}: missing, or not a real folder")


def test_a_manifest_that_is_a_link_is_refused(taught: MemoryStore, tmp_path: Path) -> None:
    shutil.move(taught.path / "manifest.json", tmp_path / "elsewhere")
    (taught.path / "manifest.json").symlink_to(tmp_path / "elsewhere")
    refusal(lambda: MemoryStore.open(taught.path), "manifest.json: is a symbolic link", "cp -rL")


def test_a_writer_does_not_follow_links_that_lie_in_wait(taught: MemoryStore, lesson: Lesson, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("the user's own")
    for name in (".writer", ".manifest.json.tmp", f"commits/.{lesson('x').id}.json.tmp"):
        (taught.path / name).unlink(missing_ok=True)
        (taught.path / name).symlink_to(victim)
    refusal(lambda: taught.append(lesson("x")), "can't write", "nothing was changed")
    taught.append(lesson("x"))
    assert victim.read_text() == "the user's own"
    assert MemoryStore.open(taught.path).verify() == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda c: c.update(extra=1), "extra: Extra inputs are not permitted"),
        (lambda c: c.update(gguf_file="model.gguf"), "gguf_file: Extra inputs are not permitted"),
        (lambda c: c["memory"].update(extra=1), "memory.extra: Extra inputs"),
        (lambda c: c["memory"].update(slots=15), "slots must be a square number"),
        (lambda c: c["memory"].update(slots="16"), "memory.slots"),
        (lambda c: c.pop("model"), "model: Field required"),
        (lambda c: c.update(format_version=9), "written by a newer memgraft (format 9"),
    ],
)
def test_a_configuration_that_this_version_does_not_know_is_refused(
    taught: MemoryStore, change: Callable[[Manifest], object], problem: str
) -> None:
    config = json.loads((taught.path / "config.json").read_text())
    change(config)
    put(taught, "config.json", json.dumps(config).encode())
    refusal(lambda: MemoryStore.open(taught.path), "config.json: ", problem)


def test_a_configuration_with_the_retired_key_of_early_stores_is_read(taught: MemoryStore) -> None:
    config = json.loads((taught.path / "config.json").read_text())
    assert "gguf_file" not in config
    put(taught, "config.json", json.dumps({**config, "gguf_file": None}).encode())
    opened = MemoryStore.open(taught.path)
    assert opened.spec == taught.spec
    assert opened.verify() == []


def changes_bytes(**tensors: torch.Tensor) -> bytes:
    good = {"slots.0": torch.tensor([3, 7]), "values.0": torch.ones(2, 3)}
    return safetensors.torch.save({**good, **{name.replace("_", "."): tensor for name, tensor in tensors.items()}})


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "header"),
        (struct.pack("<Q", 1 << 60) + b"{}", "header"),
        (struct.pack("<Q", 99_999_999) + b"{}", "header"),
        (struct.pack("<Q", 4) + b"nope", "header"),
        (b"\x80\x04\x95not a pickle", "header"),
        (changes_bytes()[:-4], "header|incomplete"),
        (changes_bytes(slots_0=torch.tensor([7, 3])), "strictly increasing"),
        (changes_bytes(slots_0=torch.tensor([3, 3])), "strictly increasing"),
        (changes_bytes(slots_0=torch.tensor([-1, 3])), "[0, 16)"),
        (changes_bytes(slots_0=torch.tensor([3, 16])), "[0, 16)"),
        (changes_bytes(slots_0=torch.tensor([3, 7], dtype=torch.int32)), "slots must be int64"),
        (changes_bytes(slots_0=torch.tensor([[3, 7]])), "slots must be int64 of shape (R,)"),
        (changes_bytes(slots_0=torch.tensor(3)), ""),
        (changes_bytes(slots_9=torch.tensor([3, 7]), values_9=torch.ones(2, 3)), "no such table, the memory has 0, 1"),
        (changes_bytes(slots_1=torch.tensor([3, 7])), "unexpected tensors, such as 'values.1'"),
        (changes_bytes(extra=torch.ones(1)), "unexpected tensors"),
        (changes_bytes(values_0=torch.ones(2, 3).half()), "values must be fp32"),
        (changes_bytes(values_0=torch.ones(3, 3)), "values must be fp32 of shape (R, V)"),
        (changes_bytes(values_0=torch.ones(2, 4)), "4 wide, expected 3"),
        (changes_bytes(values_0=torch.tensor([[1.0, 1, 1], [1, float("nan"), 1]])), "slot 7 are not finite"),
    ],
)
def test_a_lesson_file_whose_content_can_not_be_this_memory_s_is_refused(taught: MemoryStore, data: bytes, problem: str) -> None:
    id = taught.history()[0].commit
    put(taught, f"commits/{id}.safetensors", data)
    store = MemoryStore.open(taught.path)
    for use in (store.state, lambda: store.commit(id)):
        message = refusal(use, f"{id}.safetensors: ", "restore the file from a copy of the store")
        assert any(part in message for part in problem.split("|"))
    assert any(id in line for line in store.verify())


def test_slots_of_a_type_that_torch_can_not_compute_with_are_refused(taught: MemoryStore) -> None:
    header = json.dumps({"slots.0": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    id = taught.history()[0].commit
    put(taught, f"commits/{id}.safetensors", struct.pack("<Q", len(header)) + header + b"\0")
    refusal(MemoryStore.open(taught.path).state, f"{id}.safetensors: slots must be int64")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"[]", "expected a JSON object"),
        (b"{}", "format_version"),
        (b'{"format_version":5}', "newer memgraft"),
        (b'{"format_version":1,"message":"m"}', "expected the keys"),
        (b'{"format_version":1,"message":1,"recipe":{},"data_sha256":""}', "must be text"),
        (b'{"format_version":1,"message":"other","recipe":{},"data_sha256":""}', "holds another lesson"),
    ],
)
def test_a_header_that_is_not_the_lesson_s_is_refused(taught: MemoryStore, data: bytes, problem: str) -> None:
    id = taught.history()[0].commit
    put(taught, f"commits/{id}.json", data)
    refusal(lambda: MemoryStore.open(taught.path).commit(id), problem)
    assert any(problem in line for line in MemoryStore.open(taught.path).verify())


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"[]", "expected a JSON object"),
        (b'{"seconds":"12"}', "record: seconds: Input should be a valid number"),
        (b'{"facts":[{"learned":true},{"question":"?"}]}', "record: facts.1.learned: Field required"),
        (b'{"losses":[[1,"nan"]]}', "record: losses.0.1: Input should be a valid number"),
        (b'{"rows_per_batch":1e999}', "the number 1e999 is too large"),
    ],
)
def test_a_record_that_can_not_be_read_is_refused_with_file_and_field(taught: MemoryStore, data: bytes, problem: str) -> None:
    entry = next(entry for entry in taught.history() if entry.commit in taught.active())
    put(taught, f"records/{entry.commit}.json", data)
    store = MemoryStore.open(taught.path)
    for use in (store.commit, store.record):
        refusal(lambda use=use: use(entry.commit), f"{entry.commit}.json: ", problem)  # type: ignore[misc]
    assert any(problem in line for line in store.verify())
    store.revert(entry.commit)


def test_a_lesson_that_is_not_the_one_its_name_says_is_refused(taught: MemoryStore, lesson: Lesson) -> None:
    id, other = taught.history()[0].commit, lesson("first", {"0": {3: 9.0}})
    assert other.id != id
    taught.append(other)
    put(taught, f"commits/{id}.safetensors", (taught.path / f"commits/{other.id}.safetensors").read_bytes())
    refusal(lambda: MemoryStore.open(taught.path).commit(id), f"holds another lesson, {other.id[:12]}")


OTHER_HEADER = '{"format_version":1,"message":"other","recipe":{},"data_sha256":""}'


def test_what_is_kept_twice_but_differs_is_found_by_verify(taught: MemoryStore) -> None:
    id = taught.history()[0].commit
    rewrite(taught, lambda manifest: manifest["history"][0].update(message="another message"))
    (problem,) = MemoryStore.open(taught.path).verify()
    assert f"message or rows of {id[:12]}" in problem
    rewrite(taught, lambda manifest: manifest["history"][0].update(message="first"))
    tensors = safetensors.torch.load_file(taught.path / f"commits/{id}.safetensors")
    put(taught, f"commits/{id}.safetensors", safetensors.torch.save(tensors, {"memgraft": OTHER_HEADER}))
    (problem,) = MemoryStore.open(taught.path).verify()
    assert "the header inside is not the one beside it" in problem


@pytest.mark.parametrize("line", [b"{}", b'{"text": 1}', b'{"text": "a", "b": 1}', b"text", b'{"text": "a"', b"\xff"])
def test_a_background_line_that_is_no_text_is_refused_with_its_number(taught: MemoryStore, line: bytes) -> None:
    put(taught, "background.jsonl", b'{"text": "good"}\n' + line + b"\n")
    refusal(MemoryStore.open(taught.path).background_texts, "background.jsonl:2: ")


def test_tensors_that_are_no_safetensors_are_refused(taught: MemoryStore) -> None:
    put(taught, "memory.safetensors", struct.pack("<Q", 1 << 60) + b"{}")
    refusal(MemoryStore.open(taught.path).memory_tensors, "memory.safetensors: ", "restore")


def test_verify_names_every_problem_once(taught: MemoryStore, lesson: Lesson) -> None:
    taught.append(lesson("second", {"0": {2: 1.0}}))
    first, second = taught.active()
    put(taught, f"records/{first}.json", b"[]")
    put(taught, "background.jsonl", b"no\n")
    put(taught, f"commits/{second}.json", b"{}")
    problems = MemoryStore.open(taught.path).verify()
    named = ("background.jsonl:1", f"commits/{second}.json", f"records/{first}.json")
    assert [sum(name in problem for problem in problems) for name in named] == [1, 1, 1]
    assert len(problems) == 3


def test_a_lesson_without_any_table_is_a_lesson_that_changes_nothing(taught: MemoryStore) -> None:
    before = taught.state()
    entry = taught.append(Commit({}, "nothing", {}, "d" * 64))
    assert MemoryStore.open(taught.path).state() == before
    assert taught.commit(entry.commit).changes == {}
    taught.append(Commit({"0": Rows.empty(3)}, "nothing", {}, "d" * 64))
    assert MemoryStore.open(taught.path).verify() == []


@pytest.mark.parametrize("name", ["commits/{}.safetensors", "commits/{}.json", "records/{}.json"])
def test_a_damaged_lesson_can_be_taken_back_and_then_the_store_is_whole(store: MemoryStore, lesson: Lesson, name: str) -> None:
    first, second = lesson("first"), lesson("second")
    for commit in (first, second):
        store.append(commit)
    path = store.path / name.format(first.id)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 8] ^= 1
    path.write_bytes(damaged)
    refusal(lambda: store.commit(first.id), path.name)
    if name.endswith("safetensors"):
        refusal(store.state, path.name)
        refusal(lambda: store.revert(first.id, overlap="refuse"), path.name)
    assert store.revert(first.id).commit == first.id
    again = MemoryStore.open(store.path)
    assert again.commit(second.id) == second
    assert again.state() == dict(second.changes)


def test_a_later_lesson_that_is_damaged_is_left_out_of_the_overlaps(store: MemoryStore, lesson: Lesson) -> None:
    first, second, third = (lesson(message) for message in ("first", "second", "third"))
    for commit in (first, second, third):
        store.append(commit)
    path = store.path / f"commits/{second.id}.safetensors"
    path.write_bytes(bytes(path.stat().st_size))
    refusal(lambda: store.overlaps(first.id), path.name)
    refusal(lambda: store.revert(first.id, overlap="refuse"), path.name)
    assert [overlap.message for overlap in store.revert(first.id).overlaps] == ["third"]
