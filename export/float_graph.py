"""From a graph quantised for the CPU back to a float one, which TensorRT parses.

An eight-bit bundle stores matrix products as ONNX Runtime's MatMulNBits, which TensorRT does not know, and
convolutions between QuantizeLinear and DequantizeLinear in uint8, which it does not take. Here the weights
become the floats that their integers stand for, and a quantised activation becomes a clip to the range that
its integers can hold: quantisers leave out a ReLU6 that this saturation replaces. What is left out is the
rounding, so that the float graph computes what the CPU's does to within it.

Needs onnx_ir and numpy alone: it runs on the device, in `c2s build`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compare2score.backends import Floats
from compare2score.errors import ExportError
from compare2score.export.lazy import lazy_tensor, register


def read_float_graph(path: Path) -> ir.Model:
    """A graph of a bundle in floats, whatever precision it is stored in.

    Raises ExportError if it cannot be read, or holds a quantised operator that has no float form here.
    """
    return to_float(read_graph(path))


def read_graph(path: Path) -> ir.Model:
    """A graph of a bundle as it is. Raises ExportError if it cannot be read."""
    try:
        return ir.load(path)
    except Exception as error:  # protobuf's and onnx's own classes
        reason = " ".join(str(error).split())
        raise ExportError(f"{path} is no ONNX graph ({reason}); export the bundle again.") from error


def save_graph(model: ir.Model, path: Path) -> None:
    """Writes a graph with its weights beside it, since they may be larger than a protobuf message can be.

    Raises ExportError if a weight that is made on the way cannot be.
    """
    try:
        ir.save(model, path, external_data=f"{path.name}.data")
    except Exception as error:
        # What a lazy weight raises comes wrapped.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ExportError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from error


def to_float(model: ir.Model) -> ir.Model:
    """Replaces what is quantised in `model` by floats, in place; a float graph stays as it is.

    Raises ExportError for a quantised operator without a float form here.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type == "MatMulNBits":
            replace_product(graph, node)
        elif node.op_type == "DequantizeLinear" and constant(node.inputs[0]) is not None:
            replace_uses(node, register(graph, dequantized(node)))
    for node in list(graph):
        if node.op_type == "QuantizeLinear":
            replace_activation(graph, node)
    remove_unused(graph)
    left = sorted({node.op_type for node in graph if node.domain == "com.microsoft"} | quantised(graph))
    if left:
        raise ExportError(f"The graph's {', '.join(left)} cannot be turned into floats; export it as fp32.")
    for domain in set(model.opset_imports) - {node.domain for node in graph} - {""}:
        del model.opset_imports[domain]
    return model


def quantised(graph: ir.Graph) -> set[str]:
    """Operators of `graph` that compute with integers in place of floats."""
    kinds = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"}
    return {node.op_type for node in graph if node.op_type in kinds or node.op_type.startswith("QLinear")}


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """What a value holds if that is stored in the graph."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def add_constant(graph: ir.Graph, name: str, content: NDArray[Any]) -> ir.Value:
    """Stores an array in the graph, under `name` or, if that is taken, one that begins with it."""
    free = name
    while free in graph.initializers:
        free += "_"
    value = ir.Value(
        name=free,
        const_value=ir.tensor(content, name=free),
        type=ir.TensorType(ir.DataType.from_numpy(content.dtype)),
        shape=ir.Shape(content.shape),
    )
    graph.register_initializer(value)
    return value


def replace_uses(node: ir.Node, value: ir.Value) -> None:
    """Lets everything that reads a node's only output read `value`."""
    node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)


def remove_unused(graph: ir.Graph) -> None:
    """Removes nodes and constants that nothing reads any more."""
    for node in reversed(list(graph)):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def sizes(tensor: ir.TensorProtocol) -> list[int]:
    """The shape of what is stored, which is always known."""
    return [length for length in tensor.shape if isinstance(length, int)]


def tensors(node: ir.Node) -> list[ir.TensorProtocol | None]:
    """What of a node's inputs is stored in the graph, in their order."""
    return [None if value is None else value.const_value for value in node.inputs]


def dequantized(node: ir.Node) -> ir.LazyTensor:
    """The floats of a DequantizeLinear of constants: one scale, one a slice, or one a block of an axis."""
    stored, scales, zeros = (*tensors(node), None)[:3]
    if stored is None or scales is None:
        raise ExportError(f"{node.name} dequantises by a scale that is computed; export the graph as fp32.")
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    shape = sizes(stored)

    def spread(values: NDArray[Any]) -> Floats:
        values = values.astype(np.float32)
        if block:
            whole = tuple(slice(0, length) for length in shape)
            return np.repeat(values, block, axis)[whole]
        if values.size == 1:
            return values.reshape(())
        return values.reshape([-1 if place == axis % len(shape) else 1 for place in range(len(shape))])

    def floats() -> NDArray[Any]:
        exact = stored.numpy().astype(np.float32)
        if zeros is not None:
            exact = exact - spread(zeros.numpy())
        return (exact * spread(scales.numpy())).astype(scales.dtype.numpy())

    return lazy_tensor(f"{node.outputs[0].name}_float", scales.dtype, shape, floats)


