"""Bursts by EXIF time and by perceptual hash."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.sparse.csgraph import connected_components

from compare2score.pipelines.bursts import (
    capture_time,
    difference_hash,
    group_by_hash,
    group_by_time,
)

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
NOON = datetime(2026, 11, 22, 12)

# imagehash 4.3.2, `imagehash.dhash(PIL.Image.open(path))`.
HASHES = {
    "astronaut.jpg": 0xCD8DD91D897293A7,
    "astronaut_jpeg10.jpg": 0xCD8DD91D897293A7,
    "cat.jpg": 0x5414589AAB6FA785,
    "cat_noisy.jpg": 0x5414589AAB4FA785,
    "coffee.jpg": 0xF3E96933160B1B36,
    "coffee_blurred.jpg": 0xF3E96933160B1B36,
    "rocket.jpg": 0xE0C0C090909090D1,
}


def photograph(path, original=None, fraction=None, digitized=None):
    exif = Image.Exif()
    exif[0x0132] = "2001:01:01 00:00:00"  # when it was edited
    details = {0x9003: original, 0x9291: fraction, 0x9004: digitized}
    exif.get_ifd(0x8769).update({tag: text for tag, text in details.items() if text is not None})
    Image.new("RGB", (8, 8)).save(path, exif=exif.tobytes())
    return path


def after(*seconds):
    return [None if second is None else NOON + timedelta(seconds=second) for second in seconds]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_the_time_of_the_shot_is_read_with_its_fraction(tmp_path, suffix):
    path = photograph(tmp_path / f"a.{suffix}", "2026:11:22 12:00:00", "25", "2026:11:23 00:00:00")
    assert capture_time(path) == NOON + timedelta(seconds=0.25)


def test_a_scan_has_the_time_it_was_digitised(tmp_path):
    assert capture_time(photograph(tmp_path / "a.jpg", digitized="2026:11:22 12:00:00")) == NOON


@pytest.mark.parametrize("text", [None, "", "    :  :     :  :  ", "0000:00:00 00:00:00", "yesterday"])
def test_an_edited_file_without_a_time_of_the_shot_has_none(tmp_path, text):
    assert capture_time(photograph(tmp_path / "a.jpg", text)) is None


def test_a_fraction_that_is_no_number_is_left_out(tmp_path):
    assert capture_time(photograph(tmp_path / "a.jpg", "2026:11:22 12:00:00", "x5")) == NOON


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff\xe1\x00\x10Exif\0\0MM\0*\xff\xff\xff\xff"])
def test_a_damaged_or_absent_file_has_no_time_and_stops_nobody(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    assert capture_time(tmp_path / "a.jpg") is None
    assert capture_time(tmp_path / "gone.jpg") is None
    assert capture_time(tmp_path) is None


def test_shots_that_follow_each_other_within_the_gap_are_one_burst():
    # In whatever order they are given; what has no time is alone, twice over.
    times = after(100, 0, None, 2, 3.9, None, 101)
    assert group_by_time(times, gap=2) == [[0, 6], [1, 3, 4], [2], [5]]
    assert group_by_time(times, gap=1) == [[0, 6], [1], [2], [3], [4], [5]]
    assert group_by_time([]) == []


def test_equal_times_are_one_burst_even_without_a_gap():
    assert group_by_time(after(0, 1, 0), gap=0) == [[0, 2], [1]]


@pytest.mark.parametrize("name", HASHES)
def test_the_hash_is_that_of_the_imagehash_package(name):
    assert difference_hash(np.asarray(Image.open(PHOTOS / name).convert("RGB"))) == HASHES[name]


def test_versions_of_a_photograph_are_one_group():
    assert group_by_hash(list(HASHES.values())) == [[0, 1], [2, 3], [4, 5], [6]]


def test_light_size_and_a_little_motion_keep_a_photograph_in_its_group():
    photo = Image.open(PHOTOS / "rocket.jpg")
    width, height = photo.size
    versions = [
        photo.point(lambda value: value // 2),
        photo.resize((width // 3, height // 3)),
        photo.filter(ImageFilter.GaussianBlur(4)),
        photo.crop((width // 100, height // 100, width, height)),
    ]
    hashes = [difference_hash(np.asarray(version)) for version in versions]
    assert group_by_hash([HASHES["rocket.jpg"], *hashes]) == [[0, 1, 2, 3, 4]]


def test_groups_are_what_steps_of_at_most_the_distance_connect():
    steps = [0, 0b111, 0b111111, 1 << 63 | 1 << 40 | 1 << 20 | 1 << 10]
    # 0 and 63 differ in six bits; the one between them connects them, wherever it stands.
    assert group_by_hash(steps, 3) == [[0, 1, 2], [3]]
    assert group_by_hash([steps[0], steps[2], steps[3], steps[1]], 3) == [[0, 1, 3], [2]]
    assert group_by_hash(steps, 2) == [[0], [1], [2], [3]]
    assert group_by_hash(steps, 64) == [[0, 1, 2, 3]]
    assert group_by_hash([]) == []


def test_groups_are_the_connected_components():
    generator = np.random.default_rng(0)
    hashes = [int(generator.integers(0, 1 << 20)) for _ in range(120)]
    near = [[bin(one ^ other).count("1") <= 4 for other in hashes] for one in hashes]
    labels = connected_components(np.array(near))[1]
    found = group_by_hash(hashes, 4)
    assert 1 < len(found) < 120
    assert [{int(labels[place]) for place in group} for group in found] == [
        {int(labels[group[0]])} for group in found
    ]
    assert len(found) == labels.max() + 1
