"""A decoder that crashes, hangs, hoards or lies costs one image; else it decodes as the runtime does."""

from __future__ import annotations

import hashlib
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compare2score.decode import load_image
from compare2score.errors import CollectionError, ImageError
from compare2score.image import ImageSpec, fit_square
from compare2score.pipelines import decoder, decoding
from compare2score.pipelines.decoding import decoding_pool
from compare2score.pipelines.sources import Entry

SPEC = ImageSpec(16, (0.5,) * 3, (0.5,) * 3, (127,) * 3)
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "preprocess"
BAD = Path(__file__).resolve().parents[3] / "shared" / "bad_images"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")


def entry(path, **fields):
    return Entry(str(path), str(path), Path(path).name, str(path), **fields)


@contextmanager
def running(workers=1, seconds=30.0, known=None):
    with decoding_pool(SPEC, workers, seconds, known) as pool:
        yield lambda *arguments: pool.submit(*arguments).result(120)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_pixels_size_and_hash_are_those_of_the_file():
    with running() as decode:
        for path in sorted(GOLDEN.glob("*.png")):
            decoded = decode(entry(path))
            pixels = load_image(path)
            assert (decoded.height, decoded.width) == pixels.shape[:2]
            np.testing.assert_array_equal(decoded.fitted, fit_square(pixels, SPEC))
            data = path.read_bytes()
            assert (decoded.bytes, decoded.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_bytes_and_a_part_of_a_file_are_decoded_as_the_file_is(picture):
    data = picture.read_bytes()
    shard = picture.with_name("shard")
    shard.write_bytes(b"before" + data + b"after")
    with running() as decode:
        whole = decode(entry(picture))
        part = decode(Entry("shard/x", str(shard), "x", str(shard), offset=6, size=len(data)))
        held = decode(Entry("table/0", "no such file", "0", "table", row=0), data)
    for other in (part, held):
        np.testing.assert_array_equal(other.fitted, whole.fitted)
        assert (other.sha256, other.bytes) == (whole.sha256, len(data))


@pytest.mark.parametrize(
    ("begin", "code", "said"),
    [
        (b"CRASH", "unsupported", "ends the process that decodes it"),
        (b"LOOP", "timeout", "not decoded within 2 s"),
        (b"BLOAT", "too_large", "more memory than"),
        (b"LIE", "unsupported", "ends the process that decodes it"),
        (b"RAVE", "unsupported", "ends the process that decodes it"),
    ],
)
def test_a_decoder_that_goes_wrong_costs_one_image(hostile_decoder, picture, tmp_path, begin, code, said):
    bad = tmp_path / "bad.png"
    bad.write_bytes(begin)
    with running(seconds=2.0) as decode:
        before, failed, after = (decode(entry(path)) for path in (picture, bad, picture))
    assert failed.fitted is None
    assert failed.error[0] == code
    assert said in failed.error[1]
    assert str(bad) in failed.error[1]
    np.testing.assert_array_equal(before.fitted, after.fitted)


def test_what_a_decoder_prints_does_not_matter(hostile_decoder, tmp_path):
    noisy = tmp_path / "noisy"
    noisy.write_bytes(b"PRINT")
    with running() as decode:
        assert decode(entry(noisy)).error[0] == "not_an_image"


def test_a_decoder_ended_from_outside_is_tried_again(picture):
    with running() as decode:
        first = decode(entry(picture))
        # The one child of this process that is a decoder.
        with decoding_pool(SPEC, 1, 30.0) as pool:
            pool.submit(entry(picture)).result(60)
            own = pool.threads.submit(pool.decoder).result(5)
            os.kill(own.process.pid, 9)
            again = pool.submit(entry(picture)).result(60)
    np.testing.assert_array_equal(first.fitted, again.fitted)


def test_no_decoder_outlives_its_pool(hostile_decoder, tmp_path):
    loop = tmp_path / "loop"
    loop.write_bytes(b"LOOP")
    with decoding_pool(SPEC, 1, 60.0) as pool:
        pending = pool.submit(entry(loop))
        own = pool.threads._threads  # the thread is waiting: leaving must not
        assert own
        assert not pending.done()
    assert pending.done()


def test_a_decoder_that_does_not_start_is_one_sentence(monkeypatch, picture):
    monkeypatch.setattr(decoding, "_PROGRAM", "raise SystemExit(3)")
    with running() as decode, pytest.raises(CollectionError, match="does not start"):
        decode(entry(picture))


def test_files_of_the_working_folder_are_never_imported(monkeypatch, picture, tmp_path):
    for name in ("json", "numpy", "compare2score", "struct"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the working folder')")
    monkeypatch.chdir(tmp_path)
    with running() as decode:
        assert decode(entry(picture)).error is None


def test_an_image_that_is_known_is_not_decoded(picture):
    sha256 = hashlib.sha256(picture.read_bytes()).hexdigest()
    for answer in (True, False):
        asked = []
        with running(known=lambda sha, answer=answer, asked=asked: asked.append(sha) or answer) as decode:
            decoded = decode(entry(picture))
        assert asked == [sha256]
        assert (decoded.sha256, decoded.fitted is None, decoded.error) == (sha256, answer, None)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda path: None, "not_found"),
        (lambda path: path.mkdir(), "not_an_image"),
        (lambda path: path.touch(), "truncated"),
        (lambda path: os.mkfifo(path), "not_an_image"),
        (lambda path: path.write_text("text"), "not_an_image"),
        (lambda path: path.symlink_to(path), "io_error"),
    ],
)
def test_errors_are_the_runtimes(tmp_path, make, code):
    path = tmp_path / "image.png"
    make(path)
    with pytest.raises(ImageError) as caught:
        load_image(path)
    with running() as decode:
        decoded = decode(entry(path))
    assert decoded.error == (caught.value.code, str(caught.value)) == (code, str(caught.value))


def test_a_shard_that_shrank_or_left_is_an_error_of_its_members(tmp_path):
    shard = tmp_path / "shard.tar"
    shard.write_bytes(b"x" * 100)
    member = Entry("shard.tar/a.jpg", str(shard), "a.jpg", str(shard), offset=90, size=50)
    huge = Entry("shard.tar/b.jpg", str(shard), "b.jpg", str(shard), offset=0, size=decoder.MAX_BYTES + 1)
    with running() as decode:
        codes = [decode(one).error[0] for one in (member, huge)]
        shard.unlink()
        codes.append(decode(member).error[0])
    assert codes == ["truncated", "too_large", "not_found"]


@pytest.mark.skipif(not BAD.is_dir(), reason="shared/bad_images is not beside the checkout")
def test_bytes_of_hostile_images_give_what_their_files_give():
    for path in sorted(BAD.iterdir())[::7]:
        outcomes = []
        for source in (path, path.read_bytes()):
            try:
                outcomes.append(load_image(source, name=str(path)).tobytes())
            except ImageError as error:
                outcomes.append((error.code, str(error)))
        assert outcomes[0] == outcomes[1], path
