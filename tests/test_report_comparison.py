"""A comparison's report: verdict first, hostile text stays text, and a browser without network shows every plot and table."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from memgraft.baselines import OSF, SGD, AdamW, Full, LoRA, Retrieval
from memgraft.comparison.grid import grid
from memgraft.comparison.methods import AnyMethod, Base, Memory, described, family, settings
from memgraft.comparison.summary import summarise
from memgraft.errors import DataError
from memgraft.report import ComparisonPage, comparison_html, comparison_page, render_comparison
from memgraft.report.comparison import MethodPoint
from memgraft.report.markdown import comparison_markdown, plain
from memgraft.report.plots import comparison_plot

HOSTILE = [
    "<script>document.title='owned'</script>",
    '"><img src="http://evil.example/x" onerror="document.title=1">',
    "{{ 7 * 7 }} {% for x in y %}",
    "| a | b |\n|---|---|",
    "[click](http://evil.example) ![x](http://evil.example/y.png)",
    "]]></style></title></svg><iframe src=//evil.example>",
    "`code` **bold** # heading",
]


def run(method: AnyMethod, learned: float | list[float], nll: float, answers: list[str], right: float | None = None) -> dict[str, Any]:
    """A run that learned so much of each fact and forgot so much; `right`: share of 20 other questions that are still answered."""
    scores: dict[str, Any] = {
        "learned": {"metric": "F1", "values": learned if isinstance(learned, list) else [learned] * len(answers)},
        "prose": {"metric": "text NLL", "values": [3 + nll, 2 + nll, 2.5 + 1.1 * nll], "weights": [9.0, 9.0, 9.0]},
    }
    if right is not None:
        scores["common"] = {"metric": "F1", "values": [float(number < 20 * right) for number in range(20)]}
    return {
        "method": family(method),
        "settings": settings(method),
        "seed": 0,
        "facts": len(answers),
        "answers": answers,
        "scores": scores,
        "environment": {
            "packages": {"memgraft": "0.1.0", "torch": "2.9.0", "transformers": "5.0.0", "peft": None, "numpy": "2.0.0"},
            "git_revision": "0123abc+changes",
            "cpu": answers[0],
            "device": "cpu",
        },
        "seconds": 12.0,
        "bytes": 10_000,
        "peak_bytes": 10**9,
    }


def page(texts: list[str]) -> ComparisonPage:
    broken = run(LoRA(optimizer=AdamW(lr=1e5)), 0.0, 0.0, texts)
    runs: list[dict[str, Any]] = [
        {name: broken[name] for name in ("method", "settings", "seed")} | {"failed": f"the loss is nan: {texts[0]}"},
        run(Base(), 0.0, 0.0, texts),
        run(Memory(), 0.9, 0.01, texts),
        run(LoRA(), 0.95, 0.5, texts),
        run(LoRA(optimizer=AdamW(lr=1e-5)), 0.4, 0.1, texts),
        run(Retrieval(), 0.99, 0.0, texts),
    ]
    return comparison_page(
        summarise(runs),
        title=f"memgraft compare: {texts[0]}",
        facts=[(text, text) for text in texts],
        runs=runs,
        skipped=[("full", "adamw lr 1e-05")],
        remarks=[f"One remark about {texts[0]}"],
        repeat=["memgraft compare facts.jsonl"],
        model=f"model {texts[0]}",
        dtype="bfloat16",
        environment="a machine",
    )


def made_of(*runs: dict[str, Any]) -> ComparisonPage:
    facts = [(text, text) for text in runs[0]["answers"]]
    return comparison_page(summarise(runs), title="t", facts=facts, runs=runs)


def test_the_verdict_compares_the_memory_with_the_best_rival_that_trains() -> None:
    made = page(["a"] * 20)
    assert made.tone == "good"
    assert made.verdict.startswith("The memory learns F1 0.90 at a rise of the text NLL of +0.01")
    assert "the best rival, lora, has" in made.verdict
    assert "more than the memory" in made.verdict
    assert made.verdict.endswith("Retrieval, which teaches nothing, answers with F1 0.99.")
    html = comparison_html(made)
    assert html.index(made.verdict) < html.index("<svg") < html.index("<table")


@pytest.mark.parametrize(
    ("learned", "nll", "tone", "words"),
    [
        (0.95, 0.001, "bad", "Where it learns as much, the best rival, lora, has +0.001"),
        (0.9, 0.01, "mixed", "no clear difference"),
        (0.95, 0.01, "bad", "less than the memory"),
        (0.5, 0.5, "good", "No rival that trains learned as much; the best of them, lora, reached 0.50, and has +0.5"),
        (
            0.5,
            0.01,
            "mixed",
            "No rival that trains learned as much; the best of them, lora, reached 0.50, and has +0.0103: no clear difference",
        ),
        (0.5, 0.001, "mixed", "less than the memory"),
    ],
)
def test_the_tone_is_good_only_where_the_memory_forgets_less(learned: float, nll: float, tone: str, words: str) -> None:
    texts = ["a"] * 20
    made = made_of(run(Base(), 0.0, 0.0, texts), run(Memory(), 0.9, 0.01, texts), run(LoRA(), learned, nll, texts))
    assert made.tone == tone
    assert words in made.verdict


@pytest.mark.parametrize(("nll", "tone"), [(0.5, "good"), (0.01, "mixed"), (0.001, "bad")])
def test_a_rival_whose_learning_is_less_within_the_interval_only_counts_as_one_that_learns_as_much(nll: float, tone: str) -> None:
    texts = ["a"] * 20
    lora = run(LoRA(), [1.0] * 18 + [0.0] * 2, nll, texts)
    made = made_of(run(Base(), 0.0, 0.0, texts), run(Memory(), [0.0] + [1.0] * 19, 0.01, texts), lora, run(Full(), 0.1, 0.0, texts))
    assert made.tone == tone
    assert "The best rival, lora, learns F1 0.90, a difference within the interval (−0.05 [−0.20, +0.10]), and has" in made.verdict
    by_method = {row.method: row for row in made.equal}
    assert not by_method["lora"].reached
    assert by_method["lora"].note == "its most, less than the memory within the interval: −0.05 [−0.20, +0.10]"
    assert by_method["full"].note.startswith("its most, less than the memory: −0.85 [")
    for twin in (comparison_html(made), comparison_markdown(made).replace("\\", "")):
        assert by_method["lora"].note in twin


def test_both_measures_stand_at_equal_learning_and_in_the_verdict() -> None:
    texts = ["a"] * 20
    base, memory = run(Base(), 0.0, 0.0, texts, right=1), run(Memory(), 0.9, 0.01, texts, right=1)
    lora, osf = run(LoRA(), 0.9, 0.5, texts, right=0.5), run(OSF(), 0.9, 0.9, texts, right=0.75)
    one = made_of(base, memory, lora)
    assert one.verdict == (
        "The memory learns F1 0.90 at a drop of F1 on other questions of 0% (share of the base's) and a rise of the text NLL of +0.0103 "
        "(nats per token). Where it learns as much, the best rival, lora, has a drop of F1 on other questions of 50%, more than the "
        "memory; and a rise of the text NLL of +0.5167, more than the memory."
    )
    assert one.tone == "good"
    two = made_of(base, memory, lora, osf)
    assert "the best rival by the drop of F1 on other questions, osf, has a drop of F1 on other questions of 25%" in two.verdict
    assert "the best rival by the rise of the text NLL, lora, has a rise of the text NLL of +0.5167" in two.verdict
    assert [(row.method, row.measure, row.forgotten) for row in two.equal] == [
        ("lora", "drop of F1 on other questions", 0.5),
        ("lora", "rise of the text NLL", pytest.approx(0.5167, abs=1e-4)),
        ("osf", "drop of F1 on other questions", 0.25),
        ("osf", "rise of the text NLL", pytest.approx(0.93, abs=1e-4)),
    ]
    assert [row["unit"] for row in json.loads(two.model_dump_json())["equal"]] == ["share of the base's", "nats per token"] * 2
    html, markdown = comparison_html(two), comparison_markdown(two).replace("\\", "")
    for row in two.equal:
        assert f'<td data-label="Measured by">{row.measure} (' in unescape(html)
        assert re.search(rf"(?m)^\| {row.method} \|.*\| {row.measure} \({row.unit}\) \| {row.forgotten:.3f} \[", markdown)


def test_a_rival_that_learns_more_than_it_needs_to_is_read_off_on_the_way_from_the_base() -> None:
    texts = ["a"] * 20
    made = made_of(run(Base(), 0.0, 0.0, texts), run(Memory(), 0.6, 0.2, texts), run(LoRA(), 0.9, 0.45, texts))
    (row,) = made.equal
    assert (row.learned, row.most, row.reached) == (0.6, 0.9, True)
    assert row.forgotten == pytest.approx(0.465 * 2 / 3, abs=1e-3)
    assert row.worse == "more"
    twice = made_of(run(Base(), 0.0, 0.0, texts), run(Memory(), 0.45, 0.3, texts), run(LoRA(), 0.9, 0.45, texts))
    assert (twice.equal[0].worse, twice.tone) == ("less", "bad"), "half of what it forgets is less than what the memory does"


def test_retrieval_is_said_to_answer_what_it_answers() -> None:
    texts = ["a"] * 20
    made = made_of(run(Base(), 0.0, 0.0, texts), run(Memory(), 0.6, 0.01, texts), run(Retrieval(), 0.95, 0.1, texts))
    assert made.verdict.endswith("Retrieval, which teaches nothing, answers with F1 0.95.")


def test_questions_of_which_the_base_answers_none_are_not_judged() -> None:
    texts = ["a"] * 20
    runs = [run(Base(), 0.0, 0.0, texts, right=0), run(Memory(), 0.9, 0.01, texts, right=0), run(LoRA(), 0.9, 0.5, texts, right=0.3)]
    made = made_of(*runs)
    assert {row.measure for row in made.equal} == {"rise of the text NLL"}
    assert made.tone == "good"
    assert made.remarks == ("common: the base answers none of these questions, so that what is forgotten can't be told by them.",)
    for each in runs:
        del each["scores"]["prose"]
    with pytest.raises(DataError, match="the base answers none of the probes' questions"):
        made_of(*runs)


def test_the_page_is_made_where_every_setting_broke_down() -> None:
    texts = ["a"] * 20
    broken = {name: value for name, value in run(LoRA(), 0.0, 0.0, texts).items() if name in ("method", "settings", "seed")}
    made = made_of(run(Base(), 0.0, 0.0, texts), {**broken, "failed": "the loss is nan"})
    assert "the loss is nan" in comparison_html(made)


@pytest.mark.parametrize(
    ("nll", "right", "tone"), [(0.5, 1, "mixed"), (0.001, 1, "bad"), (0.001, 0.5, "mixed"), (0.01, 0.5, "mixed"), (0.5, 0.5, "good")]
)
def test_the_tone_is_good_only_where_every_measure_is(nll: float, right: float, tone: str) -> None:
    texts = ["a"] * 20
    memory, lora = run(Memory(), 0.9, 0.01, texts, right=1), run(LoRA(), 0.9, nll, texts, right=right)
    assert made_of(run(Base(), 0.0, 0.0, texts, right=1), memory, lora).tone == tone


def test_a_far_off_setting_does_not_set_the_axis_and_is_named() -> None:
    texts = ["a"] * 20
    base, memory, lora = run(Base(), 0.0, 0.0, texts), run(Memory(), 0.9, 0.01, texts), run(LoRA(), 0.8, 0.5, texts)
    for learned in (0.1, 0.95):  # off its method's front, and on it
        diverged = LoRA(optimizer=SGD(lr=0.1))
        made = made_of(base, memory, lora, run(diverged, learned, 12.0, texts))
        assert made.reach == pytest.approx(1.2 * 0.5167, abs=1e-3)
        assert made.beyond == (f"lora: {described(diverged)}: +12.4000",)
        svg = comparison_plot(made.points, "rise", made.reach)
        assert "1 beyond →" in svg
        assert max(map(float, re.findall(r">([\d.]+)</text>", svg))) <= 1, "what stands at the ticks of both axes"
        for twin in (unescape(comparison_html(made)), comparison_markdown(made).replace("\\", "")):
            assert made.beyond[0] in twin
    near = made_of(base, memory, lora)
    assert near.beyond == ()
    assert "beyond" not in comparison_html(near)
    alone = made_of(base, run(LoRA(), 0.8, 12.0, texts))
    assert alone.beyond == (), "where nothing else is on any front, the axis reaches it"


def test_no_two_methods_of_the_default_comparison_look_alike() -> None:
    methods = [*grid(), "one more", "and another"]
    assert len(methods) >= 12
    points = [
        MethodPoint(
            method=name,
            label="",
            learned=0.05 * number,
            learned_low=None,
            learned_high=None,
            forgotten=0.01 * number,
            low=None,
            high=None,
            best=True,
            seconds=None,
            bytes=None,
            peak_bytes=None,
        )
        for number, name in enumerate(methods)
    ]
    svg = comparison_plot(points, "rise", 1.0)
    shapes = dict(re.findall(r'<path id="comparison-(\w+)" d="([^"]*)"', svg))
    marks = re.findall(r'<use xlink:href="#comparison-(\w+)"[^>]*style="fill: (var\(--\w+\))', svg.partition('id="comparison-legend')[2])
    assert len(marks) == len(methods)
    assert len({(shapes[shape], colour) for shape, colour in marks}) == len(methods)


def test_what_was_run_is_said() -> None:
    made = page(["a"] * 20)
    assert made.ran == (
        ("model", "model a"),
        ("weights", "bfloat16"),
        ("seed", "0"),
        ("facts taught", "20"),
        ("asked", "learned: 20 questions, prose: 3 windows"),
        ("device", "cpu"),
        ("CPU", "a"),
        ("versions", "memgraft 0.1.0, torch 2.9.0, transformers 5.0.0"),
        ("git revision", "0123abc+changes"),
    )
    html, markdown = comparison_html(made), comparison_markdown(made).replace("\\", "")
    for name, value in made.ran:
        assert f"<dt>{name}</dt><dd><bdi>{value}</bdi></dd>" in html
        assert f"* {name}: {value}\n" in markdown


def test_runs_of_another_version_that_an_earlier_call_left_are_told_apart() -> None:
    base, memory = run(Base(), 0.0, 0.0, ["a"]), run(Memory(), 0.9, 0.01, ["a"])
    memory["environment"] = {"packages": {"torch": "3.0.0"}, "git_revision": None}
    ran = dict(made_of(base, memory).ran)
    assert ran["versions"] == "memgraft 0.1.0, torch 2.9.0; 3.0.0, transformers 5.0.0"
    assert ran["git revision"] == "0123abc+changes"
    for each in (base, memory):
        del each["environment"]
    assert not {"CPU", "versions", "git revision"} & dict(made_of(base, memory).ran).keys()


def test_without_a_memory_or_a_rival_the_verdict_says_so() -> None:
    runs = [run(Base(), 0.0, 0.0, ["a"]), run(LoRA(), 0.9, 0.01, ["a"])]
    made = comparison_page(summarise(runs), title="t", facts=[("a", "a")], runs=runs)
    assert (made.verdict, made.tone) == ("The memory was not run, so there is nothing to compare with.", "mixed")
    alone = [run(Base(), 0.0, 0.0, ["a"]), run(Memory(), 0.9, 0.01, ["a"])]
    assert comparison_page(summarise(alone), title="t", facts=[("a", "a")], runs=alone).tone == "mixed"


def test_every_probe_has_its_before_and_after_and_the_base_its_own_f1() -> None:
    made = page(["a"] * 20)
    assert made.already_right == 0.0
    assert [(row.method, row.probe) for row in made.probes] == [("memory", "prose"), ("lora", "prose"), ("retrieval", "prose")]
    memory = made.probes[0]
    assert memory.after - memory.before == pytest.approx(memory.change, abs=1e-5)
    assert len(made.failed) == 1
    for twin in (comparison_html(made), comparison_markdown(made).replace("\\", "")):
        assert "the loss is nan: a" in twin
        assert "One remark about a" in twin


def test_equal_data_writes_equal_bytes_and_twins(tmp_path: Path) -> None:
    first = render_comparison(page(["a", "b"]), tmp_path / "one")
    second = render_comparison(page(["a", "b"]), tmp_path / "two")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["report.html", "report.json", "report.md"]
    kept = json.loads((tmp_path / "one" / "report.json").read_text(encoding="utf-8"))
    assert ComparisonPage.model_validate(kept) == page(["a", "b"])


def test_hostile_text_stays_text_in_html_and_markdown() -> None:
    made = page(HOSTILE)
    html, markdown = comparison_html(made), comparison_markdown(made)
    assert not re.search(r"<(script|img|iframe)\b", html)
    assert "49" not in re.findall(r"<bdi>(.*?)</bdi>", html)
    for text in HOSTILE:
        assert text in unescape(html)
        assert plain(text) in markdown
    assert not re.search(r"<(script|img|iframe)\b", markdown)
    assert not re.search(r"(?<!\\)[\[`](?!\d)", re.sub(r"(?m)^    .*$", "", markdown))
    answers = markdown.split("## Answers")[1].split("##")[0].strip().splitlines()
    assert len(answers) == 2 + len(HOSTILE)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in answers} == {2 + 4 + 1}


@pytest.fixture(scope="session")
def chromium() -> str:
    """Headless Chromium; installed from Debian's packages where there is none and we may."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None and shutil.which("apt-get") and os.geteuid() == 0:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-q"], check=False, env=environment, timeout=300)
        subprocess.run(["apt-get", "install", "-q", "-y", "--no-install-recommends", "chromium"], check=False, env=environment, timeout=600)
        found = shutil.which("chromium")
    if found is None:
        pytest.skip("no Chromium here, and it could not be installed: apt-get install chromium, as root")
    return found


def test_a_browser_without_network_shows_the_plot_and_every_table(chromium: str, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    path = render_comparison(page(HOSTILE), tmp_path)
    asked: list[str] = []
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        tab = browser.new_context(offline=True).new_page()
        tab.on("request", lambda request: asked.append(request.url))
        faults: list[str] = []
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.goto(path.as_uri())
        assert tab.title() == f"memgraft compare: {HOSTILE[0]}"
        box = tab.locator("figure svg").bounding_box()
        assert box is not None
        assert box["width"] > 300
        assert box["height"] > 200
        assert {"memory", "lora", "retrieval"} <= set(tab.locator("figure svg text").all_text_contents())
        for name, rows in {"settings": 4, "equal": 2, "probes": 3, "answers": len(HOSTILE)}.items():
            assert tab.locator(f"#{name}").is_visible()
            assert tab.locator(f"#{name} tbody tr").count() == rows
        assert tab.locator("#answers tbody th").all_inner_texts()[1] == HOSTILE[1]
        assert tab.locator("script, img, iframe").count() == 0
        browser.close()
    assert asked == [path.as_uri()]
    assert faults == []
