"""A LLaMA decoder cut to what a comparison needs: prompt blocks, prefix, five-row head.

Blocks of the prompt. The first image's block (text before it, its visual tokens) is the prefix; its keys
and values never depend on the second image. Two forms of comparison:

- "causal": the second image's block follows and attends to the prefix, as in the published comparator.
- "late": the second image's block attends to itself only; the closing text alone sees both images.
  The second image's keys and values are then computed once, whatever the number of first images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Comparison = Literal["late", "causal"]


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a LLaMA decoder; the defaults are SmolLM2-135M's."""

    layers: int
    width: int = 576
    heads: int = 9
    kv_heads: int = 3
    head_width: int = 64
    hidden: int = 1536
    rope_base: float = 100_000.0
    norm_epsilon: float = 1e-5
    comparison: Comparison = "late"


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding of [..., L, head_width] by tables [L, head_width]."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


class DecoderLayer(nn.Module):
    """Grouped-query attention and a gated MLP, each after an RMS norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        width, head_width = config.width, config.head_width
        self.attention_norm = nn.RMSNorm(width, eps=config.norm_epsilon)
        self.query = nn.Linear(width, config.heads * head_width, bias=False)
        self.key = nn.Linear(width, config.kv_heads * head_width, bias=False)
        self.value = nn.Linear(width, config.kv_heads * head_width, bias=False)
        self.output = nn.Linear(config.heads * head_width, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width, eps=config.norm_epsilon)
        self.gate = nn.Linear(width, config.hidden, bias=False)
        self.up = nn.Linear(width, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, width, bias=False)

    def split_heads(self, x: Tensor) -> Tensor:
        """[N, L, heads * head_width] -> [N, heads, L, head_width]."""
        return torch.unflatten(x, -1, (-1, self.config.head_width)).transpose(1, 2)

    def keys_values(self, x: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [N, kv_heads, L, head_width] of the layer's input [N, L, D]."""
        normed = self.attention_norm(x)
        return rotate(self.split_heads(self.key(normed)), cosine, sine), self.split_heads(self.value(normed))

    def forward(
        self, x: Tensor, cosine: Tensor, sine: Tensor, keys: Tensor, values: Tensor, mask: Tensor
    ) -> Tensor:
        """Advances x [N, L, D], whose positions' rotation is given, over all keys and values it may see.

        `mask` is additive, broadcastable to [N, heads, L, keys' length].
        """
        groups = self.config.heads // self.config.kv_heads
        query = rotate(self.split_heads(self.query(self.attention_norm(x))), cosine, sine)
        # Query heads of one group share a key head: fold them into the rows instead of repeating the keys.
        query = torch.unflatten(query, 1, (self.config.kv_heads, groups)).flatten(2, 3)
        scores = (query @ keys.transpose(-1, -2)) * self.config.head_width**-0.5
        scores = scores.unflatten(2, (groups, x.shape[1])) + mask
        weights = scores.float().softmax(dim=-1).to(values.dtype)
        mixed = (weights.flatten(2, 3) @ values).unflatten(2, (groups, x.shape[1])).flatten(1, 2)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        normed = self.mlp_norm(x)
        gated: Tensor = self.down(F.silu(self.gate(normed)) * self.up(normed))
        return x + gated


