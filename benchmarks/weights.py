"""A nano comparator read back from a bundle's graphs, for measurements that need it in torch.

The graphs keep names for what they use as it is (convolutions' biases, norms, prompt rows); what the exporter
transposed or the quantiser packed is known by its place: products run in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any, get_args

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compare2score.backends import open_backend
from compare2score.bundle import GRAPHS, Bundle
from compare2score.comparator.decoder import Comparison, DecoderConfig
from compare2score.comparator.efficientnet_lite import Stage
from compare2score.comparator.nano import NanoComparator, NanoConfig, check_fit
from compare2score.errors import BundleError

Array = NDArray[np.generic]

LAYER_PRODUCTS = ("key", "value", "query", "output", "gate", "up", "down")
"""A decoder layer's products, in the order in which they run."""


def read_comparator(bundle: Bundle) -> NanoComparator:
    """Rebuilds the comparator that a nano bundle was exported from, eight-bit weights turned to floats.

    Of the config, what runs is rebuilt; token ids are placeholders. Whether comparison is "late" or "causal"
    shows in no weight: of the two, the one that answers as the graphs do.

    Raises BundleError if the graphs are not a nano comparator's, or are arranged in another way.
    """
    graphs = {name: Constants(onnx.load(bundle.graph(name))) for name in GRAPHS}
    try:
        config, weights = read_config(bundle, graphs), read_weights(graphs)
        model = NanoComparator(config)
        known = model.state_dict()
        tensors = {
            name: torch.from_numpy(np.array(values, np.float32))
            for name, values in weights.items()
            if name in known  # packed and transposed forms of a parameter have names of their own
        }
        check_fit(model, tensors)
        model.load_state_dict(tensors)
    except (KeyError, IndexError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise BundleError(
            f"The weights of {bundle.path} cannot be read from its graphs ({reason}); give its checkpoint."
        ) from error
    return answering_alike(model.eval(), bundle)


class Constants:
    """A graph's constants, by name and by the products and convolutions that use them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {name: node for node in model.graph.node for name in node.output}
        self.nodes = list(model.graph.node)

    def value(self, name: str) -> Array | None:
        """A constant's values, of floats where it was quantised; None for what is computed at run time."""
        if name in self.stored:
            return np.asarray(numpy_helper.to_array(self.stored[name]))
        node = self.producers.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            return None
        parts = [self.value(given) for given in node.input]
        if any(part is None for part in parts):
            return None
        values, scale, *zero = (np.asarray(part, np.float64) for part in parts)
        if scale.ndim:
            axis = settings(node).get("axis", 1)
            by_channel = [1] * values.ndim
            by_channel[axis] = -1
            scale, zero = scale.reshape(by_channel), [each.reshape(by_channel) for each in zero]
        return np.asarray((values - sum(zero)) * scale)

    def named(self) -> dict[str, Array]:
        """All that is stored; parameters and buffers under their own names."""
        # The embedded bundle's begin with "comparator."; what is one graph's own, with the graph's name.
        return {
            name.rpartition("/")[2].removeprefix("comparator."): numpy_helper.to_array(tensor)
            for name, tensor in self.stored.items()
        }

    def convolutions(self) -> list[tuple[Array, Array, int]]:
        """Weight, bias and stride of every convolution, in order."""
        found = []
        for node in self.nodes:
            if node.op_type in ("Conv", "FusedConv"):
                weight, bias = (self.value(name) for name in node.input[1:3])
                if weight is None or bias is None:
                    raise ValueError("a convolution without constant weights")
                found.append((weight, bias, settings(node).get("strides", [1])[0]))
        return found

    def matrices(self) -> list[Array]:
        """The constant matrix [outputs, inputs] of every product that has one, each once, in order.

        The exporter stores some of those that serve two blocks of the prompt twice: equal ones are one.
        """
        found: dict[bytes, Array] = {}
        for node in self.nodes:
            matrix: Array | None = None
            if node.op_type == "MatMulNBits":
                matrix = self.unpacked(node)
            elif node.op_type in ("MatMul", "Gemm"):
                matrix = self.value(node.input[1])
                if matrix is not None and not settings(node).get("transB"):
                    matrix = matrix.T
            if matrix is not None:
                found.setdefault(sha256(np.ascontiguousarray(matrix).data).digest(), matrix)
        return list(found.values())

    def unpacked(self, node: onnx.NodeProto) -> Array:
        """The matrix [N, K] that a MatMulNBits of eight bits stands for: (byte - zero) * scale, by block."""
        given = settings(node)
        packed, scales, *zeros = (self.value(name) for name in node.input[1:4])
        if given["bits"] != 8 or packed is None or scales is None:
            raise ValueError(f"a product of {given['bits']} bits")
        blocks = packed.reshape(given["N"], -1, given["block_size"]).astype(np.float32)
        by_block = np.asarray(scales, np.float32).reshape(given["N"], -1, 1)
        zero: NDArray[np.float32] = np.full((1, 1, 1), 128, np.float32)
        if zeros and zeros[0] is not None:
            zero = np.asarray(zeros[0], np.float32).reshape(by_block.shape)
        return np.asarray(((blocks - zero) * by_block).reshape(given["N"], -1)[:, : given["K"]])


def settings(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def read_config(bundle: Bundle, graphs: Mapping[str, Constants]) -> NanoConfig:
    """The config as far as shapes tell it."""
    manifest, decoder = bundle.manifest, graphs["decoder"].named()
    _, layers, kv_heads, _, head_width = prefix_shape(bundle)
    first = graphs["decoder"].matrices()[: len(LAYER_PRODUCTS)]
    products = dict(zip(LAYER_PRODUCTS, first, strict=True))
    texts = (graphs["prefix"].named()["decoder.first_text"], decoder["decoder.second_text"])
    lengths = [len(text) for text in (*texts, decoder["decoder.closing_text"])]
    tokens = len(graphs["vision"].named()["abstractor.position"])
    return NanoConfig(
        decoder=DecoderConfig(
            layers=layers,
            width=texts[0].shape[1],
            heads=len(products["query"]) // head_width,
            kv_heads=kv_heads,
            head_width=head_width,
            hidden=len(products["gate"]),
        ),
        prompt_ids=(tuple(range(lengths[0])), tuple(range(lengths[1])), tuple(range(lengths[2]))),
        level_ids=tuple(range(len(manifest.levels))),
        image=manifest.image,
        stem_channels=len(graphs["vision"].convolutions()[0][0]),
        stages=read_stages(graphs["vision"].convolutions()),
        grid=math.isqrt(tokens - 1),
        experts=count_experts(graphs["vision"].named()),
        question=manifest.prompt,
        levels=manifest.levels,
        level_weights=manifest.level_weights,
        temperature=manifest.temperature,
    )


def count_experts(named: Mapping[str, Array]) -> int:
    """How many abstractors there are beside the common one."""
    return sum(name.startswith("mixture.experts.") and name.endswith(".position") for name in named)


def prefix_shape(bundle: Bundle) -> tuple[int, ...]:
    """Shape of a prefix's keys: [A, layers, kv_heads, length, head_width]."""
    if bundle.anchors is None:
        raise ValueError("anchors, whose prefix tells the decoder's sizes")
    return bundle.anchors.prefix.keys.shape


def read_blocks(
    convolutions: Sequence[tuple[Array, Array, int]],
) -> list[dict[str, tuple[Array, Array, int]]]:
    """The convolutions after the stem by block: expand (where it is not 1), depthwise, project."""
    blocks, block = [], {}
    for convolution in convolutions[1:]:
        weight = convolution[0]
        if weight.shape[1] == 1 and weight.shape[2] > 1:
            block["depthwise"] = convolution
        elif "depthwise" in block:
            blocks.append(block | {"project": convolution})
            block = {}
        else:
            block["expand"] = convolution
    return blocks


def read_stages(convolutions: Sequence[tuple[Array, Array, int]]) -> tuple[Stage, ...]:
    """Blocks to stages: one that changes the width or the size of the map begins a new stage."""
    stages: list[Stage] = []
    inputs = len(convolutions[0][0])
    for block in read_blocks(convolutions):
        (hidden, _, kernel, _), stride = block["depthwise"][0].shape, block["depthwise"][2]
        channels = len(block["project"][0])
        if stages and stride == 1 and channels == inputs:
            stages[-1] = replace(stages[-1], repeats=stages[-1].repeats + 1)
        else:
            stages.append(Stage(1, kernel, stride, hidden // inputs, channels))
        inputs = channels
    return tuple(stages)


def read_weights(graphs: Mapping[str, Constants]) -> dict[str, Array]:
    """A state dict of all three graphs."""
    named = [graphs[name].named() for name in GRAPHS]
    weights = {name: values for part in named for name, values in part.items()}
    convolutions = graphs["vision"].convolutions()
    places = {"encoder.stem": convolutions[0]}
    stage, number, inputs = -1, 0, len(convolutions[0][0])
    for block in read_blocks(convolutions):
        channels, stride = len(block["project"][0]), block["depthwise"][2]
        follows = stage >= 0 and stride == 1 and channels == inputs
        stage, number, inputs = (stage, number + 1, channels) if follows else (stage + 1, 0, channels)
        places |= {f"encoder.stages.{stage}.{number}.{part}": found for part, found in block.items()}
    for place, (weight, bias, _) in places.items():
        weights |= {f"{place}.weight": weight, f"{place}.bias": bias}
    experts = [f"mixture.experts.{i}" for i in range(count_experts(weights))]
    readers = ["abstractor", *experts]
    gate = [f"mixture.gate.read.{layer}" for layer in (1, 4) if experts]
    names = [*(f"{reader}.project" for reader in readers), *gate, *(f"{reader}.mix" for reader in readers)]
    weights |= by_place(names, graphs["vision"].matrices())
    layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("decoder.layers."))
    names = [f"decoder.layers.{i}.{product}" for i in range(layers) for product in LAYER_PRODUCTS]
    return weights | by_place([*names, "decoder.level_head"], graphs["decoder"].matrices())


def by_place(names: Sequence[str], matrices: Sequence[Array]) -> dict[str, Array]:
    """Names matrices in order. Raises ValueError if there are more or fewer than names."""
    if len(names) != len(matrices):
        raise ValueError(f"{len(matrices)} matrices where {len(names)} are known")
    return {f"{name}.weight": matrix for name, matrix in zip(names, matrices, strict=True)}


@torch.inference_mode()
def answering_alike(model: NanoComparator, bundle: Bundle, seed: int = 0) -> NanoComparator:
    """The model, in the form of comparison whose answers to two noise images are nearest the graphs'."""
    size = model.config.image.size
    backend = open_backend(bundle)
    tokens = backend.encode(np.random.default_rng(seed).normal(size=(2, 3, size, size)).astype(np.float32))
    prefix = backend.prefix(tokens)
    expected = backend.compare(tokens, prefix)
    differences: dict[Comparison, float] = {}
    for form in get_args(Comparison):
        model.decoder.config = replace(model.config.decoder, comparison=form)
        answers = model.compare(*(torch.from_numpy(each) for each in (tokens, *prefix)))
        differences[form] = float(np.abs(answers.numpy() - expected).mean())
    nearest = min(differences, key=lambda form: differences[form])
    model.decoder.config = replace(model.config.decoder, comparison=nearest)
    model.config = replace(model.config, decoder=model.decoder.config)
    return model
