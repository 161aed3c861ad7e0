"""The bootstrap of agreement with people: all resamples of a batch at once.

A resample is written as how often it holds each image, `times` [B, N]: ranks, correlations, fits and pairs of
B resamples are then computed from the N images, without copying any.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from compare2score.training.pairs import SIMILAR, comparative_level

Array = NDArray[np.float64]
Whole = NDArray[np.int64]

PAIR_LEVELS = ("similar", "better", "superior")
"""Levels of a pair, whichever image comes first: "worse" is "better" seen from the other side."""
EXACT_ROWS = 1200
"""Up to so many images a resample's pairs are counted one by one; beyond, to first order in `times`, which
then differs by less than a thousandth of the interval's place."""
BLOCK = 1 << 18
"""Numbers in one vectorised step; bounds the memory."""
STEPS = 30
TOLERANCE = 1e-7
"""Relative change of the squared error at which a fit is done; PLCC then stands to six decimals or so."""


def draw_times(unit: Whole, units: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each image is in each resample, in batches [B, N]: whole units are drawn, `units` of them."""
    batch = max(1, BLOCK // max(1, len(unit)))
    for place, start in enumerate(range(0, resamples, batch)):
        generator = np.random.default_rng([seed, place])
        count = min(batch, resamples - start)
        drawn = generator.multinomial(units, np.full(units, 1 / units), size=count)
        yield drawn[:, unit].astype(np.float64)


def correlate(first: Array, second: Array, times: Array) -> Array:
    """Pearson's correlations [B] of values [N] or [B, N]; NaN where one of the two is constant."""
    size = times.sum(axis=1, keepdims=True)
    centred = [values - (times * values).sum(axis=1, keepdims=True) / size for values in (first, second)]
    both, one, other = ((times * a * b).sum(axis=1) for a, b in (centred, [centred[0]] * 2, [centred[1]] * 2))
    # What rounding leaves of a constant's variance is no variance.
    scales = [np.abs(values).max() ** 2 * size[:, 0] for values in (first, second)]
    varies = (one > 1e-20 * scales[0]) & (other > 1e-20 * scales[1])
    return np.where(varies, both / np.sqrt(np.where(varies, one * other, 1)), np.nan)


def ranks(values: Array, times: Array) -> Array:
    """Ranks [B, N], ties at their mean, of values [N] in the resamples that hold them."""
    counts, place = tie_counts(values, times)
    return np.asarray((counts.cumsum(axis=1) - (counts - 1) / 2)[:, place])


def ties(values: Array, times: Array) -> Array:
    """Pairs [B] of equal values in each resample."""
    counts, _ = tie_counts(values, times)
    return np.asarray((counts * (counts - 1) / 2).sum(axis=1))


def tie_counts(values: Array, times: Array) -> tuple[Array, Whole]:
    """How often each resample holds each distinct value, these in rising order, and which each image has."""
    distinct, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(distinct)))
    return np.add.reduceat(times[:, order], starts, axis=1), place.reshape(-1)


def fit_logistics(scores: Array, mos: Array, times: Array, start: Array) -> Array:
    """Parameters [B, 4] of `correlation.logistic` for each resample, from a common start [4].

    Levenberg and Marquardt's method on all resamples at once. The start is the fit to all images, from where
    few steps are needed; a resample that takes more than STEPS keeps the best that was found. Where scores
    and opinions are related by a line the four parameters are not determined, and the fit may end a little
    (well below a hundredth of the error) above the least squares.
    """
    found = np.tile(start, (len(times), 1))
    damping = np.full(len(times), 1e-3)
    error, gradient, curvature = normal_equations(scores, mos, times, found)
    left = np.arange(len(times))
    for _ in range(STEPS):
        diagonal = np.einsum("bii->bi", curvature[left]) + 1e-12
        damped = curvature[left] + (damping[left, None] * diagonal)[:, :, None] * np.eye(4)
        step = np.linalg.solve(damped, gradient[left][:, :, None])[:, :, 0]
        # Far from where it stands the curve says nothing of its width.
        step[:, 3] = np.clip(step[:, 3], -2, 2)
        tried = found[left] + step
        squares, slope, bend = normal_equations(scores, mos, times[left], tried)
        gain = error[left] - squares
        better = gain >= 0
        rows = left[better]
        found[rows], error[rows], gradient[rows], curvature[rows] = (
            values[better] for values in (tried, squares, slope, bend)
        )
        damping[left] *= np.where(better, 0.1, 10)
        left = left[~(np.abs(gain) <= TOLERANCE * error[left])]
        if not len(left):
            break
    return found


