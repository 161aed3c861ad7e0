"""EfficientNet-Lite, batch norm folded, as the vision encoder of the nano comparator.

Architecture: Tan and Le, arXiv 1905.11946, and its "Lite" variant (ReLU6, no squeeze-and-excitation).
Batch norm is folded into the convolutions on loading: the networks are fine-tuned on small batches of
cached activations, where running statistics would only drift, and the exported graph needs it folded anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH_NORM_EPSILON = 1e-3


@dataclass(frozen=True)
class Stage:
    """`repeats` inverted-residual blocks of one width; the first one has the stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


LITE2_STEM_CHANNELS = 32
LITE2_STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(3, 3, 2, 6, 24),
    Stage(3, 5, 2, 6, 48),
    Stage(4, 3, 2, 6, 88),
    Stage(4, 5, 1, 6, 120),
    Stage(5, 5, 2, 6, 208),
    Stage(1, 3, 1, 6, 352),
)


class _FrozenDepthwise(torch.autograd.Function):
    """Unpadded or evenly padded depthwise convolution whose weight gets no gradient.

    On a CPU torch's own depthwise backward takes several times its forward. The input's gradient is
    itself a depthwise convolution, of the (for stride 2: zero-interleaved) gradient with the flipped
    kernel, which runs on the fast forward kernels.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, None, None]:
        (gradient,) = gradients
        (weight,) = ctx.saved_tensors
        of_bias = gradient.sum(dim=(0, 2, 3))
        kernel = weight.shape[-1]
        n, c, h, w = gradient.shape
        if ctx.stride == 2:
            # The padded input is always of even size + kernel - 2 here, so the output covers it exactly.
            spread = gradient.new_zeros(n, c, 2 * h - 1, 2 * w - 1).to(memory_format=torch.channels_last)
            spread[:, :, ::2, ::2] = gradient
            gradient = spread
        # Under autocast the output, hence its gradient, may be of lower precision than the weight.
        flipped = weight.flip(-1, -2).contiguous().to(gradient.dtype)
        of_input = F.conv2d(gradient, flipped, None, 1, kernel - 1 - ctx.padding, groups=c)
        return of_input, None, of_bias, None, None


class Depthwise(nn.Module):
    """Depthwise convolution with TensorFlow's SAME padding (even inputs), frozen weights, trained bias."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 1, kernel, kernel), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.stride = stride
        before = (kernel - stride) // 2
        self.padding = (before, kernel - stride - before)

    def forward(self, x: Tensor) -> Tensor:
        before, after = self.padding
        padding = before
        if before != after:
            x, padding = F.pad(x, self.padding + self.padding), 0
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        if torch.is_grad_enabled() and x.requires_grad:
            y: Tensor = _FrozenDepthwise.apply(x, weight, bias, self.stride, padding)  # type: ignore[no-untyped-call]
            return y
        return F.conv2d(x, weight, bias, self.stride, padding, groups=x.shape[1])


class Pointwise(nn.Conv2d):
    """1x1 convolution; in training a matrix product over channels-last pixels, whose backward is fast."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        return super().forward(x)


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; added to its input where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = Pointwise(inputs, hidden) if expansion != 1 else None
        self.depthwise = Depthwise(hidden, kernel, stride)
        self.project = Pointwise(hidden, outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    """Stem and stages; every stage's output is a feature map for the visual abstractor.

    The input side must be a multiple of the total stride (32 for the Lite2 stages).
    """

    def __init__(self, stem_channels: int, stages: Sequence[Stage]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem_channels, 3, stride=2)
        self.stages = nn.ModuleList()
        inputs = stem_channels
        for stage in stages:
            blocks = nn.Sequential()
            for i in range(stage.repeats):
                stride = stage.stride if i == 0 else 1
                blocks.append(InvertedResidual(inputs, stage.channels, stage.kernel, stride, stage.expansion))
                inputs = stage.channels
            self.stages.append(blocks)

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Runs all stages on [N, 3, S, S]; returns a feature map [N, C, S', S'] of each."""
        return self.continue_from(self.run_stem(pixel_values), 0)

    def run_stem(self, pixel_values: Tensor) -> Tensor:
        """Runs the stem: [N, 3, S, S] -> [N, C, S/2, S/2]."""
        x = F.pad(pixel_values, (0, 1, 0, 1)).contiguous(memory_format=torch.channels_last)
        return F.relu6(self.stem(x))

    def continue_from(self, x: Tensor, stage: int) -> list[Tensor]:
        """Runs the stages from index `stage` on, on the output of the one before; returns their maps."""
        maps = []
        for blocks in self.stages[stage:]:
            x = blocks(x)
            maps.append(x)
        return maps


def load_imagenet_weights(encoder: EfficientNetLite, state: Mapping[str, Tensor]) -> None:
    """Copies a checkpoint of the package `efficientnet-lite-pytorch`, folding its batch norms.

    Raises KeyError or RuntimeError if the checkpoint is of another architecture.
    """

    def folded(conv: str, norm: str) -> tuple[Tensor, Tensor]:
        scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + BATCH_NORM_EPSILON).sqrt()
        weight = state[f"{conv}.weight"] * scale[:, None, None, None]
        return weight, state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale

    def copy(module: nn.Module, conv: str, norm: str) -> None:
        weight, bias = folded(conv, norm)
        module.load_state_dict({"weight": weight, "bias": bias})

    copy(encoder.stem, "_conv_stem", "_bn0")
    blocks = [block for block in encoder.modules() if isinstance(block, InvertedResidual)]
    for i, block in enumerate(blocks):
        if block.expand is not None:
            copy(block.expand, f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0")
        copy(block.depthwise, f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1")
        copy(block.project, f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2")
