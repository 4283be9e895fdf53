"""Whether an answer begins behind a token at all, whatever was asked: told from the token's state, by two Gaussians.

The directions in which keys are compared (`memgraft.answer_layer`) tell one question from another. That prose is no question at all they
don't see: a subject that is a common word opens its fact in many texts, and there one token in a hundred looked like the fact's question.
So the states at which the answers to common questions begin and those of other tokens of the same texts have a Gaussian each (quadratic
discriminant analysis), with a variance of its own in each of the directions in which it varies most and one for all others (as in
probabilistic principal component analysis, Tipping & Bishop 1999, §3.2), and what is more likely under the second by a
measured margin reads no anchor where answers begin.

Shape suffixes: N tokens, D hidden size, R directions, 2 where answers begin and elsewhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from memgraft.precision import in_own_precision

DIRECTIONS = 32  # that have a variance of their own, of each Gaussian
SHRINKAGE = 3.0  # mean variances that are added to each: users' questions differ more from the common ones than these from each other
LET_THROUGH = 0.99  # share of tokens in front of answers to plain forms, of questions that nothing was fitted on


class Expectation(nn.Module):
    """Tells tokens behind which an answer begins. One that is not fitted says so of all."""

    means: Tensor
    projections: Tensor
    precisions: Tensor  # (2,) one by the variance in all directions but the projections'
    offset: Tensor  # () the log-likelihood ratio, but for its quadratic part, minus the one from which a token passes

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(2, hidden_size))
        self.register_buffer("projections", torch.zeros(2, hidden_size, min(DIRECTIONS, hidden_size // 2)))
        self.register_buffer("precisions", torch.zeros(2))
        self.register_buffer("offset", torch.zeros(()))

    def scores(self, hidden_ND: Tensor) -> Tensor:
        """(N,) fp32: by how much an answer is more likely to begin there than the least of what passes."""
        with in_own_precision(hidden_ND):
            centred_2ND = hidden_ND.float() - self.means[:, None]
            within_2N = (centred_2ND @ self.projections).square().sum(-1)  # by so much nearer, as their directions vary more
            distances_2N = self.precisions[:, None] * centred_2ND.square().sum(-1) - within_2N
        return (distances_2N[1] - distances_2N[0]) / 2 + self.offset

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """(N,) bool: whether an answer may begin behind each token."""
        return self.scores(hidden_ND) >= 0

    def fit(self, begins_ND: Tensor, elsewhere_ND: Tensor) -> None:
        """Fit to states of tokens behind which answers begin, and of others; both must be some. What passes is `let_through`'s to say."""
        fitted = [gaussian(states.cpu(), self.projections.shape[-1]) for states in (begins_ND, elsewhere_ND)]
        for number, each in enumerate(fitted):
            self.means[number] = each.mean
            self.projections[number] = each.projection
            self.precisions[number] = each.precision
        self.offset.copy_((fitted[1].log_determinant - fitted[0].log_determinant) / 2)

    def let_through(self, scores: Tensor) -> None:
        """From now on let pass what `LET_THROUGH` of these scores (N,) reach."""
        self.offset -= scores.quantile(1 - LET_THROUGH)


class Gaussian(NamedTuple):
    """A normal distribution: its squared Mahalanobis distance is precision · |x - mean|² - |(x - mean) @ projection|²."""

    mean: Tensor  # (D,)
    projection: Tensor  # (D, R)
    precision: Tensor  # ()
    log_determinant: Tensor  # () of its covariance


def gaussian(states_ND: Tensor, directions: int) -> Gaussian:
    """The Gaussian of states, in fp32: with `directions` variances of its own, one for all others, each with the shrinkage."""
    states = states_ND.double()
    mean = states.mean(0)
    centred = states - mean
    variances, vectors = torch.linalg.eigh(centred.T @ centred / len(states))
    floor = SHRINKAGE * variances.mean().clamp_min(1e-12)
    own, rest = variances[-directions:].clamp_min(0) + floor, variances[:-directions].clamp_min(0).mean() + floor
    projection = vectors[:, -directions:] * (1 / rest - 1 / own).clamp_min(0).sqrt()
    log_determinant = own.log().sum() + (len(variances) - directions) * rest.log()
    return Gaussian(mean.float(), projection.float(), (1 / rest).float(), log_determinant.float())
