"""What is kept, and where it ends up, also the second time."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from compare2score.errors import CollectionError
from compare2score.pipelines import selection
from compare2score.pipelines.rows import Row
from compare2score.pipelines.selection import Choice, carry_out, keep, read_top
from compare2score.pipelines.sources import Entry

VALUES = (30.0, None, 50.0, 10.0, 50.0, 90.0, None, 50.0)


def rows(values=VALUES):
    return [
        Row(f"{place}.jpg", "b", value=value, error_code="timeout" if value is None else None)
        for place, value in enumerate(values)
    ]


def kept(values=VALUES, **choice):
    flags = keep(rows(values), Choice(**choice), rows(values))
    return [place for place, flag in enumerate(flags) if flag]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, [0, 2, 3, 4, 5, 7]),
        ({"min_score": 50.0}, [2, 4, 5, 7]),
        ({"min_score": 50.1}, [5]),
        ({"top": 1}, [5]),
        ({"top": 3}, [2, 4, 5]),
        ({"top": 4}, [2, 4, 5, 7]),
        ({"top": 99}, [0, 2, 3, 4, 5, 7]),
        ({"top_share": 0.5}, [2, 4, 5]),
        ({"top_share": 0.01}, [5]),
        ({"top_share": 1.0}, [0, 2, 3, 4, 5, 7]),
    ],
)
def test_the_best_are_kept_and_of_equal_ones_the_first(choice, expected):
    assert kept(**choice) == expected


def test_the_best_share_is_what_sorting_gives():
    values = np.random.default_rng(0).permutation(100).astype(float).tolist()
    for percent in (1, 7, 20, 33, 55, 99):
        expected = sorted(range(100), key=lambda place: -values[place])[:percent]
        assert kept(values, top_share=percent / 100) == sorted(expected)


def test_nothing_is_kept_of_a_collection_without_scores():
    assert kept((None, None), top=1) == kept((None,), min_score=0.0) == kept((), top_share=0.5) == []


@pytest.mark.parametrize(
    ("text", "expected"), [("20%", (None, 0.2)), ("100%", (None, 1.0)), ("500", (500, None))]
)
def test_a_share_or_a_number_is_read(text, expected):
    assert read_top(text) == expected


@pytest.mark.parametrize("text", ["0", "-1", "0%", "101%", "many", "", "%", "nan%", "1.5"])
def test_what_is_neither_is_refused(text):
    with pytest.raises(CollectionError, match="neither a number"):
        read_top(text)


# Copies, links, lists

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links and line ends are POSIX")


def made(path, data, place=None, **fields):
    if not fields:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data)
    entry = Entry(path, fields.pop("file", path), place or Path(path).name, ".", **fields)
    return entry, Row(path, "b", len(data), sha256=hashlib.sha256(data).hexdigest(), value=1.0)


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s.tar").write_bytes(b"xxxhelloyyy")
    return [
        made("in/a/x.jpg", b"one", "a/x.jpg"),
        made("in/b/x.jpg", b"two", "a/x.jpg"),
        made("in/c/x.jpg", b"two", "a/x.jpg"),
        made("s.tar/../evil.jpg", b"hello", "evil.jpg", file="s.tar", offset=3, size=5),
        made("in/x.jpg", b"file", "deep.jpg"),
        made("in/y.jpg", b"below", "deep.jpg/y.jpg"),
    ]


def test_copies_keep_their_folders_and_names_that_collide_get_numbers(images):
    for _ in range(2):
        assert carry_out(images, Choice(copy_to=Path("out"))) == 6
        assert tree(Path("out")) == {
            "a/x.jpg": b"one",
            "a/x-2.jpg": b"two",
            "evil.jpg": b"hello",
            "deep.jpg": b"file",
            "deep.jpg_y.jpg": b"below",
        }


def test_copies_that_were_interrupted_are_completed(images):
    carry_out(images[:2], Choice(copy_to=Path("out")))
    carry_out(images, Choice(copy_to=Path("out")))
    after = tree(Path("out"))
    carry_out(images, Choice(copy_to=Path("fresh")))
    assert after == tree(Path("fresh"))


def test_a_copy_that_a_kill_cut_short_leaves_nothing_behind(images, monkeypatch):
    def half_written(entry, target, tables):
        target.write_bytes(b"on")
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(selection, "write_copy", half_written)
        carry_out(images, Choice(copy_to=Path("out")))
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    carry_out(images, Choice(copy_to=Path("out")))
    carry_out(images, Choice(copy_to=Path("fresh")))
    assert tree(Path("out")) == tree(Path("fresh"))


def test_what_lies_there_already_is_never_overwritten(images):
    made("out/a/x.jpg", b"somebody else's")
    Path("out/a/x-2.jpg").symlink_to("/nowhere")
    carry_out(images[:1], Choice(copy_to=Path("out")))
    assert tree(Path("out")) == {"a/x.jpg": b"somebody else's", "a/x-3.jpg": b"one"}
    assert Path("out/a/x-2.jpg").is_symlink()


def test_links_lead_to_their_images(images):
    files = [images[place] for place in (0, 1, 2, 4)]
    for _ in range(2):
        assert carry_out(files, Choice(link_to=Path("out"))) == 4
    found = {path.relative_to("out").as_posix(): path for path in Path("out").rglob("*") if path.is_symlink()}
    assert sorted(found) == ["a/x-2.jpg", "a/x-3.jpg", "a/x.jpg", "deep.jpg"]
    assert found["a/x-2.jpg"].resolve() == Path("in/b/x.jpg").resolve()


def test_what_lies_in_a_shard_cannot_be_linked(images):
    with pytest.raises(CollectionError, match="use --copy-to"):
        carry_out(images, Choice(link_to=Path("out")))


def test_a_list_has_a_path_a_line(images):
    carry_out([*images[:2], made("caf\udce9.jpg", b"")], Choice(listing=Path("kept.txt")))
    assert Path("kept.txt").read_bytes() == b"in/a/x.jpg\nin/b/x.jpg\ncaf\xe9.jpg\n"
    with pytest.raises(CollectionError, match="line break"):
        carry_out([made("a\nb.jpg", b"")], Choice(listing=Path("kept.txt")))
    assert Path("kept.txt").read_bytes().count(b"\n") == 3
