"""Evaluation: how well a bundle's scores of labelled images agree with people.

What is compared with the opinions is q, the MAP estimate. `Score.value` rises with it, so ranks are the same;
the logistic fit, too, has the unbounded q to work on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from compare2score.errors import ImageError, LabelError
from compare2score.pipelines.correlation import RESAMPLES, STATISTICS, Measurement, measure
from compare2score.pipelines.splits import published_parts, random_parts
from compare2score.scorer import Score
from compare2score.training.labels import LabelTable

T = TypeVar("T")

TYPE = "type"
"""The column that tables are broken down by unless told otherwise, where they have it."""


@dataclass(frozen=True, eq=False)
class ScoredTable:
    """A label table and what a bundle says of its images.

    q: float64 [N], MAP estimates, NaN where the image has an error.
    errors: the rows that could not be scored, and why.
    """

    table: LabelTable
    q: NDArray[np.float64]
    errors: Mapping[int, ImageError]


@dataclass(frozen=True)
class Spread:
    """A statistic over test parts: median, lowest and highest; NaN where it is nowhere defined."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Splits:
    """Statistics over test parts.

    Attributes:
        parts: how many test parts.
        images: of each part.
        statistics: one mapping of STATISTICS to Spread for each bundle.
        differences: bundle minus the first bundle, part by part, of each bundle but the first.
    """

    parts: int
    images: tuple[int, ...]
    statistics: tuple[Mapping[str, Spread], ...]
    differences: tuple[Mapping[str, Spread], ...]


@dataclass(frozen=True, eq=False)
class TableEvaluation:
    """One table's results, for one or several bundles.

    Attributes:
        scored: the table with each bundle's scores.
        kept: bool [N], the rows that every bundle could score; the statistics are of these.
        whole: all kept rows.
        by: the column that the table was broken down by, or None.
        parts: the rows of each value of that column, by value.
        splits: over test parts, or None where none were asked for or none concern this table.
    """

    scored: tuple[ScoredTable, ...]
    kept: NDArray[np.bool_]
    whole: Measurement
    by: str | None
    parts: Mapping[str, Measurement]
    splits: Splits | None

    @property
    def table(self) -> LabelTable:
        """The label table."""
        return self.scored[0].table

    @property
    def left_out(self) -> list[tuple[str, ImageError]]:
        """Images that a bundle could not score, as the table names them, and the first reason."""
        reasons: dict[int, ImageError] = {}
        for scored in self.scored:
            reasons = {**scored.errors, **reasons}
        return [(self.table.images[row], reasons[row]) for row in sorted(reasons)]


def image_paths(table: LabelTable) -> list[Path]:
    """The table's image files [N]."""
    return [table.root / image for image in table.images]


def score_table(table: LabelTable, results: Iterable[Score | ImageError]) -> ScoredTable:
    """Pairs a table with the results of its images, in their order, as `Scorer.score_many` yields them."""
    q, errors = np.full(len(table), np.nan), {}
    for row, result in zip(range(len(table)), results, strict=True):
        if isinstance(result, ImageError):
            errors[row] = result
        else:
            q[row] = result.q
    return ScoredTable(table, q, errors)


class Watch(Protocol):
    """Passes items on and shows progress: items, how many, what for."""

    def __call__(self, items: Iterable[T], total: int, label: str, /) -> Iterable[T]: ...


def unwatched(items: Iterable[T], _total: int, _label: str) -> Iterable[T]:
    """The Watch that shows nothing."""
    return items


def evaluate_table(
    scored: Sequence[ScoredTable],
    by: str | None = None,
    splits: int | Path | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    watch: Watch = unwatched,
) -> TableEvaluation:
    """Evaluates one table, scored by one or several bundles.

    by: a column to break the table down by; by default its column `type`, if it has one.
    splits: so many random test parts, or the folder of published ones (see `splits`).
    resamples: of the bootstrap. Where the table has groups, whole groups are drawn: their images depend on
        each other, and intervals that took each for itself would be too narrow.

    Raises LabelError for an unknown column or splits that cannot be had.
    """
    table = scored[0].table
    column = breakdown(table, by)
    kept = np.all([np.isfinite(each.q) for each in scored], axis=0)
    q = np.stack([each.q for each in scored])

    def measured(rows: NDArray[np.int64], resamples: int) -> Measurement:
        unit = None
        # Of images of one group alone, each counts for itself.
        if table.group is not None and len(groups := {table.group[row] for row in rows}) > 1:
            number = {name: place for place, name in enumerate(sorted(groups))}
            unit = np.array([number[table.group[row]] for row in rows], np.int64)
        return measure(q[:, rows], table.mos[rows], table.std[rows], unit, resamples, seed)

    rows_of: dict[str, list[int]] = {}
    for row in np.flatnonzero(kept).tolist():
        if column is not None:
            rows_of.setdefault(column[row], []).append(row)
    jobs = [np.flatnonzero(kept), *(np.array(rows_of[name]) for name in sorted(rows_of))]
    whole, *parts = (measured(rows, resamples) for rows in watch(jobs, len(jobs), f"Resampling {table.name}"))
    tests = [] if splits is None else drawn_parts(table, splits, seed)
    return TableEvaluation(
        scored=tuple(scored),
        kept=kept,
        whole=whole,
        by=None if column is None else by or TYPE,
        parts=dict(zip(sorted(rows_of), parts, strict=True)),
        splits=over_parts([measured(rows[kept[rows]], 0) for rows in tests], len(scored)),
    )


def breakdown(table: LabelTable, by: str | None) -> tuple[str, ...] | None:
    """The column [N] to break a table down by. Raises LabelError if one is asked for and absent."""
    named = {"group": table.group, "split": table.split, **table.more}
    column = named.get(by or TYPE)
    if column is None and by is not None:
        known = ", ".join(name for name, values in named.items() if values is not None and name)
        raise LabelError(f"Label table '{table.name}' has no column '{by}'; it has {known or 'none to use'}.")
    return column


def drawn_parts(table: LabelTable, splits: int | Path, seed: int = 0) -> list[NDArray[np.int64]]:
    """Rows of the test parts that `splits` asks for."""
    if isinstance(splits, int):
        return random_parts(table, splits, seed)
    return published_parts(table, splits)


def over_parts(measurements: Sequence[Measurement], bundles: int) -> Splits | None:
    """Median, lowest and highest of every statistic over test parts; None without parts."""
    if not measurements:
        return None

    def spread(name: str, place: int, difference: bool) -> Spread:
        found = [(each.differences if difference else each.agreements)[place] for each in measurements]
        values = np.array([agreement.statistics[name].value for agreement in found])
        values = values[np.isfinite(values)]
        if not len(values):
            return Spread(np.nan, np.nan, np.nan)
        return Spread(float(np.median(values)), float(values.min()), float(values.max()))

    return Splits(
        parts=len(measurements),
        images=tuple(each.images for each in measurements),
        statistics=tuple({name: spread(name, at, False) for name in STATISTICS} for at in range(bundles)),
        differences=tuple({name: spread(name, at, True) for name in STATISTICS} for at in range(bundles - 1)),
    )


def named_apart(tables: Sequence[LabelTable]) -> list[LabelTable]:
    """The tables with a number behind a name that an earlier one has."""
    used: set[str] = set()
    renamed = []
    for table in tables:
        name, number = table.name, 1
        while name in used:
            number += 1
            name = f"{table.name}-{number}"
        used.add(name)
        renamed.append(replace(table, name=name))
    return renamed
