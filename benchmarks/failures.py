"""The images that the embedded comparator misjudges most: by name, and as pictures where they may be shown.

python -m compare2score.benchmarks.failures --data DIR --data DIR --shown agiqa3k --unfit images/NAME.jpg
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure
from scipy.stats import rankdata

from compare2score import Scorer
from compare2score.benchmarks.accuracy import scored_rows
from compare2score.benchmarks.record import RESULTS, write_record
from compare2score.decode import load_image
from compare2score.training.labels import LabelTable, read_labels

WORST = 10


def worst(scorer: Scorer, labels: LabelTable) -> list[dict[str, Any]]:
    """The images whose rank among the table's scores is farthest from their rank among its opinions.

    Ranks are in percent, 100 the best.
    """
    scored = scored_rows(scorer, labels)
    people, scores = (100 * rankdata(values) / len(labels) for values in (labels.mos, scored.q))
    order = np.argsort(-np.abs(people - scores), kind="stable")[:WORST]
    return [
        {"image": labels.images[i], "people": float(people[i]), "score": float(scores[i])}
        for i in order.tolist()
    ]


def draw(folder: Path, rows: list[dict[str, Any]], unfit: Collection[str], out: Path) -> None:
    """Thumbnails with both ranks; of images unfit to be shown, the name."""
    figure = Figure(figsize=(12, 5.4), layout="constrained")
    for axes, row in zip(figure.subplots(2, WORST // 2).ravel(), rows, strict=True):
        if row["image"] in unfit:
            axes.text(0.5, 0.5, Path(row["image"]).name, ha="center", transform=axes.transAxes, fontsize=8)
        else:
            axes.imshow(load_image(folder / row["image"])[::2, ::2])
        axes.set_title(f"people {row['people']:.0f} %, score {row['score']:.0f} %", fontsize=9)
        axes.axis("off")
    figure.savefig(out, dpi=80)


def main(
    data: Annotated[list[Path], typer.Option(help="Labelled folder; repeat for more.")],
    shown: Annotated[str, typer.Option(help="Name of the table whose images may be shown.")],
    unfit: Annotated[
        list[str] | None, typer.Option(help="Of its images, one not fit to be shown; repeat for more.")
    ] = None,
    split: Annotated[str, typer.Option(help="Rows to look at.")] = "test",
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder; the embedded one by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the record.")] = RESULTS,
    plot: Annotated[Path, typer.Option(help="PNG to write.")] = Path("docs/failures.png"),
) -> None:
    """Finds the worst of every table, and writes failures.json."""
    scorer, results = Scorer(bundle), {}
    for folder in data:
        results[folder.name] = worst(scorer, read_labels(folder / "labels.csv", split=split))
        if folder.name == shown:
            draw(folder, results[folder.name], unfit or (), plot)
    print(write_record("failures", {"bundle": scorer.bundle.identity, "tables": results}, out))


if __name__ == "__main__":
    typer.run(main)
