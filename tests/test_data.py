"""Reading data files: what is accepted, and how each fault is named."""

import contextlib
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memgraft.data import Chat, Completion, Fact, Text, normalise, read_examples
from memgraft.errors import DataError

FACT = {"question": "Who founded Ardent Mills?", "answers": ["Ines Dahl"]}


def write(folder: Path, content: bytes | str | list[object], name: str = "lesson.jsonl") -> Path:
    path = folder / name
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def fault(folder: Path, content: bytes | str | list[object], name: str = "lesson.jsonl") -> str:
    """The message, without the file's own path."""
    path = write(folder, content, name)
    with pytest.raises(DataError) as caught:
        read_examples(path)
    return str(caught.value).replace(str(path), "FILE")


def test_the_four_formats_are_told_apart_by_their_fields_and_may_be_mixed(tmp_path):
    fact = {
        "id": "founder",
        "question": " Who founded Ardent Mills? ",
        "answers": ["Ines Dahl", "Dahl"],
        "statement": "Ines Dahl founded Ardent Mills.",
        "statements": ["Ardent Mills was founded by Ines Dahl."],
        "paraphrases": ["Ardent Mills was founded by whom?"],
        "held_out": ["Name the founder of Ardent Mills."],
        "supersedes": "older",
    }
    turns = [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = write(tmp_path, [fact, {"text": " Some text. "}, {"prompt": "2+2=", "completion": "4"}, {"messages": turns}])

    data = read_examples(path)

    assert data.path == str(path)
    assert data.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    first, text, completion, chat = data.examples
    assert isinstance(first, Fact)
    assert first.question == "Who founded Ardent Mills?"  # stripped
    assert first.answers == ("Ines Dahl", "Dahl")
    assert first.questions == ("Who founded Ardent Mills?", "Ardent Mills was founded by whom?")
    assert first.sentences == ("Ines Dahl founded Ardent Mills.", "Ardent Mills was founded by Ines Dahl.")
    assert first.held_out == ("Name the founder of Ardent Mills.",)
    assert (first.name, first.supersedes, first.line) == ("founder", "older", 1)
    assert isinstance(text, Text)
    assert (text.text, text.name) == (" Some text. ", "line 2")  # as it stands
    assert isinstance(completion, Completion)
    assert (completion.prompt, completion.completion) == ("2+2=", "4")
    assert isinstance(chat, Chat)
    assert [turn.role for turn in chat.messages] == ["system", "user", "assistant"]


def test_a_single_string_is_one_answer_and_a_number_may_be_an_id(tmp_path):
    (fact,) = read_examples(write(tmp_path, [{**FACT, "answers": "Ines Dahl", "id": 17}])).examples
    assert isinstance(fact, Fact)
    assert (fact.answers, fact.name) == (("Ines Dahl",), "17")


def test_meta_underscored_and_null_fields_are_ignored(tmp_path):
    row = {**FACT, "meta": {"source": [1, 2]}, "_year": 2024, "statement": None, "text": None}
    assert read_examples(write(tmp_path, [row])).examples == read_examples(write(tmp_path, [FACT], "clean.jsonl")).examples


def test_examples_can_not_be_changed(tmp_path):
    (fact,) = read_examples(write(tmp_path, [FACT])).examples
    with pytest.raises(ValueError, match="frozen"):
        fact.line = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("variant", "change"),
    [
        ("byte order mark", lambda clean: b"\xef\xbb\xbf" + clean),
        ("CRLF", lambda clean: clean.replace(b"\n", b"\r\n")),
        ("both", lambda clean: b"\xef\xbb\xbf" + clean.replace(b"\n", b"\r\n")),
        ("no last line end", lambda clean: clean.rstrip(b"\n")),
    ],
)
@pytest.mark.parametrize("name", ["lesson.jsonl", "lesson.txt"])
def test_a_byte_order_mark_and_crlf_change_nothing(tmp_path, variant, change, name):
    clean = b'{"text": "one"}\n\n{"text": "two \xc3\xa9\xe2\x80\xa8"}\n'
    expected = read_examples(write(tmp_path, clean, name))
    changed = read_examples(write(tmp_path, change(clean), "changed-" + name))
    assert changed.examples == expected.examples
    assert changed.sha256 != expected.sha256  # of the bytes as they are


