"""A comparison's distribution and its derivatives against arithmetic of many digits."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from compare2score.link import derivatives, normal_distribution, ratios, ratios_alone

LINKS = ["probit", "logit"]
DIFFERENCES = np.array([-12.0, -5.5, -1.0, -0.3, -1e-9, 0.0, 1e-9, 0.3, 1.0, 2.5, 5.5, 12.0])
FAR = np.array([-200.0, -40.0, 40.0, 200.0])


def exact_derivatives(link, points):
    """The first three derivatives of log F, [3, points]."""
    with mpmath.workdps(120):

        def log_likelihood(x):
            return mpmath.log(mpmath.ncdf(x)) if link == "probit" else -mpmath.log1p(mpmath.exp(-x))

        return np.array(
            [[float(mpmath.diff(log_likelihood, x, order)) for x in points.tolist()] for order in (1, 2, 3)]
        )


@pytest.mark.parametrize("link", LINKS)
def test_derivatives_hold_in_both_tails(link):
    d = np.concatenate((FAR[:2], DIFFERENCES, FAR[2:]))
    x = np.stack((d, -d))
    first, second, third = derivatives(x, ratios(d[:, None], link)[..., 0], np.ones_like(x), link)
    for row, points in enumerate((d, -d)):
        exact = exact_derivatives(link, points)
        np.testing.assert_allclose(first[row], exact[0], rtol=1e-13, atol=1e-16)
        np.testing.assert_allclose(second[row], -exact[1], rtol=1e-10, atol=1e-15)
        # It only ever multiplies the square of a short step.
        np.testing.assert_allclose(third[row], exact[2], rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("link", LINKS)
def test_a_problem_alone_gets_the_ratios_of_a_batch(link):
    both = ratios(DIFFERENCES[:, None], link)[..., 0]
    np.testing.assert_allclose(ratios_alone(DIFFERENCES, link), both[0], rtol=1e-13, atol=1e-16)
    np.testing.assert_allclose(ratios_alone(-DIFFERENCES, link), both[1], rtol=1e-13, atol=1e-16)


def test_a_preference_weighs_all_derivatives():
    x = np.array([-0.7, 0.4])
    ones = derivatives(x, ratios_alone(x, "probit"), np.ones(2), "probit")
    quarters = derivatives(x, ratios_alone(x, "probit"), np.full(2, 0.25), "probit")
    np.testing.assert_allclose(quarters, 0.25 * np.array(ones), rtol=1e-15)


def test_the_normal_distribution_is_exact_in_both_tails():
    x = np.array([[-30.0, -8.0, -1.0], [0.0, 1.0, 8.0]])
    with mpmath.workdps(30):
        exact = [[float(mpmath.ncdf(value)) for value in row] for row in x.tolist()]
    np.testing.assert_allclose(normal_distribution(x), exact, rtol=1e-13)
    assert normal_distribution(np.array(0.0)) == 0.5
