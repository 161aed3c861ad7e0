"""Repeats end when they are stable or the budget is spent, and say which."""

from __future__ import annotations

from itertools import cycle

import pytest

from compare2score.benchmarks.timing import FEWEST, Limits, Timing, measure, measure_rounds


class Clock:
    """Time that only the measured calls spend."""

    def __init__(self, *seconds):
        self.now, self.seconds, self.calls = 0.0, cycle(seconds), 0

    def __call__(self):
        return self.now

    def work(self):
        self.calls += 1
        self.now += next(self.seconds)


def run(clock, **limits):
    return measure(clock.work, Limits(**limits), clock=clock)


def test_steady_calls_end_after_the_fewest_and_warm_up_is_not_counted():
    clock = Clock(0.5, 1.0, 1.0, 1.0, 1.0, 1.0)
    timing = run(clock, warmup=1, least=5, most=100, budget=1e9, variation=0.01)
    assert timing.seconds == (1.0,) * 5
    assert timing.stable
    assert clock.calls == 6


def test_calls_that_vary_spend_the_budget_and_are_called_unstable():
    timing = run(Clock(1.0, 3.0), warmup=0, least=2, most=1000, budget=20, variation=0.05)
    assert not timing.stable
    assert sum(timing.seconds) == pytest.approx(20, abs=3)


def test_repeats_go_on_until_an_early_outlier_weighs_little():
    clock = Clock(2.0, *[1.0] * 5000)
    timing = run(clock, warmup=0, least=5, most=5000, budget=1e9, variation=0.05)
    assert timing.stable
    assert timing.variation <= 0.05
    assert len(timing.seconds) > 100


def test_a_spent_budget_still_gives_a_deviation_and_few_calls_are_never_stable():
    timing = run(Clock(5.0), warmup=0, least=10, most=100, budget=1, variation=0.05)
    assert len(timing.seconds) == FEWEST
    assert not timing.stable


def test_exactly_so_many_repeats_can_be_asked_for():
    timing = run(Clock(1.0, 9.0), warmup=0, least=7, most=7, budget=float("inf"), variation=0)
    assert len(timing.seconds) == 7


def test_percentiles_mean_and_deviation_are_those_of_the_sample():
    timing = Timing(tuple(float(second) for second in range(1, 101)), True)
    assert timing.median == 50.5
    assert timing.percentile(90) == pytest.approx(90.1)
    assert timing.percentile(99) == pytest.approx(99.01)
    assert timing.mean == 50.5
    assert timing.std == pytest.approx((100 * 101 / 12) ** 0.5)


def test_only_the_decisive_name_decides_and_each_has_its_own_verdict():
    noisy = cycle((0.1, 0.9))
    timings = measure_rounds(
        lambda: {"total": 1.0, "stage": next(noisy)}, Limits(0, 4, 50, 1e9, 0.05), decisive=("total",)
    )
    assert len(timings["total"].seconds) == 4
    assert timings["total"].stable
    assert not timings["stage"].stable


def test_energy_is_that_of_the_counted_calls_an_equal_part_each():
    clock = Clock(2.0)

    class Meter:
        name = "made up"

        def joules(self):
            return 30 * clock.now  # 30 watts

    timing = measure(clock.work, Limits(2, 5, 5, 1e9, 1), [Meter()], clock)
    assert timing.joules == {"made up": pytest.approx(60)}
