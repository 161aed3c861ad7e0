"""An input image on its way to the comparator: decoded, turned upright, padded, resized, normalised.

Pillow's global settings stay the host's: its `Image.MAX_IMAGE_PIXELS` bounds an image besides `max_pixels`,
and its `ImageFile.LOAD_TRUNCATED_IMAGES`, where the host has set it, lets damaged data through.
"""

from __future__ import annotations

import ctypes
import errno
import io
import logging
import math
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Union

import numpy as np
import numpy.typing as npt
from PIL import Image, _imaging

from compare2score.errors import BundleError, ImageError, ImageErrorCode

ImageSource = Union[str, "os.PathLike[str]", Image.Image, npt.NDArray[np.uint8]]

# A 108-megapixel photograph passes; decoding it takes about 1 GB, 2 GB with transparency.
MAX_PIXELS = 120_000_000
# JPEG's own bound. Pillow's decoders fail on far longer rows.
MAX_SIDE = 65_535
# Padding costs a portrait the square of its height in time.
MAX_PADDED_PIXELS = 150_000_000
_BLOCK_PIXELS = 8_000_000
# What transparent pixels are laid over, as most viewers do.
BACKGROUND = (255, 255, 255)

_SIGNATURES = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
# Without a handler of its own Pillow's log would reach stderr; the host's handlers still get it.
logging.getLogger("PIL").addHandler(logging.NullHandler())


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


