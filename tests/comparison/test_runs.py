"""What a run says of where it was made."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from memgraft.comparison import runs
from memgraft.errors import DataError


def test_the_revision_is_that_of_the_tree_which_tracks_the_package_not_of_one_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        own = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *words]
        return subprocess.run(own, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    file = tmp_path / "site-packages" / "runs.py"
    file.parent.mkdir()
    file.write_text("one = 1\n", encoding="utf-8")
    monkeypatch.setattr(runs, "__file__", str(file))
    assert runs.environment(torch.device("cpu"))["git_revision"] is None, "no tree at all"
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    assert runs.environment(torch.device("cpu"))["git_revision"] is None, "someone else's tree"
    git("add", ".")
    git("commit", "-q", "-m", "second")
    assert runs.environment(torch.device("cpu"))["git_revision"] == git("rev-parse", "HEAD")
    file.write_text("two = 2\n", encoding="utf-8")
    assert runs.environment(torch.device("cpu"))["git_revision"] == git("rev-parse", "HEAD") + "+changes"


def test_reading_takes_nothing_away_from_a_run_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    runs.append_run(path, {"id": "one"})
    with path.open("ab", buffering=0) as writer:
        writer.write(b'{"id": ')
        assert list(runs.read_runs(path)) == ["one"]
        writer.write(b'"two"}\n')
    assert list(runs.read_runs(path)) == ["one", "two"]


def test_what_a_killed_writer_left_is_taken_out_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    runs.append_run(path, {"id": "one"})
    path.write_bytes(path.read_bytes() + b'{"id": "tw')
    runs.append_run(path, {"id": "three"})
    assert list(runs.read_runs(path)) == ["one", "three"]


@pytest.mark.parametrize("line", ["not JSON", '["id"]', "{}", "3"])
def test_a_line_that_is_no_run_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(f'{{"id": "one"}}\n{line}\n')
    with pytest.raises(DataError, match=r"runs.jsonl:2: not a run"):
        runs.read_runs(path)
