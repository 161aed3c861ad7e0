"""Tables and plots show the rows of a record."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from PIL import Image

from compare2score.benchmarks.plot import draw
from compare2score.benchmarks.speed import (
    COLUMNS,
    cells,
    duration,
    rows_by_mode,
    scores_table,
    stages_table,
    targets_table,
)


def row(mode, case, batch=1, seconds=0.1, images=1, **values):
    timing = {
        "repeats": 10,
        "stable": True,
        "variation": 0.02,
        "mean": seconds,
        "std": 0.02 * seconds,
        "p50": seconds,
        "p90": 1.1 * seconds,
        "p99": 1.2 * seconds,
        "images": images,
        "images_per_second": images / seconds,
        "joules_per_image": {"rapl": 1.25},
    }
    setting = {
        "bundle": "made up",
        "precision": "int8",
        "backend": "ort 1, CPU",
        "threads": 2,
        "batch": batch,
    }
    return {"mode": mode, "case": case, **setting, **timing, **values}


STAGES = {
    "decode": 0.002,
    "preprocess": 0.003,
    "vision": 0.06,
    "decoder": 0.03,
    "MAP": 0.0001,
    "total": 0.1,
    "all but vision, decoder": 0.01,
}
ROWS = [
    row("latency", "score"),
    row("throughput", "score_many", 16, 2.4, 48, stable=False, joules_per_image="not available"),
    *(row("stages", case, seconds=value, share=value / 0.1) for case, value in STAGES.items()),
    row("cold", "import", seconds=0.3, peak_mb=20.0),
    row("cold", "first score", seconds=0.9, peak_mb=None),
    row("memory", "an image more in a batch", 16, megabytes=12.5, off_line=0.5),
    row("map", "one problem", seconds=50e-6, ratio=300.0),
    row("map", "10,000 problems", seconds=0.015, images=10_000, ratio=10_000.0),
    row("against reference", "pair 1", reference_seconds=2.0, seconds=0.1, ratio=20.0),
    row("against reference", "median", reference_seconds=2.5, ratio=25.0, probability_difference=0.004),
    row(
        "against reference",
        "median",
        16,
        2.4,
        48,
        reference_seconds=1.0,
        ratio=20.0,
        probability_difference=0.0,
    ),
    *(
        row(
            "roofline",
            case,
            seconds=seconds,
            flops=3e9,
            bytes=2e7,
            attainable=0.7 * seconds,
            share=0.7,
            flops_per_second=5e10,
            peak_flops_per_second=1e11,
            copied_bytes_per_second=3e10,
        )
        for case, seconds in (("vision", 0.06), ("decoder", 0.03))
    ),
]


def test_every_mode_has_a_table_with_all_its_rows():
    modes = rows_by_mode(ROWS)
    assert list(modes) == list(COLUMNS)
    assert sum(map(len, modes.values())) == len(ROWS)
    for mode, rows in modes.items():
        headings, lines = cells(mode, rows)
        assert all(len(line) == len(headings) for line in lines)


def test_instability_and_absent_meters_are_said():
    _, (line,) = cells("throughput", rows_by_mode(ROWS)["throughput"])
    assert any("unstable" in cell for cell in line)
    assert "not available" in line
    _, (line,) = cells("latency", rows_by_mode(ROWS)["latency"])
    assert not any("unstable" in cell for cell in line)
    assert "1.25 (rapl)" in line


def test_scores_stand_with_the_ratio_of_their_own_setting():
    lines = scores_table(ROWS).splitlines()[2:]
    assert lines == [
        "| made up, int8 | 2 | 1 | 100.00 ms | 110.00 ms | 10.0 | 25.0 |",
        "| made up, int8 | 2 | 16 | 50.00 ms | 55.00 ms | 20.0, unstable | 20.0 |",
    ]


def test_graph_stages_stand_with_their_share_of_the_limit():
    lines = {line.split(" | ")[0]: line for line in stages_table(ROWS).splitlines()[2:]}
    assert lines["| vision"] == "| vision | made up, int8 | 2 | 60.00 ms | 60.0 % | 70 % |"
    assert lines["| decode"] == "| decode | made up, int8 | 2 | 2.00 ms | 2.0 % |  |"


def test_targets_say_met_missed_or_not_measured():
    lines = [line.strip("| ").split(" | ") for line in targets_table(ROWS).splitlines()[2:]]
    found = {line[0]: [cell.strip(" |") for cell in line[2:]] for line in lines}
    assert found["one score, against the reference loop"] == ["25.0 x", "met"]
    assert found["throughput, batch 16, against it"] == ["20.0 x", "missed"]
    assert found["not vision or decoder, of a score"] == ["10.0 %", "met"]
    assert found["`map_estimate`, of 10,000, each"] == ["1.5 µs", "met"]
    assert found["import"] == ["300.00 ms", "missed"]
    assert found["memory of an image more in a batch"] == ["12.5 MB"]
    assert found["memory after many scores"] == ["not measured"]


@pytest.mark.parametrize(("seconds", "text"), [(2.5, "2.50 s"), (0.0125, "12.50 ms"), (42e-6, "42.0 µs")])
def test_durations_have_a_fitting_unit(seconds, text):
    assert duration(seconds) == text


def test_plots_are_pictures_and_repeat(tmp_path):
    png, svg = draw(ROWS, tmp_path / "plots")
    with Image.open(png) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    texts = ElementTree.fromstring(svg.read_bytes())
    assert texts.tag.endswith("svg")
    assert draw(ROWS, tmp_path / "again")[1].read_bytes() == svg.read_bytes()


def test_a_plot_of_nothing_says_so(tmp_path):
    assert all(path.stat().st_size > 1000 for path in draw([], tmp_path))
