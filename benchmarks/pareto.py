"""Accuracy against milliseconds: one trained comparator at several input sizes and precisions.

    python -m compare2score.benchmarks.pareto CHECKPOINT --data DIR --data DIR --plot docs/pareto.png

Every bundle is exported anew, scores the test rows of every table, and is timed in turn with the others on
the same photographs, so that a slower minute of the machine falls on all of them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer
from matplotlib.figure import Figure

from compare2score import Scorer
from compare2score.benchmarks.accuracy import comparator_agreement
from compare2score.benchmarks.precision import anchor_paths
from compare2score.benchmarks.record import RESULTS, write_record
from compare2score.comparator.nano import NanoComparator
from compare2score.export.calibration import spaced
from compare2score.export.exporter import Precision, export_bundle
from compare2score.pipelines.evaluate import image_paths
from compare2score.training.labels import LabelTable, read_labels

ROUNDS = 15


def exported(checkpoint: Path, size: int, precision: Precision, table: LabelTable, out: Path) -> Scorer:
    """The checkpoint as a bundle for one input size, with anchors of a table."""
    model = NanoComparator.load(checkpoint)
    model.config = replace(model.config, image=replace(model.config.image, size=size))
    export_bundle(model, out, precision, anchor_paths(table), calibration=spaced(image_paths(table)))
    return Scorer(out)


def milliseconds(scorers: Sequence[Scorer], images: Sequence[Path]) -> list[float]:
    """Median time of one score of each, in turn."""
    taken: list[list[float]] = [[] for _ in scorers]
    for path in images:
        for times, scorer in zip(taken, scorers, strict=True):
            start = time.perf_counter()
            scorer.score(path)
            times.append(1e3 * (time.perf_counter() - start))
    return [float(np.median(times)) for times in taken]


def draw(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """SRCC over milliseconds, a panel a table, a line a precision."""
    names = list(rows[0]["srcc"])
    figure = Figure(figsize=(4.5 * len(names), 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for precision in dict.fromkeys(row["precision"] for row in rows):
            points = sorted(
                (row["milliseconds"], row["srcc"][name], row["size"])
                for row in rows
                if row["precision"] == precision
            )
            axes.plot([x for x, _, _ in points], [y for _, y, _ in points], "o-", label=precision)
            for x, y, size in points:
                axes.annotate(f"{size} px", (x, y), textcoords="offset points", xytext=(4, -9), fontsize=7)
        axes.set(title=f"{name}, test", xlabel="milliseconds a score, median", ylabel="SRCC with people")
        axes.legend(frameon=False)
    figure.savefig(out, dpi=110)


def main(
    checkpoint: Annotated[Path, typer.Argument(help="A trained nano comparator.")],
    data: Annotated[list[Path], typer.Option(help="Labelled folder, the first for anchors.")],
    sizes: Annotated[str, typer.Option(help="Sides of the input in pixels.")] = "256,384,512",
    precisions: Annotated[str, typer.Option(help="Of the graphs.")] = "fp32,int8",
    out: Annotated[Path, typer.Option(help="Folder of the record.")] = RESULTS,
    plot: Annotated[Path, typer.Option(help="PNG to write.")] = Path("docs/pareto.png"),
) -> None:
    """Exports, scores and times every size and precision, and writes pareto.json."""
    train = read_labels(data[0] / "labels.csv", split="train")
    tables = {folder.name: read_labels(folder / "labels.csv", split="test") for folder in data}
    with tempfile.TemporaryDirectory() as scratch:
        settings = [
            (int(size), cast(Precision, precision))
            for precision in precisions.split(",")
            for size in sizes.split(",")
        ]
        scorers = [
            exported(checkpoint, size, precision, train, Path(scratch) / f"{precision}-{size}")
            for size, precision in settings
        ]
        images = [path for table in tables.values() for path in image_paths(table)[:ROUNDS]]
        milliseconds(scorers, images[:2])
        times = milliseconds(scorers, images)
        rows = [
            {
                "size": size,
                "precision": precision,
                "milliseconds": taken,
                "srcc": {name: comparator_agreement(scorer, table)["srcc"] for name, table in tables.items()},
            }
            for (size, precision), scorer, taken in zip(settings, scorers, times, strict=True)
        ]
    draw(rows, plot)
    print(write_record("pareto", {"rows": rows}, out))


if __name__ == "__main__":
    typer.run(main)
