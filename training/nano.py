"""The nano comparator's training as one call: corpus, cached features, fine-tuning."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from compare2score.comparator.decoder import Comparison
from compare2score.comparator.nano import NanoComparator
from compare2score.errors import LabelError
from compare2score.training.corpus import read_corpus
from compare2score.training.features import FrozenFeatures, cached_features
from compare2score.training.finetune import Finetuner
from compare2score.training.pretrained import pretrained_nano
from compare2score.training.recipe import Recipe

CALIBRATION_IMAGES = 512
"""Images, evenly over the corpus, whose statistics standardise the abstractor's input."""

MALLOPT = {"M_TRIM_THRESHOLD": -1, "M_TOP_PAD": -2, "M_MMAP_THRESHOLD": -3}
"""Parameters' numbers in glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Has glibc keep what is freed for the next step, which else gives it back and pays for fresh pages.

    Elsewhere than in glibc nothing is changed.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(MALLOPT["M_MMAP_THRESHOLD"], 1 << 30)
        mallopt(MALLOPT["M_TRIM_THRESHOLD"], (1 << 31) - 1)
        mallopt(MALLOPT["M_TOP_PAD"], 1 << 30)


def train_nano(
    tables: list[Path],
    photographs: list[Path],
    out: Path,
    recipe: Recipe,
    size: int = 384,
    layers: int = 2,
    comparison: Comparison = "late",
    instructions: Sequence[Path] = (),
    std: float | None = None,
    distort_best: int = 0,
    expert: Sequence[str] = (),
) -> Path:
    """Trains a nano comparator, or goes on with a run that was interrupted.

    Args:
        tables: folders with a `labels.csv` (or label files) whose rows have a split "train" and "val".
        photographs: folders of clean photographs to distort.
        out: the run's folder: `features/` (cache), `log.jsonl`, `log.png`, `state.pt`, `checkpoint/`.
        recipe: epochs, rates, batch, seed.
        size: side of the input square in pixels.
        layers: decoder layers kept.
        comparison: "late" or "causal".
        instructions: files of comparative instructions to train on, too.
        std: standard deviation of opinions in tables that state none, see `read_labels`.
        distort_best: how many of every table's best images are distorted, too.
        expert: names of tables whose images are a kind of their own and get an expert.

    Returns:
        The checkpoint's folder.

    Raises:
        LabelError, ImageError, CheckpointError: in one sentence each.
    """
    if expert and not recipe.probe_epochs + recipe.encoder_epochs:
        raise LabelError("An expert learns by the probe; give --probe-epochs or --encoder-epochs, too.")
    out.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    torch.manual_seed(recipe.seed)
    corpus = read_corpus(tables, photographs, recipe.seed, instructions, std, distort_best, expert=expert)
    model = pretrained_nano(layers, size, comparison, len(expert))
    features = cached_features(model, corpus, recipe.frozen_stages, out / "features")
    calibrate_abstractor(model, features)
    finetuner = Finetuner(model, corpus, features, recipe, out)
    finetuner.resume()
    finetuner.run()
    return out / "checkpoint"


@torch.no_grad()
def calibrate_abstractor(model: NanoComparator, features: FrozenFeatures) -> None:
    """Standardises the abstractors' input by what the untrained encoder shows on a sample of the corpus."""
    items = np.unique(np.linspace(0, features.statistics.shape[1] - 1, CALIBRATION_IMAGES).astype(np.intp))
    rows = []
    for chunk in np.array_split(items, max(1, len(items) // 16)):
        maps, statistics = features.of(chunk, np.zeros(len(chunk), dtype=np.intp), torch.device("cpu"))
        rows.append(model.statistics_from(maps.float(), statistics, features.stages))
    model.abstractor.calibrate(torch.cat(rows))
    if model.mixture is not None:
        model.mixture.calibrate(torch.cat(rows))