def load_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Decode an image to RGB: uint8 [H, W, 3], contiguous, to be treated as read-only.

    `source` is a path to a JPEG, PNG, WebP, BMP, TIFF or GIF file (first frame), a PIL image (current frame)
    or a uint8 array [H, W, 3], which is not copied. A file's first bytes choose its decoder, not its name; no
    other decoder is run. The EXIF orientation is applied. Transparency is laid over white. 16-bit and 12-bit
    grey v becomes round(255 v / maximum); of 16-bit colour Pillow keeps the high byte. CMYK is converted by
    Pillow's formula, and no colour profile is applied, as in the reference. 32-bit grey has no stated white
    and is refused.

    Raises ImageError, and nothing else:
    - `not_found`: there is no such file;
    - `not_an_image`: not a regular file, or not one of the formats above by its first bytes;
    - `truncated`: the data end early (an empty file among them) or cannot be decoded;
    - `too_large`: over `max_pixels` or `MAX_SIDE` by its header, refused before memory is taken for it;
    - `unsupported`: a variant of its format, or a kind of object, that is not read, or an image of no pixels;
    - `io_error`: the operating system cannot read the file.
    """
    name = _name(source)
    try:
        with _quiet_pillow():
            if isinstance(source, np.ndarray):
                _check_array(source, max_pixels)
                return np.ascontiguousarray(source)
            if isinstance(source, Image.Image):
                return _decode(source, name, max_pixels)
            return _load_file(source, name, max_pixels)
    except Exception as error:
        code, text = _explain(error, "truncated", name)
    # Raised out here, free of the first error: its traceback would keep the decoder's buffers alive.
    raise ImageError(code, text)


def fit_square(image: npt.NDArray[np.uint8], spec: ImageSpec) -> npt.NDArray[np.uint8]:
    """Centre `image`, uint8 [H, W, 3], on a square of the pad colour and resize that to uint8 [S, S, 3].

    Equal to the byte to the reference: its expand2square (offset (long - short) // 2), then CLIP's resize
    (Pillow's bicubic). The square itself is never made: Pillow resizes rows first and rounds to bytes before
    it resizes columns, so the rows go through in blocks. A portrait so high (over 12,247 pixels) that its
    padded rows would exceed `MAX_PADDED_PIXELS` is first averaged over boxes of k x k pixels, k the smallest
    integer that avoids it; there alone the result is not the reference's.

    Raises ImageError: `unsupported` for another kind of array, `too_large` for a side over `MAX_SIDE`.
    """
    _check_array(image, MAX_SIDE**2)
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
        padded = Image.new("RGB", (side, block.height), spec.pad_color)
        padded.paste(block, (left, 0))
        resized = padded.resize((spec.size, block.height), Image.Resampling.BICUBIC)
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
        pixels[..., channel, :, :] = table.astype(np.float32)[fitted[..., channel]]
    return pixels


def preprocess(source: ImageSource, spec: ImageSpec, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.float32]:
    """The comparator's input for one image: `load_image`, `fit_square`, `normalize`; float32 [3, S, S]."""
    return normalize(fit_square(load_image(source, max_pixels), spec), spec)


def _load_file(source: str | os.PathLike[str], name: str, max_pixels: int) -> npt.NDArray[np.uint8]:
    try:
        path = Path(source)
        # Asked before opening: opening a pipe would wait for its other end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageError("not_an_image", f"{name} is a directory or a device; name an image file.")
        raw = io.FileIO(path)
    except TypeError:
        text = f"{name} cannot be read; give a path, a PIL image or a uint8 array [H, W, 3]."
        raise ImageError("unsupported", text) from None
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise ImageError("not_found", f"{name} does not exist; check the path.") from None
    with _Reader(raw) as file:
        return _decode(_open(file, name), name, max_pixels)


def _open(file: _Reader, name: str) -> Image.Image:
    head = file.peek(16)[:16]
    kind = next((kind for kind, signatures in _SIGNATURES.items() if head.startswith(signatures)), None)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        # Read in one piece, it would not be missed.
        kind = "WEBP"
        file.ran_out = int.from_bytes(head[4:8], "little") + 8 > os.fstat(file.fileno()).st_size
    if not head:
        raise ImageError("truncated", f"{name} is an empty file; fetch or save it again.")
    if kind is None:
        text = f"{name} is not a JPEG, PNG, WebP, BMP, TIFF or GIF file; convert it to one of these."
        raise ImageError("not_an_image", text)
    try:
        return Image.open(file, formats=(kind,))
    except Exception as error:
        if file.ran_out:
            raise
        text = f"starts like a {kind} file, but its header is damaged or of an unread variant; save it anew."
        raise ImageError(*_explain(error, "unsupported", name, text)) from error


def _decode(image: Image.Image, name: str, max_pixels: int) -> npt.NDArray[np.uint8]:
    _check_size(image.width, image.height, name, max_pixels)
    tags: Any = getattr(image, "tag_v2", {})
    tile_width, tile_height, subfile = tags.get(322), tags.get(323), tags.get(254)
    if isinstance(tile_width, int) and isinstance(tile_height, int):
        # A tile is decoded whole, however small the image that it covers.
        _check_size(tile_width, tile_height, name, max_pixels)
    if 50706 in tags or (isinstance(subfile, int) and subfile & 1):
        # What a DNG shows to a plain TIFF reader is its preview.
        text = f"{name} opens with a preview, as raw photographs do; develop it to a JPEG or PNG first."
        raise ImageError("unsupported", text)
    image.load()
    try:
        pixels = _rgb(image)
    except Exception as error:
        text = f"has pixels of a kind that is not read (mode {image.mode}); convert it to 8-bit RGB."
        raise ImageError(*_explain(error, "unsupported", name, text)) from error
    try:
        orientation = image.getexif().get(0x0112)
    except Exception:
        # Damaged EXIF data cost the orientation, never the pixels.
        orientation = None
    pixels = pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else pixels
    down, across = -1 if orientation in (3, 4, 7, 8) else 1, -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::down, ::across])


def _rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        return _rgb_of_16_bit(image)
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no stated white")
    if not image.has_transparency_data:
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    # Pillow knows no direct way from premultiplied grey.
    image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    page = Image.new("RGB", image.size, BACKGROUND)
    page.paste(image, mask=image.getchannel("A"))
    return np.asarray(page)


