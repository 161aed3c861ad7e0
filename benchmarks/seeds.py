"""How far bundles lie apart whose training differed in its seed alone.

    python -m compare2score.benchmarks.seeds BUNDLE BUNDLE --data DIR --data DIR --photos DIR

Each --data folder holds images and a `labels.csv` with a split column; --photos holds clean photographs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from compare2score import Scorer
from compare2score.benchmarks.accuracy import PHOTOGRAPHS, comparator_agreement, qualities
from compare2score.benchmarks.distorted import scored_versions, summary
from compare2score.benchmarks.record import RESULTS, write_record
from compare2score.training.distortions import split_photographs
from compare2score.training.labels import read_labels


def seeds_of(scorers: Sequence[Scorer]) -> list[int]:
    """The seed of every bundle's training. Raises BadParameter if anything else of it differs."""
    accounts = [scorer.bundle.manifest.notes.get("training") for scorer in scorers]
    seeds, others = [], []
    for scorer, account in zip(scorers, accounts, strict=True):
        if not isinstance(account, dict):
            raise typer.BadParameter(f"{scorer.bundle.path} does not say how it was trained; export it anew.")
        recipe = dict(account["recipe"])
        seeds.append(int(recipe.pop("seed")))
        others.append((recipe, account["epochs_done"], account["data"], scorer.bundle.manifest.precision))
    if any(other != others[0] for other in others):
        raise typer.BadParameter("The bundles differ in more than their seed; give runs of one recipe.")
    return seeds


def main(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles of runs of one recipe.")],
    data: Annotated[list[Path], typer.Option(help="Labelled folder; repeat for more.")],
    photos: Annotated[Path, typer.Option(help="Folder of clean photographs; the held-out ones are used.")],
    split: Annotated[str, typer.Option(help="Rows to report on.")] = "test",
    photographs: Annotated[int, typer.Option(help="Clean photographs to distort.")] = PHOTOGRAPHS,
    out: Annotated[Path, typer.Option(help="Folder of the record.")] = RESULTS,
) -> None:
    """Scores the same rows and distortions with every bundle, and writes seeds.json."""
    scorers = [Scorer(bundle) for bundle in bundles]
    seeds = seeds_of(scorers)
    tables = {folder.name: read_labels(folder / "labels.csv", split=split) for folder in data}

    def methods(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
        return np.stack([qualities(scorer, images) for scorer in scorers])

    distorted = scored_versions(split_photographs(photos)[1][:photographs], methods)
    rows: list[dict[str, Any]] = [
        {
            "seed": seed,
            "bundle": scorer.bundle.identity,
            "srcc": {name: comparator_agreement(scorer, table)["srcc"] for name, table in tables.items()},
            "distortions": summary(scores),
        }
        for seed, scorer, scores in zip(seeds, scorers, distorted, strict=True)
    ]
    print(write_record("seeds", {"split": split, "rows": rows}, out))


if __name__ == "__main__":
    typer.run(main)
