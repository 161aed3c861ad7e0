"""A label table of pictures blurred to known radii: what training should learn to order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter


def write_blurred_table(
    folder: Path,
    texture: Callable[[int], NDArray[np.uint8]],
    splits: Sequence[str],
    std: float = 5,
    first: int = 0,
) -> Path:
    """Writes pictures blurred by 0 to 3 pixels in a random order, and `labels.csv`; returns the folder.

    Args:
        folder: to write to; it exists.
        texture: the fixture of that name.
        splits: of the rows, one a picture.
        std: of every opinion; MOS is 100 less 30 a pixel.
        first: seed of the first picture and of the order.
    """
    radii = np.random.default_rng(first).permutation(np.linspace(0, 3, len(splits)))
    rows = ["image,mos,std,split"]
    for i, (radius, split) in enumerate(zip(radii.tolist(), splits, strict=True)):
        picture = Image.fromarray(texture(first + i)).filter(ImageFilter.GaussianBlur(radius))
        picture.save(folder / f"{i}.png")
        rows.append(f"{i}.png,{100 - 30 * radius},{std},{split}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder
