"""Opens a checkpoint folder as the comparator that its `config.json` names."""

from __future__ import annotations

import json
from pathlib import Path

from compare2score.comparator.nano import ARCHITECTURE, NanoComparator
from compare2score.errors import CheckpointError


def load_comparator(path: str | Path) -> NanoComparator:
    """Opens a supported checkpoint folder.

    Raises CheckpointError if the folder holds no readable `config.json`, one of an architecture that is not
    supported, or weights that do not fit it.
    """
    folder = Path(path)
    try:
        architecture = json.loads((folder / "config.json").read_text()).get("architecture")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder} has no readable config.json; give a checkpoint folder.") from error
    if architecture != ARCHITECTURE:
        raise CheckpointError(f"{folder} holds a {architecture!r} checkpoint; supported is {ARCHITECTURE!r}.")
    return NanoComparator.load(folder)
