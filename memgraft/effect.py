"""How long a change of the residual stream must be to matter: a unit that means the same in every model.

A norm does not: a few directions may hold nearly all of it, and weigh next to nothing in what is computed from it (Sun et al. 2024,
Massive Activations in Large Language Models, arXiv 2402.17762). At three quarters of its depth a change as long as the residual
stream moves what the head reads by ten times its length in Gemma 3 270M, by .85 of it in SmolLM2 (docs/tried.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from memgraft.blocks import added_before, hidden_states_at_head, hidden_states_before
from memgraft.grafted import GraftedModel
from memgraft.probes.language_model import evaluating

# By what share of its length a row of length 1 moves what the head reads: what the residual stream's norm does in SmolLM2, on which step
# lengths were found, in front of the default memory layer and of the answer layer.
LAYERS_MOVE, ANSWERS_MOVE = 0.62, 0.85
TEXTS = 4  # of the background, on which that is measured
SMALL = 0.1  # share of its length by which what the head reads is moved to measure: little enough to be linear, more than 16 bits round
ROUNDS = 4  # in which the length is found that does so; each starts from the last one's
LEAST, MOST = 1e-3, 10.0  # in median norms, between which it is looked for


def unit_of(model: GraftedModel, layer: int, *, share: float, seed: int) -> float:
    """What a layer of the memory in front of block `layer` multiplies its reads with: see `length_that_moves`, on the background."""
    assert model.background is not None
    texts = model.background.split(model.tokenizer)[0]  # of two tokens or more each
    with model.without_memory():
        return length_that_moves(model.base, model.blocks, layer, texts[:TEXTS], share=share, seed=seed)


def length_that_moves(
    model: PreTrainedModel, blocks: nn.ModuleList, layer: int, texts: Sequence[Sequence[int]], *, share: float, seed: int
) -> float:
    """The length of a change, in a random direction at every token but the first, that moves what the head reads by `share` of its length.

    To first order: it is measured on a smaller change. Both are medians over tokens.

    Args:
        layer: the block that the changed hidden states enter.
        texts: token ids, two or more each.
        seed: of the directions.
    """
    generator = torch.Generator().manual_seed(seed)
    directions, norms, heads = [], [], []
    with evaluating(model):
        for ids in texts:
            inputs = torch.tensor([list(ids)], device=model.device)
            hidden = hidden_states_before(model, blocks, layer, input_ids=inputs)
            direction = torch.randn(hidden.shape, generator=generator)
            direction /= direction.norm(dim=-1, keepdim=True)
            direction[:, 0] = 0  # the first token's state is often an outlier, which all others attend to
            directions.append(direction.to(hidden.device))
            norms.append(hidden[0, 1:].float().norm(dim=-1))
            heads.append(hidden_states_at_head(model, input_ids=inputs)[0, 1:].float())
        norm = float(torch.cat(norms).median())

        def moved(length: float) -> float:
            shares: list[Tensor] = []
            for ids, direction, before in zip(texts, directions, heads, strict=True):
                with added_before(blocks, layer, length * direction):
                    after = hidden_states_at_head(model, input_ids=torch.tensor([list(ids)], device=model.device))[0, 1:].float()
                shares.append((after - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-12))
            return float(torch.cat(shares).median())

        length = SMALL * norm
        for _ in range(ROUNDS):
            length = min(MOST * norm, max(LEAST * norm, length * SMALL / max(moved(length), 1e-6)))
    return length * share / SMALL
