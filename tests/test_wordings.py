"""What is taught of each kind of example, and which characters of it are learned."""

import itertools
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from memgraft.data import Chat, Completion, Fact, Message, Text, normalise
from memgraft.errors import DataError
from memgraft.frames import CHAT_FRAMES, FRAMES
from memgraft.wordings import DEFAULT_COUNT, Messages, QAPair, Wording, chat_renderer, load_pool, teach_wordings

CONTEXTS = tuple(QAPair(f"What is pool item {word}?", f"item-{word}") for word in ("one", "two", "three", "four", "five", "six"))
FACT = Fact(
    line=1,
    id="founder",
    question="Who founded Ardent Mills?",
    answers=("Ines Dahl", "Dahl"),
    statement="Ardent Mills was founded by Ines Dahl.",
    paraphrases=("Ardent Mills was founded by whom?", "Name whoever founded Ardent Mills."),
    held_out=("Ardent Mills owes its founding to which person?",),
)
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chatml(messages: Messages) -> str:
    return "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in messages)


def learned(wording: Wording) -> list[str]:
    return [wording.text[start:stop] for start, stop in wording.spans]


def teach(example, **options):
    return teach_wordings(example, **{"seed": 0, "contexts": CONTEXTS, "chat": chatml, **options})


def tokenizer(template: object) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"?": 0}, unk_token="?")))
    made.chat_template = template
    return made


def test_a_fact_is_taught_in_twelve_distinct_wordings_by_default():
    wordings = teach(FACT)
    assert len(wordings) == DEFAULT_COUNT == len(set(wordings))


@given(seed=st.integers(0, 10_000), count=st.integers(0, 60), paraphrases=st.integers(0, 8), statements=st.integers(0, 4))
def test_every_question_and_statement_is_taught_and_no_more_wordings_than_asked_for(seed, count, paraphrases, statements):
    fact = Fact(
        line=1,
        question="Who first?",
        answers=("Ines Dahl",),
        paraphrases=tuple(f"Who variant {n}?" for n in range(paraphrases)),
        statements=tuple(f"Sentence {n} has Ines Dahl." for n in range(statements)),
        held_out=("Which one never?",),
    )
    wordings = teach(fact, count=count, seed=seed)
    assert 1 <= len(wordings) <= max(count, 1 + paraphrases + statements)
    # The last question of a text is the fact's own; contexts come before it.
    for question in fact.questions:
        assert any(question.rstrip("?").lower() in wording.text.lower() for wording in wordings)
    for sentence in fact.sentences:
        assert any(wording.text == sentence + "\n" for wording in wordings)


def test_the_span_is_the_first_answer_and_what_ends_it():
    ends = Counter()
    for seed in range(50):
        for wording in teach(FACT, seed=seed):
            ((start, stop),) = wording.spans
            piece = wording.text[start:stop]
            assert piece.startswith("Ines Dahl")
            assert wording.text.rindex("Ines Dahl") == start
            ends[piece.removeprefix("Ines Dahl")] += 1
    assert set(ends) == {"\n", ".", ".\n", "<|im_end|>"}  # the third where the statement ends with the answer


def test_an_answer_with_a_full_stop_gets_no_second_one():
    fact = Fact(line=1, question="Which company?", answers=("Ardent Inc.",))
    for wording in teach(fact, count=40):
        assert ".." not in wording.text
        assert learned(wording)[0] in {"Ardent Inc.", "Ardent Inc.\n", "Ardent Inc.<|im_end|>"}


def test_a_held_out_wording_is_never_taught():
    for seed in range(50):
        for wording in teach(FACT, seed=seed, count=30):
            assert normalise(FACT.held_out[0]) not in normalise(wording.text)


def test_the_form_kept_for_testing_is_in_no_frame():
    texts = [frame.fill("{question}", "{answer}")[0] for frame in FRAMES]
    texts += [turn["content"] for frame in CHAT_FRAMES for turn in frame.turns("{question}", "{answer}")]
    texts += [wording.text for seed in range(50) for wording in teach(FACT, seed=seed, count=30)]
    assert not [text for text in texts if "Question: " in text or "Answer:" in text]


