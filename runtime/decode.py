"""Decoding: files of strangers become RGB pixels or one named error.

Pillow's global settings stay the host's: its `Image.MAX_IMAGE_PIXELS` bounds an image besides `max_pixels`,
and its `ImageFile.LOAD_TRUNCATED_IMAGES`, where the host has set it, lets damaged data through.
"""

from __future__ import annotations

import ctypes
import errno
import io
import logging
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Union

import numpy as np
import numpy.typing as npt
from PIL import Image, _imaging

from compare2score.errors import ImageError, ImageErrorCode

ImageSource = Union[str, "os.PathLike[str]", bytes, Image.Image, npt.NDArray[np.uint8]]

# A 108-megapixel photograph passes; decoding it takes about 1 GB, 2 GB with transparency.
MAX_PIXELS = 120_000_000
# JPEG's own bound. Pillow's decoders fail on far longer rows.
MAX_SIDE = 65_535
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


def load_image(
    source: ImageSource, max_pixels: int = MAX_PIXELS, name: str | None = None
) -> npt.NDArray[np.uint8]:
    """Decode an image to RGB: uint8 [H, W, 3], contiguous, to be treated as read-only.

    `source` is a path to a JPEG, PNG, WebP, BMP, TIFF or GIF file (first frame), such a file's bytes, a PIL
    image (current frame) or a uint8 array [H, W, 3], which is not copied. `name` is what an error calls the
    image, the path or the kind of object if None. A file's first bytes choose its decoder, not its name; no
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
    name = _name(source if name is None else name)
    try:
        with _quiet_pillow():
            if isinstance(source, np.ndarray):
                check_array(source, max_pixels)
                return np.ascontiguousarray(source)
            if isinstance(source, Image.Image):
                return _decode(source, name, max_pixels)
            if isinstance(source, bytes):
                with _Reader(io.BytesIO(source)) as file:
                    return _decode(_open(file, name), name, max_pixels)
            return _load_file(source, name, max_pixels)
    except Exception as error:
        code, text = _explain(error, "truncated", name)
    # Raised out here, free of the first error: its traceback would keep the decoder's buffers alive.
    raise ImageError(code, text)


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
        file.ran_out = int.from_bytes(head[4:8], "little") + 8 > file.seek(0, os.SEEK_END)
        file.seek(0)
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


def check_array(image: npt.NDArray[np.uint8], max_pixels: int) -> None:
    """Raises ImageError unless `image` is uint8 [H, W, 3] of at most `max_pixels` pixels."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        given = f"{image.dtype} {list(image.shape)}"
        raise ImageError("unsupported", f"An image array is uint8 [H, W, 3], not {given}; convert it first.")
    _check_size(image.shape[1], image.shape[0], "The array", max_pixels)


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
