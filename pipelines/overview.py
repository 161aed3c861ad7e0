"""What the rows of a collection come to: counts, the distribution of scores, and the rows worth a look."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import tee

from compare2score.errors import CollectionError
from compare2score.pipelines.rows import Row
from compare2score.pipelines.selection import Choice, keep

BINS = 50
DECILES = tuple(range(10, 100, 10))
_FINE = 100_000
"""Bins behind the quantiles, which are right to 0.001 of 100 points: constant memory, however many rows."""
_EXTREMES = 12
_AT_DECILE = 3
_NEAR = 6
_NAMED = 20

Read = Callable[[], Iterable[Row]]
"""Gives the same rows in the same order whenever it is called."""


@dataclass(frozen=True)
class Decile:
    """A decile of the scores.

    Attributes:
        percent: share of the scored rows at or below it, 10 to 90.
        value: 0-100.
        rows: those nearest to it, lowest first.
    """

    percent: int
    value: float
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Failures:
    """How many rows have an error code, and the first of them."""

    code: str
    number: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Border:
    """Where a choice divides the scored rows.

    Attributes:
        value: the least score to keep; None where nothing is kept.
        kept: how many rows are.
        above: the lowest of those kept, lowest first.
        below: the highest of the others, highest first.
    """

    value: float | None
    kept: int
    above: tuple[Row, ...]
    below: tuple[Row, ...]


@dataclass(frozen=True)
class Overview:
    """A collection at a glance; its size does not depend on the number of rows.

    Attributes:
        rows, scored: how many; the others have an error.
        bytes: of all images whose length is known.
        mean, median: of the scores, 0-100; None without any.
        histogram: scored rows by value, in BINS equal bins from 0 to 100.
        worst: lowest first. best: highest first.
        deciles: without any score none.
        border: None where the choice keeps every scored row.
        failures: by code, the most frequent first.
        bundle: identity of the bundle that scored; empty without rows.
    """

    rows: int
    scored: int
    bytes: int
    mean: float | None
    median: float | None
    histogram: tuple[int, ...]
    worst: tuple[Row, ...]
    best: tuple[Row, ...]
    deciles: tuple[Decile, ...]
    border: Border | None
    failures: tuple[Failures, ...]
    bundle: str

    def pictured(self) -> Iterator[Row]:
        """Every row that is shown with its picture; some more than once."""
        yield from self.worst
        yield from self.best
        for decile in self.deciles:
            yield from decile.rows
        if self.border is not None:
            yield from self.border.above
            yield from self.border.below


class Smallest:
    """The few rows with the smallest keys, in constant memory; of equal ones, those that came first."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.heap: list[tuple[float, int, Row]] = []

    def add(self, key: float, place: int, row: Row) -> None:
        """Offers a row; `place` is its number, which no other row has."""
        if len(self.heap) < self.number:
            heapq.heappush(self.heap, (-key, -place, row))
        elif -key > self.heap[0][0]:
            heapq.heapreplace(self.heap, (-key, -place, row))

    def rows(self) -> tuple[Row, ...]:
        """The rows, smallest key first."""
        return tuple(row for *_, row in sorted(self.heap, key=lambda item: item[:2], reverse=True))


@dataclass
class Distribution:
    """What one pass over the rows gathers."""

    rows: int = 0
    scored: int = 0
    bytes: int = 0
    total: float = 0.0
    fine: array[int] = field(default_factory=lambda: array("q", bytes(8 * _FINE)))
    worst: Smallest = field(default_factory=lambda: Smallest(_EXTREMES))
    best: Smallest = field(default_factory=lambda: Smallest(_EXTREMES))
    errors: Counter[str] = field(default_factory=Counter)
    failed: dict[str, list[Row]] = field(default_factory=dict)
    bundle: str = ""

    def add(self, row: Row) -> None:
        """Counts a row. Raises CollectionError for a score outside 0 to 100."""
        self.rows += 1
        self.bytes += row.bytes or 0
        self.bundle = row.bundle
        if row.value is None:
            code = row.error_code or ""
            self.errors[code] += 1
            first = self.failed.setdefault(code, [])
            if len(first) < _NAMED:
                first.append(row)
            return
        # Written so that NaN is refused as well.
        if not 0 <= row.value <= 100:
            raise CollectionError(f"{row.path} has the score {row.value}, which is none; score it again.")
        self.scored += 1
        self.total += row.value
        self.fine[min(_FINE - 1, int(row.value * _FINE / 100))] += 1
        self.worst.add(row.value, self.rows, row)
        self.best.add(-row.value, self.rows, row)

    def quantile(self, percent: int) -> float:
        """The score that `percent` of the scored rows do not exceed, right to half a fine bin."""
        # Rounded up, in whole numbers: 0.07 * 100 is more than 7.
        wanted, below = max(1, -(-percent * self.scored // 100)), 0
        for place, number in enumerate(self.fine):
            below += number
            if below >= wanted:
                return (place + 0.5) * 100 / _FINE
        return 100.0


def survey(read: Read, choice: Choice | None = None) -> Overview:
    """An overview of the rows that `read` gives; it is called two or three times.

    Memory is constant, but for a choice of the best ones, see `selection.keep`. Raises CollectionError for a
    row that is none.
    """
    found = Distribution()
    for row in read():
        found.add(row)
    choice = choice or Choice()
    divided = any(bound is not None for bound in (choice.min_score, choice.top, choice.top_share))
    width = _FINE // BINS
    return Overview(
        rows=found.rows,
        scored=found.scored,
        bytes=found.bytes,
        mean=found.total / found.scored if found.scored else None,
        median=found.quantile(50) if found.scored else None,
        histogram=tuple(sum(found.fine[place : place + width]) for place in range(0, _FINE, width)),
        worst=found.worst.rows(),
        best=found.best.rows(),
        deciles=find_deciles(read(), found) if found.scored else (),
        border=find_border(read, choice) if divided else None,
        failures=tuple(
            Failures(code, number, tuple(found.failed[code])) for code, number in found.errors.most_common()
        ),
        bundle=found.bundle,
    )


def find_deciles(rows: Iterable[Row], found: Distribution) -> tuple[Decile, ...]:
    """The deciles of a distribution, and the rows nearest to each."""
    values = [found.quantile(percent) for percent in DECILES]
    nearest = [Smallest(_AT_DECILE) for _ in DECILES]
    for place, row in enumerate(rows):
        if row.value is not None:
            for value, near in zip(values, nearest, strict=True):
                near.add(abs(row.value - value), place, row)
    return tuple(
        Decile(percent, value, tuple(sorted(near.rows(), key=lambda row: row.value or 0)))
        for percent, value, near in zip(DECILES, values, nearest, strict=True)
    )


def find_border(read: Read, choice: Choice) -> Border:
    """Where `choice` divides the rows, and the rows on either side."""
    above, below, kept = Smallest(_NEAR), Smallest(_NEAR), 0
    # keep() takes a row at a time, so that tee holds one.
    rows, again = tee(read())
    for place, (row, flag) in enumerate(zip(rows, keep(again, choice, read()), strict=True)):
        if row.value is None:
            continue
        kept += flag
        if flag:
            above.add(row.value, place, row)
        else:
            below.add(-row.value, place, row)
    lowest = above.rows()[0].value if kept else None
    return Border(lowest if choice.min_score is None else choice.min_score, kept, above.rows(), below.rows())
