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

from memgraft.baselines import AdamW, LoRA, Retrieval
from memgraft.comparison.methods import AnyMethod, Base, Memory, family, settings
from memgraft.comparison.summary import summarise
from memgraft.report import ComparisonPage, comparison_html, comparison_page, render_comparison
from memgraft.report.markdown import comparison_markdown, plain

HOSTILE = [
    "<script>document.title='owned'</script>",
    '"><img src="http://evil.example/x" onerror="document.title=1">',
    "{{ 7 * 7 }} {% for x in y %}",
    "| a | b |\n|---|---|",
    "[click](http://evil.example) ![x](http://evil.example/y.png)",
    "]]></style></title></svg><iframe src=//evil.example>",
    "`code` **bold** # heading",
]


def run(method: AnyMethod, learned: float, nll: float, answers: list[str]) -> dict[str, Any]:
    return {
        "method": family(method),
        "settings": settings(method),
        "seed": 0,
        "answers": answers,
        "scores": {
            "learned": {"metric": "F1", "values": [learned] * len(answers)},
            "prose": {"metric": "text NLL", "values": [3 + nll, 2 + nll, 2.5 + 1.1 * nll], "weights": [9.0, 9.0, 9.0]},
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
        environment="a machine",
    )


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
        (0.95, 0.01, "mixed", "no clear difference"),
        (0.5, 0.5, "good", "No rival that trains learned as much; the best of them, lora, reached 0.50, and has +0.5"),
        (0.5, 0.001, "mixed", "less than the memory"),
    ],
)
def test_the_tone_is_good_only_where_the_memory_forgets_less(learned: float, nll: float, tone: str, words: str) -> None:
    texts = ["a"] * 20
    runs = [run(Base(), 0.0, 0.0, texts), run(Memory(), 0.9, 0.01, texts), run(LoRA(), learned, nll, texts)]
    made = comparison_page(summarise(runs), title="t", facts=[(text, text) for text in texts], runs=runs)
    assert made.tone == tone
    assert words in made.verdict


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
