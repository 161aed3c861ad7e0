"""How well scores agree with people: correlations, pair accuracy by level, and their bootstrap intervals.

The measures are those of the field: SRCC and KRCC (tau-b) of the scores as they are, PLCC and RMSE after the
four-parameter logistic of the VQEG reports has mapped scores to opinions. Pair accuracy is the share of pairs
that the scores order as the mean opinions do, apart for each comparative level of the paper's Eq. 2
(arXiv 2405.19298), of which an exchange of the two images leaves three.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import curve_fit
from scipy.special import expit, ndtr, ndtri
from scipy.stats import kendalltau, pearsonr, spearmanr

from compare2score.pipelines.resample import (
    PAIR_LEVELS,
    PairCensus,
    correlate,
    count_pairs,
    draw_times,
    fit_logistics,
    ranks,
    ties,
)

Array = NDArray[np.float64]
Whole = NDArray[np.int64]

STATISTICS = ("srcc", "plcc", "krcc", "rmse", *PAIR_LEVELS)
RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A statistic and its bootstrap interval of 95 %; not a number where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """How scores of N images agree with people.

    statistics: an Estimate for each of STATISTICS; RMSE is on the scale of the opinions, the levels' pair
        accuracies are shares, 0-1.
    """

    statistics: Mapping[str, Estimate]


@dataclass(frozen=True)
class Measurement:
    """Agreement of one or several methods with the same opinions.

    Attributes:
        images: N.
        units: what the bootstrap drew from: groups of images that belong together, or single images.
        pairs: how many pairs each of PAIR_LEVELS has, pairs of equal mean opinion left out.
        agreements: one of each method.
        differences: method minus the first, of each method but the first; the bootstrap is paired, every
            resample is the same images for all methods.
    """

    images: int
    units: int
    pairs: Mapping[str, int]
    agreements: tuple[Agreement, ...]
    differences: tuple[Agreement, ...]


def logistic(x: Array, low: float, high: float, center: float, log_width: float) -> Array:
    """Four-parameter logistic of the VQEG reports, increasing in x where high > low."""
    return np.asarray(low + (high - low) * expit((x - center) / np.exp(log_width)))


def fit_logistic(scores: Array, mos: Array) -> Array | None:
    """Parameters [4] of the logistic from scores [N] to mean opinion scores [N], by least squares.

    None where there are too few images for four parameters (N < 5), one of the two does not vary, or the fit
    does not converge.
    """
    if len(scores) < 5 or not (np.ptp(scores) > 0 and np.ptp(mos) > 0):
        return None
    start = (mos.min(), mos.max(), float(np.median(scores)), float(np.log(scores.std() + 1e-12)))
    try:
        with warnings.catch_warnings():
            # That the parameters' covariance is unknown does not concern the curve.
            warnings.simplefilter("ignore")
            found, _ = curve_fit(logistic, scores, mos, p0=start, maxfev=20_000)
    except RuntimeError:
        return None
    return np.asarray(found, np.float64)


def mapped(scores: Array, mos: Array, parameters: Array | None) -> Array:
    """Scores [N] on the scale of the opinions: by the logistic, or where that is None by the best line."""
    if parameters is not None:
        return logistic(scores, *parameters)
    if not np.ptp(scores) > 0:
        return np.full(len(mos), mos.mean())
    slope, offset = np.polyfit(scores, mos, 1)
    return np.asarray(slope * scores + offset, np.float64)


def srcc(scores: Array, mos: Array) -> float:
    """Spearman's rank correlation of scores [N] and mean opinion scores [N]; NaN where one is constant."""
    return float(spearmanr(scores, mos).statistic) if vary(scores, mos) else np.nan


def krcc(scores: Array, mos: Array) -> float:
    """Kendall's tau-b of scores [N] and mean opinion scores [N]; NaN where one is constant."""
    if not vary(scores, mos):
        return np.nan
    # Only tau is read, and the asymptotic test beside it is the cheapest; for two images it divides by zero.
    method: Literal["asymptotic", "exact"] = "asymptotic" if len(mos) > 2 else "exact"
    return float(kendalltau(scores, mos, method=method).statistic)


def plcc(scores: Array, mos: Array) -> float:
    """Pearson's correlation of MOS [N] and scores [N] mapped by a fitted four-parameter logistic.

    Where there is no fit the scores are compared unmapped; NaN where one of the two is constant.
    """
    return fitted(scores, mos, fit_logistic(scores, mos))[0]


def rmse(scores: Array, mos: Array) -> float:
    """Root mean squared error of scores [N] after the logistic (else a line), on the scale of the MOS [N]."""
    return fitted(scores, mos, fit_logistic(scores, mos))[1]


def vary(scores: Array, mos: Array) -> bool:
    """Whether a correlation of the two is defined."""
    return len(mos) > 1 and bool(np.ptp(scores) > 0 and np.ptp(mos) > 0)


