"""MAP estimates against the golden data, an arbitrary-precision solver and what theory demands of them."""

from __future__ import annotations

from pathlib import Path

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm

from compare2score import newton
from compare2score.errors import Compare2ScoreError
from compare2score.thurstone import map_estimate, minmax_scale, posterior_covariance, prior_percentile

LINKS = ["probit", "logit"]
GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden" / "map" / "map_golden.npz"))

probability = st.floats(0.0, 1.0)
five_probabilities = arrays(np.float64, 5, elements=probability)
ten_probabilities = arrays(np.float64, 10, elements=probability)


def with_test_image(anchors, probabilities):
    """[B, 6, 6] from the anchors' [5, 5] and P(test preferred over anchor) [B, 5]; the test image last."""
    matrix = np.full((len(probabilities), 6, 6), 0.5)
    matrix[:, :5, :5] = anchors
    matrix[:, 5, :5] = probabilities
    matrix[:, :5, 5] = 1 - probabilities
    return matrix


def antisymmetric(n, upper):
    """C with C_ji = 1 - C_ij from its entries above the diagonal."""
    matrix = np.full((n, n), 0.5)
    matrix[np.triu_indices(n, 1)] = upper
    return np.triu(matrix) + np.tril(1 - matrix.T, -1)


def exact_slope(link, d):
    """d/dd log F(d) in mpmath."""
    return mpmath.npdf(d) / mpmath.ncdf(d) if link == "probit" else 1 / (1 + mpmath.exp(d))


def exact_estimate(matrix, link):
    """q and std by mpmath's root finder with difference quotients, in 30 digits."""
    n = len(matrix)

    def gradient(*q):
        return [
            sum(
                matrix[i, j] * exact_slope(link, q[i] - q[j]) - matrix[j, i] * exact_slope(link, q[j] - q[i])
                for j in range(n)
                if j != i
            )
            - q[i]
            for i in range(n)
        ]

    with mpmath.workdps(30):
        q = mpmath.findroot(gradient, [mpmath.mpf(0)] * n, solver="mdnewton", tol=1e-36)
        step = mpmath.mpf("1e-10")
        hessian = mpmath.matrix(n)
        for j in range(n):
            ahead = gradient(*(q[i] + step * (i == j) for i in range(n)))
            behind = gradient(*(q[i] - step * (i == j) for i in range(n)))
            for i in range(n):
                hessian[i, j] = (behind[i] - ahead[i]) / (2 * step)
        inverse = hessian**-1
        std = [float(mpmath.sqrt(inverse[i, i])) for i in range(n)]
    return np.array([float(value) for value in q]), np.array(std)


@pytest.fixture(scope="module")
def golden_matrices():
    return with_test_image(GOLDEN["anchor_matrix"], GOLDEN["probabilities"])


@pytest.fixture(scope="module")
def mixed_matrices():
    """2,000 matrices [6, 6], more than one chunk: decided, undecided, inconsistent, C_ij + C_ji != 1."""
    rng = np.random.default_rng(11)
    matrices = rng.uniform(size=(2000, 6, 6)) ** rng.choice([0.1, 1, 10], size=(2000, 1, 1))
    matrices[::3] = np.round(matrices[::3])
    matrices[::7] = 0.5
    return matrices