def _rgb_of_16_bit(image: Image.Image) -> npt.NDArray[np.uint8]:
    tags: Any = getattr(image, "tag_v2", {})
    # Pillow widens 12-bit TIFF without scaling it, and leaves 16-bit white-is-zero as it is.
    maximum = 4095 if tags.get(258) == (12,) else 65535
    table = np.rint(np.minimum(np.arange(65536), maximum) * (255 / maximum)).astype(np.uint8)
    values = np.asarray(image)
    gray = 255 - table[values] if tags.get(262) == 0 else table[values]
    if "transparency" in image.info:
        gray[values == image.info["transparency"]] = BACKGROUND[0]
    return np.repeat(gray[..., np.newaxis], 3, axis=2)


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError("unsupported", f"{name} has no pixels ({width} x {height}); give another image.")
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        bound = f"the bound of {max_pixels} in all or {MAX_SIDE} on a side"
        text = f"{name} has {width} x {height} pixels, over {bound}; scale it down first."
        raise ImageError("too_large", text)


def _check_array(image: npt.NDArray[np.uint8], max_pixels: int) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        given = f"{image.dtype} {list(image.shape)}"
        raise ImageError("unsupported", f"An image array is uint8 [H, W, 3], not {given}; convert it first.")
    _check_size(image.shape[1], image.shape[0], "The array", max_pixels)


def _triple(spec: dict[str, Any], key: str, kind: type, low: float, high: float) -> tuple[Any, Any, Any]:
    value: Any = spec[key] if isinstance(spec[key], (list, tuple)) else ()
    # JSON has one kind of number, so a whole one may stand for a float; true and false may not.
    if [type(number) in (kind, int) and low <= number <= high for number in value] == [True] * 3:
        return kind(value[0]), kind(value[1]), kind(value[2])
    wanted = f"three numbers from {low} to {high}"
    raise BundleError(f"The bundle's image spec has a {key} that is not {wanted}; export it again.")


def _name(source: object) -> str:
    if not isinstance(source, (str, os.PathLike)):
        return f"The {type(source).__name__}"
    # A file's name may be a stranger's: its control characters must not reach a terminal.
    text = str(source)
    return text if text and text.isprintable() else repr(text)


def _explain(error: Exception, code: ImageErrorCode, name: str, text: str = "") -> tuple[ImageErrorCode, str]:
    if isinstance(error, ImageError):
        return error.code, str(error)
    if isinstance(error, (MemoryError, Image.DecompressionBombError)):
        return "too_large", f"{name} needs more memory than there is or Pillow allows; scale it down first."
    # A damaged offset makes Pillow seek below zero, which is no fault of the disk's.
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        return "io_error", f"{name} cannot be read ({error.strerror}); check the file and its disk."
    return code, f"{name} {text or 'is damaged: its data end early or cannot be decoded; save it anew.'}"


class _Reader(io.BufferedReader):
    """A file that remembers whether more was asked of it than it holds: the mark of a truncated header."""

    ran_out = False

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.ran_out = self.ran_out or (size or 0) > len(data)
        return data


def _libtiff_silencer() -> Any:
    try:
        silence: Any = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    except (AttributeError, OSError):
        return lambda handler: handler
    silence.restype, silence.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    return silence


_quiet = threading.Lock()
_quiet_until: list[ExitStack] = []
_set_libtiff_errors = _libtiff_silencer()


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    # Filters, and libtiff's handler that prints to stderr, are the process's: the first thread in changes
    # them and the last one out puts them back, since threads that each did so would leave them changed.
    with _quiet:
        restore = _quiet_until[0] if _quiet_until else ExitStack()
        if not _quiet_until:
            restore.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\b")
            restore.callback(_set_libtiff_errors, _set_libtiff_errors(None))
        _quiet_until.append(restore)
    try:
        yield
    finally:
        with _quiet:
            _quiet_until.pop()
            if not _quiet_until:
                restore.close()
