"""From a comparator to a bundle: graphs, precision, anchors, and the check of what precision costs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from compare2score.anchors.precompute import replace_anchors
from compare2score.bundle import Bundle, Manifest, refuse_existing, write_bundle
from compare2score.comparator.nano import NanoComparator
from compare2score.export.drift import Drift, LabelledImages, measure_drift
from compare2score.export.graphs import export_graphs
from compare2score.export.quantize import quantize_graphs
from compare2score.image import preprocess

Precision = Literal["fp32", "int8"]


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote and measured.

    Attributes:
        bundle: the bundle that was written.
        parity: largest absolute difference of the float32 graphs from torch, by graph.
        drifts: scores against float32's, one for every set of images checked; empty for fp32.
    """

    bundle: Bundle
    parity: dict[str, float]
    drifts: tuple[Drift, ...]


def export_bundle(
    comparator: NanoComparator,
    out: Path,
    precision: Precision,
    anchors: Sequence[Path],
    checks: Sequence[LabelledImages] = (),
    notes: dict[str, Any] | None = None,
    calibration: Sequence[Path] = (),
) -> ExportReport:
    """Exports a comparator with its anchors.

    Args:
        comparator: what to export.
        out: the bundle's folder, which must not exist yet.
        precision: "fp32" or "int8", see `export.quantize`.
        anchors: anchor images, by convention in order of rising quality.
        checks: labelled images on which int8 scores are held against fp32 scores.
        notes: free text for the manifest, for people.
        calibration: images that show int8 the range of the encoder's activations; the anchors if none.

    Raises:
        ExportError: a float32 graph does not compute what torch computes.
        ImageError, BundleError: an image cannot be read, or `out` exists.
    """
    refuse_existing(out)
    with tempfile.TemporaryDirectory(prefix="c2s-export-") as scratch:
        work = Path(scratch)
        parity = export_graphs(comparator, work / "graphs")
        exact = add_anchors(comparator, work / "graphs", "fp32", anchors, work / "fp32", notes or {})
        if precision == "fp32":
            return ExportReport(write_bundle(out, exact.manifest, exact.path, exact.anchors), parity, ())
        shown = (preprocess(path, comparator.config.image)[None] for path in calibration or anchors)
        quantize_graphs(work / "graphs", work / "quantized", shown)
        small = add_anchors(comparator, work / "quantized", precision, anchors, work / precision, notes or {})
        drifts = tuple(measure_drift(exact.path, small.path, labelled) for labelled in checks)
        measured = {**small.manifest.notes, "drift": [asdict(drift) for drift in drifts]}
        manifest = replace(small.manifest, notes=measured)
        return ExportReport(write_bundle(out, manifest, small.path, small.anchors), parity, drifts)


def add_anchors(
    comparator: NanoComparator,
    graphs: Path,
    precision: Precision,
    anchors: Sequence[Path],
    folder: Path,
    notes: dict[str, Any],
) -> Bundle:
    """Bundles graphs, and precomputes the anchors with those very graphs."""
    config = comparator.config
    manifest = Manifest(
        model="compare2score-nano",
        precision=precision,
        image=config.image,
        prompt=config.question,
        levels=config.levels,
        level_weights=config.level_weights,
        temperature=config.temperature,
        images_per_call=None,
        notes=dict(notes),
    )
    bare = write_bundle(folder.with_name(f"{folder.name}-bare"), manifest, graphs, None)
    return replace_anchors(bare, anchors, folder)
