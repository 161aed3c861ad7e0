"""A training run's settings, apart from torch, so that the command line can show them at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ACCOUNT = "training.json"
"""Beside a checkpoint's weights: how it was trained, for the manifest of what is exported from it."""

Module = Literal["encoder", "abstractor", "probe", "decoder"]


@dataclass(frozen=True)
class Phase:
    """Consecutive epochs in which the same modules are trained.

    Attributes:
        name: what the phase is about.
        epochs: times every training image is seen.
        rates: AdamW's peak learning rate of each module that is trained; the others keep their weights.
    """

    name: str
    epochs: int
    rates: dict[Module, float]

    @property
    def probed(self) -> bool:
        """Whether a linear probe, and not the decoder, answers for the visual tokens' quality."""
        return "probe" in self.rates


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a fine-tuning run beside its model and data; the defaults train the nano.

    Attributes:
        probe_epochs: of the first phase, in which the encoder keeps its weights.
        encoder_epochs: of the second phase, which tunes the encoder's last stages.
        decoder_epochs: of the third phase, which trains the decoder on what the encoder now sees.
        batch: images a step, all of one part of the corpus.
        partners: how often the decoder compares each image of a batch as the first, and as the second.
        frozen_stages: encoder stages, from the first, that always keep their weights and are cached.
        encoder_rate, decoder_rate: AdamW's peak learning rates in the phase of that name.
        weight_decay: AdamW's.
        clip: largest norm of a step's gradient.
        warmup: share of a phase's steps in which the rates rise linearly; then they fall as a cosine to zero.
        seed: of batches, mirroring, distortions and untrained weights.
    """

    probe_epochs: int = 8
    encoder_epochs: int = 5
    decoder_epochs: int = 4
    batch: int = 32
    partners: int = 2
    frozen_stages: int = 3
    encoder_rate: float = 3e-5
    decoder_rate: float = 2e-4
    weight_decay: float = 0.02
    clip: float = 1.0
    warmup: float = 0.06
    seed: int = 0

    @property
    def phases(self) -> tuple[Phase, ...]:
        """First the head, then the features: Kumar et al., arXiv 2202.10054.

        An untrained head's gradients tear pretrained features apart: a few thousand images do not mend them.
        The probe is thrown away in the end. It teaches the encoder by all pairs of a batch at no cost, where
        the decoder pays for each.
        """
        rate = self.encoder_rate
        return (
            Phase("probe", self.probe_epochs, {"abstractor": 1e-3, "probe": 3e-3}),
            Phase(
                "encoder", self.encoder_epochs, {"encoder": rate, "abstractor": 3 * rate, "probe": 3 * rate}
            ),
            Phase("decoder", self.decoder_epochs, {"abstractor": 1e-4, "decoder": self.decoder_rate}),
        )

    @property
    def epochs(self) -> int:
        """Of all phases together."""
        return sum(phase.epochs for phase in self.phases)

    def phase_of(self, epoch: int) -> Phase:
        """The phase of an epoch, counted from 0 over all of them; the last one for any later number."""
        for phase in self.phases:
            if epoch < phase.epochs:
                return phase
            epoch -= phase.epochs
        return self.phases[-1]
