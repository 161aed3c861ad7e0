"""What a run has come to: counts, the distribution of scores, the worst and the slowest."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field

from compare2score.pipelines.rows import Row

BINS = 20
_LISTED = 5


@dataclass
class Summary:
    """Counts over the rows that were added.

    Attributes:
        rows, scored, reused: how many; `reused` had a score before this run.
        errors: how many of each code.
        histogram: scored rows by value, in BINS equal bins from 0 to 100.
        worst: the lowest values, each with its path, lowest first.
        slowest: longest decoding times of this run in seconds, each with its path, slowest first.
    """

    rows: int = 0
    scored: int = 0
    reused: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    histogram: list[int] = field(default_factory=lambda: [0] * BINS)
    worst: list[tuple[float, str]] = field(default_factory=list)
    slowest: list[tuple[float, str]] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """How many rows have an error."""
        return self.rows - self.scored

    def add(self, row: Row) -> None:
        """Counts a row."""
        self.rows += 1
        if row.value is None:
            self.errors[row.error_code or ""] += 1
            return
        self.scored += 1
        self.histogram[min(BINS - 1, int(row.value * BINS / 100))] += 1
        self.worst = heapq.nsmallest(_LISTED, [*self.worst, (row.value, row.path)])

    def time(self, seconds: float, path: str) -> None:
        """Notes how long an image took."""
        self.slowest = heapq.nlargest(_LISTED, [*self.slowest, (seconds, path)])
