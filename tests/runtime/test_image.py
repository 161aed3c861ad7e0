"""Preprocessing meets the golden images to the byte."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compare2score.decode import load_image
from compare2score.errors import BundleError
from compare2score.image import ImageSpec, fit_square, normalize, preprocess

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "preprocess"
SPEC = ImageSpec(
    size=448,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    pad_color=(122, 116, 104),
)
RANDOM = np.random.default_rng(0)


# Preprocessing


@pytest.mark.parametrize("name", ["prep_384x512", "prep_700x301", "prep_97x33"])
def test_golden_images_are_fitted_to_the_byte(name):
    fitted = fit_square(load_image(GOLDEN / f"{name}.png"), SPEC)
    expected = np.asarray(Image.open(GOLDEN / f"{name}_expected.png"))
    np.testing.assert_array_equal(fitted, expected)
    wanted = (expected / 255 - np.array(SPEC.mean)) / np.array(SPEC.std)
    result = preprocess(GOLDEN / f"{name}.png", SPEC)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    np.testing.assert_allclose(result, wanted.transpose(2, 0, 1), atol=5e-7, rtol=0)


def reference_fit(image: np.ndarray, spec: ImageSpec) -> np.ndarray:
    height, width, _ = image.shape
    side = max(height, width)
    square = Image.new("RGB", (side, side), spec.pad_color)
    square.paste(Image.fromarray(image), ((side - width) // 2, (side - height) // 2))
    return np.asarray(square.resize((spec.size, spec.size), Image.Resampling.BICUBIC))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 7, 64, 224]), st.integers(0, 9))
def test_fitting_equals_padding_then_resizing(height, width, size, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    spec = ImageSpec(size, SPEC.mean, SPEC.std, SPEC.pad_color)
    np.testing.assert_array_equal(fit_square(image, spec), reference_fit(image, spec))


@pytest.mark.parametrize("shape", [(4000, 60), (60, 4000), (3000, 2999)])
def test_fitting_in_blocks_equals_padding_then_resizing(shape):
    image = RANDOM.integers(0, 256, (*shape, 3), np.uint8)
    np.testing.assert_array_equal(fit_square(image, SPEC), reference_fit(image, SPEC))


def test_a_portrait_too_high_to_pad_keeps_its_geometry():
    def ramp(height, width):
        rows = (np.arange(height) + 0.5) / height * 255
        return np.broadcast_to(rows[:, None, None], (height, width, 3)).astype(np.uint8)

    averaged = fit_square(ramp(16_000, 200), SPEC).astype(int)
    exact = fit_square(ramp(8_000, 100), SPEC).astype(int)
    assert abs(averaged - exact).max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 10_000), (10_000, 1), (1, 65_535)])
def test_elongated_and_tiny_images_are_scored(shape):
    fitted = fit_square(np.zeros((*shape, 3), np.uint8), SPEC)
    assert fitted.shape == (448, 448, 3)
    # A line one pixel wide fades as the square around it grows, and is gone at 1:65,535.
    assert (fitted[224, 224] < SPEC.pad_color).all() == (max(shape) < 65_535)
    if shape != (1, 1):
        assert (fitted[0, 0] == SPEC.pad_color).all()
        assert (fitted[-1, -1] == SPEC.pad_color).all()


def test_normalised_values_are_the_nearest_float32():
    spec = ImageSpec(16, SPEC.mean, SPEC.std, SPEC.pad_color)
    levels = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 3, axis=3)
    result = normalize(levels, spec)
    assert result.shape == (1, 3, 16, 16)
    for channel in range(3):
        for level, value in enumerate(result[0, channel].ravel()):
            exact = (Fraction(level, 255) - Fraction(spec.mean[channel])) / Fraction(spec.std[channel])
            assert abs(Fraction(float(value)) - exact) <= Fraction(float(np.spacing(abs(value)))) * Fraction(
                51, 100
            )


# The manifest's image spec


def test_a_spec_survives_json():
    assert ImageSpec.from_json(json.loads(json.dumps(SPEC.to_json()))) == SPEC


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("size", value) for value in (0, -1, 10**9, 448.0, True, "448", None)],
        *[
            ("mean", value)
            for value in (0.5, [0.5, 0.5], [0.5, 0.5, float("nan")], [0, 0, 2], [0, 0, "0"], {})
        ],
        *[("std", value) for value in ([0, 1, 1], [1, 1, -1], [1, 1, 10**400], [1, 1, float("inf")], None)],
        *[("pad_color", value) for value in ([0, 0, 256], [0, 0, -1], [0, 0, 0.5], [0, 0, True], "abc")],
        ("extra", 1),
    ],
)
def test_a_damaged_spec_is_refused(key, value):
    with pytest.raises(BundleError, match="image spec"):
        ImageSpec.from_json({**SPEC.to_json(), key: value})


@pytest.mark.parametrize("value", [None, [], "spec", {}, {"size": 448}])
def test_what_is_no_spec_is_refused(value):
    with pytest.raises(BundleError, match="image spec"):
        ImageSpec.from_json(value)
