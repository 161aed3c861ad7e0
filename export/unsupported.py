"""The nodes of a graph that TensorRT's parser refuses, and the modules that they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from compare2score.engine import Target
from compare2score.errors import ExportError
from compare2score.export.float_graph import constant


@dataclass(frozen=True)
class Unsupported:
    """A node that the parser refuses.

    Attributes:
        node, operator: its name and kind.
        module: the torch module that it was exported from, or the weight's it reads; "" if neither is known.
        reason: the parser's words, if it has any.
    """

    node: str
    operator: str
    module: str
    reason: str

    def __str__(self) -> str:
        place = f" of {self.module}" if self.module else ""
        why = f" ({self.reason})" if self.reason else ""
        return f"{self.operator} {self.node}{place}{why}"


class UnsupportedGraphError(ExportError):
    """A graph holds nodes that TensorRT refuses, listed in `nodes`."""

    def __init__(self, graph: str, target: Target, nodes: Sequence[Unsupported]) -> None:
        listed = "; ".join(map(str, nodes))
        super().__init__(f"{target} does not build {graph}.onnx because of {listed}; use another backend.")
        self.nodes = tuple(nodes)


def refused(parser: Any, graph: ir.Graph) -> list[Unsupported]:
    """What a parser refuses, in the graph's order, each node once."""
    nodes = {node.name: node for node in graph}
    found: dict[str, Unsupported] = {}
    for place in range(parser.num_errors):
        error = parser.get_error(place)
        name, reason = str(error.node_name()), str(error.desc())
        node = nodes.get(name)
        module = "" if node is None else module_of(node)
        operator = str(error.node_operator()) or "the graph"
        words = "" if reason == "false" else " ".join(reason.split()).rstrip(".")
        found.setdefault(name, Unsupported(name or "without a name", operator, module, words))
    return list(found.values())


def module_of(node: ir.Node) -> str:
    """The torch module that a node came from, by the exporter's notes or its weights' names."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    names = [name for name in scopes.strip("[]").replace("'", "").split(", ") if name]
    if len(names) > 1:
        return names[-2]
    for value in node.inputs:
        if value is not None and constant(value) is not None and value.name and "." in value.name:
            return value.name.rpartition(".")[0]
    return ""
