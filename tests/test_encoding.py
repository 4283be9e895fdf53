"""Wordings as token batches: what is seen, what is learned, and what is refused."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from memgraft.data import Chat, Completion, Fact, Message
from memgraft.encoding import TokenBatch, chunk, encode
from memgraft.errors import DataError, GraftError, TeachingError
from memgraft.wordings import QAPair, Wording, chat_renderer, teach_wordings

LINES = ["Who founded Ardent Mills? Ines Dahl founded Ardent Mills in 1970.", "Q: Who? A: Ines Dahl.\n", "user system assistant\n\n"] * 3
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"]
TEMPLATE = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
CONTEXTS = (QAPair("Which planet is red?", "Mars"), QAPair("How many legs has a spider?", "8"), QAPair("What is H2O?", "water"))
FACT = Fact(
    line=1,
    question="Who founded Ardent Mills?",
    answers=("Ines Đahl 😀",),  # characters of two and of four bytes
    statement="Ardent Mills was founded by Ines Đahl 😀.",
    paraphrases=("Ardent Mills was founded by whom?",),
)


def byte_level(trim_offsets: bool = False) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        LINES, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    )
    return made


def with_start_and_end() -> Tokenizer:
    made = byte_level()
    ids = [(token, made.token_to_id(token)) for token in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    return made


def metaspace() -> Tokenizer:
    """As the tokenizers of the Llama 2 family: words with their space in front, unknown characters as bytes, a start token."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first"), decoders.Fuse()])
    pieces = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=450, special_tokens=pieces, show_progress=False))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))])
    return made


def wrapped(backend: Tokenizer, **options: object) -> PreTrainedTokenizerFast:
    # Padding with the end-of-text token, as many models do.
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>", additional_special_tokens=SPECIAL[:2], **options
    )
    made.chat_template = TEMPLATE
    return made


TOKENIZERS = {
    "byte-level": wrapped(byte_level()),
    "trimmed offsets": wrapped(byte_level(trim_offsets=True)),
    "start and end": wrapped(with_start_and_end()),
    "metaspace": wrapped(metaspace()),
    "no padding token": PreTrainedTokenizerFast(tokenizer_object=byte_level()),
}
PLAIN = TOKENIZERS["byte-level"]
tokenizers = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())


def learned(batch: TokenBatch, row: int, tokenizer: PreTrainedTokenizerFast) -> str:
    """What the targets of a row decode to; tokens that carry the space in front of a word show it."""
    return tokenizer.decode(batch.input_ids[row][batch.targets[row]], clean_up_tokenization_spaces=False)


@tokenizers
def test_the_learned_tokens_of_a_fact_are_exactly_the_answer_and_what_ends_it(tokenizer):
    wordings = teach_wordings(FACT, count=40, seed=0, contexts=CONTEXTS, chat=chat_renderer(tokenizer))
    batch = encode(wordings, tokenizer, name=FACT.name, max_length=1000)
    assert len(batch) == len(wordings) >= 20
    for row, wording in enumerate(wordings):
        ((start, stop),) = wording.spans
        # Metaspace tokenizers show no space in front of the first piece that they decode; the others do where the token has it.
        assert learned(batch, row, tokenizer).removeprefix(" ") == wording.text[start:stop]


@tokenizers
def test_rows_are_the_texts_own_tokens_up_to_the_last_one_to_learn(tokenizer):
    wordings = teach_wordings(FACT, seed=3, contexts=CONTEXTS, chat=chat_renderer(tokenizer))
    batch = encode(wordings, tokenizer, name="fact", max_length=1000)
    assert batch.input_ids.dtype == torch.int64
    assert batch.attention_mask.dtype == batch.targets.dtype == torch.bool
    assert batch.input_ids.shape == batch.attention_mask.shape == batch.targets.shape
    lengths = batch.attention_mask.sum(1)
    assert batch.input_ids.shape[1] == lengths.max()  # no column of padding alone
    for row, wording in enumerate(wordings):
        ids = tokenizer(wording.text, add_special_tokens=wording.special_tokens)["input_ids"]
        length = int(lengths[row])
        assert batch.attention_mask[row, :length].all()  # padding on the right
        assert batch.input_ids[row, :length].tolist() == ids[:length]
        assert batch.targets[row, length - 1]  # nothing after the last target
        assert not batch.targets[row, length:].any()
        assert not batch.targets[row, 0]


def test_what_follows_the_last_span_is_dropped():
    wording = Wording("Q: Who? A: Ines Dahl. And so on.", ((11, 21),))
    batch = encode([wording], PLAIN, name="fact", max_length=1000)
    assert PLAIN.decode(batch.input_ids[0]) == "Q: Who? A: Ines Dahl."


def test_the_end_of_turn_is_learned_and_padding_with_the_same_token_is_not():
    assert PLAIN.pad_token_id == PLAIN.eos_token_id
    short = Wording("user<|im_end|>", ((0, 14),), special_tokens=False)
    long = Wording("<|im_end|>" * 9 + "user<|im_end|>", ((90, 104),), special_tokens=False)
    batch = encode([short, long], PLAIN, name="chat", max_length=100)
    ends = batch.input_ids == PLAIN.eos_token_id
    assert (ends & batch.targets).sum(1).tolist() == [1, 1]
    assert (ends & ~batch.attention_mask).sum().item() == batch.input_ids.shape[1] - batch.attention_mask[0].sum().item() > 0
    assert (ends & batch.attention_mask).sum(1).tolist() == [1, 10]


@pytest.mark.parametrize("name", ["byte-level", "trimmed offsets", "start and end", "metaspace"])
def test_every_assistant_turn_is_learned_with_its_end_and_no_other(name):
    tokenizer = TOKENIZERS[name]
    turns = [
        ("system", "Be brief."),
        ("user", "Who? Ines"),
        ("assistant", "Ines Dahl"),
        ("user", "assistant"),
        ("assistant", "assistant\nuser"),
    ]
    chat = Chat(line=1, messages=tuple(Message(role=role, content=content) for role, content in turns))
    wordings = teach_wordings(chat, seed=0, contexts=(), chat=chat_renderer(tokenizer))
    batch = encode(wordings, tokenizer, name="chat", max_length=1000)
    pieces = re.split(r"(?<=<\|im_end\|>)", learned(batch, 0, tokenizer))
    assert [piece.removeprefix(" ") for piece in pieces] == ["Ines Dahl<|im_end|>", "assistant\nuser<|im_end|>", ""]
    # The template has written its own special tokens: the tokenizer adds none.
    assert batch.input_ids[0, 0].item() == tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_a_token_across_the_border_of_prompt_and_completion_is_learned():
    (wording,) = teach_wordings(
        Completion(line=1, prompt="Who fou", completion="nded it"), seed=0, contexts=(), chat=None, eos="<|endoftext|>"
    )
    ids = PLAIN(wording.text)["input_ids"]
    assert PLAIN.convert_ids_to_tokens(ids)[1] == "Ġfounded"
    batch = encode([wording], PLAIN, name="completion", max_length=100)
    assert learned(batch, 0, PLAIN) == " founded it<|endoftext|>"


@tokenizers
def test_loss_on_all_learns_every_token_but_the_first(tokenizer):
    wordings = [Wording("Q: Who? A: Ines Dahl. And so on.", ((11, 21),)), Wording("Who?", ((0, 4),))]
    batch = encode(wordings, tokenizer, name="fact", max_length=100, loss="all")
    expected = batch.attention_mask.clone()
    expected[:, 0] = False
    assert torch.equal(batch.targets, expected)
    for row, wording in enumerate(wordings):
        assert batch.input_ids[row][batch.attention_mask[row]].tolist() == tokenizer(wording.text)["input_ids"]


def test_special_tokens_that_the_tokenizer_adds_are_no_part_of_an_answer():
    tokenizer = TOKENIZERS["start and end"]
    batch = encode([Wording("Who?", ((0, 4),))], tokenizer, name="text", max_length=100)
    assert batch.input_ids[0, 0].item() == tokenizer.convert_tokens_to_ids("<s>")
    assert learned(batch, 0, tokenizer) == "Who?"  # from the start token; the end token is not the text's


def test_a_wording_longer_than_the_context_is_refused_with_both_lengths():
    wording = Wording("Q: " + "Who? " * 2000 + "A: Ines Dahl\n", ((10_006, 10_016),), fields="statement")
    length = encode([wording], PLAIN, name="fact", max_length=100_000).input_ids.shape[1]
    assert length > 1000
    assert encode([wording], PLAIN, name="fact", max_length=length).input_ids.shape[1] == length
    message = (
        rf"^statement: wording 2 \('Q: Who\? .*…'\): longer than the context: {length:,} tokens, the model takes {length - 1:,}; shorten"
    )
    with pytest.raises(TeachingError, match=message):
        encode([Wording("Who?", ((0, 4),)), wording], PLAIN, name="founder", max_length=length - 1)


def test_what_is_dropped_does_not_count_against_the_context():
    wording = Wording("Q: Who? A: Ines" + " Dahl" * 1000, ((11, 15),))
    assert encode([wording], PLAIN, name="fact", max_length=20).input_ids.shape[1] <= 20


@pytest.mark.parametrize("wording", [Wording("Who? Ines.", ()), Wording("Who?", ((0, 1),)), Wording("<|im_end|>", ((0, 10),))])
def test_a_wording_with_no_token_to_learn_is_refused(wording):
    with pytest.raises(TeachingError, match=r"^wording 1 \('.*'\): no token to learn among its \d+"):
        encode([wording], PLAIN, name="fact 7", max_length=100)


def test_nothing_to_learn_at_all_is_refused():
    with pytest.raises(DataError, match=r"^no wording to learn$"):
        encode([], PLAIN, name="fact 7", max_length=100)
    with pytest.raises(DataError, match=r"^wording 1 \(''\): is empty$"):
        encode([Wording("", ())], PLAIN, name="fact 7", max_length=100)