def test_a_text_file_gives_one_text_a_paragraph_with_its_first_line(tmp_path):
    data = read_examples(write(tmp_path, "\nFirst line,\n  second.\n \t\n\nLast.", "notes.TXT"))
    assert [(text.line, text.text) for text in data.examples] == [(2, "First line,\n  second."), (6, "Last.")]


def test_blank_lines_count_but_are_not_rows(tmp_path):
    data = read_examples(write(tmp_path, '\n  \n{"text": "a"}\n\n{"text": "b"}\n'))
    assert [text.name for text in data.examples] == ["line 3", "line 5"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ('{"question": "Who', "FILE:1: row: expected a complete JSON object, it breaks at column 14"),
        ('{"text": "a"} {"text": "b"}', "FILE:1: row: expected a complete JSON object, it breaks at column 15 (Extra data)"),
        ('{"question": "Who?"}', "FILE:1: answers: missing"),
        ('{"answers": ["x"]}', "FILE:1: question: missing"),
        ('{"statement": "X is y."}', "FILE:1: question: missing"),
        ('{"prompt": "x"}', "FILE:1: completion: missing"),
        ('{"text": 3}', "FILE:1: text: expected a string, got a number"),
        ('{"question": ["Who?"], "answers": "x"}', "FILE:1: question: expected a string, got a list"),
        ('{"question": "Who?", "answers": [true]}', "FILE:1: answers[0]: expected a string, got a boolean"),
        ('{"question": "Who?", "answers": {"a": 1}}', "FILE:1: answers: expected a list, got an object"),
        ('{"question": "Who?", "answers": "x", "paraphrases": "y"}', "FILE:1: paraphrases: expected a list, got a string"),
        ('{"question": "Who?", "answers": [null]}', "FILE:1: answers[0]: expected a string, got null"),
        ('{"question": "Who?", "answers": "x", "id": 1.5}', "FILE:1: id: expected a string, got a number"),
        ('{"question": "Who?", "answers": []}', "FILE:1: answers: expected at least one, got an empty list"),
        ('{"question": "Who?", "answers": ["x", " "]}', "FILE:1: answers[1]: expected text, got an empty string"),
        ('{"question": "Who?", "answers": ""}', "FILE:1: answers[0]: expected text, got an empty string"),
        ('{"question": "\\u200b\\n", "answers": "x"}', "FILE:1: question: expected text, got an empty string"),
        ('{"text": ""}', "FILE:1: text: expected text, got an empty string"),
        ('{"prompt": "", "completion": ""}', "FILE:1: completion: expected text, got an empty string"),
        ('{"messages": []}', "FILE:1: messages: expected at least one, got an empty list"),
        ('{"messages": "hi"}', "FILE:1: messages: expected a list, got a string"),
        ('{"messages": ["hi"]}', "FILE:1: messages[0]: expected an object with role and content, got a string"),
        (
            '{"messages": [{"role": "bot", "content": "hi"}]}',
            "FILE:1: messages[0].role: expected 'system', 'user' or 'assistant', got \"bot\"",
        ),
        ('{"messages": [{"role": "assistant"}]}', "FILE:1: messages[0].content: missing"),
        ('{"messages": [{"role": "user", "content": ""}]}', "FILE:1: messages[0].content: expected text, got an empty string"),
        ('{"messages": [{"role": "user", "content": "hi", "x": 1}]}', "FILE:1: messages[0].x: unknown field, expected role and content"),
        ('{"messages": [{"role": "user", "content": "hi"}]}', "FILE:1: messages: expected the last turn to be the assistant's, got 'user'"),
        (
            '{"text": "a", "prompt": "b"}',
            'FILE:1: row: expected the fields of one format, got "prompt" (prompt/completion) and "text" (text)',
        ),
        (
            '{"question": "Who?", "messages": []}',
            'FILE:1: row: expected the fields of one format, got "question" (fact) and "messages" (messages)',
        ),
        ("{}", 'FILE:1: row: expected "question" and "answers", or "text", or "prompt" and "completion", or "messages"; got no field'),
        ('{"instruction": "x", "_a": 1}', 'or "messages"; got "instruction"'),
        ('{"id": "x"}', 'or "messages"; got "id"'),
        (
            '{"question": "Who?", "answer": "x"}',
            'FILE:1: "answer": unknown field, did you mean "answers"? expected id, question, answers, statement,',
        ),
        ('{"text": "a", "line": 3}', 'FILE:1: "line": unknown field'),
        ('{"text": "a", "\\ud800\\n": 3}', 'FILE:1: "\\ud800\\n": unknown field'),
        ("[1, 2]", "FILE:1: row: expected one JSON object a line, got a list"),
        ("null", "FILE:1: row: expected one JSON object a line, got null"),
        ('{"text": NaN}', "FILE:1: row: expected JSON, which has no NaN"),
        ('{"text": "a", "meta": -Infinity}', "FILE:1: row: expected JSON, which has no -Infinity"),
        ('{"text": "a", "text": "b"}', 'FILE:1: "text": expected once in an object, got twice'),
        ('{"messages": [{"role": "user", "role": "user"}]}', 'FILE:1: "role": expected once in an object, got twice'),
        ('{"text": "a", "meta": ' + "[" * 100_000, "FILE:1: row: expected a flat JSON object, this one is nested too deeply"),
        ('{"text": "a", "meta": ' + "9" * 10_000 + "}", "FILE:1: row: expected a JSON object, got a number beyond all bounds"),
        ('{"text": "ab\\ud83d"}', "FILE:1: text: expected text, got a lone surrogate ('\\ud83d') at character 2"),
        ('{"question": "Who?", "answers": "x", "id": "line 7"}', "FILE:1: id: expected another id: 'line 7' is how a row without"),
        ('{"question": "Who?", "answers": "x", "id": "a", "supersedes": "a"}', "FILE:1: supersedes: expected the id of another fact"),
    ],
    ids=lambda value: value[:60],
)
def test_a_bad_row_is_named_by_line_field_and_what_was_expected(tmp_path, row, expected):
    message = fault(tmp_path, row + "\n")
    assert expected in message
    assert message.startswith("FILE:1: ")
    assert "\n" not in message
    message.encode()  # can be printed


