"""Adaptive anchors: mean comparisons an image against the rank correlation that they keep.

    python -m compare2score.benchmarks.adaptive --data DIR

--data holds images and a `labels.csv` with a split column.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.stats import spearmanr

from compare2score import Scorer
from compare2score.adaptive import Stopping
from compare2score.backends import Floats
from compare2score.benchmarks.record import RESULTS, write_record
from compare2score.pipelines.evaluate import image_paths
from compare2score.training.labels import read_labels

BATCH = 8
TOLERANCES = (0.0, 8.0, 10.0, 11.0, 12.0, 13.0, 15.0, 20.0)
DEVIATIONS = (0.65, 0.7, 0.75, 0.8, 0.85)


def tokens_of(scorer: Scorer, paths: list[Path]) -> Floats:
    """Visual tokens [N, T, D]: the part that the use of anchors does not change. Raises ImageError."""
    batches = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]
    encoded = [scorer.backend.encode(np.stack([scorer.pixels(path) for path in batch])) for batch in batches]
    return np.concatenate(encoded)


def measure(scorer: Scorer, tokens: Floats, mos: NDArray[np.float64]) -> list[dict[str, Any]]:
    """One row for all anchors, then one for every bound of `TOLERANCES` and `DEVIATIONS`."""
    bounds = [Stopping(tolerance, 0.0) for tolerance in TOLERANCES]
    bounds += [Stopping(0.0, std) for std in DEVIATIONS]
    rows: list[dict[str, Any]] = []
    full: NDArray[np.float64] | None = None
    for stopping in (None, *bounds):
        scorer.stopping = stopping
        scores = [
            score
            for start in range(0, len(tokens), BATCH)
            for score in scorer.score_tokens(tokens[start : start + BATCH])
        ]
        values = np.array([score.value for score in scores])
        full = values if full is None else full
        rows.append(
            {
                "tolerance": stopping and stopping.tolerance,
                "std": stopping and stopping.std,
                "comparisons": float(np.mean([score.comparisons for score in scores])),
                "srcc": float(spearmanr(values, mos).statistic),
                "srcc_with_all": float(spearmanr(values, full).statistic),
                "mean_change": float(np.abs(values - full).mean()),
            }
        )
    return rows


def main(
    data: Annotated[Path, typer.Option(help="Labelled folder.")],
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder; the embedded one by default.")] = None,
    split: Annotated[str, typer.Option(help="Rows to measure on.")] = "val",
    images: Annotated[int | None, typer.Option(help="No more than this many of them.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the record.")] = RESULTS,
) -> None:
    """Measures adaptive anchors and writes adaptive.json.

    A row: tolerance and std as in `Stopping` (null: all anchors), mean comparisons an image, SRCC with
    people's opinions and with the scores from all anchors, mean absolute change of the score in points.
    """
    labels = read_labels(data / "labels.csv", split=split)
    paths, scorer = list(islice(image_paths(labels), images)), Scorer(bundle)
    rows = measure(scorer, tokens_of(scorer, paths), labels.mos[: len(paths)])
    results = {
        "bundle": scorer.bundle.identity,
        "precision": scorer.bundle.manifest.precision,
        "table": data.name,
        "split": split,
        "images": len(paths),
        "rows": rows,
    }
    print(write_record("adaptive", results, out).read_text(encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
