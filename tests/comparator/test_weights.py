"""A checkpoint's weights in every published layout, and damaged in every way."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compare2score.comparator import load_comparator
from compare2score.comparator.weights import CheckpointWeights
from compare2score.errors import CheckpointError

Save = Callable[[dict[str, Tensor], Path], None]
FORMATS: dict[str, tuple[str, str, Save]] = {
    "safetensors": ("model", ".safetensors", lambda weights, path: save_file(weights, path)),
    "bin": ("pytorch_model", ".bin", lambda weights, path: torch.save(weights, path)),
}
KEY = "model.layers.1.self_attn.k_proj.multiway.1.weight"


@pytest.fixture
def checkpoint(owl_checkpoint, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(owl_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture(scope="module")
def weights(owl_checkpoint) -> dict[str, Tensor]:
    return load_file(owl_checkpoint / "model.safetensors")


def store(folder: Path, weights: dict[str, Tensor], form: str, shards: int) -> None:
    """Writes the weights anew, in one file or in shards with their list."""
    (folder / "model.safetensors").unlink()
    stem, ending, save = FORMATS[form]
    if shards == 1:
        save(weights, folder / f"{stem}{ending}")
        return
    files = {}
    for shard in range(shards):
        name = f"{stem}-{shard + 1:05}-of-{shards:05}{ending}"
        part = {key: weights[key] for i, key in enumerate(sorted(weights)) if i % shards == shard}
        save(part, folder / name)
        files |= dict.fromkeys(part, name)
    (folder / f"{stem}{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_every_published_layout_is_read(checkpoint, weights, form, shards, stored):
    store(checkpoint, {name: value.to(stored) for name, value in weights.items()}, form, shards)
    read = load_comparator(checkpoint).state_dict()
    kept = load_comparator(checkpoint, None).state_dict()
    half = load_comparator(checkpoint, torch.float16).state_dict()
    assert read.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(read[name], value.to(stored).float())
        assert kept[name].dtype == stored
        assert torch.equal(half[name], value.to(stored).half())


@pytest.mark.parametrize("form", FORMATS)
def test_tensors_are_read_one_by_one_from_shards_opened_once(checkpoint, weights, form, monkeypatch):
    import compare2score.comparator.weights as module

    store(checkpoint, weights, form, 3)
    opened = []
    really = module.open_shard
    monkeypatch.setattr(module, "open_shard", lambda path: opened.append(path.name) or really(path))
    stored = CheckpointWeights.open(checkpoint)
    assert opened == []
    assert stored.names == weights.keys()
    for name, value in weights.items():
        assert stored.shape(name) == value.shape
        assert torch.equal(stored.tensor(name), value)
    assert len(opened) == len(set(opened)) == 3


def test_the_rotary_table_of_old_checkpoints_is_passed_over(checkpoint, weights):
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    store(checkpoint, weights | table, "bin", 2)
    assert load_comparator(checkpoint).state_dict().keys() == weights.keys()


class Trap:
    """What unpickles by running a command."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return Path.touch, (Path("trapped"),)


def saved(
    form: str, shards: int, change: Callable[[dict[str, Tensor]], object] = lambda w: None
) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        store(folder, weights, form, shards)

    return damage


def then(first: Callable[[Path], object], second: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        first(folder)
        second(folder)

    return damage


def cut(name: str, part: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * part)])

    return damage


