"""The first benchmark's harness without a model: which facts are chosen, how runs are kept, how the table is made."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.arms import chosen_arms
from benchmarks.first import main
from benchmarks.measurement import taught_rows
from benchmarks.neighbours import Known
from benchmarks.recipe.bench import Bench
from benchmarks.recipe.stream import stream_rows
from benchmarks.recombined import recombined
from benchmarks.relations import relations
from benchmarks.selection import Selection, select_facts
from benchmarks.table import HEADER, markdown, summarise
from memgraft.comparison.runs import append_run, read_runs, run_id
from memgraft.errors import DataError, MemgraftError

ROWS = [{"relation": f"P{index % 4}", "question": f"Question {index}?"} for index in range(80)]


def odd_are_wrong(indices: Sequence[int]) -> list[bool]:
    return [index // 4 % 2 == 1 for index in indices]


def test_only_facts_that_the_base_answers_wrongly_are_chosen_and_none_twice() -> None:
    chosen = select_facts(ROWS, odd_are_wrong, 10, seed=0)
    both = [*chosen.taught, *chosen.control]
    assert len(chosen.taught) == len(chosen.control) == 10
    assert all(odd_are_wrong(both))
    assert len(set(both)) == 20


def test_relations_take_turns_and_each_control_is_of_its_facts_relation() -> None:
    chosen = select_facts(ROWS, odd_are_wrong, 10, seed=0)
    relations = [ROWS[index]["relation"] for index in chosen.taught]
    assert [ROWS[index]["relation"] for index in chosen.control] == relations
    assert sorted(Counter(relations).values()) == [2, 2, 3, 3]


def test_the_choice_depends_on_the_seed_and_not_on_how_many_are_asked_at_once() -> None:
    asked: list[int] = []

    def one_by_one(indices: Sequence[int]) -> list[bool]:
        asked.extend(indices)
        return odd_are_wrong(indices)

    first = select_facts(ROWS, one_by_one, 10, seed=3)
    assert len(asked) == len(set(asked)), "a question was asked twice"
    assert select_facts(ROWS, odd_are_wrong, 10, seed=3) == first
    assert select_facts(ROWS, odd_are_wrong, 10, seed=4) != first


def test_a_smaller_benchmark_teaches_the_first_facts_of_a_larger_one() -> None:
    assert select_facts(ROWS, odd_are_wrong, 10, seed=0).taught[:6] == select_facts(ROWS, odd_are_wrong, 6, seed=0).taught


def test_a_question_that_two_relations_share_is_chosen_once() -> None:
    rows = [{"relation": relation, "question": f"Where is {place}?"} for relation in ("P1", "P2") for place in range(6)]
    chosen = select_facts(rows, lambda indices: [True] * len(indices), 3, seed=0)
    questions = [rows[index]["question"] for index in (*chosen.taught, *chosen.control)]
    assert len(set(questions)) == 6


def test_too_few_wrong_answers_are_reported_by_relation() -> None:
    with pytest.raises(DataError, match=r"relation P\d: the base answers only 10 of its questions wrongly, 12 wanted"):
        select_facts(ROWS, odd_are_wrong, 24, seed=0)


def test_equal_recipes_have_equal_ids_and_others_have_not() -> None:
    recipe = {"arm": "x", "settings": {"lr": 1e-4, "rank": 16}}
    assert run_id(recipe) == run_id({"settings": {"rank": 16, "lr": 1e-4}, "arm": "x"})
    assert run_id(recipe) != run_id({"arm": "x", "settings": {"lr": 2e-4, "rank": 16}})


def test_runs_come_back_and_a_line_that_was_cut_off_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "runs.jsonl"
    assert read_runs(path) == {}
    append_run(path, {"id": "a", "value": 1})
    append_run(path, {"id": "b", "value": 2})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"id": "c", "va')
    assert read_runs(path) == {"a": {"id": "a", "value": 1}, "b": {"id": "b", "value": 2}}
    append_run(path, {"id": "c", "value": 3})
    assert [json.loads(line)["id"] for line in path.read_text(encoding="utf-8").splitlines()] == ["a", "b", "c"]


def run(arm: str, learned: list[float], questions: list[float], nll: list[float], **costs: Any) -> dict[str, Any]:
    def qa(values: list[float]) -> dict[str, Any]:
        return {"metric": "F1", "values": values, "exact_match": [float(value == 1) for value in values]}

    fixed = {"setup_seconds": 1.0, "seconds": 61.4, "measure_seconds": 2.0, "bytes": 2_500_000, "rows": 1234, "rows_per_fact": 99.6}
    return {
        "recipe": {"arm": arm, "settings": {}},
        "scores": {
            "learned": qa(learned),
            "control": qa([0.0] * len(learned)),
            "webquestions": qa(questions),
            "wikitext": {"metric": "text NLL", "values": nll, "weights": [511.0, 100.0]},
        },
        **fixed,
        **costs,
        "losses": [3.0, 1.0],
        "environment": {},
    }


def test_changes_are_paired_with_the_base_and_weighted_by_tokens() -> None:
    runs = [run("base", [0.0, 0.0], [0.5, 1.0, 0.0], [3.0, 2.0]), run("taught", [1.0, 0.5], [0.0, 1.0, 0.0], [3.0, 4.0])]
    summary = summarise(runs, {"protocol": {"seed": 0}})
    assert summary["protocol"] == {"seed": 0}
    base, taught = summary["arms"]
    assert taught["learned_f1"]["mean"] == 0.75
    assert taught["learned_em"]["mean"] == 0.5
    assert taught["webquestions_f1"]["change"]["mean"] == pytest.approx(-1 / 6, abs=1e-6)
    assert taught["text_nll"]["change"]["mean"] == pytest.approx(200 / 611, abs=1e-6)
    assert base["text_nll"]["change"]["mean"] == 0


def test_the_table_has_a_line_per_arm_and_a_dash_where_an_arm_has_no_rows() -> None:
    runs = [run("base", [0.0, 0.0], [0.5], [3.0, 2.0]), run("lora", [1.0, 0.5], [0.5], [3.0, 4.0], rows=None, rows_per_fact=None)]
    lines = markdown(summarise(runs, {})).splitlines()
    assert [line.count("|") for line in lines] == [len(HEADER) + 1] * 4
    cells = [cell.strip() for cell in lines[3].split("|")]
    assert cells[1] == "lora"
    assert cells[-5:-1] == ["–", "–", "2,500", "61"]


def test_arms_are_named_by_how_they_start_and_the_base_comes_first() -> None:
    assert [arm.name for arm in chosen_arms(["lora"], [5e-5, 2e-4], [1.0])] == ["base", "lora, lr 5e-05", "lora, lr 2e-04"]
    assert [arm.name for arm in chosen_arms(None, [1e-4], [0.3])] == [
        "base",
        "least-interference",
        "least-interference, no cues",
        "tfidf+sgd, lr 0.3",
        "kl+sgd, lr 0.3",
        "lora, lr 1e-04",
    ]
    with pytest.raises(MemgraftError, match="no arm is called 'full'"):
        chosen_arms(["lora", "full"], [1e-4], [1.0])


def test_missing_data_is_one_line_that_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MEMGRAFT_DATA", raising=False)
    assert main(["-o", str(tmp_path)]) == 1
    assert main(["-o", str(tmp_path), "--data", str(tmp_path)]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "--data or MEMGRAFT_DATA" in first
    assert "entityquestions.jsonl: no such file" in second


def test_no_jobs_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-o", str(tmp_path), "--data", str(tmp_path), "--jobs", "0"]) == 1
    assert capsys.readouterr().err == "error: --jobs: 0 at a time; give 1 or more\n"


def test_a_selection_keeps_row_numbers_only() -> None:
    assert Selection(taught=(1, 2), control=(3, 4)).model_dump(mode="json") == {"taught": [1, 2], "control": [3, 4]}


def test_recombined_facts_are_about_nobody_in_the_data_and_take_their_answers_from_their_relation() -> None:
    names = ["Ada Lovelace", "Grace Brewster Hopper", "Kizuna", "Alan Turing", "Anna Turing"]
    rows = [
        {"relation": relation, "question": relations()[relation].test.replace("{s}", name), "answers": [f"{name}'s {relation}"]}
        for relation in ("P36", "P50")
        for name in names
    ]
    made = recombined(rows)
    assert made == recombined(rows)
    subjects = {
        relation: [relations()[relation].subject(row["question"]) for row in made if row["relation"] == relation]
        for relation in ("P36", "P50")
    }
    assert subjects["P36"] == subjects["P50"] == ["Ada Turing", "Grace Turing", "Alan Lovelace", "Anna Brewster Hopper"]
    assert all(row["answers"][0].endswith(row["relation"]) for row in made)
    assert len(taught_rows(made, Selection(taught=(0, 7), control=()))) == 2


def test_a_stream_goes_on_with_recombined_facts_once_the_data_set_s_own_are_used_up() -> None:
    names = [f"{first} {last}" for first in ("Ada", "Grace", "Alan") for last in ("Lovelace", "Hopper", "Turing")][:7]
    rows = [{"relation": "P50", "question": relations()["P50"].test.replace("{s}", name), "answers": [name]} for name in names]
    bench = Bench(SimpleNamespace(rows=rows, workshop=SimpleNamespace(tokenizer=None)), Path())
    bench.known = lambda questions: [Known("", 0.0, 0.0) for _ in questions]
    assert len(bench.rows) > len(rows)
    chosen = stream_rows(bench, len(bench.rows), seed=0)
    assert set(chosen[: len(rows)]) == set(range(len(rows)))
    assert set(chosen) == set(range(len(bench.rows)))
    with pytest.raises(DataError, match="too few for --stream-facts"):
        stream_rows(bench, len(bench.rows) + 1, seed=0)
