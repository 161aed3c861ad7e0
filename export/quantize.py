"""Eight bits for the CPU: matrix products of the decoder, and convolutions of the vision encoder.

The decoder's weights are stored as int8 in blocks of 64 with a scale each; activations are quantised to int8
when the product runs, in blocks of each row (ONNX Runtime's MatMulNBits at accuracy level 4). No scale spans
two rows, so one image never changes another's result; and the few huge activations of language models stay
in their own block, where per-tensor dynamic quantisation drowns everything else in their scale.

The vision encoder is quantised statically: weights as int8 with a scale each output channel, activations as
uint8 over the range that calibration images show. The scales are constants, so that here, too, no image
changes another's result. The stem and the first two stages stay in float32: in eight bits they alone would
change scores more than all later stages do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

from compare2score.backends import Floats

BLOCK = 64
"""Weights that share a scale."""
INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy level at which activations become int8, too."""


VISION_OPERATORS = ("Conv", "Add", "Clip")
"""What of the encoder's trunk is computed in eight bits."""
FIRST_VISION_STAGE = 2
"""The first of the encoder's stages in eight bits."""


def quantize_graphs(source: Path, target: Path, calibration: Iterable[Floats]) -> None:
    """Writes the graphs in `source` to `target` in eight bits.

    calibration: preprocessed images [N, 3, S, S] like those to be scored, at least one.
    """
    target.mkdir(parents=True)
    quantize_vision(source / "vision.onnx", target / "vision.onnx", calibration)
    for name in ("prefix.onnx", "decoder.onnx"):
        config = DefaultWeightOnlyQuantConfig(
            block_size=BLOCK, is_symmetric=True, accuracy_level=INT8_ACTIVATIONS, bits=8
        )
        quantizer = MatMulNBitsQuantizer(onnx.load(source / name), algo_config=config)
        quantizer.process()
        onnx.save(quantizer.model.model, target / name)


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
