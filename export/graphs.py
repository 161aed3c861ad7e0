"""A comparator's three ONNX graphs, each held against torch before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from compare2score.comparator.nano import NanoComparator
from compare2score.errors import ExportError

OPSET = 20
"""The newest whose float32 attention (MatMul, Softmax) TensorRT builds; opset 23's Attention it does not."""
TOLERANCE = 1e-4
"""Largest absolute difference from torch allowed in float32."""
PARITY_BATCHES = (1, 2, 5)


class Vision(nn.Module):
    """pixels [N, 3, S, S] -> visual_tokens [N, T, D]."""

    def __init__(self, comparator: NanoComparator) -> None:
        super().__init__()
        self.comparator = comparator

    def forward(self, pixels: Tensor) -> Tensor:
        return self.comparator.encode(pixels)


class PrefixOf(nn.Module):
    """visual_tokens [A, T, D] of first images -> keys, values [A, layers, kv_heads, length, head_width]."""

    def __init__(self, comparator: NanoComparator) -> None:
        super().__init__()
        self.comparator = comparator

    def forward(self, visual_tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.comparator.prefix(visual_tokens)


class Decoder(nn.Module):
    """visual_tokens [N, T, D] of second images and A prefixes -> level_logits [N, A, levels]."""

    def __init__(self, comparator: NanoComparator) -> None:
        super().__init__()
        self.comparator = comparator

    def forward(self, visual_tokens: Tensor, prefix_keys: Tensor, prefix_values: Tensor) -> Tensor:
        return self.comparator.compare(visual_tokens, prefix_keys, prefix_values)


@torch.no_grad()
def export_graphs(comparator: NanoComparator, folder: Path) -> dict[str, float]:
    """Writes `vision.onnx`, `prefix.onnx` and `decoder.onnx` in float32.

    Every graph is run by ONNX Runtime at several batch sizes, other than those it was traced with, and
    compared with torch on the same input.

    Returns:
        Largest absolute difference from torch, by graph.

    Raises:
        ExportError: a difference is above TOLERANCE.
    """
    comparator = comparator.eval()
    folder.mkdir(parents=True, exist_ok=True)
    images, anchors = {0: torch.export.Dim("images", min=1)}, {0: torch.export.Dim("anchors", min=1)}
    pixels = torch.randn(2, 3, comparator.config.image.size, comparator.config.image.size)
    tokens = comparator.encode(pixels)
    keys, values = comparator.prefix(torch.cat([tokens, tokens[:1]]))
    write_graph(Vision(comparator), (pixels,), folder / "vision.onnx", {"pixels": images}, ["visual_tokens"])
    write_graph(
        PrefixOf(comparator),
        (tokens,),
        folder / "prefix.onnx",
        {"visual_tokens": anchors},
        ["keys", "values"],
    )
    write_graph(
        Decoder(comparator),
        (tokens, keys, values),
        folder / "decoder.onnx",
        {"visual_tokens": images, "prefix_keys": anchors, "prefix_values": anchors},
        ["level_logits"],
    )
    return check_parity(comparator, folder)


def write_graph(
    module: nn.Module, example: tuple[Tensor, ...], path: Path, inputs: dict[str, Any], outputs: list[str]
) -> None:
    """Exports one module; `inputs` names its arguments and their dynamic dimensions."""
    torch.onnx.export(
        module.eval(),
        example,
        path,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(inputs),
        output_names=outputs,
        dynamic_shapes=tuple(inputs.values()),
        external_data=False,
        verbose=False,
    )
    model = onnx.load(path)
    fold_transposed_weights(model)
    # The exporter's annotations of inner shapes are optional, and a quantiser trips over stale ones.
    model.graph.ClearField("value_info")
    onnx.save(model, path)


def fold_transposed_weights(model: onnx.ModelProto) -> None:
    """Stores transposed every weight that the graph would transpose at run time, once for all its uses.

    The exporter leaves weights that serve two blocks of the prompt transposed in the graph, where quantisers
    do not find them as a matrix product's constant.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    folded: dict[tuple[str, tuple[int, ...]], str] = {}
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        if node.op_type != "Transpose" or node.input[0] not in weights:
            kept.append(node)
            continue
        order = tuple(node.attribute[0].ints)
        key = (node.input[0], order)
        if key not in folded:
            folded[key] = f"{node.input[0]}_transposed"
            values = np.ascontiguousarray(numpy_helper.to_array(weights[key[0]]).transpose(order))
            graph.initializer.append(numpy_helper.from_array(values, folded[key]))
        renamed[node.output[0]] = folded[key]
    for node in kept:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    used = {name for node in kept for name in node.input}
    stored = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(stored)


@torch.no_grad()
def check_parity(comparator: NanoComparator, folder: Path, seed: int = 0) -> dict[str, float]:
    """Largest absolute difference between the graphs in `folder` and torch, by graph.

    Raises ExportError if one is above TOLERANCE.
    """
    generator = torch.Generator().manual_seed(seed)
    size = comparator.config.image.size
    sessions = {
        name: onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in ("vision", "prefix", "decoder")
    }
    worst = dict.fromkeys(sessions, 0.0)

    def compare(name: str, expected: tuple[Tensor, ...], **given: Tensor) -> None:
        outputs = sessions[name].run(None, {key: value.numpy() for key, value in given.items()})
        for output, reference in zip(outputs, expected, strict=True):
            worst[name] = max(worst[name], float(np.abs(output - reference.numpy()).max()))

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
