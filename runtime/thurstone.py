"""Scale values from paired comparisons: MAP estimation under Thurstone's Case V.

The model: image i is preferred over image j with probability F(q_i - q_j), where F is the normal
distribution function (Thurstone 1927, Case V, in units of the comparison's standard deviation) or the
logistic one (Bradley and Terry 1952), and every q_i has a standard normal prior. This is the estimator
of Compare2Score (arXiv 2405.19298), whose code climbs the same objective with 100 Adam steps; here
Newton's method reaches the maximum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg.lapack import dposv
from scipy.special import erfcx, expit, ndtr, ndtri

from compare2score.errors import Compare2ScoreError

Link = Literal["probit", "logit"]
Array: TypeAlias = NDArray[np.float64]
Index: TypeAlias = NDArray[np.intp]

_SQRT_HALF = 0.5**0.5
_SQRT_2_OVER_PI = (2.0 / np.pi) ** 0.5
# A Newton step of this size leaves an error of about a third of its square.
_TOLERANCE = 3e-6
_ITERATION_LIMIT = 200
_NOT_CONVERGED = "MAP estimation did not converge: please report the preference matrix as a bug."
# Up to this size a matrix alone is solved with products of small constant matrices.
_SMALL = 16
# Matrix entries of a batch worked on at once: such arrays stay in a core's cache.
_CHUNK = 2**15


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
    function, shrunk as the prior does. A long step is shortened so that it provably climbs. In a batch
    each problem stops on its own and gets the same bits whatever its neighbours are; alone, as [n, n],
    it takes another linear solver and agrees to rounding.

    Raises ValueError if the matrix is not square, has n < 2, or holds a value that is not a number in
    [0, 1], or if the link is unknown.
    """
    if link not in _TERMS:
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

    if preference.ndim == 2 and n <= _SMALL:
        return _solve_one(preference, link)
    # Problems run along the last axis, so that every operation on them is one long vector operation.
    by_problem = np.ascontiguousarray(preference.reshape(preference.size // n**2, n**2).T)
    batch, width, iterations = by_problem.shape[1], max(1, _CHUNK // n**2), 0
    q, std = np.empty((batch, n)), np.empty((batch, n))
    for begin in range(0, batch, width):
        chunk = slice(begin, begin + width)
        q_chunk, std_chunk, used = _solve_chunk(by_problem[:, chunk], n, link)
        q[chunk], std[chunk], iterations = q_chunk.T, std_chunk.T, max(iterations, used)
    return MapEstimate(q.reshape(preference.shape[:-1]), std.reshape(preference.shape[:-1]), iterations)


def prior_percentile(q: ArrayLike) -> Array:
    """100 * Phi(q): the share of the standard normal prior that lies below q, 0-100, shaped as q.

    Differences of 1e-9 in q stay visible up to |q| = 5, far beyond what five anchors can give, so that
    images outside the anchors' range still get different numbers.
    """
    return np.asarray(100.0 * ndtr(np.asarray(q, dtype=np.float64)))


def minmax_scale(q: ArrayLike) -> Array:
    """The published scale 100 (q_test - min q) / (max q - min q), 0-100, of q [..., n], test image last.

    Every test image below (above) all anchors gets 0 (100): the scale cannot order those.

    Raises ValueError if q has fewer than two values a row, or all values of a row are equal.
    """
    values = np.asarray(q, dtype=np.float64)
    if values.ndim < 1 or values.shape[-1] < 2:
        raise ValueError(f"The min-max scale needs q as [..., n] with n >= 2, not {list(values.shape)}.")
    low, high = values.min(axis=-1), values.max(axis=-1)
    if not np.all(high > low):
        raise ValueError("The min-max scale is undefined where all q are equal: use anchors that differ.")
    return np.asarray(100.0 * (values[..., -1] - low) / (high - low))


@dataclass(frozen=True)
class _Pairs:
    """The P = n (n - 1) / 2 pairs i < j of n images; [2, P] has them in both directions."""

    n: int
    indices: tuple[tuple[int, int], ...]
    left: Index  # [2, P]: i, then j
    right: Index  # [2, P]: j, then i
    flat: Index  # [2, P]: where C_ij, then C_ji, lies in a flat matrix


@lru_cache(maxsize=8)
def _pairs(n: int) -> _Pairs:
    i, j = np.triu_indices(n, 1)
    left, right = np.stack((i, j)), np.stack((j, i))
    return _Pairs(n, tuple(zip(i.tolist(), j.tolist(), strict=True)), left, right, n * left + right)


@lru_cache(maxsize=8)
def _incidence(n: int) -> tuple[Array, Array, Array]:
    """N [n, P], with +1 at i and -1 at j of the pair i < j; its transpose [P, n]; the identity [n, n]."""
    pairs, identity = _pairs(n), np.eye(n)
    incidence = identity[:, pairs.left[0]] - identity[:, pairs.right[0]]
    return incidence, np.ascontiguousarray(incidence.T), identity


def _start(net_margin: Array, n: int, link: Link) -> Array:
    """The closed-form start, from sum_j (C_ij - C_ji) for every image; same shape.

    1/2 + net / 2n is the mean of row i of C with 1/2 on its diagonal, thus never 0 or 1. The prior's
    shrinkage n / (n + 1 / (4 F'(0)^2)) is exact for nearly undecided comparisons; the factor before it
    carries it over to decided ones, fitted at n = 6.
    """
    gain = 1.07 * n / (n + 0.5 * np.pi) if link == "probit" else 1.5 * n / (n + 4.0)
    return np.asarray(gain * ndtri(0.5 + net_margin / (2 * n)))


def _probit_terms(x: Array, preference: Array) -> tuple[Array, Array, Array]:
    """Of l(d) = C_ij log Phi(d) + C_ji log Phi(-d) at d = q_i - q_j: l'(d), -l''(d) and l'''(d), [P, ...].

    x: d, then -d; preference: C_ij, then C_ji; [2, P, ...]. The ratios phi / Phi at |d| and -|d| follow
    from erfcx(|d| / sqrt 2) = 2 exp(d^2 / 2) Phi(-|d|), exact in both tails.
    """
    z = _SQRT_HALF * np.abs(x[0])
    tail = erfcx(z)
    bell = np.exp(-z * z)
    likely = _SQRT_2_OVER_PI * bell / (2.0 - bell * tail)
    unlikely = _SQRT_2_OVER_PI / tail
    ratio = np.where(x >= 0.0, likely, unlikely)
    first = preference * ratio
    slope = first[0] - first[1]
    # With r = phi / Phi: r' = -r (x + r) and r'' = r (x + r) (x + 2r) - r. For x << 0 the sum x + r
    # loses about x^2 rounding errors, which is little: the prior keeps |x| below 2n.
    excess = ratio + x
    second = first * excess
    excess += ratio
    third = second * excess
    return slope, second[0] + second[1], third[0] - third[1] - slope


def _logit_terms(x: Array, preference: Array) -> tuple[Array, Array, Array]:
    """As `_probit_terms`, of l(d) = C_ij log expit(d) + C_ji log expit(-d)."""
    above, below = expit(x)
    slope = preference[0] * below - preference[1] * above
    curvature = (preference[0] + preference[1]) * (above * below)
    return slope, curvature, curvature * (above - below)


_TERMS: dict[str, Callable[[Array, Array], tuple[Array, Array, Array]]] = {
    "probit": _probit_terms,
    "logit": _logit_terms,
}


def _solve_one(matrix: Array, link: Link) -> MapEstimate:
    """The estimate of one matrix [n, n].

    A step d with m = max |d_i| > 4 / n is multiplied by t = 2 / sqrt(n m). It always climbs: l''' is at
    most 0.3 for both links, so with sum_{i<j} |d_i - d_j|^3 <= 2 m n |d|^2 and H >= I the objective
    rises by at least t d'Hd (1 - t/2 - 0.3 * 2 m n t^2 / 6) = t d'Hd (0.6 - t/2) > 0.
    """
    n = len(matrix)
    pairs, terms = _pairs(n), _TERMS[link]
    incidence, transposed, identity = _incidence(n)
    preference = matrix.ravel()[pairs.flat]
    q = _start(incidence.dot(preference[0] - preference[1]), n, link)
    for iteration in range(1, _ITERATION_LIMIT + 1):
        slope, curvature, skew = terms(q[pairs.left] - q[pairs.right], preference)
        step = dposv(identity + (incidence * curvature).dot(transposed), incidence.dot(slope) - q)[1]
        size = max(map(abs, step.tolist()))  # faster than numpy for a few values
        if n * size > 4.0:
            step *= 2.0 / np.sqrt(n * size)
        q += step
        if size <= _TOLERANCE:
            # `curvature` belongs to the point before the step; its derivative carries it over to q.
            curvature -= skew * transposed.dot(step)
            covariance = np.linalg.inv(identity + (incidence * curvature).dot(transposed))
            return MapEstimate(q, np.sqrt(covariance.diagonal()), iteration)
    raise Compare2ScoreError(_NOT_CONVERGED)


def _solve_chunk(matrices: Array, n: int, link: Link) -> tuple[Array, Array, int]:
    """`_solve_one` for many problems at once: q and std, [n, B], of `matrices` [n * n, B].

    A problem that is done leaves the arrays. All operations work on one problem at a time or on sums of
    a fixed order (no matrix products), hence the same bits for a problem in any batch.
    """
    pairs, terms = _pairs(n), _TERMS[link]
    preference = matrices.take(pairs.flat, axis=0)
    q = _start(_net(preference[0] - preference[1], pairs), n, link)
    q_out, std_out = np.empty_like(q), np.empty_like(q)
    running = np.arange(q.shape[1])
    for iteration in range(1, _ITERATION_LIMIT + 1):
        slope, curvature, skew = terms(q.take(pairs.left, axis=0) - q.take(pairs.right, axis=0), preference)
        step = _substitute(_factor(curvature, pairs), _net(slope, pairs) - q)
        size = np.abs(step).max(axis=0)
        step *= 2.0 / np.sqrt(np.maximum(4.0, n * size))
        q += step
        done = size <= _TOLERANCE
        if not done.any():
            continue
        curvature -= skew * (step[pairs.left[0]] - step[pairs.right[0]])
        q_out[:, running[done]] = q[:, done]
        std_out[:, running[done]] = _deviations(_factor(curvature[:, done], pairs))
        if done.all():
            return q_out, std_out, iteration
        running, q, preference = running[~done], q[:, ~done], preference[..., ~done]
    raise Compare2ScoreError(_NOT_CONVERGED)


def _net(flow: Array, pairs: _Pairs) -> Array:
    """sum_j f_ij for every image i, [n, B], of a flow f_ij = -f_ji given for i < j as [P, B]."""
    net = np.zeros((pairs.n, flow.shape[1]))
    rows = list(net)
    for (i, j), f in zip(pairs.indices, flow, strict=True):
        rows[i] += f
        rows[j] -= f
    return net


def _factor(curvature: Array, pairs: _Pairs) -> Array:
    """H = L D L' of H = I + the graph Laplacian of `curvature` [P, B]: D on the diagonal, L below it.

    [n, n, B]. H >= I, so that no pivoting is needed.
    """
    n = pairs.n
    h = np.zeros((n, n, curvature.shape[1]))
    h[pairs.left, pairs.right] = -curvature
    diagonal = np.ones((n, curvature.shape[1]))
    for k in range(n):
        diagonal -= h[:, k]
    h[range(n), range(n)] = diagonal
    for k in range(n - 1):
        ratio = h[k + 1 :, k] / h[k, k]
        h[k + 1 :, k + 1 :] -= ratio[:, None] * h[k, k + 1 :]
        h[k + 1 :, k] = ratio
    return h


def _substitute(factors: Array, right: Array) -> Array:
    """The solution x [n, B] of L D L' x = right, in the place of `right`."""
    n = len(right)
    for k in range(n - 1):
        right[k + 1 :] -= factors[k + 1 :, k] * right[k]
    right /= factors[range(n), range(n)]
    for k in range(n - 1, 0, -1):
        right[:k] -= factors[k, :k] * right[k]
    return right


def _deviations(factors: Array) -> Array:
    """sqrt(diag(H^-1)), [n, B]: entry i of the diagonal is the sum over k of (L^-1)_ki^2 / D_k."""
    n, batch = len(factors), factors.shape[2]
    inverse = np.zeros((n, n, batch))
    inverse[range(n), range(n)] = 1.0
    variances = np.zeros((n, batch))
    for k in range(n):
        inverse[k + 1 :, : k + 1] -= factors[k + 1 :, k, None] * inverse[k, : k + 1]
        variances[: k + 1] += inverse[k, : k + 1] ** 2 / factors[k, k]
    return np.sqrt(variances)
