"""Evaluating a table: what is left out, drawn together, broken down and reported; nothing is scored here."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from compare2score.errors import ImageError, LabelError
from compare2score.pipelines.evaluate import evaluate_table, image_paths, named_apart, score_table
from compare2score.pipelines.evaluation_report import (
    NamedBundle,
    Report,
    report_as_json,
    report_as_markdown,
    write_report,
)
from compare2score.pipelines.splits import random_parts
from compare2score.training.labels import LabelTable

SIZE = 40
GONE = ImageError("not_found", "gone.png does not exist; check the path.")


def table(name="demo", group=None, more=None):
    generator = np.random.default_rng(0)
    images = tuple(f"{n}.png" for n in range(SIZE))
    mos = generator.normal(3, 1, SIZE)
    return LabelTable(name, images, mos, np.full(SIZE, 0.4), True, None, group, Path("photos"), more or {})


def scored(labels, seed=1, noise=0.7, bad=()):
    q = labels.mos - 3 + np.random.default_rng(seed).normal(0, noise, SIZE)
    # Of a score nothing but q is read.
    results = [GONE if row in bad else SimpleNamespace(q=float(q[row])) for row in range(SIZE)]
    return score_table(labels, results)


def value(measurement, name="srcc", method=0):
    return measurement.agreements[method].statistics[name].value


def test_images_lie_below_the_tables_folder():
    assert image_paths(table())[3] == Path("photos/3.png")


def test_results_and_rows_must_be_as_many():
    with pytest.raises(ValueError, match="zip"):
        score_table(table(), [GONE] * (SIZE - 1))


def test_an_image_that_one_bundle_cannot_score_is_left_out_for_all_and_named():
    labels = table()
    first, second = scored(labels, 1, bad=(0, 7)), scored(labels, 2, bad=(7, 9))
    found = evaluate_table([first, second], resamples=20)
    kept = [row for row in range(SIZE) if row not in (0, 7, 9)]
    assert found.whole.images == SIZE - 3
    assert value(found.whole) == pytest.approx(spearmanr(first.q[kept], labels.mos[kept]).statistic)
    assert value(found.whole, method=1) == pytest.approx(
        spearmanr(second.q[kept], labels.mos[kept]).statistic
    )
    assert found.left_out == [("0.png", GONE), ("7.png", GONE), ("9.png", GONE)]


def test_nothing_readable_is_no_statistics_and_no_crash():
    found = evaluate_table([scored(table(), bad=range(SIZE))])
    assert (found.whole.images, len(found.left_out)) == (0, SIZE)
    assert np.isnan(value(found.whole))


def test_a_type_column_breaks_the_table_down_unless_another_is_named():
    kinds = tuple("blur" if n % 2 else "noise" for n in range(SIZE))
    makers = tuple("abcd"[n % 4] for n in range(SIZE))
    labels = table(group=tuple(str(n // 4) for n in range(SIZE)), more={"type": kinds, "maker": makers})
    given = scored(labels, bad=(1,))
    found = evaluate_table([given], resamples=20)
    assert (found.by, list(found.parts)) == ("type", ["blur", "noise"])
    blurred = list(range(3, SIZE, 2))
    assert found.parts["blur"].images == len(blurred)
    expected = spearmanr(given.q[blurred], labels.mos[blurred]).statistic
    assert value(found.parts["blur"]) == pytest.approx(expected)
    assert found.whole.units == 10
    # Within one group each image counts for itself.
    grouped = evaluate_table([given], by="group", resamples=0)
    assert (len(grouped.parts), grouped.parts["5"].units) == (10, 4)
    assert list(evaluate_table([given], by="maker", resamples=0).parts) == ["a", "b", "c", "d"]
    with pytest.raises(LabelError, match=r"'demo' has no column 'camera'; it has group, type, maker\."):
        evaluate_table([given], by="camera")


def test_splits_report_the_median_over_the_test_parts():
    labels = table(group=tuple(str(n // 4) for n in range(SIZE)))
    first, second = scored(labels, 1), scored(labels, 2)
    found = evaluate_table([first, second], splits=7, resamples=0, seed=3).splits
    parts = random_parts(labels, 7, 3)
    one, other = (
        np.array([spearmanr(each.q[part], labels.mos[part]).statistic for part in parts])
        for each in (first, second)
    )
    assert (found.parts, found.images) == (7, (8,) * 7)
    spread = found.statistics[0]["srcc"]
    assert (spread.median, spread.lowest, spread.highest) == pytest.approx(
        (np.median(one), one.min(), one.max())
    )
    # The median of the differences, not the difference of the medians.
    assert found.differences[0]["srcc"].median == pytest.approx(np.median(other - one))


def test_tables_of_one_name_are_told_apart():
    tables = [table("live"), table("live"), table("other"), table("live")]
    assert [each.name for each in named_apart(tables)] == ["live", "live-2", "other", "live-3"]


@pytest.fixture
def report():
    kinds = tuple("blur" if n % 2 else "odd | *type*" for n in range(SIZE))
    labels = table("demo $x$ <b>", more={"type": kinds})
    evaluation = evaluate_table(
        [scored(labels, 1, bad=(7,)), scored(labels, 2)], splits=3, resamples=30, seed=0
    )
    bundles = (NamedBundle("old", "/b/old", "a" * 64), NamedBundle("new", "/b/new", "c" * 64))
    return Report(bundles, (evaluation,), 30, 0)


def test_the_json_has_every_number_and_none_for_those_that_are_not_defined(report):
    found = json.loads(json.dumps(report_as_json(report), allow_nan=False))
    (one,) = found["tables"]
    whole = report.tables[0].whole
    assert one["results"]["new"]["plcc"]["value"] == value(whole, "plcc", 1)
    assert one["differences"].keys() == {"new"}
    assert one["left_out"] == [{"path": "7.png", "code": "not_found", "message": str(GONE)}]
    assert one["by"]["parts"].keys() == {"blur", "odd | *type*"}
    assert one["splits"]["results"]["old"]["srcc"].keys() == {"median", "lowest", "highest"}
    assert sum(one["pairs"].values()) == 39 * 38 // 2
    empty = Report(report.bundles[:1], (evaluate_table([scored(table(), bad=range(SIZE))]),), 0, 0)
    nothing = json.loads(json.dumps(report_as_json(empty), allow_nan=False))["tables"][0]["results"]["old"]
    assert nothing["srcc"] == {"value": None, "low": None, "high": None}


def test_the_markdown_has_tables_that_a_strangers_names_do_not_break(report):
    text = report_as_markdown(report)
    assert "39 images" in text
    assert "## demo $x$ \\<b\\>" in text
    assert "odd \\| \\*type\\*" in text
    assert f"| SRCC | {value(report.tables[0].whole):.3f} \\[" in text
    assert "- 7.png: not\\_found" in text or "- 7.png: not_found" in text
    for block in text.split("\n\n"):
        if block.startswith("|"):
            plain = block.replace("\\|", "")
            assert len({line.count("|") for line in plain.splitlines()}) == 1


def test_the_written_report_has_plots_and_all_scores_and_is_the_same_again(report, tmp_path):
    pytest.importorskip("matplotlib")
    paths = write_report(report, tmp_path / "one")
    again = write_report(report, tmp_path / "two")
    assert [path.name for path in paths] == [path.name for path in again]
    for path, other in zip(paths, again, strict=True):
        assert path.read_bytes() == other.read_bytes(), path.name
    names = {path.suffix for path in paths}
    assert names == {".json", ".md", ".csv", ".png", ".svg"}
    pictures = [path for path in paths if path.suffix == ".png"]
    assert len(pictures) == 2
    for path in pictures:
        assert f"({path.name})" in (tmp_path / "one" / "report.md").read_text()
        with Image.open(path) as picture:
            # Points and curve on white: more than an empty frame has.
            assert picture.size == (750, 600)
            assert np.mean(np.asarray(picture.convert("L")) < 250) > 0.01
    with (tmp_path / "one" / "scores.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == SIZE
    assert rows[7]["old"] == "not_found"
    assert float(rows[7]["new"]) == report.tables[0].scored[1].q[7]
