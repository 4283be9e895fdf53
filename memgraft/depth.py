"""Where facts are read: the depth at which what is asked for can best be told, measured on the model.

Too early a question's last token does not know yet what was asked for; too late it is taken up with what is said next, and two
questions about one subject look the same. Where the one ends and the other begins differs from model to model: at three quarters of
SmolLM2's depth questions are still told apart, in Gemma 3 270M, four blocks after its middle,
they are not.

Shape suffixes: E tokens, K key width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from memgraft.answer_layer import FAINTEST, Asked, discriminants, folds
from memgraft.blocks import hidden_states_before_each
from memgraft.grafted import GraftedModel
from memgraft.probes.language_model import batches_by_length, evaluating, longest_sequence, padded, padding_id
from memgraft.questions import unknown_questions_asked, up_to_answers

Progress = Callable[[int, int], None]  # (done, total)

USUAL = 0.73  # share of the depth, as block 22 of 30
BETWEEN = (0.5, 0.85)  # shares of it between which other blocks are looked at,
MOST = 9  # and how many of them at most
NAMES = 2  # subjects of each kind that are asked about
BETTER = 0.5  # share of the confusions at the usual depth that there may be at another one, for that to be taken
BATCH = 16


def default_answer_layer(depth: int, layers: Sequence[int]) -> int | None:
    """At three quarters of the depth, as block 22 of 30; None where a memory layer lies there or behind it."""
    layer = round(depth * USUAL)
    return layer if max(layers) < layer < depth else None


def choose_answer_layer(grafted: GraftedModel, on_progress: Progress | None = None) -> int:
    """The block in front of which facts are read best: the one they are read at, unless questions are confused far less at another."""
    usual = grafted.config.answer_layer
    assert usual is not None
    confused = confusions(grafted, on_progress)
    best = min(confused, key=lambda layer: confused[layer], default=usual)
    return best if confused and confused[best] < BETTER * confused[usual] else usual


def confusions(grafted: GraftedModel, on_progress: Progress | None = None) -> dict[int, float]:
    """How often questions are confused in front of each of the blocks that are compared.

    Nothing where there is only one of these, or no question fits the model's context.

    Args:
        on_progress: called with (done, total) wordings of questions.
    """
    assert grafted.config.answer_layer is not None
    candidates = depths(len(grafted.blocks), grafted.config.answer_layer, grafted.config.layers)
    asked = list(unknown_questions_asked(grafted.tokenizer, longest_sequence(grafted.base), NAMES))
    if len(candidates) == 1 or not asked:
        return {}
    forms = [(each, row) for each in asked for row in range(len(each.forms.input_ids))]
    groups, kinds, subjects = (
        torch.tensor(values) for values in zip(*((each.number, each.kind, each.subject) for each, _ in forms), strict=True)
    )
    plain = torch.tensor([row >= each.taught for each, row in forms])
    states = _last_states(grafted, candidates, [ids for each in asked for ids in up_to_answers(each.forms)], on_progress)
    halves = kinds % 2  # half of the kinds show directions for the other half
    return {layer: confusion(Asked(hidden, groups, plain, halves), subjects) for layer, hidden in zip(candidates, states, strict=True)}


def depths(depth: int, usual: int, layers: Sequence[int]) -> list[int]:
    """The blocks that are compared, in order, the usual one among them."""
    first, last = max(max(layers) + 1, round(depth * BETWEEN[0])), min(depth - 1, round(depth * BETWEEN[1]))
    step = max(1, -(-(last - first) // MOST))
    return [layer for layer in range(first, last + 1) if (layer - usual) % step == 0 or layer == usual]


def confusion(asked: Asked, subjects_E: Tensor) -> float:
    """How often a question in a plain form is less like its own taught forms than another one about the same subject is.

    Over all pairs of own and other likenesses, each as a share of how alike the taught forms are: one minus the area under the ROC
    curve. Directions are fitted to the kinds of subjects that are not asked about.
    """
    own, others = [torch.zeros(0)], [torch.zeros(0)]
    for seen, left_out in folds(asked):
        mean, projection = discriminants(seen)
        subjects = subjects_E[torch.isin(asked.groups, left_out.groups)]
        queries_EK = F.normalize((left_out.hidden_ED.float().cpu() - mean) @ projection, dim=-1)
        for group in left_out.groups.unique().tolist():
            is_own = left_out.groups == group
            taught = queries_EK[is_own & ~left_out.plain]
            alike = (taught @ taught.T).sum().sub(len(taught)) / (len(taught) * (len(taught) - 1))
            likeness_E = queries_EK @ taught.mean(0) / alike.clamp_min(FAINTEST)
            own.append(likeness_E[is_own & left_out.plain])
            others.append(likeness_E[~is_own & left_out.plain & (subjects == subjects[is_own][0])])
    mine, theirs = torch.cat(own), torch.cat(others).sort().values
    if not len(mine) or not len(theirs):
        return 0.5
    return 1 - float(torch.searchsorted(theirs, mine).float().mean()) / len(theirs)


def _last_states(
    grafted: GraftedModel, layers: Sequence[int], sequences: Sequence[list[int]], on_progress: Progress | None = None
) -> list[Tensor]:
    """Of each of the blocks the states (E, D) of the sequences' last tokens that enter it, with the memory off."""
    found = [torch.empty(len(sequences), grafted.config.hidden_size) for _ in layers]
    done = 0
    for batch in batches_by_length([len(ids) for ids in sequences], BATCH):
        rows = padded([sequences[index] for index in batch], padding_id(grafted.tokenizer))
        inputs = {"input_ids": rows.input_ids.to(grafted.device), "attention_mask": rows.attention_mask.to(grafted.device)}
        with grafted.without_memory(), evaluating(grafted.base):
            states = hidden_states_before_each(grafted.base, grafted.blocks, layers, **inputs)
        last = rows.attention_mask.sum(-1) - 1
        ends = [hidden[torch.arange(len(batch), device=hidden.device), last.to(hidden.device)].float().cpu() for hidden in states]
        for each, end in zip(found, ends, strict=True):
            each[batch] = end
        done += len(batch)
        if on_progress:
            on_progress(done, len(sequences))
    return found
