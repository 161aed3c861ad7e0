"""Decoding meets independent expectations, and every hostile file ends as one named error."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from compare2score.decode import load_image
from compare2score.errors import ImageError, ImageErrorCode
from compare2score.image import ImageSpec, fit_square, normalize

ROOT = Path(__file__).parents[2]
BAD_IMAGES = ROOT.parent / "shared" / "bad_images"
CODES = get_args(ImageErrorCode)
SPEC = ImageSpec(448, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (127, 127, 127))
RANDOM = np.random.default_rng(0)
COLORS = RANDOM.integers(0, 256, (12, 20, 3), np.uint8)
GRAY = RANDOM.integers(0, 256, (12, 20), np.uint8)
ALPHA = RANDOM.integers(0, 256, (12, 20, 1), np.uint8)


def code_of(source, **options) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(source, **options)
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    return caught.value.code


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = (b"IDAT", zlib.compress(bytes(1000)))
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in (header, *chunks, body, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, *[0] * 6)


def tiff(width: int, height: int, tags: dict[int, int], data: bytes) -> bytes:
    """A little-endian grey TIFF of one strip or tile; a tag's value -1 stands for the data's offset."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1, **tags}
    start = 8 + 2 + 12 * len(tags) + 4
    entries = [
        struct.pack("<HHII", tag, 4, 1, start if value == -1 else value)
        for tag, value in sorted(tags.items())
    ]
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(entries) + bytes(4) + data


def over_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return color * (alpha / 255) + 255 * (1 - alpha / 255)


# Arrays


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused_everywhere(array):
    assert code_of(array) == "unsupported"
    for function in (fit_square, normalize):
        with pytest.raises(ImageError):
            function(array, SPEC)


def test_an_array_is_taken_as_it_is():
    np.testing.assert_array_equal(load_image(COLORS[:, ::-1]), COLORS[:, ::-1])
    assert code_of(COLORS, max_pixels=12 * 20 - 1) == "too_large"


# Formats and modes


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("WEBP", {"lossless": True}),
        *[("TIFF", {"compression": name}) for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")],
    ],
)
def test_lossless_files_are_read_exactly_whatever_their_name(tmp_path, kind, options):
    path = written(tmp_path / "photo.jpg", encoded(Image.fromarray(COLORS), kind, **options))
    for source in (path, str(path), Image.open(path)):
        np.testing.assert_array_equal(load_image(source), COLORS)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_files_are_read_closely(tmp_path, kind):
    ramp = np.stack(np.broadcast_arrays(*np.ogrid[0:160:5, 0:192:4], 90), axis=2).astype(np.uint8)
    image = load_image(written(tmp_path / "ramp", encoded(Image.fromarray(ramp), kind, quality=98)))
    assert abs(image.astype(int) - ramp).max() <= 6


