"""What docs/accuracy.md is made of: covers, worst images, plots and tables."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from PIL import Image

from compare2score import Score
from compare2score.benchmarks import failures, pareto
from compare2score.benchmarks.seeds import seeds_of
from compare2score.benchmarks.tables import TABLES, filled
from compare2score.training.labels import read_labels

ROOT = Path(__file__).parents[2]


def test_the_cover_of_known_deviations():
    pytest.importorskip("torch", reason="the ablations train")
    from compare2score.benchmarks.ablations import interval_cover

    generator = np.random.default_rng(0)
    mos = generator.uniform(1, 5, 20_000)
    q = np.tanh(mos - 3) + 0.2 * generator.normal(size=len(mos))
    assert interval_cover(q, np.full(len(q), 0.2), mos) == pytest.approx(0.95, abs=0.01)
    assert interval_cover(q, np.full(len(q), 0.1), mos) == pytest.approx(0.673, abs=0.02)


class Reverse:
    """A scorer that is right but for two images, which it exchanges."""

    def __init__(self, q):
        self.q = q

    def score_many(self, paths):
        for path in paths:
            yield Score(50.0, self.q[Path(path).stem], 0.1, (0.5,) * 5, 5)


def test_the_worst_are_those_whose_ranks_differ_most(tmp_path, monkeypatch):
    monkeypatch.setattr(failures, "WORST", 2)
    names = [f"{i}" for i in range(10)]
    for name in names:
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"{name}.png")
    rows = "\n".join(f"{name}.png,{name},test" for name in names)
    (tmp_path / "labels.csv").write_text(f"image,mos,split\n{rows}\n")
    q = {name: float(name) for name in names}
    q["1"], q["8"] = q["8"], q["1"]
    found = failures.worst(Reverse(q), read_labels(tmp_path / "labels.csv", split="test"))
    assert found == [
        {"image": "1.png", "people": 20, "score": 90},
        {"image": "8.png", "people": 90, "score": 20},
    ]
    shares = []
    for unfit in ((), ("8.png",), ("1.png", "8.png")):
        failures.draw(tmp_path, found, unfit, tmp_path / "worst.png")
        pixels = np.asarray(Image.open(tmp_path / "worst.png").convert("RGB"))
        shares.append((pixels == (255, 0, 0)).all(axis=2).mean())
    assert shares == pytest.approx([shares[0], shares[0] / 2, 0])
    assert shares[0] > 0


def test_the_front_is_drawn_a_panel_a_table(tmp_path):
    rows = [
        {"size": size, "precision": p, "milliseconds": size / 10, "srcc": {"a": 0.8, "b": 0.9}}
        for size in (256, 512)
        for p in ("fp32", "int8")
    ]
    pareto.draw(rows, tmp_path / "front.png")
    with Image.open(tmp_path / "front.png") as picture:
        assert len(set(picture.convert("L").getdata())) > 10
    table = TABLES["pareto"][1]({"results": {"rows": rows}})
    assert "| 256 px | fp32 | 25.6 ms | 0.800 | 0.900 |" in table


def test_the_mean_over_seeds_stands_with_its_spread():
    rows = [{"name": "late", "srcc": [{"a": 0.81}, {"a": 0.85}, {"a": 0.83}]}]
    table = TABLES["ablations"][1]({"results": {"rows": rows}})
    assert "| late | 3 | 0.830 (0.810 to 0.850) |" in table


def test_a_row_a_seed():
    shares = {"unseen_pairs_right": 0.951, "clean_preferred": 0.99}
    rows = [{"seed": seed, "srcc": {"a": 0.8 + seed / 100}, "distortions": shares} for seed in (0, 1)]
    table = TABLES["seeds"][1]({"results": {"split": "val", "rows": rows}})
    assert "| seed | a val SRCC |" in table
    assert "| 0 | 0.800 | 95.1 % | 99.0 % |" in table
    assert "| 1 | 0.810 | 95.1 % | 99.0 % |" in table


def scorers_trained(*recipes):
    """Stand-ins for scorers whose bundles say how they were trained."""
    for recipe in recipes:
        account = recipe and {"recipe": recipe, "epochs_done": 3, "data": [["a", "train", 10]]}
        manifest = SimpleNamespace(notes={"training": account}, precision="int8")
        yield SimpleNamespace(bundle=SimpleNamespace(path=Path("b"), manifest=manifest))


def test_runs_are_compared_that_differ_in_their_seed_alone():
    assert seeds_of(list(scorers_trained({"seed": 3, "batch": 8}, {"seed": 5, "batch": 8}))) == [3, 5]
    with pytest.raises(typer.BadParameter, match="differ in more"):
        seeds_of(list(scorers_trained({"seed": 3, "batch": 8}, {"seed": 5, "batch": 9})))
    with pytest.raises(typer.BadParameter, match="does not say"):
        seeds_of(list(scorers_trained({"seed": 3, "batch": 8}, None)))


def test_the_accuracy_page_shows_the_records():
    text = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
    assert "<!-- table:accuracy_targets -->" in text
    assert filled(text, ROOT / "benchmarks" / "results") == text
