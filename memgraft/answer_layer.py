"""The answer layer: in front of a deep block, tokens that are at an anchor of an open fact read the anchor's row.

Shape suffixes: B sequences, T tokens, N open tokens, K key width, D hidden size, E tokens of questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memgraft.anchors import BEGINS, GOES_ON, Opened, nearest
from memgraft.calibration import random_directions, whitening
from memgraft.competing import Near, undisputed
from memgraft.cues import Cues
from memgraft.expectation import Expectation
from memgraft.memory import ValueTable
from memgraft.precision import in_own_precision

SHRINKAGE = 0.3  # of the scatter between ways to ask, in mean variances: few examples know little of so many directions
LIKEST = 0.85  # share of how alike a fact's wordings are that is asked for at most: plain forms may be more like taught ones than these are
REACHED = 0.84  # share of plain forms of questions that are as like their question's taught forms as a fact's question must be
NO_KIND = -1  # of questions whose subjects models know
WITHIN = 0.92  # share of tokens within answers in plain forms that must be at their anchor,
FIRMLY = 0.6  # but no cosine is less than this: words of prose come as near as the odder of these forms, a fact's own answer nearer
FOLDS = 4  # in which questions are left out to measure that, where all are common ones
BY_CHANCE = 0.002  # share of pairs of tokens of different texts that may be alike as a token in a statement and the fact's own
PAIRED = 2000  # tokens of which all pairs are compared
FAINTEST, CLOSEST = 0.1, 0.95  # cosines between which a token must be alike at least, whatever forms are


class AnswerLayer(nn.Module):
    """What lessons with anchors add to the hidden states that enter one block: scale · row at tokens at an anchor, zero elsewhere.

    `on_read` is called with y (B, T, V), the sum of the rows before the scale, on every pass in which a lesson is open.
    """

    begins_mean: Tensor
    begins_projection: Tensor
    goes_on_mean: Tensor
    goes_on_projection: Tensor
    scale: Tensor
    begins_share: Tensor  # () of how alike its wordings are, by which a token must be like them to be one in front of a fact's answer
    alike: Tensor  # () mean cosine of two wordings of a question, which stands for that of a fact in one wording
    amid_least: Tensor  # () cosine with its key from which it is one in front of the answer within a statement
    goes_on_least: Tensor  # () and from which it is a certain token within the answer

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        for part, width in (("begins", BEGINS), ("goes_on", GOES_ON)):
            self.register_buffer(f"{part}_mean", torch.zeros(hidden_size))  # (D,)
            self.register_buffer(f"{part}_projection", torch.zeros(hidden_size, width))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("begins_share", torch.tensor(0.8))
        self.register_buffer("alike", torch.tensor(0.5))
        self.register_buffer("amid_least", torch.tensor(0.5))
        self.register_buffer("goes_on_least", torch.tensor(0.5))
        self.expects = Expectation(hidden_size)
        self.on_read: Callable[[Tensor], None] | None = None

    def queries(self, hidden_ND: Tensor) -> Tensor:
        """(N, K) fp32: what keys are compared with; each of the two parts has unit length."""
        with in_own_precision(hidden_ND):
            hidden = hidden_ND.float()
            begins = (hidden - self.begins_mean) @ self.begins_projection
            goes_on = (hidden - self.goes_on_mean) @ self.goes_on_projection
        return torch.cat([F.normalize(begins, dim=-1), F.normalize(goes_on, dim=-1)], dim=-1)

    def begins_least(self, queries_NK: Tensor) -> float:
        """The cosine with their mean from which a token is like these of a fact's wordings, each of unit length.

        Wordings of one fact are more alike than those of another. The cosine is by how much a token must on average be like a wording, over
        their mean's length, whatever their number.
        """
        length, count = float(queries_NK.mean(0).norm()), len(queries_NK)
        alike = (count * length**2 - 1) / (count - 1) if count > 1 else float(self.alike)
        return within_reason(float(self.begins_share) * alike / max(length, 1e-6))

    def find(
        self,
        hidden_states: Tensor,
        lessons: Mapping[int, tuple[Cues, Opened]],
        told: Callable[[int, Opened], Opened] | None = None,
    ) -> dict[int, Tensor]:
        """For each lesson that has a token at an anchor: which one each token is at and reads, (B, T) int64, -1 for none.

        Args:
            hidden_states: (B, T, D) that enter the block.
            lessons: by number, those that are open; their cues have anchors.
            told: tells how fully names were said, see `memgraft.cues.Scopes.told`. None: where it matters, what is open tells.
        """
        near = {number: self._near(hidden_states, cues, opened) for number, (cues, opened) in lessons.items()}
        return undisputed(near, {number: cues for number, (cues, _) in lessons.items()}, told)

    def _near(self, hidden_states: Tensor, cues: Cues, opened: Opened) -> Near:
        anchors = cues.anchors
        assert anchors is not None
        opened = opened.to(hidden_states.device)
        open_BT = opened.tokens.any(-1)
        meant = opened.facts % anchors.fact_count  # a second group is of the same facts in lower case
        hidden = hidden_states[open_BT]
        facts, at_NU, above_NU = nearest(anchors, self.queries(hidden), self.expects(hidden), meant, opened.tokens[open_BT])
        at = at_NU.new_full((*open_BT.shape, len(facts)), -1)
        above = above_NU.new_full(at.shape, -1.0)
        at[open_BT], above[open_BT] = at_NU, above_NU
        return Near(facts, at, above, meant, opened)

    def forward(self, hidden_states: Tensor, reads: Sequence[tuple[ValueTable, Tensor]]) -> Tensor:
        """What is added to hidden states (B, T, D): of each table the rows at (B, T), -1 for none."""
        y = torch.zeros(hidden_states.shape, dtype=torch.float32, device=hidden_states.device)
        for table, at in reads:
            index, written = table.find(at)
            read = (at >= 0) & written
            if len(table.slots):
                y = y + table.values[index] * read[..., None]
        if self.on_read is not None:
            if torch.is_grad_enabled() and not y.requires_grad:
                y.requires_grad_(True)
            self.on_read(y)
        return (y * self.scale).to(hidden_states.dtype)


class Asked(NamedTuple):
    """Tokens of questions, each asked in several forms, at which an answer begins or goes on."""

    hidden_ED: Tensor
    groups: Tensor  # (E,) int64: those that should look alike have the same number: of a question, or of a token in its answer
    plain: Tensor  # (E,) bool: in a plain form, not one in which facts are taught
    kinds: Tensor  # (E,) int64: of the subject that is asked about, where it is one that no model knows; `NO_KIND`: a common question

    def of(self, chosen_E: Tensor) -> Asked:
        """Some of the tokens."""
        return Asked(*(each[chosen_E] for each in self))


def calibrate(layer: AnswerLayer, begins: Asked, goes_on: Sequence[Asked], tokens_ND: Tensor, *, seed: int) -> None:
    """Fit an answer layer to a base model without training.

    How much like a fact's wordings a token must be, as a share of how alike these are, is what lets `REACHED` of the plain forms through,
    measured against those in which facts are taught: directions and cosines differ from model to model. Questions are left out in turn:
    directions are fitted to those that they see, and make them more alike than others. Within an answer nothing is fitted to questions,
    and a cosine with the mean of the forms in which facts are taught lets `WITHIN` of the plain ones through, unless that is too little.
    What stands in front moves states further in some models than in others, so that it is measured in several sets of forms.

    Common questions differ in their subjects as much as in what they ask, and a model that knows the answer is on its way to it. Those
    of several kinds about subjects that no model knows show what facts are like before they are taught: what is asked of one and the
    same subject. Where there are some, shares are measured on them alone, a kind left out at a time.

    Args:
        begins: of common questions and of others.
        goes_on: sets of forms of common questions, of each of which as many are to be let through.
        tokens_ND: hidden states of all tokens of the same texts.
        seed: of the random directions.
    """
    mean, projection = discriminants(begins)
    layer.begins_mean.copy_(mean)
    layer.begins_projection.copy_(projection)
    tokens = tokens_ND.float().cpu()
    token_mean, token_whiten = whitening(tokens)
    generator = torch.Generator().manual_seed(seed)
    layer.goes_on_mean.copy_(token_mean)
    layer.goes_on_projection.copy_(token_whiten @ random_directions(tokens.shape[1], GOES_ON, generator))
    shares, alike = [], []
    for seen, left_out in folds(begins):
        share, of_two = relative_likeness(left_out, *discriminants(seen))
        shares.append(share)
        alike.append(of_two)
    if shares and len(measured := torch.cat(shares)):
        layer.begins_share.fill_(min(LIKEST, max(FAINTEST, measured.quantile(1 - REACHED).item())))
        layer.alike.fill_(torch.cat(alike).mean())
    cosines = [likeness(forms, layer.goes_on_mean.cpu(), layer.goes_on_projection.cpu()) for forms in goes_on]
    least = [of_forms.quantile(1 - WITHIN).item() for of_forms in cosines if len(of_forms)]
    if least:
        layer.goes_on_least.fill_(within_reason(max(FIRMLY, min(least))))


def folds(begins: Asked) -> Iterator[tuple[Asked, Asked]]:
    """What directions are fitted to and what is left out, for each kind of unknown subjects; or for `FOLDS` parts, where all are common."""
    unknown = bool((begins.kinds != NO_KIND).any())
    numbers = begins.kinds if unknown else begins.groups % FOLDS
    for number in numbers.unique().tolist():
        out = numbers == number
        if number != NO_KIND and not bool(out.all()):
            yield begins.of(~out), begins.of(out)


def expect(layer: AnswerLayer, begins: Asked, elsewhere: Asked) -> None:
    """Fit what tells where answers begin, to tokens in front of the answers to common questions and to others of the same questions.

    What passes is measured on plain forms of questions that are left out in turn.
    """
    expectation, scores = layer.expects, []
    for fold in range(FOLDS):
        out, apart = (asked.groups % FOLDS == fold for asked in (begins, elsewhere))
        if bool(out.any()) and not bool(out.all()) and not bool(apart.all()):
            expectation.fit(begins.hidden_ED[~out], elsewhere.hidden_ED[~apart])
            scores.append(expectation.scores(begins.hidden_ED[out & begins.plain].to(expectation.offset.device)))
    if scores:
        expectation.fit(begins.hidden_ED, elsewhere.hidden_ED)
        expectation.let_through(torch.cat(scores))


def measure_chance(layer: AnswerLayer, texts: Sequence[Tensor]) -> None:
    """How much alike tokens within statements must be: as few pairs of tokens of different texts are, in all directions together.

    Within a statement no answer is expected, and what precedes it there are words of a text like any other. The rest of the layer
    comes first.

    Args:
        texts: hidden states (T, D) of each of the background's texts.
    """
    if not texts:
        return
    hidden, numbers = torch.cat(list(texts)), torch.cat([torch.full((len(text),), number) for number, text in enumerate(texts)])
    every = -(-len(hidden) // PAIRED)
    hidden, numbers = hidden[::every].to(layer.amid_least.device), numbers[::every].to(layer.amid_least.device)
    unexpected = ~layer.expects(hidden)
    queries, numbers = layer.queries(hidden)[unexpected], numbers[unexpected]
    pairs = (queries @ queries.T)[numbers[:, None] != numbers] / 2**0.5  # as with a key, which has unit length
    if len(pairs):
        layer.amid_least.fill_(within_reason(pairs.float().cpu().sort().values[-1 - int(BY_CHANCE * (len(pairs) - 1))].item()))


def discriminants(begins: Asked) -> tuple[Tensor, Tensor]:
    """Mean (D,) and projection (D, K) on the directions in which questions differ most, in the scatter of how each is asked."""
    hidden, questions = begins.hidden_ED.double().cpu(), begins.groups.unique(return_inverse=True)[1]
    mean = hidden.mean(0)
    count = int(questions.max()) + 1
    sums = torch.zeros(count, hidden.shape[1], dtype=torch.float64).index_add_(0, questions, hidden)
    centres = sums / torch.bincount(questions, minlength=count)[:, None]
    within = hidden - centres[questions]
    scatter = within.T @ within / len(within)
    scatter.diagonal().add_(SHRINKAGE * scatter.diagonal().mean().clamp_min(1e-12))
    variances, directions = torch.linalg.eigh(scatter)
    whiten = directions * variances.rsqrt() @ directions.T
    between = torch.linalg.svd((centres - mean) @ whiten, full_matrices=False).Vh[: min(BEGINS, count - 1)]  # centred, they span no more
    projection = torch.zeros(hidden.shape[1], BEGINS)
    projection[:, : len(between)] = (whiten @ between.T).float()
    return mean.float(), projection


def likeness(asked: Asked, mean: Tensor, projection: Tensor) -> Tensor:
    """Of each plain token the cosine with the mean of its group's taught ones; those of groups without are left out."""
    queries_EK = F.normalize((asked.hidden_ED.float().cpu() - mean) @ projection, dim=-1)
    groups = asked.groups.unique(return_inverse=True)[1]
    count = int(groups.max()) + 1 if len(groups) else 0
    taught = ~asked.plain
    centres = F.normalize(torch.zeros(count, queries_EK.shape[1]).index_add_(0, groups[taught], queries_EK[taught]), dim=-1)
    measured = asked.plain & torch.isin(groups, groups[taught])
    return (queries_EK[measured] * centres[groups[measured]]).sum(-1)


def relative_likeness(asked: Asked, mean: Tensor, projection: Tensor) -> tuple[Tensor, Tensor]:
    """Of each plain token its mean cosine with its group's taught ones, as a share of that of two of these; and, by group, the latter.

    Groups with fewer than two taught tokens are left out.
    """
    queries_EK = F.normalize((asked.hidden_ED.float().cpu() - mean) @ projection, dim=-1)
    shares, alike = [torch.zeros(0)], [torch.zeros(0)]
    for group in asked.groups.unique().tolist():
        taught, plain = (queries_EK[(asked.groups == group) & kind] for kind in (~asked.plain, asked.plain))
        if len(taught) > 1:
            of_two = (taught @ taught.T).sum().sub(len(taught)) / (len(taught) * (len(taught) - 1))
            shares.append(plain @ taught.mean(0) / of_two.clamp_min(FAINTEST))
            alike.append(of_two[None])
    return torch.cat(shares), torch.cat(alike)


def within_reason(cosine: float) -> float:
    """A least cosine from `FAINTEST` to `CLOSEST`."""
    return min(CLOSEST, max(FAINTEST, cosine))
