"""Accuracy of a bundle on labelled test splits, beside regressors on the same encoder, and on distortions.

    python -m compare2score.benchmarks.accuracy --data DIR --data DIR --photos DIR --cache FOLDER

Each --data folder holds images and a `labels.csv` with a split column; --photos holds clean photographs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from rich.progress import track

from compare2score import Scorer
from compare2score.benchmarks.baselines import REGRESSORS, frozen_features, predict
from compare2score.benchmarks.record import RESULTS, write_record
from compare2score.decode import load_image
from compare2score.pipelines.correlation import plcc, srcc
from compare2score.pipelines.evaluate import evaluate_table, image_paths, score_table
from compare2score.training.distortions import compressed, split_photographs
from compare2score.training.labels import LabelTable, read_labels

PHOTOGRAPHS = 50


def blurred(photo: Image.Image) -> Image.Image:
    """Gaussian blur of 3 pixels."""
    return photo.filter(ImageFilter.GaussianBlur(3))


def noisy(photo: Image.Image) -> Image.Image:
    """Gaussian noise of deviation 30 (of 255), seeded."""
    pixels = np.asarray(photo, dtype=np.float32)
    noise = np.random.default_rng(0).normal(0, 30, pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def jpeg_10(photo: Image.Image) -> Image.Image:
    """JPEG of quality 10."""
    return compressed(photo, "JPEG", quality=10)


DISTORTED = {"blur": blurred, "noise": noisy, "JPEG 10": jpeg_10}


def agreement(scores: NDArray[np.float64], mos: NDArray[np.float64]) -> dict[str, float]:
    """SRCC and PLCC of one method on one split."""
    return {"srcc": srcc(scores, mos), "plcc": plcc(scores, mos)}


def comparator_agreement(scorer: Scorer, labels: LabelTable) -> dict[str, float]:
    """SRCC and PLCC as `c2s eval` measures them. Raises the first ImageError."""
    scored = score_table(labels, scorer.score_many(image_paths(labels)))
    for error in scored.errors.values():
        raise error
    found = evaluate_table([scored], resamples=0).whole.agreements[0].statistics
    return {name: found[name].value for name in ("srcc", "plcc")}


def evaluate_methods(scorer: Scorer, folder: Path, split: str, cache: Path) -> dict[str, Any]:
    """The bundle and the regressors on one table's split; regressors are fitted on its train rows."""
    tables = {name: read_labels(folder / "labels.csv", split=name) for name in ("train", "val", split)}
    test = tables[split]
    methods = {"comparator": comparator_agreement(scorer, test)}
    features = {name: frozen_features(image_paths(table), cache) for name, table in tables.items()}
    for name in REGRESSORS:
        predicted = predict(
            name,
            (features["train"], tables["train"].mos),
            (features["val"], tables["val"].mos),
            features[split],
        )
        methods[name] = agreement(predicted, test.mos)
    return {"split": split, "images": len(test), "methods": methods}


def evaluate_distortions(scorer: Scorer, photos: list[Path]) -> dict[str, Any]:
    """How often a clean photograph scores higher than its distorted versions."""
    wins = dict.fromkeys(DISTORTED, 0)
    for path in track(photos, description="Distortions"):
        photo = Image.fromarray(load_image(path))
        clean = scorer.score(photo).value
        for name, distort in DISTORTED.items():
            wins[name] += clean > scorer.score(distort(photo)).value
    return {"photographs": len(photos), "clean_preferred": wins}


def main(
    data: Annotated[list[Path], typer.Option(help="Labelled folder; repeat for more.")],
    photos: Annotated[Path, typer.Option(help="Folder of clean photographs; the held-out ones are used.")],
    cache: Annotated[Path, typer.Option(help="Where the regressors' features are kept.")],
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder; the embedded one by default.")] = None,
    split: Annotated[str, typer.Option(help="Rows to report on.")] = "test",
    out: Annotated[Path, typer.Option(help="Folder of the record.")] = RESULTS,
) -> None:
    """Measures accuracy and writes accuracy.json."""
    scorer = Scorer(bundle)
    results = {
        "bundle": scorer.bundle.identity,
        "precision": scorer.bundle.manifest.precision,
        "tables": {folder.name: evaluate_methods(scorer, folder, split, cache) for folder in data},
        "distortions": evaluate_distortions(scorer, split_photographs(photos)[1][:PHOTOGRAPHS]),
    }
    print(write_record("accuracy", results, out).read_text(encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
