"""Score drift: what a change of precision does to the scores of labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from compare2score.bundle import Bundle
from compare2score.errors import ImageError
from compare2score.scorer import Scorer

ACCEPTED_SRCC_LOSS = 0.005
ACCEPTED_RANK_CORRELATION = 0.99


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Paths of N images and their mean opinion scores [N], higher is better."""

    name: str
    images: tuple[Path, ...]
    mos: NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """Scores of one set of images in float32 and in another precision.

    Attributes:
        name, images: the set, and how many images it has.
        srcc_fp32, srcc: rank correlation with the mean opinion scores, before and after.
        rank_correlation: between the two precisions' scores.
        mean_q_change: mean absolute change of q, in standard deviations of the prior.
    """

    name: str
    images: int
    srcc_fp32: float
    srcc: float
    rank_correlation: float
    mean_q_change: float

    @property
    def accepted(self) -> bool:
        """Whether no more than ACCEPTED_SRCC_LOSS of the correlation with people is lost.

        A gain is no loss, and of comparators that do not yet rank as people do the order must stay: the rank
        correlation is at least ACCEPTED_RANK_CORRELATION.
        """
        kept = self.srcc_fp32 - self.srcc <= ACCEPTED_SRCC_LOSS
        return kept and self.rank_correlation >= ACCEPTED_RANK_CORRELATION


def measure_drift(fp32: Path | Bundle, other: Path | Bundle, labelled: LabelledImages) -> Drift:
    """Scores the same images with two bundles.

    Raises ImageError if one cannot be read.
    """
    q_fp32, q = (
        score_all(Scorer(bundle, backend="onnxruntime"), labelled.images) for bundle in (fp32, other)
    )
    return Drift(
        name=labelled.name,
        images=len(labelled.images),
        srcc_fp32=float(spearmanr(q_fp32, labelled.mos).statistic),
        srcc=float(spearmanr(q, labelled.mos).statistic),
        rank_correlation=float(spearmanr(q_fp32, q).statistic),
        mean_q_change=float(np.abs(q - q_fp32).mean()),
    )


def score_all(scorer: Scorer, images: Sequence[Path]) -> NDArray[np.float64]:
    """MAP estimates q [N]. Raises the first ImageError."""
    q = np.empty(len(images))
    for i, result in enumerate(scorer.score_many(images)):
        if isinstance(result, ImageError):
            raise result
        q[i] = result.q
    return q
