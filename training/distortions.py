"""Synthetic distortions of clean photographs: comparisons whose order is known by construction.

The types are those of TID2013 (Ponomarenko et al., 2015) and KADID-10k (Lin et al., 2019), in five strengths.
What people think of a type and strength comes from the two databases, too: their mean opinion over all
photographs orders strengths across types, where formulas for the difference of two images often fail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compare2score.training import distortion_types as types
from compare2score.training.distortion_types import Pixels

STRENGTHS = 5
"""Strengths run from 1 (hardly seen in the mildest types) to STRENGTHS."""
CLEAN_OPINION = 4.65
"""Mean opinion, 1 to 5, of what KADID-10k's viewers could not tell from the clean photograph."""
TYPES_PER_PHOTOGRAPH = 5


@dataclass(frozen=True)
class Distortion:
    """A type of distortion.

    Attributes:
        apply: distorts RGB pixels by an amount, with a generator of random numbers.
        amounts: the amount of every strength.
        opinions: mean opinion of every strength, 1 to 5, non-increasing.
    """

    apply: Callable[[Pixels, float, np.random.Generator], Pixels]
    amounts: tuple[float, ...]
    opinions: tuple[float, ...]


def on_kadid_scale(*tid_opinions: float) -> tuple[float, ...]:
    """TID2013's mean opinions, 1 to 6.2 for the worst and the hardly visible, on KADID-10k's scale."""
    return tuple(1 + (opinion - 1) * (CLEAN_OPINION - 1) / 5.2 for opinion in tid_opinions)


DISTORTIONS: dict[str, Distortion] = {
    # Noises.
    "gaussian_noise": Distortion(types.gaussian_noise, (8, 11, 14, 18, 26), (3.87, 3.39, 3.06, 2.71, 2.30)),
    "color_noise": Distortion(types.color_noise, (4, 6, 10, 16, 26), (4.47, 3.67, 3.16, 2.70, 2.37)),
    "correlated_noise": Distortion(
        types.correlated_noise, (6, 9, 13, 18, 25), on_kadid_scale(4.76, 4.24, 3.71, 3.20, 2.70)
    ),
    "high_frequency_noise": Distortion(
        types.high_frequency_noise, (6, 10, 16, 25, 40), on_kadid_scale(5.89, 5.64, 5.12, 4.16, 3.23)
    ),
    "masked_noise": Distortion(
        types.masked_noise, (5, 8, 12, 18, 28), on_kadid_scale(5.92, 5.79, 5.51, 5.09, 4.48)
    ),
    "impulse_noise": Distortion(
        types.impulse_noise, (0.003, 0.008, 0.015, 0.03, 0.06), (3.58, 2.95, 2.62, 2.32, 2.15)
    ),
    "multiplicative_noise": Distortion(
        types.multiplicative_noise, (0.04, 0.07, 0.1, 0.14, 0.22), (4.39, 3.58, 3.06, 2.63, 2.11)
    ),
    "quantization": Distortion(
        types.quantization, (20, 14, 10, 7, 4), on_kadid_scale(5.25, 4.69, 4.11, 3.47, 2.83)
    ),
    # Blurs.
    "gaussian_blur": Distortion(types.gaussian_blur, (0.5, 0.8, 1.3, 2.2, 4.5), (4.5, 4.0, 2.91, 1.87, 1.30)),
    "lens_blur": Distortion(types.lens_blur, (1, 2, 4, 6, 8), (3.86, 2.64, 1.75, 1.44, 1.30)),
    "motion_blur": Distortion(types.motion_blur, (2, 4, 7, 11, 18), (4.61, 4.10, 2.87, 2.19, 1.66)),
    "denoising": Distortion(types.denoising, (8, 14, 22, 32, 45), (3.66, 2.73, 2.19, 1.65, 1.46)),
    # Compression and transmission.
    "jpeg": Distortion(types.jpeg, (43, 30, 18, 9, 4), (4.35, 4.24, 3.70, 2.30, 1.35)),
    "jpeg2000": Distortion(types.jpeg2000, (16, 32, 55, 100, 180), (4.55, 4.21, 3.40, 2.40, 1.38)),
    "noisy_compression": Distortion(
        types.noisy_compression, (60, 40, 25, 14, 7), on_kadid_scale(5.52, 5.00, 4.33, 3.53, 2.50)
    ),
    "comfort_noise": Distortion(
        types.comfort_noise, (0.3, 0.45, 0.6, 0.8, 1.0), on_kadid_scale(5.88, 5.55, 5.01, 4.17, 3.31)
    ),
    "wavelet_errors": Distortion(
        types.wavelet_errors, (0.02, 0.05, 0.1, 0.2, 0.4), on_kadid_scale(4.89, 4.19, 3.62, 2.97, 2.60)
    ),
    "transmission_errors": Distortion(
        types.transmission_errors, (0.03, 0.08, 0.17, 0.3, 0.5), on_kadid_scale(5.74, 5.41, 4.61, 3.88, 2.97)
    ),
    # Resampling.
    "downscaling": Distortion(
        types.downscaling, (1.4, 1.9, 2.7, 4, 7), on_kadid_scale(5.77, 5.10, 3.99, 2.62, 0.96)
    ),
    "pixelation": Distortion(types.pixelation, (1.3, 2, 3, 5, 9), (3.87, 3.07, 2.87, 2.50, 1.49)),
    # Colour.
    "desaturation": Distortion(
        types.desaturation, (0.6, 0.4, 0.2, 0.1, 0.0), on_kadid_scale(5.06, 4.66, 4.23, 3.93, 3.69)
    ),
    "oversaturation": Distortion(types.oversaturation, (1.5, 2, 3, 4.5, 7), (4.57, 3.33, 2.66, 1.83, 1.53)),
    "color_shift": Distortion(types.color_shift, (1, 2, 4, 7, 12), (4.21, 3.20, 2.53, 1.92, 1.84)),
    "color_diffusion": Distortion(types.color_diffusion, (3, 6, 10, 16, 26), (4.49, 2.63, 1.78, 1.62, 1.41)),
    "chromatic_aberration": Distortion(
        types.chromatic_aberration,
        (0.002, 0.004, 0.008, 0.014, 0.024),
        on_kadid_scale(6.11, 5.88, 5.19, 4.41, 3.01),
    ),
    "color_quantization": Distortion(
        types.color_quantization, (64, 40, 24, 14, 8), (4.10, 3.95, 3.72, 3.23, 2.45)
    ),
    # Tone.
    "brightening": Distortion(types.brightening, (0.15, 0.3, 0.6, 1.0, 1.6), (4.50, 4.27, 3.60, 2.68, 1.79)),
    "darkening": Distortion(types.darkening, (0.15, 0.3, 0.6, 1.1, 2.0), (4.59, 4.53, 4.23, 3.55, 2.24)),
    "mean_shift": Distortion(
        types.mean_shift, (15, 28, 42, 58, 80), on_kadid_scale(6.08, 6.07, 5.64, 5.34, 4.66)
    ),
    "low_contrast": Distortion(
        types.low_contrast, (0.8, 0.65, 0.5, 0.36, 0.22), on_kadid_scale(5.63, 5.20, 4.48, 3.90, 3.45)
    ),
    "sharpening": Distortion(types.sharpening, (1, 2, 3.5, 6, 12), (3.58, 2.64, 2.13, 1.61, 1.34)),
    # Parts of the image.
    "block_loss": Distortion(
        types.block_loss, (0.01, 0.02, 0.04, 0.07, 0.12), (2.68, 2.35, 2.30, 2.13, 2.04)
    ),
    "displaced_patches": Distortion(
        types.displaced_patches, (0.03, 0.06, 0.1, 0.16, 0.25), (4.35, 3.91, 3.75, 3.43, 3.26)
    ),
    "jitter": Distortion(types.jitter, (0.5, 0.9, 1.5, 2.5, 4), (4.42, 4.10, 3.22, 1.86, 1.34)),
}

