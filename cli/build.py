"""`c2s build`: from a bundle to TensorRT engines."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compare2score.cli.bench import listed, numbers
from compare2score.cli.build_plan import BoardName, ModelName, print_plan
from compare2score.cli.console import print_json, print_table, remark
from compare2score.cli.extra import extra
from compare2score.cli.inputs import expand
from compare2score.cli.options import Json, examples
from compare2score.cli.progress import meter
from compare2score.engine import Precision, Target
from compare2score.errors import BundleError, ExportError

if TYPE_CHECKING:
    import compare2score
    from compare2score.engine import EngineRecord
    from compare2score.export.tensorrt import BuildSpec
    from compare2score.export.unsupported import UnsupportedGraphError

EXAMPLES = examples(
    "c2s build bundle/ --target tensorrt",
    "c2s build --target tensorrt-rtx --for sm86,sm89 --out engines-bundle/",
    "c2s build bundle/ --target tensorrt --precision int8 --images photos/ --rebuild",
    "c2s build --plan --model 7b --board orin-nano-8",
)


def build(
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="BUNDLE", help="Bundle folder; without it, the embedded one, with --out."),
    ] = None,
    target: Annotated[Target, typer.Option(help="The library that builds and runs them.")] = "tensorrt",
    for_: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="SM,...",
            help="GPUs by compute capability, as in sm86,sm89; without it, this machine's. Of tensorrt-rtx.",
        ),
    ] = "",
    precision: Annotated[Precision, typer.Option(help="Of weights and activations.")] = "fp16",
    batch: Annotated[str, typer.Option(metavar="N,...", help="Images a call, a profile each.")] = "1,4,16",
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Images like those to be scored, to calibrate int8 and fp8 with."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Copy the bundle there first; it must not exist yet."),
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Replace engines that are there.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Build nothing: compute what a model would need on a board.")
    ] = False,
    model: Annotated[ModelName, typer.Option(help="Of --plan.")] = "7b",
    board: Annotated[
        BoardName | None, typer.Option(help="Of --plan; without it, every board that is known.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Build a bundle's TensorRT engines.

    They lie in the bundle's folder `engines/`, each with a record of what it was built from and for; the
    bundle itself stays as it is. An engine that is there and fits is kept.

    With --plan, memory by precision, operations, bytes and the least time of a score from a board's
    published figures.
    """
    if plan:
        print_plan(model, board, as_json)
        return
    from compare2score.bundle import open_bundle, refuse_existing, write_bundle

    batches = tuple(numbers(batch, "batch"))
    if out is not None:
        refuse_existing(out)
    elif bundle is None:
        raise BundleError(
            "The embedded bundle lies among installed packages; give --out DIR for a copy of it with engines."
        )
    opened = open_bundle(bundle)
    with extra(target, "Building engines"):
        from compare2score.export.tensorrt import BuildSpec, check_spec
        from compare2score.export.unsupported import UnsupportedGraphError
    spec = BuildSpec(target, precision, tuple(listed(for_)), batches)
    # Before anything is written or calibrated.
    check_spec(spec)
    paths = calibration_images(precision, images)
    if out is not None:
        opened = write_bundle(out, opened.manifest, opened.path, opened.anchors)
    try:
        records = build_all(opened, spec, paths, rebuild)
    except UnsupportedGraphError as error:
        print_unsupported(error, as_json)
        raise
    print_records(opened, records, as_json)


def calibration_images(precision: Precision, folder: Path | None) -> list[Path]:
    """Some images of a folder, evenly spaced. Raises ExportError if they are missing."""
    from compare2score.export.calibration import spaced
    from compare2score.export.ladder import CALIBRATED

    if precision not in CALIBRATED:
        return []
    if folder is None:
        raise ExportError(f"{precision} needs images to calibrate with; give a folder of some with --images.")
    inputs = expand([str(folder)])
    for item in inputs:
        if item.error:
            raise item.error
    return [Path(item.path) for item in spaced(inputs)]


def build_all(
    bundle: compare2score.Bundle, spec: BuildSpec, images: list[Path], rebuild: bool
) -> list[EngineRecord]:
    """Builds the three engines, but for those that are there and fit."""
    from compare2score.bundle import GRAPHS
    from compare2score.export.calibration import Calibration
    from compare2score.export.tensorrt import build_engine, existing_engine

    records = []
    calibration: Calibration | None = None
    for graph in GRAPHS:
        record = None if rebuild else existing_engine(bundle, graph, spec)
        if record is None:
            if images and calibration is None:
                calibration = Calibration(bundle, images)
            samples = calibration.samples(graph) if calibration else ()
            with meter(f"{graph}, {spec.precision}") as show:
                record = build_engine(bundle, graph, spec, samples, lambda done, total: show(done, total, 0))
        else:
            remark(f"The engine of {graph}.onnx is there and fits; --rebuild builds it again.")
        records.append(record)
    return records


def print_records(bundle: compare2score.Bundle, records: list[EngineRecord], as_json: bool) -> None:
    """Prints what engines there are now."""
    from compare2score.engine import engine_path

    paths = [engine_path(bundle.path, record.target, record.graph) for record in records]
    if as_json:
        engines: list[dict[str, Any]] = [
            {"engine": str(path), **asdict(record)} for path, record in zip(paths, records, strict=True)
        ]
        print_json({"bundle": str(bundle.path), "engines": engines})
        return
    print_table(
        ("Engine", "precision", "for", "batches", "MB", "seconds"),
        [
            (
                str(path),
                record.precision,
                " ".join(record.compute_capabilities),
                " ".join(map(str, record.batches)),
                f"{record.size / 1e6:.1f}",
                f"{record.seconds:.1f}",
            )
            for path, record in zip(paths, records, strict=True)
        ],
    )
    built = records[0]
    print(f"built by {built.target} {built.version}; run them with --backend {built.target}")


def print_unsupported(error: UnsupportedGraphError, as_json: bool) -> None:
    """Prints every node that was refused."""
    if as_json:
        print_json({"unsupported": [asdict(node) for node in error.nodes]})
        return
    rows = [(node.node, node.operator, node.module or "?", node.reason or "unknown") for node in error.nodes]
    for row in rows:
        print("  ".join(row), file=sys.stderr)
