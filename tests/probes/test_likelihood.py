"""Answer and text NLL against slow loops and a model of known probabilities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memgraft.errors import DataError
from memgraft.probes import answer_nll, choose, likelihood, text_nll
from memgraft.probes.likelihood import answer_sums, text_windows

FEW_SHOT = "Question: What is the capital of Norway?\nAnswer: Oslo\n\nQuestion: "
PROMPTS = [FEW_SHOT + question + "\nAnswer:" for question in ("Who?", "Where is the ship seen again?", "Über den Fluß?")]
ANSWERS = ["Anna Bell", "far to the north", "東京 – eine Brücke"]


def log_probabilities(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """(T, V) of one sequence without padding, in fp64."""
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([ids])).logits[0]
    logp: Tensor = logits.double().log_softmax(-1)
    return logp


def nll_by_hand(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> list[float]:
    """One token after the other; the answer's tokens are those that the prompt alone does not have."""
    prompt_ids = tokenizer(prompt)["input_ids"]
    ids = tokenizer(f"{prompt} {answer}")["input_ids"]
    assert ids[: len(prompt_ids)] == prompt_ids
    logp = log_probabilities(model, ids)
    return [-float(logp[position - 1, ids[position]]) for position in range(len(prompt_ids), len(ids))]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gemma3", "bloom"])
