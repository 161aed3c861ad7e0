"""Mean of several fine-tuned comparators' weights, where they started from the same ones.

Wortsman et al., arXiv 2203.05482: runs that share their start lie in one basin, and the middle of it
generalises better than each, at the cost of one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from compare2score.comparator.nano import NanoComparator
from compare2score.errors import CheckpointError
from compare2score.training.recipe import ACCOUNT


@torch.no_grad()
def average_checkpoints(checkpoints: Sequence[Path], out: Path) -> None:
    """Writes a checkpoint with the mean of the weights of `checkpoints`, and all their accounts.

    Raises CheckpointError if one cannot be read, or if they are of different configurations.
    """
    models = [NanoComparator.load(path) for path in checkpoints]
    if not models or any(model.config != models[0].config for model in models):
        raise CheckpointError(
            "Only checkpoints of one configuration can be averaged; give runs of one model."
        )
    states = [model.state_dict() for model in models]
    mean = {name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]}
    models[0].load_state_dict(mean)
    models[0].save(out)
    accounts = [path / ACCOUNT for path in checkpoints]
    runs = [json.loads(path.read_text()) if path.exists() else None for path in accounts]
    (out / ACCOUNT).write_text(json.dumps({"mean_of": runs}, indent=1))
