"""The reference loop computes what the scorer computes, the published way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy_bundle import write_toy_bundle

from compare2score import BundleError, Scorer, open_bundle
from compare2score.anchors.precompute import replace_anchors
from compare2score.benchmarks.photographs import write_anchors, write_photograph
from compare2score.benchmarks.reference import ReferenceLoop, extended, prepared, solve
from compare2score.benchmarks.weights import read_comparator
from compare2score.image import preprocess

GOLDEN = Path(__file__).parents[1] / "golden"

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_solver_stops_where_the_published_one_does():
    golden = np.load(GOLDEN / "map" / "map_golden.npz")
    found = [solve(extended(golden["anchor_matrix"], row)) for row in golden["probabilities"][::10]]
    np.testing.assert_allclose(found, golden["score_adam100_probit"][::10], atol=1e-3)


def test_the_solver_comes_near_the_maximum_but_does_not_reach_it():
    golden = np.load(GOLDEN / "map" / "map_golden.npz")
    matrix = extended(golden["anchor_matrix"], golden["probabilities"][0])
    for link in ("probit", "logit"):
        exact = golden[f"score_{link}"][0]
        assert abs(solve(matrix, link, steps=1000) - exact) < 0.1  # the least F keeps it off
        assert abs(solve(matrix, link) - exact) < 0.6


@pytest.fixture(params=["late", "causal"])
def tiny(request, exported):
    return exported(request.param)


def test_preprocessing_is_the_runtimes(tiny, photos):
    spec = tiny[1].manifest.image
    with Image.open(photos[1]) as image:
        wide = image.convert("RGB").crop((0, 0, 96, 61))
    np.testing.assert_allclose(prepared(wide, spec), preprocess(wide, spec), atol=1e-6)


def test_the_weights_read_from_the_graphs_are_the_comparators(tiny):
    comparator, bundle = tiny
    read = read_comparator(bundle)
    assert read.config.decoder == comparator.config.decoder
    assert read.config.stages == comparator.config.stages
    for name, values in comparator.state_dict().items():
        torch.testing.assert_close(read.state_dict()[name], values, rtol=0, atol=0)


def test_the_loop_finds_the_scorers_probabilities_and_score(tiny, photos):
    anchors, image = photos
    bundle = tiny[1]
    score = Scorer(bundle.path, scale="minmax").score(image)
    found = ReferenceLoop(read_comparator(bundle), anchors, bundle.anchors.matrix, vocabulary=300).score(
        image
    )
    assert np.ptp(score.probabilities) > 0.05
    np.testing.assert_allclose(found.probabilities, score.probabilities, atol=1e-3)
    assert found.value == pytest.approx(score.value, abs=1)


def test_the_loop_decodes_its_anchors_for_every_image(tiny, photos, tmp_path):
    bundle, image = tiny[1], photos[1]
    anchors = write_anchors(tmp_path, 96)
    loop = ReferenceLoop(tiny[0], anchors, bundle.anchors.matrix, vocabulary=300)
    before = loop.score(image).probabilities
    write_photograph(anchors[2], 77, 96)
    changed = np.not_equal(loop.score(image).probabilities, before)
    assert changed.tolist() == [False, False, True, False, False]


def test_the_whole_head_is_applied_to_the_whole_prompt(tiny, photos, monkeypatch):
    comparator, bundle = tiny
    loop = ReferenceLoop(comparator, photos[0], bundle.anchors.matrix, vocabulary=300)
    heads, encoded = [], []
    linear, encode = torch.nn.functional.linear, comparator.encode

    def watched(x, weight, bias=None):
        if weight is loop.head:
            heads.append(tuple(x.shape[:2]))
        return linear(x, weight, bias)

    monkeypatch.setattr("compare2score.benchmarks.reference.F.linear", watched)
    monkeypatch.setattr(comparator, "encode", lambda pixels: encoded.append(len(pixels)) or encode(pixels))
    loop.score(photos[1])
    length = sum(map(len, comparator.config.prompt_ids)) + 2 * (comparator.config.grid**2 + 1)
    assert heads == [(1, length)] * 5
    assert sum(encoded) == 10


def test_the_embedded_comparator_is_read_back_and_differs_by_its_rounding_alone(photos, tmp_path):
    anchors, image = photos
    bundle = replace_anchors(open_bundle(), anchors, tmp_path / "bundle")
    loop = ReferenceLoop(read_comparator(bundle), anchors, bundle.anchors.matrix)
    given = Scorer(bundle.path).score(image).probabilities
    np.testing.assert_allclose(loop.score(image).probabilities, given, atol=0.03)


def test_graphs_of_something_else_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(BundleError, match="give its checkpoint"):
        read_comparator(write_toy_bundle(tmp_path / "toy"))
