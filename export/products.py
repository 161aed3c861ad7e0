"""The matrix products and convolutions of a graph, and how they are made to compute in fewer bits.

A product is quantised as TensorRT expects it: its activation passes a QuantizeLinear and a DequantizeLinear
with one symmetric scale, its weight is stored in few bits before a DequantizeLinear with a scale each output
channel. The library fuses the two into a product of small numbers; ONNX Runtime computes the same rounding in
floats, so that what a precision costs can be measured on the CPU.

Needs onnx_ir, numpy and ONNX Runtime: it runs on the device, in `c2s build`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from compare2score.backends import Floats
from compare2score.errors import ExportError
from compare2score.export.float_graph import add_constant, save_graph, sizes
from compare2score.export.lazy import content, lazy_tensor, register

OPSET = 19
"""The first whose quantisers take float16 scales and eight-bit floats."""
Samples = Iterable[Mapping[str, Floats]]
"""Inputs of a graph, by name, of one call after another."""


@dataclass(frozen=True, eq=False)
class Product:
    """A node that multiplies an activation by a stored weight.

    Attributes:
        node: a MatMul, or a Conv that mixes channels.
        activation, weight: its inputs; the weight is [K, N] of a MatMul, [N, K, ...] of a Conv.
        axis: of the weight's output channels.
    """

    node: ir.Node
    activation: ir.Value
    weight: ir.Value
    axis: int

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The weight."""
        return content(self.weight)

    def over_channels(self, values: NDArray[Any]) -> NDArray[Any]:
        """One value an output channel, shaped to meet the weight."""
        shape = [1] * len(self.tensor.shape)
        shape[self.axis] = -1
        return values.reshape(shape)


def products(graph: ir.Graph) -> list[Product]:
    """The products of activations and stored float weights.

    Left out are convolutions that look at one channel each (depthwise) or at the three of an image: they are
    a small part of the work, gain nothing from small integers on a tensor core, and cost most of the
    accuracy.
    """
    found = []
    for node in graph:
        if node.op_type not in ("MatMul", "Conv"):
            continue
        activation, weight = node.inputs[:2]
        if activation is None or weight is None or weight.const_value is None:
            continue
        tensor = weight.const_value
        if tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            continue
        if node.op_type == "MatMul" and len(tensor.shape) == 2:
            found.append(Product(node, activation, weight, 1))
        elif node.op_type == "Conv" and node.attributes.get_int("group", 1) == 1 and sizes(tensor)[1] > 3:
            found.append(Product(node, activation, weight, 0))
    return found


def observe(model: ir.Model, values: Iterable[ir.Value], samples: Samples) -> dict[str, Floats]:
    """Runs `model` on the CPU and returns the largest magnitudes of some of its values, by name.

    Of a value of a MatMul they are one a channel of its last axis, [K]; of a Conv's, one a channel of its
    second, [C].

    Raises ExportError if there are no samples.
    """
    graph = model.graph
    model.opset_imports[""] = max(OPSET, model.opset_imports.get("", OPSET))
    axes = {
        value.name: 1 if any(use.node.op_type == "Conv" for use in value.uses()) else -1
        for value in values
        if value.name
    }
    largest: dict[str, Floats] = {}

    def take(name: str, array: NDArray[Any]) -> None:
        axis = axes[name] % array.ndim
        peak = np.abs(array).max(tuple(i for i in range(array.ndim) if i != axis)).astype(np.float32)
        largest[name] = np.maximum(largest.get(name, np.zeros_like(peak)), peak)

    given = {str(value.name) for value in graph.inputs}
    asked = [name for name in axes if name not in given]
    with tempfile.TemporaryDirectory(prefix="c2s-observe-") as scratch:
        session = open_observed(model, asked, Path(scratch) / "observed.onnx")
        for sample in samples:
            for name in sorted(given & set(axes)):
                take(name, sample[name])
            for name, array in zip(asked, session.run(asked, dict(sample)) if asked else [], strict=True):
                take(name, array)
    if not largest and axes:
        raise ExportError("There is nothing to calibrate with; give images.")
    return largest


