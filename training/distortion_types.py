"""What each type of distortion does to pixels, by an amount.

All take RGB pixels [H, W, 3] in float32, an amount and a generator of random numbers, which some do not need.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Pixels = NDArray[np.float32]
"""RGB [H, W, 3], 0 to 255; distortions may leave that range, `distort` rounds and clips."""
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


def scaled_noise(pixels: Pixels, noise: Pixels, deviation: float) -> Pixels:
    """Pixels and noise of any strength, scaled to a deviation."""
    return np.asarray(pixels + deviation * noise / max(noise.std(), FAINTEST), dtype=np.float32)


def local_deviation(details: Pixels) -> Pixels:
    """How much details, whose mean is zero, deviate around every pixel."""
    return np.asarray(np.sqrt(blurred(details**2, 3.0)))


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


def random_places(
    pixels: Pixels, side: int, share: float, generator: np.random.Generator
) -> Iterator[tuple[int, int]]:
    """Top and left of squares of `side` pixels, which cover a share of the area where they do not overlap."""
    area = pixels.shape[0] * pixels.shape[1] / side**2
    for _ in range(max(1, round(share * area))):
        top, left = (int(generator.integers(0, max(1, length - side))) for length in pixels.shape[:2])
        yield top, left


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
    return scaled_noise(pixels, noise, deviation)


def high_frequency_noise(pixels: Pixels, deviation: float, generator: np.random.Generator) -> Pixels:
    """Adds noise without its low frequencies."""
    noise = noise_like(pixels, generator)
    noise -= blurred(noise, 1.0)
    return scaled_noise(pixels, noise, deviation)


def masked_noise(pixels: Pixels, deviation: float, generator: np.random.Generator) -> Pixels:
    """Adds noise where the photograph is busy, which hides it, and little where it is smooth."""
    activity = local_deviation(pixels - blurred(pixels, 1.0))
    return scaled_noise(pixels, activity * noise_like(pixels, generator), deviation)


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


def comfort_noise(pixels: Pixels, share: float, generator: np.random.Generator) -> Pixels:
    """Replaces a share of the fine details by noise of their strength, as a codec does that saves bits."""
    coarse = blurred(pixels, 1.5)
    details = pixels - coarse
    noise = local_deviation(details) * noise_like(pixels, generator)
    return np.asarray(coarse + (1 - share) * details + share * noise, dtype=np.float32)


def wavelet_errors(pixels: Pixels, share: float, generator: np.random.Generator) -> Pixels:
    """Damages the details of a share of the squares of 32 pixels, coarse or fine ones.

    They are lost, inverted or amplified, as by wrong wavelet coefficients of JPEG 2000.
    """
    result, side = pixels.copy(), 32
    coarse = [blurred(pixels, sigma) for sigma in (2.0, 5.0, 10.0)]
    corners = [(y, x) for y in range(0, pixels.shape[0], side) for x in range(0, pixels.shape[1], side)]
    for corner in generator.permutation(corners)[: max(1, round(share * len(corners)))]:
        place = tuple(slice(start, start + side) for start in corner)
        kept = coarse[int(generator.integers(len(coarse)))][place]
        result[place] = kept + generator.choice((0.0, -1.0, 2.5)) * (pixels[place] - kept)
    return result


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
    for top, left in random_places(pixels, block, share, generator):
        result[top : top + block, left : left + block] = generator.integers(0, 256, 3)
    return result


def displaced_patches(pixels: Pixels, share: float, generator: np.random.Generator) -> Pixels:
    """Replaces patches of 16 pixels by their neighbourhood, over a share of the area."""
    result, patch = pixels.copy(), 16
    for top, left in random_places(pixels, patch, share, generator):
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