def replace_product(graph: ir.Graph, node: ir.Node) -> None:
    """Replaces ONNX Runtime's MatMulNBits by a MatMul of its weights [K, N] as floats."""
    weight = register(graph, product_weights(node))
    product = ir.node("MatMul", [node.inputs[0], weight], name=node.name, metadata_props=node.metadata_props)
    nodes, output = [product], product.outputs[0]
    bias = node.inputs[5] if len(node.inputs) > 5 else None
    if bias is not None:
        total = ir.node("Add", [output, bias], name=f"{node.name}_bias", metadata_props=node.metadata_props)
        nodes, output = [product, total], total.outputs[0]
    output.type, output.shape = node.outputs[0].type, node.outputs[0].shape
    name = node.outputs[0].name
    graph.insert_before(node, nodes)
    replace_uses(node, output)
    graph.remove(node, safe=True)
    output.name = name


def product_weights(node: ir.Node) -> ir.LazyTensor:
    """A MatMulNBits' weights [K, N] as floats, under the name that they had before.

    Stored are integers [N, blocks, bytes], two to a byte if they have four bits, the lower first, with a
    scale for each block and a zero point for each, or their range's middle.

    Raises ExportError if they are stored in another way.
    """
    attributes = node.attributes
    bits, block = attributes.get_int("bits", 4), attributes.get_int("block_size")
    depth, width = attributes.get_int("K"), attributes.get_int("N")
    _, stored, scales, zeros, order = (*tensors(node), None, None, None)[:5]
    if bits not in (4, 8) or stored is None or scales is None or order is not None:
        raise ExportError(f"{node.name} stores its weights in an unknown way; export the graph as fp32.")
    blocks = -(-depth // block)

    def floats() -> NDArray[Any]:
        integers = unpacked(stored.numpy().reshape(width, blocks, -1), bits)[:, :, :block].astype(np.float32)
        middle: Any = np.float32(1 << (bits - 1))
        if zeros is not None:
            packed = zeros.numpy().reshape(width, -1)
            middle = unpacked(packed, bits) if packed.dtype == np.uint8 else packed
            middle = middle[:, :blocks, None].astype(np.float32)
        exact = (integers - middle) * scales.numpy().reshape(width, blocks, 1).astype(np.float32)
        whole: NDArray[Any] = exact.reshape(width, -1)[:, :depth].T.astype(scales.dtype.numpy())
        return whole

    name = str(stored.name)
    return lazy_tensor(name.rpartition("_Q")[0] or f"{name}_float", scales.dtype, [depth, width], floats)


def unpacked(stored: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Integers of four bits, two to a byte of the last axis, the lower first; of eight, as they are."""
    if bits == 8:
        return stored
    return np.stack([stored & 15, stored >> 4], -1).reshape(*stored.shape[:-1], -1)


def replace_activation(graph: ir.Graph, node: ir.Node) -> None:
    """Replaces a QuantizeLinear and the DequantizeLinears of its output by a clip to the integers' range.

    Raises ExportError if anything else reads the integers, or their scale is not one constant.
    """
    readers = list(node.outputs[0].uses())
    value, scale = node.inputs[0], constant(node.inputs[1])
    if (
        value is None
        or scale is None
        or scale.size != 1
        or any(use.node.op_type != "DequantizeLinear" for use in readers)
    ):
        raise ExportError(f"{node.name} quantises in a way that has no float form; export the graph as fp32.")
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if zero is None:
        zero = np.zeros((), np.uint8)
    if zero.dtype.kind in "iu":
        limits = np.iinfo(zero.dtype)
        low, high = (
            np.array((bound - int(zero.reshape(()))) * float(scale.reshape(())), np.float32)
            for bound in (limits.min, limits.max)
        )
        bounds = [
            add_constant(graph, f"{node.name}_{side}", bound)
            for side, bound in (("low", low), ("high", high))
        ]
        clip = ir.node("Clip", [value, *bounds], name=f"{node.name}_range")
        clip.outputs[0].type, clip.outputs[0].shape = value.type, value.shape
        graph.insert_before(node, clip)
        value = clip.outputs[0]
        value.name = f"{node.outputs[0].name}_range"
    for use in readers:
        replace_uses(use.node, value)
