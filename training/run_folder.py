"""What a training run keeps in its folder: a log with a row an epoch, and the state to go on from."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from compare2score.errors import CheckpointError

STATE, LOG = "state.pt", "log.jsonl"


def log_row(folder: Path, row: Mapping[str, float | str]) -> None:
    """Appends a row to the log, and prints it."""
    with (folder / LOG).open("a") as log:
        log.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def cut_log(folder: Path, epochs: int) -> None:
    """Leaves the rows of saved epochs in the log: one killed before its save is logged again."""
    log = folder / LOG
    if log.exists():
        lines = log.read_text().splitlines()[:epochs]
        log.write_text("".join(f"{line}\n" for line in lines))


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes a run's state, aside first: a kill leaves the one before."""
    aside = folder / f"{STATE}.part"
    torch.save(state, aside)
    aside.replace(folder / STATE)


def read_state(
    folder: Path, device: torch.device, recipe: Mapping[str, Any], subject: str
) -> dict[str, Any] | None:
    """The state of the run in `folder`, None if it has none yet.

    recipe, subject: what the state's entries of these names must be.

    Raises CheckpointError if they are not, or if the state is damaged.
    """
    path = folder / STATE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} is damaged; choose another --out folder.") from error
    if (state.get("recipe"), state.get("subject")) != (recipe, subject):
        raise CheckpointError(
            f"{folder} holds a run of another recipe, model or data; choose another --out folder."
        )
    return state