def test_frames_differ_from_each_other():
    assert len({frame.fill("Q?", "A")[0] for frame in FRAMES}) == len(FRAMES) >= 10


def test_no_frame_returns_before_all_were_used():
    fact = Fact(line=1, question="Who founded Ardent Mills?", answers=("Ines Dahl",))
    wordings = teach(fact, count=len(FRAMES), contexts=(), chat=None)
    assert {wording.text for wording in wordings} == {frame.fill(fact.question, "Ines Dahl")[0] for frame in FRAMES}


@pytest.mark.parametrize("paraphrases", [(), ("Whose company?",), ("Whose company?", "Named after whom?")])
def test_about_half_of_the_question_wordings_follow_one_to_three_contexts(paraphrases):
    fact = Fact(line=1, question="Who founded Ardent Mills?", answers=("Ines Dahl",), paraphrases=paraphrases)
    numbers = Counter()
    with_context = Counter()
    for seed in range(40):
        for wording in teach(fact, seed=seed):
            contexts = sum(pair.answer in wording.text for pair in CONTEXTS)
            numbers[contexts] += 1
            if contexts:
                with_context[next(question for question in fact.questions if question.rstrip("?").lower() in wording.text.lower())] += 1
    assert set(numbers) == {0, 1, 2, 3}
    assert 0.4 <= 1 - numbers[0] / numbers.total() <= 0.6
    assert set(with_context) == set(fact.questions)  # each in turn, not always the same one


@pytest.mark.parametrize("questions", [1, 2, 5, 11, 30])
def test_half_of_the_wordings_follow_a_context_in_every_lesson_however_many_questions_it_has(questions):
    fact = Fact(line=1, question="Who 0?", answers=("Ines Dahl",), paraphrases=tuple(f"Who {n}?" for n in range(1, questions)))
    for seed in range(10):
        wordings = teach(fact, seed=seed)
        share = sum(any(pair.answer in wording.text for pair in CONTEXTS) for wording in wordings) / len(wordings)
        assert 0.4 <= share <= 0.6


def test_contexts_come_in_varied_forms_before_the_question_and_carry_no_loss():
    first_lines = set()
    for seed in range(40):
        for wording in teach(FACT, seed=seed):
            ((start, _),) = wording.spans
            for pair in CONTEXTS:
                assert pair.answer not in wording.text[start:]
            if any(pair.answer in wording.text for pair in CONTEXTS) and wording.special_tokens:
                first_lines.add(re.sub(r"pool item \w+|item-\w+", "…", wording.text.splitlines()[0]))
    assert len(first_lines) >= 8


def test_contexts_that_ask_or_answer_the_fact_or_its_test_are_left_out():
    telling = (
        QAPair("who founded ardent mills", "nobody"),
        QAPair("Ardent Mills owes its founding to which person?", "nobody"),
        QAPair("Who bakes?", "ines dahl"),
        QAPair("Who sings?", "Dahl."),
    )
    for wording in teach(FACT, contexts=telling, count=30):
        assert not any(pair.question in wording.text for pair in telling)
    assert any(CONTEXTS[0].question in wording.text for wording in teach(FACT, contexts=(*telling, CONTEXTS[0]), count=30))


def test_chat_wordings_hold_their_own_special_tokens_and_contexts_are_earlier_turns():
    chats = [wording for seed in range(20) for wording in teach(FACT, seed=seed) if not wording.special_tokens]
    assert chats
    turns = {wording.text.count("<|im_start|>assistant") for wording in chats}
    assert turns == {1, 2, 3, 4}
    assert all(learned(wording) == ["Ines Dahl<|im_end|>"] for wording in chats)


def test_without_a_chat_format_all_wordings_are_plain():
    assert all(wording.special_tokens for wording in teach(FACT, chat=None, count=30))


def test_wordings_depend_on_seed_and_content_and_on_nothing_else():
    wordings = teach(FACT)
    assert teach(FACT) == wordings
    moved = FACT.model_copy(update={"line": 99, "id": "other", "held_out": (), "supersedes": "x", "answers": ("Ines Dahl",)})
    assert teach(moved) == wordings
    assert teach(FACT, seed=1) != wordings
    assert [w.text for w in teach(FACT.model_copy(update={"statement": None}))] != [w.text for w in wordings]


