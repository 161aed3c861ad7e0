"""Agreement with people: against scipy, cases worked by hand, another optimiser, and known populations."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.stats import bootstrap, kendalltau, norm, pearsonr, spearmanr

from compare2score.pipelines import resample
from compare2score.pipelines.correlation import (
    STATISTICS,
    fit_logistic,
    krcc,
    logistic,
    measure,
    plcc,
    resampled,
    rmse,
    srcc,
)
from compare2score.pipelines.resample import PAIR_LEVELS, count_pairs, draw_times
from compare2score.training.labels import read_labels

TABLE = Path(__file__).resolve().parents[2].parent / "shared" / "iqa" / "mos" / "csiq.csv"


def gaussian(size, rho, seed):
    """Scores and opinions [size] of a bivariate normal of correlation rho, both of deviation 1."""
    generator = np.random.default_rng(seed)
    mos = generator.normal(size=size)
    return rho * mos + np.sqrt(1 - rho**2) * generator.normal(size=size), mos


def values(measurement, method=0):
    return {name: found.value for name, found in measurement.agreements[method].statistics.items()}


def test_ranks_of_four_images_as_worked_out_by_hand():
    scores, mos = np.array([1.0, 2, 3, 4]), np.array([10.0, 30, 20, 40])
    assert srcc(scores, mos) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert krcc(scores, mos) == pytest.approx((5 - 1) / 6)


def test_a_logistic_relation_is_a_perfect_plcc_and_a_reversed_one_a_negative_srcc():
    scores = np.linspace(-2, 3, 60)
    mos = logistic(scores, 1.0, 5.0, 0.4, np.log(0.3))
    assert plcc(scores, mos) == pytest.approx(1, abs=1e-6)
    assert rmse(scores, mos) == pytest.approx(0, abs=1e-5)
    assert plcc(scores, mos) > pearsonr(scores, mos).statistic
    assert srcc(scores, -mos) == pytest.approx(-1)


def test_plcc_of_noise_is_small():
    scores, mos = gaussian(400, 0.0, 0)
    assert abs(plcc(scores, mos)) < 0.2


def test_plcc_and_rmse_are_those_of_another_optimiser_and_another_form_of_the_curve():
    scores, noise = gaussian(300, 0.0, 1)
    mos = 1 + 4 / (1 + np.exp(-(scores - 0.3) / 0.4)) + 0.3 * noise

    def error(beta):
        curve = (beta[0] - beta[1]) / (1 + np.exp(-(scores - beta[2]) / beta[3])) + beta[1]
        return np.mean((curve - mos) ** 2)

    start = [mos.max(), mos.min(), scores.mean(), scores.std() / 4]
    options = {"maxiter": 20_000, "maxfev": 20_000, "xatol": 1e-10, "fatol": 1e-14}
    best = minimize(error, start, method="Nelder-Mead", options=options)
    # At a least-squares optimum with a free offset the error is the variance left: R^2 = PLCC^2.
    assert rmse(scores, mos) == pytest.approx(np.sqrt(best.fun), rel=1e-6)
    assert plcc(scores, mos) == pytest.approx(np.sqrt(1 - best.fun / mos.var()), rel=1e-6)


def test_too_few_images_for_a_curve_are_compared_unmapped():
    scores, mos = np.array([0.0, 1, 2, 4]), np.array([4.0, 3, 1, 0])
    assert plcc(scores, mos) == pytest.approx(pearsonr(scores, mos).statistic)
    slope, offset = np.polyfit(scores, mos, 1)
    assert rmse(scores, mos) == pytest.approx(np.sqrt(np.mean((slope * scores + offset - mos) ** 2)))


def test_pairs_are_counted_as_the_papers_rule_says_one_by_one(monkeypatch):
    generator = np.random.default_rng(2)
    mos, std = generator.integers(0, 9, 40) / 2.0, generator.uniform(0.2, 1.2, 40)
    scores = np.round(mos + generator.normal(0, 1.5, 40))
    right, total = dict.fromkeys(PAIR_LEVELS, 0.0), dict.fromkeys(PAIR_LEVELS, 0)
    for i, j in itertools.combinations(range(40), 2):
        gap, sigma = abs(mos[i] - mos[j]), np.sqrt(std[i] ** 2 + std[j] ** 2)
        if gap == 0:
            continue
        level = "superior" if gap > 2 * sigma else "better" if gap > sigma else "similar"
        total[level] += 1
        if scores[i] == scores[j]:
            right[level] += 0.5
        elif (scores[i] > scores[j]) == (mos[i] > mos[j]):
            right[level] += 1
    assert all(total.values())
    # In one block, and in blocks of one row.
    for block in (resample.BLOCK, 1):
        monkeypatch.setattr(resample, "BLOCK", block)
        found, counted = count_pairs(scores[None], mos, std).counts()
        assert counted.tolist() == list(total.values())
        assert found[0].tolist() == list(right.values())
    accuracies = values(measure(scores[None], mos, std, resamples=0))
    for level in PAIR_LEVELS:
        assert accuracies[level] == pytest.approx(right[level] / total[level])


@pytest.mark.skipif(not TABLE.exists(), reason="needs the shared label tables")
def test_statistics_of_real_opinions_are_scipys_and_their_intervals_those_of_its_bootstrap():
    table = read_labels(TABLE)
    mos, std = table.mos[::4], table.std[::4]
    scores = np.round(mos + np.random.default_rng(3).normal(0, 0.15, len(mos)), 2)
    found = measure(scores[None], mos, std, resamples=600).agreements[0].statistics
    for name, reference in (("srcc", spearmanr), ("krcc", kendalltau)):
        assert found[name].value == pytest.approx(reference(scores, mos).statistic, abs=1e-12)
        theirs = bootstrap(
            (scores, mos),
            lambda a, b, reference=reference: reference(a, b).statistic,
            n_resamples=600,
            paired=True,
            vectorized=False,
            method="BCa",
            random_state=4,
        ).confidence_interval
        width = theirs.high - theirs.low
        assert (found[name].low, found[name].high) == pytest.approx(tuple(theirs), abs=0.2 * width)


def populations(rho, std):
    """Exact values for a bivariate normal of correlation rho, opinions of deviation 1 stated with `std`."""

    # A pair's opinions differ by d ~ N(0, 2); given d its scores differ by N(rho d, 2 (1 - rho^2)).
    def right(d):
        return norm.cdf(rho * d / np.sqrt(2 * (1 - rho**2))) * norm.pdf(d, 0, np.sqrt(2))

    sigma = std * np.sqrt(2)
    edges = dict(zip(PAIR_LEVELS, ((0, sigma), (sigma, 2 * sigma), (2 * sigma, 12)), strict=True))
    pairs = {
        level: quad(right, *ends)[0] / np.diff(norm.cdf(ends, 0, np.sqrt(2)))[0]
        for level, ends in edges.items()
    }
    return {
        "srcc": 6 / np.pi * np.arcsin(rho / 2),
        "plcc": rho,
        "krcc": 2 / np.pi * np.arcsin(rho),
        "rmse": np.sqrt(1 - rho**2),
        **pairs,
    }


def test_estimates_of_a_large_sample_are_the_populations():
    scores, mos = gaussian(6000, 0.7, 5)
    found = values(measure(scores[None], mos, np.full(6000, 0.5), resamples=0))
    for name, expected in populations(0.7, 0.5).items():
        assert found[name] == pytest.approx(expected, abs=0.015), name


@pytest.mark.slow
def test_intervals_hold_the_populations_value_about_as_often_as_they_promise():
    rho, samples = 0.7, 100
    truth = populations(rho, 0.5)
    held = dict.fromkeys(STATISTICS, 0)
    for seed in range(samples):
        scores, mos = gaussian(100, rho, 100 + seed)
        found = measure(scores[None], mos, np.full(100, 0.5), resamples=120, seed=seed)
        for name, estimate in found.agreements[0].statistics.items():
            held[name] += estimate.low <= truth[name] <= estimate.high
    # 95 of 100 expected; fewer than 85 has a chance below 1e-4.
    assert min(held.values()) >= 85, held


def width(measurement, name="srcc"):
    found = measurement.agreements[0].statistics[name]
    return found.high - found.low


def test_a_difference_is_resampled_in_pairs():
    scores, mos = gaussian(150, 0.7, 6)
    nearly = scores + np.random.default_rng(7).normal(0, 0.05, 150)
    found = measure(np.stack([scores, nearly, scores]), mos, np.full(150, 0.5), resamples=200)
    close, same = (each.statistics["srcc"] for each in found.differences)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert close.value == pytest.approx(srcc(nearly, mos) - srcc(scores, mos))
    assert close.low <= close.value <= close.high
    assert close.high - close.low < 0.2 * width(found)


def test_images_of_one_group_are_drawn_together():
    scores, mos = gaussian(60, 0.6, 8)
    # Four copies of every image add nothing to what is known.
    copies, opinions, std = np.repeat(scores, 4), np.repeat(mos, 4), np.full(240, 0.5)
    grouped = measure(copies[None], opinions, std, np.repeat(np.arange(60), 4), resamples=300)
    single = measure(scores[None], mos, std[:60], resamples=300)
    naive = measure(copies[None], opinions, std, resamples=300)
    assert (grouped.images, grouped.units) == (240, 60)
    assert width(grouped) == pytest.approx(width(single), rel=0.1)
    assert width(naive) < 0.65 * width(single)


@pytest.mark.parametrize("decimals", [1, 9])
def test_a_resample_has_the_statistics_of_the_images_that_it_holds(decimals):
    generator = np.random.default_rng(9)
    scores = np.round(generator.normal(size=80), decimals)
    mos = np.round(3 + np.tanh(2 * scores + 0.6 * generator.normal(size=80)), decimals)
    std = generator.uniform(0.1, 0.5, 80)
    (times,) = draw_times(np.repeat(np.arange(40), 2), 40, 12, seed=0)
    curve = fit_logistic(scores, mos)
    found = resampled(scores[None], mos, [curve], count_pairs(scores[None], mos, std), times)
    for row, held in zip(found[:, 0], times, strict=True):
        assert held.sum() == 80
        copies = np.repeat(np.arange(80), held.astype(int))
        expected = values(measure(scores[None, copies], mos[copies], std[copies], resamples=0))
        # curve_fit, which the expected values come from, starts anew: the fits agree to their tolerance.
        assert row == pytest.approx(list(expected.values()), abs=1e-5)


def test_tables_too_large_for_every_pair_get_the_same_intervals(monkeypatch):
    scores, mos = gaussian(900, 0.6, 9)
    std = np.full(900, 0.5)
    whole = measure(scores[None], mos, std, resamples=200).agreements[0].statistics
    monkeypatch.setattr(resample, "EXACT_ROWS", 0)
    first_order = measure(scores[None], mos, std, resamples=200).agreements[0].statistics
    for name in (*PAIR_LEVELS, "krcc"):
        assert first_order[name].value == whole[name].value
        width = whole[name].high - whole[name].low
        assert first_order[name].low == pytest.approx(whole[name].low, abs=0.1 * width)
        assert first_order[name].high == pytest.approx(whole[name].high, abs=0.1 * width)


def test_the_seed_alone_decides_what_is_drawn():
    scores, mos = gaussian(50, 0.5, 10)
    std = np.full(50, 0.5)
    first, again = (measure(scores[None], mos, std, resamples=20) for _ in range(2))
    assert first == again
    assert first != measure(scores[None], mos, std, resamples=20, seed=1)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 6])
def test_what_is_not_defined_is_not_a_number_and_no_warning(size):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure(np.zeros((1, size)), np.arange(size, dtype=float), np.ones(size), resamples=5)
    statistics = found.agreements[0].statistics
    assert np.isnan([statistics[name].value for name in ("srcc", "plcc", "krcc")]).all()
    assert found.images == size


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_a_handful_of_images_in_the_right_order_is_a_perfect_rank_correlation(size):
    mos = np.arange(size, dtype=float)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure(mos[None] ** 2, mos, np.full(size, 0.1), resamples=30)
    assert (values(found)["srcc"], values(found)["krcc"]) == (pytest.approx(1), pytest.approx(1))
    assert values(found)["superior"] == 1
