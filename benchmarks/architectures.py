"""The comparators whose work is known by their sizes: mPLUG-Owl2 with LLaMA-2-7B, and the embedded one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from compare2score.benchmarks.workload import (
    FLOAT32_SCORES,
    DecoderSize,
    Part,
    Product,
    Workload,
    workload,
)

ModelName = Literal["7b", "nano"]


@dataclass(frozen=True)
class VisionSize:
    """mPLUG-Owl2's vision transformer and abstractor; the defaults are the published ones."""

    image: int = 448
    patch: int = 14
    layers: int = 24
    width: int = 1024
    heads: int = 16
    hidden: int = 4096
    queries: int = 64
    abstractor_layers: int = 6
    abstractor_width: int = 1024
    abstractor_heads: int = 16
    abstractor_hidden: int = 2816


def transformer_vision(size: VisionSize, decoder_width: int) -> Part:
    """Pixels of one image through the transformer and the abstractor."""
    patches, width = (size.image // size.patch) ** 2, size.width
    tokens, pixels = patches + 1, 3 * size.patch**2
    queries, narrow, layers = size.queries, size.abstractor_width, size.abstractor_layers
    seen = queries + tokens
    heads, readers = size.layers * size.heads, layers * size.abstractor_heads
    products = (
        Product(patches, pixels, width, kind="kept"),
        Product(tokens, width, 3 * width, size.layers),
        Product(tokens, width // size.heads, tokens, heads, kind="attention"),
        Product(tokens, tokens, width // size.heads, heads, kind="attention"),
        Product(tokens, width, width, size.layers),
        Product(tokens, width, size.hidden, size.layers),
        Product(tokens, size.hidden, width, size.layers),
        Product(queries, narrow, narrow, 2 * layers),
        Product(seen, width, narrow, 2 * layers),
        Product(queries, narrow // size.abstractor_heads, seen, readers, kind="attention"),
        Product(queries, seen, narrow // size.abstractor_heads, readers, kind="attention"),
        Product(queries, narrow, size.abstractor_hidden, 2 * layers),
        Product(queries, size.abstractor_hidden, narrow, layers),
        Product(queries, narrow, decoder_width),
    )
    # Two norms of weight and bias, then the biases of the four products.
    layer = 4 * width + 3 * width + width + size.hidden + width
    # Three norms, one of them the image's; positions; attention's four biases; the MLP's biases and norm.
    reader = 4 * narrow + 2 * width + (queries * narrow + tokens * width) + 4 * narrow
    reader += 4 * size.abstractor_hidden + narrow
    other = (1 + tokens) * width + 4 * width + size.layers * layer
    other += queries * narrow + layers * reader + 2 * decoder_width
    scores = size.heads * tokens * tokens * (FLOAT32_SCORES + 1)
    wide = max(2 * tokens * size.hidden, 4 * tokens * width + scores)
    boundary = 3 * size.image**2 + (queries + 1) * decoder_width
    return Part(products, other, boundary, tokens * width + wide)


def mplug_owl2(vision: VisionSize | None = None, decoder: DecoderSize | None = None) -> Workload:
    """The published comparator: mPLUG-Owl2, by default of its published sizes."""
    vision, decoder = vision or VisionSize(), decoder or DecoderSize()
    return workload("7b", transformer_vision(vision, decoder.width), decoder)


# (repeats, kernel, stride, expansion, channels) of EfficientNet-Lite2, Tan and Le, arXiv 1905.11946.
LITE2 = (
    (1, 3, 1, 1, 16),
    (3, 3, 2, 6, 24),
    (3, 5, 2, 6, 48),
    (4, 3, 2, 6, 88),
    (4, 5, 1, 6, 120),
    (5, 5, 2, 6, 208),
    (1, 3, 1, 6, 352),
)
NANO_READERS = 2
"""The common abstractor and one expert."""
NANO_GATE = (4, 512)
"""Abstracted stages that the gate reads, and its hidden width."""
NANO_DECODER = DecoderSize(
    layers=2,
    width=576,
    heads=9,
    kv_heads=3,
    head_width=64,
    hidden=1536,
    vocabulary=49152,
    modalities=1,
    texts=(3, 1, 28),
    visual=5,
    late=True,
)


def nano(image: int = 512, stem: int = 32, decoder: DecoderSize = NANO_DECODER) -> Workload:
    """The embedded comparator: EfficientNet-Lite2, cell statistics, an expert, two layers of SmolLM2-135M."""
    side = image // 2
    products = [Product(side**2, 27, stem, kind="kept")]
    biases, inputs, live = stem, stem, 0
    for repeats, kernel, stride, expansion, channels in LITE2:
        for number in range(repeats):
            hidden, before = inputs * expansion, side
            if expansion != 1:
                products.append(Product(side**2, inputs, hidden, kind="convolution"))
                biases += hidden
            side //= stride if number == 0 else 1
            products.append(Product(side**2, kernel**2, 1, hidden, "kept"))
            products.append(Product(side**2, hidden, channels, kind="convolution"))
            biases += hidden + channels
            live = max(live, before**2 * (inputs + hidden) + side**2 * hidden)
            inputs = channels
    tokens, width = decoder.visual, decoder.width
    abstracted, (stages, gate_hidden) = [channels for *_, channels in LITE2[1:]], NANO_GATE
    features = 2 * sum(abstracted)
    products += [
        Product(tokens, features, width, NANO_READERS),
        Product(tokens, width, width, NANO_READERS),
        Product(1, 2 * sum(abstracted[:stages]), gate_hidden),
        Product(1, gate_hidden, NANO_READERS),
    ]
    # Of each reader: standardisation of the features, two biases, positions, a norm. The gate's biases.
    reader = 2 * tokens * features + 2 * width + tokens * width + 2 * width
    other = biases + NANO_READERS * reader + gate_hidden + NANO_READERS
    seen = Part(tuple(products), other, 3 * image**2 + tokens * width, live)
    return workload("nano", seen, decoder)


MODELS: Mapping[ModelName, Callable[[], Workload]] = {"7b": mplug_owl2, "nano": nano}
