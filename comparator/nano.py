"""The nano comparator: EfficientNet-Lite2, an abstractor of cell statistics, first layers of SmolLM2-135M.

A real small member of the family of the published comparator, small enough to ship inside the package.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compare2score.comparator.abstractor import ExpertAbstractor, VisualAbstractor, cell_statistics
from compare2score.comparator.comparator import ComparatorSpec
from compare2score.comparator.decoder import Comparison, ComparisonDecoder, DecoderConfig
from compare2score.comparator.efficientnet_lite import (
    LITE2_STAGES,
    LITE2_STEM_CHANNELS,
    EfficientNetLite,
    Stage,
)
from compare2score.comparator.prompt import LEVEL_WEIGHTS, LEVELS, QUESTION
from compare2score.errors import BundleError, CheckpointError
from compare2score.image import ImageSpec

ARCHITECTURE = "compare2score-nano"
FIRST_ABSTRACTED_STAGE = 1
"""Stages from this one on (strides 4 to 32) feed the abstractor."""


def default_image_spec(size: int = 384) -> ImageSpec:
    """EfficientNet-Lite's normalisation, (255 x - 127) / 128; padding of that grey."""
    return ImageSpec(size=size, mean=(127 / 255,) * 3, std=(128 / 255,) * 3, pad_color=(127,) * 3)


