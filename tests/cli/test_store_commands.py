"""The commands that inspect, undo, combine and tidy stores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memgraft.checkpoints import NAME
from memgraft.store import MemoryStore
from memgraft.store.folder import describe

Run = Callable[..., Any]
Digest = Callable[[Path], dict[str, str]]
OVER = ("--ranking", "all", "--passes", "1", "--wordings", "2", "--no-test")  # writes wherever it reads


def test_diff_tag_and_gc_go_together(run: Run, taught_store: Path) -> None:
    first, second = MemoryStore.open(taught_store).active()
    assert run("tag", taught_store).out == ""
    assert run("tag", taught_store, "v1").out == "v1 names the memory after 2 of 2 history entries\n"
    run("revert", taught_store, second)
    out = run("diff", taught_store, "v1").out.splitlines()
    assert out[0].startswith(f"- {second[:12]} second lesson")
    assert out[1].startswith("table 0: ")
    found = run("diff", taught_store, "start", "v1", "--json").json
    assert (found["learned"], found["reverted"]) == ([first, second], [])
    assert run("diff", taught_store, "now", "now").out == "table 0: no row differs\n"
    assert run("gc", taught_store).out.startswith("0 reverted lessons removed")
    assert run("tag", taught_store, "v1", "--delete").out == "removed the tag v1\n"
    assert run("gc", taught_store, "--json").json["lessons"] == [second]
    assert [line.split()[1] for line in run("log", taught_store).out.splitlines()[1:]] == ["gc", "revert", "learn", "learn"]
    assert "gc" in run("show", taught_store, second).refused()
    assert "`memgraft gc` removes" in run("diff", taught_store, second, "now").refused()
    assert run("verify", taught_store).out == "7 files, all whole\n"


def test_show_tells_when_a_lesson_was_removed(run: Run, taught_store: Path, tmp_path: Path) -> None:
    second = MemoryStore.open(taught_store).active()[1]
    run("export", taught_store, second, "-o", tmp_path / "lesson")
    run("revert", taught_store, second)
    run("gc", taught_store)
    run("import", taught_store, tmp_path / "lesson", "--overlap", "sum")
    said = [line.split()[0] for line in run("show", taught_store, second).out.splitlines()[1:5]]
    assert said == ["learned", "reverted", "removed", "learned"]


def test_verify_names_what_is_wrong_and_ends_with_1(run: Run, taught_store: Path) -> None:
    id = MemoryStore.open(taught_store).active()[0]
    path = taught_store / f"records/{id}.json"
    path.write_bytes(path.read_bytes().replace(b"0", b"1"))
    ended = run("verify", taught_store)
    assert ended.code == 1
    assert f"{id}.json: damaged" in ended.out
    assert len(run("verify", taught_store, "--json").json["faults"]) == 1


def test_a_lesson_goes_to_another_store_as_a_file(run: Run, taught_store: Path, store: Path, tmp_path: Path) -> None:
    first = MemoryStore.open(taught_store).active()[0]
    file = tmp_path / "lesson.safetensors"
    assert run("export", taught_store, first[:8], "-o", file).out.startswith(f"wrote the lesson {first[:12]} to {file}")
    assert run("import", store, file, "--json").json["id"] == first
    assert MemoryStore.open(store).active() == [first]
    assert "active already" in run("import", store, file).refused()


@pytest.mark.parametrize("record", [{}, {"facts": [{"learned": True}], "overlaps": [{"lesson": "f" * 64, "shared_slots": 2}], "more": 1}])
def test_a_lesson_with_a_record_from_elsewhere_is_shown(run: Run, taught_store: Path, record: dict[str, Any]) -> None:
    store = MemoryStore.open(taught_store)
    commit = store.commit(store.active()[0])
    store.revert(commit.id)
    store.append(replace(commit, record=record))
    ended = run("show", taught_store, commit.id)
    assert ended.code == 0, ended.err
    assert ("1 of 1 facts learned" in ended.out) == ("facts" in record)
    assert ("wrote to 2 slots of the earlier lesson ffffffffffff" in ended.out) == ("overlaps" in record)
    assert run("show", taught_store, commit.id, "--json").json["record"] == record


def test_lessons_that_the_same_questions_read_are_named_without_a_number_of_slots(run: Run, taught_store: Path) -> None:
    store = MemoryStore.open(taught_store)
    commit = store.commit(store.active()[0])
    store.revert(commit.id)
    store.append(replace(commit, record={"overlaps": [{"lesson": "f" * 64, "message": "earlier", "shared_slots": None}]}))
    assert f"may be read in the same questions as {'f' * 12}: earlier" in run("show", taught_store, commit.id).out


def test_a_file_in_a_folder_that_is_missing_is_refused_with_the_way_out(run: Run, taught_store: Path, tmp_path: Path) -> None:
    first = MemoryStore.open(taught_store).active()[0]
    assert "make the folder first" in run("export", taught_store, first, "-o", tmp_path / "new" / "lesson.safetensors").refused()


def test_show_refuses_a_record_that_makes_no_sense_with_file_and_field(run: Run, taught_store: Path) -> None:
    id = MemoryStore.open(taught_store).active()[0]
    name, data = f"records/{id}.json", b'{"facts":[{"question":"?"}]}'
    (taught_store / name).write_bytes(data)
    manifest = json.loads((taught_store / "manifest.json").read_text())
    manifest["files"][name] = describe(data)
    (taught_store / "manifest.json").write_text(json.dumps(manifest))
    assert f"{name}: record: facts.0.learned: Field required; restore it" in run("show", taught_store, id).refused()


def test_a_time_out_of_the_calendar_stops_no_log(run: Run, taught_store: Path) -> None:
    manifest = json.loads((taught_store / "manifest.json").read_text())
    manifest["history"][0]["when"] = "0001-01-01T00:00:00+23:59"
    (taught_store / "manifest.json").write_text(json.dumps(manifest))
    assert "0001-01-01T00:00:00+23:59" in run("log", taught_store).out


def test_stores_are_merged(run: Run, taught_store: Path, store: Path) -> None:
    lessons = MemoryStore.open(taught_store).active()
    assert run("merge", store, taught_store, "--json").json["learned"] == lessons
    assert run("merge", store, taught_store).out == "nothing to merge: the store has all of it\n"
    assert "--data is for --overlap re-teach" in run("merge", store, taught_store, "--data", "x.jsonl").refused()


@pytest.fixture
def overlapping(run: Run, store: Path, tmp_path: Path) -> tuple[str, str]:
    """Two lessons that share slots, the second with its data kept."""
    ids = []
    for number, options in enumerate(((), ("--keep-data",))):
        data = tmp_path / f"{number}.jsonl"
        data.write_text(json.dumps({"question": f"Where is {number}?", "answers": ["here"]}) + "\n")
        ids.append(run("learn", store, data, "-m", f"lesson {number}", *OVER, *options, "--json").json["id"])
    return ids[0], ids[1]


def test_revert_refuses_keeps_or_teaches_again(run: Run, store: Path, overlapping: tuple[str, str], digest_of: Digest) -> None:
    first, second = overlapping
    before = digest_of(store)
    assert "choose with --overlap whether to keep or re-teach them" in run("revert", store, first, "--overlap", "refuse").refused()
    assert digest_of(store) == before
    report = run("revert", store, first, "--overlap", "re-teach", "--json").json
    assert list(report["taught_again"]) == [second]
    opened = MemoryStore.open(store)
    assert opened.active() == [report["taught_again"][second]]
    assert opened.data(opened.active()[0]) is not None
    assert opened.verify() == []


def test_merge_teaches_again(run: Run, empty: Path, store: Path, overlapping: tuple[str, str], tmp_path: Path) -> None:
    other = Path(shutil.copytree(empty, tmp_path / "other"))
    data = tmp_path / "2.jsonl"
    data.write_text(json.dumps({"question": "Where is 2?", "answers": ["there"]}) + "\n")
    third = run("learn", other, data, "-m", "theirs", *OVER, "--json").json["id"]
    assert "lesson would be read together" in run("merge", store, other).refused()
    assert (
        f"SHA-256 is {MemoryStore.open(other).header(third)['data_sha256']}"
        in run("merge", store, other, "--overlap", "re-teach").refused()
    )
    merged = run("merge", store, other, "--overlap", "re-teach", "--data", data, "--json").json
    assert MemoryStore.open(store).active() == [*overlapping, merged["taught_again"][third]]


def test_blame_names_the_lessons_behind_an_answer(run: Run, taught: Path) -> None:
    found = run("blame", taught, "What is in box A?", "--answer", "sand", "--json").json
    lessons = MemoryStore.open(taught).active()
    assert found["answer"] == "sand"
    assert found["lessons"]
    assert {lesson["commit"] for lesson in found["lessons"]} <= set(lessons)
    out = run("blame", taught, "What is in box A?", "--max-new-tokens", "4").out
    assert out.startswith("answer: ")
    assert "nats" in out


def test_a_gate_that_falls_keeps_the_store_as_it_was_and_ends_with_2(
    run: Run, store: Path, facts: Path, tmp_path: Path, digest_of: Digest
) -> None:
    text = tmp_path / "prose.txt"
    text.write_text("ZQX ZQX QXZ 77\n" * 60)
    rough = ("--writer", "sgd", "--ranking", "all", "--learning-rate", "100", "--passes", "3", "--wordings", "3", "--no-test")
    before = digest_of(store)
    ended = run("learn", store, facts, "-m", "roughly", *rough, "--gate", f"text:{text}", "--checkpoint-every", "0")
    assert ended.code == 2
    assert ended.err.splitlines()[-1].startswith("error: the lesson is not kept: prose text NLL")
    assert digest_of(store) == before
    kept = run("learn", store, facts, "-m", "roughly", *rough, "--gate", f"text:{text}", "--tolerance", "1000", "--json")
    assert kept.json["record"]["gate"][0]["name"] == "prose"


def test_a_stopped_lesson_is_gone_on_with(run: Run, store: Path, facts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("learn", store, facts, "-m", "boxes", "--passes", "3", "--wordings", "2", "--no-test", "--checkpoint-every", "0")
    whole = run(*command, "--json").json["id"]
    run("revert", store, whole)
    run("gc", store)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("memgraft.cli.progress.TeachingProgress.__call__", stop)
        ended = run(*command)
    assert ended.code == 130
    assert ended.err.splitlines()[-1] == "stopped: the store is as it was before the lesson; go on with --resume"
    assert (store / NAME).exists()
    assert "go on with --resume, or begin anew with --restart" in run(*command).refused()
    assert run(*command, "--resume", "--json").json["id"] == whole
    assert not (store / NAME).exists()


def test_bf16_rows_halve_a_lesson(run: Run, store: Path, facts: Path) -> None:
    options = ("learn", store, facts, "-m", "boxes", "--passes", "1", "--wordings", "2", "--no-test", "--json")
    whole = run(*options).json
    run("revert", store, whole["id"])
    half = run(*options, "--bf16").json
    assert half["recipe"]["row_dtype"] == "bfloat16"
    assert half["rows"] == whole["rows"]
    assert half["bytes"] < 0.65 * whole["bytes"]
