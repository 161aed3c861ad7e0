"""Static eight bits for the vision encoder: close to float32, and one image at a time."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from compare2score import Scorer
from compare2score.export.exporter import export_bundle
from compare2score.export.graphs import trace_graphs
from compare2score.export.quantize import quantize_graphs
from compare2score.export.sharing import write_graphs
from compare2score.image import preprocess

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def comparator(tiny_comparator):
    return tiny_comparator()


@pytest.fixture(scope="module")
def photos(texture, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for place in range(8):
        Image.fromarray(texture(place, 80)).save(folder / f"{place}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def pixels(comparator, photos):
    return np.stack([preprocess(path, comparator.config.image) for path in photos])


@pytest.fixture(scope="module")
def folders(comparator, pixels, tmp_path_factory):
    work = tmp_path_factory.mktemp("graphs")
    graphs = trace_graphs(comparator)
    write_graphs(graphs, work / "fp32")
    quantize_graphs(graphs, work / "fp32", work / "int8", (image[None] for image in pixels))
    return work


def encode(folder, pixels):
    session = onnxruntime.InferenceSession(folder / "vision.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"pixels": pixels})[0]


def stage_of(weight):
    """The encoder's stage that a weight belongs to, -1 for the stem."""
    return int(weight.split(".stages.")[1].split(".")[0]) if ".stages." in weight else -1


def test_later_convolutions_are_in_eight_bits_with_a_scale_a_channel_and_early_ones_in_float(folders):
    graph = onnx.load(folders / "int8" / "vision.onnx").graph
    made_by = {output: node for node in graph.node for output in node.output}
    constants = {constant.name: onnx.numpy_helper.to_array(constant) for constant in graph.initializer}
    early = set()
    for node in (node for node in graph.node if node.op_type == "Conv"):
        if node.input[1] in constants:
            assert constants[node.input[1]].dtype == np.float32
            early.add(stage_of(node.input[1]))
            continue
        weights = made_by[node.input[1]]
        assert [made_by[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
        values, scales = constants[weights.input[0]], constants[weights.input[1]]
        assert values.dtype == np.int8
        assert scales.shape == (len(values),)
        assert stage_of(weights.input[0]) >= 2
    assert early == {-1, 0, 1}


def test_visual_tokens_stay_close(folders, pixels):
    exact, small = encode(folders / "fp32", pixels), encode(folders / "int8", pixels)
    assert np.abs(small - exact).max() > 0
    assert np.sqrt(np.mean((small - exact) ** 2)) < 0.1 * exact.std()


def test_an_image_is_encoded_alike_in_any_batch(folders, pixels):
    together = encode(folders / "int8", pixels)
    for place, image in enumerate(pixels):
        np.testing.assert_allclose(encode(folders / "int8", image[None])[0], together[place], atol=1e-6)


def test_a_bundle_in_eight_bits_scores_like_float32(comparator, photos, tmp_path):
    exact = export_bundle(comparator, tmp_path / "fp32", "fp32", photos[:3]).bundle
    small = export_bundle(comparator, tmp_path / "small", "int8", photos[:3], calibration=photos[3:]).bundle
    assert small.manifest.precision == "int8"
    wanted = [score.q for score in Scorer(exact.path).score_many(photos)]
    found = [score.q for score in Scorer(small.path).score_many(photos)]
    np.testing.assert_allclose(found, wanted, atol=0.1)
