"""How sure a mean, or its change, is: percentile bootstrap over items (Efron 1979), paired where two runs saw the same items.

Intervals take items to be independent. Windows of one text are only nearly so, and with few items (say, under 20)
percentile intervals are somewhat too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CELLS = 2**22  # resampled values held at once


@dataclass(frozen=True)
class Interval:
    """A mean over n items and its bootstrap interval; without bounds for a single item, which says nothing about the spread."""

    estimate: float
    low: float | None
    high: float | None
    n: int
    level: float


def mean_interval(
    values: Sequence[float], weights: Sequence[float] | None = None, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Interval:
    """The (weighted) mean Σwv/Σw and its interval. Items are resampled with their weights, so ratios of sums are covered.

    Raises ValueError for no values, values that are not finite, weights that are not positive, unequal lengths.
    """
    v = np.asarray(values, dtype=np.float64)
    w = np.ones_like(v) if weights is None else np.asarray(weights, dtype=np.float64)
    if not len(v):
        raise ValueError("no values: a mean and its interval need at least one")
    if v.shape != w.shape:
        raise ValueError(f"one weight a value, got {len(v)} values and {len(w)} weights")
    if not np.isfinite(v).all():
        raise ValueError(f"value {int(np.argmin(np.isfinite(v)))} is {v[np.argmin(np.isfinite(v))]}, not a finite number")
    if not (np.isfinite(w) & (w > 0)).all():
        raise ValueError("weights must be finite and above 0")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    if np.ptp(v) == 0:
        # Equal values have an exact mean; resampled weights would blur it by rounding.
        bound = float(v[0]) if len(v) > 1 else None
        return Interval(float(v[0]), bound, bound, len(v), level)
    means = _resampled_means(v, w, resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(math.fsum(w * v) / math.fsum(w), float(low), float(high), len(v), level)


def paired_bootstrap(
    before: Sequence[float],
    after: Sequence[float],
    weights: Sequence[float] | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The change of the (weighted) mean from before to after, on the same items in the same order. Raises like mean_interval."""
    if len(before) != len(after):
        raise ValueError(f"paired items are needed, got {len(before)} before and {len(after)} after")
    return mean_interval(np.subtract(after, before, dtype=np.float64).tolist(), weights, resamples, level, seed)


def _resampled_means(v: NDArray[np.float64], w: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    sums, weights = resampled_sums([w * v, w], resamples, seed)
    return sums / weights


def resampled_sums(columns: Sequence[NDArray[np.float64]], resamples: int, seed: int) -> list[NDArray[np.float64]]:
    """The sum of each column over items drawn with replacement, the same items of all columns, `resamples` times."""
    rng, count = np.random.default_rng(seed), len(columns[0])
    sums = [np.empty(resamples) for _ in columns]
    step = max(1, _CELLS // count)
    for start in range(0, resamples, step):
        drawn = rng.integers(count, size=(min(step, resamples - start), count))
        for column, summed in zip(columns, sums, strict=True):
            summed[start : start + step] = column[drawn].sum(1)
    return sums
