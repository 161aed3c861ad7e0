"""Float graphs of quantised ones against ONNX Runtime's own kernels for the quantised operators."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

from compare2score import Scorer
from compare2score.bundle import open_bundle, write_bundle
from compare2score.errors import ExportError
from compare2score.export.float_graph import read_float_graph, save_graph, to_float

GRAPHS = ("vision", "prefix", "decoder")


def session(path, exact=False):
    options = onnxruntime.SessionOptions()
    if exact:
        # Fused, a quantised product would compute otherwise than the graph says.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def embedded():
    return open_bundle()


@pytest.fixture(scope="module")
def floats(embedded, tmp_path_factory):
    """The embedded bundle with float graphs."""
    folder = tmp_path_factory.mktemp("float")
    graphs = folder / "graphs"
    graphs.mkdir()
    for graph in GRAPHS:
        save_graph(read_float_graph(embedded.graph(graph)), graphs / f"{graph}.onnx")
    return write_bundle(folder / "bundle", embedded.manifest, graphs, embedded.anchors)


@pytest.mark.parametrize("graph", GRAPHS)
def test_only_standard_float_operators_are_left(floats, graph):
    model = onnx.load(floats.graph(graph))
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} == {""}
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("graph", ["prefix", "decoder"])
def test_products_equal_the_runtimes_own_with_float_activations(embedded, floats, tmp_path, graph):
    model = onnx.load(embedded.graph(graph))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1  # float32 activations
    path = tmp_path / "exact.onnx"
    onnx.save(model, path)
    anchors = embedded.anchors
    given = {"visual_tokens": anchors.visual_tokens}
    if graph == "decoder":
        given |= {"prefix_keys": anchors.prefix.keys, "prefix_values": anchors.prefix.values}
    pairs = zip(session(path).run(None, given), session(floats.graph(graph)).run(None, given), strict=True)
    for expected, got in pairs:
        assert np.abs(got - expected).max() < 1e-4


def test_scores_move_by_no_more_than_rounding(embedded, floats, texture):
    pictures = [texture(seed, 96) // 2 + 64 * (seed % 2) for seed in range(6)]
    cpu, exact = ([s.q for s in Scorer(b).score_many(pictures)] for b in (embedded, floats))
    assert np.abs(np.subtract(cpu, exact)).max() < 0.1


def quantised_product(tmp_path, bits, symmetric, shape=(96, 24), block=32):
    """A product of a random weight by ONNX Runtime's quantiser, and a float input."""
    generator = np.random.default_rng(bits)
    weight = numpy_helper.from_array(generator.normal(size=shape).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", shape[1]])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    config = DefaultWeightOnlyQuantConfig(
        block_size=block, is_symmetric=symmetric, accuracy_level=1, bits=bits
    )
    quantizer = MatMulNBitsQuantizer(model, algo_config=config)
    quantizer.process()
    path = tmp_path / "quantised.onnx"
    onnx.save(quantizer.model.model, path)
    return path, generator.normal(size=(7, shape[0])).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", [(96, 24), (80, 5)])
def test_packed_weights_are_read_as_the_runtime_reads_them(tmp_path, bits, symmetric, shape):
    path, given = quantised_product(tmp_path, bits, symmetric, shape)
    model = read_float_graph(path)
    assert [node.op_type for node in model.graph] == ["MatMul"]
    floats = tmp_path / "float.onnx"
    ir.save(model, floats)
    expected, got = (session(p).run(None, {"x": given})[0] for p in (path, floats))
    assert np.abs(got - expected).max() < 1e-4


def saved(path, nodes, constants, outputs=("y",)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_a_quantised_activation_keeps_its_saturation(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="back"),
    ]
    path = saved(tmp_path / "q.onnx", nodes, {"s": np.float32(0.025), "z": np.uint8(40)})
    model = read_float_graph(path)
    ir.save(model, tmp_path / "f.onnx")
    given = {"x": np.linspace(-3, 9, 400, dtype=np.float32).reshape(-1, 4)}
    expected, got = (session(p, exact=True).run(None, given)[0] for p in (path, tmp_path / "f.onnx"))
    assert np.abs(got - expected).max() <= 0.0125 + 1e-6
    assert got.min() == pytest.approx(-1.0)
    assert got.max() == pytest.approx(5.375)


@pytest.mark.parametrize("axis", [0, 1])
def test_stored_integers_become_the_floats_they_stand_for(tmp_path, axis):
    generator = np.random.default_rng(axis)
    constants = {
        "w": generator.integers(-128, 128, (4, 4), dtype=np.int8),
        "s": generator.uniform(0.01, 1, 4).astype(np.float32),
        "z": generator.integers(-9, 9, 4, dtype=np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], name="weights", axis=axis),
        helper.make_node("MatMul", ["x", "d"], ["y"], name="product"),
    ]
    path = saved(tmp_path / "q.onnx", nodes, constants)
    ir.save(read_float_graph(path), tmp_path / "f.onnx")
    given = {"x": generator.normal(size=(3, 4)).astype(np.float32)}
    expected, got = (session(p, exact=True).run(None, given)[0] for p in (path, tmp_path / "f.onnx"))
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_float_graph_stays_as_it_is(tmp_path):
    path = saved(tmp_path / "f.onnx", [helper.make_node("Neg", ["x"], ["y"], name="neg")], {})
    before = ir.load(path)
    after = to_float(ir.load(path))
    assert ir.to_proto(after).SerializeToString() == ir.to_proto(before).SerializeToString()


def test_integers_that_something_else_reads_are_refused_by_name(tmp_path):
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dynamic"),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"], name="product"),
        helper.make_node("Cast", ["i"], ["y"], name="cast", to=TensorProto.FLOAT),
    ]
    path = saved(tmp_path / "q.onnx", nodes, {"w": np.ones((4, 4), np.int8)})
    with pytest.raises(ExportError, match=r"^The graph's DynamicQuantizeLinear, MatMulInteger cannot be"):
        read_float_graph(path)


def test_a_file_that_is_no_graph_is_refused(tmp_path):
    path = tmp_path / "vision.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(ExportError, match=r"is no ONNX graph"):
        read_float_graph(path)
    shutil.rmtree(tmp_path)