UNSEEN = (
    "high_frequency_noise",
    "lens_blur",
    "transmission_errors",
    "oversaturation",
    "chromatic_aberration",
    "block_loss",
)
"""Types never trained on, so that what is said of them holds for other unknown ones."""
TRAINED = tuple(name for name in DISTORTIONS if name not in UNSEEN)


def split_photographs(folder: Path) -> tuple[list[Path], list[Path]]:
    """Photographs of a folder for training, and every sixth of them (by name) held out for checks."""
    photos = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    held_out = photos[::6]
    return [path for i, path in enumerate(photos) if i % 6], held_out


def opinion(name: str, strength: int) -> float:
    """Mean opinion of a distortion at a strength, 1 to 5; of a clean photograph for the name ""."""
    return DISTORTIONS[name].opinions[strength - 1] if name else CLEAN_OPINION


def versions_of(index: int, seed: int) -> list[tuple[str, int]]:
    """The versions of photograph `index` to train on: the clean one ("", 0), and types in two strengths each.

    Types and strengths rotate over the photographs, so that all combinations occur about equally often.
    """
    versions = [("", 0)]
    for k in range(TYPES_PER_PHOTOGRAPH):
        turn = index * TYPES_PER_PHOTOGRAPH + k + seed
        name, round_ = TRAINED[turn % len(TRAINED)], turn // len(TRAINED)
        mild = 1 + round_ % (STRENGTHS - 1)
        severe = mild + 1 + (round_ // (STRENGTHS - 1)) % (STRENGTHS - mild)
        versions += [(name, mild), (name, severe)]
    return versions


def distort(pixels: NDArray[np.uint8], name: str, strength: int, seed: int) -> NDArray[np.uint8]:
    """Applies a named distortion to RGB pixels [H, W, 3]; the name "" returns them as they are."""
    if not name:
        return pixels
    kind = DISTORTIONS[name]
    generator = np.random.default_rng(seed)
    distorted = kind.apply(pixels.astype(np.float32), kind.amounts[strength - 1], generator)
    return np.clip(np.rint(distorted), 0, 255).astype(np.uint8)
