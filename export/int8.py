"""Eight-bit integers for weights and activations (W8A8), for TensorRT.

Symmetric throughout, which is what TensorRT takes: an activation has one scale, from the largest magnitude
that calibration shows, a weight one for every output channel. A language model's activations have a few
channels that are a hundred times the others, and one scale for all would leave these nothing; SmoothQuant
(Xiao et al., 2023, arXiv 2211.10438, eq. 4) moves part of that into the weights: channel j of the activation
is divided, and row j of the weight multiplied, by

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha).

Needs onnx_ir, numpy and ONNX Runtime: it runs on the device, in `c2s build`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from compare2score.backends import Floats
from compare2score.export.float_graph import add_constant, remove_unused
from compare2score.export.products import (
    Product,
    Samples,
    graph_of,
    half_scale,
    insert_after,
    observe,
    own_name,
    products,
    quantise_activation,
    store_weight,
)

INT8 = ir.DataType.INT8
TOP = 127
ALPHA = 0.5
"""How much of the activations' unevenness the weights take over."""


def to_int8(model: ir.Model, samples: Samples, alpha: float = ALPHA) -> ir.Model:
    """Lets the products of a float32 graph compute in eight-bit integers, in place.

    Args:
        model: a float32 graph, e.g. from `read_float_graph`.
        samples: inputs that show how large its activations get.
        alpha: SmoothQuant's, 0 to 1; it applies to matrix products only.


    """
    graph = model.graph
    found = products(graph)
    largest = observe(model, [product.activation for product in found], samples)
    for group in sharing(found):
        smooth = group[0].node.op_type == "MatMul"
        quantise_group(group, largest, smoothing(group, largest, alpha) if smooth else None)
    remove_unused(graph)
    return model


def sharing(found: Sequence[Product]) -> Iterator[list[Product]]:
    """Products in groups that share activations or weights, directly or through others."""
    left = list(found)
    while left:
        group, shared = [left.pop(0)], True
        while shared:
            seen = {id(value) for product in group for value in (product.activation, product.weight)}
            joining = [p for p in left if id(p.activation) in seen or id(p.weight) in seen]
            left = [p for p in left if p not in joining]
            group += joining
            shared = bool(joining)
        yield group


def smoothing(group: Sequence[Product], largest: dict[str, Floats], alpha: float) -> Floats:
    """s [K] of a group's activations: one for all of them, since one weight may serve several."""
    activation = np.max([largest[str(product.activation.name)] for product in group], 0)
    weights = {product.weight: product.tensor for product in group}
    weight = np.max([np.abs(tensor.numpy()).max(1).astype(np.float32) for tensor in weights.values()], 0)
    factors = np.maximum(activation, 1e-5) ** alpha / np.maximum(weight, 1e-5) ** (1 - alpha)
    # Powers of two lose nothing when a float16 is divided by them.
    powers: Floats = np.exp2(np.clip(np.round(np.log2(factors)), -12, 12)).astype(np.float32)
    return powers


def quantise_group(group: Sequence[Product], largest: dict[str, Floats], factors: Floats | None) -> None:
    """Quantises products that share activations or weights, each of these once."""
    activations: dict[ir.Value, ir.Value] = {}
    weights: dict[ir.Value, ir.Value] = {}
    for product in group:
        value, weight = product.activation, product.weight
        if weight not in weights:
            weights[weight] = store_weight(product, INT8, TOP, factors)
        if value not in activations:
            peak, smooth = largest[str(value.name)], value
            if factors is not None:
                peak, smooth = peak / factors, smoothed(product, factors)
            scale = float(half_scale(peak.max(), TOP))
            activations[value] = quantise_activation(product, smooth, scale, INT8)
    for product in group:
        product.node.replace_input_with(0, activations[product.activation])
        product.node.replace_input_with(1, weights[product.weight])


def smoothed(product: Product, factors: Floats) -> ir.Value:
    """A product's activation divided by SmoothQuant's factors along its last axis."""
    graph, value = graph_of(product), product.activation
    inverse = (1 / factors).astype(product.tensor.dtype.numpy())
    divide = add_constant(graph, own_name(value, "smoothing"), inverse)
    node = ir.node("Mul", [value, divide], name=own_name(value, "smooth"))
    node.outputs[0].name = own_name(value, "smoothed")
    insert_after(graph, value, [node])
    return node.outputs[0]
