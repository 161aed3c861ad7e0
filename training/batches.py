"""Batches of comparisons: images, the pairs among them, and a target over the five levels for each pair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from compare2score.comparator.prompt import LEVELS
from compare2score.training.corpus import InstructedPairs, Part

LEVEL_BORDERS = np.array([2.0, 1.0, -1.0, -2.0])
"""Borders between the levels, in units of sigma_ij, of q_first - q_second (the paper's Section 3.1)."""

SMALLEST_SIGMA = 1e-9
"""Two images without any spread of opinions still have a difference with a sign."""


@dataclass(frozen=True)
class PairBatch:
    """Images of one part and pairs among them.

    Attributes:
        items: corpus indices of the images [B].
        first, second: pairs, as indices into `items`, [P].
        targets: probability of each level of the second image, [P, 5] float32, rows sum to 1.
    """

    items: NDArray[np.intp]
    first: NDArray[np.intp]
    second: NDArray[np.intp]
    targets: NDArray[np.float32]


def soft_levels(difference: NDArray[np.float64], sigma: NDArray[np.float64]) -> NDArray[np.float32]:
    """Probability of each level when the true difference is Gaussian around the observed one.

    The hard levels of the paper lose how far a pair is from a border, and flip with the labels' noise;
    the chance that the true difference lies in each level's interval does neither.

    Args:
        difference: MOS of the first image minus MOS of the second, [P].
        sigma: standard deviation of that difference, sqrt(s_i^2 + s_j^2), [P].

    Returns:
        [P, 5], from "inferior" to "superior".
    """
    above = ndtr((difference / np.maximum(sigma, SMALLEST_SIGMA))[:, None] - LEVEL_BORDERS)
    padded = np.concatenate([np.zeros((len(above), 1)), above, np.ones((len(above), 1))], axis=1)
    return np.diff(padded, axis=1).astype(np.float32)


def pair_batch(
    part: Part, members: NDArray[np.intp], partners: int, generator: np.random.Generator
) -> PairBatch:
    """Compares each of some images of a part with `partners` others of them, in a random circular design.

    Every image is first and second equally often; `partners` of B - 1 or more gives all ordered pairs.
    """
    count = len(members)
    steps = 1 + generator.permutation(count - 1)[: min(partners, count - 1)]
    first = np.tile(np.arange(count), len(steps))
    second = (first + np.repeat(steps, count)) % count
    difference = part.mos[members[first]] - part.mos[members[second]]
    sigma = np.hypot(part.std[members[first]], part.std[members[second]])
    return PairBatch(part.items[members], first, second, soft_levels(difference, sigma))


def instructed_batch(pairs: InstructedPairs, chosen: NDArray[np.intp]) -> PairBatch:
    """Some of the pairs whose level is given, the whole target on that level."""
    images, places = np.unique(
        np.concatenate([pairs.first[chosen], pairs.second[chosen]]), return_inverse=True
    )
    first, second = places.reshape(2, -1)
    targets = np.eye(len(LEVELS), dtype=np.float32)[pairs.level[chosen]]
    return PairBatch(pairs.items[images], first, second, targets)


def steps_of(source: Part | InstructedPairs, size: int) -> int:
    """Whole batches of `size` images in a source: a part's own, or half as many pairs."""
    return len(source.items) // size if isinstance(source, Part) else len(source.level) // (size // 2)


def shuffled(source: Part | InstructedPairs, generator: np.random.Generator) -> NDArray[np.intp]:
    """A random order of a source's pairs, or of its images, versions of a photograph one after another."""
    if not isinstance(source, Part):
        return generator.permutation(len(source.level))
    photographs = generator.permutation(len(source.items) // source.together)
    return (photographs[:, None] * source.together + np.arange(source.together)).ravel()


def epoch_batches(
    sources: Sequence[Part | InstructedPairs], size: int, partners: int, seed: int, epoch: int
) -> Iterator[PairBatch]:
    """All images of all parts and all given pairs once, each batch of one source, shuffled together.

    A batch has `size` images at most. Depends on nothing but its arguments, so that a resumed run sees the
    batches of an uninterrupted one.
    """
    generator = np.random.default_rng([seed, epoch])
    members = []
    for p, source in enumerate(sources):
        order = shuffled(source, generator)
        steps = steps_of(source, size)
        width = size if isinstance(source, Part) else size // 2
        members += [(p, chunk) for chunk in order[: steps * width].reshape(steps, width)]
    for i in generator.permutation(len(members)):
        p, chunk = members[i]
        source = sources[p]
        if isinstance(source, Part):
            yield pair_batch(source, chunk, partners, generator)
        else:
            yield instructed_batch(source, chunk)
