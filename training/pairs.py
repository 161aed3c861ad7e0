"""Pairs of rated images of one dataset: the level of a pair, and drawing pairs by level.

The method is the paper's (arXiv 2405.19298, "Training Dataset: Comparative Instruction-Response Pairs",
Eq. 2): pairs are drawn within a dataset, never across two, so that no scale has to be mapped to another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compare2score.comparator.prompt import LEVELS
from compare2score.errors import LabelError
from compare2score.training.labels import LabelTable

Mix = Literal["balanced", "natural"]

SIMILAR = LEVELS.index("similar")
BLOCK = 1 << 17
"""Pairs looked at in one vectorised step; bounds the memory of drawing."""


def comparative_level(
    mos_first: ArrayLike, std_first: ArrayLike, mos_second: ArrayLike, std_second: ArrayLike
) -> NDArray[np.int64]:
    """The level, as an index into LEVELS, of the second image's quality compared with the first's.

    With q = mos_first - mos_second and sigma = sqrt(std_first^2 + std_second^2):
    inferior (0) if q > 2 sigma; worse (1) if sigma < q <= 2 sigma; similar (2) if |q| <= sigma;
    better (3) if -2 sigma <= q < -sigma; superior (4) if q < -2 sigma.

    The borders belong to the milder level on both sides, so exchanging the images turns level n into 4 - n.
    The paper's Eq. 2 gives q = -sigma to better and q = -2 sigma to no level; elsewhere the two agree.

    The arguments broadcast; the result is int64 of the common shape. Raises LabelError if a number is not
    finite or a standard deviation is negative.
    """
    means = np.asarray(mos_first, np.float64), np.asarray(mos_second, np.float64)
    deviations = np.asarray(std_first, np.float64), np.asarray(std_second, np.float64)
    if not all(np.isfinite(numbers).all() for numbers in means + deviations):
        raise LabelError("A MOS or standard deviation is not finite; remove such images from the table.")
    if any((numbers < 0).any() for numbers in deviations):
        raise LabelError("A standard deviation is negative; correct it in the label table.")
    return np.asarray(_levels(means[0], deviations[0], means[1], deviations[1]), dtype=np.int64)


def draw_pairs(
    table: LabelTable, pairs: int, mix: Mix, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draws ordered pairs of different images, as rows of the table, no pair twice, in no useful order.

    Returns first and second image, int64 [min(pairs, N (N - 1))] each; (i, j) and (j, i) are two pairs.

    mix: "natural" draws from all pairs alike, as the paper does. "balanced" draws the same number from each
        of the five levels (a remainder of the division goes to the middle levels); where a level has fewer
        pairs than that, all of them are taken and the other levels share the rest evenly.

    Raises LabelError for a table of fewer than two images, pairs < 1 or an unknown mix.
    """
    size = len(table)
    if size < 2:
        raise LabelError(f"Label table '{table.name}' has {size} image; a pair needs two.")
    if pairs < 1:
        raise LabelError(f"Cannot draw {pairs} pairs; ask for at least 1.")
    if mix not in ("balanced", "natural"):
        raise LabelError(f"There is no mix '{mix}'; choose balanced or natural.")
    count = min(pairs, size * (size - 1))
    if mix == "natural":
        return _decode(generator.choice(size * (size - 1), count, replace=False), size)
    codes = _draw_by_chance(table, count, generator)
    if codes is None:
        codes = _draw_from_all(table, count, generator)
    return _decode(codes, size)


def equal_shares(count: int, available: NDArray[np.int64]) -> NDArray[np.int64]:
    """Divides `count` over the five levels as evenly as the available pairs, int64 [5], of each allow."""
    shares = np.zeros_like(available)
    while (left := min(count, int(available.sum())) - int(shares.sum())) > 0:
        # The remainder starts in the middle, so that the mix stays the same when images are exchanged.
        open_levels = [level for level in (2, 1, 3, 0, 4) if shares[level] < available[level]]
        each, remainder = divmod(left, len(open_levels))
        for place, level in enumerate(open_levels):
            shares[level] += each + (place < remainder)
        shares = np.minimum(shares, available)
    return shares


