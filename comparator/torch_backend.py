"""Torch backend: a comparator as it was trained, behind the scorer's three calls."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from compare2score.backends import Floats, Prefix
from compare2score.bundle import Bundle, Manifest
from compare2score.comparator.comparator import Comparator


class TorchBackend:
    """Runs a comparator on the GPU where there is one, else on the CPU, in the type of its weights.

    `Scorer(backend.bundle, backend=backend)` scores with it, once the bundle has anchors:
    `anchors.precompute.precompute_anchors(backend.bundle, images, backend)`.
    """

    def __init__(self, comparator: Comparator) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        module = cast(nn.Module, comparator).to(self.device).eval()
        self.dtype = next(module.parameters()).dtype
        self.comparator = cast(Comparator, module)

    @property
    def name(self) -> str:
        return f"torch {torch.__version__}, {self.device.type}"

    @property
    def bundle(self) -> Bundle:
        """What a bundle would say of the comparator: no files, no anchors."""
        spec = self.comparator.spec
        manifest = Manifest(
            model=spec.model,
            precision=str(self.dtype).removeprefix("torch."),
            image=spec.image,
            prompt=spec.question,
            levels=spec.levels,
            level_weights=spec.level_weights,
            temperature=spec.temperature,
            images_per_call=None,
            notes={},
        )
        return Bundle(Path(spec.model), manifest, None, identity=f"{spec.model} in torch")

    @torch.inference_mode()
    def encode(self, pixels: Floats) -> Floats:
        return array(self.comparator.encode(self.tensor(pixels)))

    @torch.inference_mode()
    def prefix(self, visual_tokens: Floats) -> Prefix:
        keys, values = self.comparator.prefix(self.tensor(visual_tokens))
        return Prefix(array(keys), array(values))

    @torch.inference_mode()
    def compare(self, visual_tokens: Floats, prefix: Prefix) -> Floats:
        given = (visual_tokens, prefix.keys, prefix.values)
        return array(self.comparator.compare(*(self.tensor(part) for part in given)))

    def tensor(self, values: Floats) -> Tensor:
        """An array on the comparator's device, in its type."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device, self.dtype)


def array(tensor: Tensor) -> Floats:
    """A tensor as float32 in the CPU's memory."""
    return tensor.float().cpu().numpy()
