"""Thumbnails of what was scored, wherever it lies, and of nothing else."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compare2score.pipelines.rows import Row
from compare2score.pipelines.thumbnail import SIDE, make_thumbnails

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="colons and tar paths are POSIX")


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def png(color, size=(40, 20), **options):
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG", **options)
    return file.getvalue()


def row(path, data):
    return Row(path, "b", len(data), 1, 1, hashlib.sha256(data).hexdigest(), 50.0, 0.0, 0.5, (0.5,) * 5)


def opened(file):
    image = Image.open(io.BytesIO(file))
    assert image.format == "JPEG"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("size", [(900, 400), (400, 901), (600, 600), (1, 900), (900, 1), (7, 3)])
def test_the_whole_image_is_shown_without_margins(size):
    Path("a.png").write_bytes(png((200, 30, 60), size))
    (file,) = make_thumbnails([row("a.png", Path("a.png").read_bytes())]).values()
    pixels = opened(file)
    height, width, _ = pixels.shape
    assert max(height, width) == SIDE
    assert width / height == pytest.approx(size[0] / size[1], rel=0.02) or min(width, height) == 1
    if min(size) > SIDE:
        # A margin would be white; the outermost pixels are mixed with it.
        assert abs(pixels[2:-2, 2:-2] - (200, 30, 60)).max() < 24


def test_the_picture_is_upright():
    turned = Image.new("RGB", (40, 20), (255, 0, 0))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save("a.jpg", exif=exif)
    (file,) = make_thumbnails([row("a.jpg", Path("a.jpg").read_bytes())]).values()
    assert opened(file).shape == (SIDE, SIDE // 2, 3)


def test_images_in_tar_files_and_tables_are_found():
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    files = {f"in/{name}.png": png(color) for name, color in zip("abc", ("red", "lime", "blue"), strict=True)}
    # A folder that is called like a shard, and a shard in it.
    Path("x.tar").mkdir()
    with tarfile.open("x.tar/s.tar", "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    table = pyarrow.table({"path": list(files), "bytes": list(files.values())})
    parquet.write_table(table, "t.parquet")
    rows = [
        row(f"{place}/{name}", files[name])
        for place in ("t.parquet", "./x.tar/s.tar")
        for name in ("in/c.png", "in/a.png")
    ]
    found = make_thumbnails(rows)
    assert set(found) == {one.path for one in rows}
    for path, file in found.items():
        color = (0, 0, 255) if path.endswith("c.png") else (255, 0, 0)
        assert abs(opened(file).mean((0, 1)) - color).max() < 6


def test_what_is_gone_or_has_changed_has_no_picture():
    data = png("red")
    for name in ("same.png", "changed.png", "link.png"):
        Path(name).write_bytes(data)
    Path("changed.png").write_bytes(png("blue"))
    Path("cut.png").write_bytes(data[:40])
    Path("no.tar").write_bytes(b"no tar file")
    rows = [row(name, data) for name in ("same.png", "changed.png", "gone.png", "no.tar/a.png", "s\0.tar/a")]
    rows += [row("cut.png", data[:40]), row("", b"")]
    assert list(make_thumbnails(rows)) == ["same.png"]


def test_a_decoder_that_dies_or_hangs_costs_one_picture(hostile_decoder):
    files = {"crash": b"CRASH", "loop": b"LOOP", "good.png": png("red")}
    for name, data in files.items():
        Path(name).write_bytes(data)
    found = make_thumbnails([row(name, data) for name, data in files.items()], seconds=2.0)
    assert list(found) == ["good.png"]
