"""The scorer: images in, scores out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from compare2score.adaptive import Rows, Stopping, compare_adaptively
from compare2score.backends import Backend, Floats, Prefix, open_backend
from compare2score.bundle import Anchors, Bundle, open_bundle
from compare2score.comparison import (
    comparison_probability,
    extend_preference_matrix,
    level_probabilities,
    votes,
)
from compare2score.decode import ImageSource
from compare2score.errors import BackendError, BundleError, ImageError
from compare2score.image import preprocess
from compare2score.link import Array, Link
from compare2score.thurstone import map_estimate, minmax_scale, prior_percentile

Scale = Literal["percentile", "minmax"]
AnchorUse = Literal["all", "adaptive"]
Matrix = Literal["probability", "count"]
_DECODERS = 4
"""Threads that decode ahead; more would wait for the graphs."""


@dataclass(frozen=True)
class Score:
    """An image's quality.

    Attributes:
        value: 0-100, higher is better. On the "percentile" scale 100 * Phi(q), the share of the prior that
            the image beats; on the "minmax" scale the published one, which saturates beyond the outer
            anchors.
        q: MAP estimate under Thurstone's Case V, in units of the prior's standard deviation.
        std: its posterior standard deviation (Laplace), in the same unit.
        probabilities: P(image preferred over anchor n), [anchors]; NaN for an anchor that was left out. With
            a count matrix the votes.
        comparisons: how many anchors the image was compared with: all, unless they are adaptive.
    """

    value: float
    q: float
    std: float
    probabilities: tuple[float, ...]
    comparisons: int


@dataclass(frozen=True)
class Comparison:
    """How image b compares with image a.

    Attributes:
        probability: P(b preferred over a), both orders averaged.
        level: the most likely answer, over both orders, to "what is b's quality compared with a's"; of
            answers that are equally likely, the one in their middle.
        disagreement: absolute difference of P(b preferred) between the two orders, 0 for a consistent
            comparator.
    """

    probability: float
    level: str
    disagreement: float


class Scorer:
    """Scores images with a bundle's comparator and anchors.

    Args:
        bundle: a bundle, or its folder; the embedded one if None.
        backend: "auto" or a backend's name, see `compare2score.backends.open_backend`, or an open backend
            such as `compare2score.comparator.TorchBackend`.
        scale: of `Score.value`: "percentile" or the published "minmax".
        link: "probit" (the paper's normal distribution) or "logit".
        threads: CPU threads of one call; None leaves the choice to the backend.
        anchors: "all", or "adaptive" to compare each image with the most informative anchors alone, one at
            a time, until `stopping` says that it is enough; the estimate then rests on those comparisons.
        stopping: of adaptive anchors, see `compare2score.adaptive.Stopping`.
        matrix: "probability" (soft comparisons), or "count" to give each comparison's whole vote to the image
            that is preferred; only to see what soft comparisons are worth, for it knows few different scores.

    Raises:
        BundleError, BackendError: in one sentence each.
        ValueError: the scale, the link, the use of anchors or the matrix is unknown.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle | None = None,
        *,
        backend: str | Backend = "auto",
        scale: Scale = "percentile",
        link: Link = "probit",
        threads: int | None = None,
        anchors: AnchorUse = "all",
        stopping: Stopping | None = None,
        matrix: Matrix = "probability",
    ) -> None:
        if scale not in ("percentile", "minmax"):
            raise ValueError(f"The scale is {scale!r}; choose 'percentile' or 'minmax'.")
        if link not in ("probit", "logit"):
            raise ValueError(f"The link is {link!r}; choose 'probit' or 'logit'.")
        if anchors not in ("all", "adaptive"):
            raise ValueError(f"The anchors are {anchors!r}; choose 'all' or 'adaptive'.")
        if matrix not in ("probability", "count"):
            raise ValueError(f"The matrix is {matrix!r}; choose 'probability' or 'count'.")
        self.bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        self.backend = open_backend(self.bundle, backend, threads) if isinstance(backend, str) else backend
        self.matrix = matrix
        self.scale, self.link, self.threads = scale, link, threads
        self.stopping = (stopping or Stopping()) if anchors == "adaptive" else None

    @property
    def anchors(self) -> Anchors:
        """The bundle's anchors. Raises BundleError if they were never built."""
        if self.bundle.anchors is None:
            raise BundleError(f"{self.bundle.path} has no anchors yet; build them with 'c2s anchors build'.")
        return self.bundle.anchors

    def score(self, image: ImageSource) -> Score:
        """Scores a path, PIL image or uint8 array [H, W, 3].

        Raises ImageError if it cannot be read as an image.
        """
        return self.score_pixels(self.pixels(image)[None])[0]

    def score_many(self, images: Iterable[ImageSource], batch: int = 8) -> Iterator[Score | ImageError]:
        """Scores images in order, `batch` at a time; one that cannot be read yields its error instead.

        While a batch is scored, the next one is read from `images` and decoded in other threads, and no more
        than these two are held.

        Raises ValueError, with the first result, if `batch` is below 1.
        """
        if batch < 1:
            raise ValueError(f"The batch is {batch}; choose 1 or more.")
        source = iter(images)
        pool = self.decoding_threads(batch)
        try:
            ahead = self.decode_ahead(pool, islice(source, batch))
            while ahead:
                chunk, ahead = ahead, self.decode_ahead(pool, islice(source, batch))
                errors = [decoded.exception() for decoded in chunk]
                pixels = [
                    decoded.result()
                    for decoded, error in zip(chunk, errors, strict=True)
                    if not isinstance(error, ImageError)
                ]
                scores = iter(self.score_pixels(np.stack(pixels)) if pixels else ())
                for error in errors:
                    yield error if isinstance(error, ImageError) else next(scores)
        finally:
            # Also when the caller leaves early: what waits is dropped, what runs is short.
            pool.shutdown(cancel_futures=True)

    def decoding_threads(self, batch: int) -> ThreadPoolExecutor:
        """Threads that decode a batch while another one is computed."""
        return ThreadPoolExecutor(min(batch, self.threads or os.cpu_count() or 1, _DECODERS), "c2s-decode")

    def decode_ahead(
        self, pool: ThreadPoolExecutor, images: Iterable[ImageSource]
    ) -> list[Future[NDArray[np.float32]]]:
        """Hands images to the pool, in order."""
        ahead = []
        for image in images:
            if isinstance(image, Image.Image):
                # Two entries may be one PIL image, which is not made for two threads.
                decoded: Future[NDArray[np.float32]] = Future()
                try:
                    decoded.set_result(self.pixels(image))
                except ImageError as error:
                    decoded.set_exception(error)
            else:
                decoded = pool.submit(self.pixels, image)
            ahead.append(decoded)
        return ahead

    def compare(self, a: ImageSource, b: ImageSource) -> Comparison:
        """Asks the comparator how b compares with a, in both orders.

        Raises ImageError if either cannot be read as an image.
        """
        tokens = self.backend.encode(np.stack([self.pixels(a), self.pixels(b)]))
        logits = self.level_logits(tokens, self.backend.prefix(tokens))
        manifest = self.bundle.manifest
        # logits[i, j] answers for image i second, image j first: [1, 0] asks of b, [0, 1] of a.
        asked = level_probabilities(np.stack([logits[1, 0], logits[0, 1]]), manifest.temperature)
        b_preferred, a_preferred = asked @ np.asarray(manifest.level_weights)
        # Exchanging the images reverses the levels. A comparator that always favours the second image ties
        # "worse" with "better" for two equal ones; the middle is right then, and the first would be wrong.
        answers = asked[0] + asked[1, ::-1]
        likeliest = np.flatnonzero(answers >= answers.max() - 1e-9)
        level = manifest.levels[round(float(likeliest.mean()))]
        forward, backward = float(b_preferred), float(1 - a_preferred)
        return Comparison((forward + backward) / 2, level, abs(forward - backward))

    def pixels(self, image: ImageSource) -> NDArray[np.float32]:
        """The comparator's input [3, S, S] for an image. Raises ImageError."""
        return preprocess(image, self.bundle.manifest.image)

    def level_logits(self, visual_tokens: Floats, prefix: Prefix) -> Floats:
        """The backend's answers [N, A, levels].

        Raises BackendError if they are not of that shape or not finite: the graphs are whole, but wrong.
        """
        logits = self.backend.compare(visual_tokens, prefix)
        shape = (len(visual_tokens), len(prefix.keys), len(self.bundle.manifest.levels))
        if logits.shape != shape or not np.isfinite(logits).all():
            raise BackendError(
                f"The graphs of {self.bundle.path} do not answer with {list(shape)} finite numbers; "
                "export them again."
            )
        return logits

    def score_pixels(self, pixels: NDArray[np.float32]) -> list[Score]:
        """Scores preprocessed images [N, 3, S, S]."""
        # Asked first: without anchors there is nothing to encode for.
        _ = self.anchors
        return self.score_tokens(self.backend.encode(pixels))

    def score_tokens(self, tokens: Floats) -> list[Score]:
        """Scores images by their visual tokens [N, T, D]."""
        anchors = self.anchors
        if self.stopping is None:
            probabilities = self.preferences(tokens, anchors.prefix)
        else:

            def ask(rows: Rows, anchor: int) -> Array:
                return self.preferences(tokens[rows], only(anchors.prefix, anchor))[:, 0]

            probabilities = compare_adaptively(ask, len(tokens), anchors.matrix, self.link, self.stopping)
        return self.score_preferences(probabilities)

    def score_preferences(self, probabilities: Array) -> list[Score]:
        """Scores images by P(image preferred over anchor), [N, anchors], NaN where that was not asked."""
        among = self.anchors.matrix if self.matrix == "probability" else votes(self.anchors.matrix)
        matrices = extend_preference_matrix(among, probabilities)
        # One at a time: equal to the bit in any batch, and faster than `map_estimate` of a few together.
        estimates = [map_estimate(matrix, self.link) for matrix in matrices]
        values = self.values(np.stack([estimate.q for estimate in estimates]))
        return [
            Score(
                value=float(value),
                q=float(estimate.q[-1]),
                std=float(estimate.std[-1]),
                probabilities=tuple(row.tolist()),
                comparisons=int(np.count_nonzero(~np.isnan(row))),
            )
            for value, estimate, row in zip(values, estimates, probabilities, strict=True)
        ]

    def preferences(self, visual_tokens: Floats, prefix: Prefix) -> Array:
        """P(image preferred over anchor), [N, A], of images' tokens [N, T, D] and A anchors' prefix."""
        logits, manifest = self.level_logits(visual_tokens, prefix), self.bundle.manifest
        soft = comparison_probability(logits, manifest.level_weights, manifest.temperature)
        return soft if self.matrix == "probability" else votes(soft)

    def values(self, q: Array) -> Array:
        """`Score.value` [N] of MAP estimates [N, anchors + 1], the test image last."""
        if self.scale == "percentile":
            return prior_percentile(q[:, -1])
        try:
            return minmax_scale(q)
        except ValueError as error:
            raise BundleError(
                f"{self.bundle.path} cannot tell an image from its anchors, so the scale has no ends; "
                "choose the percentile scale or other anchors."
            ) from error


def only(prefix: Prefix, anchor: int) -> Prefix:
    """The prefix of one anchor."""
    return Prefix(prefix.keys[anchor : anchor + 1], prefix.values[anchor : anchor + 1])