def normal_equations(
    scores: Array, mos: Array, times: Array, parameters: Array
) -> tuple[Array, Array, Array]:
    """Squared error [B], its descent direction [B, 4] and Gauss and Newton's curvature [B, 4, 4]."""
    low, high, center, log_width = (parameters[:, place, None] for place in range(4))
    steepness = np.exp(-np.clip(log_width, -300, 300))
    away = (scores - center) * steepness
    share = expit(away)
    slope = (high - low) * share * (1 - share)
    slopes = np.stack([1 - share, share, -slope * steepness, -slope * away], axis=1)
    residual = mos - low - (high - low) * share
    weighted = slopes * times[:, None]
    gradient = np.matmul(weighted, residual[:, :, None])[:, :, 0]
    return (times * residual**2).sum(axis=1), gradient, np.matmul(weighted, slopes.transpose(0, 2, 1))


@dataclass(frozen=True, eq=False)
class PairCensus:
    """All pairs of N images, by level; those of equal mean opinion have no order and are left out.

    right_rows: [M, 3, N] for each image of how many pairs each method has the order right; a pair of equal
        scores counts half.
    total_rows: [3, N] how many pairs each image has.
    right, total: [M, 3, N, N] and [3, N, N], the same pair by pair, where N is at most EXACT_ROWS.
    """

    right_rows: Array
    total_rows: Array
    right: NDArray[np.float32] | None
    total: NDArray[np.float32] | None

    def counts(self) -> tuple[Array, Array]:
        """Rightly ordered pairs [M, 3] and pairs [3] of all images."""
        return self.right_rows.sum(axis=-1) / 2, self.total_rows.sum(axis=-1) / 2

    def resampled(self, times: Array) -> tuple[Array, Array]:
        """The same [B, M, 3] and [B, 3] of resamples."""
        if self.right is None or self.total is None:
            # sum of (w_i + w_j - 1) over pairs: w_i w_j to first order.
            right, total = self.counts()
            return (
                np.einsum("bn,mln->bml", times, self.right_rows) - right,
                np.einsum("bn,ln->bl", times, self.total_rows) - total,
            )
        return weigh(self.right, times), weigh(self.total, times)


def weigh(pairs: NDArray[np.float32], times: Array) -> Array:
    """Half of w^T P w for each resample's w and each of the matrices P [..., N, N]: [B, ...]."""
    weights = times.astype(np.float32)
    shape = pairs.shape[:-2]
    found = [((weights @ matrix) * times).sum(axis=1) / 2 for matrix in pairs.reshape(-1, *pairs.shape[-2:])]
    return np.stack(found, axis=1).reshape(len(times), *shape)


def count_pairs(scores: Array, mos: Array, std: Array) -> PairCensus:
    """Goes through all pairs of N images under M methods' scores [M, N] and opinions of deviation std [N]."""
    methods, size = scores.shape
    right_rows = np.zeros((methods, len(PAIR_LEVELS), size))
    total_rows = np.zeros((len(PAIR_LEVELS), size))
    exact = size <= EXACT_ROWS
    right = np.zeros((*right_rows.shape, size if exact else 0), np.float32)
    total = np.zeros((*total_rows.shape, size if exact else 0), np.float32)
    step = max(1, BLOCK // max(1, size))
    for start in range(0, size, step):
        rows = slice(start, start + step)
        level = np.abs(comparative_level(mos[rows, None], std[rows, None], mos, std) - SIMILAR)
        order = np.sign(mos[rows, None] - mos)
        correct = [(1 + np.sign(row[rows, None] - row) * order) / 2 for row in scores]
        for place in range(len(PAIR_LEVELS)):
            ordered = (level == place) & (order != 0)
            total_rows[place, rows] = ordered.sum(axis=1)
            if exact:
                total[place, rows] = ordered
            for method, share in enumerate(correct):
                counted = share * ordered
                right_rows[method, place, rows] = counted.sum(axis=1)
                if exact:
                    right[method, place, rows] = counted
    return PairCensus(right_rows, total_rows, right if exact else None, total if exact else None)
