"""Synthetic distortions of clean photographs: comparisons whose order is known by construction."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

Photograph = Image.Image
STRENGTHS = 4
"""Distortion strengths run from 1 (visible on a second look) to STRENGTHS (ruins the photograph)."""


def gaussian_blur(photo: Photograph, strength: int, _: np.random.Generator) -> Photograph:
    """Blurs with a Gaussian of 0.8, 1.4, 2.3, 3.6 pixels."""
    return photo.filter(ImageFilter.GaussianBlur((0.8, 1.4, 2.3, 3.6)[strength - 1]))


def white_noise(photo: Photograph, strength: int, generator: np.random.Generator) -> Photograph:
    """Adds Gaussian noise of deviation 8, 16, 28, 45 (of 255)."""
    pixels = np.asarray(photo, dtype=np.float32)
    noisy = pixels + generator.normal(0, (8, 16, 28, 45)[strength - 1], pixels.shape)
    return Image.fromarray(np.clip(noisy.round(), 0, 255).astype(np.uint8))


def jpeg(photo: Photograph, strength: int, _: np.random.Generator) -> Photograph:
    """Compresses as JPEG of quality 40, 22, 12, 7."""
    return compressed(photo, "JPEG", quality=(40, 22, 12, 7)[strength - 1])


def webp(photo: Photograph, strength: int, _: np.random.Generator) -> Photograph:
    """Compresses as WebP of quality 40, 18, 6, 0."""
    return compressed(photo, "WEBP", quality=(40, 18, 6, 0)[strength - 1], method=2)


def downscaling(photo: Photograph, strength: int, _: np.random.Generator) -> Photograph:
    """Shrinks 1.6, 2.3, 3.5, 5 times and enlarges again."""
    factor = (1.6, 2.3, 3.5, 5.0)[strength - 1]
    small = photo.resize((max(1, round(photo.width / factor)), max(1, round(photo.height / factor))))
    return small.resize(photo.size, Image.Resampling.BICUBIC)


def low_contrast(photo: Photograph, strength: int, _: np.random.Generator) -> Photograph:
    """Keeps 0.75, 0.55, 0.38, 0.22 of the contrast."""
    return ImageEnhance.Contrast(photo).enhance((0.75, 0.55, 0.38, 0.22)[strength - 1])


DISTORTIONS: dict[str, Callable[[Photograph, int, np.random.Generator], Photograph]] = {
    function.__name__: function
    for function in (gaussian_blur, white_noise, jpeg, webp, downscaling, low_contrast)
}


def compressed(photo: Photograph, container: str, **options: int) -> Photograph:
    """Encodes and decodes again."""
    buffer = io.BytesIO()
    photo.save(buffer, container, **options)
    return Image.open(buffer).convert("RGB")


def split_photographs(folder: Path) -> tuple[list[Path], list[Path]]:
    """Photographs of a folder for training, and every sixth of them (by name) held out for checks."""
    photos = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    held_out = photos[::6]
    return [path for i, path in enumerate(photos) if i % 6], held_out


def versions_of(index: int, seed: int, types: int = 3) -> list[tuple[str, int]]:
    """The versions of photograph `index` to train on: the clean one ("", 0) and `types` distorted ones.

    Types and strengths rotate over the photographs, so that all combinations occur equally often.
    """
    names = tuple(DISTORTIONS)
    versions = [("", 0)]
    for k in range(types):
        turn = index * types + k + seed
        versions.append((names[turn % len(names)], 1 + (turn // len(names)) % STRENGTHS))
    return versions


def distort(pixels: NDArray[np.uint8], name: str, strength: int, seed: int) -> NDArray[np.uint8]:
    """Applies a named distortion to RGB pixels [H, W, 3]; the name "" returns them as they are."""
    if not name:
        return pixels
    photo = DISTORTIONS[name](Image.fromarray(pixels), strength, np.random.default_rng(seed))
    return np.asarray(photo, dtype=np.uint8)
