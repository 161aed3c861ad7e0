"""The choice of anchors against the paper's Eq. 4, taken at its word."""

from __future__ import annotations

import numpy as np
import pytest

from compare2score.anchors.select import select_anchors
from compare2score.errors import LabelError


def slow_selection(
    mos: list[float], doubt: list[list[float]], intervals: int, per_interval: int
) -> list[list[int]]:
    """For each interval: all its images, in rising order of `doubt[interval]`, cut after `per_interval`."""
    low, high = min(mos), max(mos)
    chosen = []
    for k in range(intervals):
        start, end = low + (high - low) * k / intervals, low + (high - low) * (k + 1) / intervals
        inside = [i for i, m in enumerate(mos) if start <= m < end or (k == intervals - 1 and m == high)]
        inside.sort(key=lambda i: doubt[k][i])
        chosen.append(inside[:per_interval])
    return chosen


@pytest.mark.parametrize(("intervals", "per_interval"), [(1, 1), (5, 1), (5, 3), (7, 2)])
@pytest.mark.parametrize("seed", range(5))
def test_anchors_are_the_images_of_smallest_variance_in_equal_intervals(intervals, per_interval, seed):
    generator = np.random.default_rng(seed)
    mos, std = generator.normal(50, 20, 400), generator.uniform(5, 25, 400)
    expected = slow_selection(list(mos), [list(std**2)] * intervals, intervals, per_interval)
    chosen = select_anchors(mos, std, intervals, per_interval)
    assert chosen.reshape(intervals, per_interval).tolist() == expected


@pytest.mark.parametrize(("intervals", "per_interval"), [(1, 1), (5, 1), (4, 3)])
@pytest.mark.parametrize("seed", range(5))
def test_without_deviations_anchors_are_nearest_the_intervals_middles(intervals, per_interval, seed):
    mos = np.random.default_rng(seed).uniform(-3, 9, 300)
    low, high = mos.min(), mos.max()
    middles = [low + (high - low) * (k + 0.5) / intervals for k in range(intervals)]
    doubt = [[abs(m - middle) for m in mos] for middle in middles]
    chosen = select_anchors(mos, None, intervals, per_interval)
    assert chosen.reshape(intervals, per_interval).tolist() == slow_selection(
        list(mos), doubt, intervals, per_interval
    )


def test_the_best_and_the_worst_image_belong_to_the_outer_intervals():
    mos = np.array([0.0, 1, 3, 5, 7, 10])
    std = np.array([0.1, 9, 9, 9, 9, 0.1])
    assert select_anchors(mos, std).tolist() == [0, 2, 3, 4, 5]


def test_of_equally_sure_images_the_first_is_taken():
    mos = np.array([0.0, 0.0, 1.0, 1.0])
    assert select_anchors(mos, np.ones(4), intervals=2).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("mos", "per_interval"),
    [([0.0, 0.1, 9.9, 10.0], 1), ([3.0, 3.0, 3.0], 1), ([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], 2)],
    ids=["gap in the middle", "all alike", "too few"],
)
@pytest.mark.parametrize("with_std", [True, False])
def test_an_interval_without_enough_images_is_named(mos, per_interval, with_std):
    labels = np.array(mos)
    with pytest.raises(LabelError, match=r"have a MOS in \[.*\]"):
        select_anchors(labels, np.ones(len(labels)) if with_std else None, 5, per_interval)


@pytest.mark.parametrize("with_std", [True, False])
def test_a_border_belongs_to_the_interval_above_it(with_std):
    mos = np.array([0.0, 2.0, 4.0, 6.0, 8.0, 10.0])
    assert select_anchors(mos, np.array([1.0, 1, 1, 1, 1, 2]) if with_std else None).tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]
