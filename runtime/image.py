"""The comparator's input: an image padded to a square, resized and normalised as a bundle's spec says."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from compare2score.decode import MAX_PIXELS, MAX_SIDE, ImageSource, check_array, load_image
from compare2score.errors import BundleError, ImageError

# Padding costs a portrait the square of its height in time.
MAX_PADDED_PIXELS = 150_000_000
_BLOCK_PIXELS = 8_000_000


@dataclass(frozen=True)
class ImageSpec:
    """The comparator's input: a square of `size` x `size` pixels, normalised channel by channel.

    `mean` and `std` apply to x / 255, in the order R, G, B; `pad_color` (0-255) fills the square around an
    image that is not one, in the published preprocessing int(255 * mean).
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pad_color: tuple[int, int, int]

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values, for a bundle's manifest; `from_json` reads it back unchanged."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> ImageSpec:
        """Read what `to_json` wrote; raises BundleError for anything else."""
        if not isinstance(value, dict) or set(value) != {"size", "mean", "std", "pad_color"}:
            raise BundleError(
                "The bundle's image spec is not size, mean, std and pad_color; export it again."
            )
        size = value["size"]
        if type(size) is not int or not 1 <= size <= 8192:
            raise BundleError("The bundle's image spec has a size outside 1 to 8192 pixels; export it again.")
        mean, std = _triple(value, "mean", float, 0, 1), _triple(value, "std", float, 1e-6, 1e6)
        return cls(size, mean, std, _triple(value, "pad_color", int, 0, 255))


def fit_square(image: npt.NDArray[np.uint8], spec: ImageSpec) -> npt.NDArray[np.uint8]:
    """Centre `image`, uint8 [H, W, 3], on a square of the pad colour and resize that to uint8 [S, S, 3].

    Equal to the byte to the reference: its expand2square (offset (long - short) // 2), then CLIP's resize
    (Pillow's bicubic). The square itself is never made: Pillow resizes rows first and rounds to bytes before
    it resizes columns, so the rows go through in blocks. A portrait so high (over 12,247 pixels) that its
    padded rows would exceed `MAX_PADDED_PIXELS` is first averaged over boxes of k x k pixels, k the smallest
    integer that avoids it; there alone the result is not the reference's.

    Raises ImageError: `unsupported` for another kind of array, `too_large` for a side over `MAX_SIDE`.
    """
    check_array(image, MAX_SIDE**2)
    side = max(image.shape[:2])
    factor = math.ceil(math.sqrt(len(image) * side / MAX_PADDED_PIXELS))
    if factor > 1:
        image = np.asarray(Image.fromarray(image).reduce(factor))
    height, width, _ = image.shape
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    strip = Image.new("RGB", (spec.size, side), spec.pad_color)
    rows = _BLOCK_PIXELS // side
    for start in range(0, height, rows):
        block = Image.fromarray(image[start : start + rows])
        if width < side:
            padded = Image.new("RGB", (side, block.height), spec.pad_color)
            padded.paste(block, (left, 0))
            block = padded
        resized = block.resize((spec.size, block.height), Image.Resampling.BICUBIC)
        strip.paste(resized, (0, top + start))
    return np.asarray(strip.resize((spec.size, spec.size), Image.Resampling.BICUBIC))


def normalize(fitted: npt.NDArray[np.uint8], spec: ImageSpec) -> npt.NDArray[np.float32]:
    """(x / 255 - mean) / std by channel: uint8 [..., S, S, 3] to contiguous float32 [..., 3, S, S].

    Every value is computed in float64 and rounded to float32 once. Raises ImageError (`unsupported`) for
    another kind of array.
    """
    if fitted.dtype != np.uint8 or fitted.shape[-3:] != (spec.size, spec.size, 3):
        wanted, given = f"uint8 [..., {spec.size}, {spec.size}, 3]", f"{fitted.dtype} {list(fitted.shape)}"
        raise ImageError("unsupported", f"Only {wanted} is normalised, not {given}; call fit_square first.")
    pixels = np.empty((*fitted.shape[:-3], 3, spec.size, spec.size), np.float32)
    for channel in range(3):
        table = (np.arange(256) / 255 - spec.mean[channel]) / spec.std[channel]
        np.take(table.astype(np.float32), fitted[..., channel], out=pixels[..., channel, :, :], mode="clip")
    return pixels


def preprocess(source: ImageSource, spec: ImageSpec, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.float32]:
    """The comparator's input for one image: `load_image`, `fit_square`, `normalize`; float32 [3, S, S]."""
    return normalize(fit_square(load_image(source, max_pixels), spec), spec)


def _triple(spec: dict[str, Any], key: str, kind: type, low: float, high: float) -> tuple[Any, Any, Any]:
    value: Any = spec[key] if isinstance(spec[key], (list, tuple)) else ()
    # JSON has one kind of number, so a whole one may stand for a float; true and false may not.
    if [type(number) in (kind, int) and low <= number <= high for number in value] == [True] * 3:
        return kind(value[0]), kind(value[1]), kind(value[2])
    wanted = f"three numbers from {low} to {high}"
    raise BundleError(f"The bundle's image spec has a {key} that is not {wanted}; export it again.")
