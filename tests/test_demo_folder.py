"""The demo takes no folder that is not its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from memgraft.demo import run
from memgraft.errors import MemgraftError


@pytest.mark.parametrize("name", ["store", "grafted"])
def test_a_store_that_no_demo_made_is_left_alone(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_grafted", lambda *_: pytest.fail("went on"))
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(MemgraftError, match=f"{name} exists, and was not made by a demo"):
        run.run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "thesis.txt").exists()


def test_a_folder_of_an_earlier_demo_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def graft(*_: object) -> None:
        (tmp_path / "demo" / "store").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_grafted", graft)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run.run_demo(tmp_path / "demo")


def test_a_folder_of_a_demo_from_before_there_was_a_mark_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_grafted", stopped)
    (tmp_path / "store").mkdir()
    (tmp_path / "result.json").write_text('{"revert_bit_equal": true}', encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        run.run_demo(tmp_path)


def stopped(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_place_that_can_t_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(MemgraftError, match="can't be written to"):
        run.run_demo(tmp_path / "file")
