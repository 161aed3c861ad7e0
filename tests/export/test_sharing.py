"""Two graphs, one file of weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import compare2score.export.sharing as sharing
from compare2score.errors import ExportError
from compare2score.export.sharing import write_graphs

SHARED = np.random.default_rng(0).standard_normal((600, 600)).astype(np.float32)
"""Large enough to begin where a file can be mapped."""


def model_of(**weights: np.ndarray) -> ir.Model:
    """y = x + the sum of every weight's first rows."""
    nodes, last = [], "x"
    for name in weights:
        nodes.append(helper.make_node("Add", [last, name], [f"with_{name}"]))
        last = f"with_{name}"
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [600, 600])],
        [value(last, TensorProto.FLOAT, [600, 600])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


@pytest.fixture
def graphs() -> dict[str, ir.Model]:
    own = np.arange(600, dtype=np.float32)
    return {
        "vision": model_of(pixels=own),
        "prefix": model_of(shared=SHARED, first=own, small=np.float32([2])),
        "decoder": model_of(shared=SHARED, second=2 * own, third=3 * own),
    }


def test_each_graph_computes_with_its_own_weights(graphs, tmp_path):
    write_graphs(graphs, tmp_path)
    x = np.zeros((600, 600), np.float32)
    own = np.arange(600, dtype=np.float32)
    for name, expected in (("vision", own), ("prefix", SHARED + own + 2), ("decoder", SHARED + 5 * own)):
        onnx.checker.check_model(str(tmp_path / f"{name}.onnx"))
        (found,) = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx").run(None, {"x": x})
        np.testing.assert_allclose(found, np.broadcast_to(expected, x.shape), rtol=1e-6)


def test_what_two_graphs_share_is_stored_once(graphs, tmp_path):
    written = write_graphs(graphs, tmp_path)
    size = (tmp_path / "decoder.weights").stat().st_size
    assert written == {"decoder.weights": size}
    assert SHARED.nbytes + 3 * 2400 <= size < SHARED.nbytes + 3 * 2400 + (1 << 16)
    assert {path.name for path in tmp_path.iterdir()} == {
        "vision.onnx",
        "prefix.onnx",
        "decoder.onnx",
        "decoder.weights",
    }
    places = set()
    for name in ("prefix", "decoder"):
        stored = onnx.load(tmp_path / f"{name}.onnx", load_external_data=False).graph.initializer
        (tensor,) = (tensor for tensor in stored if tensor.name == "shared")
        places.add(tuple(sorted((entry.key, entry.value) for entry in tensor.external_data)))
        assert all(tensor.raw_data for tensor in stored if tensor.name == "small")
    ((length, location, offset),) = places
    assert (length, location) == (("length", str(SHARED.nbytes)), ("location", "decoder.weights"))
    assert int(offset[1]) % (1 << 16) == 0


def test_a_large_vision_graph_has_its_weights_beside_it(graphs, tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "VISION_INSIDE_BYTES", 1000)
    assert write_graphs(graphs, tmp_path)["vision.weights"] == 2400


def test_no_more_than_one_tensor_is_held(graphs, tmp_path):
    held, most = [], []

    def reading(tensor):
        def read():
            held.append(1)
            most.append(len(held))
            return ir.tensor(tensor.numpy())

        return ir.LazyTensor(read, dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)

    for model in graphs.values():
        for value in model.graph.initializers.values():
            value.const_value = reading(value.const_value)
    write_graphs(graphs, tmp_path, progress=lambda *_: held.clear())
    # Each of the four is read once, and what is small or inside a graph after them.
    assert most[:4] == [1, 1, 1, 1]


def test_progress_is_told_in_bytes_until_all_are_written(graphs, tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "VISION_INSIDE_BYTES", 1000)
    told = []
    written = write_graphs(graphs, tmp_path, lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert {total for _, total in told} == {SHARED.nbytes + 4 * 2400}
    assert told[-1][0] == sum(written.values())


def test_a_full_disk_is_one_sentence(graphs, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sharing, "write_weights", full)
    with pytest.raises(ExportError, match=r"written \(No space left on device\); make room or choose"):
        write_graphs(graphs, tmp_path / "graphs")
