"""What a bundle's graphs cost: floating-point operations and bytes, counted and not timed.

    python -m compare2score.benchmarks.cost

writes the embedded bundle's counts, which a test holds its later exports against.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import onnx
import onnxruntime
import typer
from onnx import AttributeProto, helper

from compare2score.benchmarks.record import RESULTS, write_record
from compare2score.bundle import Bundle, open_bundle
from compare2score.errors import BundleError

Kind = Literal["matrix", "depthwise"]
Precision = Literal["fp32", "int8"]
Shape = tuple[int, ...]

VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Size", "Constant"}
"""Operations that move no data."""
CONVOLUTIONS = {"Conv", "FusedConv", "QLinearConv", "ConvInteger"}
EIGHT_BITS = {
    "QLinearConv",
    "ConvInteger",
    "QLinearMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QGemm",
    "MatMulNBits",
}
MATRIX_PRODUCTS = {"MatMul", "FusedMatMul", "Gemm", "FusedGemm", *(EIGHT_BITS - CONVOLUTIONS)}
ATTENTIONS = {"Attention", "MultiHeadAttention"}
# Where the right-hand matrix stands among the inputs, where that is not the second place.
RIGHT_INPUT = {"QLinearMatMul": 3, "QLinearConv": 3, "QGemm": 3}
BYTES = {"double": 8, "int64": 8, "uint64": 8, "float": 4, "int32": 4, "uint32": 4, "float16": 2}


@dataclass(frozen=True)
class Product:
    """One node that multiplies matrices, or can be written so: `count` products [m, k] by [k, n].

    A convolution is a product of the unfolded image [pixels, inputs * kernel] with its weights
    [inputs * kernel, channels]; one with a group a channel ("depthwise") has no matrices worth the name.
    `constant` says that the right-hand matrix is a weight. `moved` is the bytes of its inputs and outputs.
    """

    kind: Kind
    precision: Precision
    count: int
    m: int
    k: int
    n: int
    constant: bool
    moved: int

    @property
    def flops(self) -> int:
        """A multiplication and an addition are two."""
        return 2 * self.count * self.m * self.k * self.n


@dataclass(frozen=True)
class GraphCost:
    """What one call of a graph costs.

    Attributes:
        products: all its matrix products and convolutions, in order.
        weight_bytes: its constants, as they are stored.
        boundary_bytes: what goes in and comes out.
        moved_bytes: inputs and outputs of every node that moves data, as if nothing were fused or cached.
        nodes: how many nodes it has.
    """

    products: tuple[Product, ...]
    weight_bytes: int
    boundary_bytes: int
    moved_bytes: int
    nodes: int

    @property
    def flops(self) -> int:
        """Of the products; what lies between them is counted in bytes only."""
        return sum(product.flops for product in self.products)

    @property
    def least_bytes(self) -> int:
        """Bytes that must be moved however the graph is run: constants, inputs, outputs."""
        return self.weight_bytes + self.boundary_bytes

    def to_json(self) -> dict[str, int]:
        return {
            "flops": self.flops,
            "weight_bytes": self.weight_bytes,
            "boundary_bytes": self.boundary_bytes,
            "moved_bytes": self.moved_bytes,
            "nodes": self.nodes,
        }


def count_bundle(bundle: Bundle, images: int = 1) -> dict[str, GraphCost]:
    """Costs of `images` scores in one call of `vision` and one of `decoder`, and of the anchors' `prefix`.

    Raises BundleError if the bundle has no anchors.
    """
    if bundle.anchors is None:
        raise BundleError(f"{bundle.path} has no anchors yet; build them with 'c2s anchors build'.")
    sizes = {"images": images, "anchors": len(bundle.anchors.names)}
    return {name: count_graph(bundle.graph(name), sizes) for name in ("vision", "decoder", "prefix")}


def count_graph(path: Path, sizes: Mapping[str, int]) -> GraphCost:
    """Counts one graph whose free dimensions have the given sizes.

    The shapes inside are those of a real run, of zeros, because symbolic inference does not know ONNX
    Runtime's own operations.
    """
    model = onnx.load(path)
    graph = model.graph
    for place, node in enumerate(graph.node):
        node.name = f"node{place}"
    values = {tensor.name: (tuple(tensor.dims), stored_bytes(tensor)) for tensor in graph.initializer}
    constants = set(values)
    given = {item.name: zeros(item, sizes) for item in graph.input if item.name not in constants}
    values |= {name: (array.shape, array.nbytes) for name, array in given.items()}
    outputs = run_traced(model, given)
    for node in graph.node:
        values |= dict(zip((name for name in node.output if name), outputs.get(node.name, []), strict=False))
    producers = {name: node for node in graph.node for name in node.output}
    shapes = {name: shape for name, (shape, _) in values.items()}
    products, moved = [], 0
    for node in graph.node:
        bytes_ = sum(values[name][1] for name in (*node.input, *node.output) if name in values)
        if node.op_type not in VIEWS:
            moved += bytes_
        products += products_of(node, shapes, constants, producers, bytes_)
    return GraphCost(
        tuple(products),
        sum(values[name][1] for name in constants),
        sum(values[item.name][1] for item in (*graph.input, *graph.output) if item.name not in constants),
        moved,
        len(graph.node),
    )


def stored_bytes(tensor: onnx.TensorProto) -> int:
    return int(math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def zeros(item: onnx.ValueInfoProto, sizes: Mapping[str, int]) -> np.ndarray[Any, Any]:
    """An input of zeros. Raises KeyError for a free dimension whose size is not given."""
    tensor = item.type.tensor_type
    shape = [sizes[dim.dim_param] if dim.dim_param else dim.dim_value for dim in tensor.shape.dim]
    return np.zeros(shape, helper.tensor_dtype_to_np_dtype(tensor.elem_type))


def run_traced(
    model: onnx.ModelProto, given: Mapping[str, np.ndarray[Any, Any]]
) -> dict[str, list[tuple[Shape, int]]]:
    """Runs a model once as it is written, nothing fused; shape and bytes of every node's outputs, by name."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="c2s-cost-") as scratch:
        options.profile_file_prefix = str(Path(scratch, "trace"))
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        session.run(None, dict(given))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    traced: dict[str, list[tuple[Shape, int]]] = {}
    for event in events:
        shapes = event.get("args", {}).get("output_type_shape")
        if event.get("cat") == "Node" and shapes is not None:
            typed = [next(iter(one.items())) for one in shapes]
            traced[event["name"].removesuffix("_kernel_time")] = [
                (tuple(shape), math.prod(shape) * BYTES.get(kind, 1)) for kind, shape in typed
            ]
    return traced