def test_answer_nll_equals_a_loop_over_tokens(
    build: Any, tokenizer: PreTrainedTokenizerBase, architecture: str, share: bool, batch_size: int
) -> None:
    model = build(architecture)
    expected = [nll_by_hand(model, tokenizer, prompt, answer) for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    sums = answer_sums(model, tokenizer, PROMPTS, ANSWERS, batch_size=batch_size, share_prefix=share)
    assert sums.counts == tuple(map(len, expected))
    assert len(set(sums.counts)) == 3
    assert sums.totals == pytest.approx([sum(values) for values in expected], rel=1e-5)
    means = [sum(values) / len(values) for values in expected]
    assert answer_nll(model, tokenizer, PROMPTS, ANSWERS, batch_size=batch_size) == pytest.approx(means, rel=1e-5)


def test_answers_to_one_prompt_are_all_scored_from_their_first_token(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    expected = [sum(nll_by_hand(llama, tokenizer, PROMPTS[0], answer)) for answer in ANSWERS]
    assert answer_sums(llama, tokenizer, [PROMPTS[0]] * 3, ANSWERS).totals == pytest.approx(expected, rel=1e-5)
    assert answer_sums(llama, tokenizer, [PROMPTS[0]] * 2, ANSWERS[:1] * 2).totals == pytest.approx(expected[:1] * 2, rel=1e-5)


def test_labels_are_shifted_by_one_in_a_model_of_known_probabilities(bigram: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    a, b, space = (tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in ("a", "b", " "))
    with torch.no_grad():
        bigram.table.weight.zero_()
        bigram.table.weight[a, space] = 3.0
        bigram.table.weight[space, b] = 5.0
    logs = [float(torch.tensor([height] + [0.0] * 399).log_softmax(0)[0]) for height in (3.0, 5.0)]
    assert tokenizer("a b")["input_ids"] == [a, space, b]
    sums = answer_sums(bigram, tokenizer, ["a"], ["b"])
    assert sums.counts == (2,)
    assert sums.totals == pytest.approx([-sum(logs)])


def test_an_answer_joins_a_prompt_that_ends_in_white_space_without_another_space(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = tokenizer("x\nOslo")["input_ids"]
    logp = log_probabilities(llama, ids)
    expected = [-float(logp[position - 1, ids[position]]) for position in range(2, len(ids))]
    assert answer_nll(llama, tokenizer, ["x\n"], ["Oslo"]) == pytest.approx([sum(expected) / len(expected)], rel=1e-5)


def test_a_token_that_reaches_from_the_prompt_into_the_answer_counts_as_the_answers(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    spans = tokenizer("\n\n x", return_offsets_mapping=True)["offset_mapping"]
    assert spans[0] == (0, 2)  # two line ends are one token
    assert answer_sums(llama, tokenizer, ["Who\n"], ["\nx"]).counts == (2,)


def test_start_and_end_tokens_of_the_tokenizer_are_not_scored(
    llama: PreTrainedModel, bos_tokenizer: PreTrainedTokenizerBase, appending_tokenizer: PreTrainedTokenizerBase
) -> None:
    plain = len(bos_tokenizer(" Oslo", add_special_tokens=False)["input_ids"])
    assert answer_sums(llama, bos_tokenizer, ["Where:"], ["Oslo"]).counts == (plain,)
    assert answer_sums(llama, appending_tokenizer, ["Where:"], ["Oslo"]).counts == (plain,)
    assert answer_sums(llama, bos_tokenizer, [""], ["Oslo"]).counts == (len(bos_tokenizer("Oslo")["input_ids"]) - 1,)


def test_an_answer_that_nothing_precedes_is_refused(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="no token of the answer 'Oslo' can be scored"):
        answer_nll(llama, tokenizer, [""], ["Oslo"])


def test_text_beyond_the_context_is_refused(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match=r"prompt with answer 1 has .* context has 512"):
        answer_nll(llama, tokenizer, ["x " * 400], ["Oslo"])


def test_unequal_numbers_of_prompts_and_answers_are_refused(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="2 prompts and 1 answers"):
        answer_nll(llama, tokenizer, ["a", "b"], ["c"])


def test_models_without_logits_to_keep_and_small_chunks_give_the_same(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answer_sums(llama, tokenizer, PROMPTS, ANSWERS)
    monkeypatch.setattr(likelihood, "accepts", lambda *_: False)
    monkeypatch.setattr(likelihood, "CHUNK", 1000)  # two positions
    monkeypatch.setattr(likelihood, "FORWARD", 1)  # one sequence
    other = answer_sums(llama, tokenizer, PROMPTS, ANSWERS)
    assert other.counts == expected.counts
    assert other.totals == pytest.approx(expected.totals, rel=1e-6)


def test_logits_are_computed_at_answer_positions_only(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    widths: list[int] = []
    llama.get_submodule("lm_head").register_forward_hook(lambda _module, _args, logits: widths.append(logits.shape[1]))
    count = answer_sums(llama, tokenizer, [PROMPTS[0]], [ANSWERS[0]]).counts[0]
    assert widths == [count]


def test_bf16_logits_are_normalised_in_fp32(build: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    model = build("llama").to(torch.bfloat16)
    ids = tokenizer("The ship left the harbour")["input_ids"]
    logp = log_probabilities(model, ids)
    expected = -sum(float(logp[position - 1, ids[position]]) for position in range(1, len(ids)))
    assert text_nll(model, tokenizer, "The ship left the harbour").totals == pytest.approx([expected], rel=1e-6)


TEXT = "The ship left the harbour in the morning. It was seen again a week later, far to the north.\n" * 3


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_text_nll_scores_every_window_by_itself(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
    ids = tokenizer(TEXT)["input_ids"]
    windows = [ids[at : at + 16] for at in range(0, len(ids), 16)]
    assert 1 < len(windows[-1]) < 16
    expected = []
    for window in windows:
        logp = log_probabilities(llama, window)
        expected.append(-sum(float(logp[position - 1, window[position]]) for position in range(1, len(window))))
    sums = text_nll(llama, tokenizer, TEXT, window=16, batch_size=batch_size)
    assert sums.counts == tuple(len(window) - 1 for window in windows)
    assert sums.totals == pytest.approx(expected, rel=1e-5)
    assert sums.mean == pytest.approx(sum(expected) / sum(sums.counts), rel=1e-5)


def test_windows_start_with_the_start_token_where_the_tokenizer_adds_one(bos_tokenizer: PreTrainedTokenizerBase) -> None:
    content = bos_tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    windows = text_windows(bos_tokenizer, TEXT, window=16)
    assert {window[0] for window in windows} == {bos_tokenizer.bos_token_id}
    assert [token for window in windows for token in window[1:]] == content
    assert max(map(len, windows)) == 16


def test_windows_never_join_texts_and_stop_at_max_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    first, second = (tokenizer(text)["input_ids"] for text in ("The ship left", "the harbour in the morning"))
    assert text_windows(tokenizer, ["The ship left", "the harbour in the morning"], window=100) == [first, second]
    cut = text_windows(tokenizer, ["The ship left", "the harbour in the morning"], window=100, max_tokens=len(first) + 2)
    assert cut == [first, second[:2]]


def test_a_single_last_token_is_dropped_and_too_little_text_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer(TEXT)["input_ids"]
    assert text_windows(tokenizer, TEXT, window=len(ids) - 1) == [ids[:-1]]
    with pytest.raises(DataError, match="fewer than two tokens"):
        text_windows(tokenizer, "a")


def test_windows_are_no_longer_than_the_context(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert max(text_nll(llama, tokenizer, TEXT * 6, window=4096).counts) == 511


def test_the_choice_is_the_likeliest_per_token(bigram: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    a, b, space = (tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in ("a", "b", " "))
    with torch.no_grad():
        bigram.table.weight.zero_()
        bigram.table.weight[space, a] = 1.0
        bigram.table.weight[space, b] = 2.0
        bigram.table.weight[b, b] = 4.0
    (nll,) = choose(bigram, tokenizer, ["Q:"], [["a", "b", "bb"]])
    assert tokenizer("Q: bb")["input_ids"][-3:] == [space, b, b]
    assert nll[2] < nll[1] < nll[0]  # summed, the two b would lose against one
    assert choose(bigram, tokenizer, ["Q:", "Q:"], [["a", "b"], ["b"]]) == [pytest.approx(nll[:2]), pytest.approx(nll[1:2])]
