"""Lazy weights: constants of a graph that are read, or computed from others, when they are written.

Needs no torch: passes that use it run on the device, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def lazy_tensor(
    name: str, dtype: ir.DataType, shape: Sequence[int], array: Callable[[], NDArray[np.generic]]
) -> ir.LazyTensor:
    """A tensor whose content `array` makes whenever it is asked for, and nothing keeps."""

    def made() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(array()), dtype=dtype, shape=ir.Shape(list(shape)), name=name)

    return ir.LazyTensor(made, dtype=dtype, shape=ir.Shape(list(shape)), name=name)


def register(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """The graph's constant of a tensor's name; `tensor` becomes it if there is none yet."""
    name = str(tensor.name)
    if name not in graph.initializers:
        shape = ir.Shape(sizes(tensor))
        graph.register_initializer(
            ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        )
    return graph.initializers[name]


def sizes(tensor: ir.TensorProtocol) -> list[int]:
    """A tensor's shape as numbers."""
    return [int(side) for side in tensor.shape.numpy()]


def content(weight: ir.Value) -> ir.TensorProtocol:
    """The tensor of a constant."""
    if weight.const_value is None:
        raise ValueError(f"{weight.name} has no content")
    return weight.const_value


def drop_unused(graph: ir.Graph) -> None:
    """Forgets the constants that nothing reads."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
