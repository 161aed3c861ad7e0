"""From a comparator to a bundle: graphs, precision, anchors, and the check of what precision costs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compare2score.anchors.precompute import precompute_anchors
from compare2score.bundle import Bundle, Manifest, refuse_existing, write_bundle
from compare2score.comparator.comparator import Comparator
from compare2score.comparator.huggingface import HuggingFaceComparator
from compare2score.errors import ExportError
from compare2score.export.drift import Drift, LabelledImages, measure_drift
from compare2score.export.graphs import check_parity, trace_graphs
from compare2score.export.half import to_half
from compare2score.export.int4 import to_int4
from compare2score.export.overflow import refuse_overflow
from compare2score.export.quantize import quantize_graphs
from compare2score.export.sharing import Progress, silent, write_graphs
from compare2score.export.streaming import Read
from compare2score.image import preprocess

Precision = Literal["fp32", "fp16", "int8", "int4"]
IN_HALVES = ("keys", "values", "prefix_keys", "prefix_values")
"""What of the interface is float16 where the graphs are: by far the largest of what is kept."""


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote and measured.

    Attributes:
        bundle: the bundle that was written.
        parity: largest difference of the float32 graphs from torch, by graph (see `export.graphs.TOLERANCE`);
            empty where torch never held the weights.
        drifts: scores against float32's, one for every set of images checked; empty for fp32.
    """

    bundle: Bundle
    parity: dict[str, float]
    drifts: tuple[Drift, ...]


def export_bundle(
    comparator: Comparator,
    out: Path,
    precision: Precision,
    anchors: Sequence[Path],
    checks: Sequence[LabelledImages] = (),
    notes: dict[str, Any] | None = None,
    calibration: Sequence[Path] = (),
    read: Read | None = None,
    anchor_matrix: NDArray[np.float64] | None = None,
    progress: Progress = silent,
) -> ExportReport:
    """Exports a comparator with its anchors.

    Args:
        comparator: what to export; on torch's meta device if `read` gives its weights.
        out: the bundle's folder, which must not exist yet. Graphs are written beside it until they are whole.
        precision: "fp32"; "fp16", see `export.half`; "int8", see `export.quantize`; "int4", four-bit weights
            in the decoder (`export.int4`) and float16 elsewhere.
        anchors: anchor images, by convention in order of rising quality; without any, the bundle has none.
        checks: labelled images on which other precisions' scores are held against fp32 scores.
        notes: free text for the manifest, for people.
        calibration: images that show int8 the range of the encoder's activations; the anchors if none.
        read: gives a weight by its name when it is written, for comparators larger than the memory. Their
            graphs cannot be held against torch, nor be int8.
        anchor_matrix: preferences among the anchors [A, A] where they are known; computed if None.
        progress: is told how many bytes of weights are written, and of how many.

    Raises:
        ExportError: the comparator is of a family that is not exported; a float32 graph does not compute what
            torch computes; float16 overflows; int8 was asked of weights that are not in memory; or the files
            cannot be written.
        ImageError, BundleError: an image cannot be read, or `out` exists.
    """
    refuse_existing(out)
    check_matrix(anchor_matrix, anchors)
    if isinstance(comparator, HuggingFaceComparator):
        raise ExportError(
            f"{comparator.spec.model} models are not exported, only nano, mPLUG-Owl2, Idefics3 and SmolVLM; "
            "score this one in torch, with 'c2s score --checkpoint'."
        )
    if precision == "int8" and read is not None:
        raise ExportError(
            "Eight bits need the whole comparator in memory; choose fp16 or int4 for one this large."
        )
    with scratch_beside(out) as work:
        graphs = trace_graphs(comparator, read)
        manifest = manifest_of(comparator, precision, notes or {})
        parity: dict[str, float] = {}
        exact = None
        if precision == "fp32" or read is None or checks:
            write_graphs(graphs, work / "fp32", progress)
            if read is None:
                parity = check_parity(comparator, work / "fp32")
            if precision == "fp32" or checks:
                exact = with_anchors(
                    work / "fp32", replace(manifest, precision="fp32"), anchors, anchor_matrix
                )
        if precision == "fp32" and exact:
            return ExportReport(write_bundle(out, manifest, exact.path, exact.anchors), parity, ())
        folder = work / precision
        if precision == "int8":
            shown = (preprocess(path, comparator.spec.image)[None] for path in calibration or anchors)
            quantize_graphs(graphs, work / "fp32", folder, shown)
        else:
            lower(graphs, precision)
            write_graphs(graphs, folder, progress)
        small = with_anchors(folder, manifest, anchors, anchor_matrix)
        if precision != "int8":
            refuse_overflow(small)
        drifts = tuple(measure_drift(exact, small, labelled) for labelled in checks if exact)
        if drifts:
            measured = {**manifest.notes, "drift": [asdict(drift) for drift in drifts]}
            manifest = replace(manifest, notes=measured)
        return ExportReport(write_bundle(out, manifest, folder, small.anchors), parity, drifts)


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A folder on the same disk as `out`, so that large files need not be copied; removed at the end.

    Turns the system's errors into ExportError.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            yield Path(scratch)
    except OSError as error:
        raise ExportError(
            f"{out} cannot be written ({error.strerror or error}); make room there or choose another place."
        ) from error


def lower(graphs: Mapping[str, ir.Model], precision: Precision) -> None:
    """Brings float32 graphs to fp16 or int4, in place."""
    for name, model in graphs.items():
        if precision == "int4" and name != "vision":
            to_int4(model)
        to_half(model, IN_HALVES)


def manifest_of(comparator: Comparator, precision: Precision, notes: dict[str, Any]) -> Manifest:
    """What a bundle says of a comparator."""
    spec = comparator.spec
    return Manifest(
        model=spec.model,
        precision=precision,
        image=spec.image,
        prompt=spec.question,
        levels=spec.levels,
        level_weights=spec.level_weights,
        temperature=spec.temperature,
        images_per_call=None,
        notes=dict(notes),
    )


def with_anchors(
    graphs: Path, manifest: Manifest, images: Sequence[Path], matrix: NDArray[np.float64] | None
) -> Bundle:
    """A bundle to be, with anchors that its own graphs computed; without images it has none."""
    bare = Bundle(graphs, manifest, None, identity="")
    if not images:
        return bare
    anchors = precompute_anchors(bare, images, "onnxruntime")
    return replace(bare, anchors=anchors if matrix is None else replace(anchors, matrix=matrix))


def check_matrix(matrix: NDArray[np.float64] | None, anchors: Sequence[Path]) -> None:
    """Raises ExportError if a given preference matrix belongs to another number of anchors."""
    if matrix is not None and len(matrix) != len(anchors):
        raise ExportError(
            f"The published preference matrix is of {len(matrix)} anchors, not {len(anchors)}; give the "
            "published anchors, or let the matrix be computed."
        )
