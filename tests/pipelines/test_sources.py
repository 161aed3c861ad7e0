"""Which entries sources stand for, in which order, and what is never followed."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from pathlib import Path

import pytest
from toy_bundle import gray_image

from compare2score.cli.inputs import expand
from compare2score.errors import CollectionError
from compare2score.pipelines.shards import inside
from compare2score.pipelines.sources import in_order, list_entries

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="paths are compared as POSIX has them")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    names = "b.jpg a.JPG notes.txt .hidden.jpg sub/z.jpg sub/deeper/y.png sub-2/x.png .thumbnails/t.jpg"
    for name in names.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths(*sources, **options):
    return [entry.path for entry in list_entries(sources, **options)]


def add(tar, name, data=b"", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


# Folders, patterns, lists


@pytest.mark.parametrize("sources", [["."], ["sub"], ["sub", "b.jpg", "**/*.png"], ["*.jpg", "absent.png"]])
def test_entries_are_what_c2s_score_takes_the_same_names_for(tree, sources):
    assert paths(*sources) == [item.path for item in expand(sources)]


def test_places_of_a_folders_images_are_relative_to_it(tree):
    found = {entry.path: entry.place for entry in list_entries([str(tree / "sub"), "b.jpg", "sub*/*.png"])}
    assert found == {
        str(tree / "sub/deeper/y.png"): "deeper/y.png",
        str(tree / "sub/z.jpg"): "z.jpg",
        "b.jpg": "b.jpg",
        "sub-2/x.png": "x.png",
    }


def test_a_list_names_files_one_a_line(tree):
    Path("list.txt").write_bytes("\ufeffsub/z.jpg\r\n\nno such.png\nnotes.txt\n".encode() + b"caf\xe9.png")
    assert paths("list.txt") == ["sub/z.jpg", "no such.png", "notes.txt", "caf\udce9.png"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("empty", "holds no images"),
        ("*.tga", "matches no file"),
        ("none.txt", "cannot be read"),
        ("notes.txt", "holds no images"),
        ("none.tar", "cannot be read"),
        ("b.tar", "no tar file"),
        ("b.tar.gz", "compressed"),
    ],
)
def test_a_source_without_images_is_refused_in_a_sentence(tree, source, said):
    Path("empty").mkdir()
    Path("b.tar").write_bytes(b"not a tar file" * 100)
    with pytest.raises(CollectionError, match=said):
        paths("b.jpg", source)


@pytest.mark.parametrize("at_once", [1, 2, 7, 100])
def test_names_are_sorted_in_pieces_as_in_one_go(at_once):
    names = [(f"{place * 37 % 23:02}",) for place in range(23)]
    assert list(in_order(lambda: iter(names), at_once)) == sorted(names)


def test_a_folder_that_may_not_be_read_is_one_entry_with_an_error(tree, monkeypatch):
    real = os.scandir

    def refused(folder):
        if Path(folder).name == "sub":
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", refused)
    found = {entry.path: entry.error and entry.error[0] for entry in list_entries(["."])}
    assert found == {"a.JPG": None, "b.jpg": None, "sub-2/x.png": None, "sub": "io_error"}


# Symbolic links


@pytest.fixture
def linked(tree):
    outside = gray_image(tree.parent / f"{tree.name}-outside" / "secret.png", 9)
    Path("sub/link.png").symlink_to(outside)
    Path("sub/folder").symlink_to(outside.parent)
    Path("sub/round").symlink_to(tree / "sub")
    return tree


def test_links_in_folders_are_not_followed(linked):
    found = {entry.path: entry.error and entry.error[0] for entry in list_entries(["sub"])}
    assert found == {"sub/deeper/y.png": None, "sub/link.png": "unsupported", "sub/z.jpg": None}


def test_links_in_patterns_and_lists_are_not_followed(linked):
    Path("list.txt").write_text("sub/link.png\n")
    for source in ("list.txt", "sub/link*"):
        ((path, error),) = [(entry.path, entry.error) for entry in list_entries([source])]
        assert (path, error[0]) == ("sub/link.png", "unsupported")
        assert error[1].endswith("--follow-links.")
    assert paths("sub/**/*.png") == ["sub/deeper/y.png", "sub/link.png"]


def test_links_are_followed_when_asked_and_never_round_in_circles(linked):
    found = list(list_entries(["sub"], follow_links=True))
    assert [entry.path for entry in found] == [
        "sub/deeper/y.png",
        "sub/folder/secret.png",
        "sub/link.png",
        "sub/z.jpg",
    ]
    assert {entry.error for entry in found} == {None}


def test_a_link_that_is_named_is_asked_for(linked):
    assert paths("sub/folder") == ["sub/folder/secret.png"]
    assert [entry.error for entry in list_entries(["sub/link.png"])] == [None]


# Tar shards


@pytest.fixture
def shard(tree):
    with tarfile.open("shard.tar", "w") as tar:
        add(tar, "000.jpg", b"first")
        add(tar, "000.json", b"{}")
        add(tar, "../../etc/001.jpg", b"second")
        add(tar, "/absolute/002.png", b"third")
        add(tar, "003.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "004.jpg", type=tarfile.LNKTYPE, linkname="000.jpg")
        add(tar, "005.jpg", type=tarfile.DIRTYPE)
        add(tar, "006.jpg", type=tarfile.CHRTYPE)
    return tree / "shard.tar"


def test_a_shards_images_lie_where_their_entries_say(shard):
    good = [entry for entry in list_entries(["shard.tar"]) if entry.error is None]
    held = shard.read_bytes()
    data = {entry.path: held[entry.offset : entry.offset + entry.size] for entry in good}
    assert data == {
        "shard.tar/000.jpg": b"first",
        "shard.tar/../../etc/001.jpg": b"second",
        "shard.tar//absolute/002.png": b"third",
    }
    assert [entry.place for entry in good] == ["000.jpg", "etc/001.jpg", "absolute/002.png"]


def test_links_and_devices_in_a_shard_are_errors(shard):
    bad = {entry.path: entry.error[0] for entry in list_entries(["shard.tar"]) if entry.error}
    assert bad == {f"shard.tar/{name}.jpg": "unsupported" for name in ("003", "004", "006")}


@pytest.mark.parametrize("cut", [700, 1024 + 200, 2048 + 200, 2048 + 512])
def test_a_shard_that_ends_early_is_said_to(shard, cut):
    shard.write_bytes(shard.read_bytes()[:cut])
    *members, last = list_entries(["shard.tar"])
    assert (last.path, last.error[0]) == ("shard.tar", "truncated")
    assert members[0].path == "shard.tar/000.jpg"


def test_a_header_that_is_damaged_is_said_to_be(shard):
    data = bytearray(shard.read_bytes())
    data[2048:2560] = b"x" * 512
    shard.write_bytes(data)
    assert [(entry.path, entry.error and entry.error[0]) for entry in list_entries(["shard.tar"])] == [
        ("shard.tar/000.jpg", None),
        ("shard.tar", "truncated"),
    ]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("../../../b.jpg", "b.jpg"),
        ("/etc/b.jpg", "etc/b.jpg"),
        ("//server/b.jpg", "server/b.jpg"),
        ("a/../../b.jpg", "a/b.jpg"),
        ("..\\..\\b.jpg", "b.jpg"),
        ("C:\\b.jpg", "b.jpg"),
        ("C:b.jpg", "b.jpg"),
        ("./a//b.jpg", "a/b.jpg"),
        ("..", "image"),
        ("", "image"),
    ],
)
def test_a_members_place_stays_below_its_folder(name, place):
    assert inside(name) == place


def test_a_members_place_fits_into_a_file_system(tmp_path):
    place = inside("/".join("ä" * 300 for _ in range(50)) + ".jpg")
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).touch()


# Parquet tables


def table(file, /, **columns):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(columns), file, row_group_size=2)


def test_a_table_of_paths_stands_for_its_files(tree):
    table("t.parquet", label=[1, 2, 3], path=["b.jpg", "sub/z.jpg", "absent.png"], note=["x", "y", "z"])
    assert paths("t.parquet") == ["b.jpg", "sub/z.jpg", "absent.png"]


@pytest.mark.parametrize("nested", [True, False])
def test_a_table_of_bytes_is_read_row_by_row(tree, nested):
    from compare2score.pipelines.shards import ParquetBytes

    held = [b"one", b"two", None, b"four", b"five"]
    names = ["a.jpg", None, "c.jpg", "../d.jpg", "e.jpg"]
    if nested:
        table(
            "t.parquet", image=[{"bytes": b, "path": n} for b, n in zip(held, names, strict=True)], y=[1] * 5
        )
    else:
        table("t.parquet", file_name=names, image=held, y=[1] * 5)
    entries = list(list_entries(["t.parquet"]))
    assert [entry.path for entry in entries] == [
        f"t.parquet/{name}" for name in ("a.jpg", "1", "c.jpg", "../d.jpg", "e.jpg")
    ]
    assert entries[3].place == "d.jpg"
    for chosen in (entries, entries[3:], entries[1::2]):
        reader = ParquetBytes()
        assert [reader.read(entry) for entry in chosen] == [held[entry.row] for entry in chosen]


def test_a_table_without_images_is_refused_with_its_columns(tree):
    table("t.parquet", mos=[1.0], std=[2.0])
    with pytest.raises(CollectionError, match=r"no column of image bytes or paths \(its columns: mos, std\)"):
        paths("t.parquet")
    Path("u.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(CollectionError, match="no Parquet file"):
        paths("u.parquet")
