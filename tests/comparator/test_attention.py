"""Attention, rotation and mask against torch's own and complex arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from compare2score.comparator.attention import attend, causal_mask, rotation_tables
from compare2score.comparator.decoder import rotate


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("past", [0, 4])
def test_attention_is_torchs(kv_heads, past):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, 5, 8, generator=generator)
    keys, values = (torch.randn(2, kv_heads, past + 5, 8, generator=generator) for _ in range(2))
    seen = torch.ones(5, past + 5, dtype=torch.bool).tril(past)
    expected = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen, enable_gqa=True)
    mixed = attend(query, keys, values, causal_mask(range(past, past + 5), past, query))
    torch.testing.assert_close(mixed, expected.transpose(1, 2).flatten(2))
    unmasked = F.scaled_dot_product_attention(query, keys, values, enable_gqa=True)
    torch.testing.assert_close(attend(query, keys, values), unmasked.transpose(1, 2).flatten(2))


def test_rows_out_of_order_see_what_stands_before_them():
    seen = causal_mask([3, 5, 4], 2, torch.empty(0)) == 0
    assert seen.tolist() == [
        [True, True, True, False, False],
        [True, True, True, True, True],
        [True, True, True, False, True],
    ]


def test_rotation_turns_pairs_of_entries_as_complex_numbers():
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    positions = [0, 7, 180]
    turned = rotate(x, *rotation_tables(positions, 8, 10_000.0, x)).numpy()
    numbers = x[:, :4].double().numpy() + 1j * x[:, 4:].double().numpy()
    angles = np.outer(positions, 10_000.0 ** (-np.arange(4) / 4))
    expected = numbers * np.exp(1j * angles)
    np.testing.assert_allclose(turned, np.concatenate([expected.real, expected.imag], axis=1), atol=1e-5)
