"""Rows come back from every format as they were, and a table needs no pyarrow but for Parquet."""

from __future__ import annotations

import builtins
import json
import math

import numpy as np
import pytest

from compare2score.errors import CollectionError, MissingExtraError
from compare2score.pipelines.rows import FORMATS, Row, check_format, read_rows, write_rows

BUNDLE = "b" * 64
COLUMNS = [
    *("path", "bytes", "width", "height", "sha256", "value", "q", "std", "p1", "p2", "p3", "p4", "p5"),
    *("status", "error_code", "error_text", "bundle"),
]


def rows(number=50):
    generator = np.random.default_rng(0)
    for place in range(number):
        if place % 5 == 3:
            text = 'it\'s, "quoted"\nbroken'
            yield Row(
                f"bad {place}.jpg", BUNDLE, 3, None, None, "a" * 64, error_code="truncated", error_text=text
            )
        elif place % 5 == 4:
            yield Row(f"{place}\n,ü.jpg", BUNDLE, error_code="not_found", error_text="gone")
        else:
            value, q, std, *rest = generator.random(8) ** 20
            probabilities = tuple(map(float, rest))
            yield Row(
                f"{place}.jpg",
                BUNDLE,
                2**40 + place,
                640,
                65535,
                f"{place:064x}",
                float(value),
                float(-q),
                float(std),
                probabilities,
            )


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_read_back_to_the_last_bit(tmp_path, kind):
    if kind == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"rows{kind}"
    write_rows(rows(), path, kind, anchors=5)
    assert list(read_rows(path)) == list(rows())


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_rows_make_the_same_bytes(tmp_path, kind):
    if kind == ".parquet":
        pytest.importorskip("pyarrow")
    files = [tmp_path / f"{name}{kind}" for name in "ab"]
    for file in files:
        write_rows(rows(), file, kind, anchors=5)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_every_format_has_the_columns_that_are_promised(tmp_path):
    import csv

    parquet = pytest.importorskip("pyarrow.parquet")
    for kind in FORMATS:
        write_rows(rows(), tmp_path / f"rows{kind}", kind, anchors=5)
    assert parquet.read_schema(tmp_path / "rows.parquet").names == COLUMNS
    with (tmp_path / "rows.csv").open(newline="") as file:
        records = list(csv.reader(file))
    assert records[0] == COLUMNS
    assert len(records) == 51
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [list(json.loads(line)) for line in lines] == [COLUMNS] * 50
    table = parquet.read_table(tmp_path / "rows.parquet")
    assert table.column("value").null_count == sum(row.value is None for row in rows())
    assert table.column("status").to_pylist() == [row.status for row in rows()]


@pytest.mark.parametrize("anchors", [2, 7, 12])
def test_there_are_as_many_probabilities_as_anchors(tmp_path, anchors):
    probabilities = tuple(math.sqrt(place) / 4 for place in range(anchors))
    given = [
        Row("a", BUNDLE, 1, 1, 1, "a" * 64, 1.0, 1.0, 1.0, probabilities),
        Row("b", BUNDLE, error_code="timeout"),
    ]
    for kind in (".csv", ".jsonl"):
        write_rows(given, tmp_path / f"rows{kind}", kind, anchors)
        assert list(read_rows(tmp_path / f"rows{kind}")) == given


@pytest.mark.parametrize("kind", FORMATS)
def test_a_name_that_is_no_utf_8_can_be_written(tmp_path, kind):
    if kind == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"rows{kind}"
    write_rows([Row("caf\udce9.jpg", BUNDLE, error_code="not_found", error_text="\udce9")], path, kind, 5)
    (row,) = read_rows(path)
    assert row.path == ("caf\udce9.jpg" if kind == ".jsonl" else "caf\\xe9.jpg")


def test_only_parquet_needs_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def without_pyarrow(name, *arguments, **options):
        if name.partition(".")[0] == "pyarrow":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    for kind in (".csv", ".jsonl"):
        write_rows(rows(), tmp_path / f"rows{kind}", kind, 5)
        assert len(list(read_rows(tmp_path / f"rows{kind}"))) == 50
    with pytest.raises(MissingExtraError, match=r"pip install 'compare2score-edge\[filter\]'"):
        check_format(tmp_path / "rows.parquet")


@pytest.mark.parametrize("name", ["rows", "rows.xlsx", "rows.json"])
def test_another_extension_is_refused(tmp_path, name):
    with pytest.raises(CollectionError, match=r"is none of \.parquet \.csv \.jsonl"):
        check_format(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", "image,mos\na,1\n"),
        ("rows.csv", "path,bytes\na,many\n"),
        ("rows.jsonl", "{}\n"),
        ("rows.jsonl", "[1]\n"),
        ("rows.jsonl", "half a li"),
        ("rows.parquet", "no table"),
    ],
)
def test_what_is_no_output_is_refused_in_a_sentence(tmp_path, name, content):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_text(content)
    with pytest.raises(CollectionError, match=name):
        list(read_rows(tmp_path / name))
