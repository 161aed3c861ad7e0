"""Newton's method for the log posterior of scale values: one problem, small or large, or many at once.

With l the log likelihood of a comparison, the objective's negative Hessian is H = I + the graph Laplacian of
the weights -l'' >= 0, so that it climbs from everywhere; see `solve_one` for why each step does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from compare2score.errors import Compare2ScoreError
from compare2score.link import Array, Link, derivatives, ratios, ratios_alone

Index: TypeAlias = NDArray[np.intp]

# A corrected step of this size leaves 1e-14 in q and, from the curvature's change along it, 2e-10 in std.
_TOLERANCE = 3e-5
# Of an uncorrected one, after which the error falls with the second power.
_LAST_STEP = 1e-7
_ITERATION_LIMIT = 200
_NOT_CONVERGED = "MAP estimation did not converge: please report the preference matrix as a bug."


@dataclass(frozen=True)
class _Pairs:
    """The P = n (n - 1) / 2 pairs i < j of n images; [2, P] has them in both directions."""

    n: int
    indices: tuple[tuple[int, int], ...]
    left: Index  # [P]: i
    right: Index  # [P]: j
    flat: Index  # [2, P]: where C_ij, then C_ji, lies in a flat matrix


@lru_cache(maxsize=8)
def _pairs(n: int) -> _Pairs:
    i, j = np.triu_indices(n, 1)
    indices = tuple(zip(i.tolist(), j.tolist(), strict=True))
    return _Pairs(n, indices, i, j, n * np.stack((i, j)) + np.stack((j, i)))


@lru_cache(maxsize=8)
def _incidence(n: int) -> tuple[Array, Array, Array, Array]:
    """Of the 2P directed pairs e = (i, j) of n images, P with i < j, then their reverse.

    N [n, 2P], with +1 at i and -1 at j; its transpose; the products N_ie N_ke, [2P, n n]; and the identity,
    [n n].
    """
    pairs, identity = _pairs(n), np.eye(n)
    half = identity[:, pairs.left] - identity[:, pairs.right]
    incidence = np.concatenate((half, -half), axis=1)
    transposed = np.ascontiguousarray(incidence.T)
    products = transposed[:, :, None] * transposed[:, None, :]
    return incidence, transposed, products.reshape(len(transposed), n * n), identity.ravel()


def _start(net: Array, n: int, link: Link) -> Array:
    """The closed-form start, from sum_j (C_ij - C_ji) for every image; same shape.

    1/2 + net / 2n is the mean of row i of C with 1/2 on its diagonal; its inverse normal distribution
    function is taken to the third power of net / n. The prior's shrinkage n / (n + 1 / (4 F'(0)^2)) is exact
    for nearly undecided comparisons; the factor before it carries it over to decided ones, fitted at n = 6.
    """
    gain = 1.07 / (n + 0.5 * np.pi) if link == "probit" else 1.5 / (n + 4.0)
    return net * (1.2533 * gain + net * net * (0.4 * gain / n**2))


def solve_one(matrix: Array, link: Link) -> tuple[Array, Array, int]:
    """q and std, [n], of one matrix [n, n], and the steps taken.

    Newton's step d has m = max |d_i|. If n m > 4 it is multiplied by t = 2 / sqrt(n m), which always climbs:
    l''' is at most 0.3 for both links, so with sum_{i<j} |d_i - d_j|^3 <= 2 m n |d|^2 and H >= I the
    objective rises by at least t d'Hd (1 - t/2 - 0.3 * 2 m n t^2 / 6) = t d'Hd (0.6 - t/2) > 0.

    If n m <= 1 Chebyshev's correction c is added, H c = 1/2 sum_j l''' (d_i - d_j)^2, after which the error
    falls with its third power. That climbs, too: in the norm of H, |c| <= 0.3 n m |d|; and since the rows of
    the non-negative H^-1 sum to 1, max |c_i| <= 0.6 n m^2; so the objective rises by at least
    |d|^2 / 2 - |c|^2 / 2 - 0.3 / 6 * 2 max |d_i + c_i| n |d + c|^2 >= 0.18 |d|^2.
    """
    n = len(matrix)
    incidence, transposed, products, identity = _incidence(n)
    preference = matrix.ravel()[_pairs(n).flat.ravel()]
    q = _start(incidence.dot(preference), n, link)
    for iteration in range(1, _ITERATION_LIMIT + 1):
        x = transposed.dot(q)
        slope, curvature, skew = derivatives(x, ratios_alone(x, link), preference, link)
        inverse = np.linalg.inv((identity + curvature.dot(products)).reshape(n, n))
        step = inverse.dot(incidence.dot(slope) - q)
        size = max(map(abs, step.tolist()))  # faster than numpy for a few values
        if n * size > 4.0:
            step *= 2.0 / np.sqrt(n * size)
        elif n * size <= 1.0:
            bend = transposed.dot(step)
            bend *= bend
            bend *= skew
            step += 0.5 * inverse.dot(incidence.dot(bend))
        q += step
        if size <= _TOLERANCE:
            # `curvature` belongs to the point before the step; its derivative carries it over to q.
            curvature -= skew * transposed.dot(step)
            covariance = np.linalg.inv((identity + curvature.dot(products)).reshape(n, n))
            return q, np.sqrt(covariance.diagonal()), iteration
    raise Compare2ScoreError(_NOT_CONVERGED)


def solve_large(matrix: Array, link: Link) -> tuple[Array, Array, int]:
    """`solve_one` in n^2 memory: q and std, [n], of one matrix [n, n] of hundreds of images, and the steps.

    Newton's step is halved as long as the objective falls at its end more than half as steeply as it rises at
    its beginning: with thousands of comparisons the bounds of `solve_one` would shorten every early step.
    """
    n = len(matrix)
    evidence = matrix.copy()
    np.fill_diagonal(evidence, 0.0)
    q = _start((evidence - evidence.T).sum(axis=1), n, link)
    gradient, precision = _ascent(q, evidence, link)
    for iteration in range(1, _ITERATION_LIMIT + 1):
        step = np.linalg.solve(precision, gradient)
        rise = gradient.dot(step)
        gradient, precision = _ascent(q + step, evidence, link)
        while gradient.dot(step) < -0.5 * rise:
            step *= 0.5
            rise *= 0.5
            gradient, precision = _ascent(q + step, evidence, link)
        q += step
        if np.abs(step).max() <= _LAST_STEP:
            return q, np.sqrt(np.linalg.inv(precision).diagonal()), iteration
    raise Compare2ScoreError(_NOT_CONVERGED)


def _ascent(q: Array, evidence: Array, link: Link) -> tuple[Array, Array]:
    """The objective's gradient [n] and negative Hessian [n, n] at q; `evidence` has zeros on its diagonal."""
    x = q[:, None] - q
    slope, curvature, _ = derivatives(x, ratios(x, link)[0], evidence, link)
    return slope.sum(axis=1) - slope.sum(axis=0) - q, negative_hessian(curvature)