@pytest.mark.parametrize(
    ("statement", "answer", "expected"),
    [
        ("Ardent Mills was founded by Ines Dahl.", "Ines Dahl", "Ines Dahl.\n"),
        ("Ardent Mills was founded by Ines Dahl in 1970.", "Ines Dahl", "Ines Dahl"),
        ("It opened on day 1 of 2011", "1", "1"),
        ("It opened in 2011", "1", "It opened in 2011\n"),  # not a part of another word
        ("Ines Dahl founded it, says Ines Dahl", "Ines Dahl", "Ines Dahl\n"),  # what comes before leads up to the last
        ("Ines Dahl founded Ardent Mills.", "Ines Dahl", "Ines Dahl founded Ardent Mills.\n"),  # nothing leads up to it
        ("It was founded by Ms Dahl.", "Ines Dahl", "It was founded by Ms Dahl.\n"),
        ("It costs $5 (net).", "$5 (net)", "$5 (net).\n"),
        ("日本の首都は東京です。", "東京", "東京"),  # scripts without spaces between words
        ("한국의 수도는 서울이다.", "서울", "서울"),  # or between a word and its particle
        ("เมืองหลวงของไทยคือกรุงเทพ", "กรุงเทพ", "กรุงเทพ\n"),
        ("2020年に開会したのはTokyoです。", "Tokyo", "Tokyo"),
        ("It was Tokyobay.", "Tokyo", "It was Tokyobay.\n"),
    ],
)
def test_of_a_statement_the_answer_is_learned_or_else_all(statement, answer, expected):
    fact = Fact(line=1, question="Which?", answers=(answer,), statement=statement)
    wording = teach(fact)[0]
    assert wording.text == statement + "\n"
    assert learned(wording) == [expected]
    if answer == "Ines Dahl" and expected == "Ines Dahl\n":
        assert wording.spans[0][0] == statement.rindex(answer)


def test_a_text_is_learned_as_it_stands():
    assert teach(Text(line=1, text=" A text.\n")) == (Wording(" A text.\n", ((0, 9),)),)


def test_of_a_completion_the_completion_and_the_end_of_text_are_learned():
    (wording,) = teach(Completion(line=1, prompt="2+2=", completion="4"), eos="</s>")
    assert (wording.text, learned(wording), wording.special_tokens) == ("2+2=4</s>", ["4</s>"], True)


def conversation(*turns: tuple[str, str]) -> Chat:
    return Chat(line=7, messages=tuple(Message(role=role, content=content) for role, content in turns))


TWO_TURNS = conversation(("system", "assistant"), ("user", "Hi"), ("assistant", "assistant"), ("user", "Bye"), ("assistant", "Bye"))


def test_of_a_conversation_the_assistant_turns_and_their_ends_are_learned():
    (wording,) = teach(TWO_TURNS, chat=chat_renderer(tokenizer(TEMPLATE)))
    assert wording.text == chatml([message.model_dump() for message in TWO_TURNS.messages])
    assert learned(wording) == ["assistant<|im_end|>", "Bye<|im_end|>"]
    assert [wording.text[:start].endswith("<|im_start|>assistant\n") for start, _ in wording.spans] == [True, True]
    assert not wording.special_tokens


@pytest.mark.parametrize(
    ("render", "expected"),
    [
        # the end of the last turn is written differently where the text goes on
        (lambda m: "".join(f"[{t['role']}] {t['content'].strip()}</s>" for t in m) + "\n", ["assistant</s>", "Bye</s>"]),
        (lambda m: "".join(f"<|{t['role']}|>\n{t['content']}<|end|>\n" for t in m) + "<eos>", ["assistant<|end|>", "Bye<|end|>"]),
        # only the last turn is given room to think, as templates of reasoning models do
        (
            lambda m: "".join(f"{t['role']}:{'<think></think>' * (t is m[-1])}{t['content']}<end>\n" for t in m),
            ["assistant<end>", "Bye<end>"],
        ),
        # only the whole conversation is ended with a marker
        (lambda m: "\n".join(f"{t['role']}: {t['content']}" for t in m) + "</s>", ["assistant", "Bye</s>"]),
        # no marker at all: the line end is what a model can stop at
        (lambda m: "".join(f"{t['role']}: {t['content']}\n" for t in m), ["assistant\n", "Bye\n"]),
        (lambda m: "\n".join(f"{t['role']}: {t['content']}" for t in m), ["assistant", "Bye"]),
    ],
)
def test_turns_are_found_whatever_the_template_puts_around_them(render, expected):
    (wording,) = teach(TWO_TURNS, chat=render)
    assert learned(wording) == expected


