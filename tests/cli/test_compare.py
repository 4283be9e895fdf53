"""`memgraft compare` on a tiny model: reports with their twins, resumed runs, a time budget, and one-line refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from memgraft.baselines import OSF, SGD, Full, LoRA, SHiRA
from memgraft.cli import main
from memgraft.comparison.compare import run_comparison
from memgraft.comparison.methods import AnyMethod
from memgraft.comparison.summary import summarise
from memgraft.comparison.workshop import Workshop
from memgraft.errors import MemgraftError
from memgraft.examples import Fact
from memgraft.probes import TextProbe
from tests.models import save_tiny_model, tiny_model, tiny_tokenizer

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
    assert {each.partition(":")[0] for each in page["skipped"]} == {"memory", "retrieval"}
    assert [(row["method"], row["probe"], row["metric"]) for row in page["probes"]] == [("memory", "prose", "text NLL")]
    assert "1 of 2 facts have no held_out wording: they are asked in words that were taught." in page["remarks"]
    ran = dict(page["ran"])
    assert {name: ran[name] for name in ("seed", "weights", "facts taught")} == {"seed": "0", "weights": "float32", "facts taught": "2"}
    assert ran["asked"].startswith("learned: 2 questions, prose: ")
    assert "torch " in ran["versions"]
    assert page["answered_by"] == ["base", "memory"]
    assert page["samples"][1]["question"] == "Elm is by whom?"
    assert compare(folder, "--minutes", "0", methods=("memory",)) == 0
    assert (folder / "out" / "runs.jsonl").read_text(encoding="utf-8").splitlines() == runs
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "Who made &lt;b&gt;Ox&lt;/b&gt;?" in html
    assert "<svg" in html
    repeat = f"--output {folder / 'out'} --minutes 0 --background-tokens 512 --seed 0"
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


def test_a_folder_that_can_t_be_written_is_said_before_anything_is_loaded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "out").write_text("a file", encoding="utf-8")
    assert compare(folder) == 1
    assert "can't be made" in capsys.readouterr().err
    assert compare(folder, "--seed", str(2**64)) == 1
    assert "--seed" in capsys.readouterr().err


def test_an_unknown_method_and_a_drift_probe_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(folder, methods=("magic",)) == 1
    assert "no method is called 'magic': expected memory, " in capsys.readouterr().err
    assert compare(folder, "--probe", f"drift:{folder / 'prose.txt'}") == 1
    assert "a comparison has no drift probes" in capsys.readouterr().err


def test_what_is_missing_is_said_before_anything_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package, extra in {"bm25s": "baselines", "matplotlib": "report"}.items():
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, package, None)
            assert compare(folder) == 1
        assert f"memgraft[{extra}]" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_choices_alone_are_judged_and_names_of_its_own_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choice = {"question": "Which?", "choices": ["one", "two"], "answer": 0}
    of_a_fact = {"question": "Did Elm come from Ann or Cy?", "choices": ["Ann", "Cy"], "answer": 1}
    (folder / "which.jsonl").write_text(json.dumps(choice) + "\n" + json.dumps(of_a_fact) + "\n", encoding="utf-8")
    own = ["compare", str(folder / "facts.jsonl"), "--model", str(folder / "model"), "--method", "retrieval", "--background-tokens", "512"]
    with pytest.raises(SystemExit) as stopped:
        main([*own, "--probe", f"choice:{folder / 'which.jsonl'}", "--minutes", "0", "-o", str(folder / "out"), "--json"])
    assert stopped.value.code == 0
    page = json.loads(capsys.readouterr().out)
    assert page["measure"] == "drop of accuracy on other questions"
    assert page["remarks"][-1] == "which: 1 of its questions ask for a taught fact: they tell what was learned."
    (folder / "which.jsonl").rename(folder / "leaks.jsonl")
    assert compare(folder, "--probe", f"choice:{folder / 'leaks.jsonl'}") == 1
    assert "a probe is called 'leaks', which names what is asked about the facts; rename the file" in capsys.readouterr().err


def test_settings_that_break_down_are_named_and_not_tried_again(tmp_path: Path) -> None:
    workshop = Workshop(tiny_model(), tiny_tokenizer(), backgrounds={}, background_tokens=64)
    facts = [Fact(line=1, question="Who made Ox?", answers=("Ann",))]
    text = TextProbe(name="prose", texts=("Some prose that must stay.",))
    methods = {"full": [Full(optimizer=SGD(lr=1e30), passes=3), Full(passes=1)]}

    def runs() -> tuple[dict[str, Any], ...]:
        path = tmp_path / "runs.jsonl"
        return run_comparison(workshop, facts, [text], methods, runs_path=path, identity={}, seconds=3600, wordings=2).runs

    first = runs()
    assert ["failed" in run for run in first] == [False, True, False]
    assert summarise(first)["failed"][0]["label"] == "sgd lr 1e+30, 3 passes"
    assert runs() == first


def test_of_the_memory_one_setting_must_succeed_and_others_may_break_down(tmp_path: Path) -> None:
    workshop = Workshop(tiny_model(), tiny_tokenizer(), backgrounds={}, background_tokens=64)
    facts = [Fact(line=1, question="Who made Ox?", answers=("Ann",))]
    text = TextProbe(name="prose", texts=("Some prose that must stay.",))
    whole, broken = Full(passes=1), Full(optimizer=SGD(lr=1e30), passes=3)

    def runs(*methods: Full) -> tuple[dict[str, Any], ...]:
        path = tmp_path / f"{len(methods)}.jsonl"
        return run_comparison(workshop, facts, [text], {"memory": methods}, runs_path=path, identity={}, seconds=3600, wordings=2).runs

    assert ["failed" in run for run in runs(whole, broken)] == [False, False, True]
    with pytest.raises(MemgraftError, match="loss"):
        runs(broken)


def test_what_broke_down_for_another_reason_than_its_settings_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workshop = Workshop(tiny_model(), tiny_tokenizer(), backgrounds={}, background_tokens=64)
    facts = [Fact(line=1, question="Who made Ox?", answers=("Ann",))]
    text = TextProbe(name="prose", texts=("Some prose that must stay.",))

    def runs() -> tuple[dict[str, Any], ...]:
        path = tmp_path / "runs.jsonl"
        return run_comparison(workshop, facts, [text], {"full": [Full(passes=1)]}, runs_path=path, identity={}, seconds=99, wordings=2).runs

    with monkeypatch.context() as full:
        full.setattr("memgraft.baselines.rival.train", fill_the_gpu)
        assert runs()[1]["failed"] == "OutOfMemoryError: CUDA out of memory"
    assert "failed" not in runs()[1]


def fill_the_gpu(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_questions_that_the_base_can_t_answer_end_a_comparison_before_anything_is_taught(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "odd.jsonl").write_text('{"question": "What?", "answers": ["something that it never says"]}\n', encoding="utf-8")
    own = ["compare", str(folder / "facts.jsonl"), "--model", str(folder / "model"), "--method", "memory", "--background-tokens", "512"]
    for _ in range(2):  # what the base answers is on disk the second time
        with pytest.raises(SystemExit) as stopped:
            main([*own, "--probe", f"qa:{folder / 'odd.jsonl'}", "-o", str(folder / "out")])
        assert stopped.value.code == 1
        assert "the base answers none of the probes' questions" in capsys.readouterr().err
    assert [json.loads(line)["method"] for line in (folder / "out" / "runs.jsonl").read_text(encoding="utf-8").splitlines()] == ["base"]


@pytest.mark.parametrize(
    ("method", "why"), [(OSF(passes=1), "OSF takes no layer of a gpt2 model"), (SHiRA(passes=1), "Error: ")], ids=["osf", "shira"]
)
def test_a_rival_that_can_t_take_a_model_is_named_and_the_others_run(tmp_path: Path, method: AnyMethod, why: str) -> None:
    base = tiny_model("gpt2")  # whose layers are Conv1D
    workshop = Workshop(base, tiny_tokenizer(), backgrounds={}, background_tokens=64)
    before = [(name, type(module)) for name, module in base.named_modules()]
    run = run_comparison(
        workshop,
        [Fact(line=1, question="Who made Ox?", answers=("Ann",))],
        [TextProbe(name="prose", texts=("Some prose that must stay.",))],
        {"rival": [method], "lora": [LoRA(rank=2, passes=1)]},
        runs_path=tmp_path / "runs.jsonl",
        identity={},
        seconds=3600,
        wordings=2,
    )
    assert ["failed" in each for each in run.runs] == [False, True, False]
    assert why in run.runs[1]["failed"]
    assert [(name, type(module)) for name, module in base.named_modules()] == before
