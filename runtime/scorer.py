"""The scorer: images in, scores out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from compare2score.backends import open_backend
from compare2score.bundle import Anchors, Bundle, open_bundle
from compare2score.comparison import comparison_probability, extend_preference_matrix, level_probabilities
from compare2score.errors import BundleError, ImageError
from compare2score.image import ImageSource, preprocess
from compare2score.thurstone import Link, map_estimate, minmax_scale, prior_percentile

Scale = Literal["percentile", "minmax"]


@dataclass(frozen=True)
class Score:
    """An image's quality.

    Attributes:
        value: 0-100, higher is better. On the "percentile" scale 100 * Phi(q), the share of the prior that
            the image beats; on the "minmax" scale the published one, which saturates beyond the outer anchors.
        q: MAP estimate under Thurstone's Case V, in units of the prior's standard deviation.
        std: its posterior standard deviation (Laplace), in the same unit.
        probabilities: P(image preferred over anchor n), [anchors].
    """

    value: float
    q: float
    std: float
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """How image b compares with image a.

    Attributes:
        probability: P(b preferred over a), both orders averaged.
        level: the most likely answer to "what is b's quality compared with a's".
        disagreement: absolute difference of P(b preferred) between the two orders, 0 for a consistent comparator.
    """

    probability: float
    level: str
    disagreement: float


class Scorer:
    """Scores images with a bundle's comparator and anchors.

    Args:
        bundle: a bundle folder; the embedded one if None.
        backend: "auto" or a backend's name, see `compare2score.backends.open_backend`.
        scale: of `Score.value`: "percentile" or the published "minmax".
        link: "probit" (the paper's normal distribution) or "logit".
        threads: CPU threads of one call; None leaves the choice to the backend.

    Raises:
        BundleError, BackendError: in one sentence each.
        ValueError: the scale or the link is unknown.
    """

    def __init__(
        self,
        bundle: str | Path | None = None,
        *,
        backend: str = "auto",
        scale: Scale = "percentile",
        link: Link = "probit",
        threads: int | None = None,
    ) -> None:
        if scale not in ("percentile", "minmax"):
            raise ValueError(f"The scale is {scale!r}; choose 'percentile' or 'minmax'.")
        if link not in ("probit", "logit"):
            raise ValueError(f"The link is {link!r}; choose 'probit' or 'logit'.")
        self.bundle: Bundle = open_bundle(bundle)
        self.backend = open_backend(self.bundle, backend, threads)
        self.scale, self.link = scale, link

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
        """Scores images in order, `batch` at a time; an image that cannot be read yields its error instead."""
        source = iter(images)
        while chunk := list(islice(source, batch)):
            results: list[Score | ImageError | None] = []
            pixels = []
            for image in chunk:
                try:
                    pixels.append(self.pixels(image))
                    results.append(None)
                except ImageError as error:
                    results.append(error)
            scores = iter(self.score_pixels(np.stack(pixels)) if pixels else ())
            for result in results:
                yield next(scores) if result is None else result

    def compare(self, a: ImageSource, b: ImageSource) -> Comparison:
        """Asks the comparator how b compares with a, in both orders.

        Raises ImageError if either cannot be read as an image.
        """
        tokens = self.backend.encode(np.stack([self.pixels(a), self.pixels(b)]))
        logits = self.backend.compare(tokens, self.backend.prefix(tokens))
        manifest = self.bundle.manifest
        # logits[i, j] answers for image i second, image j first: [1, 0] asks of b, [0, 1] of a.
        asked = level_probabilities(np.stack([logits[1, 0], logits[0, 1]]), manifest.temperature)
        b_preferred, a_preferred = asked @ np.asarray(manifest.level_weights)
        # Exchanging the images reverses the levels.
        level = manifest.levels[int(np.argmax(asked[0] + asked[1, ::-1]))]
        forward, backward = float(b_preferred), float(1 - a_preferred)
        return Comparison((forward + backward) / 2, level, abs(forward - backward))

    def pixels(self, image: ImageSource) -> NDArray[np.float32]:
        """The comparator's input [3, S, S] for an image. Raises ImageError."""
        return preprocess(image, self.bundle.manifest.image)

    def score_pixels(self, pixels: NDArray[np.float32]) -> list[Score]:
        """Scores preprocessed images [N, 3, S, S]."""
        anchors, manifest = self.anchors, self.bundle.manifest
        logits = self.backend.compare(self.backend.encode(pixels), anchors.prefix)
        probabilities = comparison_probability(logits, manifest.level_weights, manifest.temperature)
        estimate = map_estimate(extend_preference_matrix(anchors.matrix, probabilities), self.link)
        values = (
            prior_percentile(estimate.q[:, -1]) if self.scale == "percentile" else minmax_scale(estimate.q)
        )
        rows = zip(values, estimate.q[:, -1], estimate.std[:, -1], probabilities, strict=True)
        return [Score(float(v), float(q), float(s), tuple(p.tolist())) for v, q, s, p in rows]
