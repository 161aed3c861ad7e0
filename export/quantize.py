"""Eight bits for the CPU: matrix products of the decoder, and convolutions of the vision encoder.

The decoder's weights are stored as int8 in blocks of 64 with a scale each; activations are quantised to int8
when the product runs, in blocks of each row (ONNX Runtime's MatMulNBits at accuracy level 4). No scale spans
two rows, so one image never changes another's result; and the few huge activations of language models stay
in their own block, where per-tensor dynamic quantisation drowns everything else in their scale.

A vision encoder made of matrix products is treated alike. One made of convolutions is quantised statically:
weights as int8 with a scale each output channel, activations as uint8 over the range that calibration images
show. The scales are constants, so that here, too, no image changes another's result. The stem and the first
two stages stay in float32: in eight bits they alone would change scores more than all later stages do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from compare2score.backends import Floats
from compare2score.export.blocks import Quantiser, block_of, matrix_products
from compare2score.export.lazy import content, drop_unused, lazy_tensor, register, sizes
from compare2score.export.sharing import write_graphs

BLOCK = 64
"""Weights that share a scale; fewer where 64 does not divide them."""
TOP = 127
INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy level at which activations become int8, too."""


VISION_OPERATORS = ("Conv", "Add", "Clip")
"""What of the encoder's trunk is computed in eight bits."""
FIRST_VISION_STAGE = 2
"""The first of the encoder's stages in eight bits."""


def quantize_graphs(
    graphs: Mapping[str, ir.Model], source: Path, target: Path, calibration: Iterable[Floats]
) -> None:
    """Writes float32 graphs in eight bits.

    Args:
        graphs: the three; those of the decoder are changed.
        source: the folder where they are stored in float32.
        target: where to write.
        calibration: preprocessed images [N, 3, S, S] like those to be scored, at least one; of no matter for
            an encoder that is made of matrix products.
    """
    for name, model in graphs.items():
        if name != "vision" or not is_convolutional(model.graph):
            to_eight_bits(model)
    write_graphs(graphs, target)
    if is_convolutional(graphs["vision"].graph):
        (target / "vision.onnx").unlink()
        quantize_vision(source / "vision.onnx", target / "vision.onnx", calibration)


def is_convolutional(graph: ir.Graph) -> bool:
    """Whether an encoder is made of convolutions, as opposed to matrix products."""
    kinds = [node.op_type for node in graph]
    return kinds.count("Conv") > kinds.count("MatMul")


def to_eight_bits(model: ir.Model) -> None:
    """Replaces a graph's products by stored matrices by ONNX Runtime's MatMulNBits, in place."""
    graph = model.graph
    model.opset_imports.setdefault("com.microsoft", 1)
    for node, weight in matrix_products(graph):
        source = content(weight)
        depth, width = sizes(source)
        block = block_of(depth, (BLOCK, 32, 16))
        if block is None:
            continue
        blocks, quantiser = depth // block, Quantiser(source, block, TOP)
        parts = [
            register(graph, tensor)
            for tensor in (
                lazy_tensor(
                    f"{weight.name}_Q8",
                    ir.DataType.UINT8,
                    [width, blocks, block],
                    partial(stored_bytes, quantiser),
                ),
                lazy_tensor(
                    f"{weight.name}_scales",
                    ir.DataType.FLOAT,
                    [width * blocks],
                    partial(stored_scales, quantiser),
                ),
            )
        ]
        settings = {
            "K": depth,
            "N": width,
            "bits": 8,
            "block_size": block,
            "accuracy_level": INT8_ACTIVATIONS,
        }
        product = ir.node(
            "MatMulNBits", [node.inputs[0], *parts], settings, domain="com.microsoft", name=f"{node.name}_Q8"
        )
        # It takes over the name, too: the product may be one of the graph's outputs.
        name, node.outputs[0].name = node.outputs[0].name, f"{node.outputs[0].name}_exact"
        product.outputs[0].type, product.outputs[0].name = node.outputs[0].type, name
        graph.insert_before(node, product)
        node.outputs[0].replace_all_uses_with(product.outputs[0], replace_graph_outputs=True)
        graph.remove(node, safe=True)
    drop_unused(graph)


def stored_bytes(weight: Quantiser) -> NDArray[np.uint8]:
    """A weight [K, N] as MatMulNBits stores it: [N, K / block, block], 128 for zero."""
    integers = weight.integers()
    return (integers.T.astype(np.int16) + 128).astype(np.uint8).reshape(integers.shape[1], -1, weight.block)


def stored_scales(weight: Quantiser) -> NDArray[np.float32]:
    """Its scales, [N * K / block]."""
    return weight.scales().T.reshape(-1)


class Calibration(CalibrationDataReader):  # type: ignore[misc]
    """Feeds images to the calibrator, one batch at a time."""

    def __init__(self, batches: Iterable[Floats]) -> None:
        self.batches: Iterator[Floats] = iter(batches)

    def get_next(self) -> dict[str, Floats] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"pixels": batch}


def quantize_vision(source: Path, target: Path, calibration: Iterable[Floats]) -> None:
    """Writes the vision graph `source` to `target` with its convolutions in eight bits (QDQ)."""
    with tempfile.TemporaryDirectory(prefix="c2s-quantize-") as scratch:
        prepared = Path(scratch) / "vision.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            Calibration(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(VISION_OPERATORS),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=float_nodes(onnx.load(prepared).graph),
        )


def float_nodes(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that stay in float32: early stages, statistics of the features, abstractor."""
    first_weight = f"encoder.stages.{FIRST_VISION_STAGE}."
    convolutions = [place for place, node in enumerate(graph.node) if node.op_type == "Conv"]
    begin = next(p for p in convolutions if any(first_weight in name for name in graph.node[p].input))
    convolved = {graph.node[place].output[0] for place in convolutions}
    return [
        node.name
        for place, node in enumerate(graph.node)
        # A clip after anything but a convolution bounds a statistic.
        if not begin <= place <= convolutions[-1]
        or (node.op_type == "Clip" and node.input[0] not in convolved)
    ]
