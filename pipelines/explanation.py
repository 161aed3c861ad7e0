"""A score explained: the comparisons behind it and what they leave open, in one picture."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from compare2score import Score, Scorer
from compare2score.comparison import extend_preference_matrix
from compare2score.decode import ImageSource, load_image
from compare2score.errors import CollectionError
from compare2score.link import Array
from compare2score.thurstone import map_estimate

KINDS = (".pdf", ".png", ".svg")
SHOWN = 800
"""Pixels of the photograph's longer side in the picture."""
_ANCHOR, _IMAGE = "dimgray", "tab:blue"
_POINTS = (1, 5, 20, 50, 80, 95, 99)


@dataclass(frozen=True, eq=False)
class Explanation:
    """A score and where its estimate puts the anchors.

    Attributes:
        score: the image's.
        anchors: q of every anchor, [A], in the estimate that gave the score.
        photograph: the image, upright, reduced to SHOWN pixels.
    """

    score: Score
    anchors: Array
    photograph: Image.Image


def explain(scorer: Scorer, source: ImageSource) -> Explanation:
    """Scores an image and keeps what the picture shows. Raises ImageError."""
    pixels = load_image(source)
    score = scorer.score(pixels)
    matrix = extend_preference_matrix(scorer.anchors.matrix, score.probabilities)
    photograph = Image.fromarray(pixels)
    photograph.thumbnail((SHOWN, SHOWN))
    return Explanation(score, map_estimate(matrix, scorer.link).q[:-1], photograph)


def check_kind(out: Path) -> None:
    """Raises CollectionError if no picture can be written under that name."""
    if out.suffix.lower() not in KINDS:
        raise CollectionError(f"{out} names no kind of picture; end it in {', '.join(KINDS)}.")


def draw_explanation(explanation: Explanation, title: str, out: Path) -> None:
    """Writes the picture: the photograph, the scale, the preferences.

    The scale shows the anchors, numbered as the bundle has them, at their q, and the posterior of the image's
    q (Laplace: a normal distribution); above it the percentile scale, 0-100. A bar is P(image preferred over
    an anchor), the anchors in the order of their q; one that was left out has none. The same explanation
    gives the same bytes.

    Raises CollectionError for another kind of file than KINDS, OSError where the system refuses.
    """
    check_kind(out)
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes: dict[str, Any] = figure.subplot_mosaic(
        [["photograph", "scale"], ["photograph", "bars"]], width_ratios=(1, 1.3)
    )
    # A dollar sign in a name opens no formula.
    figure.suptitle(title.replace("$", r"\$"), fontsize=10)
    axes["photograph"].imshow(np.asarray(explanation.photograph))
    axes["photograph"].set_axis_off()
    draw_scale(axes["scale"], explanation)
    draw_preferences(axes["bars"], explanation)
    without_date = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    # Identifiers, too, stay from run to run.
    with matplotlib.rc_context({"svg.hashsalt": "compare2score"}), warnings.catch_warnings():
        # A character that the font lacks becomes a box.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(out, dpi=150, metadata=without_date.get(out.suffix.lower()))


def draw_scale(axes: Any, explanation: Explanation) -> None:
    """The anchors as numbered marks at their q, the image's posterior as a curve."""
    score, normal = explanation.score, NormalDist()
    posterior = NormalDist(score.q, score.std)
    low = min(-2.5, score.q - 3 * score.std, *explanation.anchors)
    high = max(2.5, score.q + 3 * score.std, *explanation.anchors)
    q = np.linspace(low, high, 400)
    density = np.array([posterior.pdf(value) for value in q.tolist()])
    axes.fill_between(q, density, color=_IMAGE, alpha=0.25)
    axes.plot(q, density, color=_IMAGE)
    axes.vlines(score.q, 0, posterior.pdf(score.q), color=_IMAGE)
    marks = -0.12 * density.max()
    for place, anchor in enumerate(explanation.anchors.tolist()):
        axes.plot(anchor, marks, "^", color=_ANCHOR, markersize=5)
        # Two lines in turn, because anchors may stand side by side.
        axes.annotate(
            f"{place + 1}",
            (anchor, marks),
            (0, -9 - 9 * (place % 2)),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            color=_ANCHOR,
        )
    axes.set(xlim=(low, high), ylim=(-0.5 * density.max(), 1.15 * density.max()), yticks=[])
    axes.set_xlabel("q: anchors (numbered), posterior of the image", fontsize=8)
    points = axes.secondary_xaxis("top")
    points.set_xticks([normal.inv_cdf(point / 100) for point in _POINTS], [f"{point}" for point in _POINTS])
    for shown in (axes, points):
        shown.tick_params(labelsize=8)


def draw_preferences(axes: Any, explanation: Explanation) -> None:
    """A bar for every anchor."""
    order = np.argsort(explanation.anchors).tolist()
    for row, place in enumerate(order):
        probability = explanation.score.probabilities[place]
        if math.isnan(probability):
            axes.text(0.02, row, "not asked", va="center", fontsize=8, color=_ANCHOR)
            continue
        axes.barh(row, probability, color=_IMAGE, alpha=0.6)
        axes.text(probability + 0.01, row, f"{probability:.2f}", va="center", fontsize=8)
    axes.set_yticks(range(len(order)), [f"{place + 1}" for place in order])
    axes.axvline(0.5, color=_ANCHOR, linewidth=0.8, linestyle=":")
    axes.set(xlim=(0, 1.12), ylim=(len(order) - 0.4, -0.6))
    axes.set_xlabel("P(image preferred over the anchor)", fontsize=8)
    axes.set_ylabel("anchor, worst first", fontsize=8)
    axes.tick_params(labelsize=8)
