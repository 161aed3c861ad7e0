"""Cache of what the encoder's frozen stages make of every image, so that training never runs them again."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from compare2score.comparator.nano import NanoComparator
from compare2score.image import fit_square, normalize
from compare2score.training.corpus import Corpus, Item

BATCH = 16
BATCHES_PER_SAVE = 20
RECORD = "features.json"
VARIANTS = 2
"""Every image as it is, and mirrored: quality has no left and right."""
LARGEST_CUT = 3
"""A random window leaves away up to one part in so many of a feature map's side."""


@dataclass(frozen=True)
class FrozenFeatures:
    """Outputs of the encoder's first `stages` stages for the corpus, on disk.

    `maps` is float16 [variants, N, S', S', C], `statistics` float32 [variants, N, cells + 1, features].
    """

    stages: int
    maps: NDArray[np.float16]
    statistics: NDArray[np.float32]

    @property
    def variants(self) -> int:
        """Views of every image."""
        return len(self.statistics)

    def of(
        self, items: NDArray[np.intp], variants: NDArray[np.intp], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Feature maps [B, C, S', S'] (channels last in memory) and statistics of some items."""
        maps = torch.from_numpy(np.ascontiguousarray(self.maps[variants, items])).to(device)
        statistics = torch.from_numpy(np.ascontiguousarray(self.statistics[variants, items])).to(device)
        return maps.permute(0, 3, 1, 2), statistics

    @torch.inference_mode()
    def completed(self, model: NanoComparator, device: torch.device) -> FrozenFeatures:
        """The features with every stage frozen as it is now: statistics alone, in memory."""
        if self.stages == len(model.encoder.stages):
            return self
        variants, count = self.statistics.shape[:2]
        rows = []
        for variant in range(variants):
            for start in range(0, count, BATCH):
                items = np.arange(start, min(start + BATCH, count))
                maps, statistics = self.of(items, np.full(len(items), variant), device)
                with torch.autocast(device.type, torch.bfloat16):
                    rows.append(model.statistics_from(maps.to(torch.bfloat16), statistics, self.stages).cpu())
        completed = torch.unflatten(torch.cat(rows), 0, (variants, count)).numpy()
        return FrozenFeatures(len(model.encoder.stages), self.maps[..., :0, :0, :0], completed)


def random_window(maps: Tensor, multiple: int, generator: np.random.Generator) -> Tensor:
    """Cuts feature maps [B, C, S, S] to one random square window, whose side differs by some `multiple`.

    A crop of the image, but for what the frozen stages saw beyond its edges: its quality is the image's, and
    nothing is resampled. Maps too small for a cut are returned whole.
    """
    side = maps.shape[-1]
    cuts = side // (LARGEST_CUT * multiple)
    kept = side - multiple * int(generator.integers(0, cuts + 1))
    top, left = generator.integers(0, side - kept + 1, 2)
    return maps[:, :, top : top + kept, left : left + kept]


def fingerprint(model: NanoComparator, corpus: Corpus, stages: int) -> str:
    """Hash of everything the cache depends on: image files, distortions, image spec, frozen weights.

    A file counts by its content, so that a data set may be copied anew, and an absent one as empty.
    """
    digest = hashlib.sha256(json.dumps([asdict(model.config.image), stages, VARIANTS]).encode())
    contents = {
        path: hashlib.sha256(path.read_bytes() if path.exists() else b"").hexdigest()
        for path in {item.path for item in corpus.items}
    }
    for item in corpus.items:
        digest.update(repr((contents[item.path], item.distortion, item.strength, item.seed)).encode())
    for module in (model.encoder.stem, *model.encoder.stages[:stages]):
        for value in module.state_dict().values():
            digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def pixel_batch(items: tuple[Item, ...], model: NanoComparator) -> Tensor:
    """Preprocessed images [B, 3, S, S]."""
    spec = model.config.image
    return torch.from_numpy(np.stack([normalize(fit_square(item.pixels(), spec), spec) for item in items]))


def cached_features(model: NanoComparator, corpus: Corpus, stages: int, folder: Path) -> FrozenFeatures:
    """Opens the cache in `folder`, or fills it; a killed run goes on where it was.

    Raises ImageError if an image of the corpus cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {"key": fingerprint(model, corpus, stages)}
    count = len(corpus.items)
    with torch.inference_mode():
        feature_map, statistics = model.run_frozen(pixel_batch(corpus.items[:1], model), stages)
    shapes = (
        (VARIANTS, count, *feature_map.shape[2:], feature_map.shape[1]),
        (VARIANTS, count, *statistics.shape[1:]),
    )
    maps, values, done = open_cache(folder, shapes, state)
    for start in track(range(done, count, BATCH), description="Caching features", disable=done >= count):
        items = corpus.items[start : start + BATCH]
        pixels = pixel_batch(items, model)
        for variant, view in enumerate((pixels, pixels.flip(-1))):
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                feature_map, statistics = model.run_frozen(view, stages)
            maps[variant, start : start + len(items)] = feature_map.permute(0, 2, 3, 1).float().numpy()
            values[variant, start : start + len(items)] = statistics.numpy()
        if (start // BATCH + 1) % BATCHES_PER_SAVE == 0 or start + BATCH >= count:
            maps.flush()
            values.flush()
            aside = folder / f"{RECORD}.part"
            aside.write_text(json.dumps({**state, "done": min(start + BATCH, count)}))
            aside.replace(folder / RECORD)
    return FrozenFeatures(stages, maps, values)


def open_cache(
    folder: Path, shapes: tuple[tuple[int, ...], tuple[int, ...]], state: dict[str, str]
) -> tuple[np.memmap[Any, Any], np.memmap[Any, Any], int]:
    """Maps, statistics and the number of images they already hold: 0 unless they were made from `state`."""
    paths = folder / "maps.npy", folder / "statistics.npy"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # absent or damaged: filled anew
        record = json.loads((folder / RECORD).read_text())
        if {**record, "done": 0} == {**state, "done": 0}:
            # Read-only, numpy refuses a file cut short; in mode "r+" it fills it up with zeros.
            for path in paths:
                np.lib.format.open_memmap(path, mode="r")
            kept = [np.lib.format.open_memmap(path, mode="r+") for path in paths]
            if (kept[0].shape, kept[1].shape) == shapes:
                return kept[0], kept[1], int(record["done"])
    # The record goes before what it vouches for is overwritten.
    (folder / RECORD).unlink(missing_ok=True)
    maps = np.lib.format.open_memmap(paths[0], mode="w+", dtype=np.float16, shape=shapes[0])
    values = np.lib.format.open_memmap(paths[1], mode="w+", dtype=np.float32, shape=shapes[1])
    return maps, values, 0
