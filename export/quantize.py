"""Eight-bit graphs for the CPU.

Weights are stored as int8 in blocks with a scale each; activations are quantised to int8 when the product
runs, in blocks of each row (ONNX Runtime's MatMulNBits at accuracy level 4). No scale spans two rows, so
one image never changes another's result, and the large values that language models have in a few channels
(per-tensor dynamic quantisation drowns the rest in them) stay in their own block.
"""