def test_a_tokenizer_that_can_not_tell_characters_is_refused(monkeypatch):
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
    with pytest.raises(GraftError, match=r"can't tell .* a fast tokenizer \(tokenizer\.json\) is needed$"):
        encode([Wording("Who?", ((0, 4),))], PLAIN, name="fact", max_length=100)


def test_a_text_longer_than_the_tokenizers_own_limit_makes_no_warning(caplog):
    tokenizer = wrapped(byte_level(), model_max_length=4)
    batch = encode([Wording("Who founded Ardent Mills? " * 9, ((0, 200),))], tokenizer, name="text", max_length=1000)
    assert batch.input_ids.shape[1] > 4
    assert not caplog.records


texts = st.text(st.sampled_from("aI é😀\n .?_đWho"), min_size=2, max_size=120)


@given(text=texts, data=st.data())
def test_a_token_is_learned_exactly_if_it_shares_a_character_with_a_span(text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    stop = data.draw(st.integers(start + 1, len(text)))
    ids = PLAIN(text)["input_ids"]
    # The oracle counts bytes: a byte-level token is written with one letter for each of its bytes.
    begin, end = len(text[:start].encode()), len(text[:stop].encode())
    expected, position = [], 0
    for token in PLAIN.convert_ids_to_tokens(ids):
        expected.append(position < end and position + len(token) > begin)
        position += len(token)
    assert position == len(text.encode())
    expected[0] = False
    if True not in expected:
        with pytest.raises(TeachingError, match="no token to learn"):
            encode([Wording(text, ((start, stop),))], PLAIN, name="text", max_length=1000)
        return
    batch = encode([Wording(text, ((start, stop),))], PLAIN, name="text", max_length=1000)
    kept = batch.targets.shape[1]
    assert batch.targets[0].tolist() == expected[:kept]
    assert True not in expected[kept:]


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300), max_length=st.integers(8, 40))
@pytest.mark.parametrize("name", ["byte-level", "trimmed offsets", "start and end"])
def test_the_parts_of_a_text_join_to_it_and_each_fits(text, max_length, name):
    tokenizer = TOKENIZERS[name]
    parts = chunk(Wording(text, ((0, len(text)),)), tokenizer, max_length=max_length)
    assert "".join(part.text for part in parts) == text
    for part in parts:
        assert part.spans == ((0, len(part.text)),)
        assert 1 <= len(tokenizer(part.text)["input_ids"]) <= max_length


@tokenizers
def test_a_long_text_is_cut_evenly_into_as_few_parts_as_it_takes_and_no_token_is_lost(tokenizer):
    text = "Ines Dahl founded Ardent Mills in 1970. Who? 😀\n" * 40
    whole = Wording(text, ((0, len(text)),))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    extra = tokenizer.num_special_tokens_to_add()
    budget = 100 - extra
    parts = chunk(whole, tokenizer, max_length=100)
    assert "".join(part.text for part in parts) == text
    assert len(parts) <= -(-len(ids) // budget) + 1
    lengths = [len(tokenizer(part.text)["input_ids"]) for part in parts]
    assert max(lengths) <= 100
    assert max(lengths) - min(lengths) <= 8  # no short rest
    if tokenizer is PLAIN:
        assert [token for part in parts for token in tokenizer(part.text)["input_ids"]] == ids
        assert encode(parts, tokenizer, name="text", max_length=100).targets.sum() == len(ids) - len(parts)


def test_a_text_that_fits_is_left_whole_and_one_token_more_is_cut_in_halves():
    text = " Dahl" * 10
    whole = Wording(text, ((0, len(text)),))
    assert len(PLAIN(text)["input_ids"]) == 10
    assert chunk(whole, PLAIN, max_length=10) == (whole,)
    assert [part.text for part in chunk(whole, PLAIN, max_length=9)] == [" Dahl" * 5, " Dahl" * 5]


def test_no_character_is_cut_apart():
    text = "😀" * 50
    assert len(PLAIN(text)["input_ids"]) == 200
    parts = chunk(Wording(text, ((0, 50),)), PLAIN, max_length=10)
    assert {part.text for part in parts} == {"😀😀"}
    with pytest.raises(TeachingError, match=r"can't be cut into parts of 3 tokens: '😀' alone takes more$"):
        chunk(Wording(text, ((0, 50),)), PLAIN, max_length=3)


def test_only_what_is_learned_as_a_whole_can_be_cut():
    with pytest.raises(ValueError, match="only a text that is learned as a whole can be cut"):
        chunk(Wording("Q: Who? A: Ines", ((11, 15),)), PLAIN, max_length=100)


def test_what_begins_with_the_start_token_gets_no_second_one() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=metaspace(), bos_token="<s>")
    start = tokenizer.bos_token_id
    for text in ("Who founded it?", "<s>Who founded it?"):
        (ids,) = encode([Wording(text, ((len(text) - 4, len(text)),))], tokenizer, name="fact", max_length=99).input_ids.tolist()
        assert ids.count(start) == 1
