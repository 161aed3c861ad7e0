"""What an overview keeps of rows, against sorting all of them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from compare2score.errors import CollectionError
from compare2score.pipelines.overview import BINS, survey
from compare2score.pipelines.rows import Row
from compare2score.pipelines.selection import Choice


def scored(path, value):
    return Row(path, "b" * 64, 1000, 8, 6, "0" * 64, value, 0.0, 0.5, (0.5,) * 5)


def failed(path, code="truncated"):
    return Row(path, "b" * 64, error_code=code, error_text=f"{path} is damaged; save it anew.")


def random_rows(number, seed=0):
    values = 100 * np.random.default_rng(seed).beta(2, 3, number)
    return [scored(f"{place:05}.jpg", value) for place, value in enumerate(values.tolist())]


def paths(rows):
    return [row.path for row in rows]


def test_counts_mean_and_quantiles_are_numpys():
    rows = random_rows(5000)
    values = np.array([row.value for row in rows])
    found = survey(lambda: [*rows, failed("x.jpg")])
    assert (found.rows, found.scored, found.bytes) == (5001, 5000, 5_000_000)
    assert found.mean == pytest.approx(values.mean())
    assert found.median == pytest.approx(np.quantile(values, 0.5, method="inverted_cdf"), abs=0.001)
    expected = np.quantile(values, np.arange(10, 100, 10) / 100, method="inverted_cdf")
    np.testing.assert_allclose([decile.value for decile in found.deciles], expected, atol=0.001)
    assert list(found.histogram) == np.histogram(values, BINS, (0, 100))[0].tolist()


def test_the_ends_of_the_scale_are_counted():
    found = survey(lambda: [scored("a", 0.0), scored("b", 100.0)])
    assert (found.histogram[0], found.histogram[-1], sum(found.histogram)) == (1, 1, 2)


def test_worst_best_and_nearest_to_a_decile_are_those_of_a_whole_sort():
    rows = random_rows(1000, seed=3)
    found = survey(lambda: rows)
    by_value = sorted(rows, key=lambda row: row.value)
    assert paths(found.worst) == paths(by_value[:12])
    assert paths(found.best) == paths(by_value[::-1][:12])
    for decile in found.deciles:
        near = sorted(rows, key=lambda row: abs(row.value - decile.value))[:3]
        assert paths(decile.rows) == paths(sorted(near, key=lambda row: row.value))


def test_of_equal_scores_the_first_are_shown():
    rows = [scored(f"{place:02}", 50.0) for place in range(40)]
    found = survey(lambda: rows)
    assert paths(found.worst) == paths(found.best) == paths(rows[:12])


@pytest.mark.parametrize("choice", [Choice(min_score=40.0), Choice(top=300), Choice(top_share=0.2)])
def test_the_border_is_where_the_choice_divides(choice):
    rows = random_rows(1000, seed=5)
    found = survey(lambda: [failed("bad.jpg"), *rows], choice)
    by_value = sorted(rows, key=lambda row: -row.value)
    number = choice.top or round(1000 * (choice.top_share or 0)) or sum(row.value >= 40 for row in rows)
    assert found.border.kept == number
    assert paths(found.border.above) == paths(by_value[:number][::-1][:6])
    assert paths(found.border.below) == paths(by_value[number:][:6])
    assert found.border.value == (choice.min_score or by_value[number - 1].value)


def test_nothing_kept_and_no_choice():
    rows = random_rows(10)
    nothing = survey(lambda: rows, Choice(min_score=100.0)).border
    assert (nothing.kept, nothing.above, nothing.value) == (0, (), 100.0)
    assert survey(lambda: [failed("a")], Choice(top=3)).border.value is None
    assert survey(lambda: rows).border is None
    assert survey(lambda: rows, Choice(listing="kept.txt")).border is None


def test_errors_are_counted_by_code_and_the_first_are_named():
    rows = [failed(f"t{place}") for place in range(50)] + [failed("g", "not_found"), scored("a", 1.0)]
    found = survey(lambda: rows).failures
    assert [(one.code, one.number) for one in found] == [("truncated", 50), ("not_found", 1)]
    assert paths(found[0].rows) == [f"t{place}" for place in range(20)]


def test_no_rows_and_nothing_but_errors():
    empty = survey(list)
    assert (empty.rows, empty.mean, empty.deciles, empty.bundle) == (0, None, (), "")
    assert survey(lambda: [failed("a")]).deciles == ()


@pytest.mark.parametrize("value", [-0.1, 100.1, float("nan"), float("inf")])
def test_what_is_no_score_is_refused(value):
    with pytest.raises(CollectionError, match="is none; score it again"):
        survey(lambda: [scored("a", value)])


def test_memory_does_not_grow_with_the_rows():
    def peak(number):
        def read():
            for place in range(number):
                yield scored(f"{place}", place % 101 * 0.99) if place % 3 else failed(f"{place}")

        tracemalloc.start()
        survey(read, Choice(min_score=50.0))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(4_000) < peak(1_000) + 20_000
