"""Draws photographs with their scores, for the README.

python -m compare2score.benchmarks.picture examples/photos docs/scores.png
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure

from compare2score import Score, Scorer
from compare2score.decode import load_image

PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png"}


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of photographs.")],
    out: Annotated[Path, typer.Argument(help="PNG to write.")],
    columns: Annotated[int, typer.Option(help="Pictures a row.")] = 4,
) -> None:
    """Scores a folder's photographs and draws them in order of name."""
    photos = sorted(path for path in folder.iterdir() if path.suffix.lower() in PHOTO_SUFFIXES)
    rows = -(-len(photos) // columns)
    figure = Figure(figsize=(3 * columns, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, path, result in zip(axes, photos, Scorer().score_many(photos), strict=False):
        axis.imshow(load_image(path))
        text = f"{result.value:.1f}" if isinstance(result, Score) else result.code
        axis.set_title(f"{path.stem.replace('_', ', ')}: {text}", fontsize=11)
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    typer.run(main)
