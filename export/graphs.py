"""A comparator's three graphs, traced in float32 and held against torch before they are used."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import onnxscript.optimizer
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from compare2score.comparator.comparator import Comparator
from compare2score.errors import ExportError
from compare2score.export.sharing import write_graphs
from compare2score.export.streaming import (
    Read,
    as_fakes,
    attach_weights,
    fold_weights,
    is_weight,
    without_weights,
)

OPSET = 21
"""The first with four-bit weights in blocks; TensorRT builds its attention of MatMul and Softmax, and not yet
opset 23's Attention."""
TOLERANCE = 1e-4
"""Largest difference from torch allowed in float32: absolute, or of the largest number if that is above 1."""
PARITY_BATCHES = (1, 2, 5)


class Vision(nn.Module):
    """pixels [N, 3, S, S] -> visual_tokens [N, T, D]."""

    def __init__(self, comparator: Comparator) -> None:
        super().__init__()
        self.comparator = comparator

    def forward(self, pixels: Tensor) -> Tensor:
        return self.comparator.encode(pixels)


class PrefixOf(nn.Module):
    """visual_tokens [A, T, D] of first images -> keys, values [A, layers, kv_heads, length, head_width]."""

    def __init__(self, comparator: Comparator) -> None:
        super().__init__()
        self.comparator = comparator

    def forward(self, visual_tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.comparator.prefix(visual_tokens)


class Decoder(nn.Module):
    """visual_tokens [N, T, D] of second images and A prefixes -> level_logits [N, A, levels]."""

    def __init__(self, comparator: Comparator) -> None:
        super().__init__()
        self.comparator = comparator

    def forward(self, visual_tokens: Tensor, prefix_keys: Tensor, prefix_values: Tensor) -> Tensor:
        return self.comparator.compare(visual_tokens, prefix_keys, prefix_values)


def export_graphs(comparator: Comparator, folder: Path) -> dict[str, float]:
    """Writes `vision.onnx`, `prefix.onnx` and `decoder.onnx` in float32.

    Every graph is run by ONNX Runtime at several batch sizes, other than those it was traced with, and
    compared with torch on the same input.

    Returns:
        Largest difference from torch, by graph; see TOLERANCE.

    Raises:
        ExportError: a difference is above TOLERANCE.
    """
    write_graphs(trace_graphs(comparator), folder)
    return check_parity(comparator, folder)


@torch.no_grad()
def trace_graphs(comparator: Comparator, read: Read | None = None) -> dict[str, ir.Model]:
    """The graphs "vision", "prefix" and "decoder" in float32.

    Weights have their names in the comparator, with what was done to them behind; all other constants begin
    with their graph's name.

    Args:
        comparator: what to trace. On the meta device it is traced by shape alone.
        read: gives its weights where it has none; they are read when the graphs are written.
    """
    mode: Any = nullcontext()
    if without_weights(comparator):
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        comparator = as_fakes(comparator, mode)
    if isinstance(comparator, nn.Module):
        comparator.eval()
    size = comparator.spec.image.size
    with mode:
        pixels = torch.zeros(2, 3, size, size)
        tokens = comparator.encode(pixels)
        keys, values = comparator.prefix(torch.cat([tokens, tokens[:1]]))
    images, anchors = {0: torch.export.Dim("images", min=1)}, {0: torch.export.Dim("anchors", min=1)}
    traced = {
        "vision": trace(Vision(comparator), (pixels,), {"pixels": images}, ["visual_tokens"]),
        "prefix": trace(PrefixOf(comparator), (tokens,), {"visual_tokens": anchors}, ["keys", "values"]),
        "decoder": trace(
            Decoder(comparator),
            (tokens, keys, values),
            {"visual_tokens": images, "prefix_keys": anchors, "prefix_values": anchors},
            ["level_logits"],
        ),
    }
    for name, model in traced.items():
        tidy(name, model, read)
    return traced


def trace(
    module: nn.Module, example: tuple[Tensor, ...], inputs: dict[str, Any], outputs: list[str]
) -> ir.Model:
    """Traces one module; `inputs` names its arguments and their dynamic dimensions."""
    program = torch.onnx.export(
        module.eval(),
        example,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(inputs),
        output_names=outputs,
        dynamic_shapes=tuple(inputs.values()),
        # Done in `tidy`, when transposed weights are out of its way: it would read and store them all.
        optimize=False,
        verbose=False,
    )
    if program is None:
        raise ExportError("torch exported nothing; install another version of it.")
    return program.model


def tidy(name: str, model: ir.Model, read: Read | None) -> None:
    """Names a graph's weights, makes what is done to them alone a part of them, and simplifies the rest."""
    graph = model.graph
    # Under names of their own while the optimiser makes new ones.
    for value in list(graph.initializers.values()):
        value.name = str(value.name).removeprefix("comparator.")
    weights = {str(value.name) for value in graph.initializers.values() if is_weight(value)}
    if read is not None:
        attach_weights(graph, read)
    fold_weights(graph)
    onnxscript.optimizer.optimize_ir(model)
    fold_weights(graph)
    for value in list(graph.initializers.values()):
        if not any(str(value.name).startswith(weight) for weight in weights):
            value.name = f"{name}/{value.name}"
        if value.const_value is not None:
            value.const_value.name = value.name
    forget_inner_shapes(graph)


def forget_inner_shapes(graph: ir.Graph) -> None:
    """Drops annotations of inner shapes: they are optional, and a quantiser trips over stale ones."""
    kept = {*graph.inputs, *graph.outputs, *graph.initializers.values()}
    for node in graph.all_nodes():
        for value in node.outputs:
            if value not in kept:
                value.shape = None
        # The module that a node is from is told to whoever cannot build it; the rest is long and of no use.
        for name in set(node.metadata_props) - {"pkg.torch.onnx.name_scopes"}:
            del node.metadata_props[name]


@torch.no_grad()
def check_parity(comparator: Comparator, folder: Path, seed: int = 0) -> dict[str, float]:
    """Largest difference between the graphs in `folder` and torch, by graph; see TOLERANCE.

    Raises ExportError if one is above TOLERANCE.
    """
    generator = torch.Generator().manual_seed(seed)
    size = comparator.spec.image.size
    sessions = {
        name: onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in ("vision", "prefix", "decoder")
    }
    worst = dict.fromkeys(sessions, 0.0)

    def compare(name: str, expected: tuple[Tensor, ...], **given: Tensor) -> None:
        outputs = sessions[name].run(None, {key: value.numpy() for key, value in given.items()})
        for output, reference in zip(outputs, expected, strict=True):
            exact = reference.numpy()
            difference = np.abs(output - exact).max() / max(1.0, np.abs(exact).max())
            worst[name] = max(worst[name], float(difference))

    for batch in PARITY_BATCHES:
        pixels = torch.rand(batch, 3, size, size, generator=generator) * 2 - 1
        tokens = comparator.encode(pixels)
        compare("vision", (tokens,), pixels=pixels)
        keys, values = comparator.prefix(tokens)
        compare("prefix", (keys, values), visual_tokens=tokens)
        anchors = comparator.encode(pixels.flip(-1))[:3]
        keys, values = comparator.prefix(anchors)
        logits = comparator.compare(tokens, keys, values)
        compare("decoder", (logits,), visual_tokens=tokens, prefix_keys=keys, prefix_values=values)
    for name, difference in worst.items():
        if not difference <= TOLERANCE:
            raise ExportError(
                f"{name}.onnx differs from torch by {difference:.2g}, more than {TOLERANCE:.0e}; "
                "the bundle was not written."
            )
    return worst
