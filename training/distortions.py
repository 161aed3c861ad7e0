"""Synthetic distortions of clean photographs: comparisons whose order is known by construction.

The types are those of TID2013 (Ponomarenko et al., 2015) and KADID-10k (Lin et al., 2019), in five strengths.
What people think of a type and strength comes from the two databases, too: their mean opinion over all
photographs orders strengths across types, where formulas for the difference of two images often fail.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Pixels = NDArray[np.float32]
"""RGB [H, W, 3], 0 to 255; distortions may leave that range, `distort` rounds and clips."""
STRENGTHS = 5
"""Strengths run from 1 (hardly seen in the mildest types) to STRENGTHS."""
CLEAN_OPINION = 4.65
"""Mean opinion, 1 to 5, of what KADID-10k's viewers could not tell from the clean photograph."""
TYPES_PER_PHOTOGRAPH = 3
FAINTEST = 1e-3
"""Deviation of noise that filtering has left nothing of: that of a single pixel."""
BT601 = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], dtype=np.float32
)
"""RGB to luma and two chroma channels, as in JPEG."""


def to_ycc(pixels: Pixels) -> Pixels:
    """Luma and chroma [H, W, 3] of RGB."""
    return np.asarray(pixels @ BT601.T)


def from_ycc(ycc: Pixels) -> Pixels:
    """RGB of luma and chroma [H, W, 3]."""
    return np.asarray(ycc @ np.linalg.inv(BT601).T.astype(np.float32))


def noise_like(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    """Gaussian noise of deviation 1 for every value."""
    return generator.standard_normal(pixels.shape, dtype=np.float32)


def blurred(pixels: Pixels, sigma: float) -> Pixels:
    """A Gaussian of `sigma` pixels over every channel."""
    return np.asarray(ndimage.gaussian_filter(pixels, (sigma, sigma, 0)))


def gaussian_noise(pixels: Pixels, deviation: float, generator: np.random.Generator) -> Pixels:
    """Adds independent noise to every value."""
    return pixels + deviation * noise_like(pixels, generator)


def color_noise(pixels: Pixels, deviation: float, generator: np.random.Generator) -> Pixels:
    """Adds more noise to chroma than to luma."""
    weights = np.array([0.4, 1, 1], dtype=np.float32)
    return from_ycc(to_ycc(pixels) + deviation * weights * noise_like(pixels, generator))


def correlated_noise(pixels: Pixels, deviation: float, generator: np.random.Generator) -> Pixels:
    """Adds noise whose neighbouring pixels are alike, as enlarged grain is."""
    noise = blurred(noise_like(pixels, generator), 1.2)
    return np.asarray(pixels + deviation * noise / max(noise.std(), FAINTEST), dtype=np.float32)


def high_frequency_noise(pixels: Pixels, deviation: float, generator: np.random.Generator) -> Pixels:
    """Adds noise without its low frequencies."""
    noise = noise_like(pixels, generator)
    noise -= blurred(noise, 1.0)
    return np.asarray(pixels + deviation * noise / max(noise.std(), FAINTEST), dtype=np.float32)


def impulse_noise(pixels: Pixels, share: float, generator: np.random.Generator) -> Pixels:
    """Sets a share of all values to black or white."""
    hit = generator.random(pixels.shape) < share
    return np.where(hit, 255 * generator.integers(0, 2, pixels.shape), pixels).astype(np.float32)


def multiplicative_noise(pixels: Pixels, deviation: float, generator: np.random.Generator) -> Pixels:
    """Scales every value by noise around 1: speckle."""
    return pixels * (1 + deviation * noise_like(pixels, generator))


def quantization(pixels: Pixels, levels: float, _: np.random.Generator) -> Pixels:
    """Rounds every value to one of so many levels."""
    step = np.float32(255 / (levels - 1))
    return np.asarray(np.rint(pixels / step) * step)


def gaussian_blur(pixels: Pixels, sigma: float, _: np.random.Generator) -> Pixels:
    """Blurs with a Gaussian of `sigma` pixels."""
    return blurred(pixels, sigma)


def lens_blur(pixels: Pixels, radius: float, _: np.random.Generator) -> Pixels:
    """Blurs with a disc of `radius` pixels, as a lens out of focus does."""
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1).astype(np.float32)
    return filtered(pixels, disc)


def motion_blur(pixels: Pixels, length: float, generator: np.random.Generator) -> Pixels:
    """Blurs along a line of `length` pixels in a random direction."""
    angle, reach = generator.uniform(0, np.pi), int(np.ceil(length / 2))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    line = np.clip(1 - np.abs(across), 0, 1) * np.clip(length / 2 + 0.5 - np.abs(along), 0, 1)
    return filtered(pixels, line.astype(np.float32))


