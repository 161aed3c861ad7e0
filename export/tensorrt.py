"""A bundle's graphs to TensorRT engines.

Three engines, one a graph. Prefix and decoder share most of their weights, but one engine would compute both
at every call. A scorer needs the decoder's alone: the anchors' prefix is in the bundle, and the engine that
makes prefixes is read when two images are first compared, so that no second copy of the weights is on the GPU
while images are scored.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compare2score.backends.tensorrt_module import load_module
from compare2score.bundle import Bundle
from compare2score.engine import (
    EngineRecord,
    Precision,
    Target,
    again,
    check_record,
    joined,
    read_engine,
    read_record,
    record_path,
    source_hash,
    write_engine,
)
from compare2score.errors import BackendError, ExportError
from compare2score.export.compiler import Progress, compile_graph, profiles
from compare2score.export.ladder import graph_in
from compare2score.export.products import Samples

BATCHES = (1, 4, 16)
ANCHORS = 5
"""Prefixes that engines take at most if the bundle has no anchors to count."""
NEWEST_WITHOUT_FP8 = 86
TIMING_CACHE = "timing.cache"


@dataclass(frozen=True)
class BuildSpec:
    """How engines are built.

    Attributes:
        target: the library.
        precision: rung of the ladder.
        capabilities: GPUs to build for, e.g. ("sm86", "sm89"), which only tensorrt-rtx can choose; none for
            the one in this machine.
        batches: images a call, a profile each.
    """

    target: Target
    precision: Precision = "fp16"
    capabilities: tuple[str, ...] = ()
    batches: tuple[int, ...] = BATCHES


def build_engine(
    bundle: Bundle, graph: str, spec: BuildSpec, samples: Samples = (), progress: Progress | None = None
) -> EngineRecord:
    """Builds the engine of one of a bundle's graphs and writes it, with its record, into the bundle's folder.

    Args:
        bundle: in a folder that can be written.
        graph: one of `compare2score.bundle.GRAPHS`.
        spec: how.
        samples: inputs of the graph, for precisions that are calibrated.
        progress: told of the library's steps.

    Raises:
        UnsupportedGraphError: naming every node that the parser refuses.
        ExportError, BackendError, MissingExtraError: the graph, the library or the GPU does not allow it.
    """
    module, capabilities = check_spec(spec)
    begin = time.perf_counter()
    model = graph_in(bundle, graph, spec.precision, samples)
    anchors = ANCHORS if bundle.anchors is None else len(bundle.anchors.names)
    shapes = profiles(model.graph, spec.batches, anchors)
    cache = bundle.path / "engines" / spec.target / TIMING_CACHE
    content = compile_graph(module, model, graph, spec.target, spec.capabilities, shapes, progress, cache)
    record = EngineRecord(
        graph=graph,
        target=spec.target,
        version=str(module.__version__),
        compute_capabilities=capabilities,
        source=source_hash(bundle, graph),
        precision=spec.precision,
        profiles=shapes,
        sha256=hashlib.sha256(content).hexdigest(),
        size=content.nbytes,
        seconds=round(time.perf_counter() - begin, 3),
    )
    write_engine(bundle.path, record, content)
    return record


def check_spec(spec: BuildSpec) -> tuple[Any, tuple[str, ...]]:
    """The library that `spec` asks for, and the GPUs that it would build for.

    Raises:
        ExportError: the library does not build for such GPUs, or they have no numbers of that precision.
        BackendError: this machine's GPU is asked for, and there is none.
        MissingExtraError: the library is not installed.
    """
    module = load_module(spec.target, "Building engines")
    capabilities = spec.capabilities or (current_capability(),)
    check_capabilities(module, spec, capabilities)
    return module, capabilities


def existing_engine(bundle: Bundle, graph: str, spec: BuildSpec) -> EngineRecord | None:
    """The record of a graph's engine if that is there and is what `spec` asks for; None if there is none.

    Raises BackendError if there is another one, or it was altered.
    """
    if not record_path(bundle.path, spec.target, graph).exists():
        return None
    module, capabilities = check_spec(spec)
    record = read_record(bundle.path, spec.target, graph)
    check_record(record, source_hash(bundle, graph), str(module.__version__), None)
    read_engine(bundle.path, record)
    # A prefix is of first images, however many are scored.
    batches = record.batches if graph == "prefix" else tuple(sorted(set(spec.batches)))
    asked = (spec.precision, capabilities, batches)
    if (record.precision, record.compute_capabilities, record.batches) != asked:
        raise BackendError(
            f"The {spec.target} engine of {graph}.onnx that is there was built otherwise (in "
            f"{record.precision}, for {joined(record.compute_capabilities)}, batches "
            f"{joined([str(batch) for batch in record.batches])}); {again(spec.target)}."
        )
    return record


def current_capability() -> str:
    """The compute capability of this machine's GPU. Raises BackendError if there is none."""
    from compare2score.backends.cuda import open_device

    try:
        return open_device().capability
    except BackendError as error:
        found = str(error).partition(";")[0]
        raise BackendError(
            f"{found}; build where there is one, or name GPUs with --for, as tensorrt-rtx allows."
        ) from error


def check_capabilities(module: Any, spec: BuildSpec, capabilities: Sequence[str]) -> None:
    """Raises ExportError for GPUs that the library cannot build for."""
    if spec.target == "tensorrt" and spec.capabilities:
        raise ExportError("tensorrt builds for the GPU of this machine alone; leave out --for.")
    if spec.target == "tensorrt-rtx":
        known = [name.lower() for name in module.ComputeCapability.__members__ if name.startswith("SM")]
        for capability in capabilities:
            if capability not in known:
                raise ExportError(
                    f"tensorrt-rtx {module.__version__} does not build for {capability}; "
                    f"choose of {', '.join(known)}."
                )
    old = [name for name in capabilities if int(name.removeprefix("sm")) <= NEWEST_WITHOUT_FP8]
    if spec.precision == "fp8" and old:
        raise ExportError(
            f"{', '.join(old)} has no eight-bit floats, which come with sm89; choose another precision there."
        )
