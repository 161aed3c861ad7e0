"""Four-bit weights: ONNX Runtime computes the product with the dequantised weight, and the error is small."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import compare2score.export.blocks as blocks_module
from compare2score.export.blocks import Quantiser, quantised
from compare2score.export.half import to_half
from compare2score.export.int4 import to_int4


def weight(depth: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((depth, width)).astype(np.float32) * 0.02


def model_of(*matrices: np.ndarray) -> ir.Model:
    """y = x @ a @ b ..."""
    names = [f"w{place}" for place in range(len(matrices))]
    between = ["x", *(f"p{place}" for place in range(len(matrices) - 1)), "y"]
    nodes = [helper.make_node("MatMul", [between[i], name], [between[i + 1]]) for i, name in enumerate(names)]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", matrices[0].shape[0]]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", matrices[-1].shape[1]]),
    ]
    stored = [numpy_helper.from_array(matrix, name) for matrix, name in zip(matrices, names, strict=True)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    # As fused for the CPU, the product would round its activations to eight bits.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, {"x": x})[0]


def unblocked(matrix: np.ndarray, block: int) -> np.ndarray:
    """What a quantised weight stands for, worked out entry by entry from the definition."""
    blocks = quantised(ir.tensor(matrix), block, 7)
    assert np.abs(blocks.integers).max() <= 7
    return blocks.integers * np.repeat(blocks.scales, block, 0)


@pytest.mark.parametrize(("depth", "block"), [(128, 64), (96, 32), (48, 16)])
def test_the_product_is_that_of_the_dequantised_weight(depth, block):
    matrix, x = weight(depth, 40), weight(3, depth, 1)
    model = to_int4(model_of(matrix))
    (node,) = (node for node in model.graph if node.op_type == "DequantizeLinear")
    assert (node.attributes["axis"].as_int(), node.attributes["block_size"].as_int()) == (0, block)
    assert node.inputs[0].dtype == ir.DataType.INT4
    assert model.opset_imports[""] == 21
    np.testing.assert_allclose(run(model, x), x @ unblocked(matrix, block), atol=1e-6)


def test_in_half_precision_the_scales_lose_nothing():
    matrix, x = weight(128, 40), weight(3, 128, 1)
    model = to_half(to_int4(model_of(matrix)))
    scale = next(value for name, value in model.graph.initializers.items() if "scale" in name)
    assert scale.dtype == ir.DataType.FLOAT16
    np.testing.assert_array_equal(
        scale.const_value.numpy().astype(np.float32), quantised(ir.tensor(matrix), 64, 7).scales
    )
    np.testing.assert_allclose(run(model, x), x @ unblocked(matrix, 64), atol=1e-4)


def test_a_weight_that_no_block_divides_stays_as_it_is():
    matrix, x = weight(50, 40), weight(3, 50, 1)
    model = to_int4(model_of(matrix))
    assert [node.op_type for node in model.graph] == ["MatMul"]
    np.testing.assert_allclose(run(model, x), x @ matrix, atol=1e-6)


def test_a_weight_of_two_products_is_stored_once():
    model = model_of(weight(64, 64), weight(64, 64, 2))
    second = list(model.graph)[1]
    second.replace_input_with(1, model.graph.initializers["w0"])
    kinds = [node.op_type for node in to_int4(model).graph]
    assert kinds.count("DequantizeLinear") == 1
    assert len(model.graph.initializers) == 2


def test_clipping_leaves_less_error_than_the_full_range():
    matrix = weight(4096, 64)
    largest = np.abs(matrix.reshape(-1, 64, 64)).max(1) / 7
    steps = np.repeat(largest, 64, 0)
    plain = np.square(np.rint(matrix / steps) * steps - matrix).mean()
    assert np.square(unblocked(matrix, 64) - matrix).mean() < 0.95 * plain


@settings(deadline=None, max_examples=50)
@given(st.floats(0.01, 1e3), st.integers(0, 5))
def test_the_error_of_any_weight_is_within_a_step_of_its_block(size, seed):
    matrix = weight(64, 8, seed) * np.float32(size)
    # A clipped weight loses at most 18 % of the largest, any other half a step.
    bound = np.maximum(0.2 * np.abs(matrix).max(0), 2.0**-23)
    assert (np.abs(unblocked(matrix, 64) - matrix) <= bound).all()


def test_a_weight_is_quantised_once_for_its_two_parts_whichever_is_asked_first(monkeypatch):
    seen = []
    monkeypatch.setattr(blocks_module, "quantised", lambda *given: seen.append(1) or quantised(*given))
    matrix = ir.tensor(weight(64, 8))
    quantiser, expected = Quantiser(matrix, 64, 7), quantised(matrix, 64, 7)
    for _ in range(2):
        np.testing.assert_array_equal(quantiser.integers(), expected.integers)
        np.testing.assert_array_equal(quantiser.scales(), expected.scales)
    np.testing.assert_array_equal(Quantiser(matrix, 64, 7).scales(), expected.scales)
    assert len(seen) == 3


def test_weights_of_zero_stay_zero():
    assert not unblocked(np.zeros((64, 4), np.float32), 64).any()
