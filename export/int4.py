"""Four-bit weights in blocks, as standard ONNX: DequantizeLinear before each matrix product (opset 21).

ONNX Runtime and TensorRT read the same file: both fuse the pair into a product of four-bit weights, with
activations in float16 or float32. What is not a matrix product by a stored weight stays as it is.

Needs no torch: it runs on the device, too.
"""

from __future__ import annotations

import ml_dtypes
import onnx_ir as ir

from compare2score.export.blocks import Quantiser, block_of, matrix_products
from compare2score.export.lazy import content, drop_unused, lazy_tensor, register, sizes

BLOCKS = (64, 32, 16)
"""Weights along K that share a scale: 64, or fewer where 64 does not divide K."""
TOP = 7
OPSET = 21


def to_int4(model: ir.Model) -> ir.Model:
    """Stores the weights of a graph's matrix products in four bits, in place."""
    graph = model.graph
    model.opset_imports[""] = max(OPSET, model.opset_imports.get("", OPSET))
    made: dict[ir.Value, ir.Value] = {}
    for node, weight in matrix_products(graph):
        if weight not in made:
            block = block_of(sizes(content(weight))[0], BLOCKS)
            if block is None:
                continue
            made[weight] = dequantised(graph, node, weight, block)
        node.replace_input_with(1, made[weight])
    drop_unused(graph)
    return model


def dequantised(graph: ir.Graph, node: ir.Node, weight: ir.Value, block: int) -> ir.Value:
    """Stores a weight [K, N] in blocks; returns the floats that they stand for, made before `node`."""
    source = content(weight)
    depth, width = sizes(source)
    quantiser = Quantiser(source, block, TOP)
    integers = lazy_tensor(
        f"{weight.name}_int4",
        ir.DataType.INT4,
        [depth, width],
        lambda: quantiser.integers().astype(ml_dtypes.int4),
    )
    scales = lazy_tensor(
        f"{weight.name}_scale{block}",
        source.dtype,
        [depth // block, width],
        lambda: quantiser.scales().astype(source.dtype.numpy()),
    )
    parts = [register(graph, tensor) for tensor in (integers, scales)]
    back = ir.node(
        "DequantizeLinear", parts, {"axis": 0, "block_size": block}, name=f"{weight.name}_dequantize"
    )
    value = back.outputs[0]
    value.name, value.type = f"{weight.name}_dequantized", ir.TensorType(source.dtype)
    value.shape = ir.Shape([depth, width])
    graph.insert_before(node, back)
    return value
