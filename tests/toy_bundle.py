"""A bundle small enough to work out on paper, made without torch.

Its comparator prefers the brighter image, and the second of two a little, whatever they are:

    b = mean of the normalised pixels, from -1 (black) to 1 (white)
    level logit k of "second compared with first" = TILT (k - 2) (b_second - b_first + LEAN) + BUMP_k

The graphs take detours (a matrix product, keys and values that both count) so that a swapped or lost input
changes the answer. `preferred` states the same formula in numpy.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from compare2score.backends import Prefix
from compare2score.bundle import Anchors, Bundle, Manifest, write_bundle
from compare2score.image import ImageSpec

SIZE = 4
LEVELS = ("inferior", "worse", "similar", "better", "superior")
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
TEMPERATURE = 2.0
TILT, LEAN = 3.0, 0.05
BUMP = np.array([0.0, 0.5, 1.0, 0.5, 0.0])
ANCHOR_GRAYS = (32, 80, 128, 176, 224)
MIXING = np.array([[0.5, 1.5, 0.5, 1.5]] * 3) / 3
"""Channel means [3] to four token values whose mean is the mean of the channels."""


def brightness(gray: float) -> float:
    """b of a picture of one grey, 0-255."""
    return gray / 127.5 - 1


def answers(second: float, first: float) -> np.ndarray:
    """Level probabilities [5] when the picture of grey `second` comes second and that of `first` first."""
    logits = TILT * (np.arange(5) - 2) * (brightness(second) - brightness(first) + LEAN) + BUMP
    odds = np.exp(logits / TEMPERATURE)
    return odds / odds.sum()


def preferred(second: float, first: float) -> float:
    """P(second preferred over first)."""
    return float(answers(second, first) @ np.array(WEIGHTS))


def anchor_matrix(grays: tuple[int, ...] = ANCHOR_GRAYS) -> np.ndarray:
    """Both orders averaged, entry by entry."""
    return np.array([[(preferred(i, j) + 1 - preferred(j, i)) / 2 for j in grays] for i in grays])


def save_graph(path: Path, nodes: list, inputs: dict, outputs: dict, constants: dict) -> None:
    def value(name: str, shape: list) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        [helper.make_node(kind, given, [result], **settings) for kind, given, result, settings in nodes],
        path.stem,
        [value(*item) for item in inputs.items()],
        [value(*item) for item in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_toy_graphs(folder: Path) -> Path:
    """Writes the three graphs into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    floats, whole = np.float32, np.int64
    tokens, prefix = [2, 2], [1, 1, 2, 2]
    save_graph(
        folder / "vision.onnx",
        [
            ("ReduceMean", ["pixels", "plane"], "channels", {"keepdims": 0}),
            ("MatMul", ["channels", "mixing"], "mixed", {}),
            ("Reshape", ["mixed", "shape"], "visual_tokens", {}),
        ],
        {"pixels": ["images", 3, SIZE, SIZE]},
        {"visual_tokens": ["images", *tokens]},
        {"plane": whole([2, 3]), "mixing": floats(MIXING), "shape": whole([-1, 2, 2])},
    )
    save_graph(
        folder / "prefix.onnx",
        [
            ("Unsqueeze", ["visual_tokens", "places"], "keys", {}),
            ("Mul", ["keys", "two"], "values", {}),
        ],
        {"visual_tokens": ["anchors", *tokens]},
        {"keys": ["anchors", *prefix], "values": ["anchors", *prefix]},
        {"places": whole([1, 2]), "two": floats(2)},
    )
    save_graph(
        folder / "decoder.onnx",
        [
            ("ReduceMean", ["visual_tokens", "inner"], "second", {"keepdims": 1}),
            ("Add", ["prefix_keys", "prefix_values"], "summed", {}),
            ("ReduceMean", ["summed", "all_inner"], "three_firsts", {"keepdims": 0}),
            ("Div", ["three_firsts", "three"], "first", {}),
            ("Reshape", ["first", "row"], "firsts", {}),
            ("Sub", ["second", "firsts"], "difference", {}),
            ("Add", ["difference", "lean"], "leaning", {}),
            ("Mul", ["leaning", "slopes"], "tilted", {}),
            ("Add", ["tilted", "bump"], "level_logits", {}),
        ],
        {
            "visual_tokens": ["images", *tokens],
            "prefix_keys": ["anchors", *prefix],
            "prefix_values": ["anchors", *prefix],
        },
        {"level_logits": ["images", "anchors", 5]},
        {
            "inner": whole([1, 2]),
            "all_inner": whole([1, 2, 3, 4]),
            "three": floats(3),
            "row": whole([1, -1, 1]),
            "lean": floats(LEAN),
            "slopes": floats(TILT * (np.arange(5) - 2)),
            "bump": floats(BUMP),
        },
    )
    return folder


def toy_manifest(**changes: Any) -> Manifest:
    manifest = Manifest(
        model="toy",
        precision="fp32",
        image=ImageSpec(SIZE, (0.5,) * 3, (0.5,) * 3, (127,) * 3),
        prompt="USER: <|image|> <|image|> Which is brighter?",
        levels=LEVELS,
        level_weights=WEIGHTS,
        temperature=TEMPERATURE,
        images_per_call=None,
        notes={"purpose": "tests"},
    )
    return replace(manifest, **changes)


def toy_anchors(grays: tuple[int, ...] = ANCHOR_GRAYS) -> Anchors:
    """Anchors of one grey each, computed here and not by the graphs."""
    means = np.array([[brightness(gray)] * 3 for gray in grays])
    tokens = (means @ MIXING).reshape(-1, 2, 2).astype(np.float32)
    keys = tokens[:, None, None]
    names = tuple(f"gray{gray}.png" for gray in grays)
    return Anchors(names, anchor_matrix(grays), tokens, Prefix(keys, 2 * keys))


def write_toy_bundle(folder: Path, anchors: Anchors | None = None, **changes: Any) -> Bundle:
    """Writes the toy comparator's bundle, with the five grey anchors unless others are given."""
    graphs = folder.with_name(folder.name + "-graphs")
    write_toy_graphs(graphs)
    return write_bundle(folder, toy_manifest(**changes), graphs, anchors or toy_anchors())


def gray_image(path: Path, gray: int, size: int = 16) -> Path:
    """Writes a picture of one grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (gray,) * 3).save(path)
    return path


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy bundle's folder, to read only."""
    return write_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle").path
