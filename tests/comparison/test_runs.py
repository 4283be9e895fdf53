"""What a run says of where it was made."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from memgraft.comparison import runs


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
