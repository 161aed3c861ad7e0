"""The scorer on a comparator in torch, against the same comparator's exported graphs in ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from compare2score import Scorer
from compare2score.anchors.precompute import precompute_anchors
from compare2score.comparator import load_comparator
from compare2score.comparator.comparator import Comparator
from compare2score.comparator.torch_backend import TorchBackend
from compare2score.export.exporter import export_bundle

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def pictures(texture, tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(6):
        Image.fromarray(texture(seed)).save(folder / f"{seed}.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("comparison", ["late", "causal"])
def test_scores_equal_those_of_the_exported_graphs(tiny_comparator, pictures, tmp_path, comparison):
    comparator: Comparator = tiny_comparator(comparison)
    exported = export_bundle(comparator, tmp_path / "bundle", "fp32", pictures[:4]).bundle
    backend = TorchBackend(comparator)
    anchors = precompute_anchors(backend.bundle, pictures[:4], backend)
    original = Scorer(replace(backend.bundle, anchors=anchors), backend=backend)
    np.testing.assert_allclose(anchors.matrix, exported.anchors.matrix, atol=1e-5)
    for in_torch, in_onnx in zip(
        original.score_many(pictures), Scorer(exported).score_many(pictures), strict=True
    ):
        assert in_torch.q == pytest.approx(in_onnx.q, abs=1e-4)
        assert in_torch.probabilities == pytest.approx(in_onnx.probabilities, abs=1e-5)


def test_its_bundle_says_what_the_exported_one_says(tiny_comparator, pictures, tmp_path):
    comparator = tiny_comparator()
    exported = export_bundle(comparator, tmp_path / "bundle", "fp32", pictures[:2]).bundle.manifest
    manifest = TorchBackend(comparator).bundle.manifest
    assert replace(manifest, precision="", notes={}) == replace(exported, precision="", notes={})
    assert TorchBackend(comparator).name.startswith("torch 2.")


def test_weights_of_half_precision_are_run_as_they_are(owl_checkpoint, pictures):
    whole, half = (TorchBackend(load_comparator(owl_checkpoint, dtype)) for dtype in (None, torch.bfloat16))
    pixels = np.stack([Scorer(whole.bundle, backend=whole).pixels(path) for path in pictures])
    in_whole, in_half = (b.compare(b.encode(pixels), b.prefix(b.encode(pixels[:3]))) for b in (whole, half))
    assert half.bundle.manifest.precision == "bfloat16"
    assert in_half.dtype == np.float32
    assert 0 < np.abs(in_half - in_whole).max() < 0.1 * np.abs(in_whole).max()
