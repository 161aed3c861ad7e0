"""Adaptive anchors: the most informative comparison first, and no more of them than the score needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compare2score.comparison import extend_preference_matrix
from compare2score.link import Array, Link, ratios
from compare2score.thurstone import map_estimate, posterior_covariance, prior_percentile

Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Stopping:
    """When an image has been compared enough, which is after one comparison at the earliest.

    Attributes:
        tolerance: stop when the next comparison, whatever its answer, cannot move the score by more than
            this, in points of the percentile scale, 0-100; at 0 all anchors are asked.
        std: stop when the posterior standard deviation of q is no more than this; at 0 never for that.
    """

    tolerance: float = 12.0
    std: float = 0.0


def compare_adaptively(
    ask: Callable[[Rows, int], ArrayLike], images: int, matrix: Array, link: Link, stopping: Stopping
) -> Array:
    """P(image preferred over anchor), [images, A], NaN for what was not asked.

    Goes in rounds: each asks, for every image still open, the anchor that should tell most about it; the
    images that want the same anchor are asked together. What an image is asked depends on its own answers
    alone, so that its neighbours matter only where rounding in a batch tips a balance.

    Args:
        ask: (rows [m], anchor) -> P(image preferred over that anchor) [m], in [0, 1].
        images: how many there are.
        matrix: the anchors' preference matrix [A, A].
        link: of the estimate.
        stopping: when to leave an image.
    """
    answers = np.full((images, len(matrix)), np.nan)
    rows = np.arange(images)
    while len(rows):
        known = answers[rows]
        choice = next_anchors(matrix, known, link)
        keep = ~enough(matrix, known, choice, link, stopping)
        rows, choice = rows[keep], choice[keep]
        for anchor in np.unique(choice).tolist():
            asked = rows[choice == anchor]
            answers[asked, anchor] = ask(asked, anchor)
        rows = rows[np.isnan(answers[rows]).any(axis=1)]
    return answers


def next_anchors(matrix: Array, answers: Array, link: Link) -> Rows:
    """The anchor, [N], whose answer should shrink each image's posterior variance most.

    Anchors that were asked (`answers` [N, A] is not NaN there) are left out. A comparison at the difference
    d adds an expected curvature k = F'(d)^2 / F(d) F(-d), its Fisher information; with the posterior's
    covariances (Laplace) the variance of q then falls by k cov(q, d)^2 / (1 + k var(d)). Without any answer
    that takes the anchor nearest to the prior's middle.
    """
    comparisons = extend_preference_matrix(matrix, answers)
    q = map_estimate(comparisons, link).q
    covariance = posterior_covariance(comparisons, q, link)
    variances = covariance.diagonal(axis1=1, axis2=2)
    shared = covariance[:, -1, -1:] - covariance[:, -1, :-1]
    spread = variances[:, -1:] - 2.0 * covariance[:, -1, :-1] + variances[:, :-1]
    ahead, behind = ratios(q[:, -1:] - q[:, :-1], link)
    information = ahead * behind
    gain = information * shared**2 / (1.0 + information * spread)
    return np.asarray(np.where(np.isnan(answers), gain, -1.0).argmax(axis=1))


def enough(matrix: Array, answers: Array, choice: Rows, link: Link, stopping: Stopping) -> NDArray[np.bool_]:
    """Whether each image, [N], has been compared enough to leave out its next comparison, with `choice`.

    The estimate rises with every answer, so that the answers 0 and 1 bound what the next one can do.
    """
    asked = ~np.isnan(answers).all(axis=1)
    now = map_estimate(extend_preference_matrix(matrix, answers), link)
    value = prior_percentile(now.q[:, -1])
    reach = np.zeros(len(answers))
    for extreme in (0.0, 1.0):
        supposed = answers.copy()
        supposed[np.arange(len(answers)), choice] = extreme
        moved = prior_percentile(map_estimate(extend_preference_matrix(matrix, supposed), link).q[:, -1])
        reach = np.maximum(reach, np.abs(moved - value))
    return np.asarray(asked & ((reach <= stopping.tolerance) | (now.std[:, -1] <= stopping.std)))