def _levels(
    mos_first: NDArray[np.float64],
    std_first: NDArray[np.float64],
    mos_second: NDArray[np.float64],
    std_second: NDArray[np.float64],
) -> NDArray[np.int8]:
    q = mos_first - mos_second
    # Not hypot: a sum of two squares does not depend on their order, so the exchange is exact.
    sigma = np.sqrt(std_first * std_first + std_second * std_second)
    level = np.full(np.shape(q), SIMILAR, np.int8)
    for reached, step in ((q < -sigma, 1), (q < -2 * sigma, 1), (q > sigma, -1), (q > 2 * sigma, -1)):
        level += np.int8(step) * reached
    return level


def _decode(codes: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and second image of pairs numbered 0 ... size (size - 1) - 1, without those of equal images."""
    first, second = np.divmod(codes, size - 1)
    return first, second + (second >= first)


def _draw_by_chance(
    table: LabelTable, count: int, generator: np.random.Generator
) -> NDArray[np.int64] | None:
    """`count` different pairs, equally many a level, drawn until each level is full.

    None if the table is so small, or some level looks so rare, that going through all pairs is cheaper.
    """
    size = len(table)
    budget = size * (size - 1) // 4
    wanted = equal_shares(count, np.full(len(LEVELS), count))
    taken = [np.empty(0, np.int64)] * len(LEVELS)
    looked_at = 0
    while looked_at + BLOCK <= budget:
        codes = generator.integers(size * (size - 1), size=BLOCK)
        looked_at += BLOCK
        first, second = _decode(codes, size)
        level_of = _levels(table.mos[first], table.std[first], table.mos[second], table.std[second])
        for level in range(len(LEVELS)):
            if len(taken[level]) < wanted[level]:
                found = np.concatenate([taken[level], codes[level_of == level]])
                # In the order drawn: sorted codes would favour the first images when cut.
                earliest = np.sort(np.unique(found, return_index=True)[1])
                taken[level] = found[earliest][: wanted[level]]
        have = np.array([len(part) for part in taken])
        if (have == wanted).all():
            return np.concatenate(taken)
        if (have * budget < wanted * looked_at).any():
            return None
    return None


def _draw_from_all(table: LabelTable, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """`count` different pairs, as even over the levels as the table allows, by a census of all pairs."""
    counts = np.array([np.bincount(level_of, minlength=len(LEVELS)) for _, level_of in _all_pairs(table)])
    available = counts.sum(axis=0)
    shares = equal_shares(count, available)
    # Which of a level's pairs, numbered in the order of the census.
    ranks = [
        np.sort(generator.choice(available[level], shares[level], replace=False))
        for level in range(len(LEVELS))
    ]
    ends = np.cumsum(counts, axis=0)
    taken = []
    for block, (start, level_of) in enumerate(_all_pairs(table)):
        for level in range(len(LEVELS)):
            end = ends[block, level]
            begin = end - counts[block, level]
            low, high = np.searchsorted(ranks[level], (begin, end))
            if low < high:
                places = np.flatnonzero(level_of == level)
                taken.append(start + places[ranks[level][low:high] - begin])
    return np.concatenate(taken)


def _all_pairs(table: LabelTable) -> Iterator[tuple[int, NDArray[np.int8]]]:
    """Every pair of a table in blocks: the code of a block's first pair, and the level of each pair."""
    size = len(table)
    rows = max(1, BLOCK // size)
    for start in range(0, size, rows):
        block = slice(start, start + rows)
        level_of = _levels(table.mos[block, None], table.std[block, None], table.mos, table.std)
        different = np.arange(size) != np.arange(size)[block, None]
        yield start * (size - 1), level_of[different]
