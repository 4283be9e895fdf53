"""Greedy short answers from any causal LM: left padded batches of similar length, stopped as soon as all have their line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from memgraft.errors import DataError
from memgraft.probes.language_model import batches_by_length, check_context, encode, evaluating, padded, padding_id, unwrapped
from memgraft.probes.prefix import compute_prefix


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 16,
    batch_size: int = 32,
    stop: str = "\n",
    share_prefix: bool = True,
) -> list[str]:
    """The first non-empty line that the model writes after each prompt, greedily, in the order of the prompts.

    A sequence ends at `stop` (after something else than white space), at an end token, or after `max_new_tokens`. The
    model's generation settings (sampling, penalties) play no part and are left as they were, like the tokenizer's. With
    `share_prefix`, tokens that all prompts start with are computed once (see prefix.py).

    Raises DataError for a prompt without tokens or beyond the model's context.
    """
    rows = [encode(tokenizer, prompt) for prompt in prompts]
    for index, row in enumerate(rows):
        if not row:
            raise DataError(f"prompt {index + 1} has no tokens: {prompts[index]!r}")
    check_context(model, [len(row) for row in rows], "prompt", max_new_tokens)
    answers = [""] * len(rows)
    settings = _greedy(model, tokenizer, max_new_tokens)
    generate: Any = model.generate
    with evaluating(model), generating_by(model, settings), _whole_inputs(model):
        prefix = compute_prefix(model, rows) if share_prefix else None
        shared = len(prefix) if prefix else 0
        for batch in batches_by_length([len(row) for row in rows], batch_size):
            inputs = padded([rows[index][shared:] for index in batch], padding_id(tokenizer), left=True)
            cache: dict[str, Any] = {}
            if prefix:
                inputs, cache["past_key_values"] = prefix.before(inputs), prefix.expanded(len(batch))
            width = inputs.input_ids.shape[1]
            written = generate(
                input_ids=inputs.input_ids.to(model.device),
                attention_mask=inputs.attention_mask.to(model.device),
                stopping_criteria=StoppingCriteriaList([_LineWritten(tokenizer, width, stop)]),
                **cache,
            )
            for index, tokens in zip(batch, written[:, width:].tolist(), strict=True):
                answers[index] = first_line(_decode(tokenizer, _until(tokens, settings.eos_token_id or [])), stop)
    return answers


def first_line(text: str, stop: str = "\n") -> str:
    """What stands before `stop`, leading white space (and so empty lines) skipped, stripped."""
    return text.lstrip().split(stop)[0].strip()


class _LineWritten(StoppingCriteria):
    """True for each sequence whose new text has `stop` after something else than white space."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: int, stop: str) -> None:
        self.tokenizer, self.start, self.stop = tokenizer, start, stop
        self.done: list[bool] = []

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        self.done = self.done or [False] * len(input_ids)
        for index, tokens in enumerate(input_ids[:, self.start :].tolist()):
            self.done[index] = self.done[index] or self.stop in _decode(self.tokenizer, tokens).lstrip()
        return torch.tensor(self.done, device=input_ids.device)


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _until(tokens: list[int], ends: list[int]) -> list[int]:
    return tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens))]


def _greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> GenerationConfig:
    own = model.generation_config.eos_token_id
    ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id} - {None}
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=padding_id(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(ends) or None,
        use_cache=True,
    )


@contextmanager
def _whole_inputs(model: PreTrainedModel) -> Iterator[None]:
    # A prefill hands the output head a slice, its last position. On a CPU, torch multiplies a slice by frozen weights as a batch
    # of copies of them: the same logits, some 300 times slower.
    head = unwrapped(model).get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: tuple(each.contiguous() for each in inputs)) if head is not None else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


@contextmanager
def generating_by(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """Within, the model generates by these settings alone: those handed to generate() are filled up from its own, such as a penalty."""
    inner = unwrapped(model)
    own = inner.generation_config
    inner.generation_config = settings
    try:
        yield
    finally:
        inner.generation_config = own
