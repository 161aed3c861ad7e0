"""How long a bundle takes: one score, batches, the stages of a score, the estimate alone, the reference loop.

A row is what one measurement found, as plain values: what was run (`mode`, `case`), with what (`bundle`,
`precision`, `backend`, `threads`, `batch`), and the seconds of a call with `images` images.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compare2score.backends import Backend, Floats, Prefix
from compare2score.benchmarks.energy import Meter
from compare2score.benchmarks.timing import Limits, Timing, measure, measure_rounds, timed
from compare2score.comparison import comparison_probability, extend_preference_matrix
from compare2score.decode import load_image
from compare2score.errors import ImageError
from compare2score.scorer import Scorer
from compare2score.thurstone import map_estimate

if TYPE_CHECKING:
    from compare2score.benchmarks.reference import ReferenceLoop

Row = dict[str, Any]

BATCHES_A_CALL = 3
"""Of throughput: a scorer that decodes the next batch while one is computed can show it."""
PROBLEMS = 10_000
GRAPH_STAGES = ("vision", "decoder")


@dataclass(frozen=True, eq=False)
class Subject:
    """A scorer to measure, with the name of its bundle and the number of threads it was given."""

    name: str
    scorer: Scorer
    threads: int | None

    def row(self, mode: str, case: str, batch: int, **values: Any) -> Row:
        """A row's first columns, and `values`."""
        manifest = self.scorer.bundle.manifest
        return {
            "mode": mode,
            "case": case,
            "bundle": self.name,
            "identity": self.scorer.bundle.identity,
            "precision": manifest.precision,
            "backend": self.scorer.backend.name,
            "threads": self.threads,
            "batch": batch,
            **values,
        }


def timing_values(timing: Timing, images: int) -> Row:
    """A timing as a row's columns: seconds a call, images a second, joules an image."""
    return {
        "images": images,
        "repeats": len(timing.seconds),
        "stable": timing.stable,
        "variation": timing.variation,
        "mean": timing.mean,
        "std": timing.std,
        "p50": timing.percentile(50),
        "p90": timing.percentile(90),
        "p99": timing.percentile(99),
        "images_per_second": images / timing.median if timing.median else None,
        "joules_per_image": {name: joules / images for name, joules in timing.joules.items()}
        or "not available",
    }


def measure_latency(subject: Subject, image: Path, limits: Limits, meters: Sequence[Meter] = ()) -> list[Row]:
    """One image file to one score, again and again."""
    timing = measure(lambda: subject.scorer.score(image), limits, meters)
    return [subject.row("latency", "score", 1, **timing_values(timing, 1))]


def measure_throughput(
    subject: Subject, image: Path, batch: int, limits: Limits, meters: Sequence[Meter] = ()
) -> list[Row]:
    """A stream of image files, `batch` at a time; a call takes three batches."""
    images = [image] * (batch * BATCHES_A_CALL)
    timing = measure(lambda: score_all(subject.scorer, images, batch), limits, meters)
    return [subject.row("throughput", "score_many", batch, **timing_values(timing, len(images)))]


def score_all(scorer: Scorer, images: Sequence[Path], batch: int) -> None:
    """Scores files. Raises the first ImageError."""
    for result in scorer.score_many(images, batch):
        if isinstance(result, ImageError):
            raise result


