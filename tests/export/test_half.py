"""Half precision: close to float32, finite where a plain conversion overflows, of the promised types."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compare2score.errors import ExportError
from compare2score.export.half import to_half

WIDTH = 32


def model_of(nodes, inputs, outputs, constants) -> ir.Model:
    def value(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "g",
        [value(*item) for item in inputs.items()],
        [value(*item) for item in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def run(model: ir.Model, **given: np.ndarray) -> list[np.ndarray]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    # So that what is computed is what the graph says.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return session.run(None, given)


def normed_product() -> ir.Model:
    """y = (x / rms(x) * scale) @ weight + x, as LLaMA has it."""
    node, random = helper.make_node, np.random.default_rng(0)
    weight = (random.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32)
    return model_of(
        [
            node("Pow", ["x", "two"], ["square"]),
            node("ReduceMean", ["square", "last"], ["mean"]),
            node("Add", ["mean", "epsilon"], ["safe"]),
            node("Sqrt", ["safe"], ["root"]),
            node("Reciprocal", ["root"], ["inverse"]),
            node("Mul", ["x", "inverse"], ["normal"]),
            node("Mul", ["normal", "scale"], ["scaled"]),
            node("MatMul", ["scaled", "weight"], ["product"]),
            node("Add", ["product", "x"], ["y"]),
        ],
        {"x": ["rows", WIDTH]},
        {"y": ["rows", WIDTH]},
        {
            "two": np.float32(2),
            "last": np.int64([-1]),
            "epsilon": np.float32(1e-5),
            "scale": np.linspace(0.5, 2, WIDTH, dtype=np.float32),
            "weight": weight,
        },
    )


@pytest.mark.parametrize("size", [1.0, 2000.0])
def test_a_norm_of_values_whose_squares_overflow_is_finite_and_close(size):
    x = (size * np.random.default_rng(1).standard_normal((4, WIDTH))).astype(np.float32)
    (exact,) = run(normed_product(), x=x)
    (half,) = run(to_half(normed_product()), x=x)
    assert half.dtype == np.float32
    assert np.abs(half - exact).max() < 2e-3 * np.abs(exact).max()


def test_products_compute_in_float16_and_norms_in_float32():
    graph = to_half(normed_product()).graph
    types = {
        node.op_type: {value.dtype for value in node.inputs if value.dtype != ir.DataType.INT64}
        for node in graph
    }
    assert types["MatMul"] == {ir.DataType.FLOAT16}
    for kind in ("Pow", "ReduceMean", "Sqrt", "Reciprocal"):
        assert types[kind] == {ir.DataType.FLOAT}
    assert graph.initializers["weight_half"].dtype == ir.DataType.FLOAT16
    assert "weight" not in graph.initializers
    assert graph.initializers["scale"].dtype == ir.DataType.FLOAT


def test_what_is_named_of_the_interface_becomes_float16_and_the_rest_stays():
    graph = to_half(normed_product(), ["y"]).graph
    assert [(v.name, v.dtype) for v in (*graph.inputs, *graph.outputs)] == [
        ("x", ir.DataType.FLOAT),
        ("y", ir.DataType.FLOAT16),
    ]
    x = np.ones((2, WIDTH), np.float32)
    assert run(to_half(normed_product(), ["x", "y"]), x=x.astype(np.float16))[0].dtype == np.float16


def test_it_changes_nothing_the_second_time():
    x = np.random.default_rng(1).standard_normal((4, WIDTH)).astype(np.float32)
    once = to_half(normed_product())
    (first,) = run(once, x=x)
    (second,) = run(to_half(once), x=x)
    np.testing.assert_array_equal(first, second)


def rotated(table: str) -> ir.Model:
    return model_of(
        [helper.make_node("MatMul", ["x", "weight"], ["p"]), helper.make_node("Mul", ["p", table], ["y"])],
        {"x": ["rows", WIDTH]},
        {"y": ["rows", WIDTH]},
        {
            "weight": np.eye(WIDTH, dtype=np.float32),
            table: np.cos(np.arange(WIDTH, dtype=np.float32)),
        },
    )


def test_a_table_of_the_graph_stays_in_float32_and_a_weight_of_the_comparator_does_not():
    x = np.ones((1, WIDTH), np.float32)
    exact = np.cos(np.arange(WIDTH, dtype=np.float32))
    np.testing.assert_allclose(run(to_half(rotated("decoder/cosine")), x=x)[0][0], exact, atol=1e-7)
    as_weight = run(to_half(rotated("cosine")), x=x)[0][0]
    assert 1e-5 < np.abs(as_weight - exact).max() < 1e-3


def test_a_weight_that_float16_cannot_hold_is_refused():
    model = rotated("cosine")
    model.graph.initializers["weight"].const_value = ir.tensor(np.full((WIDTH, WIDTH), 1e5, np.float32))
    half = to_half(model).graph.initializers["weight_half"]
    with pytest.raises(ExportError, match="The weight weight overflows float16; export as fp32"):
        half.const_value.numpy()


def test_whole_numbers_and_shapes_are_left_alone():
    node = helper.make_node
    model = model_of(
        [
            node("Shape", ["x"], ["shape"]),
            node("Gather", ["shape", "first"], ["rows"]),
            node("Cast", ["rows"], ["count"], to=TensorProto.FLOAT),
            node("MatMul", ["x", "weight"], ["p"]),
            node("Div", ["p", "count"], ["y"]),
        ],
        {"x": ["rows", WIDTH]},
        {"y": ["rows", WIDTH]},
        {"first": np.int64([0]), "weight": np.eye(WIDTH, dtype=np.float32)},
    )
    x = np.ones((4, WIDTH), np.float32)
    np.testing.assert_array_equal(run(to_half(model), x=x)[0], x / 4)
