"""Batched greedy answers against decoding one by one, and when they stop."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memgraft.errors import DataError
from memgraft.probes import QuestionRow, chat_prompt, few_shot_prompt, generate_answers
from memgraft.probes.generation import first_line
from memgraft.probes.language_model import batches_by_length, encode
from memgraft.probes.prefix import common_prefix, compute_prefix

SHOTS = [QuestionRow(question="What is the capital of Norway?", answers=("Oslo",)), QuestionRow(question="Who?", answers=("Anna Bell",))]
QUESTIONS = [
    "Where is the ship?",
    "When?",
    "What was seen far to the north of the harbour a week later?",
    "Über den Fluß?",
    "Who wrote the song?",
]
PROMPTS = [few_shot_prompt(question, SHOTS) for question in QUESTIONS]
SHARING = ["llama", "qwen3", "mixtral", "gpt_neox", "gpt2", "opt"]


def by_hand(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, new_tokens: int) -> str:
    """Greedy decoding of one prompt, the whole sequence anew for every token."""
    ids = encode(tokenizer, prompt)
    start = len(ids)
    with torch.no_grad():
        for _ in range(new_tokens):
            token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            ids.append(token)
    return first_line(str(tokenizer.decode(ids[start:], skip_special_tokens=True)))


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_batched_answers_equal_greedy_decoding_one_by_one_in_input_order(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, share: bool
) -> None:
    llama.eval()
    expected = [by_hand(llama, tokenizer, prompt, 8) for prompt in PROMPTS]
    assert len(set(expected)) > 2
    assert generate_answers(llama, tokenizer, PROMPTS, max_new_tokens=8, batch_size=batch_size, share_prefix=share) == expected


@pytest.mark.parametrize("architecture", [*SHARING, "gemma3", "bloom"])
def test_sharing_the_prefix_changes_no_answer(build: Any, tokenizer: PreTrainedTokenizerBase, architecture: str) -> None:
    model = build(architecture)
    shared = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=6, batch_size=3)
    assert shared == generate_answers(model, tokenizer, PROMPTS, max_new_tokens=6, batch_size=3, share_prefix=False)
    assert len(set(shared)) > 1


@pytest.mark.parametrize(("architecture", "shares"), [*((name, True) for name in SHARING), ("gemma3", False), ("bloom", False)])
def test_the_prefix_is_shared_unless_the_model_forgets_keys_or_takes_no_positions(
    build: Any, tokenizer: PreTrainedTokenizerBase, architecture: str, shares: bool
) -> None:
    model = build(architecture).eval()
    rows = [encode(tokenizer, prompt) for prompt in PROMPTS]
    with torch.no_grad():
        prefix = compute_prefix(model, rows)
    assert (prefix is not None) == shares
    if prefix is not None:
        assert prefix.ids == common_prefix(rows)
        before = prefix.cache.get_seq_length()
        own: Any = prefix.cache.layers[0]
        copied: Any = prefix.expanded(3).layers[0]
        assert copied.keys.shape[0] == 3
        copied.keys.zero_()
        assert prefix.cache.get_seq_length() == before
        assert own.keys.any()


def test_equal_prompts_and_prompts_that_start_another_are_answered_alike(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[0] + " The ship"]
    shared = generate_answers(llama, tokenizer, prompts, max_new_tokens=6)
    assert shared == generate_answers(llama, tokenizer, prompts, max_new_tokens=6, share_prefix=False)
    assert shared[:2] == generate_answers(llama, tokenizer, prompts[:2], max_new_tokens=6)
    assert shared[0] == shared[1]


def test_hooks_on_blocks_see_whole_hidden_states_and_their_effect_is_in_the_shared_prefix(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    plain = generate_answers(llama, tokenizer, PROMPTS, max_new_tokens=6)
    shapes: list[torch.Size] = []
    shift = torch.randn(32, generator=torch.Generator().manual_seed(1))

    def add(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        shapes.append(args[0].shape)
        return (args[0] + args[0].norm(dim=-1, keepdim=True) * shift, *args[1:])

    layers: Any = llama.get_submodule("model.layers")
    handle = layers[1].register_forward_pre_hook(add)
    shared = generate_answers(llama, tokenizer, PROMPTS, max_new_tokens=6)
    assert {len(shape) for shape in shapes} == {3}
    assert {shape[-1] for shape in shapes} == {32}
    assert shapes[0][0] == 1  # the prefix, once
    assert shared == generate_answers(llama, tokenizer, PROMPTS, max_new_tokens=6, share_prefix=False)
    assert shared != plain
    handle.remove()


def test_nothing_of_model_and_tokenizer_is_changed(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    llama.train()
    layers: Any = llama.get_submodule("model.layers")
    layers[0].eval()
    llama.generation_config.temperature = 0.3
    llama.generation_config.do_sample = True
    config, content = llama.generation_config, copy.deepcopy(llama.generation_config.to_dict())
    side, pad = tokenizer.padding_side, tokenizer.pad_token
    weights = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    generate_answers(llama, tokenizer, PROMPTS, max_new_tokens=2)
    assert llama.generation_config is config
    assert llama.generation_config.to_dict() == content
    assert (tokenizer.padding_side, tokenizer.pad_token) == (side, pad) == ("right", None)
    assert llama.training
    assert not layers[0].training
    assert layers[1].training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in llama.state_dict().items())
    assert all(parameter.grad is None for parameter in llama.parameters())


def test_the_models_sampling_and_penalties_play_no_part(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    greedy = generate_answers(llama, tokenizer, PROMPTS, max_new_tokens=8)
    llama.generation_config.do_sample = True
    llama.generation_config.temperature = 5.0
    llama.generation_config.repetition_penalty = 3.0
    llama.generation_config.no_repeat_ngram_size = 1
    llama.generation_config.min_new_tokens = 8
    assert generate_answers(llama, tokenizer, PROMPTS, max_new_tokens=8) == greedy


def test_settings_come_back_when_generation_fails(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    config = llama.generation_config
    llama.train()
    llama.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        generate_answers(llama, tokenizer, PROMPTS)
    assert llama.generation_config is config
    assert llama.training


def test_the_output_head_never_multiplies_slices_and_keeps_no_hook(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    head: Any = llama.get_output_embeddings()
    whole: list[bool] = []
    seen = head.register_forward_hook(lambda _, inputs, __: whole.append(inputs[0].is_contiguous()))
    generate_answers(llama, tokenizer, PROMPTS, max_new_tokens=4)
    seen.remove()
    assert len(whole) >= 4
    assert all(whole)
    assert not head._forward_pre_hooks


def token(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    (found,) = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert isinstance(found, int)
    return found


def test_a_batch_stops_as_soon_as_every_sequence_has_its_line(bigram: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    a, b, line, other = (token(tokenizer, text) for text in ("a", "b", "\n", "z"))
    bigram.follow(a, b, line, other, other)
    assert generate_answers(bigram, tokenizer, ["Qa", "a"], max_new_tokens=50) == ["b", "b"]
    assert bigram.calls == 2


def test_empty_first_lines_are_skipped(bigram: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    a, b, line, space = (token(tokenizer, text) for text in ("a", "b", "\n", " "))
    bigram.follow(a, line, space, b, a)
    assert generate_answers(bigram, tokenizer, ["a"], max_new_tokens=6) == ["ba"]


def test_an_end_token_ends_the_answer_without_being_part_of_it(bigram: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    a, b, c = (token(tokenizer, text) for text in "abc")
    bigram.follow(a, b, tokenizer.eos_token_id, c, c)
    assert generate_answers(bigram, tokenizer, ["a"], max_new_tokens=9) == ["b"]
    assert bigram.calls == 2


def test_an_end_token_of_the_models_own_settings_counts_too(bigram: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    a, b, c = (token(tokenizer, text) for text in "abc")
    bigram.generation_config.eos_token_id = [tokenizer.eos_token_id, c]
    bigram.follow(a, b, c, a)
    assert generate_answers(bigram, tokenizer, ["a"], max_new_tokens=9) == ["b"]


def test_a_finished_sequence_keeps_its_answer_while_others_go_on(bigram: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    a, b, c, line = (token(tokenizer, text) for text in ("a", "b", "c", "\n"))
    bigram.follow(a, line)
    bigram.follow(b, c, c)
    bigram.follow(line, a)
    assert generate_answers(bigram, tokenizer, ["b", "a", "c"], max_new_tokens=6) == ["cccccc", "a", "cccccc"]


def test_another_stop_text_is_respected_across_tokens(bigram: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    a, b, c, line = (token(tokenizer, text) for text in ("a", "b", "c", "\n"))
    bigram.follow(a, b, line, c, a)
    assert generate_answers(bigram, tokenizer, ["a"], max_new_tokens=12, stop="ca") == ["b"]
    assert bigram.calls == 4


def test_a_prompt_beyond_the_context_is_refused_with_its_number(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match=r"prompt 2 has \d+ tokens and 16 to generate, the model's context has 512"):
        generate_answers(llama, tokenizer, ["short", "x " * 500])


def test_an_empty_prompt_is_refused(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="prompt 2 has no tokens"):
        generate_answers(llama, tokenizer, ["a", ""])


def test_no_prompts_give_no_answers(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert generate_answers(llama, tokenizer, []) == []


def test_a_start_token_written_by_a_chat_template_is_not_doubled(bos_tokenizer: PreTrainedTokenizerBase) -> None:
    assert encode(bos_tokenizer, "<s>When?") == encode(bos_tokenizer, "When?")
    assert encode(bos_tokenizer, "When?")[0] == bos_tokenizer.bos_token_id


def test_batches_hold_every_index_once_within_their_limits() -> None:
    lengths = [5, 1, 9, 3, 3, 20]
    batches = list(batches_by_length(lengths, 3, tokens=10))
    assert sorted(index for batch in batches for index in batch) == list(range(6))
    assert batches[0] == [5]  # too long for the limit, alone
    assert all(len(batch) <= 3 and (len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 10) for batch in batches)


def test_peft_models_are_measured_through_their_adapter(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    peft = pytest.importorskip("peft", reason="the baselines extra is not installed")
    base = generate_answers(llama, tokenizer, PROMPTS, max_new_tokens=6)
    config = llama.generation_config
    torch.manual_seed(0)
    adapted = peft.get_peft_model(llama, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    with_adapter = generate_answers(adapted, tokenizer, PROMPTS, max_new_tokens=6)
    assert with_adapter == generate_answers(adapted, tokenizer, PROMPTS, max_new_tokens=6, share_prefix=False)
    assert with_adapter != base
    with adapted.disable_adapter():
        assert generate_answers(adapted, tokenizer, PROMPTS, max_new_tokens=6) == base
    assert llama.generation_config is config


def test_a_prompt_ends_where_it_ends(tokenizer: PreTrainedTokenizerBase, appending_tokenizer: PreTrainedTokenizerBase) -> None:
    assert encode(appending_tokenizer, "Answer:") == encode(tokenizer, "Answer:")
    assert encode(appending_tokenizer, "Answer:</s>")[-1] == appending_tokenizer.eos_token_id, "as it was given"


def test_a_user_s_message_has_the_tokens_that_its_format_writes(bos_tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer = copy.deepcopy(bos_tokenizer)
    tokenizer.chat_template = "{% for m in messages %}|{{ m['role'] }}| {{ m['content'] }}\n{% endfor %}|assistant|"
    message = [{"role": "user", "content": "Where?"}]
    expected = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert encode(tokenizer, chat_prompt(tokenizer, "Where?")) == expected
    assert encode(tokenizer, str(chat_prompt(tokenizer, "Where?")))[0] == tokenizer.bos_token_id, "any other text has the start token"
