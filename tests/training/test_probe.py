"""The probe's loss against numerical integration, and its minimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from compare2score.training.batches import soft_levels
from compare2score.training.probe import QualityProbe, levels_of, ordinal_loss


def targets_for(difference: float) -> torch.Tensor:
    """Chance of each level, from samples of a unit Gaussian around the difference."""
    samples = norm.ppf((np.arange(100_000) + 0.5) / 100_000) + difference
    levels = (samples <= 2).astype(int) + (samples <= 1) + (samples < -1) + (samples < -2)
    return torch.from_numpy(np.bincount(levels, minlength=5) / len(samples))[None]


@pytest.mark.parametrize("difference", [-3.0, -1.5, -0.2, 0.0, 0.7, 2.0])
def test_the_loss_is_least_at_the_difference_that_makes_the_levels(difference):
    targets = targets_for(difference)

    def loss(guess: float) -> float:
        return ordinal_loss(torch.tensor([guess], dtype=torch.float64), targets).item()

    # The logistic function stands in for the normal distribution's.
    assert minimize_scalar(loss, bounds=(-6, 6), method="bounded").x == pytest.approx(difference, abs=0.12)


def test_exchanging_the_images_changes_nothing():
    targets = torch.tensor([[0.1, 0.2, 0.4, 0.25, 0.05]])
    difference = torch.tensor([0.6])
    there, back = ordinal_loss(difference, targets), ordinal_loss(-difference, targets.flip(1))
    assert there.item() == pytest.approx(back.item(), rel=1e-6)


def test_given_levels_far_away_have_a_finite_loss_and_gradient():
    difference = torch.tensor([60.0, -60.0], requires_grad=True)
    loss = ordinal_loss(difference, torch.eye(5)[[4, 0]])
    loss.backward()
    assert torch.isfinite(loss)
    assert difference.grad[0] > 0 > difference.grad[1]


def test_the_probe_reads_every_token():
    probe = QualityProbe(3, 4).eval()
    tokens = torch.randn(2, 3, 4, requires_grad=True)
    probe(tokens).sum().backward()
    assert probe(tokens).shape == (2,)
    assert (tokens.grad.abs().sum(dim=2) > 0).all()


def test_what_teaches_is_what_labels_of_that_difference_would_say():
    difference = torch.linspace(-5, 5, 41, dtype=torch.float64)
    expected = soft_levels(difference.numpy(), np.ones(41))
    assert levels_of(difference).numpy() == pytest.approx(expected, abs=1e-7)


def test_two_tables_that_contradict_each_other_are_both_learned():
    """The second entry is good in one kind of image and bad in the other, which the first entry tells."""
    torch.manual_seed(0)
    probe = QualityProbe(1, 2)
    optimizer = torch.optim.Adam(probe.parameters(), 0.01)
    generator = np.random.default_rng(0)

    def sample(kind: int) -> tuple[torch.Tensor, torch.Tensor]:
        value = torch.from_numpy(generator.normal(size=64)).float()
        tokens = torch.stack([torch.full((64,), 2.0 * kind - 1), value], dim=1)[:, None]
        return tokens, value if kind else -value

    probe.eval()  # without dropout
    for step in range(300):
        tokens, truth = sample(step % 2)
        quality = probe(tokens)
        difference, true_difference = quality[:32] - quality[32:], truth[:32] - truth[32:]
        loss = ordinal_loss(difference, levels_of(true_difference))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for kind in (0, 1):
        tokens, truth = sample(kind)
        assert np.corrcoef(probe(tokens).detach(), truth)[0, 1] > 0.95
