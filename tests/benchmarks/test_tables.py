"""The README's tables are what the records say."""

from __future__ import annotations

import json
from pathlib import Path

from compare2score.benchmarks.tables import filled

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def test_the_readme_shows_the_recorded_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert filled(text, RESULTS) == text
    accuracy = json.loads((RESULTS / "accuracy.json").read_text(encoding="utf-8"))["results"]["tables"]
    for table in accuracy.values():
        assert f"{table['methods']['comparator']['srcc']:.3f}" in text


def test_the_boards_page_shows_the_plan():
    text = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")
    assert "<!-- table:plan -->" in text
    assert filled(text, RESULTS) == text


def test_results_were_recorded_for_the_embedded_bundle():
    from compare2score import open_bundle

    record = json.loads((RESULTS / "accuracy.json").read_text(encoding="utf-8"))
    assert record["results"]["bundle"] == open_bundle().identity
