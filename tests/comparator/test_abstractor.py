"""Cell statistics and their standardisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compare2score.comparator.abstractor import TOKEN_GAIN, VARIANCE_FLOOR, VisualAbstractor, cell_statistics


@pytest.mark.parametrize(("grid", "size"), [(1, 4), (2, 8), (3, 6), (4, 4)])
def test_cells_are_numpys_mean_and_deviation(grid, size):
    maps = np.random.default_rng(0).normal(2, 3, (2, 5, size, size))
    side = size // grid
    cells = [
        maps[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side]
        for row in range(grid)
        for column in range(grid)
    ]
    cells.append(maps)
    expected = np.stack(
        [
            np.concatenate([c.mean(axis=(2, 3)), np.maximum(c.std(axis=(2, 3)), VARIANCE_FLOOR**0.5)], axis=1)
            for c in cells
        ],
        axis=1,
    )
    statistics = cell_statistics(torch.from_numpy(maps), grid)
    assert statistics.shape == (2, grid * grid + 1, 10)
    assert statistics.dtype == torch.float32
    np.testing.assert_allclose(statistics.numpy(), expected, atol=1e-4)


def test_a_flat_channel_has_a_small_deviation_and_a_finite_gradient():
    flat = torch.full((1, 1, 4, 4), 3.0, requires_grad=True)
    statistics = cell_statistics(flat, 2)
    statistics.sum().backward()
    assert statistics[..., 1].detach().numpy() == pytest.approx(VARIANCE_FLOOR**0.5)
    assert torch.isfinite(flat.grad).all()


def test_half_precision_maps_are_summed_in_single():
    maps = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    expected = maps.double().numpy().mean(axis=(2, 3))
    np.testing.assert_allclose(cell_statistics(maps, 2)[:, -1, :3].numpy(), expected, atol=1e-5)


def recorded_input(abstractor: VisualAbstractor, statistics: torch.Tensor) -> torch.Tensor:
    """What the abstractor's first linear layer is given."""
    seen = []
    handle = abstractor.project.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        abstractor(statistics)
    handle.remove()
    return seen[0]


def test_calibration_standardises_every_feature_of_every_token():
    generator = np.random.default_rng(1)
    offset, spread = generator.normal(0, 5, (5, 6)), generator.uniform(0.1, 9, (5, 6))
    sample = torch.from_numpy(generator.normal(offset, spread, (400, 5, 6))).float()
    abstractor = VisualAbstractor((1, 2), 2, 16).eval()
    abstractor.calibrate(sample)
    standard = recorded_input(abstractor, sample).numpy()
    np.testing.assert_allclose(standard.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(standard.std(axis=0, ddof=1), 1, atol=1e-4)


def test_what_lies_far_outside_the_sample_is_bounded():
    abstractor = VisualAbstractor((1, 2), 2, 16).eval()
    abstractor.calibrate(torch.ones(10, 5, 6))  # a feature without any spread
    standard = recorded_input(abstractor, torch.full((1, 5, 6), 1e6))
    assert torch.equal(standard, torch.full((1, 5, 6), 8.0))


def test_fresh_tokens_are_as_large_as_word_embeddings():
    torch.manual_seed(0)
    with torch.inference_mode():
        tokens = VisualAbstractor((4, 8), 2, 64)(torch.randn(3, 5, 24))
    assert tokens.shape == (3, 5, 64)
    rms = tokens.square().mean(dim=-1).sqrt().numpy()
    np.testing.assert_allclose(rms, TOKEN_GAIN, rtol=1e-2)
