"""Inputs of a bundle's graphs that show how large activations get, from images like those to be scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from compare2score.backends import Floats, Prefix
from compare2score.backends.onnxruntime import OnnxRuntimeBackend
from compare2score.bundle import Bundle
from compare2score.image import preprocess

Sample = dict[str, Floats]
T = TypeVar("T")

IMAGES = 96
"""How many images show well enough what activations reach."""


def spaced(items: Sequence[T], count: int = IMAGES) -> list[T]:
    """Up to `count` of the items, evenly spaced."""
    return list(items[:: max(1, len(items) // count)][:count])


class Calibration:
    """Images as inputs of a bundle's three graphs, computed by these very graphs on the CPU.

    Args:
        bundle: whose graphs.
        images: paths, read once more for the vision graph instead of being kept.

    Raises ImageError if one cannot be read.
    """

    def __init__(self, bundle: Bundle, images: Sequence[Path]) -> None:
        self.bundle, self.images = bundle, list(images)
        self.backend = OnnxRuntimeBackend(bundle)
        self.tokens = [self.backend.encode(sample["pixels"]) for sample in self.pixels()]

    def pixels(self) -> Iterator[Sample]:
        """One image a call [1, 3, S, S]."""
        for path in self.images:
            yield {"pixels": preprocess(path, self.bundle.manifest.image)[None]}

    def samples(self, graph: str) -> Iterator[Sample]:
        """Inputs of one of the bundle's graphs, one call after another; none if there are no images."""
        if graph == "vision":
            yield from self.pixels()
        elif graph == "prefix":
            yield from ({"visual_tokens": tokens} for tokens in self.tokens)
        elif self.tokens:
            prefix = self.first_images()
            for tokens in self.tokens:
                yield {"visual_tokens": tokens, "prefix_keys": prefix.keys, "prefix_values": prefix.values}

    def first_images(self) -> Prefix:
        """What the images are compared with: the bundle's anchors, or up to five of themselves."""
        anchors = self.bundle.anchors
        return self.backend.prefix(np.concatenate(self.tokens[:5])) if anchors is None else anchors.prefix
