"""Attention and rotary positions, in float32 where half precision would lose the answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention.

    Args:
        query: [N, heads, L, head_width].
        keys, values: [N, kv_heads, K, head_width]; kv_heads divides heads.
        mask: additive float32, [L, K].

    Returns:
        [N, L, heads * head_width], of the query's dtype.
    """
    kv_heads, length = keys.shape[1], query.shape[2]
    groups = query.shape[1] // kv_heads
    # Query heads of one group share a key head: fold them into the rows instead of repeating the keys.
    folded = torch.unflatten(query * query.shape[-1] ** -0.5, 1, (kv_heads, groups)).flatten(2, 3)
    scores = (folded @ keys.transpose(-1, -2)).float()
    if mask is not None:
        scores = scores + (mask if groups == 1 else mask.repeat(groups, 1))
    mixed = scores.softmax(dim=-1).to(values.dtype) @ values
    return torch.unflatten(mixed, 2, (groups, length)).flatten(1, 2).transpose(1, 2).flatten(2)


def rotation_tables(
    positions: Sequence[int], head_width: int, base: float, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Cosine and sine [L, head_width] float32 of rotary positions, on the device of `like`.

    They are constants, computed from the positions on every call: a module on the meta device has them too,
    and an exporter records their values.
    """
    frequencies = base ** (-np.arange(0, head_width, 2) / head_width)
    angles = np.tile(np.outer(np.asarray(positions), frequencies), 2)
    cosine, sine = (torch.from_numpy(f(angles).astype(np.float32)) for f in (np.cos, np.sin))
    return cosine.to(like.device), sine.to(like.device)


def causal_mask(positions: Sequence[int], past: int, like: Tensor) -> Tensor:
    """Additive mask [L, past + L] of rows at `positions`, after `past` rows that all of them may see."""
    order = np.asarray(positions)
    hidden = np.where(order[None, :] > order[:, None], np.float32(-np.inf), np.float32(0))
    mask = np.concatenate([np.zeros((len(order), past), np.float32), hidden], axis=1)
    return torch.from_numpy(mask).to(like.device)
