"""Accuracy of a bundle on labelled test splits, beside regressors on the same encoder, and on distortions.

    python -m compare2score.benchmarks.accuracy --data DIR --data DIR --photos DIR --cache FOLDER

Each --data folder holds images and a `labels.csv` with a split column; --photos holds clean photographs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from compare2score import Score, Scorer
from compare2score.benchmarks.baselines import REGRESSORS, fitted, frozen_features, kept_features
from compare2score.benchmarks.distorted import scored_versions, summary
from compare2score.benchmarks.record import RESULTS, write_record
from compare2score.errors import ImageError
from compare2score.pipelines.correlation import plcc, srcc
from compare2score.pipelines.evaluate import ScoredTable, evaluate_table, image_paths, score_table
from compare2score.training.distortions import split_photographs
from compare2score.training.labels import LabelTable, read_labels

PHOTOGRAPHS = 8

Regressors = dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]]


def agreement(scores: NDArray[np.float64], mos: NDArray[np.float64]) -> dict[str, float]:
    """SRCC and PLCC of one method on one split."""
    return {"srcc": srcc(scores, mos), "plcc": plcc(scores, mos)}


def scores_of(scorer: Scorer, images: Sequence[Path] | Sequence[NDArray[np.uint8]]) -> list[Score]:
    """The scores of paths or RGB pixels [H, W, 3]. Raises the first ImageError: no row is left out."""
    scores = []
    for score in scorer.score_many(images):
        if isinstance(score, ImageError):
            raise score
        scores.append(score)
    return scores


def scored_rows(scorer: Scorer, labels: LabelTable) -> ScoredTable:
    """The scores of a table's images. Raises the first ImageError."""
    return score_table(labels, scores_of(scorer, image_paths(labels)))


def comparator_agreement(scorer: Scorer, labels: LabelTable) -> dict[str, float]:
    """SRCC and PLCC as `c2s eval` measures them. Raises the first ImageError."""
    found = evaluate_table([scored_rows(scorer, labels)], resamples=0).whole.agreements[0].statistics
    return {name: found[name].value for name in ("srcc", "plcc")}


def fitted_regressors(folder: Path, cache: Path) -> Regressors:
    """Every regressor, fitted on a table's train and validation rows."""
    tables = [read_labels(folder / "labels.csv", split=split) for split in ("train", "val")]
    train, validation = ((kept_features(image_paths(table), cache), table.mos) for table in tables)
    return {name: fitted(name, train, validation) for name in REGRESSORS}


def evaluate_methods(
    scorer: Scorer, regressors: Regressors, folder: Path, split: str, cache: Path
) -> dict[str, Any]:
    """The bundle and the regressors on one table's split."""
    test = read_labels(folder / "labels.csv", split=split)
    methods = {"comparator": comparator_agreement(scorer, test)}
    features = kept_features(image_paths(test), cache)
    methods |= {name: agreement(predict(features), test.mos) for name, predict in regressors.items()}
    return {"split": split, "images": len(test), "methods": methods}


def qualities(scorer: Scorer, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """MAP estimates q [N] of RGB pixels [H, W, 3]. Raises the first ImageError."""
    return np.array([score.q for score in scores_of(scorer, images)])


def evaluate_distortions(scorer: Scorer, regressors: Regressors, photos: list[Path]) -> dict[str, Any]:
    """The bundle and the regressors on the distorted versions of clean photographs."""

    def methods(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
        features = frozen_features(images)
        rest = [predict(features) for predict in regressors.values()]
        return np.stack([qualities(scorer, images), *rest])

    scores = scored_versions(photos, methods)
    found = {name: summary(rows) for name, rows in zip(("comparator", *regressors), scores, strict=True)}
    return {"photographs": len(photos), "methods": found}


def main(
    data: Annotated[list[Path], typer.Option(help="Labelled folder; repeat for more.")],
    photos: Annotated[Path, typer.Option(help="Folder of clean photographs; the held-out ones are used.")],
    cache: Annotated[Path, typer.Option(help="Where the regressors' features are kept.")],
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder; the embedded one by default.")] = None,
    split: Annotated[str, typer.Option(help="Rows to report on.")] = "test",
    photographs: Annotated[int, typer.Option(help="Clean photographs to distort.")] = PHOTOGRAPHS,
    out: Annotated[Path, typer.Option(help="Folder of the record.")] = RESULTS,
) -> None:
    """Measures accuracy and writes accuracy.json."""
    scorer = Scorer(bundle)
    regressors = {folder: fitted_regressors(folder, cache) for folder in data}
    clean = split_photographs(photos)[1][:photographs]
    results = {
        "bundle": scorer.bundle.identity,
        "precision": scorer.bundle.manifest.precision,
        "tables": {
            folder.name: evaluate_methods(scorer, regressors[folder], folder, split, cache) for folder in data
        },
        # Photographs are what the first table's regressors know.
        "distortions": evaluate_distortions(scorer, regressors[data[0]], clean),
    }
    print(write_record("accuracy", results, out).read_text(encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
