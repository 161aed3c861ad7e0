"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) on a language comparator, through peft."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import save_torch_state_dict
from peft import LoraConfig
from peft.tuners.lora import LoraLayer, LoraModel
from torch import Tensor, nn

from compare2score.comparator import mplug_owl2, nano
from compare2score.comparator.checkpoint import architecture_of, read_config
from compare2score.comparator.huggingface import load_general, quiet
from compare2score.comparator.mplug_owl2 import MplugOwl2Comparator
from compare2score.errors import CheckpointError
from compare2score.training.answers import AdaptableComparator
from compare2score.training.recipe import ACCOUNT, LoraRecipe

NAME = "default"
SHARD_SIZE = "5GB"
CARRIED = (".json", ".jinja", ".model", ".txt")
"""Files of the base that go with its weights: settings, tokenizer, processor, chat template."""
LICENCES = ("LICENSE", "NOTICE")
TYPE_KEYS = ("dtype", "torch_dtype")
"""Where a `config.json` says in which precision its weights are stored."""


def open_base(folder: Path, dtype: torch.dtype | None) -> AdaptableComparator:
    """Opens a checkpoint that can be adapted, mPLUG-Owl2 or a chat model, in `dtype`; None keeps the stored.

    Raises CheckpointError if it is none of these or cannot be read, MissingExtraError without transformers.
    """
    values = read_config(folder)
    architecture = architecture_of(values)
    if architecture == nano.ARCHITECTURE:
        raise CheckpointError(
            f"{folder} holds a nano comparator, which has no language model to adapt; train it with "
            "'c2s train nano', or give an mPLUG-Owl2 or a chat model."
        )
    if architecture == mplug_owl2.ARCHITECTURE:
        owl = MplugOwl2Comparator.load(folder, dtype)
        _ = owl.prompt_tokens  # raises without a tokenizer
        return owl
    return load_general(folder, dtype)


def adaptable_layers(comparator: AdaptableComparator, recipe: LoraRecipe) -> list[str]:
    """Names of the linear layers that get an adapter: all of the decoder's, or all but the head.

    In mPLUG-Owl2's decoder, keys and values of text and of visual tokens have one each.
    """
    if isinstance(comparator, MplugOwl2Comparator):
        decoder, head = cast(nn.Module, comparator.model.layers), cast(nn.Module, comparator.lm_head)
    else:
        decoder, head = comparator.model.get_decoder(), comparator.model.get_output_embeddings()
    inside = set(decoder.modules()) if recipe.adapt == "decoder" else set(comparator.modules())
    # Not subclasses: those are read by their owner, past an adapter.
    return [
        name
        for name, module in comparator.named_modules()
        if type(module) is nn.Linear and module in inside and module is not head
    ]


class Adapter:
    """A comparator's adapters: what is trained of it, until they are merged into its weights.

    Attributes:
        comparator: it answers with its adapters; all else in it is frozen.
    """

    def __init__(self, comparator: AdaptableComparator, recipe: LoraRecipe) -> None:
        """Puts untrained adapters, which change no answer, on the comparator itself."""
        torch.manual_seed(recipe.seed)
        config = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.dropout,
            target_modules=adaptable_layers(comparator, recipe),
        )
        self.comparator = comparator.eval()
        self.tuner = LoraModel(comparator, config, NAME)
        self.train(False)
        for parameter in self.weights().values():
            # In half precision, steps of the published rate would be rounded away.
            parameter.data = parameter.data.float()

    def weights(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {name: p for name, p in self.comparator.named_parameters() if p.requires_grad}

    def train(self, mode: bool = True) -> None:
        """Switches the adapters' own dropout; the base's stays off."""
        for module in self.comparator.modules():
            if isinstance(module, LoraLayer):
                module.lora_dropout.train(mode)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Takes over the values of `weights`, by name."""
        own = self.weights()
        with torch.no_grad():
            for name, value in weights.items():
                own[name].copy_(value)

    def merge(self) -> None:
        """Adds every adapter's product to its layer's weight and removes it: W + alpha / rank * B A.

        Raises CheckpointError if a weight would not be finite.
        """
        try:
            self.tuner.merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise CheckpointError(
                "The trained adapters are not finite numbers; train again with a lower --rate."
            ) from error


def save_merged(comparator: AdaptableComparator, base: Path, folder: Path, account: dict[str, Any]) -> None:
    """Writes an adapted comparator without adapters as a checkpoint of the base's layout.

    Weights are safetensors, in shards where they are large, in the precision that the comparator has;
    settings, tokenizer, processor and licence are the base's files. The folder appears when it is whole.

    Args:
        comparator: its adapters are merged.
        base: the checkpoint it was opened from.
        folder: the new checkpoint; one that is there is replaced.
        account: how it was trained, for `training.json`.
    """
    aside = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    if isinstance(comparator, MplugOwl2Comparator):
        save_torch_state_dict(comparator.state_dict(), aside, max_shard_size=SHARD_SIZE)
    else:
        with quiet():
            comparator.model.save_pretrained(aside, max_shard_size=SHARD_SIZE)
    for file in sorted(base.iterdir()):
        if is_carried(file):
            shutil.copyfile(file, aside / file.name)
    state_precision(aside / "config.json", next(comparator.parameters()).dtype)
    (aside / ACCOUNT).write_text(json.dumps(account, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def is_carried(file: Path) -> bool:
    """Whether a base's file goes with an adapted checkpoint: not weights, their list, account or code."""
    wanted = file.suffix in CARRIED or file.name.startswith(LICENCES)
    return file.is_file() and wanted and not file.name.endswith(".index.json") and file.name != ACCOUNT


def state_precision(path: Path, dtype: torch.dtype) -> None:
    """Corrects what a `config.json` says of its weights' precision, where it says anything."""
    values = json.loads(path.read_text(encoding="utf-8"))
    stated = {key: str(dtype).removeprefix("torch.") for key in TYPE_KEYS if values.get(key) is not None}
    if stated:
        path.write_text(json.dumps({**values, **stated}, indent=2), encoding="utf-8")
