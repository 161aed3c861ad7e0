"""`c2s bench` measures what it is asked to and prints it in four forms."""

from __future__ import annotations

import csv
import io
import json

import pytest

QUICK = ("--repeats", 2, "--warmup", 0, "--threads", 1)


def lines(result):
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_every_combination_is_a_row_that_names_its_machine(c2s, bundle, photos):
    image = photos / "a.png"
    result = c2s(
        *("bench", "--bundle", bundle, bundle, "--backend", "ort,auto", "--image", image, *QUICK[:4]),
        *("--threads", "1,2", "--batch", "1,3", "--mode", "latency,throughput", "--json"),
    )
    rows = lines(result)
    assert len(rows) == 2 * 2 * 2 * (1 + 2)
    assert {(row["mode"], row["batch"]) for row in rows} == {
        ("latency", 1),
        ("throughput", 1),
        ("throughput", 3),
    }
    assert {row["threads"] for row in rows} == {1, 2}
    for row in rows:
        assert row["cores"] >= 1
        assert {"processor", "gpu", "python", "onnxruntime", "commit"} <= set(row)


def test_without_an_image_one_is_made(c2s, bundle):
    (row,) = lines(c2s("bench", "--bundle", bundle, *QUICK, "--mode", "latency", "--json"))
    assert row["p50"] > 0


def test_csv_has_a_column_for_every_value(c2s, bundle, photos):
    result = c2s(
        *("bench", "--bundle", bundle, "--image", photos / "a.png", *QUICK, "--mode", "latency,map", "--csv")
    )
    assert result.exit_code == 0
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["mode"] for row in rows][:2] == ["latency", "map"]
    assert float(rows[0]["p50"]) > 0
    assert rows[0]["ratio"] == ""


@pytest.mark.parametrize("form", [(), ("--markdown",)])
def test_tables_end_with_the_machine(c2s, bundle, photos, form):
    result = c2s("bench", "--bundle", bundle, "--image", photos / "a.png", *QUICK, *form)
    assert result.exit_code == 0
    assert "all but vision, decoder" in result.stdout
    assert ("| --- |" in result.stdout) == bool(form)
    last = result.stdout.splitlines()[-1]
    assert "processor" in last
    assert "commit" in last


def test_a_record_and_a_plot_are_written(c2s, bundle, photos, tmp_path):
    image = photos / "a.png"
    result = c2s(
        *("bench", "--bundle", bundle, "--image", image, *QUICK, "--roofline", "--mode", "stages"),
        *("--out", tmp_path / "kept" / "run.json", "--plot", tmp_path / "plots"),
    )
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "kept" / "run.json").read_text())
    assert {row["mode"] for row in record["results"]["rows"]} == {"stages", "roofline"}
    assert record["machine"]["cores"] >= 1
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["speed.png", "speed.svg"]


@pytest.mark.parametrize(
    "wrong",
    [("--mode", "speed"), ("--threads", "two"), ("--batch", "0"), ("--batch", ","), ("--against", "it")],
)
def test_wrong_use_is_a_sentence_and_status_2(c2s, bundle, wrong):
    result = c2s("bench", "--bundle", bundle, *wrong)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_an_absent_image_is_a_sentence_and_status_2(c2s, bundle, tmp_path):
    result = c2s("bench", "--bundle", bundle, *QUICK, "--image", tmp_path / "absent.jpg")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


def test_graphs_without_a_nano_comparator_have_no_reference(c2s, bundle):
    result = c2s("bench", "--bundle", bundle, *QUICK, "--mode", "latency", "--against", "reference")
    assert result.exit_code == 2
    assert "checkpoint" in result.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_embedded_bundle_is_compared_with_the_reference_loop(c2s):
    result = c2s("bench", *QUICK, "--mode", "latency", "--against", "reference", "--json")
    _, *pairs, median = lines(result)
    assert [row["case"] for row in pairs] == ["pair 1", "pair 2"]
    assert min(row["ratio"] for row in pairs) <= median["ratio"] <= max(row["ratio"] for row in pairs)
    assert median["probability_difference"] < 0.03
