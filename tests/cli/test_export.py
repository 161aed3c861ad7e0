"""`c2s export`: which images it takes for anchors and checks, and how it reports."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from toy_bundle import gray_image, toy_manifest

from compare2score.bundle import open_bundle
from compare2score.image import preprocess
from compare2score.training.recipe import ACCOUNT


@dataclass(frozen=True)
class Drift:
    name: str
    images: int
    srcc_fp32: float
    srcc: float
    rank_correlation: float
    accepted = property(lambda self: self.srcc_fp32 - self.srcc < 0.005)


@pytest.fixture
def exporter(monkeypatch, bundle):
    """Calls of export_bundle, which prints what torch might and reports one good and one bad drift."""
    calls = []

    def export_bundle(*arguments):
        calls.append(arguments)
        print("torch's own chatter")
        precision = arguments[2]
        drifts = (
            (Drift("one", 40, 0.9, 0.899, 0.998), Drift("two", 50, 0.8, 0.7, 0.9)) if arguments[4] else ()
        )
        opened = open_bundle(bundle)
        written = SimpleNamespace(
            path=arguments[1], identity=opened.identity, manifest=toy_manifest(precision=precision)
        )
        return SimpleNamespace(bundle=written, parity={"vision": 1.2e-6, "decoder": 3e-5}, drifts=drifts)

    @dataclass(frozen=True, eq=False)
    class LabelledImages:
        name: str
        images: tuple
        mos: np.ndarray

    contents = {
        "comparator.checkpoint": {"load_comparator": lambda path: f"comparator of {path}"},
        "export.drift": {"LabelledImages": LabelledImages},
        "comparator.published": {"ANCHOR_MATRIX": ((0.5, 0.4), (0.6, 0.5))},
        "export.exporter": {"export_bundle": export_bundle},
        "export.streaming": {
            "is_large": lambda path: path.name == "large",
            "open_streamed": lambda path: (f"shapes of {path}", "reader"),
        },
    }
    for name, content in contents.items():
        module = ModuleType(f"compare2score.{name}")
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


@pytest.fixture
def labels(tmp_path):
    """A dataset's folder: in each fifth of the range of train rows, one image is the surest."""
    rows = [
        f"{mos}{letter}.png,{mos},{std},train"
        for mos in range(11)
        for letter, std in (("x", 0.5), ("y", 0.9))
    ]
    rows += ["v1.png,3,0.1,val", "v2.png,7,0.1,val"]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "labels.csv").write_text("image,mos,std,split\n" + "\n".join(rows) + "\n")
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["", "labels.csv"])
def test_five_anchors_come_from_a_tables_train_rows(c2s, exporter, labels, tmp_path, name):
    result = c2s("export", "run/checkpoint", "--out", tmp_path / "new", "--anchors", labels / name)
    assert result.exit_code == 0
    ((comparator, out, precision, anchors, checks, notes, calibration, read, matrix, _),) = exporter
    assert (read, matrix) == (None, None)
    assert comparator == f"comparator of {Path('run/checkpoint')}"
    assert (out, precision, checks) == (tmp_path / "new", "fp32", [])
    # Intervals of 2 from 0 to 10; in each the first image with the smallest deviation.
    assert anchors == [labels / f"{mos}x.png" for mos in (0, 2, 4, 6, 8)]
    assert list(notes) == ["anchors_from"]
    # All train rows, as there are few, and none of the rows to judge by.
    assert len(calibration) == 22
    assert not {labels / "v1.png", labels / "v2.png"} & set(calibration)


def test_a_large_checkpoint_is_streamed(c2s, exporter, labels, tmp_path):
    c2s("export", "run/large", "--out", tmp_path / "new", "--anchors", labels)
    assert (exporter[0][0], exporter[0][7]) == (f"shapes of {Path('run/large')}", "reader")


def test_the_published_matrix_is_taken_when_asked_for(c2s, exporter, labels, tmp_path):
    c2s("export", "c", "--out", tmp_path / "new", "--anchors", labels, "--anchor-matrix", "published")
    assert exporter[0][8].tolist() == [[0.5, 0.4], [0.6, 0.5]]


def test_the_trainings_account_becomes_a_note(c2s, exporter, labels, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ACCOUNT).write_text('{"epochs": 7}')
    arguments = ["export", tmp_path / "run", "--out", tmp_path / "new", "--anchors", labels]
    assert c2s(*arguments).exit_code == 0
    assert exporter[0][5] == {"anchors_from": "data", "training": {"epochs": 7}}
    (tmp_path / "run" / ACCOUNT).write_bytes(b"{\xff")
    refused = c2s(*arguments)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert f"{ACCOUNT} is not JSON" in refused.stderr


def test_a_folder_without_a_table_gives_all_its_images_by_name(c2s, exporter, tmp_path):
    for name in ("3.png", "1.png", "2.png"):
        gray_image(tmp_path / "five" / name, 100)
    (tmp_path / "five" / "readme.txt").touch()
    c2s("export", "c", "--out", tmp_path / "new", "--anchors", tmp_path / "five")
    assert exporter[0][3] == [tmp_path / "five" / name for name in ("1.png", "2.png", "3.png")]


