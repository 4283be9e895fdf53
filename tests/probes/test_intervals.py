"""Bootstrap intervals: coverage, pairing, degenerate data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memgraft.probes import mean_interval, paired_bootstrap

FINITE = st.floats(-1e6, 1e6)


def test_intervals_cover_the_true_mean_about_as_often_as_they_claim() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        before = rng.exponential(1.0, 60)
        after = before + rng.normal(0.3, 1.0, 60)
        interval = paired_bootstrap(before.tolist(), after.tolist(), resamples=400, seed=seed)
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= 0.3 <= interval.high
    assert 0.91 <= covered / 300 <= 0.98


def test_weighted_intervals_cover_the_true_ratio() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(300):
        counts = rng.integers(1, 512, 80).astype(float)
        means = rng.normal(2.0, 1.0, 80) + (counts > 256)  # long windows have a higher mean: weights matter
        interval = mean_interval(means.tolist(), counts.tolist(), resamples=400, seed=seed)
        long = np.arange(1, 512) > 256
        truth = 2.0 + np.arange(1, 512)[long].sum() / np.arange(1, 512).sum()
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= truth <= interval.high
    assert 0.90 <= covered / 300 <= 0.98


def test_pairing_narrows_the_interval() -> None:
    rng = np.random.default_rng(2)
    before = rng.normal(0, 10, 100)
    after = before + rng.normal(1, 0.1, 100)
    paired = paired_bootstrap(before.tolist(), after.tolist(), resamples=1000)
    alone = mean_interval(after.tolist(), resamples=1000)
    assert paired.low is not None and paired.high is not None and alone.low is not None and alone.high is not None  # noqa: PT018
    assert paired.high - paired.low < 0.1 * (alone.high - alone.low)
    assert 0.9 < paired.low < paired.estimate < paired.high < 1.1


def test_the_estimate_is_the_ratio_of_sums() -> None:
    assert paired_bootstrap([1.0, 2.0], [2.0, 5.0], weights=[1.0, 3.0]).estimate == (1 * 1 + 3 * 3) / 4


def test_the_same_seed_gives_the_same_bounds_and_another_seed_others() -> None:
    values = np.random.default_rng(3).normal(size=50).tolist()
    assert mean_interval(values, seed=5) == mean_interval(values, seed=5)
    assert mean_interval(values, seed=5) != mean_interval(values, seed=6)


def test_a_higher_level_gives_a_wider_interval() -> None:
    values = np.random.default_rng(4).normal(size=50).tolist()
    narrow, wide = mean_interval(values, level=0.5), mean_interval(values, level=0.99)
    assert narrow.low is not None and narrow.high is not None and wide.low is not None and wide.high is not None  # noqa: PT018
    assert wide.low < narrow.low < narrow.high < wide.high


def test_one_item_has_an_estimate_but_no_bounds() -> None:
    interval = paired_bootstrap([1.0], [3.0])
    assert (interval.estimate, interval.low, interval.high, interval.n) == (2.0, None, None, 1)


def test_equal_changes_have_an_interval_of_no_width() -> None:
    interval = paired_bootstrap([0.1, 0.2, 0.3], [0.1, 0.2, 0.3], weights=[0.1, 0.7, 0.3])
    assert (interval.estimate, interval.low, interval.high) == (0.0, 0.0, 0.0)
    assert mean_interval([0.3] * 7, weights=[0.1] * 7).low == 0.3


@given(st.lists(st.tuples(FINITE, FINITE, st.floats(0.01, 100)), min_size=2, max_size=20))
def test_bounds_lie_within_the_items_changes(items: list[tuple[float, float, float]]) -> None:
    before, after, weights = (list(column) for column in zip(*items, strict=True))
    interval = paired_bootstrap(before, after, weights, resamples=50)
    changes = [b - a for a, b, _ in items]
    slack = 1e-9 * (1 + max(map(abs, changes)))
    assert interval.low is not None
    assert interval.high is not None
    assert min(changes) - slack <= interval.low <= interval.high <= max(changes) + slack
    assert interval.n == len(items)


@pytest.mark.parametrize(
    ("values", "weights", "message"),
    [
        ([], None, "need at least one"),
        ([1.0, math.nan], None, "value 1 is nan"),
        ([1.0, 2.0], [1.0], "2 values and 1 weights"),
        ([1.0, 2.0], [1.0, 0.0], "weights must be finite and above 0"),
    ],
)
def test_values_without_a_mean_are_refused(values: list[float], weights: list[float] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_interval(values, weights)


def test_unpaired_items_are_refused() -> None:
    with pytest.raises(ValueError, match="2 before and 1 after"):
        paired_bootstrap([1.0, 2.0], [1.0])


def test_odd_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        mean_interval([1.0, 2.0], level=95)
    with pytest.raises(ValueError, match="resamples must be at least 1"):
        mean_interval([1.0, 2.0], resamples=0)
