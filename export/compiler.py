"""A graph to a serialised TensorRT engine, by `tensorrt` or `tensorrt_rtx`.

An engine has one profile for each batch size, fixed to it: kernels are chosen for that very shape, and a CUDA
graph can be captured of it. The number of prefixes is free from 1 to the bundle's anchors.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compare2score.backends.tensorrt_module import logger
from compare2score.engine import Profile, Shape, Target
from compare2score.errors import ExportError
from compare2score.export.float_graph import save_graph, sizes
from compare2score.export.lazy import content, lazy_tensor, register
from compare2score.export.unsupported import UnsupportedGraphError, refused

Progress = Callable[[int, int], None]
"""Told how many steps of the build are done, and how many there are."""


def profiles(graph: ir.Graph, batches: Sequence[int], anchors: int) -> tuple[Profile, ...]:
    """One profile for each batch size, smallest first; one alone for a graph without images.

    An input's first dimension says what it counts: "images" or "anchors".
    """
    counted = {counts(value) for value in graph.inputs}

    def shapes(value: ir.Value, batch: int) -> tuple[Shape, Shape, Shape]:
        lengths = () if value.shape is None else value.shape.dims[1:]
        rest = tuple(length for length in lengths if isinstance(length, int))
        if value.shape is None or len(rest) < len(lengths):
            raise ExportError(f"The graph's input {value.name} has no known shape; export it again.")
        bounds = {"images": (batch,) * 3, "anchors": (1, anchors, anchors)}
        low, usual, high = bounds[counts(value)]
        return (low, *rest), (usual, *rest), (high, *rest)

    sizes = sorted(set(batches)) if "images" in counted else [1]
    return tuple({str(value.name): shapes(value, size) for value in graph.inputs} for size in sizes)


def counts(value: ir.Value) -> str:
    """What an input's first dimension counts. Raises ExportError if it is neither images nor anchors."""
    first = value.shape[0] if value.shape is not None and value.shape.dims else None
    name = first.value if isinstance(first, ir.SymbolicDim) else None
    if name not in ("images", "anchors"):
        raise ExportError(
            f"The graph's input {value.name} counts neither images nor anchors; export it again."
        )
    return str(name)


def compile_graph(
    module: Any,
    model: ir.Model,
    graph: str,
    target: Target,
    capabilities: Sequence[str],
    shapes: Sequence[Profile],
    progress: Progress | None = None,
    cache: Path | None = None,
) -> memoryview:
    """Compiles a graph whose precision is made; returns the serialised engine.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.
        model: the graph.
        graph: its name, for what is said about it.
        target: the library's name.
        capabilities: of the GPUs to build for; none for the one in this machine.
        shapes: the engine's profiles.
        progress: told of the library's steps.
        cache: file that keeps what the library measured of kernels, for `tensorrt`; the other has none.

    Raises:
        UnsupportedGraphError: naming every node that the parser refuses.
        ExportError: the library does not build the graph; its words are in the text.
    """
    if target == "tensorrt-rtx":
        separate_four_bits(model.graph)
    log = logger(module)
    try:
        builder = module.Builder(log)
    except (TypeError, RuntimeError) as error:  # what the bindings make of a builder that is none
        raise ExportError(
            f"{target} does not start here ({last(log.messages)}); check the GPU's driver."
        ) from error
    # A version that knows no other networks may have no flag for it.
    typed = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = module.OnnxParser(network, log)
    with tempfile.TemporaryDirectory(prefix="c2s-build-") as scratch:
        path = Path(scratch) / f"{graph}.onnx"
        save_graph(model, path)
        if not parser.parse_from_file(str(path)):
            raise UnsupportedGraphError(graph, target, refused(parser, model.graph))
        config = builder.create_builder_config()
        configure(module, builder, config, capabilities, shapes)
        monitor = None if progress is None else watch(module, progress)
        if monitor is not None:
            config.progress_monitor = monitor
        timings = keep_timings(config, cache) if target == "tensorrt" and cache is not None else None
        content = builder.build_serialized_network(network, config)
    if content is None:
        raise ExportError(
            f"{target} does not build {graph}.onnx ({last(log.messages)}); choose another precision or GPU."
        )
    if timings is not None:
        timings()
    return memoryview(content)


def separate_four_bits(graph: ir.Graph) -> None:
    """Gives every product of a four-bit weight its own copy of it, in place.

    TensorRT-RTX 1.7.1 fails inside where two products of other sizes share one ("vector::_M_range_check").
    Its engines are no larger for it: where weights are shared they hold them twice in any case.
    """
    for node in list(graph):
        stored = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if stored is None or stored.const_value is None or stored.dtype != ir.DataType.INT4:
            continue
        for place, use in enumerate(list(node.outputs[0].uses())[1:], 1):
            parts = [value and copied(graph, value, place) for value in node.inputs]
            back = ir.node(node.op_type, parts, node.attributes, name=f"{node.name}_{place}")
            back.outputs[0].name, back.outputs[0].type = (
                f"{node.outputs[0].name}_{place}",
                node.outputs[0].type,
            )
            graph.insert_after(node, back)
            use.node.replace_input_with(use.idx, back.outputs[0])


def copied(graph: ir.Graph, value: ir.Value, place: int) -> ir.Value:
    """A stored value once more, under another name."""
    source = content(value)
    name = f"{value.name}_{place}"
    return register(graph, lazy_tensor(name, source.dtype, sizes(source), source.numpy))


def configure(
    module: Any, builder: Any, config: Any, capabilities: Sequence[str], shapes: Sequence[Profile]
) -> None:
    """Tells a builder's configuration for which GPUs and shapes to build."""
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for place, name in enumerate(capabilities):
            config.set_compute_capability(getattr(module.ComputeCapability, name.upper()), place)
    for shape in shapes:
        profile = builder.create_optimization_profile()
        for name, (low, usual, high) in shape.items():
            profile.set_shape(name, low, usual, high)
        config.add_optimization_profile(profile)


def keep_timings(config: Any, path: Path) -> Callable[[], None]:
    """Lets a builder use what an earlier build measured; returns what to call to keep what this one did."""
    cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    # Of another GPU or version: it is measured anew.
    if not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)

    def keep() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(cache.serialize()))

    return keep


def watch(module: Any, progress: Progress) -> Any:
    """A progress monitor that counts the steps of all phases begun so far."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.done = self.total = 0

        def phase_start(self, _name: str, _parent: str, steps: int) -> None:
            self.total += steps

        def step_complete(self, _name: str, _step: int) -> bool:
            self.done += 1
            progress(self.done, self.total)
            return True

        def phase_finish(self, _name: str) -> None:
            progress(self.done, self.total)

    return Monitor()


def last(messages: Sequence[str]) -> str:
    """The library's last words."""
    return messages[-1].rstrip(".") if messages else "it does not say why"
