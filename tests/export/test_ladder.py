"""Each rung of the ladder against the float graph, computed by ONNX Runtime node by node."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compare2score.errors import ExportError
from compare2score.export.float_graph import save_graph
from compare2score.export.fp8 import to_fp8
from compare2score.export.int8 import to_int8
from compare2score.export.ladder import to_precision
from compare2score.export.products import half_scale

WIDTH = 64


def layer(seed=0, outlier=1.0, weight_scale=1.0):
    """A graph like a decoder's block: norm, two products of one activation, a third of both."""
    generator = np.random.default_rng(seed)

    def weight(*shape):
        return (weight_scale * generator.normal(size=shape) / shape[0] ** 0.5).astype(np.float32)

    gain = np.ones(WIDTH, np.float32)
    gain[5] = outlier
    constants = {
        "two": np.float32(2),
        "axis": np.array([-1], np.int64),
        "epsilon": np.float32(1e-6),
        "gain": gain,
        "gate": weight(WIDTH, 2 * WIDTH),
        "up": weight(WIDTH, 2 * WIDTH),
        "down": weight(2 * WIDTH, WIDTH),
    }
    nodes = [
        ("Pow", ["x", "two"], "square"),
        ("ReduceMean", ["square", "axis"], "mean"),
        ("Add", ["mean", "epsilon"], "shifted"),
        ("Sqrt", ["shifted"], "root"),
        ("Div", ["x", "root"], "unit"),
        ("Mul", ["unit", "gain"], "normed"),
        ("MatMul", ["normed", "gate"], "gated"),
        ("Sigmoid", ["gated"], "open"),
        ("MatMul", ["normed", "up"], "upped"),
        ("Mul", ["open", "upped"], "hidden"),
        ("MatMul", ["hidden", "down"], "y"),
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, given, [out], name=f"node_{out}") for kind, given, out in nodes],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ir.from_proto(proto)


def images(seed=1, count=4, size=1.0):
    generator = np.random.default_rng(seed)
    return [{"x": size * generator.normal(size=(2, 3, WIDTH)).astype(np.float32)} for _ in range(count)]


def computed(model, given, tmp_path):
    """What a graph computes, node by node as it is written."""
    path = tmp_path / "graph.onnx"
    ir.save(model, path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, given)[0]


def error(model, reference, given, tmp_path):
    """Root mean square of the difference, by that of the reference."""
    exact = computed(reference, given, tmp_path)
    return float(np.sqrt(np.mean((computed(model, given, tmp_path) - exact) ** 2) / np.mean(exact**2)))


@pytest.mark.parametrize(
    ("precision", "bound"), [("fp32", 1e-9), ("fp16", 2e-3), ("int8", 2e-2), ("fp8", 6e-2), ("int4", 0.2)]
)
def test_a_rung_computes_the_float_graph_within_its_rounding(tmp_path, precision, bound):
    samples = images() if precision in ("int8", "fp8") else ()
    model = to_precision(layer(), precision, samples)
    assert error(model, layer(), images(seed=2)[0], tmp_path) < bound
    assert [model.graph.inputs[0].dtype, model.graph.outputs[0].dtype] == [ir.DataType.FLOAT] * 2


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_calibration_without_images_is_refused(precision):
    with pytest.raises(ExportError, match=rf"^{precision} needs images to calibrate with"):
        to_precision(layer(), precision)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4", "fp8"])
def test_activations_whose_squares_overflow_float16_stay_right(tmp_path, precision):
    samples = images(size=2000)  # squares up to 10^8, where float16 ends at 65504
    model = to_precision(layer(), precision, samples if precision in ("int8", "fp8") else ())
    assert error(model, layer(), samples[0], tmp_path) < 0.2


def test_a_weight_beyond_float16_is_refused(tmp_path):
    model = to_precision(layer(weight_scale=1e6), "fp16")
    with pytest.raises(ExportError, match=r"overflows float16"):
        save_graph(model, tmp_path / "graph.onnx")


