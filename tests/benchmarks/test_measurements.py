"""The measurements measure what they say, at a tiny size; nothing here is timed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from compare2score.benchmarks.baselines import REGRESSORS, fitted
from compare2score.benchmarks.footprint import run_fresh
from compare2score.benchmarks.record import write_record


def test_a_fresh_process_is_weighed_and_its_failure_is_not_a_result():
    _, small = run_fresh("pass")
    _, large = run_fresh("kept = bytearray(100_000_000)")
    assert 70 < large - small < 130
    with pytest.raises(RuntimeError, match=r"status 3"):
        run_fresh("raise SystemExit(3)")


def test_a_record_names_machine_versions_and_commit(tmp_path):
    record = json.loads(write_record("made_up", {"value": 1}, tmp_path).read_text())
    assert record["results"] == {"value": 1}
    assert record["machine"]["cores"] >= 1
    assert record["machine"]["onnxruntime"]
    assert record["commit"]


@pytest.mark.parametrize("name", list(REGRESSORS))
def test_a_regressor_learns_from_train_and_validation_rows_alone(name):
    generator = np.random.default_rng(0)
    features = generator.normal(size=(300, 12))
    mos = 3 + np.tanh(features[:, 0] - 0.5 * features[:, 1])
    predict = fitted(name, (features[:160], mos[:160]), (features[160:220], mos[160:220]))
    predicted = predict(features[220:])
    assert spearmanr(predicted, mos[220:]).statistic > 0.85
    assert abs(predicted.mean() - 3) < 0.3
