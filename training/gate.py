"""Trains the gate that tells kinds of images apart, on statistics of images whose kind is known."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compare2score.comparator.abstractor import KindGate
from compare2score.training.recipe import warm_cosine

STEPS = 6_000
BATCH = 64
RATE = 1e-3
WEIGHT_DECAY = 0.1
WARMUP = 0.06
MIXUP = 0.4
"""Parameter of the beta distribution of mixup (Zhang et al., arXiv 1710.09412). Without it a gate knows its
training images by heart, and takes generated images of new prompts for photographs."""


def train_gate(
    gate: KindGate, features: Tensor, kinds: NDArray[np.intp], seed: int, steps: int = STEPS
) -> None:
    """Trains a gate; every batch holds as many images of each kind, mixed in pairs.

    Args:
        gate: it is left in evaluation mode.
        features: what the gate reads of every view of every image, [variants, N, gate.features].
        kinds: of the images, [N], each from 0 to the largest at least once.
        seed: of batches, mixing and dropout.
        steps: of AdamW.
    """
    device = features.device
    members = [np.flatnonzero(kinds == kind) for kind in range(kinds.max() + 1)]
    targets = nn.functional.one_hot(torch.from_numpy(kinds), len(members)).float().to(device)
    generator = np.random.default_rng([seed, 2])
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(gate.parameters(), RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps, WARMUP))
    gate.requires_grad_(True).train()
    for _ in range(steps):
        items = np.concatenate([generator.choice(own, BATCH // len(members)) for own in members])
        views = generator.integers(0, len(features), len(items))
        other = generator.permutation(len(items))
        share = torch.from_numpy(generator.beta(MIXUP, MIXUP, (len(items), 1))).float().to(device)
        chosen, target = features[views, items], targets[items]
        mixed = share * chosen + (1 - share) * chosen[other]
        wanted = share * target + (1 - share) * target[other]
        loss = nn.functional.cross_entropy(gate.read(mixed), wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    gate.requires_grad_(False).eval()
