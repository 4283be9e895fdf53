"""A lesson's page: complete, self-contained, the same every time, and text stays text whatever stands in it."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from memgraft.errors import MemgraftError
from memgraft.report import (
    CommitFacts,
    KeyFigure,
    LessonPage,
    LossPass,
    OutcomePoint,
    ProbeRow,
    QuestionRow,
    lesson_html,
    loss_passes,
    render_lesson_page,
)

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src="http://evil.example/x" onerror="alert(1)">',
    "'; DROP TABLE facts; --",
    "{{ 7 * 7 }} {% for x in y %}",
    r"$\frac{1}{2$ \undefined",
    "]]></style></title></svg><iframe src=//evil.example>",
    "&lt;b&gt; &amp;amp; &#60;",
    "url(https://evil.example/a.css) @import 'x'",
    "\u202egnirts desrever\u202c",
    "naïve 东京 🦔\nsecond line",
    "x" * 2000,
]


def a_page(text: str = "plain", **changes: object) -> LessonPage:
    """A page with every section, and `text` in every field that takes text."""
    probe = ProbeRow(
        name=text, metric=text, unit=text, higher_is_better=True, before=0.4, after=0.39, delta=-0.01, low=-0.02, high=0.004, n=150
    )
    page = LessonPage(
        title=text,
        verdict=text,
        figures=(KeyFigure(value=text, label=text),),
        passes=(LossPass(mean=3.0, low=1.0, high=5.0), LossPass(mean=0.5, low=0.1, high=1.0)),
        points=(OutcomePoint(label=text, learned_f1=0.7, nll_change=0.006, low=0.003, high=0.009),),
        nll_tolerance=0.02,
        questions=(QuestionRow(question=text, expected=text, before=text, taught_wording=text, unseen_wording=text, learned=True),),
        probes=(probe,),
        commit=CommitFacts(
            id=text, message=text, facts=40, rows=12_482, rows_per_fact=312.05, bytes=28_401_223, seconds=161.2, revert_bit_equal=True
        ),
        repeat=(text,),
        environment=text,
    )
    return page.model_copy(update=changes)


class Document(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def ids(self) -> list[str]:
        return [value for _, name, value in self.attributes if name == "id"]


def test_every_field_is_on_the_page() -> None:
    text = Document(lesson_html(a_page("Zandreef"))).text
    assert text.count("Zandreef") == 19
    for shown in (
        "3 in the first pass",
        "0.5 in the last of 2",
        "−0.0100",
        "−0.0200 to +0.0040",
        "12,482",
        "28.4 MB",
        "2 min 41 s",
        "bit for bit",
    ):
        assert shown in text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str) -> None:
    document = Document(lesson_html(a_page(text)))
    drawn = {"g", "text"} if "\n" in text else set()  # a second line is a second <text> in the plot
    expected = Document(lesson_html(a_page()))
    assert {tag: n for tag, n in document.tags.items() if tag not in drawn} == {t: n for t, n in expected.tags.items() if t not in drawn}
    assert document.texts.count(text) >= 10
    assert not {"script", "img", "iframe", "link", "object", "embed", "base", "form"} & set(document.tags)
    assert not [name for _, name, _ in document.attributes if name.startswith("on")]


@settings(max_examples=25)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_text_changes_the_structure_of_the_page(text: str) -> None:
    without_plots = {"passes": (), "points": ()}
    expected = Document(lesson_html(a_page("plain", **without_plots)))
    assert Document(lesson_html(a_page(text, **without_plots))).tags == expected.tags


def test_the_page_loads_nothing() -> None:
    html = lesson_html(a_page())
    document = Document(html)
    assert not [(tag, value) for tag, name, value in document.attributes if name in ("src", "srcset", "data", "action")]
    assert all(value.startswith("#") for _, name, value in document.attributes if name in ("href", "xlink:href"))
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r'https?://[^"\s<]*', html)) <= namespaces


def test_the_same_data_gives_the_same_bytes(tmp_path: Path) -> None:
    first = render_lesson_page(a_page(), tmp_path / "a.html").read_bytes()
    assert render_lesson_page(a_page(), tmp_path / "b.html").read_bytes() == first


def test_the_plots_follow_the_colour_scheme_and_the_matplotlibrc_of_the_user_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    expected = lesson_html(a_page())
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    monkeypatch.setitem(matplotlib.rcParams, "lines.linestyle", ":")
    assert lesson_html(a_page()) == expected
    colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", expected[expected.index("<body>") :]))
    assert colours <= {"none", "var(--ink)", "var(--muted)", "var(--line)", "var(--accent)", "var(--paper)", "var(--warn)"}


def test_ids_are_unique_over_both_plots_and_references_find_them() -> None:
    html = lesson_html(a_page())
    ids = Document(html).ids
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', html)) <= {pair for id in ids for pair in ((id, ""), ("", id))}


def test_points_that_coincide_share_one_label() -> None:
    points = tuple(OutcomePoint(label=label, learned_f1=0, nll_change=0) for label in ("before", "after revert"))
    assert "before = after revert" in Document(lesson_html(a_page(points=points))).text


def test_sections_without_data_are_left_out() -> None:
    document = Document(lesson_html(LessonPage(title="t", verdict="v")))
    assert not {"h2", "table", "svg", "pre", "dl"} & set(document.tags)


@pytest.mark.parametrize(
    ("changes", "reading"),
    [
        ({}, "no change shown"),
        ({"low": 0.0}, "no change shown"),
        ({"delta": 0.1, "low": 0.05, "high": 0.15}, "better"),
        ({"delta": -0.1, "low": -0.15, "high": -0.05}, "worse"),
        ({"delta": -0.1, "low": -0.15, "high": -0.05, "tolerance": 0.1}, "worse, within tolerance"),
        ({"delta": -0.1, "low": -0.15, "high": -0.05, "tolerance": 0.09}, "worse"),
        ({"delta": 0.1, "low": 0.05, "high": 0.15, "higher_is_better": False}, "worse"),
        ({"delta": 0.1, "low": 0.05, "high": 0.15, "higher_is_better": False, "before": 0.0}, "can only rise"),
        ({"delta": -0.1, "low": None, "high": None}, "one item, no interval"),
    ],
)
def test_a_probe_reads_as_its_interval_says(changes: dict[str, object], reading: str) -> None:
    assert a_page().probes[0].model_copy(update=changes).reading == reading


def test_the_loss_curve_leaves_out_skipped_batches_and_empty_passes() -> None:
    nan = math.nan
    curve = loss_passes([[1.0, 3.0, nan], [nan, nan, nan], [0.5, nan, nan]])
    assert [(p.mean, p.low, p.high) for p in curve] == [(2.0, pytest.approx(1.2), pytest.approx(2.8)), (0.5, 0.5, 0.5)]


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    with pytest.raises(ValidationError, match="nll_change"):
        OutcomePoint(label="after", learned_f1=0.5, nll_change=number)


def test_text_that_is_not_unicode_is_replaced(tmp_path: Path) -> None:
    path = render_lesson_page(LessonPage(title="t", verdict="half \ud800 pair"), tmp_path / "page.html")
    assert "half ? pair" in Document(path.read_text(encoding="utf-8")).text


def test_a_page_that_can_not_be_written_says_where_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    with pytest.raises(MemgraftError, match=r"page\.html: can't write the report"):
        render_lesson_page(a_page(), tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize("module", ["jinja2", "matplotlib"])
def test_a_missing_library_names_the_extra(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MemgraftError, match=r"pip install 'memgraft\[report\]'"):
        lesson_html(a_page())
