"""Scale values from paired comparisons: MAP estimation under Thurstone's Case V.

The model: image i is preferred over image j with probability F(q_i - q_j), F being one of
`compare2score.link`, and every q_i has a standard normal prior. This is the estimator of Compare2Score
(arXiv 2405.19298), whose code climbs the same objective with 100 Adam steps; here Newton's method reaches
the maximum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from compare2score.link import LINKS, Array, Link, derivatives, normal_distribution, ratios
from compare2score.newton import negative_hessian, solve_chunk, solve_large, solve_one

# Up to this size a matrix alone is solved with products of small constant matrices. Its steps climb from a
# start with |d| < 2.6, so that |d| stays below 32, where Phi(d) is no zero yet.
_SMALL = 10
# Matrix entries of a batch worked on at once: such arrays stay in a core's cache.
_CHUNK = 5 * 2**12


@dataclass(frozen=True)
class MapEstimate:
    """Maximum a posteriori scale values of n images.

    q: [B, n], or [n] for one matrix, in the prior's standard deviations; each row sums to 0.
    std: shaped as q; posterior standard deviation (Laplace): sqrt(diag(H^-1)), where H is the negative
        Hessian of the log posterior at q; in (0, 1].
    iterations: Newton steps taken; of a batch, by its slowest problem; 0 for an empty batch.
    """

    q: Array
    std: Array
    iterations: int


def map_estimate(matrix: ArrayLike, link: Link = "probit") -> MapEstimate:
    """Maximise sum_ij C_ij log F(q_i - q_j) - 1/2 sum_i q_i^2 over q.

    matrix: [n, n] or [B, n, n] with n >= 2; C_ij in [0, 1] is the probability that image i is preferred
        over image j; 0 and 1 are allowed. C_ji need not be 1 - C_ij. The diagonal does not matter.
    link: "probit" for F = the normal distribution function, "logit" for the logistic one.

    Newton's method from a closed-form start: the row means of C through the inverse normal distribution
    function, shrunk as the prior does. A long step is shortened so that it provably climbs; a short one is
    corrected to third order, so that two steps nearly always suffice. In a batch each problem stops on its
    own and gets the same bits whatever its neighbours are; alone, as [n, n], it takes another linear solver
    and agrees to rounding.

    Raises ValueError if the matrix is not square, has n < 2, or holds a value that is not a number in
    [0, 1], or if the link is unknown.
    """
    if link not in LINKS:
        raise ValueError(f"Unknown link {link!r}: use 'probit' or 'logit'.")
    preference = np.asarray(matrix, dtype=np.float64)
    n = preference.shape[-1] if preference.ndim in (2, 3) else 0
    if n < 2 or preference.shape[-2] != n:
        raise ValueError(
            f"A preference matrix must be [n, n] or [B, n, n] with n >= 2, not {list(preference.shape)}."
        )
    # Written so that NaN, which compares false with everything, is refused as well.
    if preference.size and not (preference.min() >= 0.0 and preference.max() <= 1.0):
        raise ValueError("A preference matrix must hold probabilities: every entry a number from 0 to 1.")

    if preference.ndim == 2:
        return MapEstimate(*(solve_one if n <= _SMALL else solve_large)(preference, link))
    # Problems run along the last axis, so that every operation on them is one long vector operation.
    by_problem = np.ascontiguousarray(preference.reshape(preference.size // n**2, n**2).T)
    batch, width, iterations = by_problem.shape[1], max(1, _CHUNK // n**2), 0
    q, std = np.empty((batch, n)), np.empty((batch, n))
    for begin in range(0, batch, width):
        chunk = slice(begin, begin + width)
        q_chunk, std_chunk, used = solve_chunk(by_problem[:, chunk], n, link)
        q[chunk], std[chunk], iterations = q_chunk.T, std_chunk.T, max(iterations, used)
    return MapEstimate(q.reshape(preference.shape[:-1]), std.reshape(preference.shape[:-1]), iterations)


def posterior_covariance(matrix: ArrayLike, q: ArrayLike, link: Link = "probit") -> Array:
    """Covariance of scale values after the comparisons (Laplace): the inverse negative Hessian at q.

    matrix: [..., n, n] and link: as in `map_estimate`, which checks them.
    q: [..., n], its estimate; the roots of the covariance's diagonal are its std.

    Returns [..., n, n], positive definite. Its rows sum to 1, since comparisons say nothing of the mean of
    all q, of which only the prior knows.
    """
    preference, values = np.array(matrix, dtype=np.float64), np.asarray(q, dtype=np.float64)
    itself = np.arange(preference.shape[-1])
    preference[..., itself, itself] = 0.0
    apart = values[..., :, None] - values[..., None, :]
    curvature = derivatives(apart, ratios(apart, link)[0], preference, link)[1]
    return np.asarray(np.linalg.inv(negative_hessian(curvature)))


def prior_percentile(q: ArrayLike) -> Array:
    """100 * Phi(q): the share of the standard normal prior that lies below q, 0-100, shaped as q.

    Differences of 1e-9 in q stay visible up to |q| = 5, far beyond what five anchors can give, so that
    images outside the anchors' range still get different numbers.
    """
    return 100.0 * normal_distribution(np.asarray(q, dtype=np.float64))


def minmax_scale(q: ArrayLike) -> Array:
    """The published scale 100 (q_test - min q) / (max q - min q), 0-100, of q [..., n], test image last.

    Every test image below (above) all anchors gets 0 (100): the scale cannot order those.

    Raises ValueError if q has fewer than two values a row, or all values of a row are equal.
    """
    values = np.asarray(q, dtype=np.float64)
    if values.ndim < 1 or values.shape[-1] < 2:
        raise ValueError(f"The min-max scale needs q as [..., n] with n >= 2, not {list(values.shape)}.")
    low, high = values.min(axis=-1), values.max(axis=-1)
    # Estimates that should be equal may differ by rounding.
    if not np.all(high - low > 1e-12):
        raise ValueError("The min-max scale is undefined where all q are equal: use anchors that differ.")
    return np.asarray(100.0 * (values[..., -1] - low) / (high - low))
