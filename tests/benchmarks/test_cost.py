"""What graphs cost is counted as on paper and as torch counts it, and the embedded bundle's does not grow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from compare2score import open_bundle
from compare2score.benchmarks.cost import count_bundle, count_graph

RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "cost.json"

pytestmark = pytest.mark.filterwarnings("ignore")


def save(path, nodes, inputs, constants):
    """A graph whose output is its last node's."""
    graph = helper.make_graph(
        nodes,
        "counted",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9), path)
    return path


def floats(*shape):
    return np.zeros(shape, np.float32)


def test_matrix_products_are_counted_at_the_sizes_given(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Gemm", ["a", "g"], ["b"], transB=1),
        helper.make_node("Reshape", ["b", "shape"], ["c"]),
        helper.make_node("MatMul", ["c", "c2"], ["d"]),
    ]
    path = save(
        tmp_path / "products.onnx",
        nodes,
        {"x": ["images", 8], "c2": [2, 5, 7]},
        {"w": floats(8, 16), "g": floats(5, 16), "shape": np.array([2, -1, 5])},
    )
    cost = count_graph(path, {"images": 6})
    assert [product.flops for product in cost.products] == [
        2 * 6 * 8 * 16,
        2 * 6 * 16 * 5,
        2 * 2 * 3 * 5 * 7,
    ]
    assert [product.constant for product in cost.products] == [True, True, False]
    assert cost.weight_bytes == 4 * (8 * 16 + 5 * 16) + 3 * 8
    assert cost.boundary_bytes == 4 * (6 * 8 + 2 * 5 * 7 + 2 * 3 * 7)
    # Reshape moves nothing.
    assert cost.moved_bytes == 4 * (
        (6 * 8 + 8 * 16 + 6 * 16) + (6 * 16 + 5 * 16 + 6 * 5) + (6 * 5 + 2 * 5 * 7 + 2 * 3 * 7)
    )


def test_eight_bit_products_are_counted_as_such(tmp_path):
    node = helper.make_node(
        "MatMulNBits",
        ["x", "q", "s"],
        ["y"],
        domain="com.microsoft",
        K=128,
        N=32,
        bits=8,
        block_size=64,
        accuracy_level=4,
    )
    constants = {"q": np.zeros((32, 2, 64), np.uint8), "s": floats(32, 2)}
    cost = count_graph(save(tmp_path / "n.onnx", [node], {"x": ["images", 3, 128]}, constants), {"images": 5})
    (product,) = cost.products
    assert (product.precision, product.flops) == ("int8", 2 * 15 * 128 * 32)
    assert cost.weight_bytes == 32 * 128 + 4 * 64


def test_a_product_between_dequantised_values_is_of_eight_bits(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xf"]),
        helper.make_node("DequantizeLinear", ["wq", "scale", "zero"], ["wf"]),
        helper.make_node("Conv", ["xf", "wf"], ["y"], group=4),
    ]
    constants = {
        "scale": np.float32(0.1),
        "zero": np.int8(0),
        "wq": np.zeros((8, 1, 3, 3), np.int8),
    }
    cost = count_graph(
        save(tmp_path / "q.onnx", nodes, {"x": ["images", 4, 10, 10]}, constants), {"images": 2}
    )
    (product,) = cost.products
    assert (product.precision, product.kind, product.constant) == ("int8", "depthwise", True)
    assert product.flops == 2 * 2 * 8 * 64 * 9


@pytest.mark.parametrize("images", [1, 4])
def test_an_exported_comparator_costs_what_torch_counts(exported, images):
    comparator, bundle = exported("late")
    costs = count_bundle(bundle, images)
    pixels = torch.zeros(images, 3, 64, 64)
    with FlopCounterMode(display=False) as vision:
        tokens = comparator.encode(pixels)
    keys, values = (torch.from_numpy(part) for part in bundle.anchors.prefix)
    with FlopCounterMode(display=False) as decoder:
        comparator.compare(tokens, keys, values)
    assert costs["vision"].flops == vision.get_total_flops()
    assert costs["decoder"].flops == decoder.get_total_flops()


def test_the_embedded_bundle_costs_no_more_than_recorded():
    """If this fails, a change made the graphs dearer.

    If it should, `python -m compare2score.benchmarks.cost` records the new counts; say why in the commit.
    """
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))["results"]["graphs"]
    for name, cost in count_bundle(open_bundle()).items():
        for value, bound in recorded[name].items():
            assert cost.to_json()[value] <= bound, f"{name}: {value}"