class ComparisonDecoder(nn.Module):
    """Reads visual tokens of two images inside the prompt; answers with the five level logits.

    The prompt is fixed, so its word embeddings are stored as rows, and of the head only the levels' rows.
    """

    cosine: Tensor
    sine: Tensor
    causal_mask: Tensor

    def __init__(self, config: DecoderConfig, text_lengths: tuple[int, int, int], visual_tokens: int) -> None:
        super().__init__()
        self.config = config
        first, second, closing = text_lengths
        self.first_text = nn.Parameter(torch.zeros(first, config.width))
        self.second_text = nn.Parameter(torch.zeros(second, config.width))
        self.closing_text = nn.Parameter(torch.zeros(closing, config.width))
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.level_head = nn.Linear(config.width, 5, bias=False)
        self.prefix_length = first + visual_tokens
        self.second_length = second + visual_tokens
        length = self.prefix_length + self.second_length + closing
        frequencies = config.rope_base ** (-torch.arange(0, config.head_width, 2) / config.head_width)
        angles = torch.outer(torch.arange(length).float(), frequencies).repeat(1, 2)
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)
        # Every mask needed is a corner of this one.
        triangle = torch.full((length, length), float("-inf")).triu(1)
        self.register_buffer("causal_mask", triangle, persistent=False)

    def decoder_layers(self) -> list[DecoderLayer]:
        """The layers, as what they are: torch's list knows them as modules only."""
        return cast("list[DecoderLayer]", list(self.layers))

    @staticmethod
    def block(text: Tensor, visual_tokens: Tensor) -> Tensor:
        """Text rows [L, D] before visual tokens [N, T, D] -> [N, L + T, D]."""
        rows = text.to(visual_tokens.dtype).expand(visual_tokens.shape[0], -1, -1)
        return torch.cat([rows, visual_tokens], dim=1)

    def prefix(self, visual_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the first image's block.

        Args:
            visual_tokens: [A, T, D].

        Returns:
            keys and values, each [A, layers, kv_heads, prefix_length, head_width].
        """
        return self.alone(self.block(self.first_text, visual_tokens), 0)

    def alone(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a block [N, L, D] from position `start` on that attends to itself only."""
        length = x.shape[1]
        cosine, sine = self.cosine[start : start + length], self.sine[start : start + length]
        mask = self.causal_mask[:length, :length]
        keys, values = [], []
        for i, layer in enumerate(self.decoder_layers()):
            key, value = layer.keys_values(x, cosine, sine)
            keys.append(key)
            values.append(value)
            if i + 1 < len(self.layers):
                x = layer(x, cosine, sine, key, value, mask)
        return torch.stack(keys, dim=1), torch.stack(values, dim=1)

    def answer(self, x: Tensor, start: int, keys: Tensor, values: Tensor) -> Tensor:
        """Level logits [P, 5] after the last of rows x [P, L, D] at position `start`, given what came before.

        `keys`, `values`: [P, layers, kv_heads, start, head_width] of all positions before `start`.
        """
        length = x.shape[1]
        cosine, sine = self.cosine[start : start + length], self.sine[start : start + length]
        mask = self.causal_mask[start : start + length, : start + length]
        for i, layer in enumerate(self.decoder_layers()):
            key, value = layer.keys_values(x, cosine, sine)
            key, value = torch.cat([keys[:, i], key], dim=2), torch.cat([values[:, i], value], dim=2)
            if i + 1 == len(self.layers):  # only the last position's answer is read
                x, cosine, sine, mask = x[:, -1:], cosine[-1:], sine[-1:], mask[-1:]
            x = layer(x, cosine, sine, key, value, mask)
        return self.level_head(self.norm(x[:, -1])).float()  # type: ignore[no-any-return]

    def forward(
        self, second: Tensor, keys: Tensor, values: Tensor, pairs: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Compares second images with first images.

        Args:
            second: visual tokens [N, T, D] of the second (test) images.
            keys, values: [A, layers, kv_heads, prefix_length, head_width] of the first images (anchors).
            pairs: indices into the A first and the N second images, [P] each; all N x A pairs if None.

        Returns:
            Level logits [N, A, 5] in float32, or [P, 5] for given pairs.
        """
        n, a = second.shape[0], keys.shape[0]
        if pairs is None:
            first_index = torch.arange(a, device=second.device).expand(n, a).reshape(-1)
            second_index = torch.arange(n, device=second.device)[:, None].expand(n, a).reshape(-1)
            logits: Tensor = self(second, keys, values, (first_index, second_index))
            return torch.unflatten(logits, 0, (n, a))
        first_index, second_index = pairs
        keys, values = keys[first_index], values[first_index]
        block = self.block(self.second_text, second)
        closing = self.closing_text.to(second.dtype).expand(second_index.shape[0], -1, -1)
        if self.config.comparison == "causal":
            return self.answer(
                torch.cat([block[second_index], closing], dim=1), self.prefix_length, keys, values
            )
        second_keys, second_values = self.alone(block, self.prefix_length)
        keys = torch.cat([keys, second_keys[second_index]], dim=3)
        values = torch.cat([values, second_values[second_index]], dim=3)
        return self.answer(closing, self.prefix_length + self.second_length, keys, values)
