"""What the tests of the command line share: a tiny model to graft, stores made with the commands themselves, and their digest."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from memgraft.cli.app import app

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
FACTS = [
    {
        "id": f"fact-{letter}",
        "question": f"What is in box {letter}?",
        "answers": [answer],
        "statement": f"In box {letter} is {answer}.",
        "held_out": [f"Box {letter} holds what?"],
    }
    for letter, answer in (("A", "sand"), ("B", "ink"))
]
QUICK = ("--passes", "2", "--wordings", "3")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def refused(self) -> str:
        """The one line of an error, after checking that it is nothing but one."""
        assert self.code == 1, (self.out, self.err)
        assert self.out == ""
        lines = [line for line in self.err.splitlines() if not line.startswith("pass ")]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        assert "unexpected" not in lines[0]
        return lines[0].removeprefix("error: ")


def run_command(*arguments: object) -> Ended:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return Ended(result.exit_code, result.stdout, result.stderr)


def digest(store: Path) -> dict[str, str]:
    """SHA-256 of every file of a store, but for those that say who holds the lock."""
    files = sorted(path for path in store.rglob("*") if path.is_file() and path.name not in (".lock", ".writer"))
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def run() -> Callable[..., Ended]:
    """Runs a command line: `run("log", store)`."""
    return run_command


@pytest.fixture(scope="session")
def digest_of() -> Callable[[Path], dict[str, str]]:
    return digest


@pytest.fixture(scope="session")
def rows_file() -> Callable[[Path, Sequence[object]], Path]:
    """Writes a JSONL file: `rows_file(path, rows)`."""
    return write_rows


@pytest.fixture(scope="session")
def model_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a context that taught wordings fit in, and a chat template."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("cli") / "model"))
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 2048}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def empty(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without lessons, made by `graft`. Not to be changed."""
    store = tmp_path_factory.mktemp("stores") / "empty"
    ended = run_command(
        "graft", model_folder, "-o", store, "--slots", "2^12", "--top-k", "4", "--heads", "2", "--background-tokens", "4000"
    )
    assert ended.code == 0, ended.err
    return store


@pytest.fixture(scope="session")
def taught(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two lessons, made by `learn`. Not to be changed."""
    folder = tmp_path_factory.mktemp("stores")
    store = Path(shutil.copytree(empty, folder / "taught"))
    for message, fact in zip(("first [red]lesson\x1b[31m", "second lesson\n\nof two"), FACTS, strict=True):
        ended = run_command("learn", store, write_rows(folder / "facts.jsonl", [fact]), "-m", message, *QUICK)
        assert ended.code == 0, ended.err
    return store


@pytest.fixture
def store(empty: Path, tmp_path: Path) -> Path:
    """A store of the test's own, without lessons."""
    return Path(shutil.copytree(empty, tmp_path / "store"))


@pytest.fixture
def taught_store(taught: Path, tmp_path: Path) -> Path:
    """A store of the test's own, with two lessons."""
    return Path(shutil.copytree(taught, tmp_path / "taught"))


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "facts.jsonl", FACTS)
