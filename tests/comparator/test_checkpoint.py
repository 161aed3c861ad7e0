"""Checkpoint folders that are whole, and those that are not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import compare2score.comparator.nano
from compare2score.comparator import load_comparator
from compare2score.errors import CheckpointError


@pytest.fixture
def checkpoint(tiny_comparator, tmp_path) -> Path:
    tiny_comparator().save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def is_one_sentence(text: str) -> bool:
    return text.endswith(".") and len(text) < 400 and not re.search(r"\n|[.!?]\s+[A-Z]", text)


def test_a_whole_checkpoint_is_opened(checkpoint, tiny_comparator):
    model = load_comparator(str(checkpoint))
    expected = tiny_comparator().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert sorted(path.name for path in checkpoint.iterdir()) == ["config.json", "model.safetensors"]


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def reweighted(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return damage


def cut(name: str, part: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * part)])

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    "empty config": (cut("config.json", 0), "config.json"),
    "cut config": (cut("config.json", 0.5), "config.json"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json"),
    "binary config": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json"),
    "empty weights": (cut("model.safetensors", 0), "train it again"),
    "weights cut in the header": (cut("model.safetensors", 0.01), "train it again"),
    "weights cut in the data": (cut("model.safetensors", 0.9), "train it again"),
    "weights of zeros": (
        lambda folder: (folder / "model.safetensors").write_bytes(bytes(5000)),
        "train it again",
    ),
    "another architecture": (edited(lambda c: c.update(architecture="resnet")), "resnet"),
    "no architecture": (edited(lambda c: c.pop("architecture")), "None"),
    "an unknown key": (edited(lambda c: c.update(colour="red")), "colour"),
    "an unknown key of the decoder": (edited(lambda c: c["decoder"].update(dropout=0.1)), "dropout"),
    "no decoder": (edited(lambda c: c.pop("decoder")), "decoder"),
    "no image spec": (edited(lambda c: c.pop("image")), "image"),
    "an unusable image spec": (edited(lambda c: c["image"].update(size=0)), "image"),
    "an unknown comparison": (edited(lambda c: c["decoder"].update(comparison="early")), "early"),
    "four levels": (edited(lambda c: c["level_weights"].pop()), "level_weights"),
    "temperature 0": (edited(lambda c: c.update(temperature=0.0)), "temperature"),
    "sizes as text": (edited(lambda c: c["decoder"].update(width="32")), "train it again"),
    "a wider decoder": (edited(lambda c: c["decoder"].update(width=64)), "is [32], not [64]"),
    "more layers": (edited(lambda c: c["decoder"].update(layers=3)), "decoder.layers.2"),
    "fewer layers": (edited(lambda c: c["decoder"].update(layers=1)), "decoder.layers.1"),
    "a longer prompt": (edited(lambda c: c["prompt_ids"][0].append(3)), "decoder.first_text"),
    "a weight of another shape": (
        reweighted(lambda w: w.update({"decoder.norm.weight": torch.ones(31)})),
        "decoder.norm.weight is [31], not [32]",
    ),
    "a missing weight": (reweighted(lambda w: w.pop("encoder.stem.bias")), "encoder.stem.bias is missing"),
    "an unknown weight": (reweighted(lambda w: w.update(extra=torch.ones(1))), "extra is unknown"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_in_one_sentence(checkpoint, damage):
    change, named = DAMAGES[damage]
    change(checkpoint)
    with pytest.raises(CheckpointError) as caught:
        load_comparator(checkpoint)
    assert named in str(caught.value)
    assert str(checkpoint) in str(caught.value)
    assert is_one_sentence(str(caught.value)), caught.value


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        load_comparator(tmp_path / "nowhere")


def test_a_save_that_dies_leaves_the_checkpoint_before_it(checkpoint, tiny_comparator, monkeypatch):
    def dies_halfway(weights: object, path: Path) -> None:
        path.write_bytes(b"half of the weights")
        raise KeyboardInterrupt

    monkeypatch.setattr(compare2score.comparator.nano, "save_file", dies_halfway)
    with pytest.raises(KeyboardInterrupt):
        tiny_comparator(seed=1).save(checkpoint)
    kept, expected = load_comparator(checkpoint).state_dict(), tiny_comparator(seed=0).state_dict()
    assert all(torch.equal(kept[name], expected[name]) for name in expected)
