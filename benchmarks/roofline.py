"""How far from the machine's limit a graph runs.

The limit is measured, not looked up: the best rate at which ONNX Runtime multiplies matrices of the graph's
own shapes in the graph's own precision, alone, and the rate at which it copies memory, on the same threads in
the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compare2score.benchmarks.cost import GraphCost, Precision, Product, count_bundle
from compare2score.benchmarks.latency import GRAPH_STAGES, Row, Subject, timing_values
from compare2score.benchmarks.timing import Limits, measure

SAMPLING = Limits(warmup=2, least=5, most=60, budget=0.15, variation=0.02)
"""For one shape; a graph has some dozens of them."""
WORK = 3e7
"""Floating-point operations of one call: a call of less would time how a session is called."""
MOST_COPIES = 32
BLOCK = 64
OPSETS = (("", 20), ("com.microsoft", 1))
Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Attainable:
    """The least time that a call of a graph can take on this machine.

    Attributes:
        compute: seconds of its products, each at the rate measured for its shape.
        memory: seconds to move its constants, inputs and outputs once.
        peak: best rate of any product measured here, in FLOP/s.
        bandwidth: bytes copied a second.
    """

    compute: float
    memory: float
    peak: float
    bandwidth: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory)


@dataclass
class Machine:
    """Measures rates of this machine on a number of threads (None: ONNX Runtime's choice); each one once."""

    threads: int | None
    sampling: Limits = SAMPLING
    seconds: dict[tuple[Precision, bool, int, int, int, int], float] = field(default_factory=dict)
    copies: dict[int, float] = field(default_factory=dict)

    def attainable(self, cost: GraphCost) -> Attainable:
        """The limit of one graph at the sizes it was counted for."""
        matrices = [product for product in cost.products if product.kind == "matrix"]
        times = [self.product_seconds(product) for product in matrices]
        rates = [product.flops / seconds for product, seconds in zip(matrices, times, strict=True)]
        peak = max(rates, default=float("nan"))
        compute = sum(times)
        for product in cost.products:
            # With so few operations a byte, moving the bytes can take longer than the operations.
            if product.kind == "depthwise":
                compute += max(product.flops / peak, product.moved / self.bandwidth(product.moved))
        bandwidth = self.bandwidth(cost.least_bytes)
        return Attainable(compute, cost.least_bytes / bandwidth, peak, bandwidth)

    def product_seconds(self, product: Product) -> float:
        """The least time of a product's shape: that of the fastest kernel in its precision."""
        key = (product.precision, product.constant, product.count, product.m, product.k, product.n)
        if key not in self.seconds:
            kernels = EIGHT_BIT_KERNELS if product.precision == "int8" else FLOAT_KERNELS
            copies = int(np.clip(WORK / product.flops, 1, MOST_COPIES))
            self.seconds[key] = min(self.best(*kernel(*key[1:]), copies) for kernel in kernels) / copies
        return self.seconds[key]

    def bandwidth(self, size: int) -> float:
        """Bytes a second, read and written together, of an elementwise copy that moves about `size` bytes."""
        rounded = 1 << max(12, min(28, round(np.log2(max(size, 1)))))
        if rounded not in self.copies:
            values = np.ones(rounded // 8, np.float32)  # half is read, half is written
            node = helper.make_node("Neg", ["x"], ["y"])
            copies = int(np.clip((1 << 24) / rounded, 1, MOST_COPIES))
            self.copies[rounded] = rounded * copies / self.best(node, {"x": values}, {}, copies)
        return self.copies[rounded]

    def best(self, node: onnx.NodeProto, given: Arrays, constants: Arrays, copies: int) -> float:
        """The shortest time of a graph that holds a node `copies` times."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        # Equal nodes would become one.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        session = onnxruntime.InferenceSession(
            repeated(node, given, constants, copies).SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )
        timing = measure(lambda: session.run(["out0"], given), self.sampling)
        return min(timing.seconds)


def measure_roofline(subject: Subject, limits: Limits, machine: Machine | None = None) -> list[Row]:
    """The graphs of one score against the machine's limit on the same threads, one row a graph.

    `share` is attainable over measured: 1 is the limit. `flops` and `bytes` are counted, the least that a
    score needs; `attainable`, `compute` and `memory` are seconds, see `Attainable`; rates are a second's.
    """
    scorer, machine = subject.scorer, machine or Machine(subject.threads)
    costs, size = count_bundle(scorer.bundle), scorer.bundle.manifest.image.size
    pixels = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
    tokens = scorer.backend.encode(pixels)
    calls = {
        "vision": lambda: scorer.backend.encode(pixels),
        "decoder": lambda: scorer.backend.compare(tokens, scorer.anchors.prefix),
    }
    rows = []
    for case in GRAPH_STAGES:
        limit, cost = machine.attainable(costs[case]), costs[case]
        timing = measure(calls[case], limits)
        found = {
            "flops": cost.flops,
            "bytes": cost.least_bytes,
            "attainable": limit.seconds,
            "compute": limit.compute,
            "memory": limit.memory,
            "share": limit.seconds / timing.median,
            "flops_per_second": cost.flops / timing.median,
            "peak_flops_per_second": limit.peak,
            "copied_bytes_per_second": limit.bandwidth,
        }
        rows.append(subject.row("roofline", case, 1, **timing_values(timing, 1), **found))
    return rows


Kernel = Callable[[bool, int, int, int, int], tuple[onnx.NodeProto, Arrays, Arrays]]


def float_matmul(constant: bool, count: int, m: int, k: int, n: int) -> tuple[onnx.NodeProto, Arrays, Arrays]:
    """[count, m, k] by a constant [k, n], or by a given [count, k, n]."""
    generator = np.random.default_rng(0)
    left = generator.normal(size=(count, m, k)).astype(np.float32)
    right = generator.normal(size=(k, n) if constant else (count, k, n)).astype(np.float32)
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    return (node, {"a": left}, {"b": right}) if constant else (node, {"a": left, "b": right}, {})


def transposed_matmul(
    constant: bool, count: int, m: int, k: int, n: int
) -> tuple[onnx.NodeProto, Arrays, Arrays]:
    """As `float_matmul`, the other way round: a constant [n, k] by [count, k, m]."""
    if not constant:
        return float_matmul(constant, count, m, k, n)
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(n, k)).astype(np.float32)
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    return node, {"b": generator.normal(size=(count, k, m)).astype(np.float32)}, {"a": weights}


def integer_matmul(
    constant: bool, count: int, m: int, k: int, n: int
) -> tuple[onnx.NodeProto, Arrays, Arrays]:
    """As `float_matmul`, of uint8 by int8."""
    node, given, constants = float_matmul(constant, count, m, k, n)
    node.op_type = "MatMulInteger"
    given = {name: values.astype(np.uint8 if name == "a" else np.int8) for name, values in given.items()}
    return node, given, {name: values.astype(np.int8) for name, values in constants.items()}


def block_matmul(constant: bool, count: int, m: int, k: int, n: int) -> tuple[onnx.NodeProto, Arrays, Arrays]:
    """Floats rounded to int8 on the way, by int8 weights with a scale a block; for constants alone."""
    if not constant:
        return integer_matmul(constant, count, m, k, n)
    blocks = -(-k // BLOCK)
    generator = np.random.default_rng(0)
    weights: Arrays = {
        "b": generator.integers(0, 255, (n, blocks, BLOCK), dtype=np.uint8),
        "scales": np.full((n, blocks), 0.01, np.float32),
    }
    settings = {"K": k, "N": n, "bits": 8, "block_size": BLOCK, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["a", *weights], ["y"], domain="com.microsoft", **settings)
    return node, {"a": generator.normal(size=(count, m, k)).astype(np.float32)}, weights


FLOAT_KERNELS: tuple[Kernel, ...] = (float_matmul, transposed_matmul)
EIGHT_BIT_KERNELS: tuple[Kernel, ...] = (integer_matmul, block_matmul)


def repeated(node: onnx.NodeProto, given: Arrays, constants: Arrays, copies: int) -> onnx.ModelProto:
    """A model that holds a node `copies` times, with outputs out0, out1, ..."""
    nodes = []
    for number in range(copies):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.output[0], copy.name = f"out{number}", f"copy{number}"
        nodes.append(copy)
    kind = TensorProto.INT32 if node.op_type == "MatMulInteger" else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values.dtype), values.shape)
            for name, values in given.items()
        ],
        [helper.make_tensor_value_info(copy.output[0], kind, None) for copy in nodes],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in OPSETS]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)
