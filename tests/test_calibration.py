"""Calibration: whitening, directions and centroids with known answers, and slots that are used more evenly than at random."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from memgraft.calibration import SHRINKAGE, calibrate, random_directions, spherical_k_means, whitening
from memgraft.commits import Rows
from memgraft.config import MemoryConfig
from memgraft.memory import MemoryLayer, ValueTable

WIDTH = 24


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stretched(points: int = 4000, seed: int = 0) -> Tensor:
    """Points around a far-off mean whose variance differs by four orders of magnitude between directions."""
    scales = torch.logspace(-2, 2, WIDTH)
    rotation = random_directions(WIDTH, WIDTH, generator(9))
    return (torch.randn(points, WIDTH, generator=generator(seed)) * scales) @ rotation + 50


def memory() -> MemoryLayer:
    config = MemoryConfig(layers=(0,), hidden_size=WIDTH, slots=256, top_k=4, heads=2, key_dim=8)
    return MemoryLayer(config, ValueTable(Rows.empty(WIDTH)))


def test_whitened_directions_have_a_variance_of_one_less_what_the_floor_takes() -> None:
    hidden = stretched()
    mean, matrix = whitening(hidden)
    white = (hidden - mean) @ matrix
    torch.testing.assert_close(white.mean(0), torch.zeros(WIDTH), atol=1e-2, rtol=0)
    covariance = (hidden - hidden.mean(0)).double().T @ (hidden - hidden.mean(0)).double() / len(hidden)
    variances = torch.linalg.eigvalsh(covariance)
    expected = variances / (variances + SHRINKAGE * variances.median())
    found = torch.linalg.eigvalsh(white.double().T @ white.double() / len(white))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert found[-1] > 0.99
    torch.testing.assert_close(matrix, matrix.T)


def test_whitening_of_states_without_any_variance_is_finite() -> None:
    mean, matrix = whitening(torch.full((10, WIDTH), 3.0))
    assert torch.equal(mean, torch.full((WIDTH,), 3.0))
    assert torch.isfinite(matrix).all()


@pytest.mark.parametrize("columns", [5, WIDTH, 2 * WIDTH + 3])
def test_directions_are_orthonormal_as_far_as_there_is_room(columns: int) -> None:
    directions = random_directions(WIDTH, columns, generator())
    assert directions.shape == (WIDTH, columns)
    for block in directions.split(WIDTH, dim=1):
        torch.testing.assert_close(block.T @ block, torch.eye(block.shape[1]), atol=1e-5, rtol=0)


def test_k_means_finds_the_directions_that_points_lie_in() -> None:
    directions = random_directions(6, 6, generator(3)).T
    points = directions.repeat_interleave(50, 0) + 0.05 * torch.randn(300, 6, generator=generator(1))
    centroids = spherical_k_means(points, 6, generator(2))
    torch.testing.assert_close(centroids.norm(dim=-1), torch.ones(6))
    assert len({int(index) for index in (directions @ centroids.T).argmax(-1)}) >= 5
    assert (directions @ centroids.T).max(-1).values.mean() > 0.9


@pytest.mark.parametrize("points", [3, 20, 63, 500])
def test_k_means_gives_as_many_unit_centroids_as_asked_for_even_of_few_points(points: int) -> None:
    centroids = spherical_k_means(torch.randn(points, 4, generator=generator()), 32, generator(1))
    assert centroids.shape == (32, 4)
    torch.testing.assert_close(centroids.norm(dim=-1), torch.ones(32))
    assert len(centroids.unique(dim=0)) == 32


def test_slots_are_used_more_evenly_than_with_random_projections_and_keys() -> None:
    def entropy(layer: MemoryLayer) -> float:
        shares = torch.bincount(layer.address(stretched(seed=5)).slots.flatten(), minlength=256).double()
        shares = shares / shares.sum()
        return -float((shares * shares.clamp_min(1e-12).log()).sum()) / math.log(256)

    calibrated, random = memory(), memory()
    calibrate(calibrated, stretched(), seed=0)
    random.query_projection.normal_(generator=generator())
    random.sub_keys.copy_(F.normalize(torch.randn(random.sub_keys.shape, generator=generator()), dim=-1))
    assert entropy(calibrated) > 0.9
    assert entropy(random) < 0.75


def test_a_seed_repeats_and_the_subsample_that_k_means_sees_is_part_of_it() -> None:
    first, again, other, fewer = (memory() for _ in range(4))
    for layer, seed, points in ((first, 1, 32_768), (again, 1, 32_768), (other, 2, 32_768), (fewer, 1, 100)):
        calibrate(layer, stretched(), seed=seed, max_points=points)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in first.state_dict().items())
    assert not torch.equal(first.query_projection, other.query_projection)
    assert torch.equal(first.query_projection, fewer.query_projection)
    assert not torch.equal(first.sub_keys, fewer.sub_keys)
