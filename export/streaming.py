"""Weights that are read when they are written: graphs of a comparator that is larger than the memory.

A comparator whose parameters are on torch's meta device is traced by shape alone, as fake tensors. Each of
its weights then stands in the graphs as a lazy tensor that knows where to read it, and what the graph would
do to a weight alone before using it (transpose it, take a few of its rows) becomes a part of the reading.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from compare2score.comparator.checkpoint import architecture_of, read_config
from compare2score.comparator.comparator import Comparator
from compare2score.comparator.mplug_owl2 import MplugOwl2Comparator
from compare2score.comparator.weights import CheckpointWeights
from compare2score.export.lazy import content, drop_unused, lazy_tensor, register, sizes

Read = Callable[[str], Tensor]
"""A weight of a comparator, by its name in `state_dict()`, in any floating type."""
M = TypeVar("M")
STREAMED_BYTES = 2 << 30
"""Checkpoints with more weights are never read whole."""


def open_streamed(folder: Path) -> tuple[Comparator, Read]:
    """Opens a checkpoint in the published layout without its weights, and what reads them one at a time.

    Raises CheckpointError if the weights do not fit its config, or one cannot be read.
    """
    comparator = MplugOwl2Comparator.on_meta(folder)
    weights = CheckpointWeights.open(folder)
    weights.check_fit(comparator)
    # The pages of a mapped file stay resident until it is closed: no more than one is kept open.
    opened = {"": weights}

    def read(name: str) -> Tensor:
        file = weights.files[name]
        if file not in opened:
            opened.clear()
            opened[file] = CheckpointWeights(weights.folder, weights.files)
        return opened[file].tensor(name)

    return comparator, read


def is_large(folder: Path) -> bool:
    """Whether a checkpoint in the published layout is to be streamed."""
    if architecture_of(read_config(folder)) != "mplug_owl2":
        return False
    files = {folder / file for file in CheckpointWeights.open(folder).files.values()}
    return sum(file.stat().st_size for file in files) > STREAMED_BYTES


def without_weights(comparator: object) -> bool:
    """Whether a comparator's parameters are on the meta device: shapes alone."""
    return isinstance(comparator, nn.Module) and any(p.is_meta for p in comparator.parameters())


def as_fakes(comparator: M, mode: FakeTensorMode) -> M:
    """A copy of a comparator on the meta device, in float32, with parameters that can be traced."""
    faked = copy.deepcopy(comparator)
    if not isinstance(faked, nn.Module):
        raise TypeError("the comparator is no torch module")
    for module in faked.modules():
        for name, parameter in module.named_parameters(recurse=False):
            with mode:
                stand_in = torch.empty(parameter.shape, dtype=torch.float32)
            setattr(module, name, nn.Parameter(stand_in, requires_grad=False))
    return faked


def attach_weights(graph: ir.Graph, read: Read) -> None:
    """Gives every weight of a traced graph its content, as something yet to be read, in float32."""

    def reader(name: str) -> Callable[[], NDArray[np.generic]]:
        # In torch, which knows bfloat16.
        return lambda: read(name).to(torch.float32).numpy()

    for value in graph.initializers.values():
        if is_weight(value):
            name, shape = str(value.name), sizes(content(value))
            value.const_value = lazy_tensor(name, ir.DataType.FLOAT, shape, reader(name))


def is_weight(value: ir.Value) -> bool:
    """Whether an initialiser of a graph just traced is one of the comparator's parameters."""
    return isinstance(getattr(value.const_value, "raw", None), nn.Parameter)


def fold_weights(graph: ir.Graph) -> None:
    """Makes transposes of weights, and choices of a few of their rows, a part of the weights.

    All uses of one such part share it. The exporter leaves a weight that serves two blocks of the prompt
    transposed in the graph, where quantisers do not find it as a matrix product's constant, and a word
    embedding whole, of which a fixed prompt needs a few rows.
    """
    for node in list(graph):
        data = node.inputs[0] if node.inputs else None
        if data is None or not data.is_initializer() or data.const_value is None:
            continue
        made = transposed(node, data) or rows(node, data)
        if made is not None:
            ir.convenience.replace_all_uses_with(node.outputs[0], register(graph, made))
            graph.remove(node, safe=True)
    drop_unused(graph)


def transposed(node: ir.Node, weight: ir.Value) -> ir.LazyTensor | None:
    """What a Transpose makes of a weight; None for another node."""
    if node.op_type != "Transpose":
        return None
    source = content(weight)
    before = sizes(source)
    axes = len(before)
    order = node.attributes.get_ints("perm", None) or [*reversed(range(axes))]
    shape = [before[axis] for axis in order]
    suffix = "" if axes == 2 else "".join(map(str, order))
    return lazy_tensor(
        f"{weight.name}_transposed{suffix}", source.dtype, shape, lambda: source.numpy().transpose(order)
    )


def rows(node: ir.Node, weight: ir.Value) -> ir.LazyTensor | None:
    """The rows of a matrix that a Gather with constant indices takes; None for another node."""
    if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0 or node.inputs[1] is None:
        return None
    indices, source = ir.convenience.get_const_tensor(node.inputs[1]), content(weight)
    if indices is None or indices.dtype != ir.DataType.INT64 or len(source.shape) != 2:
        return None
    chosen = indices.numpy()
    label = "_".join(map(str, chosen.ravel().tolist()))[:60]
    shape = [*chosen.shape, sizes(source)[1]]
    return lazy_tensor(
        f"{weight.name}_rows{chosen.size}_{label}", source.dtype, shape, lambda: source.numpy()[chosen]
    )
