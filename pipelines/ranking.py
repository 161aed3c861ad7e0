"""Ranking: images compared with each other and with the anchors, and one MAP estimate for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from compare2score import Scorer
from compare2score.backends import Floats, Prefix
from compare2score.comparison import extend_preference_matrix, symmetric_preference_matrix
from compare2score.decode import ImageSource, load_image
from compare2score.errors import CollectionError, ImageError
from compare2score.link import Array, Link, normal_distribution, ratios
from compare2score.pipelines.bursts import difference_hash
from compare2score.thurstone import map_estimate, posterior_covariance, prior_percentile

LIMIT = 2000
"""Images in one ranking: its matrices and prefixes take about half a gigabyte then."""

Pairs = NDArray[np.intp]


@dataclass(frozen=True)
class Design:
    """Which pairs are compared.

    Attributes:
        all_up_to: so many images are all compared with each other.
        partners: how many others an image of a larger group is compared with, about.
        each_round: how many of those are chosen before the answers are taken into account again.
    """

    all_up_to: int = 24
    partners: int = 16
    each_round: int = 4


@dataclass(frozen=True)
class Ranked:
    """An image's place in a ranking.

    Attributes:
        index: which of the images given it is.
        value: 0-100, 100 * Phi(q).
        q: MAP estimate, on the scale of `compare2score.Score.q`: of an image alone it is just that.
        std: its posterior standard deviation (Laplace).
        beats_next: P(q is above that of the next image), from the posterior of both; None for the last one.
        comparisons: how many of the other images it was compared with, both ways each.
    """

    index: int
    value: float
    q: float
    std: float
    beats_next: float | None
    comparisons: int


@dataclass(frozen=True, eq=False)
class Standing:
    """What the comparisons tell of n images.

    q: [n], as in `Ranked`; covariance: [n, n], of their posterior; comparisons: int [n].
    """

    q: Array
    covariance: Array
    comparisons: NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Encoded:
    """What is kept of an image: visual tokens [T, D], and its difference hash if that was asked for."""

    tokens: Floats
    hash: int | None


def encode_images(
    scorer: Scorer, sources: Iterable[ImageSource], hashed: bool = False, batch: int = 8
) -> Iterator[Encoded | ImageError]:
    """Encodes every image once, in order; one that cannot be read yields its error instead.

    While a batch is encoded, the next one is decoded in other threads; no more pixels are held than these.
    """

    def read(source: ImageSource) -> tuple[Floats, int | None] | ImageError:
        try:
            pixels = load_image(source)
            return scorer.pixels(pixels), difference_hash(pixels) if hashed else None
        except ImageError as error:
            return error

    waiting = iter(sources)
    with scorer.decoding_threads(batch) as pool:
        ahead = pool.map(read, islice(waiting, batch))
        while chunk := list(ahead):
            ahead = pool.map(read, islice(waiting, batch))
            pixels = [result[0] for result in chunk if not isinstance(result, ImageError)]
            tokens = iter(scorer.backend.encode(np.stack(pixels)) if pixels else ())
            for result in chunk:
                yield result if isinstance(result, ImageError) else Encoded(next(tokens), result[1])


def rank_images(scorer: Scorer, images: Sequence[Encoded], design: Design | None = None) -> list[Ranked]:
    """Ranks one image or more, the best first.

    Raises CollectionError for more than LIMIT images, BundleError for a bundle without anchors.
    """
    return ranked(compare_images(scorer, images, design))


def compare_images(scorer: Scorer, images: Sequence[Encoded], design: Design | None = None) -> Standing:
    """What `rank_images` rests on, in the order of the images; raises the same."""
    anchors = scorer.anchors
    check_size(len(images))
    tokens = np.stack([image.tokens for image in images])
    prefix = scorer.backend.prefix(tokens)
    answers = scorer.preferences(tokens, anchors.prefix)

    def ask(pairs: Pairs) -> Array:
        return ask_both_ways(scorer, tokens, prefix, pairs)

    return compare_members(ask, anchors.matrix, answers, scorer.link, design)


def check_size(images: int) -> None:
    """Raises CollectionError for more images than are ranked together."""
    if images > LIMIT:
        raise CollectionError(
            f"{images} images are too many to rank together, more than {LIMIT}; divide them "
            "(--group-by, smaller --gap or --distance), or score them alone with 'c2s filter'."
        )


def ask_both_ways(scorer: Scorer, tokens: Floats, prefix: Prefix, pairs: Pairs) -> Array:
    """P(first preferred over second) of `pairs` [P, 2], both orders averaged, [P].

    `tokens` [n, T, D] and `prefix` are those of all images.
    """
    directed = np.zeros((len(tokens), len(tokens)))
    both = np.concatenate((pairs, pairs[:, ::-1]))
    for image in np.unique(both[:, 0]).tolist():
        others = both[both[:, 0] == image, 1]
        partners = Prefix(prefix.keys[others], prefix.values[others])
        directed[image, others] = scorer.preferences(tokens[image : image + 1], partners)[0]
    return symmetric_preference_matrix(directed)[pairs[:, 0], pairs[:, 1]]


def compare_members(
    ask: Callable[[Pairs], Array],
    anchor_matrix: Array,
    answers: Array,
    link: Link = "probit",
    design: Design | None = None,
) -> Standing:
    """Compares n images with each other and estimates their scale values together with the anchors'.

    Args:
        ask: pairs [P, 2] of images -> P(first preferred over second) [P], in [0, 1].
        anchor_matrix: the anchors' preference matrix [A, A].
        answers: P(image preferred over anchor), [n, A].
        link: of the estimate.
        design: see `Design`.

    A small group is compared pair by pair. In a larger one each image first meets its neighbours in the order
    that the anchors give, which connects all, then those where the posterior is least sure who is ahead (see
    `next_pairs`). The anchors' order is also the order of the work, so that nothing depends on the order in
    which the images are given.

    The estimate's zero is the mean of everything in it, and moves with the group. Of one image alone, q is
    A / (A + 1) times its distance from the anchors' mean; that same distance is q here, for any group.
    The prior draws images with many answers less to the middle, so a group spreads wider than its scores.
    """
    design = design or Design()
    anchors, members = len(anchor_matrix), len(answers)
    alone = map_estimate(extend_preference_matrix(anchor_matrix, answers), link).q[:, -1]
    order = np.argsort(-alone, kind="stable")
    matrix = np.zeros((anchors + members, anchors + members))
    matrix[:anchors, :anchors] = anchor_matrix
    matrix[anchors:, :anchors] = answers[order]
    matrix[:anchors, anchors:] = 1 - answers[order].T
    asked = np.eye(members, dtype=np.bool_)
    whole = members <= design.all_up_to
    pairs = near_pairs(members, members if whole else max(1, design.each_round // 2))
    while True:
        first, second = pairs[:, 0], pairs[:, 1]
        given = ask(order[pairs]) if len(pairs) else np.empty(0)
        matrix[anchors + first, anchors + second] = given
        matrix[anchors + second, anchors + first] = 1 - given
        asked[first, second] = asked[second, first] = True
        q, covariance = on_usual_scale(matrix, anchors, link)
        wanted = min(design.partners * members, members * (members - 1))
        missing = (wanted - (int(asked.sum()) - members)) // 2
        if whole or missing <= 0:
            break
        pairs = next_pairs(q, covariance, asked, design.each_round, missing, link)
    back = np.argsort(order)
    return Standing(q[back], covariance[np.ix_(back, back)], (asked.sum(axis=1) - 1)[back])


def near_pairs(members: int, reach: int) -> Pairs:
    """The pairs [P, 2] of members that are at most `reach` places apart: for reach >= 1 all are connected."""
    first, second = np.triu_indices(members, 1)
    near = second - first <= reach
    return np.stack((first[near], second[near]), axis=1)


def on_usual_scale(matrix: Array, anchors: int, link: Link) -> tuple[Array, Array]:
    """The images' q [n] and posterior covariance [n, n] from the matrix of anchors and images.

    What comparisons cannot tell, the zero, is as unsure as of an image alone: its variance is 1 / (A + 1).
    """
    estimate = map_estimate(matrix, link)
    covariance = posterior_covariance(matrix, estimate.q, link)
    shrinkage = anchors / (anchors + 1)
    q = shrinkage * (estimate.q[anchors:] - estimate.q[:anchors].mean())
    shared = covariance[:anchors, anchors:].mean(axis=0)
    from_anchors = (
        covariance[anchors:, anchors:] - shared - shared[:, None] + covariance[:anchors, :anchors].mean()
    )
    return q, shrinkage**2 * from_anchors + 1 / (anchors + 1)


def next_pairs(
    q: Array, covariance: Array, asked: NDArray[np.bool_], each: int, total: int, link: Link
) -> Pairs:
    """The pairs [P, 2] whose answers should tell most: at most `total`, `each` of one image, none twice.

    A comparison at the difference d adds the Fisher information k = F'(d)^2 / F(d) F(-d) of it, and the
    posterior's entropy falls by 1/2 log(1 + k var(d)): most where d is unsure and its sign undecided.
    """
    ahead, behind = ratios(q[:, None] - q, link)
    gain = ahead * behind * variance_of_differences(covariance)
    first, second = np.nonzero(np.triu(~asked, 1))
    best = np.argsort(-gain[first, second], kind="stable")
    taken = np.zeros(len(q), dtype=np.intp)
    chosen: list[tuple[int, int]] = []
    for pair in zip(first[best].tolist(), second[best].tolist(), strict=True):
        if len(chosen) == total:
            break
        if taken[pair[0]] < each and taken[pair[1]] < each:
            taken[list(pair)] += 1
            chosen.append(pair)
    return np.array(chosen, dtype=np.intp).reshape(-1, 2)


def variance_of_differences(covariance: Array) -> Array:
    """Of every two values, [n, n], from their covariance."""
    own = covariance.diagonal()
    return np.asarray(own[:, None] + own - 2 * covariance)


def probability_above(standing: Standing, one: NDArray[np.intp], other: NDArray[np.intp]) -> Array:
    """P(q of image `one` is above that of `other`), [...], by the posterior."""
    variance = variance_of_differences(standing.covariance)[one, other]
    return normal_distribution((standing.q[one] - standing.q[other]) / np.sqrt(variance))


def ranked(standing: Standing) -> list[Ranked]:
    """The images, the best first; of equal ones that which comes first."""
    order = np.argsort(-standing.q, kind="stable")
    beats = [*probability_above(standing, order[:-1], order[1:]).tolist(), None]
    values, std = prior_percentile(standing.q), np.sqrt(standing.covariance.diagonal())
    return [
        Ranked(
            index=index,
            value=float(values[index]),
            q=float(standing.q[index]),
            std=float(std[index]),
            beats_next=beats_next,
            comparisons=int(standing.comparisons[index]),
        )
        for index, beats_next in zip(order.tolist(), beats, strict=True)
    ]
