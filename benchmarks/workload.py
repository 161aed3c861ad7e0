"""What a comparator computes for one score, counted from its sizes: no weights, no torch, no graph needed.

Counted are matrix products and convolutions, a multiplication and an addition as two operations. Attention is
counted over all positions, as it is computed here: what a causal mask hides is not left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["matrix", "convolution", "kept", "attention"]

FLOAT32_SCORES = 2
"""Attention's scores are kept in float32: two numbers of half precision each."""


@dataclass(frozen=True)
class Product:
    """`count` products of matrices, each [rows, depth] by [depth, columns].

    The right-hand matrices are weights, all of them different, but for those of `kind` "attention". A
    "convolution" mixes channels; those of one channel each, or of an image's three, are "kept" in half
    precision whatever the others become.
    """

    rows: int
    depth: int
    columns: int
    count: int = 1
    kind: Kind = "matrix"

    @property
    def flops(self) -> int:
        return 2 * self.count * self.rows * self.depth * self.columns

    @property
    def weights(self) -> int:
        """Numbers stored."""
        return self.count * self.depth * self.columns if self.kind != "attention" else 0

    @property
    def scales(self) -> int:
        """Columns of weights: as many scales a quantiser stores that has one an output channel."""
        return self.count * self.columns if self.kind != "attention" else 0


@dataclass(frozen=True)
class Part:
    """One graph's work for one call.

    Attributes:
        products: all of them.
        other_weights: numbers stored that no product holds: norms, biases, positions, the prompt's text rows.
        boundary: numbers that go in and come out, stored keys and values not among them.
        live: numbers of half precision alive together at the widest moment, if no kernel fuses any.
    """

    products: tuple[Product, ...]
    other_weights: int
    boundary: int
    live: int

    @property
    def flops(self) -> int:
        return sum(product.flops for product in self.products)

    @property
    def weights(self) -> int:
        """Numbers stored."""
        return sum(product.weights for product in self.products) + self.other_weights


@dataclass(frozen=True)
class Workload:
    """What one score takes at batch 1.

    Attributes:
        name: of the model.
        vision: pixels of one image to its visual tokens.
        decoder: visual tokens over all anchors' prefixes to the level logits.
        anchors: first images of a score.
        prefix: numbers stored for the anchors: keys and values.
        reference_flops: operations of the published way to the same score: for every anchor two vision
            passes, one full prompt, the whole `lm_head` at all positions.
        reference_weights: numbers that the published way reads: the weights of vision, decoder and whole
            head, once an anchor.
    """

    name: str
    vision: Part
    decoder: Part
    anchors: int
    prefix: int
    reference_flops: int
    reference_weights: int

    @property
    def flops(self) -> int:
        return self.vision.flops + self.decoder.flops


@dataclass(frozen=True)
class DecoderSize:
    """A LLaMA decoder and the prompt it reads; the defaults are LLaMA-2-7B's and the published prompt's.

    Attributes:
        layers, width, heads, kv_heads, head_width, hidden, vocabulary: as the field calls them.
        modalities: sets of key, value and norm weights: 2 where visual tokens have their own.
        texts: tokens before the first image, between the two, after the second.
        visual: visual tokens of an image.
        late: the second image's rows see themselves only, and are computed once for all anchors.
        anchors, levels: first images of a score, rows of the head.
    """

    layers: int = 32
    width: int = 4096
    heads: int = 32
    kv_heads: int = 32
    head_width: int = 128
    hidden: int = 11008
    vocabulary: int = 32000
    modalities: int = 2
    texts: tuple[int, int, int] = (5, 1, 30)
    visual: int = 65
    late: bool = False
    anchors: int = 5
    levels: int = 5

    @property
    def prefix_length(self) -> int:
        return self.texts[0] + self.visual

    @property
    def prompt_length(self) -> int:
        return sum(self.texts) + 2 * self.visual


def decoder_part(size: DecoderSize) -> Part:
    """Anchors' comparisons of one image, over stored prefixes; of the last layer only the last row."""
    _, second, closing = size.texts
    block, a, last = second + size.visual, size.anchors, size.layers - 1
    if size.late:
        text, visual = second + a * closing, size.visual
        # The image once, seeing itself, then the closing text with every anchor.
        blocks = [(1, block, block), (a, closing, size.prompt_length)]
    else:
        text, visual = a * (second + closing), a * size.visual
        blocks = [(a, block + closing, size.prompt_length)]
    products = [
        *projections(size, text, visual),
        *attention_products(size, blocks, last),
        *row_products(size, text + visual, last),
        *attention_products(size, [(a, 1, size.prompt_length)], 1),
        *row_products(size, a, 1),
        Product(a, size.width, size.levels),
    ]
    rows = max(count * rows for count, rows, _ in blocks)
    scores = max(count * rows * seen for count, rows, seen in blocks) * size.heads
    inner = size.heads * size.head_width
    seen = 2 * a * size.prompt_length * size.kv_heads * size.head_width
    wide = max(2 * rows * size.hidden, rows * (size.width + inner) + seen + scores * (FLOAT32_SCORES + 1))
    # The last layer's second norm meets text alone, and the final norm is one for both.
    norms = size.width * (2 * size.layers * size.modalities - (size.modalities - 1) + 1)
    return Part(
        tuple(products),
        norms + (second + closing) * size.width,
        size.visual * size.width + a * size.levels,
        rows * size.width + wide,
    )


def projections(size: DecoderSize, text: int, visual: int) -> list[Product]:
    """Keys and values of all layers, of rows of text and of visual tokens."""
    shared = size.kv_heads * size.head_width
    by_modality = [text + visual] if size.modalities == 1 else [text, visual]
    return [Product(rows, size.width, shared, 2 * size.layers) for rows in by_modality]


def row_products(size: DecoderSize, rows: int, layers: int) -> list[Product]:
    """Query, output and MLP of `layers` layers for so many rows."""
    inner = size.heads * size.head_width
    return [
        Product(rows, size.width, inner, layers),
        Product(rows, inner, size.width, layers),
        Product(rows, size.width, size.hidden, 2 * layers),
        Product(rows, size.hidden, size.width, layers),
    ]


def attention_products(size: DecoderSize, blocks: list[tuple[int, int, int]], layers: int) -> list[Product]:
    """Scores and mixtures of `layers` layers: blocks of (count, rows, positions that each row sees)."""
    found = []
    for count, rows, seen in blocks:
        heads = layers * count * size.heads
        found += [
            Product(rows, size.head_width, seen, heads, kind="attention"),
            Product(rows, seen, size.head_width, heads, kind="attention"),
        ]
    return found


def full_prompt(size: DecoderSize) -> Part:
    """One comparison as published: all rows in all layers, the whole head at all positions."""
    rows = size.prompt_length
    text, visual = sum(size.texts), 2 * size.visual
    products = [
        *projections(size, text, visual),
        *attention_products(size, [(1, rows, rows)], size.layers),
        *row_products(size, rows, size.layers),
        Product(rows, size.width, size.vocabulary),
    ]
    return Part(tuple(products), size.width * (2 * size.layers * size.modalities + 1), 0, 0)


def workload(name: str, seen: Part, size: DecoderSize) -> Workload:
    """Vision and decoder put together, beside the published way to the same score."""
    prompt = full_prompt(size)
    return Workload(
        name,
        seen,
        decoder_part(size),
        size.anchors,
        2 * size.anchors * size.layers * size.kv_heads * size.prefix_length * size.head_width,
        size.anchors * (2 * seen.flops + prompt.flops),
        size.anchors * (seen.weights + prompt.weights),
    )
