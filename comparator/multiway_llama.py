"""mPLUG-Owl2's decoder: LLaMA whose key, value and norm weights are one for text and one for visual tokens.

Rows of a block are kept in two groups, text first, then visual tokens, whatever their order in the prompt:
order is a matter of positions, which rotation and mask know. So every weight is applied once.
Parameter names are those of the published checkpoint, below `model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compare2score.comparator.attention import attend, causal_mask, rotation_tables
from compare2score.comparator.decoder import rotate


@dataclass(frozen=True)
class MultiwayLlamaConfig:
    """Sizes of the decoder; the defaults are the published ones (LLaMA-2-7B)."""

    layers: int = 32
    width: int = 4096
    heads: int = 32
    kv_heads: int = 32
    hidden: int = 11008
    vocabulary: int = 32000
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-5

    @property
    def head_width(self) -> int:
        """Entries of one head's query, key or value."""
        return self.width // self.heads


@dataclass(frozen=True)
class Block:
    """Where the rows of a piece of the prompt stand: text rows first, then visual tokens.

    Attributes:
        text: positions of the text rows in the prompt, ascending.
        visual: positions of the visual tokens, ascending.
    """

    text: tuple[int, ...]
    visual: tuple[int, ...]

    @classmethod
    def of(cls, start: int, visual: Sequence[bool]) -> Block:
        """A piece that begins at position `start`; one entry a row in the prompt's order, True for visual."""
        text = tuple(start + i for i, seen in enumerate(visual) if not seen)
        return cls(text, tuple(start + i for i, seen in enumerate(visual) if seen))

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions of all rows, in the order in which the rows are kept."""
        return self.text + self.visual


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight, computed in float32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        exact = x.float()
        scale = torch.rsqrt(exact.square().mean(dim=-1, keepdim=True) + self.epsilon)
        return (exact * scale * self.weight.float()).to(x.dtype)


class Multiway(nn.Module):
    """One module for the first rows of x, which are text, and one for the rest, which are visual tokens."""

    def __init__(self, text: nn.Module, visual: nn.Module) -> None:
        super().__init__()
        self.multiway = nn.ModuleList([text, visual])

    def forward(self, x: Tensor, text: int) -> Tensor:
        """x [N, L, D] with `text` rows of text."""
        if text == x.shape[1]:
            return self.multiway[0](x)  # type: ignore[no-any-return]
        if text == 0:
            return self.multiway[1](x)  # type: ignore[no-any-return]
        return torch.cat([self.multiway[0](x[:, :text]), self.multiway[1](x[:, text:])], dim=1)


class SelfAttention(nn.Module):
    """The four projections of attention; keys and values are projected by modality."""

    def __init__(self, config: MultiwayLlamaConfig) -> None:
        super().__init__()
        self.head_width = config.head_width
        width, inner, shared = (
            config.width,
            config.heads * config.head_width,
            config.kv_heads * config.head_width,
        )
        self.q_proj = nn.Linear(width, inner, bias=False)
        self.k_proj = Multiway(*(nn.Linear(width, shared, bias=False) for _ in range(2)))
        self.v_proj = Multiway(*(nn.Linear(width, shared, bias=False) for _ in range(2)))
        self.o_proj = nn.Linear(inner, width, bias=False)

    def heads(self, x: Tensor) -> Tensor:
        """[N, L, heads * head_width] -> [N, heads, L, head_width]."""
        return torch.unflatten(x, -1, (-1, self.head_width)).transpose(1, 2)

    def rotated(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Heads [N, heads, L, head_width] of x, turned to their positions in float32."""
        return rotate(self.heads(x).float(), *rotation).to(x.dtype)


class Mlp(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, config: MultiwayLlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.up_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.down_proj = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class MultiwayLayer(nn.Module):
    """Attention and MLP, each after a norm by modality."""

    def __init__(self, config: MultiwayLlamaConfig) -> None:
        super().__init__()
        width, epsilon = config.width, config.norm_epsilon
        self.input_layernorm = Multiway(RMSNorm(width, epsilon), RMSNorm(width, epsilon))
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = Multiway(RMSNorm(width, epsilon), RMSNorm(width, epsilon))
        self.mlp = Mlp(config)

    def forward(
        self,
        x: Tensor,
        text: int,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor,
        past: tuple[Tensor, Tensor] | None = None,
        row: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Advances x [N, L, D], its first `text` rows text, over `past` keys and values and its own.

        Only row `row`, a text row, is advanced where it is given.
        Returns x and its own keys and values [N, kv_heads, L, head_width].
        """
        attention = self.self_attn
        normed = self.input_layernorm(x, text)
        key = attention.rotated(attention.k_proj(normed, text), rotation)
        value = attention.heads(attention.v_proj(normed, text))
        keys = key if past is None else torch.cat([past[0], key], dim=2)
        values = value if past is None else torch.cat([past[1], value], dim=2)
        if row is not None:
            one = slice(row, row + 1)
            x, normed, mask, text = x[:, one], normed[:, one], mask[one], 1
            rotation = (rotation[0][one], rotation[1][one])
        query = attention.rotated(attention.q_proj(normed), rotation)
        x = x + attention.o_proj(attend(query, keys, values, mask))
        return x + self.mlp(self.post_attention_layernorm(x, text)), key, value


def run_layers(
    layers: list[MultiwayLayer],
    config: MultiwayLlamaConfig,
    x: Tensor,
    block: Block,
    past: tuple[Tensor, Tensor] | None = None,
    row: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs a block of the prompt through the decoder's layers.

    Args:
        layers: the decoder's layers, of sizes `config`.
        x: [N, L, D], rows in the order of `block`.
        block: where the rows stand; every row of `past` stands before them.
        past: keys and values [N, layers, kv_heads, P, head_width] of what came before.
        row: the only row, a text row, whose output is wanted; all if None.

    Returns:
        Output [N, L or 1, D] before the final norm, and keys and values
        [N, layers, kv_heads, L, head_width] of the block itself.
    """
    rotation = rotation_tables(block.positions, config.head_width, config.rope_base, x)
    mask = causal_mask(block.positions, 0 if past is None else past[0].shape[3], x)
    keys, values = [], []
    for i, layer in enumerate(layers):
        before = None if past is None else (past[0][:, i], past[1][:, i])
        only = row if i + 1 == len(layers) else None
        x, key, value = layer(x, len(block.text), rotation, mask, before, only)
        keys.append(key)
        values.append(value)
    return x, torch.stack(keys, dim=1), torch.stack(values, dim=1)
