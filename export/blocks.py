"""Weights of matrix products in blocks: a few bits each, and a scale for every block of one output.

A weight [K, N] is cut along K. Rounding is to the nearest; a block's scale is the one of a few candidates
that leaves the least squared error, for the largest weight of a block may be better clipped than served.

Needs no torch: it runs on the device, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

CLIPS = (1.0, 0.94, 0.88, 0.82)
"""Candidates for a scale, as shares of the one that reaches the block's largest weight."""
COLUMNS = 64
"""Outputs that are quantised at once: few enough to stay in a processor's cache."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """A quantised weight.

    Attributes:
        integers: [K, N] int8, from -top to top.
        scales: [K / block, N] float32, numbers that float16 can hold too.
    """

    integers: NDArray[np.int8]
    scales: NDArray[np.float32]


def matrix_products(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Value]]:
    """The MatMuls of an activation by a stored float matrix [K, N], and that matrix."""
    for node in list(graph):
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is None or weight.const_value is None or weight.dtype is None:
            continue
        if weight.dtype.is_floating_point() and len(weight.const_value.shape) == 2:
            yield node, weight


def block_of(depth: int, blocks: tuple[int, ...]) -> int | None:
    """The first of `blocks` that divides a weight's K; None if none does, and it stays as it is."""
    return next((block for block in blocks if depth % block == 0), None)


@dataclass(eq=False)
class Quantiser:
    """A weight to be quantised when its integers are asked for.

    Attributes:
        weight: [K, N].
        block, top: see `quantised`.
        known: its scales, once they are: the two parts are written apart, and these are the small one.
    """

    weight: ir.TensorProtocol
    block: int
    top: int
    known: NDArray[np.float32] | None = None

    def integers(self) -> NDArray[np.int8]:
        """`Blocks.integers`; nothing keeps them."""
        blocks = quantised(self.weight, self.block, self.top)
        self.known = blocks.scales
        return blocks.integers

    def scales(self) -> NDArray[np.float32]:
        """`Blocks.scales`."""
        return quantised(self.weight, self.block, self.top).scales if self.known is None else self.known


def quantised(weight: ir.TensorProtocol, block: int, top: int) -> Blocks:
    """Quantises a weight [K, N] in blocks along K to integers up to `top`."""
    exact = weight.numpy()
    depth, width = exact.shape
    integers = np.empty((depth, width), np.int8)
    scales = np.empty((depth // block, width), np.float32)
    for start in range(0, width, COLUMNS):
        columns = slice(start, start + COLUMNS)
        part = exact[:, columns].astype(np.float32).reshape(depth // block, block, -1)
        scale = best_scale(part, top)
        part /= scale[:, None]
        np.rint(part, out=part)
        np.clip(part, -top, top, out=part)
        integers[:, columns], scales[:, columns] = part.reshape(depth, -1), scale
    return Blocks(integers, scales)


def best_scale(part: NDArray[np.float32], top: int) -> NDArray[np.float32]:
    """Scales [B, N] of blocks [B, block, N], rounded to float16."""
    largest = np.maximum(np.abs(part).max(1), np.float32(top * 2.0**-24))
    # In units of the scale that reaches the largest, in which candidates are the same for every block.
    units = part * (top / largest)[:, None]
    rounded, best, share = np.empty_like(units), np.full_like(largest, np.inf), np.ones_like(largest)
    # With many steps nothing is gained by clipping.
    for clip in CLIPS if top < 16 else CLIPS[:1]:
        np.multiply(units, np.float32(1 / clip), out=rounded)
        np.rint(rounded, out=rounded)
        np.clip(rounded, -top, top, out=rounded)
        rounded *= np.float32(clip)
        rounded -= units
        error = np.einsum("bkn,bkn->bn", rounded, rounded)
        share = np.where(error < best, np.float32(clip), share)
        best = np.minimum(error, best)
    scale = np.maximum((share * largest / top).astype(np.float16), np.float16(2.0**-24))
    return np.asarray(scale, np.float32)
