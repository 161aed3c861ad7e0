"""The gate against what the best possible reader of the same features does."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.stats import norm

from compare2score.comparator.abstractor import KindGate
from compare2score.training.gate import train_gate

FEATURES = 2 * (3 + 4 + 2 + 1)


def drawn(kinds: np.ndarray, means: np.ndarray, seed: int) -> torch.Tensor:
    """Features of unit variance around their kind's mean."""
    noise = np.random.default_rng(seed).normal(size=(len(kinds), FEATURES))
    return torch.from_numpy(means[kinds] + noise).float()


@pytest.mark.parametrize("kinds", [2, 3])
def test_kinds_are_told_apart_nearly_as_well_as_is_possible(kinds):
    means = 2 * np.eye(kinds, FEATURES)
    known = np.repeat(np.arange(kinds), [600, 150, 300][:kinds])
    gate = KindGate((3, 4, 2, 1, 50), kinds)
    train_gate(gate, torch.stack([drawn(known, means, seed) for seed in (0, 1)]), known, seed=0, steps=400)
    asked = np.repeat(np.arange(kinds), 2_000)
    with torch.inference_mode():
        told = gate.read(drawn(asked, means, 2)).argmax(dim=1).numpy()
    # Any two means lie sqrt(8) deviations apart; beside a third kind, errors add at most.
    worst = 1 - (kinds - 1) * norm.cdf(-np.sqrt(8) / 2)
    assert (told == asked).mean() > worst - 0.03
    # Fewer images of a kind are no reason to expect it less.
    assert min((told == asked)[asked == kind].mean() for kind in range(kinds)) > worst - 0.06
    assert not gate.training
    assert not any(parameter.requires_grad for parameter in gate.parameters())


def test_the_same_seed_gives_the_same_gate():
    known = np.repeat([0, 1], 40)
    features = drawn(known, np.eye(2, FEATURES), 0)[None]
    fresh, weights = KindGate((3, 4, 2, 1), 2), []
    for seed in (5, 5, 6):
        gate = copy.deepcopy(fresh)
        train_gate(gate, features, known, seed, steps=5)
        weights.append(gate.read[-1].weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_gate_reads_the_whole_maps_early_stages():
    gate = KindGate((3, 4, 2, 1, 50), 2).eval()
    standard = torch.randn(2, 5, 2 * 60)
    changed = standard.clone()
    changed[:, :-1] = 0  # cells
    changed[:, -1, FEATURES:] = 0  # later stages
    with torch.inference_mode():
        assert torch.equal(gate(standard), gate(changed))
    assert torch.equal(gate.select(standard), standard[:, -1, :FEATURES])
