"""The GPU leg: builds a bundle's engines on this machine, holds them against the CPU, times them.

    python -m compare2score.benchmarks.gpu --target tensorrt --precision fp16 --batch 1,4,16

writes gpu.json. Without a GPU it says so and ends with status 2. The engines lie in a temporary copy of the
bundle, and go with it.

Not yet run on a GPU: the machine that this was written on has none. Its logic is tested with stand-ins.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from compare2score.backends import Floats
from compare2score.backends.cuda import open_device
from compare2score.benchmarks.latency import timing_values
from compare2score.benchmarks.photographs import write_photograph
from compare2score.benchmarks.record import RESULTS, write_record
from compare2score.benchmarks.timing import Limits, measure_rounds, timed
from compare2score.bundle import GRAPHS, open_bundle
from compare2score.decode import load_image
from compare2score.engine import Precision, Target
from compare2score.errors import Compare2ScoreError
from compare2score.scorer import Scorer

if TYPE_CHECKING:
    from compare2score.export.tensorrt import BuildSpec

Stopwatch = Callable[[Callable[[], object]], float]
"""Seconds that a call takes, its work on the GPU included."""

PICTURES = 8
"""Made where no images are given."""


def event_stopwatch(device: Any) -> Stopwatch:
    """CUDA events on a device's stream, around a call: copies, both graphs and what lies between them.

    The clock, where the GPU is reached through pycuda, which this does not ask for events.
    """
    if not hasattr(device, "call"):
        return timed
    begin, end = device.call("cudaEventCreate"), device.call("cudaEventCreate")

    def elapsed(call: Callable[[], object]) -> float:
        device.call("cudaEventRecord", begin, device.stream)
        call()
        device.call("cudaEventRecord", end, device.stream)
        device.call("cudaEventSynchronize", end)
        return 1e-3 * float(device.call("cudaEventElapsedTime", begin, end))

    return elapsed


def build_all(folder: Path, spec: BuildSpec, images: Sequence[Path]) -> list[dict[str, Any]]:
    """Builds the engines of all graphs of a bundle folder; their records' facts as plain values."""
    from compare2score.export.calibration import Calibration
    from compare2score.export.ladder import CALIBRATED
    from compare2score.export.tensorrt import build_engine

    bundle = open_bundle(folder)
    calibration = Calibration(bundle, images) if spec.precision in CALIBRATED else None
    built = []
    for graph in GRAPHS:
        samples = calibration.samples(graph) if calibration else ()
        record = build_engine(bundle, graph, spec, samples)
        facts = ("graph", "version", "precision", "compute_capabilities", "size", "seconds")
        built.append({name: getattr(record, name) for name in facts})
    return built


def parity(expected: Scorer, found: Scorer, pixels: Floats) -> dict[str, float]:
    """How far two scorers of one bundle are apart on images [N, 3, S, S].

    The largest differences of level logits, of probabilities, of q, and the mean one of q.
    """
    logits, probabilities, q = [], [], []
    for scorer in (expected, found):
        tokens = scorer.backend.encode(pixels)
        prefix = scorer.anchors.prefix
        logits.append(scorer.backend.compare(tokens, prefix))
        probabilities.append(scorer.preferences(tokens, prefix))
        q.append(np.array([score.q for score in scorer.score_preferences(probabilities[-1])]))
    distance = [np.abs(first - second) for first, second in (logits, probabilities, q)]
    return {
        "images": float(len(pixels)),
        "level_logits": float(distance[0].max()),
        "probabilities": float(distance[1].max()),
        "q": float(distance[2].max()),
        "q_mean": float(distance[2].mean()),
    }


def time_batches(
    scorer: Scorer, pixels: Floats, batches: Sequence[int], limits: Limits, watch: Stopwatch
) -> list[dict[str, Any]]:
    """Seconds from preprocessed images to level logits, a row a batch."""
    rows = []
    for batch in batches:
        images = np.ascontiguousarray(np.resize(pixels, (batch, *pixels.shape[1:])))

        def call(images: Floats = images) -> None:
            scorer.backend.compare(scorer.backend.encode(images), scorer.anchors.prefix)

        timing = measure_rounds(lambda call=call: {"": watch(call)}, limits)[""]  # type: ignore[misc]
        rows.append({"batch": batch, **timing_values(timing, batch)})
    return rows


def run_leg(
    bundle: Path | None, spec: BuildSpec, images: Sequence[Path], limits: Limits, scratch: Path
) -> dict[str, Any]:
    """Builds, compares and times; plain values. Raises the package's errors, each one sentence."""
    device = open_device()
    opened = open_bundle(bundle)
    expected = Scorer(opened, backend="onnxruntime")
    pixels = np.stack([expected.pixels(load_image(path)) for path in images])
    folder = scratch / "bundle"
    shutil.copytree(opened.path, folder, ignore=shutil.ignore_patterns("engines"))
    engines = build_all(folder, spec, images)
    found = Scorer(folder, backend=spec.target)
    # The backend's own stream is the one that its work is on.
    stream = getattr(found.backend, "device", device)
    watch = event_stopwatch(stream)
    return {
        "bundle": opened.identity,
        "backend": found.backend.name,
        "engines": engines,
        "against_cpu": parity(expected, found, pixels),
        "clock": "the CPU's" if watch is timed else "CUDA events",
        "rows": time_batches(found, pixels, spec.batches, limits, watch),
    }


def main(
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder; the embedded one by default.")] = None,
    target: Annotated[Target, typer.Option(help="The library that builds and runs.")] = "tensorrt",
    precision: Annotated[Precision, typer.Option(help="Of the engines.")] = "fp16",
    batch: Annotated[str, typer.Option(metavar="N,...", help="Images a call, a profile each.")] = "1,4,16",
    image: Annotated[
        list[Path] | None, typer.Option(help="Images to compare with; else some are made.")
    ] = None,
    budget: Annotated[float, typer.Option(metavar="SECONDS", help="For each batch.")] = 20.0,
    out: Annotated[Path, typer.Option(help="Folder of the record.")] = RESULTS,
) -> None:
    """Builds a bundle's engines here, holds them against the CPU, times them, and writes gpu.json."""
    with tempfile.TemporaryDirectory(prefix="c2s-gpu-") as name:
        scratch = Path(name)
        try:
            open_device()
            from compare2score.export.tensorrt import BuildSpec

            spec = BuildSpec(target, precision, batches=tuple(int(each) for each in batch.split(",")))
            made = range(0 if image else PICTURES)
            images = image or [write_photograph(scratch / f"{seed}.jpg", seed) for seed in made]
            results = run_leg(bundle, spec, images, Limits(least=50, budget=budget), scratch)
        except Compare2ScoreError as error:
            print(error, file=sys.stderr)
            raise typer.Exit(2) from error
    print(write_record("gpu", results, out).read_text(encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