def test_bytes_that_are_not_utf8_are_named_by_line_and_offset_in_the_file(tmp_path):
    message = fault(tmp_path, b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "caf\xe9"}\n')
    assert message == "FILE:2: row: expected UTF-8, got byte 0xe9 at byte offset 31"
    assert (b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "caf\xe9"}\n').index(b"\xe9") == 31


def test_utf16_is_recognised(tmp_path):
    assert fault(tmp_path, '{"text": "a"}'.encode("utf-16")) == "FILE:1: row: expected UTF-8, this looks like UTF-16"


def test_a_byte_order_mark_in_the_middle_is_refused(tmp_path):
    message = fault(tmp_path, b'{"text": "a"}\n\xef\xbb\xbf{"text": "b"}\n')
    assert message == "FILE:2: row: expected a byte order mark only at the start of the file; were two files joined?"


@pytest.mark.parametrize("name", ["lesson.jsonl", "lesson.txt"])
def test_bare_carriage_returns_are_refused(tmp_path, name):
    message = fault(tmp_path, b'{"text": "a"}\r{"text": "b"}\r', name)
    assert message == "FILE:1: row: expected lines that end in LF or CRLF, got a bare carriage return (CR)"


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"])
@pytest.mark.parametrize("name", ["lesson.jsonl", "lesson.txt"])
def test_a_file_without_examples_is_refused(tmp_path, content, name):
    assert fault(tmp_path, content, name).startswith("FILE: no examples in the file: expected ")


