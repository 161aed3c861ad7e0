"""The order of distorted versions, on methods whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.stats import kendalltau

from compare2score.benchmarks.distorted import clean_preferred, pairs_right, scored_versions, summary
from compare2score.benchmarks.tables import accuracy_targets
from compare2score.training.distortions import DISTORTIONS, STRENGTHS, UNSEEN

NAMES = list(DISTORTIONS)


@pytest.fixture
def photographs(tmp_path, texture):
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for i, path in enumerate(paths):
        Image.fromarray(texture(i, 64)).save(path)
    return paths


def test_brightness_orders_what_changes_it_and_says_nothing_of_noise(photographs):
    def methods(images):
        light = np.array([image.mean() for image in images])
        return np.stack([light, -light])

    light, dark = scored_versions(photographs, methods)
    assert light.shape == (2, len(NAMES), 1 + STRENGTHS)
    found = {
        name: (p, c) for name, p, c in zip(NAMES, pairs_right(light), clean_preferred(light), strict=True)
    }
    assert found["darkening"] == (1, 1)
    assert found["brightening"] == (0, 0)
    opposite = dict(zip(NAMES, pairs_right(dark), strict=True))
    assert (opposite["darkening"], opposite["brightening"]) == (0, 1)
    assert 0 < found["gaussian_noise"][0] < 1
    # The clean photograph is the same one for every type.
    assert (light[:, :, 0] == light[:, :1, 0]).all()


def test_pairs_right_is_kendalls_tau_from_zero_to_one():
    scores = np.random.default_rng(0).normal(size=(3, 4, 1 + STRENGTHS))
    strengths = np.arange(STRENGTHS)
    expected = [
        np.mean([(1 + kendalltau(-strengths, photo[t, 1:]).statistic) / 2 for photo in scores])
        for t in range(4)
    ]
    assert pairs_right(scores) == pytest.approx(expected)


def test_a_tie_is_half_right():
    assert pairs_right(np.zeros((1, 2, 1 + STRENGTHS))).tolist() == [0.5, 0.5]


def test_only_unseen_types_count_as_unseen():
    right = np.linspace(5, 0, 1 + STRENGTHS)
    scores = np.stack([right if name in UNSEEN else -right for name in NAMES])[None]
    found = summary(scores)
    assert found["unseen_pairs_right"] == 1
    assert found["clean_preferred"] == pytest.approx(len(UNSEEN) / len(NAMES))
    assert found["types"]["jpeg"] == {"unseen": False, "pairs_right": 0, "clean_preferred": 0}


def test_a_missed_target_is_called_missed():
    methods = {"comparator": {"srcc": 0.86}, "ridge": {"srcc": 0.8}, "kernel ridge": {"srcc": 0.85}}
    shares = {
        "comparator": {"unseen_pairs_right": 0.96, "clean_preferred": 0.9},
        "ridge": {"unseen_pairs_right": 0.7, "clean_preferred": 0.95},
    }
    tables = {"biq2021": {"split": "test", "methods": methods}, "other": {"split": "test", "methods": {}}}
    table = accuracy_targets({"results": {"tables": tables, "distortions": {"methods": shares}}})
    rows = [line.split(" | ") for line in table.splitlines()[2:]]
    assert [row[2:4] for row in rows] == [["0.860", "missed"], ["0.960", "met"], ["0.900", "missed"]]
    assert "0.850, kernel ridge" in rows[0][4]
