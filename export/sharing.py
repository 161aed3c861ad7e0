"""Graphs on disk, one copy of what they share: `prefix.onnx` and `decoder.onnx` name one file of weights.

Initialisers of one name are one tensor: a graph's own begin with the graph's name, all others are the
comparator's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from compare2score.errors import ExportError
from compare2score.export.lazy import sizes

DECODER_WEIGHTS = "decoder.weights"
VISION_WEIGHTS = "vision.weights"
INLINE_BYTES = 1024
"""Tensors of no more bytes stay inside the graph: shapes and scalars, which readers want at once."""
VISION_INSIDE_BYTES = 1 << 28
"""A vision graph of more has its weights beside it, to be mapped; protobuf itself would end at 2 GB."""
MAPPED_BYTES = 1 << 20
"""Larger tensors begin where any system can map a file."""

Progress = Callable[[int, int], None]
"""Is told how many bytes of weights are written, and how many there are."""


def silent(_written: int, _total: int) -> None:
    """The progress of what nobody watches."""


def write_graphs(graphs: Mapping[str, ir.Model], folder: Path, progress: Progress = silent) -> dict[str, int]:
    """Writes `vision.onnx`, `prefix.onnx`, `decoder.onnx` and their weights, one tensor in memory at a time.

    Args:
        graphs: the three, by name. They are left without their weights.
        folder: where; it is made.
        progress: called after every tensor.

    Returns:
        Bytes of each file of weights.

    Raises:
        ExportError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    together = [graphs[name].graph for name in ("prefix", "decoder")]
    vision = graphs["vision"].graph
    parts = {DECODER_WEIGHTS: together}
    if weight_bytes([vision]) > VISION_INSIDE_BYTES:
        parts[VISION_WEIGHTS] = [vision]
    total, before, written = sum(weight_bytes(part) for part in parts.values()), 0, {}
    try:
        for name, part in parts.items():

            def told(done: int, before: int = before) -> None:
                progress(before + done, total)

            written[name] = write_weights(part, folder / name, told)
            before += written[name]
        for name, model in graphs.items():
            onnx.save(ir.to_proto(model), folder / f"{name}.onnx")
    except OSError as error:
        raise ExportError(
            f"{folder} cannot be written ({error.strerror or error}); make room or choose another place."
        ) from error
    return written


def large(graph: ir.Graph) -> list[ir.Value]:
    """Initialisers that are to lie outside the graph."""
    return [v for v in graph.initializers.values() if v.const_value and v.const_value.nbytes > INLINE_BYTES]


def weight_bytes(graphs: Iterable[ir.Graph]) -> int:
    """Bytes of all that would lie outside the graphs, each name once."""
    return sum({v.name: v.const_value.nbytes for g in graphs for v in large(g) if v.const_value}.values())


def write_weights(graphs: Sequence[ir.Graph], path: Path, told: Callable[[int], None]) -> int:
    """Writes the graphs' large initialisers to one file, each name once; the graphs then refer to it.

    `told` hears how many bytes are written, after each. Returns how many that were in the end.
    """
    placed: dict[str, ir.ExternalTensor] = {}
    with path.open("wb") as file:
        # In the order of the longest graph, in which they are used: layer by layer.
        for graph in sorted(graphs, key=lambda graph: -len(graph)):
            for value in large(graph):
                tensor, name = value.const_value, str(value.name)
                if tensor is None:
                    continue
                if name not in placed:
                    file.write(bytes(-file.tell() % (1 << 16 if tensor.nbytes > MAPPED_BYTES else 64)))
                    placed[name] = ir.ExternalTensor(
                        path.name,
                        file.tell(),
                        tensor.nbytes,
                        tensor.dtype,
                        shape=ir.Shape(sizes(tensor)),
                        name=name,
                        base_dir=str(path.parent),
                    )
                    file.write(tensor.tobytes())
                    told(file.tell())
                value.const_value = placed[name]
        return file.tell()