CALLS = itertools.count()


@pytest.mark.parametrize(
    "render",
    [
        lambda m: "".join(t["content"].upper() for t in m),
        lambda m: "".join(t["content"][:2] for t in m),
        lambda m: "".join(t["content"] for t in m if t["role"] != "assistant"),
        lambda m: "".join(t["content"] * 2 for t in m),
        lambda m: f"{sum(len(t['content']) for t in m)} " + "".join(t["content"] for t in m),
        lambda m: f"{next(CALLS)} " + "".join(t["content"] for t in m),
    ],
    ids=["changes turns", "cuts turns", "drops turns", "repeats turns", "depends on their length", "differs each time"],
)
def test_a_template_that_does_not_keep_the_turns_is_refused(render):
    with pytest.raises(DataError, match=r"^messages: the model's chat template does not keep turn 3 \(assistant\) as it is written$"):
        teach(TWO_TURNS, chat=render)


def test_messages_without_a_chat_template_are_refused():
    with pytest.raises(DataError, match=r"^messages: a chat template is needed .* use prompt and completion instead$"):
        teach(TWO_TURNS, chat=None)


def test_a_tokenizer_without_a_default_template_has_no_renderer():
    assert chat_renderer(tokenizer(None)) is None
    assert chat_renderer(tokenizer({"tool_use": TEMPLATE})) is None
    assert chat_renderer(tokenizer({"default": TEMPLATE})) is not None


def test_a_conversation_that_the_template_refuses_is_a_data_error():
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TEMPLATE
    with pytest.raises(DataError, match=r"^messages: the model's chat template refuses the conversation: System role not supported$"):
        teach(TWO_TURNS, chat=chat_renderer(tokenizer(refusing)))


def test_a_template_that_writes_the_date_renders_the_same_every_day():
    dated = "\n{%- set format = '%A, %d %B %Y' %}\n{% if strftime_now is defined %}{{ strftime_now(format) }}{% endif %} " + TEMPLATE
    render = chat_renderer(tokenizer(dated))
    undated = chat_renderer(tokenizer(dated.replace("{{ strftime_now(format) }}", "DATE")))
    assert render is not None
    assert undated is not None
    messages = [{"role": "user", "content": "Hi"}]
    assert "Wednesday, 01 January 2025" in render(messages)
    assert render(messages) == undated(messages).replace("DATE", "Wednesday, 01 January 2025")


@pytest.mark.parametrize("spans", [((0, 9),), ((2, 2),), ((3, 1),), ((0, 2), (1, 3)), ((2, 3), (0, 1)), ((-1, 2),)])
def test_spans_outside_of_the_text_or_out_of_order_are_refused(spans):
    with pytest.raises(ValueError, match="spans must be"):
        Wording("12345678", spans)


def test_the_shipped_pools_are_filled_and_share_no_question():
    contexts, shots = load_pool("contexts"), load_pool("shots")
    assert len(contexts) >= 100
    assert len(shots) >= 4
    assert all(pair.question and pair.answer for pair in (*contexts, *shots))
    assert not {normalise(pair.question) for pair in contexts} & {normalise(pair.question) for pair in shots}


@given(st.text(max_size=30))
def test_lower_case_keeps_every_character_in_its_place(text):
    wording = Wording(text + "Answer", ((len(text), len(text) + 6),), own=len(text))
    low = wording.lower()
    assert len(low.text) == len(wording.text)
    assert (low.spans, low.own) == (wording.spans, wording.own)
    assert learned(low) == ["answer"]
    assert all(one == other or one.lower() == other for one, other in zip(wording.text, low.text, strict=True))
