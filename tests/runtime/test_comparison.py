"""Level logits to preference matrices, against arithmetic done by hand or in 50 digits."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compare2score.comparison import (
    comparison_probability,
    extend_preference_matrix,
    level_probabilities,
    symmetric_preference_matrix,
    votes,
)

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
LOGITS = st.lists(st.floats(-500, 500), min_size=5, max_size=5)


@given(LOGITS, st.floats(0.5, 100))
def test_level_probabilities_agree_with_fifty_digits(logits, temperature):
    with mpmath.workdps(50):
        odds = [mpmath.exp(mpmath.mpf(x) / mpmath.mpf(temperature)) for x in logits]
        expected = [float(x / mpmath.fsum(odds)) for x in odds]
    assert level_probabilities(logits, temperature) == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_the_published_temperature_flattens_the_published_logits():
    # exp(0), exp(0.1): two levels 10 apart, divided by 100.
    got = level_probabilities([0.0, 10.0], 100)
    assert got == pytest.approx([0.47502081252106, 0.52497918747894], abs=1e-14)


def test_huge_float32_logits_do_not_overflow():
    logits = np.array([3e38, -3e38, 0, 0, 3e38], dtype=np.float32)
    assert level_probabilities(logits, 1e-6) == pytest.approx([0.5, 0, 0, 0, 0.5])


@pytest.mark.parametrize("level", range(5))
def test_a_certain_answer_gives_its_levels_weight(level):
    logits = np.full(5, -1e4)
    logits[level] = 1e4
    assert comparison_probability(logits, WEIGHTS, 1.0) == WEIGHTS[level]


def test_no_preference_between_the_levels_is_a_coin_toss():
    assert comparison_probability(np.full((2, 3, 5), 7.0), WEIGHTS, 1.0) == pytest.approx(
        np.full((2, 3), 0.5)
    )


@given(LOGITS)
def test_reversed_levels_give_the_opposite_preference(logits):
    forward = comparison_probability(logits, WEIGHTS, 10.0)
    assert forward + comparison_probability(logits[::-1], WEIGHTS, 10.0) == pytest.approx(1, abs=1e-14)


@given(hnp.arrays(np.float64, (40, 5), elements=st.floats(-30, 30)))
def test_rounding_never_leaves_the_range_of_probabilities(logits):
    # Three levels of weight 1 add up to 1 and a rounding error where the others are out of the question.
    logits[:, 0] = -1e4
    probabilities = comparison_probability(logits, (0.0, 1.0, 1.0, 1.0, 1.0), 1.0)
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1


def test_both_orders_are_averaged_by_hand():
    # Entry (i, j) = P(i preferred) with i second: 0 beats 1 with 0.8 as second, and with 1 - 0.4 as first.
    second_wins = [[0.9, 0.8, 0.3], [0.4, 0.1, 0.6], [0.5, 1.0, 0.2]]
    expected = [[0.5, 0.7, 0.4], [0.3, 0.5, 0.3], [0.6, 0.7, 0.5]]
    assert symmetric_preference_matrix(second_wins) == pytest.approx(np.array(expected))


def test_averaging_leaves_its_argument_alone():
    second_wins = np.full((2, 2), 0.75)
    symmetric_preference_matrix(second_wins)
    assert (second_wins == 0.75).all()


@given(hnp.arrays(np.float64, (6, 6), elements=st.floats(0, 1)))
def test_averaged_preferences_are_probabilities_that_add_up_to_one(second_wins):
    matrix = symmetric_preference_matrix(second_wins)
    assert matrix + matrix.T == pytest.approx(np.ones((6, 6)), abs=1e-15)
    assert ((matrix >= 0) & (matrix <= 1)).all()


def test_the_test_image_comes_last():
    anchors = [[0.5, 0.2], [0.8, 0.5]]
    expected = [[0.5, 0.2, 0.9], [0.8, 0.5, 0.4], [0.1, 0.6, 0.5]]
    assert extend_preference_matrix(anchors, [0.1, 0.6]) == pytest.approx(np.array(expected))


def test_a_batch_of_test_images_shares_the_anchors():
    anchors = np.array([[0.5, 0.2], [0.8, 0.5]])
    rows = np.array([[0.1, 0.6], [1.0, 0.0], [0.5, 0.5]])
    batch = extend_preference_matrix(anchors, rows)
    assert batch.shape == (3, 3, 3)
    for matrix, row in zip(batch, rows, strict=True):
        assert (matrix == extend_preference_matrix(anchors, row)).all()


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [([0.0, 0.499, 0.5, 0.501, 1.0], [0, 0, 0.5, 1, 1]), ([[0.5, 0.7], [0.3, 0.5]], [[0.5, 1], [0, 0.5]])],
)
def test_a_vote_goes_whole_to_the_preferred_image_and_is_shared_by_equals(probabilities, expected):
    np.testing.assert_array_equal(votes(probabilities), expected)


def test_what_was_not_asked_casts_no_vote():
    np.testing.assert_array_equal(votes([np.nan, 0.9]), [np.nan, 1])
