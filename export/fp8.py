"""Eight-bit floats (E4M3) for weights and activations, for TensorRT on GPUs of sm89 and newer.

Like int8, one scale an activation and one an output channel of a weight; the largest magnitude maps to 448,
the largest that E4M3 holds. Its steps grow with the magnitude, so that channels of different size need no
smoothing.

Needs onnx_ir, numpy, ml_dtypes and ONNX Runtime: it runs on the device, in `c2s build`.
"""

from __future__ import annotations

import onnx_ir as ir

from compare2score.export.float_graph import remove_unused
from compare2score.export.products import (
    Samples,
    half_scale,
    observe,
    products,
    quantise_activation,
    store_weight,
)

E4M3 = ir.DataType.FLOAT8E4M3FN
TOP = 448.0


def to_fp8(model: ir.Model, samples: Samples) -> ir.Model:
    """Lets the products of a float graph compute in eight-bit floats, in place.

    Args:
        model: a float graph, e.g. from `read_float_graph`.
        samples: inputs that show how large its activations get.


    """
    found = products(model.graph)
    largest = observe(model, [product.activation for product in found], samples)
    activations: dict[ir.Value, ir.Value] = {}
    weights: dict[ir.Value, ir.Value] = {}
    for product in found:
        value, weight = product.activation, product.weight
        if value not in activations:
            scale = float(half_scale(largest[str(value.name)].max(), TOP))
            activations[value] = quantise_activation(product, value, scale, E4M3)
        if weight not in weights:
            weights[weight] = store_weight(product, E4M3, TOP)
    for product in found:
        product.node.replace_input_with(0, activations[product.activation])
        product.node.replace_input_with(1, weights[product.weight])
    remove_unused(model.graph)
    return model
