"""The measurement of ranking within scenes, on pictures whose order the toy comparator knows."""

from __future__ import annotations

import json

import numpy as np
import pytest
from toy_bundle import gray_image

from compare2score.benchmarks import ranking
from compare2score.errors import ImageError, LabelError


def table(folder, rows):
    """A label table of (grey, mos, group, split)."""
    lines = ["image,mos,group,split"]
    for place, (gray, mos, group, split) in enumerate(rows):
        gray_image(folder / f"{place}.png", gray)
        lines.append(f"{place}.png,{mos},{group},{split}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


def measured(bundle, folder, capsys, **options):
    options = {"split": "test", "groups": None, "threads": 1} | options
    ranking.main([folder], bundle=bundle, out=folder, **options)
    results = json.loads((folder / "ranking.json").read_text())["results"]
    assert json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))["results"] == results
    return results["tables"][folder.name]


SCENES = [
    (40, 1, "x", "test"),
    (200, 5, "y", "test"),
    (120, 2, "x", "test"),
    (90, 3, "y", "test"),  # people and the comparator agree so far
    (210, 4, "z", "test"),
    (60, 5, "z", "test"),  # here they do not
    (70, 5, "z", "test"),  # rated as the one before: no pair
    (10, 1, "alone", "test"),
    (10, 1, "x", "train"),
]


def test_pairs_within_scenes_are_counted(bundle, tmp_path, capsys):
    found = measured(bundle, table(tmp_path, SCENES), capsys)
    assert (found["scenes"], found["images"], found["pairs"]) == (3, 7, 4)
    assert found["accuracy"] == dict.fromkeys(ranking.METHODS, 0.5)
    assert found["rank_less_anchors_95"] == [0, 0]
    assert found["ordered_differently"] == 0
    assert sum(row["pairs"] for row in found["calibration"]) == 4


def test_a_number_of_scenes_can_be_asked_for(bundle, tmp_path, capsys):
    found = measured(bundle, table(tmp_path, SCENES), capsys, groups=2)
    assert (found["scenes"], found["pairs"]) == (2, 2)
    assert found["accuracy"] == dict.fromkeys(ranking.METHODS, 1.0)


def test_calibration_sets_what_is_stated_beside_what_people_say():
    rows = ranking.calibration(np.array([0.95, 0.97, 0.04, 0.5, 0.55, 1.0]))
    assert rows[0] == {"from": 0.5, "to": 0.6, "pairs": 2, "stated": pytest.approx(0.525), "agreed": 0.5}
    assert rows[-1]["pairs"] == 4
    assert rows[-1]["stated"] == pytest.approx((0.95 + 0.97 + 0.96 + 1) / 4)
    assert rows[-1]["agreed"] == 0.75


def test_a_table_without_scenes_and_a_missing_image_are_named(bundle, tmp_path, capsys):
    with pytest.raises(LabelError, match="no group of two images"):
        measured(bundle, table(tmp_path, SCENES), capsys, split="train")
    (tmp_path / "3.png").unlink()
    with pytest.raises(ImageError, match="does not exist"):
        measured(bundle, tmp_path, capsys)
