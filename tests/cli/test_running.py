"""How commands start and end: imports, help, tracebacks, JSON, Ctrl-C and SIGTERM."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from memgraft.cli import reference
from memgraft.cli.app import app
from memgraft.cli.compare import METHODS
from memgraft.cli.learn import RankingName, WriterName
from memgraft.cli.options import DtypeName, parse_count, parse_layers
from memgraft.cli.running import without_debug
from memgraft.cli.stopping import Terminated, terminable, unstoppable
from memgraft.comparison.grid import grid
from memgraft.config import MemoryConfig
from memgraft.grafting import DEFAULT_BACKGROUND_TOKENS, DEFAULT_SLOTS
from memgraft.models import Dtype
from memgraft.ranking import RANKINGS
from memgraft.store import MemoryStore, files
from memgraft.teaching import AT_ANCHORS, IN_LAYERS, Recipe
from memgraft.writers import SGD, Adam, LeastInterference

Run = Callable[..., Any]
Digest = Callable[[Path], dict[str, str]]

COMMANDS = [
    "graft", "learn", "ask", "check", "compare", "log", "show", "diff", "blame", "revert", "merge", "export", "import", "tag", "verify",
    "gc", "doctor", "demo",
]  # fmt: skip
HEAVY = ("torch", "transformers", "numpy", "safetensors.torch")


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_the_package_can_be_run_as_a_module() -> None:
    ended = subprocess.run([sys.executable, "-m", "memgraft", "--version"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("memgraft ")


@pytest.mark.parametrize(
    "command", [("--help",), ("learn", "--help"), ("--version",), ("log", "STORE"), ("log", "STORE", "--json"), ("lgo",)]
)
def test_help_and_log_import_no_heavy_library(taught: Path, command: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom memgraft.cli import main\n"
        f"try:\n    main()\nexcept SystemExit as end:\n    loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    sys.stderr.write(f'loaded {loaded} code {end.code}')"
    )
    ended = python(code, *(str(taught) if word == "STORE" else word for word in command))
    assert ended.stderr.endswith(f"loaded [] code {1 if command == ('lgo',) else 0}"), ended.stderr


def test_the_help_names_every_command(run: Run) -> None:
    for ended in (run("--help"), run()):
        assert ended.code == 0
        assert re.findall(r"^  ([a-z]+)  ", ended.out.split("Commands:")[1], re.MULTILINE) == COMMANDS


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version").out == f"memgraft {importlib.import_module('memgraft').__version__}\n"


def test_the_reference_page_is_what_the_help_says() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
    assert page.read_text(encoding="utf-8") == reference.reference(), "docs/cli.md is out of date: make docs"


def test_the_page_of_settings_is_what_the_code_says() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
    assert page.read_text(encoding="utf-8") == reference.settings(), "docs/settings.md is out of date: make docs"


def test_the_help_of_compare_names_its_methods() -> None:
    assert tuple(grid()) == METHODS


def shown_defaults(command: str) -> dict[str, str]:
    group: Any = typer.main.get_command(app)
    return {option.name: option.show_default for option in group.commands[command].params if isinstance(option.show_default, str)}


def test_the_defaults_that_help_shows_are_those_in_force() -> None:
    recipe = Recipe.model_validate({})
    assert isinstance(recipe.writer, LeastInterference)
    learn = shown_defaults("learn")
    assert learn["passes"] == f"{AT_ANCHORS} for facts with anchors, else {IN_LAYERS}"
    for name in ("ranking", "t", "rows", "wordings", "loss", "seed"):
        assert learn[name] == str(getattr(recipe, name)), name
    assert (learn["writer"], float(learn["mu"])) == (recipe.writer.name, recipe.writer.background_weight)
    assert recipe.until_loss is None
    graft = shown_defaults("graft")
    assert parse_count(graft["slots"]) == DEFAULT_SLOTS
    assert parse_count(graft["background_tokens"]) == DEFAULT_BACKGROUND_TOKENS
    for name in ("top_k", "heads"):
        assert int(graft[name]) == MemoryConfig.model_fields[name].default, name


def test_the_choices_are_those_of_the_library() -> None:
    assert typing.get_args(RankingName) == RANKINGS
    assert set(typing.get_args(WriterName)) == {kind.model_fields["name"].default for kind in (SGD, Adam, LeastInterference)}
    assert typing.get_args(DtypeName) == typing.get_args(Dtype)


@pytest.mark.parametrize(("text", "count"), [("65536", 65536), ("2^16", 65536), ("2**16", 65536), ("65_536", 65536), ("1", 1)])
def test_counts_are_read_as_digits_or_powers(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "2^99", "2^-1", "1__0", "_1", "x", "0x10", "٣", "9" * 100])
def test_other_counts_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_count(text)


def test_layers_are_auto_or_a_list() -> None:
    assert parse_layers("auto") is None
    assert parse_layers("10") == (10,)
    assert parse_layers("5,10") == (5, 10)
    for text in ("", "5,", "a", "-1", "5 10"):
        with pytest.raises(typer.BadParameter):
            parse_layers(text)


@pytest.mark.parametrize("place", ["before", "after", "environment"])
def test_a_traceback_is_shown_only_when_asked_for(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    assert "Traceback" not in run("log", tmp_path).err
    if place == "environment":
        monkeypatch.setenv("MEMGRAFT_DEBUG", "1")
    ended = run(*["--debug"] * (place == "before"), "log", tmp_path, *["--debug"] * (place == "after"))
    assert ended.code == 1
    assert ended.err.startswith("Traceback")
    assert "StoreError" in ended.err


def test_debug_is_an_option_only_before_a_double_dash() -> None:
    assert without_debug(["ask", "--debug", "s", "--", "--debug"]) == ["ask", "s", "--", "--debug"]


def test_an_unexpected_exception_is_one_line_too(run: Run, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: object) -> None:
        raise RuntimeError("some\nthing [bold]broke\x1b[1m")

    monkeypatch.setattr(MemoryStore, "open", broken)
    ended = run("log", empty)
    assert ended.code == 1
    assert ended.err == "error: unexpected RuntimeError: some thing [bold]broke\\x1b[1m (run again with --debug for the traceback)\n"


def test_an_error_leaves_stdout_empty_also_with_json(run: Run, tmp_path: Path) -> None:
    for command in (("log", tmp_path), ("show", tmp_path, "a"), ("doctor", tmp_path), ("revert", tmp_path, "a"), ("ask", tmp_path, "Who?")):
        assert "no memory store" in run(*command, "--json").refused()


def test_a_closed_pipe_ends_quietly(taught: Path) -> None:
    code = "from memgraft.cli import main; main()"
    with subprocess.Popen([sys.executable, "-c", code, "log", str(taught)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode != 0


def test_text_that_the_terminal_has_no_letters_for_is_written_out(taught: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "from memgraft.cli import main; main()", "log", str(taught)],
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert rb"second lesson \u2026" in ended.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_lesson_leaves_the_store_as_it_was(
    store: Path, facts: Path, digest_of: Digest, number: signal.Signals, code: int
) -> None:
    before = digest_of(store)
    command = ("learn", str(store), str(facts), "-m", "endless", "--passes", "1000000", "--wordings", "2", "--no-test", "--json")
    with subprocess.Popen(
        [sys.executable, "-c", "from memgraft.cli import main; main()", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline().startswith("pass 1 of 1000000")
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    assert [line for line in err.splitlines() if not line.startswith("pass ")] == ["stopped: the store is as it was before the lesson"]
    assert digest_of(store) == before


def test_a_lesson_that_is_being_saved_is_saved_whole(run: Run, store: Path, facts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = files.rename

    def interrupted(source: Path, target: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        rename(source, target)

    monkeypatch.setattr(files, "rename", interrupted)
    ended = run("learn", store, facts, "-m", "boxes", "--passes", "1", "--wordings", "2", "--no-test")
    (id,) = MemoryStore.open(store).active()
    assert ended.code == 130
    assert ended.err.splitlines()[-1] == f"stopped: the lesson {id[:12]} was saved already"
    assert MemoryStore.open(store).verify() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_while_nothing_may_stop(number: signal.Signals) -> None:
    done = []

    def work() -> None:
        with terminable(), unstoppable():
            signal.raise_signal(number)
            done.append(True)

    with pytest.raises(KeyboardInterrupt) as stopped:
        work()
    assert done
    assert isinstance(stopped.value, Terminated) == (number is signal.SIGTERM)


def test_signal_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with terminable(), unstoppable():
        pass
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