def test_the_first_frame_of_a_gif_is_read(tmp_path):
    frames = [Image.new("RGB", (9, 5), color) for color in ((10, 200, 30), (200, 10, 30))]
    path = written(tmp_path / "two.gif", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    np.testing.assert_array_equal(load_image(path), np.full((5, 9, 3), (10, 200, 30)))


@pytest.mark.parametrize(
    ("kind", "image", "expected", "tolerance"),
    [
        ("PNG", Image.fromarray(GRAY), GRAY[..., None], 0),
        ("BMP", Image.fromarray(GRAY), GRAY[..., None], 0),
        ("PNG", Image.fromarray(GRAY > 99), (GRAY > 99)[..., None] * 255, 0),
        ("TIFF", Image.fromarray(GRAY > 99), (GRAY > 99)[..., None] * 255, 0),
        ("PNG", Image.fromarray(np.dstack([COLORS, ALPHA])), over_white(COLORS, ALPHA), 1),
        ("TIFF", Image.fromarray(np.dstack([COLORS, ALPHA])), over_white(COLORS, ALPHA), 1),
        ("WEBP", Image.fromarray(np.dstack([COLORS, ALPHA])), over_white(COLORS, ALPHA), 1),
        ("PNG", Image.fromarray(np.dstack([GRAY, ALPHA])), over_white(GRAY[..., None], ALPHA), 1),
    ],
)
def test_every_mode_becomes_rgb_over_white(tmp_path, kind, image, expected, tolerance):
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    decoded = load_image(written(tmp_path / "image", encoded(image, kind, **options))).astype(int)
    assert decoded.shape == (12, 20, 3)
    assert abs(decoded - expected).max() <= tolerance


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
@pytest.mark.parametrize("transparent", [None, 3])
def test_palettes_are_looked_up_and_their_clear_color_is_white(tmp_path, kind, transparent):
    palette = RANDOM.integers(0, 256, (256, 3), np.uint8)
    image = Image.fromarray(GRAY % 8)
    image.putpalette(palette.tobytes())
    options = {} if transparent is None else {"transparency": transparent}
    expected = palette[GRAY % 8]
    if transparent is not None:
        expected[np.equal(GRAY % 8, transparent)] = 255
    path = written(tmp_path / "image", encoded(image, kind, **options))
    np.testing.assert_array_equal(load_image(path), expected)


def test_palettes_with_partial_transparency_are_laid_over_white(tmp_path):
    palette, alphas = RANDOM.integers(0, 256, (8, 3), np.uint8), np.arange(0, 256, 32, np.uint8)
    image = Image.fromarray(GRAY % 8)
    image.putpalette(palette.tobytes())
    path = written(tmp_path / "image", encoded(image, "PNG", transparency=alphas.tobytes()))
    expected = over_white(palette, alphas[:, None])[GRAY % 8]
    assert abs(load_image(path) - expected).max() <= 1


@pytest.mark.parametrize(("kind", "tolerance"), [("TIFF", 1), ("JPEG", 6)])
def test_cmyk_is_ink_on_white(tmp_path, kind, tolerance):
    inks = np.zeros((16, 48, 4), np.uint8)
    inks[:] = np.repeat([(0, 0, 0, 0), (255, 0, 0, 0), (40, 90, 10, 60)], 16, axis=0)
    expected = (255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:].astype(float)) / 255
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    image = Image.frombytes("CMYK", (48, 16), inks.tobytes())
    decoded = load_image(written(tmp_path / "image", encoded(image, kind, **options)))
    assert abs(decoded - expected).max() <= tolerance


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "TIFF big-endian"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, kind):
    values = np.linspace(0, 65535, 20 * 30).astype(np.uint16).reshape(20, 30)
    order = ">" if kind.endswith("big-endian") else "<"
    mode = "I;16B" if order == ">" else "I;16"
    image = Image.frombytes(mode, (30, 20), values.astype(f"{order}u2").tobytes())
    decoded = load_image(written(tmp_path / "image", encoded(image, kind.split()[0])))
    assert abs(decoded - values[..., None] / 257).max() <= 0.5
    np.testing.assert_array_equal(decoded, load_image(image))


def test_12_bit_and_white_is_zero_tiff_are_scaled_to_their_own_range(tmp_path):
    packed = bytes([0x00, 0x0F, 0xFF, 0x80, 0x04, 0x00])
    twelve = tiff(4, 1, {258: 12, 273: -1, 279: 6, 278: 1}, packed)
    assert load_image(written(tmp_path / "12.tif", twelve))[0, :, 0].tolist() == [0, 255, 128, 64]
    inverted = tiff(3, 1, {258: 16, 262: 0, 273: -1, 279: 6, 278: 1}, struct.pack("<3H", 0, 65535, 257 * 55))
    assert load_image(written(tmp_path / "inverted.tif", inverted))[0, :, 0].tolist() == [255, 0, 200]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_stated_white_are_refused(tmp_path, mode):
    assert code_of(written(tmp_path / "image", encoded(Image.new(mode, (4, 4)), "TIFF"))) == "unsupported"
    assert code_of(Image.new(mode, (4, 4))) == "unsupported"


def test_a_raw_photographs_preview_is_refused(tmp_path):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254] = 1
    path = written(tmp_path / "raw.dng", encoded(Image.fromarray(COLORS), "TIFF", tiffinfo=tags))
    assert code_of(path) == "unsupported"


# EXIF 2.3, tag 274: where the stored row 0 and column 0 lie in the upright picture.
ROW_AND_COLUMN = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "TIFF lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(tmp_path, kind, orientation):
    upright = RANDOM.integers(0, 256, (3, 5, 3), np.uint8)
    sides = ROW_AND_COLUMN[orientation]
    stored = np.zeros((3, 5, 3) if sides[0] in ("top", "bottom") else (5, 3, 3), np.uint8)
    for row, column in np.ndindex(stored.shape[:2]):
        place = dict(zip(sides, (row, column), strict=True))
        y = place["top"] if "top" in place else 2 - place["bottom"]
        x = place["left"] if "left" in place else 4 - place["right"]
        stored[row, column] = upright[y, x]
    exif = Image.Exif()
    exif[274] = orientation
    options = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "TIFF lzw": {"compression": "tiff_lzw"}}[
        kind
    ]
    data = encoded(Image.fromarray(stored), kind.split()[0], exif=exif, **options)
    np.testing.assert_array_equal(load_image(written(tmp_path / "image", data)), upright)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_damaged_exif_costs_only_the_orientation(tmp_path, exif):
    path = written(tmp_path / "image.jpg", encoded(Image.new("RGB", (8, 6), (9, 9, 9)), "JPEG", exif=exif))
    assert load_image(path).shape == (6, 8, 3)