def open_observed(model: ir.Model, asked: list[str], path: Path) -> onnxruntime.InferenceSession:
    """A session on `model` that can return `asked` values; `path` is where its file may lie."""
    graph = model.graph
    named = {output.name: output for node in graph for output in node.outputs}
    before = list(graph.outputs)
    graph.outputs.extend(named[name] for name in asked if not named[name].is_graph_output())
    try:
        save_graph(model, path)
    finally:
        del graph.outputs[len(before) :]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def half_scale(largest: NDArray[Any], top: float) -> Floats:
    """The scales that map magnitudes up to `largest` to numbers up to `top`, as float16 can hold them.

    The rest of the graph may be float16, and a scale has the type of what it scales.
    """
    scale = np.maximum(np.asarray(largest, np.float32) / top, 2.0**-20).astype(np.float16)
    # The nearest float16 may be the one below, whose range would end before the largest.
    short = scale.astype(np.float32) * top < largest
    reaching: Floats = np.where(short, np.nextafter(scale, np.float16(np.inf)), scale).astype(np.float32)
    return reaching


def own_name(value: ir.Value, what: str) -> str:
    """A name for something that belongs to a value; without the mark of tables, see `export.half`."""
    return f"{value.name}_{what}".replace("/", ".")


def quantise_activation(product: Product, value: ir.Value, scale: float, small: ir.DataType) -> ir.Value:
    """Passes a product's activation `value` through a QuantizeLinear and a DequantizeLinear."""
    graph = graph_of(product)
    kind = product.tensor.dtype.numpy()
    steps = [
        add_constant(graph, own_name(value, "scale"), np.array(scale, kind)),
        add_constant(graph, own_name(value, "zero"), np.zeros((), small.numpy())),
    ]
    to = ir.node("QuantizeLinear", [value, *steps], name=own_name(value, "quantize"))
    back = ir.node("DequantizeLinear", [to.outputs[0], *steps], name=own_name(value, "dequantize"))
    to.outputs[0].name, back.outputs[0].name = own_name(value, "quantized"), own_name(value, "dequantized")
    insert_after(graph, value, [to, back])
    return back.outputs[0]


def store_weight(
    product: Product, small: ir.DataType, top: float, factors: NDArray[np.float32] | None = None
) -> ir.Value:
    """Stores a product's weight in few bits, made when it is written; returns the floats that it stands for.

    Args:
        product: whose weight.
        small: INT8 or FLOAT8E4M3FN.
        top: the number that the largest weight of an output channel becomes.
        factors: what the weight's rows are multiplied by first, if by anything.
    """
    graph, source, axis = graph_of(product), product.tensor, product.axis

    def exact() -> Floats:
        floats = source.numpy().astype(np.float32)
        return floats if factors is None else floats * factors[:, None]

    def scales() -> Floats:
        floats = exact()
        return half_scale(np.abs(floats).max(tuple(i for i in range(floats.ndim) if i != axis)), top)

    def numbers() -> NDArray[Any]:
        floats = exact() / product.over_channels(scales())
        if small == ir.DataType.INT8:
            floats = np.clip(np.rint(floats), -top, top)
        stored: NDArray[Any] = floats.astype(small.numpy())
        return stored

    shape = sizes(source)
    weight, width = product.weight, shape[axis]
    parts = [
        register(graph, lazy_tensor(f"{weight.name}_quantized", small, shape, numbers)),
        register(
            graph,
            lazy_tensor(
                own_name(weight, "scale"),
                source.dtype,
                [width],
                lambda: scales().astype(source.dtype.numpy()),
            ),
        ),
        add_constant(graph, own_name(weight, "zero"), np.zeros(width, small.numpy())),
    ]
    node = ir.node("DequantizeLinear", parts, {"axis": axis}, name=own_name(weight, "dequantize"))
    node.outputs[0].name = own_name(weight, "dequantized")
    graph.insert_before(graph[0], node)
    return node.outputs[0]


def graph_of(product: Product) -> ir.Graph:
    """The graph that a product is in."""
    graph = product.node.graph
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"{product.node.name} is in no graph")
    return graph


def insert_after(graph: ir.Graph, value: ir.Value, nodes: list[ir.Node]) -> None:
    """Puts nodes where `value` is there."""
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)