def delist(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    values = json.loads(path.read_text())
    values["weight_map"].pop(KEY)
    path.write_text(json.dumps(values))


def relist(entry: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        values = json.loads(path.read_text())
        values["weight_map"][KEY] = entry
        path.write_text(json.dumps(values))

    return damage


def reconfigured(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        change(values)
        (folder / "config.json").write_text(json.dumps(values))

    return damage


SHARD = "model-00002-of-00003.safetensors"
BIN_SHARD = "pytorch_model-00002-of-00003.bin"
DAMAGES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        ("no weights", "pytorch_model.bin"),
    ),
    "empty file": (cut("model.safetensors", 0), ("model.safetensors", "cut short")),
    "cut in the header": (cut("model.safetensors", 0.001), ("model.safetensors", "cut short")),
    "cut in the data": (cut("model.safetensors", 0.9), ("model.safetensors", "cut short")),
    "a missing key": (saved("safetensors", 1, lambda w: w.pop(KEY)), (KEY, "no weight")),
    "an unknown key": (saved("bin", 1, lambda w: w.update(extra=torch.ones(2))), ("extra", "nothing of")),
    "a misshaped key": (saved("bin", 3, lambda w: w.update({KEY: w[KEY][:5]})), (KEY, "[5, 96]", "[96, 96]")),
    "a missing shard": (then(saved("safetensors", 3), lambda f: (f / SHARD).unlink()), (SHARD, "is missing")),
    "a shard cut short": (then(saved("safetensors", 3), cut(SHARD, 0.99)), (SHARD, "cut short")),
    "an empty shard": (then(saved("bin", 3), cut(BIN_SHARD, 0)), (BIN_SHARD, "cut short")),
    "a .bin shard cut short": (then(saved("bin", 3), cut(BIN_SHARD, 0.99)), (BIN_SHARD, "cut short")),
    "a .bin cut in half": (
        then(saved("bin", 1), cut("pytorch_model.bin", 0.5)),
        ("pytorch_model.bin", "cut"),
    ),
    "a .bin that runs code": (
        saved("bin", 1, lambda w: w.update(trap=Trap())),
        ("pytorch_model.bin", "code"),
    ),
    "a .bin of something else": (saved("bin", 1, lambda w: w.update(step=3)), ("not a table of weights",)),
    "a key that is not listed": (then(saved("safetensors", 3), delist), (KEY, "no weight")),
    "a list that looks elsewhere": (
        then(saved("safetensors", 3), relist("other.safetensors")),
        ("other.safe",),
    ),
    "a list that looks in another shard": (
        then(
            saved("safetensors", 3),
            lambda f: [relist(f"model-0000{i}-of-00003.safetensors")(f) for i in (1,)],
        ),
        (KEY, "does not hold"),
    ),
    "a list that leaves the folder": (
        then(saved("safetensors", 3), relist("../x.safetensors")),
        ("list of",),
    ),
    "a list with a number": (then(saved("safetensors", 3), relist(3)), ("usable list of shards",)),
    "a list cut short": (
        then(saved("safetensors", 3), cut("model.safetensors.index.json", 0.5)),
        ("usable list of shards",),
    ),
    "no visual config": (reconfigured(lambda c: c.pop("visual_config")), ("config.json", "visual_config")),
    "another activation": (reconfigured(lambda c: c.update(hidden_act="gelu")), ("hidden_act", "gelu")),
    "scaled rotations": (reconfigured(lambda c: c.update(rope_scaling={"factor": 2})), ("rope_scaling",)),
    "a size as text": (reconfigured(lambda c: c.update(hidden_size="96")), ("config.json", "'96'")),
    "a wider decoder": (reconfigured(lambda c: c.update(hidden_size=192)), ("[320, 96]", "[320, 192]")),
    "more layers": (reconfigured(lambda c: c.update(num_hidden_layers=4)), ("model.layers.3.",)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_does_not_fit_is_refused_in_one_sentence(checkpoint, damage, tmp_path, monkeypatch):
    change, named = DAMAGES[damage]
    change(checkpoint)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load_comparator(checkpoint)
    text = str(caught.value)
    assert all(part in text for part in named), text
    assert text.endswith(".")
    assert not re.search(r"\n|[.!?]\s+[A-Z]", text), text
    assert not (tmp_path / "trapped").exists()


def test_the_trap_would_have_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Trap()))
    assert (tmp_path / "trapped").exists()
