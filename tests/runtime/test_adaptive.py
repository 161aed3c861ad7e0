"""Adaptive anchors: what is asked, when it is enough, and what the scores are then."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import norm
from toy_bundle import ANCHOR_GRAYS, anchor_matrix, gray_image, preferred

from compare2score import Scorer
from compare2score.adaptive import Stopping, compare_adaptively, enough, next_anchors
from compare2score.comparison import extend_preference_matrix
from compare2score.thurstone import map_estimate, prior_percentile

MATRIX = anchor_matrix()
GRAYS = (0, 40, 100, 128, 180, 250)
ANSWERS = np.array([[preferred(gray, anchor) for anchor in ANCHOR_GRAYS] for gray in GRAYS])
NONE = np.full((1, 5), np.nan)


def asked(stopping, answers=ANSWERS, matrix=MATRIX, link="probit"):
    return compare_adaptively(
        lambda rows, anchor: answers[rows, anchor], len(answers), matrix, link, stopping
    )


def posterior(answers):
    """The log posterior of q [6], test image last, from what was asked, written out with scipy."""
    matrix = np.zeros((6, 6))
    matrix[:5, :5] = MATRIX
    for anchor, p in enumerate(answers):
        if not math.isnan(p):
            matrix[5, anchor], matrix[anchor, 5] = p, 1 - p
    np.fill_diagonal(matrix, 0)
    return lambda q: (matrix * norm.logcdf(q[:, None] - q)).sum() - (q**2).sum() / 2


@pytest.mark.parametrize("link", ["probit", "logit"])
def test_the_first_comparison_is_with_the_middle_anchor(link):
    assert next_anchors(MATRIX, NONE, link).tolist() == [2]
    order = [3, 0, 4, 2, 1]
    assert next_anchors(MATRIX[np.ix_(order, order)], NONE, link).tolist() == [3]


def test_an_image_beyond_an_anchor_is_next_compared_with_one_on_its_side():
    answers = np.full((2, 5), np.nan)
    answers[:, 2] = 0.02, 0.98
    low, high = next_anchors(MATRIX, answers, "probit")
    assert low < 2 < high


def test_the_next_anchor_shrinks_the_posterior_most():
    # By brute force: the expected curvature as an answer of that weight, variances by finite differences.
    for known in ([math.nan, math.nan, 0.3, math.nan, math.nan], [0.9, math.nan, 0.6, math.nan, 0.1]):
        log_posterior = posterior(known)
        q = minimize(lambda x, f=log_posterior: -f(x), np.zeros(6), tol=1e-10).x
        step, unit = 1e-3, np.eye(6)
        hessian = np.array(
            [
                [
                    sum(
                        -a * b * log_posterior(q + step * (a * unit[i] + b * unit[j]))
                        for a in (1, -1)
                        for b in (1, -1)
                    )
                    / (4 * step**2)
                    for j in range(6)
                ]
                for i in range(6)
            ]
        )
        variances = []
        for anchor in range(5):
            d = q[5] - q[anchor]
            information = norm.pdf(d) ** 2 / (norm.cdf(d) * norm.cdf(-d))
            pair = unit[5] - unit[anchor]
            variances.append(np.linalg.inv(hessian + information * np.outer(pair, pair))[5, 5])
        open_ones = [anchor for anchor in range(5) if math.isnan(known[anchor])]
        best = min(open_ones, key=lambda anchor: variances[anchor])
        assert next_anchors(MATRIX, np.array([known]), "probit").tolist() == [best]


def test_tolerance_0_asks_all_and_100_asks_one():
    np.testing.assert_array_equal(asked(Stopping(tolerance=0)), ANSWERS)
    assert (np.isfinite(asked(Stopping(tolerance=100))).sum(axis=1) == 1).all()
    assert (np.isfinite(asked(Stopping(tolerance=0, std=1))).sum(axis=1) == 1).all()


@pytest.mark.parametrize("tolerance", [5.0, 10.0, 12.0])
def test_no_answer_could_have_moved_a_score_by_more_than_the_tolerance(tolerance):
    found = asked(Stopping(tolerance))
    for row in found[np.isnan(found).any(axis=1)]:
        value = prior_percentile(map_estimate(extend_preference_matrix(MATRIX, row)).q[-1])
        left_out = int(next_anchors(MATRIX, row[None], "probit")[0])
        for answer in np.linspace(0, 1, 21):
            more = row.copy()
            more[left_out] = answer
            moved = prior_percentile(map_estimate(extend_preference_matrix(MATRIX, more)).q[-1])
            assert abs(moved - value) <= tolerance + 1e-9


def test_an_image_is_left_once_its_posterior_is_narrow_enough():
    found = asked(Stopping(tolerance=0, std=0.7))
    for row in found:
        assert map_estimate(extend_preference_matrix(MATRIX, row)).std[-1] <= 0.7
    counts = np.isfinite(found).sum(axis=1)
    assert counts.max() < 5
    assert not enough(MATRIX, NONE, np.array([2]), "probit", Stopping(100, 1)).any()


def test_what_was_not_asked_is_no_evidence():
    answers = np.full(5, np.nan)
    answers[2] = 0.8
    estimate = map_estimate(extend_preference_matrix(MATRIX, answers))
    log_posterior = posterior(answers)
    q = minimize(lambda x: -log_posterior(x), np.zeros(6), tol=1e-12).x
    np.testing.assert_allclose(estimate.q, q, atol=1e-5)
    alone = map_estimate(MATRIX).q
    nothing = map_estimate(extend_preference_matrix(MATRIX, NONE[0])).q
    np.testing.assert_allclose(nothing, [*alone, 0], atol=1e-9)


def test_images_are_asked_in_groups_and_do_not_depend_on_their_neighbours():
    calls = []

    def ask(rows, anchor):
        calls.append((len(rows), anchor))
        return ANSWERS[rows, anchor]

    together = compare_adaptively(ask, len(ANSWERS), MATRIX, "probit", Stopping(11))
    assert calls[0] == (len(ANSWERS), 2)
    assert sum(size for size, _ in calls) == np.isfinite(together).sum()
    for row in range(len(ANSWERS)):
        np.testing.assert_array_equal(asked(Stopping(11), ANSWERS[row : row + 1])[0], together[row])


@pytest.fixture
def photos(tmp_path):
    return [gray_image(tmp_path / f"{gray}.png", gray) for gray in GRAYS]


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_the_scorer_keeps_the_order_of_quality_with_fewer_comparisons(bundle, photos, batch):
    scorer = Scorer(bundle, anchors="adaptive", stopping=Stopping(12))
    scores = list(scorer.score_many(photos, batch))
    assert [score.value for score in scores] == sorted(score.value for score in scores)
    assert max(score.comparisons for score in scores) < 5
    for score, full in zip(scores, Scorer(bundle).score_many(photos), strict=True):
        assert score.comparisons == sum(not math.isnan(p) for p in score.probabilities)
        assert score.std > full.std
        for p, whole in zip(score.probabilities, full.probabilities, strict=True):
            assert math.isnan(p) or p == pytest.approx(whole, abs=1e-6)


def test_adaptive_anchors_that_ask_all_give_the_full_score(bundle, photos):
    every = Scorer(bundle, anchors="adaptive", stopping=Stopping(0))
    for photo in photos:
        score, full = every.score(photo), Scorer(bundle).score(photo)
        assert (score.comparisons, full.comparisons) == (5, 5)
        assert score.value == pytest.approx(full.value, abs=1e-5)


def test_an_unknown_use_of_anchors_is_refused(bundle):
    with pytest.raises(ValueError, match="choose 'all' or 'adaptive'"):
        Scorer(bundle, anchors="some")
