"""The ladder of precisions: size, drift of the scores, and GPUs that engines are compiled for.

    python -m compare2score.benchmarks.precision --checkpoint DIR --checkpoint DIR --data DIR

writes precision.json. --data holds images and a `labels.csv` with train and val rows: anchors and calibration
images come from train, scores from val.

Drift is of ONNX Runtime on the CPU, which computes each graph node by node as it is written, in floats that
are rounded where the graph rounds; a GPU adds in another order. The anchors' prefix is the float32 graphs' in
every row, as it is when engines run a bundle. "Builds for" is a compile check by TensorRT-RTX: engines for
one image a call were built for that GPU, and never run.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import onnx_ir as ir
import onnxruntime
import typer
from numpy.typing import NDArray
from scipy.stats import spearmanr

from compare2score.anchors.select import select_anchors_of
from compare2score.backends import Prefix
from compare2score.backends.onnxruntime import OnnxRuntimeBackend, refusal
from compare2score.backends.tensorrt_module import load_module
from compare2score.benchmarks.record import RESULTS, write_record
from compare2score.bundle import GRAPHS, Anchors, Bundle, write_bundle
from compare2score.comparator.checkpoint import load_comparator
from compare2score.engine import Precision
from compare2score.errors import ExportError
from compare2score.export.calibration import Calibration, spaced
from compare2score.export.compiler import compile_graph, profiles
from compare2score.export.drift import score_all
from compare2score.export.exporter import export_bundle
from compare2score.export.float_graph import save_graph
from compare2score.export.ladder import CALIBRATED, graph_in
from compare2score.pipelines.evaluate import image_paths
from compare2score.scorer import Scorer
from compare2score.training.labels import LabelTable, read_labels

CALIBRATION_IMAGES = 32
CAPABILITIES = ("sm86", "sm89")


class AsWritten(OnnxRuntimeBackend):
    """Runs graphs node by node, without the fusions that would compute a quantised product otherwise."""

    def open_session(self, graph: str) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            return onnxruntime.InferenceSession(
                self.bundle.graph(graph), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exception classes are not public
            raise refusal(graph, error) from error


def anchor_paths(table: LabelTable) -> list[Path]:
    """The images that `c2s anchors select` chooses. Raises LabelError."""
    paths = image_paths(table)
    return [paths[row] for row in select_anchors_of(table).tolist()]


def lowered(bundle: Bundle, precision: Precision, calibration: Calibration, folder: Path) -> Bundle:
    """The bundle with graphs of a precision, and its anchors as they are."""
    graphs = folder / "graphs"
    graphs.mkdir(parents=True)
    for graph in GRAPHS:
        samples = calibration.samples(graph) if precision in CALIBRATED else ()
        save_graph(graph_in(bundle, graph, precision, samples), graphs / f"{graph}.onnx")
    manifest = replace(bundle.manifest, precision=precision)
    return write_bundle(folder / "bundle", manifest, graphs, with_prefix_in(bundle, precision))


def with_prefix_in(bundle: Bundle, precision: Precision) -> Anchors:
    """A bundle's anchors with their keys and values in the type that graphs take."""
    if bundle.anchors is None:
        raise ExportError(f"{bundle.path} has no anchors; build them with 'c2s anchors build'.")
    keys, values = bundle.anchors.prefix
    if precision != "fp32":
        keys, values = keys.astype(np.float16), values.astype(np.float16)
    return replace(bundle.anchors, prefix=Prefix(keys, values))


def compile_check(bundle: Bundle) -> dict[str, Any]:
    """Which GPUs TensorRT-RTX builds all three engines for, their bytes, and why not for the others."""
    module = load_module("tensorrt-rtx", "The compile check")
    found: dict[str, Any] = {"library": f"tensorrt-rtx {module.__version__}", "builds_for": [], "refused": {}}
    for capability in CAPABILITIES:
        sizes = {}
        try:
            for graph in GRAPHS:
                # As it is: the graph's precision is made.
                model = ir.load(bundle.graph(graph))
                shapes = profiles(model.graph, (1,), 5)
                engine = compile_graph(module, model, graph, "tensorrt-rtx", (capability,), shapes)
                sizes[graph] = engine.nbytes
        except ExportError as error:
            found["refused"][capability] = str(error)
        else:
            found["builds_for"].append(capability)
            found["engine_bytes"] = sizes
    return found


def graph_bytes(bundle: Bundle) -> int:
    """Bytes of what scores an image: the vision and the decoder graph with their weights."""
    names = [path for path in bundle.path.iterdir() if path.name.split(".")[0] in ("vision", "decoder")]
    return sum(path.stat().st_size for path in names)


def measure(checkpoint: Path, data: Path, images: int, scratch: Path) -> dict[str, Any]:
    """One checkpoint's ladder: a row a precision.

    Raises the package's errors: the checkpoint, the table or an image cannot be read.
    """
    train, val = (read_labels(data / "labels.csv", split=split) for split in ("train", "val"))
    paths = image_paths(val)[:images]
    comparator = load_comparator(checkpoint)
    exact = export_bundle(comparator, scratch / "fp32", "fp32", anchor_paths(train)).bundle
    calibration = Calibration(exact, spaced(image_paths(train), CALIBRATION_IMAGES))
    rows = []
    reference: NDArray[np.float64] | None = None
    for precision in get_args(Precision):
        bundle = lowered(exact, precision, calibration, scratch / precision / "lowered")
        q = score_all(Scorer(bundle, backend=AsWritten(bundle, threads=1)), paths)
        if reference is None:
            reference = q
        rows.append(
            {
                "precision": precision,
                "graph_bytes": graph_bytes(bundle),
                "srcc_with_fp32": float(spearmanr(q, reference).statistic),
                "srcc_with_people": float(spearmanr(q, val.mos[: len(paths)]).statistic),
                "mean_q_change": float(np.abs(q - reference).mean()),
                "q_deviation": float(q.std()),
                **compile_check(bundle),
            }
        )
        print(rows[-1], flush=True)
    return {"model": exact.manifest.model, "images": len(paths), "rows": rows}


def main(
    checkpoint: Annotated[list[Path], typer.Option(help="Folder of a checkpoint; repeat for more.")],
    data: Annotated[Path, typer.Option(help="Labelled folder.")],
    images: Annotated[int, typer.Option(help="No more than this many val images.")] = 200,
    out: Annotated[Path, typer.Option(help="Folder of the record.")] = RESULTS,
) -> None:
    """Measures the ladder of precisions and writes precision.json."""
    found = []
    for folder in checkpoint:
        with tempfile.TemporaryDirectory(prefix="c2s-precision-") as scratch:
            found.append(measure(folder, data, images, Path(scratch)))
    results = {"table": data.name, "split": "val", "comparators": found}
    print(write_record("precision", results, out).read_text(encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
