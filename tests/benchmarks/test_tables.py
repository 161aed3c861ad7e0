"""The README's tables are what the records say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr

from compare2score.benchmarks.correlation import logistic, plcc, srcc
from compare2score.benchmarks.tables import filled

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def test_the_readme_shows_the_recorded_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert filled(text, RESULTS) == text
    accuracy = json.loads((RESULTS / "accuracy.json").read_text(encoding="utf-8"))["results"]["tables"]
    for table in accuracy.values():
        assert f"{table['methods']['comparator']['srcc']:.3f}" in text


def test_results_were_recorded_for_the_embedded_bundle():
    from compare2score import open_bundle

    record = json.loads((RESULTS / "accuracy.json").read_text(encoding="utf-8"))
    assert record["results"]["bundle"] == open_bundle().identity


def test_a_logistic_relation_is_a_perfect_plcc_and_a_reversed_one_a_negative_srcc():
    scores = np.linspace(-2, 3, 60)
    mos = logistic(scores, 1.0, 5.0, 0.4, np.log(0.3))
    assert plcc(scores, mos) == pytest.approx(1, abs=1e-6)
    assert plcc(scores, mos) > pearsonr(scores, mos).statistic
    assert srcc(scores, -mos) == pytest.approx(-1)


def test_plcc_of_noise_is_small():
    generator = np.random.default_rng(0)
    assert abs(plcc(generator.normal(size=400), generator.normal(size=400))) < 0.2
