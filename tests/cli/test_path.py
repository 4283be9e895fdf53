"""The whole way through the commands: graft, learn, ask, check, log, show, revert, doctor."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from memgraft.persistence import load
from memgraft.probes import chat_prompt, few_shot_prompt, generate_answers
from memgraft.probes.frames import choose_shots, packaged_shots
from memgraft.store import MemoryStore

Run = Callable[..., Any]


def test_graft_says_what_it_made(run: Run, model_folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "made"
    arguments = ("--slots", "256", "--layers", "0,1", "--top-k", "4", "--heads", "1", "--background-tokens", "1_000", "--json")
    ended = run("graft", model_folder, "-o", store, *arguments)
    assert ended.code == 0
    assert ended.json["layers"] == [0, 1]
    assert ended.json["answer_layer"] is None
    assert (ended.json["slots"], ended.json["top_k"], ended.json["heads"]) == (256, 4, 1)
    assert ended.json["background"]["kind"] == "self-written"
    assert 500 < ended.json["background"]["tokens"] <= 1000
    memory = MemoryStore.open(store).spec.memory
    assert (memory.layers, memory.slots, memory.top_k, memory.heads) == ((0, 1), 256, 4, 1)


def test_graft_takes_a_background_file(run: Run, model_folder: Path, tmp_path: Path) -> None:
    background = tmp_path / "background.txt"
    background.write_text("\n\n".join(f"Paragraph {i} of a text that must stay as likely as it is." for i in range(20)))
    arguments = ("--slots", "64", "--top-k", "4", "--background", background, "--json")
    ended = run("graft", model_folder, "-o", tmp_path / "made", *arguments)
    assert ended.code == 0
    assert ended.json["background"]["kind"] == str(background)
    assert MemoryStore.open(tmp_path / "made").background_texts()[3].startswith("Paragraph 3")


def test_learn_ends_with_a_line_per_fact_and_the_lesson(run: Run, store: Path, facts: Path) -> None:
    ended = run("learn", store, facts, "-m", "boxes", "--passes", "2", "--wordings", "3")
    assert ended.code == 0, ended.err
    (id,) = MemoryStore.open(store).active()
    lines = ended.out.splitlines()
    assert lines[0].split() == ["learned", "fact", "question", "expected", "before", "after"]
    for line, name in zip(lines[1:3], ("fact-A", "fact-B"), strict=True):
        assert line.split()[:2] in (["yes", name], ["no", name])
        assert f"Box {name[-1]} holds what?" in line
    assert "of 2 facts learned (all asked in a wording that was not taught)" in ended.out
    assert "rows written" in ended.out
    assert "no overlap with earlier lessons" in ended.out
    assert lines[-1] == f"lesson {id[:12]}: boxes"


def test_learn_reports_loss_speed_and_time_left_for_every_pass(run: Run, store: Path, facts: Path) -> None:
    ended = run("learn", store, facts, "-m", "boxes", "--passes", "3", "--wordings", "2", "--no-test", "--json")
    notes = ended.err.splitlines()
    assert [note.split(":")[0] for note in notes] == ["pass 1 of 3", "pass 2 of 3", "pass 3 of 3"]
    assert all("loss " in note and " facts/min" in note and " s left" in note for note in notes)
    losses = [sum(turn) / len(turn) for turn in ended.json["record"]["losses"]]
    assert [float(note.split("loss ")[1].split(",")[0]) for note in notes] == pytest.approx(losses, abs=1e-3)


def test_learn_and_show_print_the_same_json(run: Run, store: Path, facts: Path) -> None:
    learned = run("learn", store, facts, "-m", "boxes", "--passes", "1", "--wordings", "2", "--json")
    assert learned.code == 0
    lesson = learned.json
    commit = MemoryStore.open(store).commit(lesson["id"])
    assert lesson["rows"] == {"0": commit.rows}
    assert lesson["record"]["facts"][1]["expected"] == "ink"
    assert lesson["bytes"] == (store / "commits" / f"{commit.id}.safetensors").stat().st_size
    assert run("show", store, lesson["id"][:8], "--json").json == lesson


def test_settings_reach_the_recipe_and_a_recipe_file_repeats_a_lesson(run: Run, store: Path, facts: Path, tmp_path: Path) -> None:
    settings = ("--ranking", "kl", "--t", "40", "--writer", "sgd", "--learning-rate", "2.5", "--passes", "2", "--until-loss", "0.01")
    first = run(
        "learn", store, facts, "-m", "boxes", *settings, "--wordings", "2", "--loss", "all", "--seed", "7", "--no-test", "--json"
    ).json
    recipe = first["recipe"]
    assert (recipe["ranking"], recipe["t"], recipe["passes"], recipe["until_loss"]) == ("kl", 40, 2, 0.01)
    assert (recipe["wordings"], recipe["loss"], recipe["seed"]) == (2, "all", 7)
    assert recipe["writer"] == {"name": "sgd", "learning_rate": 2.5, "max_norm": None}
    run("revert", store, first["id"])
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps({**first, "record": None}))  # all that `show` says of a lesson, or its recipe alone
    assert run("learn", store, facts, "-m", "boxes", "--recipe", file, "--no-test", "--json").json["recipe"] == recipe
    run("revert", store, MemoryStore.open(store).active()[-1])
    file.write_text(json.dumps(recipe))
    again = run("learn", store, facts, "-m", "boxes", "--recipe", file, "--no-test", "--json").json
    assert again["id"] == first["id"]
    other = run(
        "learn", store, facts, "-m", "boxes", "--recipe", file, "--t", "20", "--writer", "least-interference", "--no-test", "--json"
    ).json
    assert other["recipe"] == {**recipe, "t": 20, "writer": other["recipe"]["writer"]}
    assert other["recipe"]["writer"]["name"] == "least-interference"


def test_rows_and_t_can_be_without_a_limit(run: Run, store: Path, facts: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps({"t": 30, "rows": 20, "passes": 1, "wordings": 2}))
    command = ("learn", store, facts, "-m", "boxes", "--recipe", file, "--no-test", "--json")
    few = run(*command).json
    assert (few["recipe"]["t"], few["recipe"]["rows"]) == (30, 20)
    most = run(*command, "--t", "none", "--rows", "none").json
    assert (most["recipe"]["t"], most["recipe"]["rows"]) == (None, None)
    assert most["rows"]["0"] > 2 * 30 >= few["rows"]["0"]
    assert run(*command, "--rows", "2^3", "--seed", "1").json["recipe"]["rows"] == 8


def test_ask_prints_the_taught_models_answer_and_nothing_else(run: Run, taught: Path) -> None:
    model = load(taught)
    question = "What is in box A?"
    expected = {}
    for frame, prompt, stop in (
        ("--chat", chat_prompt(model.tokenizer, question), "\0"),
        ("--few-shot", few_shot_prompt(question, choose_shots(question, packaged_shots(), 5)), "\n"),
        ("--raw", question, "\0"),
    ):
        expected[frame] = generate_answers(model.base, model.tokenizer, [prompt], max_new_tokens=8, stop=stop)[0]
        ended = run("ask", taught, question, frame, "--max-new-tokens", 8, "--json")
        assert ended.json == {"question": question, "frame": frame.removeprefix("--"), "answers": {"with_memory": expected[frame]}}
        assert ended.err == ""
    assert run("ask", taught, question, "--max-new-tokens", 8, "--json").json["frame"] == "chat"


@pytest.mark.parametrize(
    ("capability", "asked_for", "remarked"),
    [("AVX2", (), True), ("AVX2", ("--dtype", "float32"), False), ("AVX2", ("--dtype", "bfloat16"), False), ("AVX512", (), False)],
)
def test_a_store_made_in_16_bits_is_remarked_on_where_the_processor_is_slow_in_them(
    run: Run, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: str, asked_for: Sequence[str], remarked: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    store, question = tmp_path / "store", "What is in box A?"
    sized = ("--slots", "2^8", "--background-tokens", "500", "--dtype", "bfloat16")
    assert run("graft", model_folder, "-o", store, *sized).code == 0
    ended = run("ask", store, question, *asked_for)
    assert ended.code == 0, ended.err
    assert ("--dtype float32 is faster" in ended.err) == remarked


def test_ask_can_leave_the_memory_out(run: Run, taught: Path, empty: Path) -> None:
    question = ("What is in box B?", "--raw", "--max-new-tokens", "12", "--json")
    base = run("ask", empty, *question).json["answers"]["with_memory"]
    assert run("ask", taught, *question, "--without-memory").json["answers"] == {"without_memory": base}
    both = run("ask", taught, *question, "--both").json["answers"]
    assert both["without_memory"] == base
    assert both["with_memory"] == run("ask", taught, *question).json["answers"]["with_memory"]
    text = run("ask", taught, *question[:-1], "--both").out
    assert text.startswith("without memory: ")
    assert "\nwith memory:    " in text


def test_check_passes_a_memory_that_changes_nothing(run: Run, empty: Path, tmp_path: Path) -> None:
    text = tmp_path / "prose.txt"
    text.write_text("Running text, the first of it.\n" * 40)
    ended = run("check", empty, "--probe", f"text:{text}#600", "--probe", "background", "--json")
    assert ended.code == 0
    assert ended.json["forgot"] is False
    assert [probe["name"] for probe in ended.json["probes"]] == ["prose", "background"]
    assert all(probe["delta"] == 0 for probe in ended.json["probes"])
    assert ended.json["probes"][0]["before"] == pytest.approx(torch.tensor(257.0).log().item(), abs=1)


def test_check_ends_with_2_when_something_was_forgotten_unless_it_is_tolerated(run: Run, store: Path, facts: Path, tmp_path: Path) -> None:
    rough = ("--writer", "sgd", "--ranking", "all", "--learning-rate", "100", "--passes", "3", "--wordings", "3", "--no-test")
    assert run("learn", store, facts, "-m", "roughly", *rough).code == 0
    text = tmp_path / "prose.txt"
    text.write_text("ZQX ZQX QXZ 77\n" * 60)  # letters that the lesson makes less likely
    probe = ("check", store, "--probe", f"text:{text}", "--probe", f"drift:{text}#300")
    ended = run(*probe)
    assert ended.code == 2, ended.out
    header, row, drift, verdict = ended.out.splitlines()
    assert header.split()[:5] == ["probe", "metric", "before", "after", "Δ"]
    assert row.split()[-1] == "forgot"
    assert "drift KL" in drift
    assert not drift.endswith("forgot")
    assert verdict == "1 of 2 probes got worse"
    assert run(*probe, "--tolerance", "1000").code == 0
    for endless in ("inf", "nan", "-1", "much"):
        assert f"expected a number from 0, got '{endless}'" in run(*probe, "--tolerance", endless).refused()
    assert [entry["worse"] for entry in run(*probe, "--tolerance", "0", "--json").json["probes"]] == [True, True]


def test_log_lists_the_newest_first_and_what_is_active(run: Run, taught_store: Path) -> None:
    first, second = MemoryStore.open(taught_store).active()
    run("revert", taught_store, first[:10])
    lines = run("log", taught_store).out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [first[:12], second[:12], first[:12]]
    assert [line.split()[1] for line in lines[1:]] == ["revert", "learn", "learn"]
    assert lines[2].endswith("yes     second lesson …")
    history = run("log", taught_store, "--json").json["history"]
    assert [(entry["op"], entry["id"], entry["active"]) for entry in history] == [
        ("revert", first, False),
        ("learn", second, True),
        ("learn", first, False),
    ]
    assert history[1]["message"] == "second lesson\n\nof two"
    assert len(run("log", taught_store, "-n", "1").out.splitlines()) == 2


def test_log_of_an_empty_store_says_so_on_stderr(run: Run, empty: Path) -> None:
    ended = run("log", empty)
    assert (ended.code, ended.out) == (0, "")
    assert "has no lessons yet" in ended.err
    assert run("log", empty, "--json").json["history"] == []


def test_show_tells_all_of_a_lesson(run: Run, taught: Path) -> None:
    first, second = MemoryStore.open(taught).active()
    commit = MemoryStore.open(taught).commit(second)
    out = run("show", taught, second).out
    assert out.splitlines()[0] == f"lesson {second}"
    for part in ("    of two", commit.data_sha256, "ranking tfidf", "passes 2", f"{commit.rows:,} rows written", "Box B holds what?"):
        assert part in out
    shared = run("show", taught, second, "--json").json["record"]["overlaps"]
    if shared:
        assert f"of the earlier lesson {first[:12]}" in out
        assert "were written again by the later lesson" in run("show", taught, first).out


def test_messages_can_neither_mark_up_nor_steer_the_terminal(run: Run, taught: Path) -> None:
    first = MemoryStore.open(taught).active()[0]
    for ended in (run("log", taught), run("show", taught, first)):
        assert "first [red]lesson\\x1b[31m" in ended.out
        assert "\x1b" not in ended.out


def test_revert_says_what_it_took_and_what_remains(run: Run, taught_store: Path) -> None:
    first, second = MemoryStore.open(taught_store).active()
    overlaps = MemoryStore.open(taught_store).overlaps(first)
    ended = run("revert", taught_store, first[:9])
    lines = ended.out.splitlines()
    assert lines[0].startswith(f"reverted {first[:12]}: first [red]lesson")
    assert sum("shared with" in line for line in lines) == len(overlaps)
    assert lines[-2:] == ["1 lesson remains:", f"  {second[:12]} second lesson …"]
    last = run("revert", taught_store, second, "--json").json
    assert last["reverted"] == second
    assert last["remaining"] == []
    model = load(taught_store)
    assert all(len(rows) == 0 for rows in model.rows().values())


def test_doctor_examines_installation_store_and_base(run: Run, taught: Path, model_folder: Path) -> None:
    report = run("doctor", taught, "--load", "--json").json
    assert report["versions"]["torch"] == torch.__version__
    assert report["store"]["faults"] == []
    assert report["store"]["lessons"] == {"learned": 2, "active": 2}
    assert report["store"]["base_mismatch"] is None
    table = report["store"]["tables"]["0"]
    store = MemoryStore.open(taught)
    read = {behind: [store.slots(id) for id in store.active() if (store.cues(id) is not None) == behind] for behind in (True, False)}
    everywhere = torch.cat([torch.zeros(0, dtype=torch.int64), *(slots["0"] for slots in read[False])])
    assert table["rows_written"] == len(everywhere.unique())
    rows = sum(len(each) for slots in read[True] for each in slots.values())
    assert report["store"]["behind_cues"] == {"lessons": len(read[True]), "rows": rows}
    assert 0 < table["slots_used"] <= 1
    out = run("doctor", taught).out
    for part in ("bfloat16", "all whole", str(model_folder), "2 active of 2", "still exact", "top 1%"):
        assert part in out


def test_doctor_works_without_a_store(run: Run) -> None:
    ended = run("doctor")
    assert ended.code == 0
    assert ended.out.startswith("versions     python ")