class Watched:
    """A backend that remembers how long its last calls took, and the last answer."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.seconds: dict[str, float] = {}
        self.logits: Floats = np.empty(0, np.float32)

    @property
    def name(self) -> str:
        return self.backend.name

    def encode(self, pixels: Floats) -> Floats:
        start = time.perf_counter()
        tokens = self.backend.encode(pixels)
        self.seconds["vision"] = time.perf_counter() - start
        return tokens

    def prefix(self, visual_tokens: Floats) -> Prefix:
        return self.backend.prefix(visual_tokens)

    def compare(self, visual_tokens: Floats, prefix: Prefix) -> Floats:
        start = time.perf_counter()
        self.logits = self.backend.compare(visual_tokens, prefix)
        self.seconds["decoder"] = time.perf_counter() - start
        return self.logits


def measure_stages(subject: Subject, image: Path, limits: Limits) -> list[Row]:
    """The stages of a score, in every round: a whole score, its graphs timed inside it; the others alone.

    Every row's `share` is of the whole score; the row "all but vision, decoder" is the whole less those two.
    """
    scorer, watched = subject.scorer, Watched(subject.scorer.backend)
    manifest = scorer.bundle.manifest

    def estimate() -> None:
        probabilities = comparison_probability(watched.logits, manifest.level_weights, manifest.temperature)
        scorer.score_preferences(probabilities)

    def measured_round() -> dict[str, float]:
        decoded = load_image(image)
        decode, prepare = timed(lambda: load_image(image)), timed(lambda: scorer.pixels(decoded))
        total = timed(lambda: scorer.score(image))
        vision, decoder = (watched.seconds[stage] for stage in GRAPH_STAGES)
        return {
            "decode": decode,
            "preprocess": prepare,
            "vision": vision,
            "decoder": decoder,
            "MAP": timed(estimate),
            "total": total,
            "all but vision, decoder": total - vision - decoder,
        }

    scorer.backend = watched
    try:
        timings = measure_rounds(measured_round, limits, decisive=("total",))
    finally:
        scorer.backend = watched.backend
    total = timings["total"].median
    return [
        subject.row("stages", case, 1, share=timing.median / total, **timing_values(timing, 1))
        for case, timing in timings.items()
    ]


def measure_estimate(subject: Subject, limits: Limits) -> list[Row]:
    """`map_estimate` alone: one matrix, 10,000 at once, and the published solver where torch is installed.

    A row's `images` are problems; `ratio` is the published solver's seconds a problem over the row's own.
    """
    matrix = subject.scorer.anchors.matrix
    drawn = np.random.default_rng(0).uniform(size=(PROBLEMS, len(matrix)))
    many = extend_preference_matrix(matrix, drawn)
    one = many[0]
    timings = {
        "one problem": (1, measure(lambda: map_estimate(one, subject.scorer.link), limits)),
        f"{PROBLEMS:,} problems": (
            PROBLEMS,
            measure(lambda: map_estimate(many, subject.scorer.link), limits),
        ),
    }
    try:
        from compare2score.benchmarks.reference import solve
    except ModuleNotFoundError:
        published = None
    else:
        timings["100 Adam steps"] = (1, measure(lambda: solve(one, subject.scorer.link), limits))
        published = timings["100 Adam steps"][1].median
    return [
        subject.row(
            "map",
            case,
            problems,
            ratio=published and published * problems / timing.median,
            **timing_values(timing, problems),
        )
        for case, (problems, timing) in timings.items()
    ]


def measure_against(
    subject: Subject, reference: ReferenceLoop, image: Path, batch: int, limits: Limits
) -> list[Row]:
    """The reference loop and the scorer in turn, one image against one call of `batch`.

    A row a pair, with `ratio`: the reference's seconds an image over the scorer's; then one with the median
    of the ratios, and with the largest difference between the two sets of probabilities.
    """
    images = 1 if batch == 1 else batch * BATCHES_A_CALL
    files = [image] * images

    def ours() -> None:
        if batch == 1:
            subject.scorer.score(image)
        else:
            score_all(subject.scorer, files, batch)

    timings = measure_rounds(
        lambda: {"reference": timed(lambda: reference.score(image)), "scorer": timed(ours)}, limits
    )
    given, expected = subject.scorer.score(image), reference.score(image)
    pairs = list(zip(timings["reference"].seconds, timings["scorer"].seconds, strict=True))
    ratios = [seconds * images / own for seconds, own in pairs]
    rows = [
        subject.row(
            "against reference",
            f"pair {number}",
            batch,
            images=images,
            reference_seconds=pair[0],
            seconds=pair[1],
            ratio=ratio,
        )
        for number, (pair, ratio) in enumerate(zip(pairs, ratios, strict=True), 1)
    ]
    difference = np.abs(np.subtract(given.probabilities, expected.probabilities)).max()
    summary = {
        "reference_seconds": timings["reference"].median,
        "ratio": float(np.median(ratios)),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
        "probability_difference": float(difference),
    }
    return [
        *rows,
        subject.row(
            "against reference", "median", batch, **timing_values(timings["scorer"], images), **summary
        ),
    ]