@pytest.mark.parametrize("link", LINKS)
def test_batch_reaches_the_golden_maximum(link, golden_matrices):
    estimate = map_estimate(golden_matrices, link)
    assert estimate.iterations <= 10
    assert estimate.q.shape == estimate.std.shape == (130, 6)
    assert estimate.q.dtype == estimate.std.dtype == np.float64
    np.testing.assert_allclose(estimate.q, GOLDEN[f"q_{link}"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(estimate.std[:, -1] ** 2, GOLDEN[f"var_{link}"], rtol=1e-9)


@pytest.mark.parametrize("link", LINKS)
def test_single_matrix_reaches_the_golden_maximum(link, golden_matrices):
    for k, matrix in enumerate(golden_matrices):
        estimate = map_estimate(matrix, link)
        assert estimate.iterations <= 10
        assert estimate.q.shape == estimate.std.shape == (6,)
        np.testing.assert_allclose(estimate.q, GOLDEN[f"q_{link}"][k], rtol=0, atol=1e-9)
        np.testing.assert_allclose(estimate.std[-1] ** 2, GOLDEN[f"var_{link}"][k], rtol=1e-9)


@pytest.mark.parametrize("link", LINKS)
def test_minmax_scale_gives_the_published_scores(link, golden_matrices):
    scores = minmax_scale(map_estimate(golden_matrices, link).q)
    np.testing.assert_allclose(scores, GOLDEN[f"score_{link}"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("n", range(2, 9))
def test_agrees_with_an_arbitrary_precision_solver(n, link):
    matrix = np.random.default_rng(n).uniform(size=(n, n))
    matrix[0, 1], matrix[1, 0] = 1.0, 0.0
    q, std = exact_estimate(matrix, link)
    for estimate in (map_estimate(matrix, link), map_estimate(matrix[None], link)):
        np.testing.assert_allclose(estimate.q.reshape(-1), q, rtol=0, atol=1e-9)
        np.testing.assert_allclose(estimate.std.reshape(-1), std, rtol=1e-9)


@pytest.mark.parametrize("link", LINKS)
def test_undecided_comparisons_leave_the_prior_mean_and_a_known_spread(link):
    n, weight = 6, 2 / np.pi if link == "probit" else 0.25
    estimate = map_estimate(np.full((n, n), 0.5), link)
    np.testing.assert_allclose(estimate.q, 0.0, atol=1e-15)
    np.testing.assert_allclose(estimate.std, np.sqrt((1 + weight) / (1 + n * weight)), rtol=1e-14)


@pytest.mark.parametrize("n", [16, 17, 100])
def test_many_images_in_a_certain_order_converge(n):
    matrix = antisymmetric(n, 1.0)
    for estimate in (map_estimate(matrix), map_estimate(matrix[None])):
        q = estimate.q.reshape(-1)
        d = q[:, None] - q
        pull = matrix * np.exp(norm.logpdf(d) - norm.logcdf(d))
        np.testing.assert_allclose((pull - pull.T).sum(axis=1), q, rtol=0, atol=1e-9)
        assert (np.diff(q) < 0).all()


@pytest.mark.parametrize("link", LINKS)
@given(upper=ten_probabilities, probabilities=five_probabilities, which=st.integers(0, 4), raised=probability)
@settings(deadline=None)
def test_raising_a_probability_raises_the_test_image(link, upper, probabilities, which, raised):
    lower, higher = probabilities.copy(), probabilities.copy()
    lower[which] = min(probabilities[which], 1 - 1e-6)
    higher[which] = lower[which] + max(1e-6, raised * (1 - lower[which]))
    pair = with_test_image(antisymmetric(5, upper), np.stack((lower, higher)).clip(0, 1))
    before, after = map_estimate(pair, link).q[:, -1]
    assert after > before
    assert prior_percentile(after) > prior_percentile(before)


@pytest.mark.parametrize("link", LINKS)
@given(upper=ten_probabilities, probabilities=five_probabilities, order=st.permutations(range(5)))
@settings(deadline=None)
def test_relabelling_anchors_permutes_them_and_leaves_the_test_image(link, upper, probabilities, order):
    order = [*order, 5]
    matrix = with_test_image(antisymmetric(5, upper), probabilities[None])[0]
    estimate, relabelled = map_estimate(matrix, link), map_estimate(matrix[np.ix_(order, order)], link)
    np.testing.assert_allclose(relabelled.q, estimate.q[order], rtol=0, atol=1e-10)
    np.testing.assert_allclose(relabelled.std, estimate.std[order], rtol=0, atol=1e-10)


@pytest.mark.parametrize("link", LINKS)
@given(matrix=st.integers(2, 8).flatmap(lambda n: arrays(np.float64, (n, n), elements=probability)))
@settings(deadline=None)
def test_estimates_sum_to_zero_and_are_surer_than_the_prior(link, matrix):
    for estimate in (map_estimate(matrix, link), map_estimate(matrix[None], link)):
        assert abs(estimate.q.sum()) <= 1e-10
        assert (estimate.std > 0).all()
        assert (estimate.std <= 1 + 1e-12).all()
        assert 1 <= estimate.iterations <= 10


@pytest.mark.parametrize("link", LINKS)
def test_batch_equals_one_by_one(link, mixed_matrices):
    batch = map_estimate(mixed_matrices, link)
    ones = [map_estimate(matrix, link) for matrix in mixed_matrices]
    np.testing.assert_allclose(batch.q, [one.q for one in ones], rtol=0, atol=1e-12)
    np.testing.assert_allclose(batch.std, [one.std for one in ones], rtol=0, atol=1e-12)
    assert len({one.iterations for one in ones}) > 1
    assert batch.iterations == max(one.iterations for one in ones)


@pytest.mark.parametrize("link", LINKS)
def test_neighbours_in_a_batch_do_not_change_a_bit(link, mixed_matrices):
    whole = map_estimate(mixed_matrices, link)
    backwards = map_estimate(mixed_matrices[::-1], link)
    assert np.array_equal(whole.q, backwards.q[::-1])
    assert np.array_equal(whole.std, backwards.std[::-1])
    for k in range(0, 2000, 37):
        alone = map_estimate(mixed_matrices[k : k + 1], link)
        assert np.array_equal(alone.q[0], whole.q[k])
        assert np.array_equal(alone.std[0], whole.std[k])


def sparse_matrix(n, kind, seed):
    """Soft, decided or partly unasked (0 both ways) comparisons of n images with q from the prior."""
    generator = np.random.default_rng(seed)
    q = generator.normal(size=n)
    chances = norm.cdf(q[:, None] - q)[np.triu_indices(n, 1)]
    matrix = antisymmetric(n, chances if kind == "soft" else generator.random(chances.shape) < chances)
    if kind == "sparse":
        asked = np.triu(generator.random((n, n)) < 8 / n, 1)
        matrix *= asked | asked.T
    return matrix


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("kind", ["soft", "decided", "sparse"])
@pytest.mark.parametrize("n", [11, 40])
def test_a_large_matrix_alone_is_solved_as_in_a_batch(link, kind, n):
    matrix = sparse_matrix(n, kind, n)
    alone, batch = map_estimate(matrix, link), map_estimate(matrix[None], link)
    np.testing.assert_allclose(alone.q, batch.q[0], atol=1e-12)
    np.testing.assert_allclose(alone.std, batch.std[0], atol=1e-9)


@pytest.mark.parametrize("link", LINKS)
def test_hundreds_of_images_in_a_certain_order_are_solved(link):
    """Every later image always wins: the gradient vanishes, in the order, symmetrically about 0."""
    n = 300
    estimate = map_estimate(np.tril(np.ones((n, n)), -1), link)
    x = estimate.q[:, None] - estimate.q
    slope = np.tril(np.exp(norm.logpdf(x) - norm.logcdf(x)) if link == "probit" else 1 / (1 + np.exp(x)), -1)
    np.testing.assert_allclose(slope.sum(axis=1) - slope.sum(axis=0), estimate.q, atol=1e-9)
    assert (np.diff(estimate.q) > 0).all()
    np.testing.assert_allclose(estimate.q, -estimate.q[::-1], atol=1e-9)
    assert estimate.iterations < 20


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("kind", ["soft", "decided", "sparse"])
@pytest.mark.parametrize("n", [2, 6, 25])
def test_covariance_is_the_inverse_of_the_objectives_curvature(link, kind, n):
    """Difference quotients of the gradient, with scipy's normal distribution, are its inverse."""
    matrix = sparse_matrix(n, kind, n)
    q = map_estimate(matrix, link).q
    covariance = posterior_covariance(matrix, q, link)

    def gradient(q):
        x = q[:, None] - q
        slope = np.exp(norm.logpdf(x) - norm.logcdf(x)) if link == "probit" else 1 / (1 + np.exp(x))
        flow = np.where(np.eye(n), 0, matrix) * slope
        return flow.sum(axis=1) - flow.sum(axis=0) - q

    step = 1e-5 * np.eye(n)
    hessian = np.array([(gradient(q - row) - gradient(q + row)) / 2e-5 for row in step])
    np.testing.assert_allclose(covariance @ hessian, np.eye(n), atol=1e-8)
    np.testing.assert_allclose(np.sqrt(covariance.diagonal()), map_estimate(matrix, link).std, atol=1e-9)
    np.testing.assert_allclose(covariance.sum(axis=0), 1)


def test_covariances_of_a_batch_are_those_of_its_matrices(golden_matrices):
    some = golden_matrices[:4]
    q = map_estimate(some).q
    batch = posterior_covariance(some, q)
    for place in range(4):
        np.testing.assert_allclose(batch[place], posterior_covariance(some[place], q[place]), atol=1e-14)


def test_diagonal_does_not_matter(golden_matrices):
    other = golden_matrices.copy()
    other[:, range(6), range(6)] = np.random.default_rng(0).uniform(size=(130, 6))
    assert np.array_equal(map_estimate(other).q, map_estimate(golden_matrices).q)


def test_input_is_left_as_it_was(golden_matrices):
    before = golden_matrices.copy()
    map_estimate(golden_matrices)
    map_estimate(golden_matrices[0])
    assert np.array_equal(before, golden_matrices)


def test_empty_batch_gives_empty_estimate():
    estimate = map_estimate(np.empty((0, 6, 6)))
    assert estimate.q.shape == estimate.std.shape == (0, 6)
    assert estimate.iterations == 0


def test_percentile_is_the_normal_distribution_in_percent():
    with mpmath.workdps(30):
        exact = [float(100 * mpmath.ncdf(q)) for q in (-8, -1, 0, 1, 2)]
    np.testing.assert_allclose(prior_percentile([-8, -1, 0, 1, 2]), exact, rtol=1e-14)
    assert prior_percentile(0.0) == 50.0


def test_percentile_has_no_ties_where_estimates_lie():
    certain = map_estimate(with_test_image(GOLDEN["anchor_matrix"], np.array([[0.0] * 5, [1.0] * 5]))).q
    assert np.abs(certain).max() < 5
    steps = prior_percentile(np.arange(4.9999, 5.0, 1e-9))
    assert (np.diff(steps) > 0).all()
    assert (np.diff(prior_percentile(np.linspace(-5, 5, 100_001))) > 0).all()


@pytest.mark.parametrize("shape", [(), (6,), (1, 1), (5, 6), (2, 5, 6), (2, 1, 1), (0, 0), (1, 1, 3, 3)])
def test_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"^A preference matrix must be \[n, n\] or \[B, n, n\]"):
        map_estimate(np.full(shape, 0.5))


@pytest.mark.parametrize("value", [-1e-9, 1 + 1e-9, np.nan, np.inf, -np.inf])
def test_entry_outside_0_to_1_is_refused(value):
    matrices = np.full((3, 4, 4), 0.5)
    matrices[1, 2, 3] = value
    with pytest.raises(ValueError, match="must hold probabilities"):
        map_estimate(matrices)
    with pytest.raises(ValueError, match="must hold probabilities"):
        map_estimate(matrices[1])


def test_unknown_link_is_refused():
    with pytest.raises(ValueError, match=r"^Unknown link 'cauchit': use 'probit' or 'logit'"):
        map_estimate(np.full((3, 3), 0.5), "cauchit")


@pytest.mark.parametrize(
    "q", [1.0, [1.0], [[1.0], [2.0]], [2.0, 2.0], [[1.0, 2.0], [3.0, 3.0]], [1.0, np.nan]]
)
def test_minmax_scale_refuses_what_has_no_range(q):
    with pytest.raises(ValueError, match=r"^The min-max scale"):
        minmax_scale(q)


def test_no_convergence_is_an_error_not_a_wrong_number(monkeypatch, golden_matrices):
    monkeypatch.setattr(newton, "_ITERATION_LIMIT", 1)
    for matrices in (golden_matrices, golden_matrices[0]):
        with pytest.raises(Compare2ScoreError, match="did not converge"):
            map_estimate(matrices)
