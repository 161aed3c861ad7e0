"""Photographs made from a seed, where a measurement needs some and is given none.

Their scores mean nothing; decoding them costs about what a photograph's does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 512
DISCS = 4000
QUALITY = 92
ANCHOR_BLURS = (4.0, 2.5, 1.5, 0.7, 0.0)
"""Radius by anchor, worst first, in pixels of a picture of 512."""
ANCHOR_NOISE = (30.0, 18.0, 10.0, 4.0, 0.0)
"""Deviation by anchor, of 255."""


def scene(seed: int, size: int = SIZE) -> Image.Image:
    """A picture [size, size] of overlapping discs, small ones far more frequent than large ones.

    Such "dead leaves" have a photograph's edges and its spectrum (Lee, Mumford and Huang, IJCV 2001).
    """
    generator = np.random.default_rng(seed)
    large = 2 * size  # drawn at twice the size, for soft edges
    picture = Image.new("RGB", (large, large), tuple(generator.integers(40, 216, 3).tolist()))
    draw = ImageDraw.Draw(picture)
    radii = large * np.clip(0.004 / np.sqrt(generator.uniform(1e-4, 1, DISCS)), 0.004, 0.3)
    centers = generator.uniform(0, large, (DISCS, 2))
    colors = generator.normal(128, 55, (DISCS, 1)) + generator.normal(0, 22, (DISCS, 3))
    for (x, y), radius, color in zip(centers, radii, np.clip(colors, 0, 255).astype(int), strict=True):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(color.tolist()))
    return picture.reduce(2)


def write_photograph(path: Path, seed: int = 0, size: int = SIZE) -> Path:
    """Writes a JPEG; returns its path."""
    scene(seed, size).save(path, "JPEG", quality=QUALITY)
    return path


def write_anchors(folder: Path, size: int = SIZE) -> list[Path]:
    """Writes five JPEGs, blurred and noisy in decreasing degree; returns their paths, worst first."""
    paths = []
    for number, (blur, noise) in enumerate(zip(ANCHOR_BLURS, ANCHOR_NOISE, strict=True)):
        soft = scene(100 + number, size).filter(ImageFilter.GaussianBlur(blur * size / SIZE))
        grain = np.random.default_rng(200 + number).normal(0, 1, (size, size, 3)) * noise
        pixels = np.clip(np.asarray(soft, dtype=np.float64) + grain, 0, 255).astype(np.uint8)
        path = folder / f"anchor-{number + 1}.jpg"
        Image.fromarray(pixels).save(path, "JPEG", quality=QUALITY)
        paths.append(path)
    return paths