def test_smoothing_saves_what_one_large_channel_would_drown(tmp_path):
    given = images(seed=3)[0]
    reference = layer(outlier=300)
    plain, smooth = (
        error(to_int8(layer(outlier=300), images(), alpha), reference, given, tmp_path)
        for alpha in (0.0, 0.5)
    )
    # The outlier channel itself is most of the result, so that the error beside it counts little here.
    assert smooth < 0.6 * plain


def test_int8_is_symmetric_with_a_scale_an_output_channel(tmp_path):
    model = to_int8(layer(), images())
    stored = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    for name, array in stored.items():
        if name.endswith("_zero"):
            assert not array.any(), name
    for name, width in (("gate", 2 * WIDTH), ("up", 2 * WIDTH), ("down", WIDTH)):
        assert stored[f"{name}_quantized"].dtype == np.int8
        assert np.abs(stored[f"{name}_quantized"]).max() == 127
        assert stored[f"{name}_scale"].shape == (width,)


def test_what_two_products_share_is_quantised_once():
    model = to_int8(layer(), images())
    kinds = [node.op_type for node in model.graph]
    # Two activations (the norm's result, the hidden one), three weights.
    assert (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")) == (2, 5)


def test_one_weight_of_two_activations_is_stored_once(tmp_path):
    def twice():
        model = layer()
        graph = model.graph
        node = next(node for node in graph if node.name == "node_upped")
        other = ir.node("MatMul", [graph.inputs[0], node.inputs[1]], name="again")
        other.outputs[0].name = "again"
        total = next(node for node in graph if node.name == "node_hidden")
        graph.insert_before(total, other)
        total.replace_input_with(1, other.outputs[0])
        total.replace_input_with(0, node.outputs[0])
        return model

    model = to_int8(twice(), images())
    assert sum(name.endswith("_quantized") for name in model.graph.initializers) == 2
    assert error(model, twice(), images(seed=2)[0], tmp_path) < 3e-2


def test_fp8_weights_are_the_nearest_numbers_that_e4m3_has():
    model = to_fp8(layer(), images())
    exact = layer().graph.initializers["down"].const_value.numpy()
    stored = model.graph.initializers["down_quantized"].const_value.numpy()
    scale = model.graph.initializers["down_scale"].const_value.numpy().astype(np.float32)
    assert stored.dtype == ml_dtypes.float8_e4m3fn
    assert np.isfinite(stored.astype(np.float32)).all()
    # Three bits of mantissa: half a step is at most a sixteenth of the number, or of the smallest normal one.
    step = np.maximum(np.abs(exact), 2.0**-6 * scale) / 16
    assert (np.abs(stored.astype(np.float32) * scale - exact) <= step * 1.01).all()


def test_scales_are_float16_and_reach_the_largest():
    largest = np.abs(np.random.default_rng(0).normal(size=1000)).astype(np.float32) * 10.0 ** -(
        np.arange(1000) ** 0.2
    )
    scale = half_scale(largest, 127)
    assert (scale == scale.astype(np.float16)).all()
    assert (scale * 127 >= largest).all()
    assert (scale >= 2.0**-20).all()


def test_convolutions_of_single_channels_stay_in_float(tmp_path):
    generator = np.random.default_rng(0)
    constants = {
        "stem": generator.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "depth": generator.normal(size=(8, 1, 3, 3)).astype(np.float32),
        "point": generator.normal(size=(6, 8, 1, 1)).astype(np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "stem"], ["a"], name="stem_conv", pads=[1, 1, 1, 1]),
            helper.make_node("Conv", ["a", "depth"], ["b"], name="depth_conv", group=8, pads=[1, 1, 1, 1]),
            helper.make_node("Conv", ["b", "point"], ["y"], name="point_conv"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6, 8, 8])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )

    def make():
        opsets = [helper.make_opsetid("", 20)]
        return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))

    samples = [{"x": generator.normal(size=(2, 3, 8, 8)).astype(np.float32)}]
    model = to_int8(make(), samples)
    assert [name for name in model.graph.initializers if name.endswith("_quantized")] == ["point_quantized"]
    assert error(model, make(), samples[0], tmp_path) < 2e-2