# What is refused, and with which code


def test_the_bytes_of_a_file_are_decoded_as_the_file_is(tmp_path):
    for kind in ("png", "jpeg", "webp", "bmp", "tiff", "gif"):
        path = tmp_path / f"image.{kind}"
        Image.fromarray(COLORS).save(path)
        data = path.read_bytes()
        np.testing.assert_array_equal(load_image(data), load_image(path))
        for cut in (0, 5, len(data) // 2):
            path.write_bytes(data[:cut])
            with pytest.raises(ImageError) as of_file:
                load_image(path)
            with pytest.raises(ImageError) as of_bytes:
                load_image(data[:cut], name=str(path))
            assert (of_bytes.value.code, str(of_bytes.value)) == (of_file.value.code, str(of_file.value))


def test_files_that_are_no_images_get_their_code(tmp_path):
    assert code_of(tmp_path / "missing.jpg") == "not_found"
    assert code_of(written(tmp_path / "a.jpg", b"x") / "below") == "not_found"
    assert code_of("nul\0byte.jpg") == "not_found"
    assert code_of(tmp_path) == "not_an_image"
    assert code_of("") == "not_an_image"
    assert code_of(written(tmp_path / "text.jpg", b"This is text.\n" * 40)) == "not_an_image"
    assert code_of(written(tmp_path / "empty.jpg", b"")) == "truncated"
    assert (
        code_of(written(tmp_path / "drawing.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"))
        == "not_an_image"
    )
    for source in (None, 3, bytearray(b"photo.jpg"), [COLORS]):
        assert code_of(source) == "unsupported"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a POSIX file system")
def test_pipes_loops_and_hostile_names_get_their_code(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert code_of(tmp_path / "pipe.jpg") == "not_an_image"
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    assert code_of(tmp_path / "loop.jpg") == "io_error"
    assert code_of(tmp_path / ("x" * 999)) == "io_error"
    assert code_of(written(tmp_path / "two\nlines\x1b[2J.jpg", b"")) == "truncated"


SMALL_FILES = {
    "jpeg": encoded(Image.fromarray(COLORS), "JPEG"),
    "progressive": encoded(Image.fromarray(COLORS), "JPEG", progressive=True),
    "png": encoded(Image.fromarray(COLORS), "PNG"),
    "palette": encoded(Image.fromarray(GRAY).convert("P"), "PNG", transparency=bytes(range(200))),
    "webp": encoded(Image.fromarray(COLORS), "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
    "webp lossless": encoded(Image.fromarray(np.dstack([COLORS, ALPHA])), "WEBP", lossless=True),
    "bmp": encoded(Image.fromarray(COLORS), "BMP"),
    "tiff": encoded(Image.fromarray(COLORS), "TIFF"),
    "tiff lzw": encoded(Image.fromarray(COLORS), "TIFF", compression="tiff_lzw"),
    "gif": encoded(Image.fromarray(GRAY), "GIF"),
}


@pytest.mark.parametrize("kind", SMALL_FILES)
def test_a_file_cut_anywhere_is_truncated(tmp_path, kind):
    data = SMALL_FILES[kind]
    # GIF and PNG close with up to 20 bytes of checksums and end marks after the last pixel.
    for length in range(16, len(data) - 20, 13):
        assert code_of(written(tmp_path / "cut", data[:length])) == "truncated", length


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(SMALL_FILES)),
    st.lists(st.tuples(st.integers(0, 2999), st.integers(0, 255)), max_size=8),
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 255)), max_size=8),
    st.one_of(st.none(), st.tuples(st.integers(0, 2999), st.integers(0, 2999), st.integers(0, 2999))),
)
def test_mutated_files_end_as_an_array_or_an_image_error(tmp_path_factory, kind, edits, header_edits, splice):
    data = bytearray(SMALL_FILES[kind])
    for place, value in edits + header_edits:
        data[place % len(data)] = value
    if splice is not None:
        target, source, length = (number % len(data) for number in splice)
        data[target : target + length // 2] = data[source : source + length]
    path = written(tmp_path_factory.getbasetemp() / "mutated", bytes(data))
    try:
        image = load_image(path, max_pixels=1_000_000)
    except ImageError as error:
        end = error.code
    else:
        end = f"{image.dtype} {image.ndim} {image.shape[2]}"
    assert end in {"uint8 3 3", *CODES}


BOMBS = {
    "png": png(60_000, 60_000),
    "bmp": bmp(60_000, 60_000),
    "tiff": tiff(60_000, 60_000, {259: 8, 273: -1, 279: 99, 278: 60_000}, bytes(99)),
    "tile": tiff(1, 1, {259: 8, 322: 20_000, 323: 20_000, 324: -1, 325: 99}, zlib.compress(bytes(10**6))),
    "gif": b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + b"\0\0\0,\0\0\0\0\1\0\1\0\0\2\2\x44\1\0;",
    "jpeg": SMALL_FILES["jpeg"].replace(struct.pack(">HH", 12, 20), struct.pack(">HH", 60_000, 60_000), 1),
    "wide": bmp(70_000, 2),
}


@pytest.mark.parametrize("pillow_bound", ["default", "off"])
def test_bombs_are_refused_before_memory_is_taken(tmp_path, pillow_bound):
    pytest.importorskip("resource")
    for name, data in BOMBS.items():
        written(tmp_path / name, data)
    script = """if True:
        import pathlib, resource, sys
        import PIL.Image
        from compare2score.decode import load_image
        from compare2score.errors import ImageError
        if sys.argv[2] == "off":
            PIL.Image.MAX_IMAGE_PIXELS = None
        bound = PIL.Image.MAX_IMAGE_PIXELS
        PIL.Image.init()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
            try:
                print(path.name, load_image(path).shape)
            except ImageError as error:
                print(path.name, error.code)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
        assert PIL.Image.MAX_IMAGE_PIXELS == bound
    """
    started = time.perf_counter()
    command = [sys.executable, "-c", script, str(tmp_path), pillow_bound]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"{name} too_large" for name in sorted(BOMBS)]
    assert time.perf_counter() - started < 20


