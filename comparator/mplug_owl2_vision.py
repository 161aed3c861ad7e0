"""mPLUG-Owl2's eyes: a vision transformer, and the abstractor that reads its patches with a few queries.

Parameter names are those of the published checkpoint, below `model.vision_model` and
`model.visual_abstractor`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compare2score.comparator.attention import attend

QUERY_NORM_EPSILON = 1e-5
"""Of the abstractor's norms around attention; only its MLP's inner norm follows the config."""


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision transformer; the defaults are the published ones (ViT-L/14 at 448 px)."""

    image: int = 448
    patch: int = 14
    layers: int = 24
    width: int = 1024
    heads: int = 16
    hidden: int = 4096
    norm_epsilon: float = 1e-6

    @property
    def tokens(self) -> int:
        """Rows of the last hidden state: one a patch, and the class token."""
        return (self.image // self.patch) ** 2 + 1


@dataclass(frozen=True)
class AbstractorConfig:
    """Sizes of the visual abstractor; the defaults are the published ones."""

    queries: int = 64
    layers: int = 6
    width: int = 1024
    heads: int = 16
    hidden: int = 2816
    norm_epsilon: float = 1e-6


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[N, L, heads * head_width] -> [N, heads, L, head_width]."""
    return torch.unflatten(x, -1, (heads, -1)).transpose(1, 2)


class PatchEmbeddings(nn.Module):
    """Pixels to patch rows, a class row before them, with learned positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embed = nn.Conv2d(3, width, config.patch, stride=config.patch, bias=False)
        self.position_embedding = nn.Parameter(torch.zeros(1, config.tokens, width))
        self.pre_layernorm = nn.LayerNorm(width, eps=config.norm_epsilon)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embed(pixel_values.to(self.cls_token.dtype)).flatten(2).transpose(1, 2)
        rows = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        return self.pre_layernorm(rows + self.position_embedding)  # type: ignore[no-any-return]


class VisionAttention(nn.Module):
    """Self-attention with one fused projection: per head its query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.dense = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = split_heads(self.query_key_value(x), self.heads).chunk(3, dim=-1)
        return self.dense(attend(query, key, value))  # type: ignore[no-any-return]


class VisionMlp(nn.Module):
    """Two linear layers around x * sigmoid(1.702 x)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))  # type: ignore[no-any-return]


class VisionLayer(nn.Module):
    """Attention and MLP, each after a layer norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.self_attn = VisionAttention(config.width, config.heads)
        self.post_attention_layernorm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.mlp = VisionMlp(config.width, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class LayerStack(nn.Module):
    """`layers`, one after another; what follows x is passed to each."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, *context)
        return x


class VisionTransformer(nn.Module):
    """Pixels [N, 3, S, S] -> last hidden state [N, patches + 1, width], after the final norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = PatchEmbeddings(config)
        self.encoder = LayerStack([VisionLayer(config) for _ in range(config.layers)])
        self.post_layernorm = nn.LayerNorm(config.width, eps=config.norm_epsilon)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.post_layernorm(self.encoder(self.embeddings(pixel_values)))  # type: ignore[no-any-return]


class QueryAttention(nn.Module):
    """Queries attend to themselves and to the image; positions are added to queries and keys only."""

    def __init__(self, config: AbstractorConfig, vision: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(vision.width, config.width)
        self.value = nn.Linear(vision.width, config.width)
        self.q_pos_embed = nn.Parameter(torch.zeros(config.queries, config.width))
        self.k_pos_embed = nn.Parameter(torch.zeros(vision.tokens, config.width))

    def forward(self, queries: Tensor, image: Tensor) -> Tensor:
        seen = torch.cat([queries, image], dim=1)
        positions = torch.cat([self.q_pos_embed, self.k_pos_embed])
        projected = self.query(queries + self.q_pos_embed), self.key(seen + positions), self.value(seen)
        return attend(*(split_heads(x, self.heads) for x in projected))


class GatedMlp(nn.Module):
    """w2(norm(silu(w1 x) * w3 x))."""

    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.width, config.hidden)
        self.w2 = nn.Linear(config.hidden, config.width)
        self.w3 = nn.Linear(config.width, config.hidden)
        self.ffn_ln = nn.LayerNorm(config.hidden, eps=config.norm_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.ffn_ln(F.silu(self.w1(x)) * self.w3(x)))  # type: ignore[no-any-return]


class QueryOutput(nn.Module):
    """What attention found is added to the queries, then what the MLP makes of them."""

    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.out_proj = nn.Linear(config.width, config.width)
        self.norm2 = nn.LayerNorm(config.width, eps=QUERY_NORM_EPSILON)
        self.mlp = GatedMlp(config)

    def forward(self, found: Tensor, queries: Tensor) -> Tensor:
        queries = queries + self.out_proj(found)
        return queries + self.mlp(self.norm2(queries))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Norms, attention and output of one abstractor layer."""

    def __init__(self, config: AbstractorConfig, vision: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=QUERY_NORM_EPSILON)
        self.normk = nn.LayerNorm(vision.width, eps=QUERY_NORM_EPSILON)
        self.attention = QueryAttention(config, vision)
        self.output = QueryOutput(config)

    def forward(self, queries: Tensor, image: Tensor) -> Tensor:
        normed = self.norm1(queries)
        return self.output(self.attention(normed, self.normk(image)), normed)  # type: ignore[no-any-return]


class AbstractorLayer(nn.Module):
    """Holds the published name of its one part."""

    def __init__(self, config: AbstractorConfig, vision: VisionConfig) -> None:
        super().__init__()
        self.crossattention = CrossAttention(config, vision)

    def forward(self, queries: Tensor, image: Tensor) -> Tensor:
        return self.crossattention(queries, image)  # type: ignore[no-any-return]


class VisualAbstractor(nn.Module):
    """Vision hidden states [N, patches + 1, width] -> visual tokens [N, queries + 1, decoder's width].

    The last token is a learned end of image.
    """

    def __init__(self, config: AbstractorConfig, vision: VisionConfig, decoder_width: int) -> None:
        super().__init__()
        self.query_embeds = nn.Parameter(torch.zeros(1, config.queries, config.width))
        self.encoder = LayerStack([AbstractorLayer(config, vision) for _ in range(config.layers)])
        self.visual_fc = nn.Linear(config.width, decoder_width)
        self.vit_eos = nn.Parameter(torch.zeros(1, 1, decoder_width))

    def forward(self, image: Tensor) -> Tensor:
        count = image.shape[0]
        queries = self.encoder(self.query_embeds.expand(count, -1, -1), image)
        return torch.cat([self.visual_fc(queries), self.vit_eos.expand(count, -1, -1)], dim=1)
