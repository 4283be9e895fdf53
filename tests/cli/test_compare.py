"""`memgraft compare` on a tiny model: reports with their twins, resumed runs, a time budget, and one-line refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memgraft.cli import main
from tests.models import save_tiny_model

FACTS = [
    {"question": "Who made <b>Ox</b>?", "answers": ["Ann | Bo"], "statement": "Ox was made by Ann | Bo."},
    {"question": "Who made Elm?", "answers": ["Cy"], "held_out": ["Elm is by whom?"]},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny_model(tmp_path / "model", max_position_embeddings=4096)
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in FACTS), encoding="utf-8")
    (tmp_path / "prose.txt").write_text("Some prose that must stay as likely as it was. " * 8, encoding="utf-8")
    return tmp_path


def compare(folder: Path, *more: str, methods: tuple[str, ...] = ("memory", "retrieval")) -> int:
    own = ["compare", str(folder / "facts.jsonl"), "--model", str(folder / "model"), "--probe", f"text:{folder / 'prose.txt'}"]
    chosen = [word for method in methods for word in ("--method", method)]
    with pytest.raises(SystemExit) as stopped:
        main([*own, *chosen, "--background-tokens", "512", "-o", str(folder / "out"), *more])
    return int(stopped.value.code or 0)


def test_it_writes_the_report_its_twins_and_its_runs_and_goes_on_where_it_was(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # No time: the base and the first setting run, the rest is left out and named.
    assert compare(folder, "--minutes", "0", "--json") == 0
    page = json.loads(capsys.readouterr().out)
    runs = (folder / "out" / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(run)["method"] for run in runs] == ["base", "memory"]
    assert len(page["skipped"]) == 7
    assert page["answered_by"] == ["base", "memory"]
    assert page["samples"][1]["question"] == "Elm is by whom?"
    assert compare(folder, "--minutes", "0", methods=("memory",)) == 0
    assert (folder / "out" / "runs.jsonl").read_text(encoding="utf-8").splitlines() == runs
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "Who made &lt;b&gt;Ox&lt;/b&gt;?" in html
    assert "<svg" in html
    repeat = "--minutes 0 --background-tokens 512 --seed 0"
    assert repeat in html
    assert compare(folder, "--minutes", "0", "--dtype", "bfloat16", methods=("retrieval",)) == 0
    more = (folder / "out" / "runs.jsonl").read_text(encoding="utf-8").splitlines()[len(runs) :]
    assert [json.loads(run)["method"] for run in more] == ["base", "retrieval"], "weights of another dtype are another model"
    assert r"Ann \| Bo" in (folder / "out" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"text": "Just a text."}\n', "facts.jsonl:1: compare needs facts to ask for"),
        ('{"question": "Who?"}\n', "facts.jsonl:1: answers: missing"),
    ],
)
def test_what_can_not_be_asked_is_refused_before_anything_is_loaded(
    folder: Path, rows: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "facts.jsonl").write_text(rows, encoding="utf-8")
    assert compare(folder) == 1
    assert message in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_an_unknown_method_and_a_drift_probe_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(folder, methods=("magic",)) == 1
    assert "no method is called 'magic': expected memory, " in capsys.readouterr().err
    assert compare(folder, "--probe", f"drift:{folder / 'prose.txt'}") == 1
    assert "a comparison has no drift probes" in capsys.readouterr().err
