"""The soak: what it runs, and what it says of memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from compare2score.benchmarks import soak

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from toy_bundle import bundle, gray_image  # noqa: F401


def test_the_files_are_repeated_in_order(tmp_path):
    for name in "ab":
        gray_image(tmp_path / f"{name}.png", 50)
    assert soak.list_repeatedly([str(tmp_path)], 5, tmp_path / "list") == 2
    listed = (tmp_path / "list").read_text().splitlines()
    assert [Path(line).name for line in listed] == ["a.png", "b.png", "a.png", "b.png", "a.png"]


def test_memory_is_averaged_over_tenths_of_the_rows():
    samples = [(place, 100.0 + (place >= 90)) for place in range(101)]
    course = soak.memory_course(samples)
    assert course == {"mb_by_tenth": [100.0] * 9 + [101.0], "peak_mb": 101.0}
    assert soak.memory_course([])["mb_by_tenth"] == [None] * 10


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="files of the run are open there")
def test_a_run_is_measured_to_its_end(bundle, tmp_path):  # noqa: F811
    pytest.importorskip("psutil")
    gray_image(tmp_path / "a.png", 50)
    soak.list_repeatedly([str(tmp_path / "a.png")], 3000, tmp_path / "list.txt")
    run = soak.measured_run(tmp_path / "list.txt", tmp_path / "out.csv", ["--bundle", str(bundle)])
    assert (run["rows"], run["errors"]) == (3000, {})
    assert run["memory"]["peak_mb"] > 10
