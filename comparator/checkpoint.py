"""Opens a checkpoint folder as the comparator that its `config.json` names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compare2score.comparator import nano
from compare2score.errors import CheckpointError

if TYPE_CHECKING:
    from compare2score.comparator.comparator import Comparator


def read_config(folder: Path) -> Mapping[str, Any]:
    """The folder's `config.json`. Raises CheckpointError if there is none that can be read."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} has no readable config.json; give a checkpoint folder.") from error
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{folder / 'config.json'} is not a table of settings; give a checkpoint folder."
        )
    return values


PUBLISHED_CLASS = "MPLUGOwl2LlamaForCausalLM"
"""What the published config's "architectures" names."""


def architecture_of(values: Mapping[str, Any]) -> Any:
    """What a `config.json` says it describes: our "architecture", else transformers' "model_type"."""
    if values.get("architectures") == [PUBLISHED_CLASS]:
        return "mplug_owl2"
    return values.get("architecture", values.get("model_type"))


def load_comparator(path: str | Path, dtype: torch.dtype | None = torch.float32) -> Comparator:
    """Opens a supported checkpoint folder: nano, mPLUG-Owl2, or a chat model that transformers knows.

    Args:
        path: the folder.
        dtype: precision of the weights; None keeps the stored one. A nano comparator is always float32.

    Raises:
        CheckpointError: the folder holds no readable `config.json`, one of an architecture that is not
            supported, or weights that do not fit it.
        MissingExtraError: the architecture needs a package that is not installed.
    """
    folder = Path(path)
    values = read_config(folder)
    architecture = architecture_of(values)
    if architecture == nano.ARCHITECTURE:
        return nano.NanoComparator.load(folder)
    if architecture == "mplug_owl2":
        from compare2score.comparator.mplug_owl2 import MplugOwl2Comparator

        return MplugOwl2Comparator.load(folder, dtype)
    if "architecture" not in values and isinstance(architecture, str):
        from compare2score.comparator.huggingface import load_huggingface

        return load_huggingface(folder, dtype)
    raise CheckpointError(
        f"{folder} holds a {architecture!r} checkpoint; supported are {nano.ARCHITECTURE!r}, "
        "'mplug_owl2' and multi-image chat models of transformers."
    )
