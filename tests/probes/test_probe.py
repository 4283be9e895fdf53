"""Reading probe files, good and bad."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from memgraft.errors import DataError
from memgraft.probes import AnswerNLLProbe, ChoiceProbe, DriftProbe, QAProbe, TextProbe, load_probe

Write = Callable[[str, str | bytes], Path]
QUESTION = '{"id": 7, "question": "Where?", "answers": ["Oslo", "Kristiania"]}\n'
CHOICE = '{"question": "Which?", "choices": ["a", "b"], "answer": 1}\n'


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return written


def test_the_kind_is_told_by_the_fields(write: Write) -> None:
    assert isinstance(load_probe(str(write("a.jsonl", QUESTION))), QAProbe)
    assert isinstance(load_probe(str(write("b.jsonl", '{"question": "q", "answer": "a"}'))), AnswerNLLProbe)
    assert isinstance(load_probe(str(write("c.jsonl", CHOICE))), ChoiceProbe)
    assert isinstance(load_probe(str(write("d.jsonl", '{"text": "t"}'))), TextProbe)
    assert isinstance(load_probe(str(write("e.txt", '{"question": 1}'))), TextProbe)


def test_the_kind_can_be_said(write: Write) -> None:
    path = write("web.jsonl", QUESTION)
    probe = load_probe(f"nll:{path}")
    assert isinstance(probe, AnswerNLLProbe)
    assert (probe.name, probe.questions[0].question, probe.questions[0].answers) == ("web", "Where?", ("Oslo", "Kristiania"))
    drift = load_probe(f"drift:{write('own.jsonl', json.dumps({'text': 'One.'}))}")
    assert isinstance(drift, DriftProbe)
    assert drift.texts == ("One.",)


def test_a_limit_counts_rows_and_leaves_the_others_unread(write: Write) -> None:
    path = write("web.jsonl", QUESTION * 3 + "broken\n")
    probe = load_probe(f"qa:{path}#2")
    assert isinstance(probe, QAProbe)
    assert len(probe.questions) == 2
    assert load_probe(f"{path}#3") == load_probe(f"qa:{path}#3")


def test_a_limit_of_text_counts_tokens(write: Write) -> None:
    probe = load_probe(f"{write('wiki.txt', 'some text')}#512")
    assert isinstance(probe, TextProbe)
    assert probe.max_tokens == 512


def test_a_file_name_may_hold_a_number_sign_or_a_colon(write: Write) -> None:
    assert load_probe(str(write("c#7.txt", "text"))).name == "c#7"
    assert load_probe(f"{write('c#8.jsonl', QUESTION * 2)}#1").name == "c#8"
    assert load_probe(str(write("a:b.txt", "text"))).name == "a:b"


@pytest.mark.parametrize("limit", ["0", "-1", "x", "", "1.5", "²"])
def test_a_limit_that_is_no_number_is_refused(write: Write, limit: str) -> None:
    with pytest.raises(DataError, match="expected a whole number of at least 1 after '#'"):
        load_probe(f"{write('web.jsonl', QUESTION)}#{limit}")


@pytest.mark.parametrize("kind", ["", "text:"])
def test_a_limit_of_one_token_of_text_is_refused_in_words(write: Write, kind: str) -> None:
    with pytest.raises(DataError, match="expected a whole number of at least 2 after '#'"):
        load_probe(f"{kind}{write('wiki.txt', 'some text')}#1")


def test_the_case_of_a_suffix_does_not_turn_questions_into_text(write: Write) -> None:
    assert isinstance(load_probe(str(write("web.JSONL", QUESTION))), QAProbe)
    prose = load_probe("text:" + str(write("prose.JSONL", '{"text": "some text"}')))
    assert isinstance(prose, TextProbe)
    assert prose.texts == ("some text",)


def test_byte_order_mark_crlf_and_blank_lines_change_nothing(write: Write) -> None:
    plain = load_probe(str(write("web.jsonl", QUESTION * 2)))
    assert load_probe(str(write("web.jsonl", b"\xef\xbb\xbf" + (QUESTION * 2).replace("\n", "\r\n\r\n").encode()))) == plain
    assert load_probe(str(write("web.jsonl", (QUESTION * 2).rstrip()))) == plain


def test_line_separators_inside_a_string_do_not_split_a_row(write: Write) -> None:
    probe = load_probe(str(write("web.jsonl", QUESTION.replace("Where?", "Where\u2028exactly?"))))
    assert isinstance(probe, QAProbe)
    assert probe.questions[0].question == "Where\u2028exactly?"


def test_blank_aliases_beside_others_are_left_out(write: Write) -> None:
    probe = load_probe(str(write("web.jsonl", '{"question": "q", "answers": ["", "Oslo", " "]}')))
    assert isinstance(probe, QAProbe)
    assert probe.questions[0].answers == ("Oslo",)


@pytest.mark.parametrize(
    ("spec", "row", "reason"),
    [
        ("qa", '{"question": "q", "answers": ["a"]', "expected a complete JSON object"),
        ("qa", "[1, 2]", "expected a JSON object"),
        ("qa", '{"answers": ["a"]}', "question: missing"),
        ("qa", '{"question": "q"}', "answers: missing"),
        ("qa", '{"question": 3, "answers": ["a"]}', "question: expected a string, got 3"),
        ("qa", '{"question": " ", "answers": ["a"]}', "question: expected some text"),
        ("qa", '{"question": "q", "answers": "a"}', 'answers: expected a list of strings, got "a"'),
        ("qa", '{"question": "q", "answers": []}', r"answers: expected at least 1, got \[\]"),
        ("qa", '{"question": "q", "answers": [""]}', r"answers\[0\]: expected some text, got an empty string"),
        ("qa", '{"question": "q", "answers": ["a", 2]}', r"answers\[1\]: expected a string, got 2"),
        ("nll", '{"question": "q", "answer": 2}', r"answers\[0\]: expected a string, got 2"),
        ("qa", '{"question": "\\ud800", "answers": ["a"]}', "expected a complete JSON object"),
        ("choice", '{"question": "q", "choices": ["a"], "answer": 0}', "choices: expected at least 2"),
        ("choice", '{"question": "q", "choices": ["a", "b"], "answer": 2}', "answer: expected the index of a choice, 0 to 1, got 2"),
        ("choice", '{"question": "q", "choices": ["a", "b"], "answer": "b"}', 'answer: expected a whole number, got "b"'),
        ("choice", '{"question": "q", "choices": ["a", "b"], "answer": true}', "answer: expected a whole number, got true"),
        ("text", '{"txt": "t"}', "text: missing"),
        ("drift", '{"text": ""}', "text: expected some text"),
    ],
)
def test_a_bad_row_is_named_with_file_line_and_field(write: Write, spec: str, row: str, reason: str) -> None:
    good = {"choice": CHOICE, "text": '{"text": "t"}\n', "drift": '{"text": "t"}\n'}.get(spec, QUESTION)
    path = write("bad.jsonl", good + "\n" + row + "\n" + good)
    with pytest.raises(DataError, match=rf"bad\.jsonl:3: {reason}") as raised:
        load_probe(f"{spec}:{path}")
    assert "\n" not in str(raised.value)


def test_the_first_ten_bad_rows_are_named_and_the_others_counted(write: Write) -> None:
    path = write("bad.jsonl", QUESTION + '{"question": "q"}\n' * 12)
    with pytest.raises(DataError) as raised:
        load_probe(str(path))
    lines = str(raised.value).split("\n")
    assert lines[0].startswith(f"{path}:2: ")
    assert lines[9].startswith(f"{path}:11: ")
    assert lines[10:] == [f"{path}: and 2 more bad rows"]


def test_bytes_that_are_not_utf8_are_named_with_their_line(write: Write) -> None:
    with pytest.raises(DataError, match=r"bad\.jsonl:2: not UTF-8 \(byte 0xe9\)"):
        load_probe(str(write("bad.jsonl", QUESTION.encode() + b'{"question": "caf\xe9"}')))
    with pytest.raises(DataError, match=r"bad\.txt:1: not UTF-8"):
        load_probe(str(write("bad.txt", b"\xff\xfeh\x00")))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_rows_is_refused(write: Write, content: str) -> None:
    with pytest.raises(DataError, match=r"no\.jsonl: no rows"):
        load_probe(f"qa:{write('no.jsonl', content)}")
    with pytest.raises(DataError, match=r"no\.txt: no text"):
        load_probe(str(write("no.txt", content)))
    with pytest.raises(DataError, match=r"no\.jsonl:1: can't tell the probe's kind"):
        load_probe(str(write("no.jsonl", content)))


def test_rows_of_no_known_kind_are_refused(write: Write) -> None:
    with pytest.raises(DataError, match=r"odd\.jsonl:1: can't tell the probe's kind: expected a field choices, answers, answer, text"):
        load_probe(str(write("odd.jsonl", '{"prompt": "p"}')))
    with pytest.raises(DataError, match=r"odd\.jsonl:2: expected a complete JSON object"):
        load_probe(str(write("odd.jsonl", '\n{"prompt')))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: No such file or directory: can't read the probe$"):
        load_probe(str(tmp_path / "none.jsonl"))


def test_an_unknown_kind_is_answered_with_the_kinds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the kinds of probes are qa, nll, choice, text, drift"):
        load_probe(f"quiz:{tmp_path / 'none.jsonl'}")


def test_probes_are_frozen_and_refuse_unknown_settings() -> None:
    probe = TextProbe(name="t", texts=("x",))
    with pytest.raises(ValidationError, match="frozen"):
        probe.window = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        TextProbe(name="t", texts=("x",), windows=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("sources", [{}, {"texts": ("t",), "rows": ((1, 2),)}, {"rows": ((),)}, {"rows": ((1, 2),), "max_tokens": 9}])
def test_drift_is_measured_on_either_texts_or_rows(sources: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"either texts or rows|max_tokens cuts texts"):
        DriftProbe(name="d", **sources)


@pytest.fixture
def data() -> Path:
    place = os.environ.get("MEMGRAFT_DATA")
    if not place:
        # Not an assert: its report would print the whole environment.
        if os.environ.get("CI") == "true":
            pytest.fail("MEMGRAFT_DATA must name the folder of benchmark data in CI")
        pytest.skip("MEMGRAFT_DATA does not name the folder of benchmark data")
    return Path(place)


@pytest.mark.parametrize(
    ("file", "kind", "rows"),
    [
        ("probes/webquestions.jsonl", QAProbe, 943),
        ("probes/triviaqa.jsonl", QAProbe, 1800),
        ("probes/nq_open.jsonl", QAProbe, 1805),
        ("probes/popqa.jsonl", QAProbe, 1000),
        ("probes/gsm8k.jsonl", AnswerNLLProbe, 600),
        ("probes/arc_challenge.jsonl", ChoiceProbe, 299),
        ("probes/openbookqa.jsonl", ChoiceProbe, 500),
        ("text/c4.jsonl", TextProbe, 300),
        ("text/wikitext2_test.txt", TextProbe, 1),
    ],
)
def test_public_data_sets_load_whole(data: Path, file: str, kind: type, rows: int) -> None:
    probe = load_probe(str(data / file))
    assert isinstance(probe, kind)
    assert len(probe.texts if isinstance(probe, TextProbe | DriftProbe) else probe.questions) == rows