def negative_hessian(curvature: Array) -> Array:
    """I + the graph Laplacian of the weights w_ij + w_ji, [..., n, n], of w with a diagonal of 0."""
    weights = curvature + curvature.swapaxes(-1, -2)
    return np.asarray((1.0 + weights.sum(axis=-1))[..., None] * np.eye(weights.shape[-1]) - weights)


def solve_chunk(matrices: Array, n: int, link: Link) -> tuple[Array, Array, int]:
    """`solve_one` for many problems at once: q and std, [n, B], of `matrices` [n * n, B], and the steps.

    A problem that is done leaves the arrays. All operations work on one problem at a time or on sums of
    a fixed order (no matrix products), hence the same bits for a problem in any batch.
    """
    pairs = _pairs(n)
    preference = matrices.take(pairs.flat, axis=0)
    q = _start(_net(preference[0] - preference[1], pairs), n, link)
    q_out, std_out = np.empty_like(q), np.empty_like(q)
    running = np.arange(q.shape[1])
    for iteration in range(1, _ITERATION_LIMIT + 1):
        x = np.empty_like(preference)
        np.negative(_differences(q, pairs, out=x[0]), out=x[1])
        terms = derivatives(x, ratios(x[0], link), preference, link)
        slope, curvature, skew = (
            terms[0][0] - terms[0][1],
            terms[1][0] + terms[1][1],
            terms[2][0] - terms[2][1],
        )
        factors = _factor(curvature, pairs)
        step = _substitute(factors, _net(slope, pairs) - q)
        size = np.abs(step).max(axis=0)
        bend = _differences(step, pairs)
        bend *= bend
        bend *= skew
        bend *= 0.5 * (n * size <= 1.0)
        step += _substitute(factors, _net(bend, pairs))
        step *= 2.0 / np.sqrt(np.maximum(4.0, n * size))
        q += step
        done = size <= _TOLERANCE
        if not done.any():
            continue
        curvature -= skew * _differences(step, pairs)
        q_out[:, running[done]] = q[:, done]
        std_out[:, running[done]] = _deviations(_factor(curvature[:, done], pairs))
        if done.all():
            return q_out, std_out, iteration
        running, q, preference = running[~done], q[:, ~done], preference[..., ~done]
    raise Compare2ScoreError(_NOT_CONVERGED)


def _differences(values: Array, pairs: _Pairs, out: Array | None = None) -> Array:
    """v_i - v_j for every pair, [P, B], of v [n, B]."""
    return np.subtract(values.take(pairs.left, axis=0), values.take(pairs.right, axis=0), out=out)


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
    negative = -curvature
    h[pairs.left, pairs.right] = negative
    h[pairs.right, pairs.left] = negative
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
