"""The ablations, whole, with a comparator of random weights on pictures blurred to known degrees."""

from __future__ import annotations

import functools
import json

import pytest
from blurred_table import write_blurred_table

pytest.importorskip("torch", reason="the ablations train")

from compare2score.benchmarks import ablations
from compare2score.training import finetune
from compare2score.training.recipe import Recipe

SPLITS = ["train"] * 24 + ["val"] * 16 + ["test"] * 8


@pytest.fixture
def tables(tmp_path, texture):
    folders = [tmp_path / "taken", tmp_path / "made"]
    for i, folder in enumerate(folders):
        folder.mkdir()
        write_blurred_table(folder, texture, SPLITS, first=100 * i)
    return folders


@pytest.fixture
def ablate(tables, tiny_comparator, tmp_path, monkeypatch):
    """ablate(seeds) -> the results, after training of a few steps a row."""

    def pretrained(layers, size, comparison="late", experts=0):
        return tiny_comparator(comparison, experts=experts)

    def run(seeds):
        ablations.main(tables, ["made"], tmp_path / "cache", size=64, seeds=seeds, out=tmp_path)
        return json.loads((tmp_path / "ablations.json").read_text())["results"]

    monkeypatch.setattr(ablations, "pretrained", pretrained)
    monkeypatch.setattr(ablations, "Recipe", functools.partial(Recipe, probe_epochs=2, batch=8))
    monkeypatch.setattr(finetune, "train_gate", functools.partial(finetune.train_gate, steps=20))
    return run


def test_every_row_is_trained_and_scored_once_a_seed(ablate, monkeypatch):
    results = ablate(seeds=2)
    rows = {row["name"]: row["srcc"] for row in results["rows"]}
    assert list(rows) == [*ablations.PROBED, *(row.name for row in ablations.ROWS)]
    for found in rows.values():
        assert [set(srcc) for srcc in found] == [{"taken", "made"}] * 2
        assert found[0] != found[1]
        assert all(-1 <= value <= 1 for srcc in found for value in srcc.values())
    assert [row["anchors"] for row in results["anchors"]][:2] == ["3 of taken", "5 of taken"]

    def trains_again(_):
        raise AssertionError

    monkeypatch.setattr(finetune.Finetuner, "run_epoch", trains_again)
    assert ablate(seeds=2) == results
