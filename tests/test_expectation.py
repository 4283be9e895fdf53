"""Whether an answer is expected, against densities from the library, on random states."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import MultivariateNormal

from memgraft.expectation import SHRINKAGE, Expectation, gaussian


def states(count: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator) @ torch.randn(width, width, generator=generator) + seed


@pytest.mark.parametrize("directions", [1, 4, 7])
def test_it_is_the_ratio_of_two_densities(directions: int) -> None:
    fitted = [states(50, 8, seed) for seed in (1, 2)]
    slow = []
    for each in fitted:
        variances, vectors = torch.linalg.eigh(torch.cov(each.double().T, correction=0))
        floor = SHRINKAGE * variances.mean()
        variances[:-directions] = variances[:-directions].mean()
        slow.append(MultivariateNormal(each.double().mean(0), (vectors * (variances + floor)) @ vectors.T))
    expectation = Expectation(8)
    expectation.projections = torch.zeros(2, 8, directions)
    expectation.fit(*fitted)
    probes = states(30, 8, 3)
    ratio = slow[0].log_prob(probes.double()) - slow[1].log_prob(probes.double())
    torch.testing.assert_close(expectation.scores(probes), ratio.float(), rtol=1e-3, atol=1e-3)
    expectation.let_through(expectation.scores(probes))
    assert int(expectation(probes).sum()) == 29  # all but the least, which .99 of 30 leave out


def test_one_token_makes_no_density_of_zero_width() -> None:
    found = gaussian(torch.ones(1, 8), 4)
    assert all(bool(torch.isfinite(part).all()) for part in found)
