"""Choice of anchors from labelled images, the paper's Eq. 4 (arXiv 2405.19298)."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from compare2score.errors import LabelError


class Rated(Protocol):
    """Images that people rated: a label table, or a part of what a comparator is trained on."""

    @property
    def mos(self) -> NDArray[np.float64]:
        """Mean opinion scores [N]."""

    @property
    def std(self) -> NDArray[np.float64]:
        """Their standard deviations [N], the same number everywhere where none were given."""

    @property
    def has_std(self) -> bool:
        """Whether deviations were given."""


def select_anchors_of(rated: Rated, intervals: int = 5, per_interval: int = 1) -> NDArray[np.intp]:
    """Indices of rated images to compare with, by `select_anchors`. Raises LabelError."""
    return select_anchors(rated.mos, rated.std if rated.has_std else None, intervals, per_interval)


def select_anchors(
    mos: NDArray[np.float64],
    std: NDArray[np.float64] | None,
    intervals: int = 5,
    per_interval: int = 1,
) -> NDArray[np.intp]:
    """Divides the MOS range into equal intervals and takes from each the images most surely in it.

    With human standard deviations these are the images of smallest MOS variance, as in the paper (where
    alpha is `intervals` and beta `per_interval`). Without them they are the images nearest the interval's
    centre: the deviation of a vote count unknown, the middle is the surest place.

    Args:
        mos: mean opinion scores [N], higher is better.
        std: their standard deviations [N], or None where the labels have none.
        intervals: number of quality intervals (alpha).
        per_interval: anchors of each (beta).

    Returns:
        Indices [intervals * per_interval] in order of rising interval; within one, best first.

    Raises:
        LabelError: an interval holds fewer than `per_interval` images.
    """
    edges = np.linspace(mos.min(), mos.max(), intervals + 1)
    interval_of = np.clip(np.searchsorted(edges, mos, side="right") - 1, 0, intervals - 1)
    chosen = []
    for interval in range(intervals):
        members = np.flatnonzero(interval_of == interval)
        if len(members) < per_interval:
            low, high = edges[interval], edges[interval + 1]
            raise LabelError(
                f"Only {len(members)} images have a MOS in [{low:.3g}, {high:.3g}], {per_interval} are "
                "needed; ask for fewer intervals or anchors."
            )
        centre = (edges[interval] + edges[interval + 1]) / 2
        doubt = np.abs(mos - centre) if std is None else std
        chosen.append(members[np.argsort(doubt[members], kind="stable")[:per_interval]])
    return np.concatenate(chosen)
