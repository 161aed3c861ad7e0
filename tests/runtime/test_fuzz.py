"""Whatever the bytes: the readers of images and bundles end in a result or in one of their own errors.

The examples are the same on every run, so that a change is to blame for what they find.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from compare2score.bundle import open_bundle
from compare2score.decode import load_image
from compare2score.errors import BundleError, ImageError, ImageErrorCode

CODES = get_args(ImageErrorCode)
MANIFEST, ANCHORS = "manifest.json", "anchors.safetensors"
FUZZ = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck), max_examples=120
)
PIXELS = np.random.default_rng(1).integers(0, 256, (24, 30, 4), np.uint8)
KINDS = {
    "JPEG": [{}, {"progressive": True}, {"mode": "CMYK"}, {"mode": "L"}],
    "PNG": [{}, {"mode": "RGBA"}, {"mode": "P"}, {"mode": "1"}],
    "WEBP": [{}, {"lossless": True, "mode": "RGBA"}],
    "GIF": [{"mode": "P"}, {"mode": "P", "interlace": 1}],
    "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"mode": "RGBA"}],
    "BMP": [{}, {"mode": "P"}, {"mode": "1"}],
}


def encoded(kind, mode="RGB", **options):
    image = Image.fromarray(PIXELS[..., :3]) if mode != "RGBA" else Image.fromarray(PIXELS)
    exif = Image.Exif()
    exif[0x0112] = 6
    options |= {"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}
    file = io.BytesIO()
    image.convert(mode).save(file, kind, **options)
    return file.getvalue()


FILES = [encoded(kind, **options) for kind, variants in KINDS.items() for options in variants]
SIGNATURES = sorted({data[:length] for data in FILES for length in (2, 4, 8, 16)})


def outcome(data):
    """What becomes of an image's bytes; it must be one of the allowed ends."""
    try:
        image = load_image(data, max_pixels=1_000_000)
    except ImageError as error:
        sentence = str(error)
        assert error.code in CODES  # noqa: PT017
        assert "\n" not in sentence
        assert sentence.endswith(".")
        return error.code
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert 0 < image.shape[0] * image.shape[1] <= 1_000_000
    return "pixels"


def mutated(data, flips, span, cut):
    """`data` with bits turned over, a piece moved elsewhere, and its end cut off."""
    changed = bytearray(data)
    for place, bit in flips:
        changed[place % len(data)] ^= 1 << bit
    if span is not None:
        start, length, target = (number % len(data) for number in span)
        changed[target:target] = changed[start : start + length % 64]
    return bytes(changed[: len(changed) if cut is None else cut % (len(changed) + 1)])


def test_every_file_is_whole_before_it_is_damaged():
    assert {outcome(data) for data in FILES} == {"pixels"}


@FUZZ
@given(st.binary(max_size=400))
@example(b"")
def test_any_bytes_are_pixels_or_a_named_error(data):
    outcome(data)


@FUZZ
@given(st.sampled_from(SIGNATURES), st.binary(max_size=400))
def test_any_bytes_behind_a_signature_are_pixels_or_a_named_error(signature, data):
    outcome(signature + data)


PLACES = st.integers(0, 4000)
DAMAGE = (
    # Headers are short, and most of what can go wrong goes wrong there.
    st.lists(st.tuples(st.integers(0, 80) | PLACES, st.integers(0, 7)), max_size=6),
    st.none() | st.tuples(PLACES, PLACES, PLACES),
    st.none() | PLACES,
)


@pytest.mark.parametrize("kind", KINDS)
@FUZZ
@given(data=st.data())
def test_damaged_files_are_pixels_or_a_named_error(kind, data):
    whole = data.draw(
        st.sampled_from([file for file in FILES if Image.open(io.BytesIO(file)).format == kind])
    )
    outcome(mutated(whole, *(data.draw(damage) for damage in DAMAGE)))


@FUZZ
@given(st.sampled_from(FILES), st.sampled_from(FILES), PLACES, PLACES)
def test_a_file_that_goes_on_as_another_is_pixels_or_a_named_error(one, other, end, start):
    outcome(one[: end % len(one)] + other[start % len(other) :])


@FUZZ
@given(st.sampled_from(FILES), PLACES, st.sampled_from(["<I", ">I", "<H", ">H"]), st.integers(0, 2**32 - 1))
def test_any_number_in_a_header_is_pixels_or_a_named_error(whole, place, form, number):
    packed = struct.pack(form, number % (1 << 8 * struct.calcsize(form)))
    place %= min(len(whole), 120)
    outcome(whole[:place] + packed + whole[place + len(packed) :])


# Bundles


@pytest.fixture
def folder(bundle, tmp_path):
    """A copy of the toy bundle to be damaged over and over."""
    return shutil.copytree(bundle, tmp_path / "fuzzed")


def refused(folder):
    """Whether a bundle is refused; only a BundleError of one sentence may come of it."""
    try:
        open_bundle(folder)
    except BundleError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        return True
    return False


@FUZZ
@given(st.binary(max_size=200))
def test_any_bytes_for_a_manifest_are_refused(folder, content):
    (folder / MANIFEST).write_bytes(content)
    assert refused(folder)


@FUZZ
@given(damage=st.tuples(*DAMAGE))
def test_a_damaged_manifest_opens_or_is_refused(folder, bundle, damage):
    (folder / MANIFEST).write_bytes(mutated((bundle / MANIFEST).read_bytes(), *damage))
    refused(folder)


def with_hashes(folder, bundle, content):
    """Puts `content` in the place of the anchors and states its hash, as an attacker would."""
    (folder / ANCHORS).write_bytes(content)
    values = json.loads((bundle / MANIFEST).read_text())
    values["files"][ANCHORS] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(values))


@FUZZ
@given(damage=st.tuples(*DAMAGE))
def test_damaged_tensors_with_a_matching_hash_open_or_are_refused(folder, bundle, damage):
    with_hashes(folder, bundle, mutated((bundle / ANCHORS).read_bytes(), *damage))
    refused(folder)


@FUZZ
@given(st.binary(max_size=200), st.none() | st.integers(0, 2**64 - 1))
def test_any_bytes_for_tensors_are_refused(folder, bundle, content, length):
    with_hashes(folder, bundle, content if length is None else struct.pack("<Q", length) + content)
    assert refused(folder)


ESCAPES = ("..", "../x", "..\\x", "/x", "\\x", "C:", "C:x", "C:\\x", "//h/x", "a/../../x", "./x", "x/", ".")


@FUZZ
@given(
    st.sampled_from(ESCAPES)
    | st.lists(st.sampled_from(["..", ".", "x", "C:", "~", ""]), min_size=2).map("/".join)
)
def test_no_name_in_a_manifest_leads_out_of_the_bundle(folder, bundle, name):
    values = json.loads((bundle / MANIFEST).read_text())
    values["files"][name] = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    # Were the name followed, the file would be found and its hash would match.
    (folder.parent / "x").write_bytes(b"x")
    (folder / MANIFEST).write_text(json.dumps(values))
    assert refused(folder)