def fitted(scores: Array, mos: Array, parameters: Array | None) -> tuple[float, float]:
    """PLCC and RMSE of scores [N] under the parameters of a logistic, or without one."""
    if not len(mos):
        return np.nan, np.nan
    on_scale = mapped(scores, mos, parameters)
    # Without a logistic the scores keep their own sign, which a fitted line would lose.
    compared = scores if parameters is None else on_scale
    correlation = float(pearsonr(compared, mos).statistic) if vary(compared, mos) else np.nan
    return correlation, float(np.sqrt(np.mean((on_scale - mos) ** 2)))


def measure(
    scores: Array,
    mos: Array,
    std: Array,
    unit: Whole | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Measurement:
    """Agreement of scores [M, N] of M methods with mean opinion scores [N] of deviation std [N].

    unit: [N] which images are drawn together, numbered from 0, for images that depend on each other (one
        scene, one prompt); by default each for itself.
    resamples: of the bootstrap; the logistic is fitted anew in each. 0 leaves the intervals undefined.
    """
    unit = np.arange(len(mos)) if unit is None else unit
    units = int(unit.max()) + 1 if len(unit) else 0
    curves = [fit_logistic(row, mos) for row in scores]
    census = count_pairs(scores, mos, std)
    right, total = census.counts()
    values = np.array(
        [
            [srcc(row, mos), fit[0], krcc(row, mos), fit[1], *of_pairs]
            for row, fit, of_pairs in zip(
                scores,
                (fitted(row, mos, curve) for row, curve in zip(scores, curves, strict=True)),
                share(right, total),
                strict=True,
            )
        ]
    )
    batches = draw_times(unit, units, resamples if units > 1 else 0, seed)
    drawn = [resampled(scores, mos, curves, census, times) for times in batches]
    found = np.concatenate([np.empty((0, *values.shape)), *drawn])
    return Measurement(
        images=len(mos),
        units=units,
        pairs={level: int(count) for level, count in zip(PAIR_LEVELS, total, strict=True)},
        agreements=tuple(agreement(values[m], found[:, m]) for m in range(len(scores))),
        differences=tuple(
            agreement(values[m] - values[0], found[:, m] - found[:, 0]) for m in range(1, len(scores))
        ),
    )


def resampled(
    scores: Array, mos: Array, curves: Sequence[Array | None], census: PairCensus, times: Array
) -> Array:
    """STATISTICS [B, M, S] of the resamples that hold each image so many times [B, N]."""
    right, total = census.resampled(times)
    size = times.sum(axis=1)
    opinion_ranks, opinion_ties, pairs = ranks(mos, times), ties(mos, times), size * (size - 1) / 2
    found = []
    for place, (row, curve) in enumerate(zip(scores, curves, strict=True)):
        if curve is None:
            linear = correlate(row, mos, times)
            error = np.full(len(times), np.nan)
        else:
            curved = fit_logistics(row, mos, times, curve)
            on_scale = logistic(row, *(column[:, None] for column in curved.T))
            linear = correlate(on_scale, mos, times)
            error = np.sqrt((times * (on_scale - mos) ** 2).sum(axis=1) / size)
        # Concordant less discordant pairs: right less wrong ones, of whatever level.
        surplus = (2 * right[:, place] - total).sum(axis=1)
        ordered = (pairs - ties(row, times)) * (pairs - opinion_ties)
        tau = np.where(ordered > 0, surplus / np.sqrt(np.where(ordered > 0, ordered, 1)), np.nan)
        rank = correlate(ranks(row, times), opinion_ranks, times)
        found.append(np.stack([rank, linear, tau, error, *share(right[:, place], total).T], axis=1))
    return np.stack(found, axis=1)


def share(right: Array, total: Array) -> Array:
    """right / total, NaN where there is nothing to divide by."""
    return np.where(total > 0, right / np.where(total > 0, total, 1), np.nan)


def agreement(values: Array, drawn: Array) -> Agreement:
    """Estimates of STATISTICS [S] from values [S] and resampled values [resamples, S]."""
    ends = [interval(value, column) for value, column in zip(values, drawn.T, strict=True)]
    return Agreement(
        {
            name: Estimate(float(value), low, high)
            for name, value, (low, high) in zip(STATISTICS, values, ends, strict=True)
        }
    )


def interval(value: float, drawn: Array) -> tuple[float, float]:
    """Bias-corrected percentile interval (Efron, 1981) of a statistic from its resampled values [resamples].

    Plain percentiles would count a bias twice that the statistic has anyway: RMSE comes out low, as the
    curve is fitted to the very images that it is measured on.
    """
    drawn = drawn[np.isfinite(drawn)]
    if not (len(drawn) and np.isfinite(value)):
        return np.nan, np.nan
    below = np.mean(drawn < value) + np.mean(drawn == value) / 2
    shift = 2 * ndtri(np.clip(below, 0.5 / len(drawn), 1 - 0.5 / len(drawn)))
    low, high = np.quantile(drawn, ndtr(shift + ndtri([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])))
    return float(low), float(high)