def denoising(pixels: Pixels, deviation: float, generator: np.random.Generator) -> Pixels:
    """Adds noise and takes it away again with a median filter, details with it."""
    noisy = gaussian_noise(pixels, deviation, generator)
    return np.asarray(ndimage.median_filter(noisy, (3 if deviation < 20 else 5,) * 2 + (1,)))


def jpeg(pixels: Pixels, quality: float, _: np.random.Generator) -> Pixels:
    """Compresses as JPEG."""
    return recompressed(pixels, "JPEG", quality=int(quality))


def jpeg2000(pixels: Pixels, ratio: float, _: np.random.Generator) -> Pixels:
    """Compresses as JPEG 2000 to one part in `ratio`."""
    return recompressed(pixels, "JPEG2000", quality_mode="rates", quality_layers=[ratio])


def noisy_compression(pixels: Pixels, quality: float, generator: np.random.Generator) -> Pixels:
    """Compresses as JPEG what is noisy already."""
    return jpeg(gaussian_noise(pixels, 12, generator), quality, generator)


def transmission_errors(pixels: Pixels, share: float, generator: np.random.Generator) -> Pixels:
    """Loses a share of the 16-pixel rows of blocks from some column on; the last block is repeated there."""
    result, block = pixels.copy(), 16
    rows = generator.permutation(np.arange(0, pixels.shape[0], block))
    columns = block * generator.integers(1, max(2, pixels.shape[1] // block), len(rows))
    for top, left in list(zip(rows, columns, strict=True))[: max(1, round(share * len(rows)))]:
        last = result[top : top + block, left - block : left]
        lost = result[top : top + block, left:]
        lost[:] = np.tile(last, (1, -(-lost.shape[1] // block), 1))[:, : lost.shape[1]]
    return result


def downscaling(pixels: Pixels, factor: float, _: np.random.Generator) -> Pixels:
    """Shrinks so many times and enlarges again."""
    return resampled(pixels, factor, Image.Resampling.BICUBIC)


def pixelation(pixels: Pixels, factor: float, _: np.random.Generator) -> Pixels:
    """Shrinks so many times and repeats the pixels that are left."""
    return resampled(pixels, factor, Image.Resampling.NEAREST)


def desaturation(pixels: Pixels, kept: float, _: np.random.Generator) -> Pixels:
    """Keeps so much of the chroma."""
    return from_ycc(to_ycc(pixels) * np.array([1, kept, kept], dtype=np.float32))


def oversaturation(pixels: Pixels, factor: float, _: np.random.Generator) -> Pixels:
    """Multiplies the chroma."""
    return from_ycc(to_ycc(pixels) * np.array([1, factor, factor], dtype=np.float32))


def color_shift(pixels: Pixels, offset: float, generator: np.random.Generator) -> Pixels:
    """Moves one colour channel against the others by `offset` pixels."""
    angle = generator.uniform(0, 2 * np.pi)
    result = pixels.copy()
    moved = (offset * np.sin(angle), offset * np.cos(angle))
    result[..., 1] = ndimage.shift(pixels[..., 1], moved, order=1, mode="nearest")
    return result


def color_diffusion(pixels: Pixels, sigma: float, _: np.random.Generator) -> Pixels:
    """Blurs the chroma alone."""
    ycc = to_ycc(pixels)
    ycc[..., 1:] = blurred(ycc[..., 1:], sigma)
    return from_ycc(ycc)


def chromatic_aberration(pixels: Pixels, stretch: float, _: np.random.Generator) -> Pixels:
    """Enlarges red and shrinks blue around the centre, as a lens of one glass does."""
    result = pixels.copy()
    for channel, scale in ((0, 1 - stretch), (2, 1 + stretch)):
        sides = np.array(pixels.shape[:2])
        offset = (1 - scale) * (sides - 1) / 2
        result[..., channel] = ndimage.affine_transform(
            pixels[..., channel], [scale, scale], offset, order=1, mode="nearest"
        )
    return result


def color_quantization(pixels: Pixels, colors: float, _: np.random.Generator) -> Pixels:
    """Keeps so many colours, dithered."""
    palette = picture(pixels).quantize(int(colors), Image.Quantize.MEDIANCUT)
    dithered = picture(pixels).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    return np.asarray(dithered.convert("RGB"), dtype=np.float32)


def brightening(pixels: Pixels, amount: float, _: np.random.Generator) -> Pixels:
    """Lifts the shadows: a tone curve of exponent 1 / (1 + amount), and burns what is bright."""
    lifted = (pixels / 255) ** (1 / (1 + amount))
    return np.asarray(255 * (1 + amount / 4) * lifted, dtype=np.float32)


def darkening(pixels: Pixels, amount: float, _: np.random.Generator) -> Pixels:
    """Sinks the shadows: a tone curve of exponent 1 + amount."""
    return np.asarray(255 * (pixels / 255) ** (1 + amount), dtype=np.float32)


def mean_shift(pixels: Pixels, offset: float, generator: np.random.Generator) -> Pixels:
    """Adds or takes away an offset."""
    return pixels + offset * (1 if generator.random() < 0.5 else -1)


def low_contrast(pixels: Pixels, kept: float, _: np.random.Generator) -> Pixels:
    """Keeps so much of the difference from the mean."""
    mean = pixels.mean()
    return np.asarray(mean + kept * (pixels - mean), dtype=np.float32)


def sharpening(pixels: Pixels, amount: float, _: np.random.Generator) -> Pixels:
    """Adds so many times what a Gaussian blur takes away: halos and amplified noise."""
    return np.asarray(pixels + amount * (pixels - blurred(pixels, 1.0)), dtype=np.float32)


def block_loss(pixels: Pixels, share: float, generator: np.random.Generator) -> Pixels:
    """Paints blocks of 32 pixels in one colour each, over a share of the area."""
    result, block = pixels.copy(), 32
    area = pixels.shape[0] * pixels.shape[1] / block**2
    for _ in range(max(1, round(share * area))):
        top, left = (int(generator.integers(0, max(1, side - block))) for side in pixels.shape[:2])
        result[top : top + block, left : left + block] = generator.integers(0, 256, 3)
    return result


def displaced_patches(pixels: Pixels, share: float, generator: np.random.Generator) -> Pixels:
    """Replaces patches of 16 pixels by their neighbourhood, over a share of the area."""
    result, patch = pixels.copy(), 16
    area = pixels.shape[0] * pixels.shape[1] / patch**2
    for _ in range(max(1, round(share * area))):
        top, left = (int(generator.integers(0, max(1, side - patch))) for side in pixels.shape[:2])
        down, right = (
            int(np.clip(start + generator.integers(-patch, patch + 1), 0, max(0, side - patch)))
            for start, side in zip((top, left), pixels.shape[:2], strict=True)
        )
        source = pixels[down : down + patch, right : right + patch]
        result[top : top + patch, left : left + patch] = source
    return result


def jitter(pixels: Pixels, reach: float, generator: np.random.Generator) -> Pixels:
    """Moves every pixel by up to `reach` pixels."""
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    moved = [axis + generator.uniform(-reach, reach, axis.shape) for axis in (y, x)]
    channels = [ndimage.map_coordinates(pixels[..., c], moved, order=1, mode="nearest") for c in range(3)]
    return np.stack(channels, axis=-1)


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
    "gaussian_noise": Distortion(gaussian_noise, (8, 11, 14, 18, 26), (3.87, 3.39, 3.06, 2.71, 2.30)),
    "color_noise": Distortion(color_noise, (4, 6, 10, 16, 26), (4.47, 3.67, 3.16, 2.70, 2.37)),
    "correlated_noise": Distortion(
        correlated_noise, (6, 9, 13, 18, 25), on_kadid_scale(4.76, 4.24, 3.71, 3.20, 2.70)
    ),
    "high_frequency_noise": Distortion(
        high_frequency_noise, (6, 10, 16, 25, 40), on_kadid_scale(5.89, 5.64, 5.12, 4.16, 3.23)
    ),
    "impulse_noise": Distortion(
        impulse_noise, (0.003, 0.008, 0.015, 0.03, 0.06), (3.58, 2.95, 2.62, 2.32, 2.15)
    ),
    "multiplicative_noise": Distortion(
        multiplicative_noise, (0.04, 0.07, 0.1, 0.14, 0.22), (4.39, 3.58, 3.06, 2.63, 2.11)
    ),
    "quantization": Distortion(
        quantization, (20, 14, 10, 7, 4), on_kadid_scale(5.25, 4.69, 4.11, 3.47, 2.83)
    ),
    # Blurs.
    "gaussian_blur": Distortion(gaussian_blur, (0.5, 0.8, 1.3, 2.2, 4.5), (4.5, 4.0, 2.91, 1.87, 1.30)),
    "lens_blur": Distortion(lens_blur, (1, 2, 4, 6, 8), (3.86, 2.64, 1.75, 1.44, 1.30)),
    "motion_blur": Distortion(motion_blur, (2, 4, 7, 11, 18), (4.61, 4.10, 2.87, 2.19, 1.66)),
    "denoising": Distortion(denoising, (8, 14, 22, 32, 45), (3.66, 2.73, 2.19, 1.65, 1.46)),
    # Compression and transmission.
    "jpeg": Distortion(jpeg, (43, 30, 18, 9, 4), (4.35, 4.24, 3.70, 2.30, 1.35)),
    "jpeg2000": Distortion(jpeg2000, (16, 32, 55, 100, 180), (4.55, 4.21, 3.40, 2.40, 1.38)),
    "noisy_compression": Distortion(
        noisy_compression, (60, 40, 25, 14, 7), on_kadid_scale(5.52, 5.00, 4.33, 3.53, 2.50)
    ),
    "transmission_errors": Distortion(
        transmission_errors, (0.03, 0.08, 0.17, 0.3, 0.5), on_kadid_scale(5.74, 5.41, 4.61, 3.88, 2.97)
    ),
    # Resampling.
    "downscaling": Distortion(
        downscaling, (1.4, 1.9, 2.7, 4, 7), on_kadid_scale(5.77, 5.10, 3.99, 2.62, 0.96)
    ),
    "pixelation": Distortion(pixelation, (1.3, 2, 3, 5, 9), (3.87, 3.07, 2.87, 2.50, 1.49)),
    # Colour.
    "desaturation": Distortion(
        desaturation, (0.6, 0.4, 0.2, 0.1, 0.0), on_kadid_scale(5.06, 4.66, 4.23, 3.93, 3.69)
    ),
    "oversaturation": Distortion(oversaturation, (1.5, 2, 3, 4.5, 7), (4.57, 3.33, 2.66, 1.83, 1.53)),
    "color_shift": Distortion(color_shift, (1, 2, 4, 7, 12), (4.21, 3.20, 2.53, 1.92, 1.84)),
    "color_diffusion": Distortion(color_diffusion, (3, 6, 10, 16, 26), (4.49, 2.63, 1.78, 1.62, 1.41)),
    "chromatic_aberration": Distortion(
        chromatic_aberration,
        (0.002, 0.004, 0.008, 0.014, 0.024),
        on_kadid_scale(6.11, 5.88, 5.19, 4.41, 3.01),
    ),
    "color_quantization": Distortion(color_quantization, (64, 40, 24, 14, 8), (4.10, 3.95, 3.72, 3.23, 2.45)),
    # Tone.
    "brightening": Distortion(brightening, (0.15, 0.3, 0.6, 1.0, 1.6), (4.50, 4.27, 3.60, 2.68, 1.79)),
    "darkening": Distortion(darkening, (0.15, 0.3, 0.6, 1.1, 2.0), (4.59, 4.53, 4.23, 3.55, 2.24)),
    "mean_shift": Distortion(mean_shift, (15, 28, 42, 58, 80), on_kadid_scale(6.08, 6.07, 5.64, 5.34, 4.66)),
    "low_contrast": Distortion(
        low_contrast, (0.8, 0.65, 0.5, 0.36, 0.22), on_kadid_scale(5.63, 5.20, 4.48, 3.90, 3.45)
    ),
    "sharpening": Distortion(sharpening, (1, 2, 3.5, 6, 12), (3.58, 2.64, 2.13, 1.61, 1.34)),
    # Parts of the image.
    "block_loss": Distortion(block_loss, (0.01, 0.02, 0.04, 0.07, 0.12), (2.68, 2.35, 2.30, 2.13, 2.04)),
    "displaced_patches": Distortion(
        displaced_patches, (0.03, 0.06, 0.1, 0.16, 0.25), (4.35, 3.91, 3.75, 3.43, 3.26)
    ),
    "jitter": Distortion(jitter, (0.5, 0.9, 1.5, 2.5, 4), (4.42, 4.10, 3.22, 1.86, 1.34)),
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


def picture(pixels: Pixels) -> Image.Image:
    """RGB image of pixels, rounded and clipped."""
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def filtered(pixels: Pixels, kernel: Pixels) -> Pixels:
    """Every channel convolved with a kernel, scaled to sum 1."""
    return np.asarray(ndimage.convolve(pixels, (kernel / kernel.sum())[..., None], mode="nearest"))


def resampled(pixels: Pixels, factor: float, enlarge: Image.Resampling) -> Pixels:
    """Shrunk by a box filter and enlarged again."""
    photo = picture(pixels)
    small = photo.resize(
        (max(1, round(photo.width / factor)), max(1, round(photo.height / factor))), Image.Resampling.BOX
    )
    return np.asarray(small.resize(photo.size, enlarge), dtype=np.float32)


def recompressed(pixels: Pixels, container: str, **options: object) -> Pixels:
    """Encoded and decoded again."""
    buffer = io.BytesIO()
    picture(pixels).save(buffer, container, **options)
    return np.asarray(Image.open(buffer).convert("RGB"), dtype=np.float32)


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
