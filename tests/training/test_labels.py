"""Label tables: what is read, what is assumed, and which line is to blame when reading fails."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from compare2score.errors import LabelError
from compare2score.training.labels import STD_FRACTION, read_labels

IQA = Path(__file__).resolve().parents[2].parent / "shared" / "iqa"
TABLES = sorted((IQA / "mos").glob("*.csv"))


def write(tmp_path: Path, text: str, name: str = "demo.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_full_table_is_read_column_by_column(tmp_path):
    path = write(
        tmp_path,
        "split,mos,image,subset,std,group\n"
        "train,3.5,a/one.jpg,x,0.5,7\n"
        'test,-2e1,"b, with comma.jpg",y,0,8\n'
        "\n"
        "train, 4 ,c.jpg,z,1.25,7\n",
    )
    table = read_labels(path)
    assert table.name == "demo"
    assert table.images == ("a/one.jpg", "b, with comma.jpg", "c.jpg")
    assert table.mos.tolist() == [3.5, -20.0, 4.0]
    assert table.std.tolist() == [0.5, 0.0, 1.25]
    assert table.mos.dtype == table.std.dtype == np.float64
    assert table.has_std
    assert table.split == ("train", "test", "train")
    assert table.group == ("7", "8", "7")
    assert table.more == {"subset": ("x", "y", "z")}
    assert table.root == tmp_path
    assert len(table) == 3


def test_more_columns_follow_the_rows_of_the_split(tmp_path):
    path = write(
        tmp_path, "image,type,mos,type,split\na, blur ,1,x,test\nb,noise,2,y,train\nc,jpeg,3,z,test\n"
    )
    assert read_labels(path, split="test").more == {"type": ("blur", "jpeg")}


def test_the_table_cannot_be_changed_by_accident(tmp_path):
    table = read_labels(write(tmp_path, "image,mos,std\na,1,0.1\nb,2,0.2\n"))
    with pytest.raises(ValueError, match="read-only"):
        table.mos[0] = 9.0
    with pytest.raises(ValueError, match="read-only"):
        table.std[0] = 9.0


def test_without_std_a_share_of_the_range_of_the_whole_file_stands_in(tmp_path):
    path = write(tmp_path, "image,mos,split\na,10,train\nb,30,train\nc,60,test\n")
    assert pytest.approx(0.15) == STD_FRACTION
    for table in (read_labels(path), read_labels(path, split="train"), read_labels(path, split="test")):
        assert not table.has_std
        assert table.std == pytest.approx(np.full(len(table), 7.5))


def test_a_given_std_replaces_the_assumed_one_but_not_a_column(tmp_path):
    without = write(tmp_path, "image,mos\na,10\nb,30\n")
    assert read_labels(without, std=2.5).std.tolist() == [2.5, 2.5]
    having = write(tmp_path, "image,mos,std\na,10,1\nb,30,2\n", "having.csv")
    assert read_labels(having, std=2.5).std.tolist() == [1.0, 2.0]
    assert read_labels(having, std=2.5).has_std


def test_a_split_keeps_its_rows_in_every_column(tmp_path):
    path = write(
        tmp_path, "image,mos,std,group,split\na,1,.1,g,train\nb,2,.2,h,test\nc,3,.3,i,train\nd,4,.4,j,val\n"
    )
    table = read_labels(path, split="train")
    assert table.images == ("a", "c")
    assert table.mos.tolist() == [1.0, 3.0]
    assert table.std.tolist() == [0.1, 0.3]
    assert table.group == ("g", "i")
    assert table.split == ("train", "train")


def test_a_file_called_labels_is_named_after_its_folder(tmp_path, monkeypatch):
    folder = tmp_path / "photographs"
    folder.mkdir()
    path = write(folder, "image,mos\na,1\nb,2\n", "labels.csv")
    assert read_labels(path).name == "photographs"
    monkeypatch.chdir(folder)
    assert read_labels("labels.csv").name == "photographs"


def test_a_spreadsheet_export_with_byte_order_mark_and_crlf_is_read(tmp_path):
    path = tmp_path / "excel.csv"
    path.write_bytes("\ufeffimage,mos,std\r\nblåbær.jpg,1,0.5\r\nb.jpg,2,0.5\r\n".encode())
    table = read_labels(path)
    assert table.images == ("blåbær.jpg", "b.jpg")
    assert table.mos.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["line 1", "'image'"]),
        ("picture,mos\na,1\n", ["line 1", "'image'"]),
        ("image,score\na,1\n", ["line 1", "'mos'"]),
        ("image,mos,mos\na,1,2\n", ["line 1", "two columns", "'mos'"]),
        ("image,mos\n", ["no rows"]),
        ("image,mos\na,1\nb,good\n", ["line 3", "mos", "'good'"]),
        ("image,mos\na,1\nb,\n", ["line 3", "mos", "''"]),
        ("image,mos\na,1\n\nb,nan\n", ["line 4", "mos", "'nan'"]),
        ("image,mos\na,-inf\n", ["line 2", "mos", "'-inf'"]),
        ("image,mos,std\na,1,0.1\nb,2,none\n", ["line 3", "std", "'none'"]),
        ("image,mos,std\na,1,NaN\n", ["line 2", "std", "'NaN'"]),
        ("image,mos,std\na,1,0\nb,2,-0.5\n", ["line 3", "std", "-0.5"]),
        ("image,mos\na,1\nb,2\n a ,3\n", ["line 4", "'a'", "line 2"]),
        ("image,mos\na,1\n,2\n", ["line 3", "image"]),
        ("image,mos\na,1\nb,2,3\n", ["line 3", "3 fields", "2"]),
        ("image,mos\na,1\nb\n", ["line 3", "1 fields", "2"]),
        ('image,mos\na,1\n"b,2\n', ["line 3", "csv"]),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_its_file_and_line(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(LabelError) as caught:
        read_labels(path)
    message = str(caught.value)
    for word in [str(path), *words]:
        assert word in message
    assert message.endswith(".")
    assert "\n" not in message


def test_a_wrong_row_is_reported_even_outside_the_wanted_split(tmp_path):
    path = write(tmp_path, "image,mos,split\na,1,train\nb,?,test\n")
    with pytest.raises(LabelError, match="line 3"):
        read_labels(path, split="train")


def test_an_unknown_split_is_refused_with_the_known_ones(tmp_path):
    path = write(tmp_path, "image,mos,split\na,1,train\nb,2,val\n")
    with pytest.raises(LabelError, match=r"'test'.*train, val"):
        read_labels(path, split="test")
    with pytest.raises(LabelError, match="no split column"):
        read_labels(write(tmp_path, "image,mos\na,1\n", "plain.csv"), split="train")


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf")])
def test_a_constant_std_must_be_positive_and_finite(tmp_path, std):
    with pytest.raises(LabelError, match="above 0"):
        read_labels(write(tmp_path, "image,mos\na,1\n"), std=std)


def test_a_missing_file_a_folder_and_other_text_are_refused(tmp_path):
    with pytest.raises(LabelError, match=r"absent\.csv"):
        read_labels(tmp_path / "absent.csv")
    with pytest.raises(LabelError, match="cannot be read"):
        read_labels(tmp_path)
    latin = tmp_path / "latin.csv"
    latin.write_bytes("image,mos\nblå.jpg,1\n".encode("latin-1"))
    with pytest.raises(LabelError, match="UTF-8"):
        read_labels(latin)


@pytest.mark.skipif(not TABLES, reason="needs the published label tables in ../shared/iqa/mos")
def test_published_tables_agree_with_a_plain_csv_reader():
    fractions = []
    for path in TABLES:
        table = read_labels(path)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert table.name == path.stem
        assert list(table.images) == [row["image"] for row in rows]
        assert table.mos.tolist() == [float(row["mos"]) for row in rows]
        assert table.std.tolist() == [float(row["std"]) for row in rows]
        fractions.append(table.std.mean() / (table.mos.max() - table.mos.min()))
    # What STD_FRACTION claims about them.
    assert np.median(fractions) == pytest.approx(STD_FRACTION, abs=0.005)


@pytest.mark.skipif(not (IQA / "biq2021").is_dir(), reason="needs the labelled images in ../shared/iqa")
@pytest.mark.parametrize(
    ("name", "sizes", "has_std"), [("biq2021", (3426, 493, 453), False), ("agiqa3k", (1116, 82, 132), True)]
)
def test_published_splits_have_their_stated_sizes_and_their_images_exist(name, sizes, has_std):
    path = IQA / name / "labels.csv"
    for split, size in zip(("train", "val", "test"), sizes, strict=True):
        table = read_labels(path, split=split)
        assert table.name == name
        assert len(table) == len(table.mos) == len(table.std) == size
        assert table.has_std is has_std
        assert (table.root / table.images[0]).is_file()
        assert (table.root / table.images[-1]).is_file()
