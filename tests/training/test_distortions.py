"""Distortions: ordered by strength, as strong as they say, spread evenly over the photographs."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from compare2score.training.distortions import (
    DISTORTIONS,
    STRENGTHS,
    distort,
    split_photographs,
    versions_of,
)


def error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean((a.astype(np.float64) - b) ** 2))


@pytest.mark.parametrize("name", DISTORTIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_each_strength_is_farther_from_the_photograph_than_the_one_before(name, seed, texture):
    photo = texture(seed, 160)[:, :120]
    versions = [distort(photo, name, strength, seed=3) for strength in range(1, STRENGTHS + 1)]
    assert all(version.shape == photo.shape and version.dtype == np.uint8 for version in versions)
    errors = [error(version, photo) for version in versions]
    assert errors[0] > 1
    assert all(b > 1.2 * a for a, b in pairwise(errors)), errors


def test_no_distortion_leaves_the_photograph_as_it_is(texture):
    photo = texture(0)
    assert np.array_equal(distort(photo, "", 0, seed=0), photo)


def test_noise_has_the_deviation_it_names_and_follows_the_seed():
    grey = np.full((128, 128, 3), 128, np.uint8)
    for strength, deviation in enumerate((8, 16, 28, 45), start=1):
        noisy = distort(grey, "white_noise", strength, seed=7)
        # Clipped at black and white, the strongest loses a little.
        assert (noisy.astype(float) - 128).std() == pytest.approx(deviation, rel=0.02)
        assert np.array_equal(noisy, distort(grey, "white_noise", strength, seed=7))
        assert not np.array_equal(noisy, distort(grey, "white_noise", strength, seed=8))


def test_blur_is_a_gaussian_of_the_deviation_it_names(texture):
    photo = texture(2, 128)
    for strength, deviation in enumerate((0.8, 1.4, 2.3, 3.6), start=1):
        expected = gaussian_filter(photo.astype(float), (deviation, deviation, 0), mode="nearest")
        blurred = distort(photo, "gaussian_blur", strength, seed=0)
        assert np.abs(blurred - expected).mean() < 1


def test_low_contrast_keeps_the_contrast_it_names(texture):
    photo = texture(3, 128)
    for strength, kept in enumerate((0.75, 0.55, 0.38, 0.22), start=1):
        faded = distort(photo, "low_contrast", strength, seed=0)
        assert faded.std() / photo.std() == pytest.approx(kept, rel=0.03)


def test_every_sixth_photograph_is_held_out(tmp_path):
    names = [f"{i:02}{suffix}" for i, suffix in enumerate([".jpg", ".JPEG", ".png", ".PNG"] * 4)]
    for name in [*names, "notes.txt", "photo.gif"]:
        (tmp_path / name).touch()
    training, held_out = split_photographs(tmp_path)
    assert [path.name for path in held_out] == [names[0], names[6], names[12]]
    assert set(training).isdisjoint(held_out)
    assert sorted(path.name for path in training + held_out) == names


def test_each_photograph_comes_clean_and_in_distinct_distortions():
    for index in range(20):
        versions = versions_of(index, seed=5)
        assert versions[0] == ("", 0)
        assert len({name for name, _ in versions}) == len(versions) == 4


@pytest.mark.parametrize("seed", [0, 11])
def test_types_and_strengths_occur_equally_often(seed):
    photographs = 2 * len(DISTORTIONS) * STRENGTHS // 3
    counts = Counter(version for i in range(photographs) for version in versions_of(i, seed)[1:])
    assert set(counts) == {(name, s) for name in DISTORTIONS for s in range(1, STRENGTHS + 1)}
    assert set(counts.values()) == {2}


def test_tiny_photographs_survive_every_distortion():
    pixel = np.asarray(Image.new("RGB", (1, 1), (200, 10, 30)))
    for name in DISTORTIONS:
        assert distort(pixel, name, STRENGTHS, seed=0).shape == (1, 1, 3)