def products_of(
    node: onnx.NodeProto,
    shapes: Mapping[str, Shape],
    constants: set[str],
    producers: Mapping[str, onnx.NodeProto],
    moved: int,
) -> list[Product]:
    """The matrix products of one node: none, one, or the two of an attention."""
    settings = {attribute.name: value_of(attribute) for attribute in node.attribute}
    right = node.input[RIGHT_INPUT.get(node.op_type, 1)] if len(node.input) > 1 else ""
    # A graph in the QDQ form computes in floats between pairs that a runtime fuses to integer kernels.
    from_eight_bits = [producers[name].op_type for name in node.input[:2] if name in producers]
    fused = from_eight_bits == ["DequantizeLinear"] * 2
    precision: Precision = "int8" if node.op_type in EIGHT_BITS or fused else "fp32"
    constant = right in constants or (right in producers and producers[right].input[0] in constants)
    if node.op_type in CONVOLUTIONS:
        out, (channels, inputs, *kernel) = shapes[node.output[0]], shapes[right]
        groups = settings.get("group", 1)
        kind: Kind = "depthwise" if inputs == 1 and groups > 1 else "matrix"
        pixels, k = math.prod(out[2:]), inputs * math.prod(kernel)
        return [Product(kind, precision, out[0] * groups, pixels, k, channels // groups, constant, moved)]
    if node.op_type in MATRIX_PRODUCTS:
        out = shapes[node.output[0]]
        left = shapes[node.input[0]]
        k = left[-2] if settings.get("transA") else left[-1]
        if constant or len(shapes[right]) < 3:  # one matrix for all rows
            return [Product("matrix", precision, 1, math.prod(out[:-1]), k, out[-1], constant, moved)]
        return [Product("matrix", precision, math.prod(out[:-2]), *(out[-2], k, out[-1]), constant, moved)]
    if node.op_type in ATTENTIONS and len(shapes[node.input[0]]) == 3:
        (batch, queries, width), keys = shapes[node.input[0]], shapes[node.input[1]][1]
        heads = settings.get("num_heads") or settings["q_num_heads"]
        shape = (batch * heads, queries, width // heads, keys)
        both = [Product("matrix", precision, *shape, False, moved)]
        return [*both, Product("matrix", precision, shape[0], queries, keys, shape[2], False, 0)]
    return []


def value_of(attribute: AttributeProto) -> Any:
    return helper.get_attribute_value(attribute)


def main(
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder; the embedded one by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the record.")] = RESULTS,
) -> None:
    """Counts one score's work by graph and writes cost.json."""
    opened = open_bundle(bundle)
    counts = {name: cost.to_json() for name, cost in count_bundle(opened).items()}
    print(
        write_record("cost", {"bundle": opened.identity, "graphs": counts}, out).read_text(encoding="utf-8")
    )


if __name__ == "__main__":
    typer.run(main)
