"""The mean of two checkpoints lies half way between their weights."""

from __future__ import annotations

import json

import pytest
import torch

from compare2score.comparator import load_comparator
from compare2score.errors import CheckpointError
from compare2score.training.average import average_checkpoints


def test_weights_are_the_mean_and_accounts_are_kept(tiny_comparator, tmp_path):
    for seed in (0, 1):
        tiny_comparator(seed=seed).save(tmp_path / str(seed))
    (tmp_path / "0" / "training.json").write_text('{"epochs_done": 3}')
    average_checkpoints([tmp_path / "0", tmp_path / "1"], tmp_path / "mean")
    a, b, mean = (load_comparator(tmp_path / name).state_dict() for name in ("0", "1", "mean"))
    for name, value in mean.items():
        torch.testing.assert_close(value, (a[name] + b[name]) / 2)
    account = json.loads((tmp_path / "mean" / "training.json").read_text())
    assert account == {"mean_of": [{"epochs_done": 3}, None]}


def test_other_configurations_are_not_averaged(tiny_comparator, tmp_path):
    tiny_comparator().save(tmp_path / "late")
    tiny_comparator("causal").save(tmp_path / "causal")
    with pytest.raises(CheckpointError, match=r"one configuration"):
        average_checkpoints([tmp_path / "late", tmp_path / "causal"], tmp_path / "mean")
