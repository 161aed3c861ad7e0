"""`c2s anchors`: the choice by hand, and a build that reproduces anchors computed without the graphs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from toy_bundle import ANCHOR_GRAYS, anchor_matrix, gray_image, preferred

from compare2score.bundle import open_bundle

TABLE = """image,mos,std,split
a.png,0,0.3,train
b.png,1,0.1,train
c.png,1.2,0.2,train
d.png,2.5,0.4,train
e.png,3.1,0.1,val
f.png,4,0.2,train
g.png,10,0.9,train
"""


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "demo.csv"
    path.write_text(TABLE)
    return path


def chosen(result):
    assert (result.exit_code, result.stderr) == (0, "")
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_each_interval_gives_its_surest_image(c2s, labels):
    # Train rows in [0, 5) and [5, 10]: the smallest deviations are b's and g's.
    result = c2s("anchors", "select", "--labels", labels, "--intervals", 2, "--json")
    assert chosen(result) == [
        {"path": str(labels.parent / "b.png"), "mos": 1.0, "std": 0.1, "interval": 0},
        {"path": str(labels.parent / "g.png"), "mos": 10.0, "std": 0.9, "interval": 1},
    ]


def test_text_is_paths_for_other_commands(c2s, labels):
    result = c2s("anchors", "select", "--labels", labels, "--intervals", 1, "--per-interval", 3)
    # b before the equally sure f and c, in the order of the table.
    assert result.stdout.split() == [str(labels.parent / name) for name in ("b.png", "c.png", "f.png")]


def test_another_split_on_request(c2s, labels):
    result = c2s("anchors", "select", "--labels", labels, "--split", "val", "--intervals", 1, "--json")
    assert [row["mos"] for row in chosen(result)] == [3.1]


def test_without_splits_and_deviations_all_rows_and_the_intervals_middle_count(c2s, tmp_path):
    path = tmp_path / "plain.csv"
    path.write_text("image,mos\na,0\nb,2\nc,4.9\nd,5.1\ne,7\nf,10\n")
    result = c2s("anchors", "select", "--labels", path, "--intervals", 2, "--json")
    assert [(row["mos"], row["std"]) for row in chosen(result)] == [(2, None), (7, None)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--split", "test"], "has no rows of split 'test'"),
        (["--intervals", "5"], "are needed; ask for fewer intervals"),
        (["--intervals", "0"], "--intervals"),
    ],
)
def test_what_cannot_be_chosen_is_wrong_use(c2s, labels, options, said):
    result = c2s("anchors", "select", "--labels", labels, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


def test_a_missing_table_is_one_sentence(c2s, tmp_path):
    result = c2s("anchors", "select", "--labels", tmp_path / "gone.csv")
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1


def grays(tmp_path, values=ANCHOR_GRAYS):
    return [gray_image(tmp_path / f"gray{gray}.png", gray) for gray in values]


@pytest.mark.parametrize("form", ["several values", "repeated", "options first"])
def test_a_build_reproduces_the_anchors_worked_out_by_hand(c2s, bundle, tmp_path, form):
    images, out = grays(tmp_path), tmp_path / "new"
    repeated = [part for image in images for part in ("--images", image)]
    arguments = {
        "several values": [bundle, "--images", *images, "--out", out],
        "repeated": [bundle, *repeated, "--out", out],
        "options first": ["--images", *images, "--out", out, bundle],
    }[form]
    result = c2s("anchors", "build", *arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{out}: 5 anchors\n", "")
    built, stored = open_bundle(out), open_bundle(bundle)
    assert built.anchors.names == stored.anchors.names
    assert built.anchors.matrix == pytest.approx(anchor_matrix(), abs=1e-6)
    assert built.anchors.visual_tokens == pytest.approx(stored.anchors.visual_tokens, abs=1e-6)
    for made, kept in zip(built.anchors.prefix, stored.anchors.prefix, strict=True):
        assert made == pytest.approx(kept, abs=1e-6)
    assert built.manifest == stored.manifest


def test_new_anchors_are_what_images_are_compared_with(c2s, bundle, tmp_path):
    out = tmp_path / "new"
    built = c2s("anchors", "build", bundle, "--images", *grays(tmp_path, (50, 210)), "--out", out, "--json")
    assert json.loads(built.stdout) == {
        "bundle": str(out),
        "identity": open_bundle(out).identity,
        "anchors": ["gray50.png", "gray210.png"],
    }
    scored = c2s("score", gray_image(tmp_path / "x.png", 120), "--bundle", out, "--json")
    expected = [preferred(120, 50), preferred(120, 210)]
    assert json.loads(scored.stdout)["probabilities"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("count", "said"), [(1, "too few; give at least two"), (0, "--images")])
def test_too_few_anchors_are_refused(c2s, bundle, tmp_path, count, said):
    images = [part for image in grays(tmp_path)[:count] for part in ("--images", image)]
    result = c2s("anchors", "build", bundle, *images, "--out", tmp_path / "new")
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "new").exists()


def test_an_unreadable_anchor_leaves_nothing_behind(c2s, bundle, tmp_path):
    result = c2s(
        "anchors",
        "build",
        bundle,
        "--images",
        *grays(tmp_path),
        tmp_path / "gone.png",
        "--out",
        tmp_path / "new",
    )
    assert result.exit_code == 2
    assert result.stderr == f"{tmp_path / 'gone.png'} does not exist; check the path.\n"
    assert not (tmp_path / "new").exists()


def test_an_existing_folder_is_never_written_over(c2s, bundle, tmp_path):
    (tmp_path / "new").mkdir()
    result = c2s("anchors", "build", bundle, "--images", *grays(tmp_path), "--out", tmp_path / "new")
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert list((tmp_path / "new").iterdir()) == []


def test_building_loads_no_training_framework(bundle, tmp_path):
    program = (
        "import sys\n"
        "from compare2score.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers', 'onnx'} & set(sys.modules)))\n"
    )
    arguments = ["anchors", "build", bundle, "--images", *grays(tmp_path), "--out", tmp_path / "new"]
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
