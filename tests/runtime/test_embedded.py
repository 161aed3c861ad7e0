"""The bundle inside the package scores real photographs, with the lean runtime alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from compare2score import ImageError, Score, Scorer, map_estimate, open_bundle
from compare2score.adaptive import Stopping

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT / "examples" / "photos"
BAD_IMAGES = ROOT.parent / "shared" / "bad_images"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer()


@pytest.mark.parametrize(
    ("clean", "distorted"),
    [
        ("astronaut.jpg", "astronaut_jpeg10.jpg"),
        ("cat.jpg", "cat_noisy.jpg"),
        ("coffee.jpg", "coffee_blurred.jpg"),
    ],
)
def test_a_photograph_beats_its_distorted_version(scorer, clean, distorted):
    better, worse = scorer.score(PHOTOS / clean), scorer.score(PHOTOS / distorted)
    assert better.value > worse.value + 3
    assert 0 < worse.value < better.value < 100
    assert 0 < better.std < 1
    assert scorer.compare(PHOTOS / distorted, PHOTOS / clean).probability > 0.5


def test_anchors_chosen_by_people_rise_in_the_comparators_eyes(scorer):
    matrix = scorer.anchors.matrix
    assert len(matrix) == 5
    np.testing.assert_allclose(matrix + matrix.T, 1, atol=1e-12)
    # People's order, but for neighbours.
    assert spearmanr(matrix.mean(axis=1), np.arange(5)).statistic > 0.85


def test_scoring_loads_neither_torch_nor_transformers_nor_onnx_nor_scipy():
    code = (
        "import sys, json; from compare2score import Scorer; Scorer().score(sys.argv[1]);"
        "heavy = ('torch', 'transformers', 'onnx', 'scipy');"
        "print(json.dumps([name for name in heavy if name in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(PHOTOS / "cat.jpg")], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []


def test_the_bundle_is_small_enough_to_ship():
    sizes = [path.stat().st_size for path in open_bundle().path.iterdir()]
    assert sum(sizes) <= 80 * MEGABYTE
    assert max(sizes) <= 50 * MEGABYTE


def test_a_score_does_not_depend_on_its_neighbours(scorer):
    photos = sorted(PHOTOS.glob("*.jpg"))
    alone = np.array([scorer.score(photo).q for photo in photos])
    for order, batch in ((photos, 7), (photos[::-1], 3), (photos, 2)):
        together = np.array([score.q for score in scorer.score_many(order, batch)])
        np.testing.assert_allclose(together if order is photos else together[::-1], alone, atol=1e-5)


def test_stored_prefixes_in_one_call_answer_like_one_anchor_at_a_time(scorer):
    # The plain way: the anchor's prefix is made anew from its tokens, and each comparison is a call.
    anchors = scorer.anchors
    tokens = scorer.backend.encode(np.stack([scorer.pixels(PHOTOS / "coffee.jpg")]))
    together = scorer.preferences(tokens, anchors.prefix)[0]
    plain = [
        scorer.preferences(tokens, scorer.backend.prefix(anchors.visual_tokens[place : place + 1]))[0, 0]
        for place in range(len(anchors.names))
    ]
    np.testing.assert_allclose(together, plain, rtol=0, atol=1e-5)
    score = scorer.score(PHOTOS / "coffee.jpg")
    np.testing.assert_allclose(score.probabilities, plain, rtol=0, atol=1e-5)
    # The definition of the preference matrix, written out.
    matrix = np.full((6, 6), 0.5)
    matrix[:5, :5] = anchors.matrix
    matrix[5, :5], matrix[:5, 5] = plain, 1 - np.array(plain)
    assert score.q == pytest.approx(map_estimate(matrix[None]).q[0, -1], abs=1e-5)


def test_adaptive_anchors_that_ask_all_give_the_full_score(scorer):
    every = Scorer(anchors="adaptive", stopping=Stopping(tolerance=0))
    full, found = scorer.score(PHOTOS / "cat.jpg"), every.score(PHOTOS / "cat.jpg")
    assert found.comparisons == full.comparisons == 5
    assert found.q == pytest.approx(full.q, abs=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not BAD_IMAGES.is_dir(), reason="needs the hostile images beside the checkout")
def test_every_hostile_file_ends_as_a_score_or_an_error_and_harms_no_neighbour(scorer):
    good = PHOTOS / "coffee.jpg"
    hostile = sorted(path for path in BAD_IMAGES.iterdir() if path.name != "README.md")
    expected = scorer.score(good).q
    mixed = [path for i, bad in enumerate(hostile) for path in ((bad, good) if i % 10 == 0 else (bad,))]
    results = list(scorer.score_many(mixed))
    assert len(results) == len(mixed)
    assert all(isinstance(result, (Score, ImageError)) for result in results)
    neighbours = [result.q for result, path in zip(results, mixed, strict=True) if path == good]
    np.testing.assert_allclose(neighbours, expected, atol=1e-5)
