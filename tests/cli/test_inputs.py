"""Which files the names on a command line stand for."""

from __future__ import annotations

import os
import sys

import pytest

from compare2score.cli.inputs import expand
from compare2score.errors import ImageError


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Files of many kinds, with the tree's root as the working folder."""
    names = (
        "b.jpg a.JPG c.jpeg d.PNG e.webp f.tif g.TIFF h.bmp i.gif notes.txt raw.dng jpg .hidden.jpg ._b.jpg "
        "sub/z.jpg sub/deeper/y.png sub-2/x.png .thumbnails/t.jpg sub/odd[1].png"
    )
    for name in names.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths(*names):
    return [item.path.replace(os.sep, "/") for item in expand(names)]


def test_a_folder_stands_for_all_its_images_sorted_without_hidden_ones(tree):
    flat = ["a.JPG", "b.jpg", "c.jpeg", "d.PNG", "e.webp", "f.tif", "g.TIFF", "h.bmp", "i.gif"]
    below = ["sub/deeper/y.png", "sub/odd[1].png", "sub/z.jpg", "sub-2/x.png"]
    assert paths(".") == flat + below


def test_a_folders_images_keep_the_way_to_it(tree):
    assert paths("sub") == ["sub/deeper/y.png", "sub/odd[1].png", "sub/z.jpg"]
    assert paths(str(tree / "sub-2")) == [(tree / "sub-2" / "x.png").as_posix()]


def test_names_keep_their_order_and_repetitions(tree):
    assert paths("sub-2", "b.jpg", "a.JPG", "b.jpg") == ["sub-2/x.png", "b.jpg", "a.JPG", "b.jpg"]


def test_a_named_file_needs_no_suffix_and_need_not_exist(tree):
    assert paths("notes.txt", ".hidden.jpg", "absent.png") == ["notes.txt", ".hidden.jpg", "absent.png"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["b.jpg"]),
        ("?.[jw]*", ["b.jpg", "c.jpeg", "e.webp"]),
        ("sub*/*.png", ["sub-2/x.png", "sub/odd[1].png"]),
        ("**/*.png", ["sub-2/x.png", "sub/deeper/y.png", "sub/odd[1].png"]),
        ("sub/*", ["sub/odd[1].png", "sub/z.jpg"]),
        ("*.txt", ["notes.txt"]),
    ],
)
def test_a_pattern_stands_for_the_files_that_it_matches(tree, pattern, expected):
    assert paths(pattern) == expected
    assert paths(str(tree / pattern)) == [(tree / name).as_posix() for name in expected]


def test_a_file_that_is_called_like_a_pattern_is_itself(tree):
    assert paths("sub/odd[1].png") == ["sub/odd[1].png"]


@pytest.mark.parametrize("name", ["*.tga", "nowhere/*.jpg", "[x]"])
def test_a_pattern_without_matches_is_refused(tree, name):
    with pytest.raises(ImageError, match=r"^No file matches .*; check the pattern\.$") as caught:
        expand(["b.jpg", name])
    assert caught.value.code == "not_found"


def test_a_folder_without_images_is_refused(tree):
    (tree / "empty" / ".git").mkdir(parents=True)
    (tree / "empty" / ".git" / "x.png").touch()
    with pytest.raises(ImageError, match=r"^empty holds no images \(.*\.webp\); give another folder\.$"):
        expand(["empty"])


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_links_in_a_folder_are_not_followed(tree):
    (tree / "sub-2" / "loop").symlink_to(tree / "sub-2", target_is_directory=True)
    (tree / "sub-2" / "alias.png").symlink_to(tree / "sub" / "z.jpg")
    found = expand(["sub-2"])
    assert [item.path for item in found] == ["sub-2/alias.png", "sub-2/x.png"]
    assert [item.error and item.error.code for item in found] == ["unsupported", None]
    assert expand(["sub-2/alias.png"])[0].error is None  # named itself


def test_a_folder_that_may_not_be_read_gets_an_error_among_the_others(tree, monkeypatch):
    # Denied by hand: the tests may run as a user who is denied nothing.
    scan = os.scandir

    def deny(path):
        if os.fspath(path).endswith("deeper"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", deny)
    found = expand(["sub"])
    assert [item.error and item.error.code for item in found] == ["io_error", None, None]
    assert found[0].path == os.path.join("sub", "deeper")  # noqa: PTH118
    assert "Permission denied" in str(found[0].error)
