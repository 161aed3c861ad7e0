"""`c2s anchors`: choose anchors from labelled images, and build them into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compare2score.cli.console import print_json
from compare2score.cli.options import Json, ManyValues, examples

if TYPE_CHECKING:
    from compare2score.training.labels import LabelTable

group = typer.Typer(help="Choose anchors, and build them into a bundle.", no_args_is_help=True)

SPLIT_HELP = "Rows of this split; without it, train where the table has splits and all rows where not."


@group.command(epilog=examples("c2s anchors select --labels koniq/labels.csv"))
def select(
    labels: Annotated[Path, typer.Option(metavar="CSV", help="Label table: image,mos[,std][,split].")],
    split: Annotated[str | None, typer.Option(metavar="NAME", help=SPLIT_HELP)] = None,
    intervals: Annotated[int, typer.Option(metavar="N", min=1, help="Quality intervals.")] = 5,
    per_interval: Annotated[int, typer.Option(metavar="N", min=1, help="Anchors of each interval.")] = 1,
    as_json: Json = False,
) -> None:
    """Choose anchors: from each interval of quality, the images that people rated most surely.

    Prints their paths in order of rising quality; with --json one line each: path, mos, std and interval.
    """
    from compare2score.anchors.select import select_anchors_of

    table = read_table(labels, split)
    rows = select_anchors_of(table, intervals, per_interval)
    for place, row in enumerate(rows.tolist()):
        path = str(table.root / table.images[row])
        if as_json:
            std = float(table.std[row]) if table.has_std else None
            interval = place // per_interval
            print_json({"path": path, "mos": float(table.mos[row]), "std": std, "interval": interval})
        else:
            print(path)


@group.command(
    cls=ManyValues, epilog=examples("c2s anchors build bundle/ --images a.jpg b.jpg c.jpg --out new/")
)
def build(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle whose graphs to take.")],
    images: Annotated[
        list[Path], typer.Option(metavar="IMAGE...", help="Anchors, two or more, in order of rising quality.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The new bundle; it must not exist yet.")],
    as_json: Json = False,
) -> None:
    """Write a copy of a bundle with other anchors.

    The bundle's own graphs compute all that is kept of them, so neither torch nor the training is needed.
    """
    from compare2score.anchors.precompute import replace_anchors
    from compare2score.bundle import open_bundle, refuse_existing

    refuse_existing(out)
    written = replace_anchors(open_bundle(bundle), images, out)
    names = written.anchors.names if written.anchors else ()
    if as_json:
        print_json({"bundle": str(written.path), "identity": written.identity, "anchors": names})
    else:
        print(f"{written.path}: {len(names)} anchors")


def read_table(labels: Path, split: str | None, std: float | None = None) -> LabelTable:
    """Reads a label table's rows of a split; None for its train rows, or all if it has no splits.

    `std` is what `read_labels` takes. Raises LabelError.
    """
    from compare2score.training.labels import read_labels

    if split is None:
        table = read_labels(labels, std)
        if table.split is None:
            return table
    return read_labels(labels, std, "train" if split is None else split)
