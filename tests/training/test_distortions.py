"""Distortions: ordered by strength, as strong as they say, spread evenly over the photographs."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from compare2score.training.distortion_types import to_ycc
from compare2score.training.distortions import (
    DISTORTIONS,
    STRENGTHS,
    TRAINED,
    TYPES_PER_PHOTOGRAPH,
    UNSEEN,
    distort,
    opinion,
    split_photographs,
    versions_of,
)


def error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean((a.astype(np.float64) - b) ** 2))


@pytest.mark.parametrize("name", DISTORTIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_each_strength_is_farther_from_the_photograph_than_the_one_before(name, seed, texture):
    photo = texture(seed, 320)[:, :240]
    versions = [distort(photo, name, strength, seed=3) for strength in range(1, STRENGTHS + 1)]
    assert all(version.shape == photo.shape and version.dtype == np.uint8 for version in versions)
    errors = [error(version, photo) for version in versions]
    assert errors[0] > 0.1
    assert all(b > a for a, b in pairwise(errors)), errors


def test_no_distortion_leaves_the_photograph_as_it_is(texture):
    photo = texture(0)
    assert np.array_equal(distort(photo, "", 0, seed=0), photo)


def test_noise_has_the_deviation_it_names_and_follows_the_seed():
    grey = np.full((128, 128, 3), 128, np.uint8)
    for name in ("gaussian_noise", "correlated_noise", "high_frequency_noise"):
        for strength, deviation in enumerate(DISTORTIONS[name].amounts, start=1):
            noisy = distort(grey, name, strength, seed=7)
            assert (noisy.astype(float) - 128).std() == pytest.approx(deviation, rel=0.03)
            assert np.array_equal(noisy, distort(grey, name, strength, seed=7))
            assert not np.array_equal(noisy, distort(grey, name, strength, seed=8))


def test_noises_differ_in_their_spectrum():
    grey = np.full((128, 128, 3), 128, np.uint8)

    def neighbours(name: str) -> float:
        noise = distort(grey, name, 3, seed=0)[..., 0].astype(float) - 128
        return float(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1])

    assert neighbours("correlated_noise") > 0.5
    assert abs(neighbours("gaussian_noise")) < 0.05
    assert neighbours("high_frequency_noise") < -0.1


def test_blur_is_a_gaussian_of_the_deviation_it_names(texture):
    photo = texture(2, 128)
    for strength, deviation in enumerate(DISTORTIONS["gaussian_blur"].amounts, start=1):
        rows = photo.astype(float)
        # Far from the borders, the weights of a Gaussian by its formula.
        reach = np.arange(-20, 21)
        weights = np.exp(-(reach**2) / (2 * deviation**2))
        weights /= weights.sum()
        middle = np.einsum("i,j,ijc->c", weights, weights, rows[44:85, 44:85])
        assert distort(photo, "gaussian_blur", strength, seed=0)[64, 64] == pytest.approx(middle, abs=1.5)


def test_low_contrast_keeps_the_contrast_it_names(texture):
    photo = texture(3, 128)
    for strength, kept in enumerate(DISTORTIONS["low_contrast"].amounts, start=1):
        faded = distort(photo, "low_contrast", strength, seed=0)
        assert faded.std() / photo.std() == pytest.approx(kept, rel=0.03)


@pytest.mark.parametrize("name", ["desaturation", "color_diffusion"])
def test_what_changes_colour_alone_leaves_the_luma(name, texture):
    photo = texture(4, 96) // 2 + 64  # clear of clipping
    changed = distort(photo, name, STRENGTHS, seed=0)
    luma = [to_ycc(image.astype(np.float32))[..., 0] for image in (photo, changed)]
    assert np.abs(luma[0] - luma[1]).max() < 1.5


def test_opinions_fall_with_strength_and_stay_below_the_clean_photograph():
    for name, kind in DISTORTIONS.items():
        assert len(kind.amounts) == len(kind.opinions) == STRENGTHS
        opinions = [opinion("", 0), *(opinion(name, s) for s in range(1, STRENGTHS + 1))]
        assert all(b <= a for a, b in pairwise(opinions)), name
        assert 0.9 < opinions[-1] < opinions[0]


def test_every_sixth_photograph_is_held_out(tmp_path):
    names = [f"{i:02}{suffix}" for i, suffix in enumerate([".jpg", ".JPEG", ".png", ".PNG"] * 4)]
    for name in [*names, "notes.txt", "photo.gif"]:
        (tmp_path / name).touch()
    training, held_out = split_photographs(tmp_path)
    assert [path.name for path in held_out] == [names[0], names[6], names[12]]
    assert set(training).isdisjoint(held_out)
    assert sorted(path.name for path in training + held_out) == names


def test_each_photograph_comes_clean_and_in_types_of_two_strengths_each():
    for index in range(200):
        versions = versions_of(index, seed=5)
        assert versions[0] == ("", 0)
        assert len(set(versions)) == len(versions) == 1 + 2 * TYPES_PER_PHOTOGRAPH
        for (mild, weak), (severe, strong) in zip(versions[1::2], versions[2::2], strict=True):
            assert mild == severe
            assert 1 <= weak < strong <= STRENGTHS


@pytest.mark.parametrize("seed", [0, 11])
def test_every_trained_type_comes_in_every_strength_and_no_other_does(seed):
    counts = Counter(version for i in range(250) for version in versions_of(i, seed)[1:])
    assert set(counts) == {(name, s) for name in TRAINED for s in range(1, STRENGTHS + 1)}
    assert set(TRAINED) | set(UNSEEN) == set(DISTORTIONS)
    assert not set(TRAINED) & set(UNSEEN)


def test_tiny_photographs_survive_every_distortion():
    pixel = np.asarray(Image.new("RGB", (1, 1), (200, 10, 30)))
    for name in DISTORTIONS:
        assert distort(pixel, name, STRENGTHS, seed=0).shape == (1, 1, 3)
