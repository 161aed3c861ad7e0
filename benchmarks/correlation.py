"""How well scores agree with people: SRCC, and PLCC after the customary logistic mapping."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.special import expit
from scipy.stats import pearsonr, spearmanr

Array = NDArray[np.float64]


def logistic(x: Array, low: float, high: float, center: float, log_width: float) -> Array:
    """Four-parameter logistic of the VQEG reports, increasing in x."""
    return np.asarray(low + (high - low) * expit((x - center) / np.exp(log_width)))


def srcc(scores: Array, mos: Array) -> float:
    """Spearman's rank correlation of scores [N] and mean opinion scores [N]."""
    return float(spearmanr(scores, mos).statistic)


def plcc(scores: Array, mos: Array) -> float:
    """Pearson's correlation of MOS [N] and scores [N] mapped by a fitted four-parameter logistic.

    Where the fit does not converge the scores are compared unmapped.
    """
    start = (mos.min(), mos.max(), float(np.median(scores)), float(np.log(scores.std() + 1e-12)))
    try:
        parameters, _ = curve_fit(logistic, scores, mos, p0=start, maxfev=20_000)
    except (RuntimeError, OptimizeWarning):
        return float(pearsonr(scores, mos).statistic)
    return float(pearsonr(logistic(scores, *parameters), mos).statistic)