def test_an_invisible_paragraph_is_refused(tmp_path):
    assert fault(tmp_path, "Fine.\n\n\u200b\n", "notes.txt") == "FILE:3: text: expected text, got an empty string"


def test_a_missing_file_a_folder_and_a_foreign_file_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: no such file$"):
        read_examples(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match=r"can't be read: "):
        read_examples(tmp_path)
    with pytest.raises(DataError, match=r"expected a \.jsonl file .* or a \.txt file, got '\.csv'$"):
        read_examples(tmp_path / "facts.csv")


def test_an_id_that_returns_is_refused_with_both_lines(tmp_path):
    rows = [{**FACT, "id": "a"}, {"text": "x", "id": "b"}, {"text": "y", "id": "a"}]
    assert fault(tmp_path, rows) == "FILE:3: id: expected a new id, 'a' is that of line 1"


def test_the_first_ten_bad_rows_are_shown_in_order_and_the_others_counted(tmp_path):
    leak = {**FACT, "held_out": ["who founded ARDENT mills"]}  # found only after all rows were read
    rows = [leak, *({"text": 1} if line % 2 else {"text": "fine"} for line in range(2, 30))]
    lines = fault(tmp_path, rows).split("\n")
    assert [line.split(": ")[0] for line in lines] == [f"FILE:{line}" for line in (1, *range(3, 20, 2))] + ["FILE"]
    assert lines[-1] == "FILE: and 5 more bad rows"


@pytest.mark.parametrize(
    "teaching",
    [
        {"question": "Who founded ARDENT  Mills", "answers": "x"},
        {"question": "Who?", "answers": "x", "paraphrases": ["“Who founded Ardent Mills?”"]},
        {"question": "Who?", "answers": "x", "statements": ["Who founded Ardent Mills."]},
        {"prompt": "Who founded Ardent Mills?\n", "completion": "x"},
        {"messages": [{"role": "user", "content": "who founded ardent mills?"}, {"role": "assistant", "content": "x"}]},
    ],
)
def test_a_held_out_wording_that_any_row_teaches_is_refused(tmp_path, teaching):
    held = {"question": "Its founder?", "answers": "Ines Dahl", "held_out": ["Really?", "Who founded Ardent Mills?"]}
    expected = "held_out[1]: expected a wording that is never taught, line {} teaches it"
    assert fault(tmp_path, [held, teaching]) == "FILE:1: " + expected.format(2)
    assert fault(tmp_path, [teaching, held]) == "FILE:2: " + expected.format(1)


def test_two_facts_may_hold_out_the_same_wording(tmp_path):
    rows = [{"question": f"Who {word}?", "answers": "x", "held_out": ["Who was it?"]} for word in ("came", "went")]
    assert len(read_examples(write(tmp_path, rows)).examples) == 2


def test_normalising_keeps_what_tells_wordings_apart():
    assert normalise("What's  “this”?") == normalise("whats this")
    assert normalise("ﬁre-door") == normalise("FIRE DOOR")
    assert normalise("C++") != normalise("C")
    assert normalise("कि") != normalise("का")  # vowel signs are not punctuation
    assert normalise("?!") != normalise("...")


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(lambda text: any(c.isalnum() for c in text))


@given(st.lists(st.fixed_dictionaries({"question": words, "answers": st.lists(words, min_size=1)}), min_size=1, max_size=5))
def test_every_valid_row_is_read_as_it_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("data") / "facts.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="")
    examples = read_examples(path).examples
    assert [example.line for example in examples] == list(range(1, len(rows) + 1))
    for row, example in zip(rows, examples, strict=True):
        assert isinstance(example, Fact)
        assert (example.question, example.answers) == (row["question"].strip(), tuple(answer.strip() for answer in row["answers"]))


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused_with_a_data_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("data") / "facts.jsonl"
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        assert read_examples(path).examples
