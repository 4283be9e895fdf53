"""What can't be done is refused in one line on stderr, with exit code 1 and the store as it was."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from memgraft.cli.options import load_grafted
from memgraft.store import MemoryStore, files
from memgraft.store.folder import describe, read_manifest

Run = Callable[..., Any]
Digest = Callable[[Path], dict[str, str]]

FACT = b'{"question": "What is in box A?", "answers": ["sand"]}\n'


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (FACT + FACT[:30] + b"\n", ":2: row: expected a complete JSON object"),
        (b'{"question": "What is in box A?"}\n', ":1: answers: missing"),
        (b'{"question": 3, "answers": ["sand"]}\n', ":1: question: expected a string, got a number"),
        (b'{"question": "What is in box A?", "answers": [""]}\n', ":1: answers[0]: expected text, got an empty string"),
        (b'{"question": "What is in box A?", "answers": []}\n', ":1: answers: expected at least one, got an empty list"),
        (b'{"question": "What is in box \xe4?", "answers": ["sand"]}\n', ":1: row: expected UTF-8, got byte 0xe4"),
        (b"", ": no examples in the file"),
        (b"\n  \n", ": no examples in the file"),
        (b'{"text": "a"}\n', ":1: text: wording 1 ('a'): no token to learn"),
        (FACT + b'{"text": "a"}\n', ":2: text: wording 1 ('a'): no token to learn"),
        (
            json.dumps({"prompt": "long " * 500, "completion": "end"}).encode() + b"\n",
            ":1: prompt/completion: wording 1 ('long long long long long long long long…'): longer than the context",
        ),
        (
            FACT + json.dumps({"id": "x", "question": "long " * 500, "answers": ["end"]}).encode() + b"\n",
            ":2: question/answers: wording ",
        ),
    ],
    ids=[
        "truncated",
        "missing field",
        "wrong type",
        "empty answer",
        "no answer",
        "not UTF-8",
        "empty",
        "blank",
        "no token",
        "no token, later",
        "too long",
        "long question",
    ],
)
def test_learn_refuses_bad_data(run: Run, store: Path, digest_of: Digest, tmp_path: Path, content: bytes, expected: str) -> None:
    data = tmp_path / "data.jsonl"
    data.write_bytes(content)
    before = digest_of(store)
    assert f"{data}{expected}" in run("learn", store, data, "-m", "bad").refused()
    assert digest_of(store) == before


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf" + FACT, FACT.replace(b"\n", b"\r\n")], ids=["BOM", "CRLF"])
def test_learn_accepts_a_byte_order_mark_and_crlf(run: Run, store: Path, tmp_path: Path, content: bytes) -> None:
    data = tmp_path / "data.jsonl"
    data.write_bytes(content)
    assert run("learn", store, data, "-m", "fine", "--passes", "1", "--wordings", "2", "--no-test").code == 0


def test_several_bad_rows_are_all_named(run: Run, store: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_bytes(b"[]\n" + FACT + b"3\n")
    ended = run("learn", store, data, "-m", "bad")
    assert ended.code == 1
    assert [line.split(": ", 1)[0].strip() for line in ended.err.splitlines()] == ["error", f"{data}:3"]
    assert f"{data}:1" in ended.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("-m", "  "), "the message is empty"),
        (("-m", "x" * 5000), "the message has 5,000 characters"),
        (("-m", "\udc80"), "not valid UTF-8"),
        ((), "Missing option '--message'"),
        (("-m", "x", "--passes", "0"), "passes"),
        (("-m", "x", "--passes", "many"), "--passes"),
        (("-m", "x", "--t", "0"), "'--t': expected a whole number above 0, or none, got '0'"),
        (("-m", "x", "--rows", "all"), "'--rows': expected a whole number above 0, or none, got 'all'"),
        (("-m", "x", "--rows", ""), "'--rows': expected a whole number above 0, or none, got ''"),
        (("-m", "x", "--ranking", "best"), "--ranking"),
        (("-m", "x", "--writer", "sgd", "--mu", "3"), "--mu is a setting of the writer least-interference, not of sgd"),
        (("-m", "x", "--learning-rate", "-1"), "writer.least-interference.learning_rate: Input should be greater than 0"),
        (("-m", "x", "--recipe", "nowhere.json"), "nowhere.json: can't be read"),
        (("-m", "x", "--no-such-option"), "--no-such-option"),
    ],
)
def test_learn_refuses_bad_options(
    run: Run, store: Path, facts: Path, digest_of: Digest, arguments: tuple[str, ...], expected: str
) -> None:
    before = digest_of(store)
    assert expected in run("learn", store, facts, *arguments).refused()
    assert digest_of(store) == before


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"passes": 2', "expected a recipe as JSON"),
        ("[2]", "expected a recipe as a JSON object, got list"),
        ('{"pases": 2}', "pases: unknown setting"),
        ('{"t": "some"}', "t: "),
        ('{"writer": {"name": "magic"}}', "writer: "),
    ],
)
def test_learn_refuses_a_bad_recipe_file(run: Run, store: Path, facts: Path, tmp_path: Path, content: str, expected: str) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(content)
    message = run("learn", store, facts, "-m", "x", "--recipe", recipe).refused()
    assert message.startswith(str(recipe))
    assert expected in message


@pytest.fixture(scope="module")
def other_weights(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture and tokenizer with other weights."""
    folder = Path(shutil.copytree(model_folder, tmp_path_factory.mktemp("other") / "weights"))
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def other_tokens(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights with a tokenizer that has two letters exchanged."""
    folder = Path(shutil.copytree(model_folder, tmp_path_factory.mktemp("other") / "tokens"))
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["e"], vocabulary["t"] = vocabulary["t"], vocabulary["e"]
    path.write_text(json.dumps(tokenizer))
    assert AutoTokenizer.from_pretrained(folder)("e").input_ids != AutoTokenizer.from_pretrained(model_folder)("e").input_ids
    return folder


@pytest.mark.parametrize("command", ["learn", "ask", "check"])
@pytest.mark.parametrize("wrong", ["base model", "tokenizer"])
def test_another_base_model_or_tokenizer_is_refused(
    run: Run, store: Path, facts: Path, digest_of: Digest, other_weights: Path, other_tokens: Path, command: str, wrong: str
) -> None:
    folder = other_weights if wrong == "base model" else other_tokens
    before = digest_of(store)
    rest = {"learn": (facts, "-m", "x"), "ask": ("Who?",), "check": ("--probe", "background")}[command]
    message = run(command, store, *rest, "--model", folder).refused()
    assert message.startswith(f"{store}: made for another {wrong} than {folder}: ")
    assert message.endswith("give the right one with --model")
    assert digest_of(store) == before


def test_doctor_names_another_base_model(run: Run, store: Path, other_weights: Path) -> None:
    ended = run("doctor", store, "--load", "--model", other_weights, "--json")
    assert ended.code == 1
    assert "other weights" in ended.json["store"]["base_mismatch"]


@pytest.mark.parametrize("command", ["learn", "ask", "check", "log", "show", "revert", "doctor"])
def test_an_unknown_key_in_a_stores_configuration_is_refused(run: Run, taught_store: Path, facts: Path, command: str) -> None:
    config = taught_store / "config.json"
    changed = json.dumps(json.loads(config.read_text()) | {"colour": "green"}).encode()
    config.write_bytes(changed)
    manifest = read_manifest(taught_store)
    listed = manifest.model_copy(update={"files": {**manifest.files, "config.json": describe(changed)}})
    (taught_store / "manifest.json").write_bytes(listed.to_bytes())
    rest = {"learn": (facts, "-m", "x"), "ask": ("Who?",), "check": ("--probe", "background"), "show": ("a",), "revert": ("a",)}
    assert "config.json: colour: Extra inputs are not permitted" in run(command, taught_store, *rest.get(command, ())).refused()


def test_damage_is_found(run: Run, taught_store: Path) -> None:
    path = taught_store / "usage.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "usage.safetensors: damaged" in run("ask", taught_store, "Who?").refused()
    ended = run("doctor", taught_store)
    assert ended.code == 1
    assert f"fault        {path}: damaged" in ended.out
    path.write_bytes(content[:-1])
    assert "usage.safetensors" in run("log", taught_store).refused()


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_a_damaged_lesson_is_reverted_and_then_the_store_loads(run: Run, taught_store: Path, suffix: str) -> None:
    first, second = MemoryStore.open(taught_store).active()
    path = taught_store / f"commits/{first}.{suffix}"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert run("revert", taught_store, first, "--json").json["reverted"] == first
    assert run("ask", taught_store, "Who?").code == 0
    assert MemoryStore.open(taught_store).active() == [second]


def test_no_store_is_no_store(run: Run, tmp_path: Path) -> None:
    assert "no such folder" in run("log", tmp_path / "nowhere").refused()
    assert "no memory store" in run("log", tmp_path).refused()


@pytest.mark.parametrize("command", ["show", "revert"])
@pytest.mark.parametrize(("id", "expected"), [("zz", "no lesson has an id that starts with 'zz'"), ("", "no lesson")])
def test_an_unknown_lesson_is_refused(run: Run, taught: Path, command: str, id: str, expected: str) -> None:
    assert expected in run(command, taught, id).refused()


def test_a_lesson_is_reverted_once(run: Run, taught_store: Path) -> None:
    (first, _) = MemoryStore.open(taught_store).active()
    assert run("revert", taught_store, first).code == 0
    assert "was reverted already" in run("revert", taught_store, first).refused()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--slots", "1000"), "slots must be a square number, got 1000; the nearest is 1024"),
        (("--slots", "2^"), "--slots"),
        (("--slots", "0"), "--slots"),
        (("--slots", "9" * 80), "--slots"),
        (("--layers", "1;2"), "--layers"),
        (("--layers", "9"), "memory layer 9 does not exist"),
        (("--layers", "1,0"), "layers must be increasing"),
        (("--slots", "64", "--top-k", "9"), "top_k = 9 exceeds"),
        (("--heads", "0"), "heads: Input should be greater than 0"),
        (("--background", "nowhere.txt"), "nowhere.txt: no such file"),
    ],
)
def test_graft_refuses_bad_options(run: Run, model_folder: Path, tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    store = tmp_path / "made"
    assert expected in run("graft", model_folder, "-o", store, *arguments).refused()
    assert not store.exists()


def test_graft_refuses_a_folder_in_use_before_it_loads_anything(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is not an empty folder" in run("graft", "no/such-model", "-o", tmp_path).refused()
    assert "can't be loaded" in run("graft", "no/such-model", "-o", tmp_path / "new").refused()


@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        ("learn", ("facts.jsonl", "-m", "x", "--tolerance", "0.1"), "--tolerance is of a --gate"),
        ("doctor", ("--model", "other"), "--model is for --load"),
        ("revert", ("abc", "--model", "other"), "are for --overlap re-teach"),
        ("merge", ("other", "--trust-remote-code"), "are for --overlap re-teach"),
        ("tag", ("v1", "v2", "--delete"), "leave 'v2' out"),
        ("import", ("nowhere.safetensors",), "no such file; give one that `memgraft export` wrote"),
    ],
)
def test_options_that_would_do_nothing_are_refused(run: Run, empty: Path, command: str, arguments: tuple[str, ...], expected: str) -> None:
    assert expected in run(command, empty, *arguments).refused()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("Who?", "--chat", "--raw"), "exclude each other"),
        (("Who?", "--both", "--without-memory"), "exclude each other"),
        ((" ",), "the question is empty"),
        (("who " * 1000, "--raw"), "the model's context has 2048"),
        (("Who?", "--max-new-tokens", "0"), "--max-new-tokens"),
    ],
)
def test_ask_refuses_what_it_cannot_ask(run: Run, empty: Path, arguments: tuple[str, ...], expected: str) -> None:
    assert expected in run("ask", empty, *arguments).refused()


def test_check_refuses_bad_probes_before_it_loads_the_model(run: Run, empty: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "Who?"}\n')
    assert "can't tell the probe's kind" in run("check", empty, "--probe", bad, "--model", "nowhere").refused()
    assert "can't read the probe" in run("check", empty, "--probe", "poem:nowhere", "--model", "nowhere").refused()
    assert "--probe" in run("check", empty).refused()


def test_a_full_disk_leaves_no_store_and_changes_none(
    run: Run, model_folder: Path, taught_store: Path, facts: Path, digest_of: Digest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = MemoryStore.open(taught_store).active()

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(descriptor, data)

    monkeypatch.setattr(files, "write", full)
    before = digest_of(taught_store)
    for command in (
        ("learn", taught_store, facts, "-m", "x", "--passes", "1", "--wordings", "2", "--no-test", "--ranking", "tf"),
        ("revert", taught_store, first),
    ):
        assert "no space left on device); nothing was changed" in run(*command).refused()
        assert digest_of(taught_store) == before
    new = tmp_path / "new"
    ended = run("graft", model_folder, "-o", new, "--slots", "64", "--top-k", "4", "--background-tokens", "600")
    assert ended.code == 1
    assert "no space left on device" in ended.err.splitlines()[-1]
    assert not new.exists()


def test_a_file_size_limit_leaves_the_store_as_it_was(store: Path, facts: Path, digest_of: Digest) -> None:
    before = digest_of(store)
    command = ("learn", str(store), str(facts), "-m", "x", "--passes", "1", "--wordings", "2", "--no-test")
    ended = subprocess.run(
        [sys.executable, "-c", "from memgraft.cli import main; main()", *command],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY)),
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "file too large); nothing was changed" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert digest_of(store) == before


def test_data_from_a_pipe_is_not_kept_and_that_is_said_before_it_is_taught(
    run: Run, store: Path, facts: Path, digest_of: Digest, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest_of(store)
    monkeypatch.setattr("memgraft.learning.teach", lambda *_, **__: pytest.fail("taught"))
    reading, writing = os.pipe()
    os.write(writing, facts.read_bytes())
    os.close(writing)
    try:
        said = run("learn", store, f"/dev/fd/{reading}", "-m", "x", "--keep-data", "--no-test").refused()
    finally:
        os.close(reading)
    assert f"/dev/fd/{reading}: the data to be kept is not what was read" in said
    assert "save it in a file first" in said
    assert digest_of(store) == before


def test_learn_waits_for_no_other_writer(run: Run, store: Path, facts: Path) -> None:
    with MemoryStore.open(store).lock():
        assert f"process {os.getpid()} is writing to this store" in run("learn", store, facts, "-m", "x").refused()


@pytest.mark.parametrize("command", ["learn", "revert", "merge"])
def test_a_store_that_changed_while_its_model_was_loaded_is_not_changed(
    run: Run, taught_store: Path, facts: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {
        "learn": (facts, "-m", "x"),
        "revert": (MemoryStore.open(taught_store).active()[1], "--overlap", "re-teach"),
        "merge": (shutil.copytree(taught_store, taught_store.with_name("copy")), "--overlap", "re-teach"),
    }[command]

    def load_while_another_writes(store: Path, **settings: Any) -> Any:
        loaded = load_grafted(store, **settings)
        other = MemoryStore.open(store)
        other.revert(other.active()[0])
        return loaded

    monkeypatch.setattr(f"memgraft.cli.{command}.load_grafted", load_while_another_writes)
    assert "another process changed the store" in run(command, taught_store, *arguments).refused()
    assert len(MemoryStore.open(taught_store).active()) == 1
