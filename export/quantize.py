"""Eight-bit matrix products for the decoder, on the CPU.

Weights are stored as int8 in blocks of 64 with a scale each; activations are quantised to int8 when the
product runs, in blocks of each row (ONNX Runtime's MatMulNBits at accuracy level 4). No scale spans two
rows, so one image never changes another's result; and the few huge activations of language models stay in
their own block, where per-tensor dynamic quantisation drowns everything else in their scale.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

BLOCK = 64
"""Weights that share a scale."""
INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy level at which activations become int8, too."""


def quantize_graphs(source: Path, target: Path) -> None:
    """Copies the graphs in `source` to `target`, with the decoder's products (prefix, decoder) in eight bits.

    The vision encoder stays as it is: its convolutions have no block-wise kernels, and their activations
    scaled by tensor would make one image's result depend on its neighbours in the batch.
    """
    target.mkdir(parents=True)
    shutil.copyfile(source / "vision.onnx", target / "vision.onnx")
    for name in ("prefix.onnx", "decoder.onnx"):
        config = DefaultWeightOnlyQuantConfig(
            block_size=BLOCK, is_symmetric=True, accuracy_level=INT8_ACTIVATIONS, bits=8
        )
        quantizer = MatMulNBitsQuantizer(onnx.load(source / name), algo_config=config)
        quantizer.process()
        onnx.save(quantizer.model.model, target / name)
