"""`c2s export`: from a checkpoint to a bundle."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from compare2score.cli.anchors import read_table
from compare2score.cli.console import print_json, print_table, remark
from compare2score.cli.extra import extra
from compare2score.cli.inputs import expand
from compare2score.cli.options import Json, examples
from compare2score.cli.progress import meter
from compare2score.errors import CheckpointError, LabelError
from compare2score.training.recipe import ACCOUNT

if TYPE_CHECKING:
    from compare2score.export.exporter import ExportReport

EXAMPLES = examples(
    "c2s export run/checkpoint --out bundle/ --anchors koniq/",
    "c2s export run/checkpoint --out small/ --precision int8 --anchors koniq/ --check koniq/ spaq/",
    "c2s export mplug_owl2/ --out bundle/ --precision int4 --anchors five_photographs/",
)
Precision = Literal["fp32", "fp16", "int8", "int4"]
AnchorMatrix = Literal["computed", "published"]
MATRIX_HELP = "Preferences among the anchors; published ones belong to the published KonIQ-10k anchors alone."
PRECISION_HELP = (
    "Of the graphs: int8 for CPUs, int4 (decoder; the rest fp16) for CPUs and GPUs, fp16 for GPUs."
)


def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a trained comparator.")],
    out: Annotated[Path, typer.Option(metavar="BUNDLE", help="The bundle; it must not exist yet.")],
    anchors: Annotated[
        Path,
        typer.Option(
            metavar="LABELS_OR_FOLDER",
            help="A label table or the folder of one, to choose five from, or a folder of anchor images.",
        ),
    ],
    precision: Annotated[Precision, typer.Option(help=PRECISION_HELP)] = "fp32",
    check: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="LABELS...", help="Label tables whose val rows show what the precision changes."
        ),
    ] = None,
    anchor_matrix: Annotated[AnchorMatrix, typer.Option(help=MATRIX_HELP)] = "computed",
    as_json: Json = False,
) -> None:
    """Export a comparator as a bundle.

    Its graphs are held against torch, and the anchors precomputed with them. A checkpoint of more than 2 GB
    is never in memory whole: its weights go from file to file, one at a time.

    With --check, prints how the scores of labelled images correlate with people's (SRCC) in fp32 and in the
    precision asked for. A loss that is too large is said plainly; the bundle is written all the same.
    """
    import numpy as np

    from compare2score.bundle import refuse_existing

    refuse_existing(out)
    with extra("export", "Exporting"):
        import onnx  # noqa: F401  (torch imports it late, and says less)
        import onnxscript  # noqa: F401

        from compare2score.comparator.checkpoint import load_comparator
        from compare2score.comparator.published import ANCHOR_MATRIX
        from compare2score.export.drift import LabelledImages
        from compare2score.export.exporter import export_bundle
        from compare2score.export.streaming import is_large, open_streamed

    images = anchor_images(anchors)
    tables = [read_table(table_file(path), "val") for path in check or ()]
    checks = [LabelledImages(t.name, tuple(t.root / image for image in t.images), t.mos) for t in tables]
    comparator, read = (
        open_streamed(checkpoint) if is_large(checkpoint) else (load_comparator(checkpoint), None)
    )
    notes: dict[str, Any] = {"anchors_from": anchors.resolve().name}
    if (checkpoint / ACCOUNT).exists():
        notes["training"] = read_account(checkpoint / ACCOUNT)
    with quiet(), meter("weights, MB") as show:
        report = export_bundle(
            comparator,
            out,
            precision,
            images,
            checks,
            notes,
            calibration_images(anchors),
            read,
            np.array(ANCHOR_MATRIX) if anchor_matrix == "published" else None,
            lambda done, total: show(done // 1_000_000, total // 1_000_000, 0),
        )
    if precision == "fp32" and checks:
        remark("Nothing was checked: fp32 is what other precisions are held against.")
    print_report(report, as_json)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporter's and the quantiser's accounts of their own work off the screen, but for errors."""
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def read_account(path: Path) -> Any:
    """What a training run says of itself, as JSON values. Raises CheckpointError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON; remove it to export without its account.") from error


def table_file(path: Path) -> Path:
    """A label table, or the one that a folder holds."""
    return path / "labels.csv" if path.is_dir() else path


def anchor_images(path: Path) -> list[Path]:
    """Five anchors chosen from a label table's train rows, or all images of a folder without a table.

    Raises LabelError, or ImageError for a folder without images.
    """
    if path.is_dir() and not table_file(path).exists():
        inputs = expand([str(path)])
        for item in inputs:
            if item.error:
                raise item.error
        return [Path(item.path) for item in inputs]
    if not path.exists():
        raise LabelError(f"{path} does not exist; give a label table or a folder of anchor images.")
    from compare2score.anchors.select import select_anchors_of

    table = read_table(table_file(path), None)
    return [table.root / table.images[row] for row in select_anchors_of(table).tolist()]


def calibration_images(path: Path) -> list[Path]:
    """Some train rows of the anchors' label table, evenly spaced; none of a folder."""
    from compare2score.export.calibration import spaced

    if not table_file(path).exists():
        return []
    table = read_table(table_file(path), None)
    return [table.root / image for image in spaced(table.images)]


def print_report(report: ExportReport, as_json: bool) -> None:
    """Prints what an export wrote and measured."""
    bundle, drifts = report.bundle, report.drifts
    if as_json:
        rows: list[dict[str, Any]] = [{**asdict(drift), "accepted": drift.accepted} for drift in drifts]
        paths = {
            "bundle": str(bundle.path),
            "identity": bundle.identity,
            "precision": bundle.manifest.precision,
        }
        print_json({**paths, "parity": report.parity, "drifts": rows})
        return
    if report.parity:
        print_table(
            ("Graph", "largest difference from torch"),
            [(name, f"{difference:.1e}") for name, difference in report.parity.items()],
        )
    else:
        remark("The graphs were not held against torch, which would need all weights in memory.")
    if drifts:
        print_table(
            (
                "Checked on",
                "images",
                "SRCC fp32",
                f"SRCC {bundle.manifest.precision}",
                "rank correlation",
                "",
            ),
            [
                (
                    d.name,
                    str(d.images),
                    f"{d.srcc_fp32:.4f}",
                    f"{d.srcc:.4f}",
                    f"{d.rank_correlation:.4f}",
                    verdict(d.accepted),
                )
                for d in drifts
            ],
        )
    for drift in drifts:
        if not drift.accepted:
            remark(
                f"On {drift.name} {bundle.manifest.precision} loses too much: SRCC falls from "
                f"{drift.srcc_fp32:.4f} to {drift.srcc:.4f}; use fp32, or other images to judge by."
            )
    print(f"bundle: {bundle.path}")


def verdict(accepted: bool) -> str:
    return "accepted" if accepted else "NOT accepted"