@dataclass(frozen=True)
class NanoConfig:
    """Everything that rebuilds a nano comparator around its weights."""

    decoder: DecoderConfig
    prompt_ids: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    """Token ids of the question's text before, between and after its two images."""
    level_ids: tuple[int, ...]
    """Token ids of the five level words, in the order of `levels`."""
    image: ImageSpec = field(default_factory=default_image_spec)
    stem_channels: int = LITE2_STEM_CHANNELS
    stages: tuple[Stage, ...] = LITE2_STAGES
    grid: int = 2
    experts: int = 0
    """Kinds of images that have an abstractor of their own, which a gate chooses."""
    question: str = QUESTION
    levels: tuple[str, ...] = LEVELS
    level_weights: tuple[float, ...] = LEVEL_WEIGHTS
    temperature: float = 1.0

    def to_json(self) -> dict[str, object]:
        """Plain JSON values; `from_json` reads them back."""
        return {"architecture": ARCHITECTURE, **asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> NanoConfig:
        """Rebuilds a config; raises KeyError, TypeError or ValueError if a value is missing or unusable."""
        known = dict(values)
        known.pop("architecture", None)
        known["decoder"] = DecoderConfig(**known["decoder"])
        try:
            known["image"] = ImageSpec.from_json(known["image"])
        except BundleError as error:
            raise ValueError("image is not a usable size, mean, std and pad_color") from error
        known["stages"] = tuple(Stage(**stage) for stage in known["stages"])
        known["prompt_ids"] = tuple(tuple(ids) for ids in known["prompt_ids"])
        for name in ("level_ids", "levels", "level_weights"):
            known[name] = tuple(known[name])
            if len(known[name]) != len(LEVELS):
                raise ValueError(f"{name} has {len(known[name])} entries, not {len(LEVELS)}")
        config = cls(**known)
        # Neither shows in the shape of any weight.
        if config.decoder.comparison not in get_args(Comparison):
            raise ValueError(f"comparison is {config.decoder.comparison!r}, not 'late' or 'causal'")
        if not config.temperature > 0:
            raise ValueError(f"temperature is {config.temperature}, not above 0")
        return config


class NanoComparator(nn.Module):
    """Torch comparator: `encode`, `prefix`, `compare`, the same three calls as a runtime backend."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = EfficientNetLite(config.stem_channels, config.stages)
        channels = [stage.channels for stage in config.stages[FIRST_ABSTRACTED_STAGE:]]
        self.abstractor = VisualAbstractor(channels, config.grid, config.decoder.width)
        first, second, closing = (len(ids) for ids in config.prompt_ids)
        self.decoder = ComparisonDecoder(config.decoder, (first, second, closing), config.grid**2 + 1)
        self.mixture = (
            ExpertAbstractor(channels, config.grid, config.decoder.width, config.experts)
            if config.experts
            else None
        )

    @property
    def abstractors(self) -> tuple[VisualAbstractor, ...]:
        """By kind of image: the common one, then the experts."""
        experts = () if self.mixture is None else self.mixture.experts
        return (self.abstractor, *experts)

    @property
    def spec(self) -> ComparatorSpec:
        """How it is asked and read."""
        config = self.config
        return ComparatorSpec(
            ARCHITECTURE,
            config.image,
            config.question,
            config.levels,
            config.level_weights,
            config.temperature,
        )

    def run_frozen(self, pixel_values: Tensor, stages: int) -> tuple[Tensor, Tensor]:
        """Runs the encoder's first `stages` stages, which training may keep frozen and cache.

        Returns the last one's feature map [N, C, S', S'] (the stem's for 0 stages) and the cell statistics
        [N, cells + 1, features] of all that feed the abstractor.
        """
        x = self.encoder.run_stem(pixel_values)
        statistics = []
        for i, blocks in enumerate(self.encoder.stages[:stages]):
            x = blocks(x)
            if i >= FIRST_ABSTRACTED_STAGE:
                statistics.append(cell_statistics(x, self.config.grid))
        if not statistics:
            return x, x.new_empty(x.shape[0], self.config.grid**2 + 1, 0, dtype=torch.float32)
        return x, torch.cat(statistics, dim=-1)

    def statistics_from(self, feature_map: Tensor, statistics: Tensor, stages: int) -> Tensor:
        """Runs the stages after the first `stages`; returns the statistics of all, the abstractor's input."""
        unabstracted = max(0, FIRST_ABSTRACTED_STAGE - stages)
        maps = self.encoder.continue_from(feature_map, stages)[unabstracted:]
        later = [cell_statistics(feature_map, self.config.grid) for feature_map in maps]
        return torch.cat([statistics, *later], dim=-1)

    def cell_multiple(self, stages: int) -> int:
        """What the side of a feature map after the first `stages` stages must be a multiple of."""
        return self.config.grid * math.prod(stage.stride for stage in self.config.stages[stages:])

    def encode_from(self, feature_map: Tensor, statistics: Tensor, stages: int) -> Tensor:
        """Visual tokens [N, T, D] from what `run_frozen` returned for the same `stages`."""
        return self.tokens_from(self.statistics_from(feature_map, statistics, stages))

    def tokens_from(self, statistics: Tensor) -> Tensor:
        """Visual tokens [N, T, D] from the statistics of all stages, [N, cells + 1, features]."""
        if self.mixture is None:
            return self.abstractor(statistics)  # type: ignore[no-any-return]
        return self.mixture(self.abstractor, statistics)  # type: ignore[no-any-return]

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens [N, T, D] of preprocessed images [N, 3, S, S]."""
        stages = len(self.encoder.stages) - 1
        return self.encode_from(*self.run_frozen(pixel_values, stages), stages)

    def prefix(self, visual_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [A, layers, kv_heads, length, head_width] of first images' tokens [A, T, D]."""
        return self.decoder.prefix(visual_tokens)

    def compare(self, visual_tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Level logits [N, A, 5] of second images' tokens [N, T, D] against A prefixes."""
        return self.decoder(visual_tokens, keys, values)  # type: ignore[no-any-return]

    def save(self, folder: Path) -> None:
        """Writes `config.json` and `model.safetensors` into `folder`, each of them whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        weights, config = folder / "model.safetensors", folder / "config.json"
        aside = [path.with_name(f"{path.name}.part") for path in (weights, config)]
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, aside[0])
        aside[1].write_text(json.dumps(self.config.to_json(), indent=1))
        aside[0].replace(weights)
        aside[1].replace(config)

    @classmethod
    def load(cls, folder: Path) -> NanoComparator:
        """Reads what `save` wrote. Raises CheckpointError, naming what does not fit."""
        try:
            values = json.loads((folder / "config.json").read_text())
            model = cls(NanoConfig.from_json(values))
            weights = load_file(folder / "model.safetensors")
            check_fit(model, weights)
            model.load_state_dict(weights)
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise CheckpointError(
                f"{folder} is not a whole nano checkpoint ({reason}); train it again."
            ) from error
        return model.eval()


def check_fit(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raises ValueError naming the first weight that is missing, unknown or of another shape."""
    expected = model.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights:
            raise ValueError(f"{name} is missing")
        if name not in expected:
            raise ValueError(f"{name} is unknown")
        if weights[name].shape != expected[name].shape:
            raise ValueError(f"{name} is {list(weights[name].shape)}, not {list(expected[name].shape)}")