def test_images_without_pixels_are_refused(tmp_path):
    for data in (png(0, 9), bmp(9, 0), tiff(0, 9, {273: -1, 279: 9}, bytes(9))):
        assert code_of(written(tmp_path / "image", data)) == "unsupported"
    assert code_of(Image.new("RGB", (0, 9))) == "unsupported"


# What the host process keeps


NOISY_FILES = {
    "apng": png(4, 4, (b"acTL", bytes(8))),
    "samples": tiff(4, 4, {277: 99, 273: -1, 279: 16}, bytes(16)),
    "strip": tiff(64, 64, {259: 5, 273: -1, 279: 30, 278: 64}, bytes(range(30))),
}


def test_nothing_reaches_the_terminal(tmp_path):
    paths = [str(written(tmp_path / name, data)) for name, data in NOISY_FILES.items()]
    script = """if True:
        import sys
        from compare2score.decode import load_image
        from compare2score.errors import ImageError
        for path in sys.argv[1:]:
            try:
                load_image(path)
            except ImageError:
                pass
    """
    command = [sys.executable, "-W", "always", "-c", script, *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout + done.stderr == ""


def test_warnings_of_pillow_are_no_errors_and_filters_stay_the_hosts(tmp_path):
    path = written(tmp_path / "image.png", NOISY_FILES["apng"])
    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = list(warnings.filters)
        threads = [
            threading.Thread(target=lambda: results.extend(load_image(path).shape for _ in range(20)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert warnings.filters == filters
        with pytest.raises(UserWarning):
            warnings.warn("the host's own", stacklevel=1)
    assert results == [(4, 4, 3)] * 160


def test_a_kept_error_keeps_no_decoder(tmp_path):
    path = written(tmp_path / "cut.jpg", SMALL_FILES["jpeg"][:-50])
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert caught.value.__traceback__.tb_next.tb_next is None


@pytest.mark.skipif(
    not BAD_IMAGES.is_dir(), reason=f"no {BAD_IMAGES.relative_to(ROOT.parent)} beside the repository"
)
def test_every_hostile_file_ends_as_an_array_or_a_known_code():
    script = """if True:
        import json, pathlib, sys
        from compare2score.decode import load_image
        from compare2score.errors import ImageError
        ends = {}
        for path in pathlib.Path(sys.argv[1]).iterdir():
            try:
                image = load_image(path)
                ends[path.name] = f"{image.dtype} {image.ndim}"
            except ImageError as error:
                ends[path.name] = error.code
        print(json.dumps(ends))
    """
    command = [sys.executable, "-c", script, str(BAD_IMAGES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    ends = json.loads(done.stdout)
    assert done.stderr == ""
    assert len(ends) == len(list(BAD_IMAGES.iterdir()))
    assert set(ends.values()) <= {"uint8 3", *CODES}
    assert all(ends[f"exif_landscape_{orientation}.jpg"] == "uint8 3" for orientation in range(1, 9))
