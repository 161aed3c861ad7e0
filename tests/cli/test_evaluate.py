"""`c2s eval`: tables to statistics, plots and an exit status; the recorded accuracy comes out of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from toy_bundle import gray_image, write_toy_bundle

from compare2score import Scorer

ROOT = Path(__file__).resolve().parents[2]
IQA = ROOT.parent / "shared" / "iqa"
GRAYS = np.linspace(15, 240, 16).astype(int)


@pytest.fixture
def rated(tmp_path):
    """A labels.csv of sixteen greys, brighter mostly rated better, and some columns more."""
    lines = ["image,mos,std,group,split,type,maker"]
    for place, gray in enumerate(GRAYS.tolist()):
        gray_image(tmp_path / "rated" / "images" / f"{place}.png", gray)
        mos = gray / 50 + (0.9 if place % 3 == 0 else 0)
        split, kind = ("train" if place < 4 else "test"), ("dark" if place < 8 else "bright")
        lines.append(f"images/{place}.png,{mos},0.5,{place // 2},{split},{kind},{'xy'[place % 2]}")
    (tmp_path / "rated" / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "rated" / "labels.csv"


def result_of(run):
    assert run.exit_code == 0, run.stderr
    return json.loads(run.stdout)


def test_the_test_rows_are_scored_and_compared_with_the_opinions(c2s, bundle, rated):
    found = result_of(c2s("eval", "--labels", rated, "--bundle", bundle, "--json", "--resamples", 50))
    (table,) = found["tables"]
    paths = [rated.parent / "images" / f"{place}.png" for place in range(4, 16)]
    q = [Scorer(bundle).score(path).q for path in paths]
    mos = [GRAYS[place] / 50 + (0.9 if place % 3 == 0 else 0) for place in range(4, 16)]
    (name,) = table["results"]
    assert found["bundles"][0]["identity"] == Scorer(bundle).bundle.identity
    assert (table["name"], table["images"], table["units"]) == ("rated", 12, 6)
    assert table["results"][name]["srcc"]["value"] == pytest.approx(spearmanr(q, mos).statistic)
    assert table["results"][name]["srcc"]["low"] < table["results"][name]["srcc"]["high"]
    assert table["by"]["column"] == "type"
    assert {key: part["images"] for key, part in table["by"]["parts"].items()} == {"bright": 8, "dark": 4}


def test_text_names_every_statistic(c2s, bundle, rated):
    run = c2s("eval", "--labels", rated, "--bundle", bundle, "--split", "all", "--splits", 3, "--by", "maker")
    assert (run.exit_code, run.stderr) == (0, "")
    assert "rated, 16 images" in run.stdout
    assert "rated, median of 3 test parts" in run.stdout
    assert "rated by maker" in run.stdout
    for title in ("SRCC", "PLCC", "KRCC", "RMSE", "pairs: similar", "pairs: better", "pairs: superior"):
        assert title in run.stdout
    assert "\x1b" not in run.stdout


def test_an_unreadable_image_is_named_and_left_out_and_the_status_is_1(c2s, bundle, rated, tmp_path):
    (rated.parent / "images" / "9.png").write_text("no image")
    (rated.parent / "images" / "5.png").unlink()
    out = tmp_path / "report"
    run = c2s("eval", "--labels", rated, "--bundle", bundle, "--out", out, "--resamples", 20, "--json")
    assert run.exit_code == 1
    (table,) = json.loads(run.stdout)["tables"]
    assert table["images"] == 10
    left_out = {row["path"]: row["code"] for row in table["left_out"]}
    assert left_out == {"images/5.png": "not_found", "images/9.png": "not_an_image"}
    assert "not_found: " in run.stderr
    assert run.stderr.endswith("2 of 12 images could not be scored; the statistics are of the others.\n")
    assert len((out / "scores.csv").read_text().splitlines()) == 13
    assert json.loads((out / "report.json").read_text())["tables"] == [table]


def test_two_bundles_are_compared(c2s, bundle, rated, tmp_path):
    other = write_toy_bundle(tmp_path / "other").path
    found = result_of(c2s("eval", "--labels", rated, "--bundle", bundle, other, "--json", "--resamples", 20))
    (first, second) = (each["name"] for each in found["bundles"])
    assert first != second
    (difference,) = found["tables"][0]["differences"].values()
    assert difference["srcc"] == {"value": 0, "low": 0, "high": 0}


def test_a_dataset_is_read_as_it_is_distributed(c2s, bundle, tmp_path):
    rows = ["image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,MOS_zscore"]
    for place, gray in enumerate(GRAYS.tolist()):
        gray_image(tmp_path / "koniq" / "1024x768" / f"{place}.png", gray)
        rows.append(f"{place}.png,0,0,0,0,0,0,{gray / 50},0.5,0")
    (tmp_path / "koniq" / "koniq10k_scores_and_distributions.csv").write_text("\n".join(rows))
    named = f"koniq10k={tmp_path / 'koniq'}"
    found = result_of(c2s("eval", "--dataset", named, "--bundle", bundle, "--json", "--splits", 2))
    (table,) = found["tables"]
    assert (table["name"], table["images"], table["splits"]["images"]) == ("koniq10k", 16, [3, 3])
    (results,) = table["results"].values()
    assert results["srcc"]["value"] == pytest.approx(1)


def test_published_splits_that_name_no_image_are_told(c2s, bundle, rated, tmp_path):
    (tmp_path / "splits" / "1").mkdir(parents=True)
    (tmp_path / "splits" / "1" / "other_test.json").write_text('[{"image": "elsewhere.png"}]')
    run = c2s(
        "eval", "--labels", rated, "--bundle", bundle, "--splits", tmp_path / "splits", "--resamples", 0
    )
    assert run.exit_code == 0
    assert "names no image of rated" in run.stderr
    assert "test parts" not in run.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "nothing to evaluate on"),
        (["--dataset", "live"], "names no folder"),
        (["--dataset", "ava=x"], "no dataset 'ava'"),
        (["--labels", "absent.csv"], "cannot be read"),
        (["--labels", "{rated}", "--split", "val"], "no rows of split 'val'"),
        (["--labels", "{rated}", "--by", "camera"], "no column 'camera'"),
        (["--labels", "{rated}", "--splits", "absent"], "holds no splits"),
        (["--labels", "{rated}", "--splits", "0"], "at least 1"),
        (["--labels", "{rated}", "--bundle", "absent"], "is no bundle"),
    ],
)
def test_wrong_use_is_one_sentence_before_anything_is_scored(c2s, rated, options, said):
    run = c2s("eval", *(option.format(rated=rated) for option in options))
    assert (run.exit_code, run.stdout) == (2, "")
    assert said in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_without_matplotlib_the_extra_is_named_before_anything_is_scored(c2s, rated, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = c2s("eval", "--labels", rated, "--out", tmp_path / "out")
    assert (run.exit_code, run.stdout) == (2, "")
    assert "compare2score-edge[eval]" in run.stderr
    assert not (tmp_path / "out").exists()


def test_evaluating_loads_no_torch(c2s_process, bundle, rated):
    run = c2s_process(
        "eval", "--labels", rated, "--bundle", bundle, "--resamples", 0, env={"PYTHONPROFILEIMPORTTIME": "1"}
    )
    assert run.returncode == 0
    loaded = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert "compare2score.pipelines.correlation" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "onnx", "matplotlib"})


@pytest.mark.slow
@pytest.mark.skipif(not (IQA / "agiqa3k").exists(), reason="needs the shared photographs")
def test_the_readmes_accuracy_comes_out(c2s):
    record = json.loads((ROOT / "benchmarks" / "results" / "accuracy.json").read_text())["results"]
    found = result_of(c2s("eval", "--labels", IQA / "agiqa3k" / "labels.csv", "--json", "--resamples", 0))
    assert found["bundles"][0]["identity"] == record["bundle"]
    results = found["tables"][0]["results"]["embedded"]
    for name, expected in record["tables"]["agiqa3k"]["methods"]["comparator"].items():
        # As the README shows it; scores differ in late digits from one kind of processor to another.
        assert results[name]["value"] == pytest.approx(expected, abs=5e-4)


# Comparators in torch, and hard votes


@pytest.fixture(scope="module")
def checkpoint(tiny_comparator, tmp_path_factory):
    tiny_comparator().save(folder := tmp_path_factory.mktemp("nano") / "checkpoint")
    return folder


def test_an_exported_bundle_scores_as_its_checkpoint_does_in_torch(c2s, checkpoint, rated, tmp_path):
    exported = tmp_path / "exported"
    run = c2s("export", checkpoint, "--anchors", rated.parent / "images", "--out", exported)
    assert run.exit_code == 0, run.stderr
    options = ("--labels", rated, "--bundle", exported, "--resamples", 0, "--json", "--out", tmp_path / "r")
    found = result_of(c2s("eval", *options, "--against", "torch", "--checkpoint", checkpoint))
    names = [bundle["name"] for bundle in found["bundles"]]
    assert names == ["exported", "checkpoint in torch"]
    lines = (tmp_path / "r" / "scores.csv").read_text().splitlines()
    q = np.array([[float(value) for value in line.split(",")[-2:]] for line in lines[1:]])
    assert len(q) == 12
    np.testing.assert_allclose(q[:, 0], q[:, 1], atol=1e-4)


def test_a_checkpoint_alone_is_evaluated_with_anchors_of_its_own(c2s, checkpoint, rated):
    options = ("--labels", rated, "--checkpoint", checkpoint, "--resamples", 0, "--json")
    found = result_of(c2s("eval", *options, "--anchor-images", rated.parent / "images"))
    assert [bundle["name"] for bundle in found["bundles"]] == ["checkpoint in torch"]
    refused = c2s("eval", *options)
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "give --anchor-images" in refused.stderr
    refused = c2s("eval", "--labels", rated, "--against", "torch")
    assert (refused.exit_code, "give its --checkpoint" in refused.stderr) == (2, True)


def test_soft_comparisons_and_hard_votes_are_compared(c2s, bundle, rated):
    options = ("--labels", rated, "--bundle", bundle, "--resamples", 0, "--json")
    found = result_of(c2s("eval", *options, "--matrix", "count", "probability"))
    (table,) = found["tables"]
    count, soft = (table["results"][f"{bundle.name}, {form}"] for form in ("count", "probability"))
    paths = [rated.parent / "images" / f"{place}.png" for place in range(4, 16)]
    votes = [Scorer(bundle, matrix="count").score(path).q for path in paths]
    assert len(set(votes)) < len(votes)
    mos = [GRAYS[place] / 50 + (0.9 if place % 3 == 0 else 0) for place in range(4, 16)]
    assert count["srcc"]["value"] == pytest.approx(spearmanr(votes, mos).statistic)
    assert soft["srcc"]["value"] != count["srcc"]["value"]
