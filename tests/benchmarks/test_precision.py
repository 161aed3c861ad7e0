"""The ladder's measurement on the toy comparator, whose scores can be worked out on paper."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from compare2score import Scorer
from compare2score.benchmarks.precision import AsWritten, compile_check, graph_bytes, lowered, spaced
from compare2score.benchmarks.tables import precision as table
from compare2score.bundle import GRAPHS
from compare2score.export.calibration import Calibration

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from toy_bundle import gray_image, write_toy_bundle

PRECISIONS = ("fp32", "fp16", "int8", "int4", "fp8")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture(scope="module")
def ladder(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ladder")
    images = [gray_image(folder / f"{gray}.png", gray) for gray in (5, 128, 250)]
    calibration = Calibration(toy, images)
    return {name: lowered(toy, name, calibration, folder / name) for name in PRECISIONS}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_rung_scores_like_the_float_comparator(toy, ladder, precision):
    grays = [np.full((4, 4, 3), gray, np.uint8) for gray in (10, 60, 130, 240)]
    bundle = ladder[precision]
    exact = [score.q for score in Scorer(toy).score_many(grays)]
    got = [score.q for score in Scorer(bundle, backend=AsWritten(bundle)).score_many(grays)]
    assert np.abs(np.subtract(got, exact)).max() < 0.1
    assert bundle.manifest.precision == precision
    kind = np.float32 if precision == "fp32" else np.float16
    assert {array.dtype for array in bundle.anchors.prefix} == {np.dtype(kind)}


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
def test_the_compile_check_says_what_it_was_refused(ladder):
    fine = compile_check(ladder["fp16"])
    assert fine["builds_for"] == ["sm86", "sm89"]
    assert set(fine["engine_bytes"]) == set(GRAPHS)
    partly = compile_check(ladder["fp8"])
    assert "sm86" in partly["refused"]


def test_graph_bytes_are_of_what_scores_an_image(toy):
    sizes = {path.name: path.stat().st_size for path in toy.path.iterdir()}
    assert graph_bytes(toy) == sizes["vision.onnx"] + sizes["decoder.onnx"]


def test_images_are_evenly_spaced():
    paths = [Path(str(number)) for number in range(10)]
    assert spaced(paths, 5) == paths[::2]
    assert spaced(paths, 20) == paths


def test_the_table_has_a_row_a_precision_and_names_the_compile_check():
    row = {
        "precision": "fp8",
        "graph_bytes": 13_400_000,
        "srcc_with_fp32": 0.98765,
        "mean_q_change": 0.05,
        "q_deviation": 0.4,
        "builds_for": ["sm89"],
        "engine_bytes": {"vision": 3e6, "prefix": 9e6, "decoder": 2e6},
    }
    refused = {**row, "builds_for": [], "engine_bytes": {}}
    record = {"results": {"comparators": [{"model": "nano", "rows": [row, refused]}]}}
    text = table(record)
    assert "| nano | fp8 | 13.4 MB | 5.0 MB | 0.9877 | 0.05 | 12.5 % | sm89 |" in text
    assert text.splitlines()[-1].endswith("| none |")
    assert "compile check" in text.splitlines()[0]
