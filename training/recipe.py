"""A training run's settings, apart from torch, so that the command line can show them at once."""

from __future__ import annotations

from dataclasses import dataclass

ACCOUNT = "training.json"
"""Beside a checkpoint's weights: how it was trained, for the manifest of what is exported from it."""


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a fine-tuning run beside its model and data; the defaults train the nano.

    Attributes:
        epochs: times every training image is seen.
        batch: images a step, all of one part of the corpus.
        partners: how often each image of a batch is the first of a comparison, and how often the second.
        frozen_stages: encoder stages, from the first, that keep their weights and are cached.
        encoder_rate, abstractor_rate, decoder_rate: AdamW's peak learning rates.
        weight_decay: AdamW's.
        clip: largest norm of a step's gradient.
        warmup: share of all steps in which the rates rise linearly; then they fall as a cosine to zero.
        seed: of batches, mirroring, distortions and untrained weights.
    """

    epochs: int = 5
    batch: int = 16
    partners: int = 2
    frozen_stages: int = 3
    encoder_rate: float = 2e-4
    abstractor_rate: float = 5e-4
    decoder_rate: float = 1e-4
    weight_decay: float = 0.02
    clip: float = 1.0
    warmup: float = 0.06
    seed: int = 0