def test_checks_are_the_val_rows_and_what_is_lost_is_said_plainly(c2s, exporter, labels, tmp_path):
    arguments = ["--out", tmp_path / "new", "--anchors", labels, "--precision", "int8"]
    result = c2s("export", "c", *arguments, "--check", labels, labels / "labels.csv")
    assert result.exit_code == 0
    (check, _) = exporter[0][4]
    assert check.name == "data"
    assert check.images == (labels / "v1.png", labels / "v2.png")
    assert check.mos.tolist() == [3, 7]
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["vision", "1.2e-06"] in lines
    assert ["one", "40", "0.9000", "0.8990", "0.9980", "accepted"] in lines
    assert ["two", "50", "0.8000", "0.7000", "0.9000", "NOT", "accepted"] in lines
    assert lines[-1] == ["bundle:", str(tmp_path / "new")]
    assert "chatter" not in result.stdout
    assert result.stderr.splitlines()[-1] == (
        "On two int8 loses too much: SRCC falls from 0.8000 to 0.7000; use fp32, or other images to judge by."
    )


def test_json_is_one_object_and_nothing_else(c2s, exporter, labels, tmp_path):
    arguments = ["--out", tmp_path / "new", "--anchors", labels, "--precision", "int8", "--check", labels]
    report = json.loads(c2s("export", "c", *arguments, "--json").stdout)
    assert report["bundle"] == str(tmp_path / "new")
    assert report["precision"] == "int8"
    assert report["parity"] == {"vision": 1.2e-6, "decoder": 3e-5}
    assert [(drift["name"], drift["accepted"]) for drift in report["drifts"]] == [
        ("one", True),
        ("two", False),
    ]


def test_an_fp32_export_says_that_it_checks_nothing(c2s, exporter, labels, tmp_path):
    result = c2s("export", "c", "--out", tmp_path / "new", "--anchors", labels, "--check", labels)
    assert "Nothing was checked: fp32 is what other precisions are held against." in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--anchors", "data", "--out", "data"], "exists already"),
        (["--anchors", "gone", "--out", "new"], "does not exist; give a label table or a folder"),
        (["--anchors", "empty", "--out", "new"], "holds no images"),
        (["--anchors", "data", "--out", "new", "--check", "empty"], "cannot be read as a label table"),
        (["--anchors", "data", "--out", "new", "--precision", "int3"], "int3"),
        (["--anchors", "data", "--out", "new", "--anchor-matrix", "mine"], "mine"),
        (["--anchors", "data"], "--out"),
        (["--out", "new"], "--anchors"),
    ],
)
def test_wrong_use_is_found_before_the_work(c2s, exporter, labels, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    result = c2s("export", "c", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert exporter == []


@pytest.mark.parametrize("package", ["torch", "onnx", "onnxscript"])
def test_without_the_extra_one_sentence_names_the_install(labels, tmp_path, package):
    program = (
        "import sys\n"
        "sys.modules[sys.argv.pop(1)] = None\n"  # importing it fails, as if it were not installed
        "from compare2score.cli import main\n"
        "main()\n"
    )
    arguments = ["export", "c", "--out", str(tmp_path / "new"), "--anchors", str(labels)]
    command = [sys.executable, "-c", program, package, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Exporting needs an optional part: pip install 'compare2score-edge[export]'.\n"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_exported_checkpoint_scores_as_torch_does(c2s, tiny_comparator, texture, tmp_path, precision):
    torch = pytest.importorskip("torch", reason="exporting needs torch")
    comparator = tiny_comparator()
    comparator.save(tmp_path / "checkpoint")
    rows = ["image,mos,split"]
    for seed in range(12):
        Image.fromarray(texture(seed)).save(tmp_path / f"{seed}.png")
        rows.append(f"{seed}.png,{seed},{'val' if seed in (1, 4, 7) else 'train'}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "bundle"
    arguments = ["--out", out, "--precision", precision, "--anchors", tmp_path, "--check", tmp_path]
    exported = c2s("export", tmp_path / "checkpoint", *arguments, "--json")
    assert exported.exit_code == 0, exported.stderr
    report = json.loads(exported.stdout)
    assert max(report["parity"].values()) < 1e-4
    assert [drift["images"] for drift in report["drifts"]] == ([3] if precision == "int8" else [])

    anchors = open_bundle(out).anchors
    paths = [tmp_path / name for name in (*anchors.names, "1.png")]
    spec = comparator.config.image
    with torch.inference_mode():
        tokens = comparator.encode(torch.from_numpy(np.stack([preprocess(path, spec) for path in paths])))
        logits = comparator.compare(tokens[5:], *comparator.prefix(tokens[:5]))[0].double()
        weights = torch.tensor(comparator.config.level_weights, dtype=torch.float64)
        expected = torch.softmax(logits / comparator.config.temperature, -1) @ weights
    scored = json.loads(c2s("score", tmp_path / "1.png", "--bundle", out, "--json").stdout)
    tolerance = {"fp32": 1e-4, "int8": 0.05}[precision]
    assert scored["probabilities"] == pytest.approx(expected.tolist(), abs=tolerance)
