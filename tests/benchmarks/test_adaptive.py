"""The measurement of adaptive anchors, on a handful of pictures."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from compare2score.benchmarks import adaptive


def test_every_bound_gets_a_row_and_asking_all_changes_nothing(tmp_path, texture, monkeypatch, capsys):
    monkeypatch.setattr(adaptive, "TOLERANCES", (0.0, 12.0, 100.0))
    monkeypatch.setattr(adaptive, "DEVIATIONS", (0.8,))
    lines = ["image,mos,split"]
    for place in range(5):
        Image.fromarray(texture(place, 48)).save(tmp_path / f"{place}.png")
        lines.append(f"{place}.png,{place},{'val' if place < 4 else 'train'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    adaptive.main(tmp_path, bundle=None, split="val", images=3, out=tmp_path)
    results = json.loads((tmp_path / "adaptive.json").read_text())["results"]
    assert json.loads(capsys.readouterr().out)["results"] == results
    assert results["images"] == 3
    full, exact, middle, single, narrow = results["rows"]
    assert full["tolerance"] is None
    assert full["comparisons"] == exact["comparisons"] == 5
    assert exact["mean_change"] == pytest.approx(0, abs=1e-4)
    assert exact["srcc_with_all"] == full["srcc_with_all"] == pytest.approx(1)
    assert single["comparisons"] == 1
    assert 1 <= middle["comparisons"] <= 5
    assert 1 <= narrow["comparisons"] <= 3
