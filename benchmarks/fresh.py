"""What only fresh processes tell: the way to a first score, and memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from compare2score.benchmarks.footprint import run_fresh
from compare2score.benchmarks.latency import Row, Subject, timing_values
from compare2score.benchmarks.timing import Limits, measure_rounds

IMPORT = "import compare2score"
SCORE = """
import json, sys
from compare2score import Scorer
bundle, backend, threads, image, batch, images = json.loads(sys.argv[1])
scorer = Scorer(bundle, backend=backend, threads=threads)
if images == 1:
    scorer.score(image)
for result in scorer.score_many([image] * images, batch) if images > 1 else ():
    result.value
"""
FEW_SCORES = 100
"""After so many the allocator's pools are as large as they get; what comes after them is growth."""


def arguments(subject: Subject, backend: str, image: Path, batch: int, images: int) -> str:
    bundle = str(subject.scorer.bundle.path.resolve())
    return json.dumps([bundle, backend, subject.threads, str(image), batch, images])


def measure_cold(subject: Subject, backend: str, image: Path, limits: Limits) -> list[Row]:
    """Seconds of whole processes, Python's start included: one that imports, one that scores an image."""
    given = arguments(subject, backend, image, 1, 1)
    peaks: dict[str, float] = {}

    def measured_round() -> dict[str, float]:
        seconds = {}
        for case, run in {"import": (IMPORT,), "first score": (SCORE, given)}.items():
            seconds[case], peak = run_fresh(*run)
            peaks[case] = max(peak, peaks.get(case, 0))
        return seconds

    timings = measure_rounds(measured_round, limits)
    return [
        subject.row("cold", case, 1, peak_mb=peaks[case] or None, **timing_values(timing, 1))
        for case, timing in timings.items()
    ]


def measure_memory(
    subject: Subject, backend: str, image: Path, batches: Sequence[int], scores: int
) -> list[Row]:
    """Peak resident memory of processes that score batches, of one more image in a batch, of more scores.

    The row "an image more in a batch" holds the slope of the least-squares line through the batches' peaks,
    and the largest distance of a peak from it; "growth" is the peak after `scores` scores less that after a
    hundred, at the largest batch. Megabytes; None where the system does not tell.
    """

    def peak(batch: int, images: int) -> float | None:
        return run_fresh(SCORE, arguments(subject, backend, image, batch, images))[1] or None

    sizes = sorted(set(batches))
    peaks = {batch: peak(batch, max(2, 2 * batch)) for batch in sizes}
    rows = [subject.row("memory", "peak", batch, megabytes=megabytes) for batch, megabytes in peaks.items()]
    known = [megabytes for megabytes in peaks.values() if megabytes is not None]
    if len(known) > 1:
        slope, start = np.polyfit(sizes, known, 1)
        off = float(np.abs(np.polyval((slope, start), sizes) - known).max())
        rows.append(
            subject.row("memory", "an image more in a batch", sizes[-1], megabytes=float(slope), off_line=off)
        )
    if known and scores > FEW_SCORES:
        few, many = peak(sizes[-1], FEW_SCORES), peak(sizes[-1], scores)
        growth = None if few is None or many is None else many - few
        rows.append(
            subject.row("memory", f"growth to {scores:,} scores", sizes[-1], megabytes=growth, scores=scores)
        )
    return rows
