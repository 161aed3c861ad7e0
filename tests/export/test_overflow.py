"""Graphs in half precision that overflow are found before they are bundled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from toy_bundle import toy_manifest, write_toy_graphs

from compare2score.bundle import Bundle
from compare2score.errors import ExportError
from compare2score.export.overflow import extremes, refuse_overflow


@pytest.fixture
def toy(tmp_path) -> Bundle:
    folder = write_toy_graphs(tmp_path / "graphs")
    return Bundle(folder, replace(toy_manifest(), precision="fp16"), None, identity="")


def test_graphs_that_stay_finite_pass(toy):
    refuse_overflow(toy)


@pytest.mark.parametrize(
    ("graph", "constant"), [("vision", "mixing"), ("prefix", "two"), ("decoder", "slopes")]
)
def test_the_graph_that_overflows_is_named(toy, graph, constant):
    model = onnx.load(toy.graph(graph))
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == constant)
    tensor.raw_data = np.full_like(np.frombuffer(tensor.raw_data, np.float32), np.inf).tobytes()
    onnx.save(model, toy.graph(graph))
    with pytest.raises(
        ExportError, match=rf"In fp16 {graph}.onnx overflows float16; export as fp32 instead\."
    ):
        refuse_overflow(toy)


def test_extreme_images_are_all_that_pixels_can_be(toy):
    images = extremes(toy, seed=0)
    assert images.dtype == np.float32
    assert {round(value, 5) for value in images.ravel().tolist()} == {-1.0, 1.0}
