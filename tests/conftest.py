"""What tests share: a comparator small enough for a test, and pictures made from a seed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from compare2score.comparator.nano import NanoComparator

if "PYTEST_XDIST_WORKER" in os.environ:
    # One process a core: more threads only wait for each other. Before torch is imported, and for children.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

GOLDEN_OWL = Path(__file__).parent / "golden" / "mplug_owl2_tiny"


@pytest.fixture(scope="session")
def tiny_comparator() -> Callable[..., NanoComparator]:
    """Factory of a nano comparator for 64 px images with random weights, different in every entry."""
    # Imported here: tests of the runtime run where there is no torch.
    import torch

    from compare2score.comparator.decoder import DecoderConfig
    from compare2score.comparator.efficientnet_lite import Stage
    from compare2score.comparator.nano import NanoComparator, NanoConfig, default_image_spec

    def make(comparison: str = "late", seed: int = 0, experts: int = 0) -> NanoComparator:
        torch.set_num_threads(1)
        config = NanoConfig(
            decoder=DecoderConfig(
                layers=2, width=32, heads=4, kv_heads=2, head_width=8, hidden=64, comparison=comparison
            ),
            prompt_ids=((1, 7, 3), (4,), (5, 9, 2, 6, 8)),
            level_ids=(20, 21, 22, 23, 24),
            image=default_image_spec(64),
            stem_channels=8,
            stages=(Stage(1, 3, 1, 1, 8), Stage(1, 3, 2, 2, 8), Stage(1, 5, 2, 2, 16), Stage(1, 3, 2, 2, 16)),
            experts=experts,
        )
        generator = torch.Generator().manual_seed(seed)
        model = NanoComparator(config)
        with torch.no_grad():
            for name, value in model.state_dict().items():
                noise = torch.randn(value.shape, generator=generator)
                if "norm" in name or name.endswith("scale"):
                    value.copy_(1 + 0.1 * noise)
                elif value.dim() < 2 or name.endswith(("text", "position", "mean")):
                    value.copy_(0.3 * noise)
                else:
                    value.copy_(noise / value[0].numel() ** 0.5)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def owl_checkpoint(tmp_path_factory) -> Path:
    """The golden mPLUG-Owl2 checkpoint with a small tokenizer of the prompt's words; copy it to change it."""
    # Imported here: tests of the runtime run without what it needs.
    from compare2score.benchmarks.full_size import write_tokenizer

    folder = tmp_path_factory.mktemp("owl") / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN_OWL / name, folder / name)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def texture() -> Callable[..., NDArray[np.uint8]]:
    """Factory of pictures [size, size, 3] with detail at every scale, like a photograph's."""

    def make(seed: int, size: int = 64) -> NDArray[np.uint8]:
        generator = np.random.default_rng(seed)
        picture = np.zeros((size, size, 3))
        side = 2
        while side <= size:
            grains = Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8))
            grown = np.asarray(grains.resize((size, size), Image.Resampling.BICUBIC), np.float64)
            picture += (grown - 127.5) * (side / 2) ** -0.4
            side *= 2
        picture *= 48 / picture.std()
        return np.clip(picture + 127.5, 0, 255).astype(np.uint8)

    return make
