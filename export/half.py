"""Half precision in the graph: float16 weights and activations, float32 where float16 would overflow or lose.

What a node computes in is settled from the graph's beginning to its end:

- products (MatMul, Gemm, Conv) and quantisers take float16;
- softmax and what norms are made of (squares, means, roots) take float32: the square of a LLaMA's largest
  activations is beyond float16;
- any other node takes float32 if one of its inputs is float32, else float16.

A constant has no say but for a table (rotary angles, masks), which stays float32 and so draws its node along.
A value that is wanted in the other type is cast once. The same weight has the same name in every graph.

Needs no torch: it runs on the device, too.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compare2score.errors import ExportError
from compare2score.export.lazy import content, drop_unused, lazy_tensor, register, sizes

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "QuantizeLinear", "DequantizeLinear"})
EXACT = frozenset(
    {
        *("Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization", "InstanceNormalization"),
        *(
            "ReduceMean",
            "ReduceSum",
            "ReduceSumSquare",
            "ReduceL2",
            "Pow",
            "Sqrt",
            "Reciprocal",
            "Exp",
            "Log",
        ),
    }
)
WHOLE = frozenset(
    {
        "Shape",
        "Size",
        "ArgMax",
        "ArgMin",
        "Equal",
        "Greater",
        "Less",
        "GreaterOrEqual",
        "LessOrEqual",
        "IsNaN",
    }
)
"""Nodes whose result is no float, whatever they take."""


def to_half(model: ir.Model, interface: Collection[str] = ()) -> ir.Model:
    """Brings a float32 graph to float16, in place.

    Args:
        model: the graph; what of it is float16 already, stays so.
        interface: names of inputs and outputs that become float16; the others keep their types.

    Raises ExportError, when the weights are written, for one that float16 cannot hold.
    """
    Halving(model.graph).run(interface)
    return model


class Halving:
    """One graph on its way to half precision: the types of its values, and the casts made so far."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.types: dict[ir.Value, ir.DataType | None] = {}
        self.made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def run(self, interface: Collection[str]) -> None:
        graph = self.graph
        nodes, promised = list(graph), [value.dtype for value in graph.outputs]
        for given in graph.inputs:
            if given.dtype is FLOAT and given.name in interface:
                given.type = ir.TensorType(HALF)
            self.types[given] = given.dtype if given.dtype in (HALF, FLOAT) else None
        # Read as float16 from the beginning: a float32 input would draw everything behind it along.
        entries = {value for value in graph.inputs if self.types[value] is FLOAT}
        for node in (node for node in nodes if node.op_type != "Cast"):
            for place, value in enumerate(node.inputs):
                if value is not None and value in entries:
                    node.replace_input_with(place, self.cast(value, HALF))
        for node in nodes:
            self.settle(node)
        for place, value in enumerate(list(graph.outputs)):
            wanted = HALF if value.name in interface or promised[place] is HALF else FLOAT
            if self.types.get(value) not in (None, wanted):
                self.replace_output(place, value, wanted)
        drop_unused(graph)

    def settle(self, node: ir.Node) -> None:
        """Chooses a node's type and gives its inputs that type."""
        if node.op_type == "Cast":
            to = ir.DataType(node.attributes["to"].as_int())
            self.give(node, to if to in (HALF, FLOAT) else None)
            return
        floats = [value for value in node.inputs if value is not None and self.type_of(value) is not None]
        if not floats:
            self.give(node, produced(node))
            return
        if node.op_type in PRODUCTS:
            wanted = HALF
        elif node.op_type in EXACT or is_square(node):
            wanted = FLOAT
        else:
            deciding = {self.type_of(value) for value in floats if not self.follows(value)}
            wanted = FLOAT if FLOAT in deciding else HALF
        for place, value in enumerate(node.inputs):
            if value is not None and self.type_of(value) not in (None, wanted):
                node.replace_input_with(place, self.cast(value, wanted))
        self.give(node, None if node.op_type in WHOLE or node.op_type == "QuantizeLinear" else wanted)

    def type_of(self, value: ir.Value) -> ir.DataType | None:
        """float16, float32, or None for what is neither."""
        if value in self.types:
            return self.types[value]
        return value.dtype if value.dtype in (HALF, FLOAT) else None

    def give(self, node: ir.Node, kind: ir.DataType | None) -> None:
        for output in node.outputs:
            self.types[output] = kind
            if kind is not None:
                output.type = ir.TensorType(kind)

    def follows(self, value: ir.Value) -> bool:
        """Whether a value takes the type of what it meets: weights and single numbers do, tables do not."""
        if value.const_value is None:
            return False
        return value.const_value.size == 1 or "/" not in str(value.name)

    def cast(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        """The same value in another type; made once."""
        if (value, kind) not in self.made:
            if value.const_value is not None and value.is_initializer():
                cast = half_weight(self.graph, value) if kind is HALF else float_weight(self.graph, value)
            else:
                cast = self.cast_node(value, kind, f"{value.name}_{kind.name.lower()}")
            self.types[cast] = kind
            self.made[value, kind] = cast
        return self.made[value, kind]

    def cast_node(self, value: ir.Value, kind: ir.DataType, name: str) -> ir.Value:
        node = ir.node("Cast", [value], {"to": int(kind)}, name=name)
        node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(kind)
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(producer, node)
        return node.outputs[0]

    def replace_output(self, place: int, value: ir.Value, kind: ir.DataType) -> None:
        """Casts an output of the graph; its name goes to what is cast."""
        name, shape = str(value.name), value.shape
        value.name = f"{name}_before_cast"
        last = self.cast_node(value, kind, name)
        last.shape = shape
        self.graph.outputs[place] = last


def is_square(node: ir.Node) -> bool:
    """Whether a node multiplies a value by itself."""
    return node.op_type == "Mul" and node.inputs[0] is node.inputs[1]


def produced(node: ir.Node) -> ir.DataType | None:
    """The float type that a node without float inputs makes."""
    kind = node.outputs[0].dtype if node.outputs else None
    return kind if kind in (HALF, FLOAT) else None


def half_weight(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """A float32 constant in float16."""
    source, name = content(value), f"{value.name}_half"

    def array() -> NDArray[np.generic]:
        exact = source.numpy()
        with np.errstate(over="ignore"):
            half = exact.astype(np.float16)
        if not np.isfinite(half).all() and np.isfinite(exact).all():
            raise ExportError(f"The weight {value.name} overflows float16; export as fp32.")
        return half

    return register(graph, lazy_tensor(name, HALF, sizes(source), array))


def float_weight(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """A float16 constant in float32."""
    source = content(value)
    name = f"{value.name}_float"
    return register(graph, lazy_tensor(name, FLOAT, sizes(source), lambda: source.numpy().astype(np.float32)))
