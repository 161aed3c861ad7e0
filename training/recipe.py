"""A training run's settings, apart from torch, so that the command line can show them at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ACCOUNT = "training.json"
"""Beside a checkpoint's weights: how it was trained, for the manifest of what is exported from it."""

Module = Literal["encoder", "abstractor", "probe", "decoder"]
Adapted = Literal["decoder", "all"]


def warm_cosine(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning rate: linear over the first `warmup` of the steps, then a cosine to zero."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


@dataclass(frozen=True)
class Phase:
    """Consecutive epochs in which the same modules are trained.

    Attributes:
        name: what the phase is about.
        epochs: times every training image is seen.
        rates: AdamW's peak learning rate of each module that is trained; the others keep their weights.
        taught: whether the probe, and not the labels, says what is right.
    """

    name: str
    epochs: int
    rates: dict[Module, float]
    taught: bool = False

    @property
    def probed(self) -> bool:
        """Whether a probe, and not the decoder, answers for the visual tokens' quality."""
        return "decoder" not in self.rates


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a fine-tuning run beside its model and data; the defaults train the nano.

    Attributes:
        probe_epochs: of the first phase, in which the encoder keeps its weights.
        encoder_epochs: of the second phase, which tunes the encoder's last stages.
        decoder_epochs: of the last phase, which trains the decoder on what the encoder now sees.
        batch: images a step, all of one part of the corpus.
        partners: how often the decoder compares each image of a batch as the first, and as the second.
        frozen_stages: encoder stages, from the first, that always keep their weights and are cached.
        encoder_rate, decoder_rate: AdamW's peak learning rates in the phase of that name.
        distil: whether the decoder learns what the probe makes of any two images, those of different tables,
            too, and not the labels.
        weight_decay: AdamW's.
        clip: largest norm of a step's gradient.
        warmup: share of a phase's steps in which the rates rise linearly; then they fall as a cosine to zero.
        seed: of batches, mirroring, distortions and untrained weights.
    """

    probe_epochs: int = 16
    encoder_epochs: int = 5
    decoder_epochs: int = 4
    batch: int = 32
    partners: int = 2
    frozen_stages: int = 3
    encoder_rate: float = 3e-5
    decoder_rate: float = 2e-4
    distil: bool = True
    weight_decay: float = 0.02
    clip: float = 1.0
    warmup: float = 0.06
    seed: int = 0

    @property
    def phases(self) -> tuple[Phase, ...]:
        """First the head, then the features: Kumar et al., arXiv 2202.10054.

        An untrained head's gradients tear pretrained features apart: a few thousand images do not mend them.
        The probe is thrown away in the end. It teaches the encoder by all pairs of a batch at no cost, where
        the decoder pays for each. Then the probe teaches the decoder: labels only say which of two images of
        one table is better, but anchors meet images of any kind. Without a trained probe the labels do.

        "abstractor" means its experts, too: before the last phase each image goes to that of its own kind.
        Only then the gate that chooses among them is trained, on what the tuned encoder shows.
        """
        rate = self.encoder_rate
        taught = self.distil and self.probe_epochs + self.encoder_epochs > 0
        decoder: dict[Module, float] = {"decoder": self.decoder_rate}
        return (
            Phase("probe", self.probe_epochs, {"abstractor": 1e-3, "probe": 1e-3}),
            Phase(
                "encoder", self.encoder_epochs, {"encoder": rate, "abstractor": 3 * rate, "probe": 3 * rate}
            ),
            Phase(
                "decoder",
                self.decoder_epochs,
                decoder if taught else {"abstractor": 1e-4, **decoder},
                taught,
            ),
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


@dataclass(frozen=True)
class LoraRecipe:
    """Everything that determines a low-rank fine-tuning beside its base and its pairs.

    Epochs, batch, rate, warm-up and weight decay are those with which Compare2Score was trained (two epochs
    of batches of 64, a cosine from 2e-5 after 3 % of warm-up, no decay), which tuned every weight, the vision
    encoder's too. Rank and alpha are those of mPLUG-Owl2's own low-rank script, which leaves the vision
    encoder as it is.

    Attributes:
        epochs: times every pair is seen.
        batch: pairs a step.
        micro_batch: pairs in memory at once; their gradients are added up to a step's.
        rate: AdamW's peak learning rate.
        warmup: share of the steps in which the rate rises linearly; then it falls as a cosine to zero.
        weight_decay: AdamW's.
        clip: largest norm of a step's gradient.
        rank: of every adapter, r.
        alpha: an adapter's product is scaled by alpha / rank.
        dropout: on what the adapters read.
        adapt: linear layers of the decoder alone, or all, the vision encoder's and the abstractor's too.
        seed: of adapters, order and dropout.
    """

    epochs: int = 2
    batch: int = 64
    micro_batch: int = 4
    rate: float = 2e-5
    warmup: float = 0.03
    weight_decay: float = 0.0
    clip: float = 1.0
    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05
    adapt: Adapted = "decoder"
    seed: int = 0
