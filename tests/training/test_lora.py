"""Low-rank fine-tuning of the golden mPLUG-Owl2 and of a tiny chat model, on pictures blurred by design."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from blurred_table import write_blurred_table
from chat_checkpoint import save_chat_checkpoint
from PIL import Image
from safetensors.torch import load_file, save_file
from same_tensors import same_tensors

from compare2score.comparator import load_comparator
from compare2score.comparator.nano import NanoComparator
from compare2score.errors import CheckpointError, ImageError, LabelError
from compare2score.export.graphs import TOLERANCE, export_graphs
from compare2score.image import preprocess
from compare2score.training import adapter, answers, lora
from compare2score.training.adapter import Adapter, adaptable_layers, open_base
from compare2score.training.answers import answer_logits, level_ids
from compare2score.training.instructions import read_instructions, sample_pairs, write_instructions
from compare2score.training.labels import read_labels
from compare2score.training.lora import LoraTrainer, train_lora
from compare2score.training.recipe import LoraRecipe

FAMILIES = ("owl", "idefics3")
RECIPE = LoraRecipe(epochs=3, batch=8, micro_batch=4, rate=3e-3, rank=4, alpha=8)
PAIRS, VAL = 30, 10


@pytest.fixture(autouse=True, scope="module")
def _on_the_processor():
    """What is compared to the bit is computed where it is reproducible."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture(autouse=True)
def _without_curves(monkeypatch):
    """Slower to draw than such an epoch is to train; only `runs`, made before, have them."""
    monkeypatch.setattr(lora, "plot_log", lambda folder: None)


@pytest.fixture(scope="module")
def bases(owl_checkpoint, tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of each family."""
    chat = save_chat_checkpoint("idefics3", tmp_path_factory.mktemp("idefics3") / "base")
    return {"owl": owl_checkpoint, "idefics3": chat}


@pytest.fixture(scope="module")
def files(tmp_path_factory, texture) -> dict[str, Path]:
    """Instructions to train and to validate on, about pictures labelled by how far they are blurred."""
    splits = ["train" if i % 4 else "val" for i in range(16)]
    folder = write_blurred_table(tmp_path_factory.mktemp("blurred"), texture, splits, std=10)
    written = {}
    for split, count in (("train", PAIRS), ("val", VAL)):
        table = read_labels(folder / "labels.csv", split=split)
        written[split] = folder / f"{split}.jsonl"
        write_instructions(written[split], sample_pairs([table], count, seed=0))
    return written


@pytest.fixture(scope="module")
def runs(bases, files, tmp_path_factory) -> dict[str, Path]:
    """The folder of an uninterrupted run of each family."""
    folders = {}
    for name, base in bases.items():
        folders[name] = tmp_path_factory.mktemp("run") / name
        train_lora(base, [files["train"]], folders[name], RECIPE, [files["val"]])
    return folders


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def adapted(base: Path, run: Path) -> Adapter:
    """The base with the adapters that a run left in its state."""
    trained = Adapter(open_base(base, torch.float32), RECIPE)
    trained.load(torch.load(run / "state.pt", weights_only=True)["adapter"])
    return trained


def pixels_of(comparator, file: Path, count: int = 6) -> torch.Tensor:
    """The first images that a file of instructions names [count, 3, S, S]."""
    images = read_instructions(file).images[0][:count]
    return torch.from_numpy(
        np.stack([preprocess(file.parent / name, comparator.spec.image) for name in images])
    )


@torch.no_grad()
def level_logits(comparator, pixels: torch.Tensor) -> torch.Tensor:
    """Every image compared with the first three, as scores are computed: [N, 3, 5]."""
    tokens = torch.cat([comparator.encode(image[None]) for image in pixels])
    return comparator.compare(tokens, *comparator.prefix(tokens[:3]))


def test_without_options_it_trains_as_published():
    recipe = LoraRecipe()
    assert (recipe.rate, recipe.epochs, recipe.batch, recipe.warmup) == (2e-5, 2, 64, 0.03)
    assert recipe.weight_decay == 0
    rates = [lora.warm_cosine(step, 100, recipe.warmup) for step in range(101)]
    np.testing.assert_allclose(rates[:4], [1 / 3, 2 / 3, 1, 1])
    np.testing.assert_allclose(
        rates[3:], [0.5 + 0.5 * math.cos(math.pi * k / 97) for k in range(98)], atol=1e-12
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_falls_below_what_needs_no_look_at_the_images(bases, files, tmp_path, family):
    recipe = replace(RECIPE, epochs=24, micro_batch=8, rate=5e-3, rank=8, alpha=16, dropout=0)
    train_lora(bases[family], [files["train"]], tmp_path, recipe)
    losses = [row["train_loss"] for row in log_of(tmp_path)]
    shares = np.bincount(read_instructions(files["train"]).level) / PAIRS
    entropy = -(shares * np.log(shares)).sum()
    assert losses[0] > entropy
    assert losses[-1] < 0.8 * entropy


@pytest.mark.parametrize("family", FAMILIES)
def test_the_merged_checkpoint_answers_as_the_adapters_did(bases, files, runs, family):
    comparator = adapted(bases[family], runs[family]).comparator
    pixels = pixels_of(comparator, files["val"])
    with_adapters = level_logits(comparator, pixels)
    merged = open_base(runs[family] / "checkpoint", torch.float32)
    untrained = open_base(bases[family], torch.float32)
    torch.testing.assert_close(level_logits(merged, pixels), with_adapters, rtol=0, atol=1e-5)
    assert (level_logits(untrained, pixels) - with_adapters).abs().max() > 0.1
    account = json.loads((runs[family] / "checkpoint" / "training.json").read_text())
    assert account["merged_difference"] < 1e-5
    assert account["recipe"]["rank"] == 4
    assert account["data"] == [[files["train"].parent.name, "pairs", PAIRS]]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_the_merged_checkpoint_exports(runs, tmp_path, family):
    parity = export_graphs(load_comparator(runs[family] / "checkpoint"), tmp_path)
    assert set(parity) == {"vision", "prefix", "decoder"}
    assert max(parity.values()) <= TOLERANCE
    assert {file.name for file in tmp_path.glob("*.onnx")} == {"vision.onnx", "prefix.onnx", "decoder.onnx"}


def test_only_the_decoders_linear_layers_change_and_by_the_adapters_product(bases, runs):
    before, after = weights_of(bases["owl"]), weights_of(runs["owl"] / "checkpoint")
    state = torch.load(runs["owl"] / "state.pt", weights_only=True)["adapter"]
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    layer = {"self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    layer |= {f"self_attn.{part}_proj.multiway.{way}" for part in "kv" for way in (0, 1)}
    assert changed == {f"model.layers.{i}.{name}.weight" for i in range(3) for name in layer}
    for name in changed:
        stem = name.removesuffix(".weight")
        down, up = (state[f"{stem}.lora_{side}.default.weight"].double() for side in "AB")
        torch.testing.assert_close(after[name].double(), before[name] + 2 * up @ down, rtol=0, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_adapts_the_vision_encoder_too(bases, files, tmp_path, family):
    recipe = replace(RECIPE, epochs=1, adapt="all", dropout=0)
    merged = train_lora(bases[family], [files["train"]], tmp_path, recipe)
    assert merged.difference < 1e-5
    before, after = weights_of(bases[family]), weights_of(merged.checkpoint)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    vision = ("vision_model", "visual_abstractor") if family == "owl" else ("vision_model", "connector")
    assert all(any(part in name for name in changed) for part in vision)
    assert not any("lm_head" in name or "embed" in name or "norm" in name for name in changed)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_the_answers_to_many_pairs_are_those_of_whole_prompts_one_by_one(bases, files, family):
    comparator = open_base(bases[family], torch.float32)
    tokens = comparator.encode(pixels_of(comparator, files["train"]))
    together = answer_logits(comparator, tokens[:3], tokens[3:])
    first, second, closing = comparator.prompt.texts
    prompt = torch.tensor([[*first, -200, *second, -200, *closing]])
    for pair, answer in enumerate(together):
        whole = comparator.logits(prompt, tokens[[pair, pair + 3]])[0, -1]
        torch.testing.assert_close(answer, whole, rtol=0, atol=1e-5)


def test_a_row_an_epoch_holds_the_losses_and_the_accuracy(runs, files):
    for run in runs.values():
        rows = log_of(run)
        assert [(row["epoch"], row["step"]) for row in rows] == [(1, 4), (2, 8), (3, 12)]
        assert all(set(row) == {"epoch", "step", "train_loss", "val_loss", "val_accuracy"} for row in rows)
        with Image.open(run / "log.png") as curve:
            assert len(set(curve.convert("L").getdata())) > 10


def test_validation_is_the_cross_entropy_over_the_vocabulary(bases, files, tmp_path):
    recipe = replace(RECIPE, epochs=1, rate=0.0)
    train_lora(bases["owl"], [files["train"]], tmp_path, recipe, [files["val"]])
    comparator = open_base(bases["owl"], torch.float32)
    pairs, losses, right = read_instructions(files["val"]), [], 0
    first, second, closing = comparator.prompt_tokens.texts
    ids = list(comparator.prompt_tokens.level_ids)
    for pair in range(VAL):
        pixels = np.stack([preprocess(path, comparator.spec.image) for path in pairs.paths(pair)])
        with torch.inference_mode():
            tokens = comparator.encode(torch.from_numpy(pixels))
            logits = comparator.logits(torch.tensor([[*first, -200, *second, -200, *closing]]), tokens)[0, -1]
        powers = np.exp(logits.double().numpy())
        losses.append(-np.log(powers[ids[pairs.level[pair]]] / powers.sum()))
        right += int(np.argmax(powers[ids]) == pairs.level[pair])
    row = log_of(tmp_path)[0]
    assert row["val_loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert row["val_accuracy"] == right / VAL


def test_micro_batches_add_up_to_the_batch(bases, files, tmp_path):
    recipe = replace(RECIPE, epochs=1, dropout=0)
    whole = train_lora(bases["owl"], [files["train"]], tmp_path / "whole", replace(recipe, micro_batch=8))
    parts = train_lora(bases["owl"], [files["train"]], tmp_path / "parts", replace(recipe, micro_batch=3))
    pixels = pixels_of(load_comparator(bases["owl"]), files["val"])
    a, b = (level_logits(load_comparator(merged.checkpoint), pixels) for merged in (whole, parts))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-3)  # Adam divides by small, slightly different numbers


@pytest.mark.parametrize(
    "moment", ["in an epoch", "before a log row", "before a save", "in a save", "merging"]
)
def test_a_run_that_is_killed_and_resumed_equals_an_uninterrupted_one(
    bases, files, runs, tmp_path, monkeypatch, moment
):
    def dies(*_):
        raise KeyboardInterrupt

    def half_a_state(state, path):
        if state["step"] == 8:
            path.write_bytes(b"half a state")
            raise KeyboardInterrupt
        real_save(state, path)

    def train(self, chosen):
        real_train(self, chosen)
        if self.step == 7:
            raise KeyboardInterrupt

    def record(self, row):
        if moment == "before a save" or row["epoch"] != 2:
            real_record(self, row)
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    real_save, real_train, real_record = torch.save, LoraTrainer.train, LoraTrainer.record
    monkeypatch.setattr(lora, "STEPS_PER_SAVE", 3)
    run = bases["owl"], [files["train"]], tmp_path, RECIPE, [files["val"]]
    with monkeypatch.context() as patch:
        match moment:
            case "in an epoch":
                patch.setattr(LoraTrainer, "train", train)
            case "in a save":
                patch.setattr(torch, "save", half_a_state)
            case "merging":
                patch.setattr(lora, "save_merged", dies)
            case _:
                patch.setattr(LoraTrainer, "record", record)
        with pytest.raises(KeyboardInterrupt):
            train_lora(*run)
    assert not (tmp_path / "checkpoint").exists()
    saved = torch.load(tmp_path / "state.pt", weights_only=True)["step"]
    assert saved == (12 if moment == "merging" else 6)
    train_lora(*run)
    states = [torch.load(folder / "state.pt", weights_only=True) for folder in (tmp_path, runs["owl"])]
    assert same_tensors(*states)
    assert same_tensors(*(weights_of(folder / "checkpoint") for folder in (tmp_path, runs["owl"])))
    assert log_of(tmp_path) == log_of(runs["owl"])


def test_a_finished_run_stays_as_it_is(bases, files, runs, monkeypatch):
    def tree() -> dict[str, tuple[bytes, int]]:
        found = [file for file in sorted(runs["owl"].rglob("*")) if file.is_file()]
        return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in found}

    before = tree()
    merged = train_lora(bases["owl"], [files["train"]], runs["owl"], RECIPE, [files["val"]])
    after = tree()
    assert {name: content for name, (content, _) in after.items()} == {n: c for n, (c, _) in before.items()}
    assert after["model.safetensors"] == before["model.safetensors"]
    assert merged.checkpoint == runs["owl"] / "checkpoint"
    assert merged.difference < 1e-5


def test_the_base_keeps_its_precision_and_its_files(bases, files, tmp_path):
    base = shutil.copytree(bases["idefics3"], tmp_path / "base")
    half = {name: value.bfloat16() for name, value in weights_of(base).items()}
    save_file(half, base / "model.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    (base / "LICENSE.md").write_text("for research")
    (base / "modeling.py").write_text("import antigravity")
    merged = train_lora(base, [files["train"]], tmp_path / "run", replace(RECIPE, epochs=1))
    assert {value.dtype for value in weights_of(merged.checkpoint).values()} == {torch.bfloat16}
    assert json.loads((merged.checkpoint / "config.json").read_text())["dtype"] == "bfloat16"
    carried = {file.name for file in merged.checkpoint.iterdir()} - {"generation_config.json"}
    ours = {file.name for file in base.iterdir()} - {"generation_config.json"}
    assert carried == ours - {"modeling.py"} | {"training.json"}
    # Two or three significant digits of a weight.
    assert 1e-5 < merged.difference < 1
    assert {p.dtype for p in load_comparator(merged.checkpoint, None).parameters()} == {torch.bfloat16}


def test_a_base_of_torch_shards_becomes_safetensors(bases, files, tmp_path, monkeypatch):
    base = shutil.copytree(bases["owl"], tmp_path / "base")
    weights = {name: value.half() for name, value in weights_of(base).items()}
    (base / "model.safetensors").unlink()
    shards: dict[str, dict[str, torch.Tensor]] = {"a.bin": {}, "b.bin": {}}
    for i, (name, value) in enumerate(weights.items()):
        shards["ab"[i % 2] + ".bin"][name] = value
    for file, shard in shards.items():
        torch.save(shard, base / file)
    where = {name: file for file, shard in shards.items() for name in shard}
    (base / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    before = [(base / file).read_bytes() for file in shards]
    monkeypatch.setattr(adapter, "SHARD_SIZE", "500KB")
    merged = train_lora(base, [files["train"]], tmp_path / "run", replace(RECIPE, epochs=1))
    assert [(base / file).read_bytes() for file in shards] == before
    written = {file.name for file in merged.checkpoint.iterdir()}
    assert "model.safetensors.index.json" in written
    assert not any(file.endswith((".bin", ".bin.index.json")) for file in written)
    after = dict(load_comparator(merged.checkpoint, None).state_dict())
    assert {value.dtype for value in after.values()} == {torch.float16}
    assert sum(not torch.equal(after[name], weights[name]) for name in weights) == 27


def test_visual_tokens_that_are_not_kept_are_made_again(bases, files, tmp_path, monkeypatch):
    kept = train_lora(bases["owl"], [files["train"]], tmp_path / "kept", replace(RECIPE, epochs=1))
    monkeypatch.setattr(answers, "KEPT_BYTES", 3 * 9 * 96 * 4)
    few = train_lora(bases["owl"], [files["train"]], tmp_path / "few", replace(RECIPE, epochs=1))
    assert same_tensors(*(weights_of(merged.checkpoint) for merged in (kept, few)))


def test_every_layer_with_a_weight_of_its_own_modality_has_an_adapter(bases):
    names = Counter(
        name.split("layers.")[1].partition(".")[0]
        for name in adaptable_layers(open_base(bases["owl"], torch.float32), RECIPE)
    )
    assert names == {"0": 9, "1": 9, "2": 9}


# What is refused


def test_a_comparator_without_a_language_model_is_refused(tiny_comparator, files, tmp_path):
    nano: NanoComparator = tiny_comparator()
    nano.save(tmp_path / "nano")
    with pytest.raises(CheckpointError, match="no language model to adapt; train it with 'c2s train nano'"):
        train_lora(tmp_path / "nano", [files["train"]], tmp_path / "run", RECIPE)
    assert not (tmp_path / "run").exists()


def test_a_base_without_a_tokenizer_is_refused(bases, files, tmp_path):
    base = shutil.copytree(bases["owl"], tmp_path / "base")
    (base / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        train_lora(base, [files["train"]], tmp_path / "run", RECIPE)


def test_a_folder_that_is_no_checkpoint_is_refused(files, tmp_path):
    with pytest.raises(CheckpointError, match=r"no readable config\.json"):
        train_lora(tmp_path, [files["train"]], tmp_path / "run", RECIPE)


@pytest.mark.parametrize("change", ["recipe", "base", "pairs", "val"])
def test_another_run_in_the_same_folder_is_refused(bases, files, runs, tmp_path, change):
    base, recipe, val = bases["owl"], RECIPE, [files["val"]]
    pairs = [files["train"]] if change != "pairs" else [files["train"], files["val"]]
    if change == "base":
        base = runs["owl"] / "checkpoint"
        shutil.copytree(base, tmp_path / "base")
        base = tmp_path / "base"
    if change == "recipe":
        recipe = replace(RECIPE, rate=1e-5)
    if change == "val":
        val = []
    with pytest.raises(CheckpointError, match=r"another recipe, model or data; choose .*\.$"):
        train_lora(base, pairs, runs["owl"], recipe, val)


def test_a_result_in_its_bases_place_is_refused(files, runs):
    with pytest.raises(CheckpointError, match="take the place of its base"):
        train_lora(runs["owl"] / "checkpoint", [files["train"]], runs["owl"], RECIPE)


def test_pairs_that_are_missing_or_name_a_missing_or_broken_image_are_refused(bases, files, tmp_path):
    with pytest.raises(LabelError, match="no pairs to train on"):
        train_lora(bases["owl"], [], tmp_path / "run", RECIPE)
    folder = shutil.copytree(files["train"].parent, tmp_path / "data")
    name = read_instructions(folder / "train.jsonl").images[0][0]
    (folder / name).write_bytes(b"no picture")
    with pytest.raises(ImageError, match=name):
        train_lora(bases["owl"], [folder / "train.jsonl"], tmp_path / "run", RECIPE)
    (folder / name).unlink()
    with pytest.raises(LabelError, match=rf"{name}, an image that the pairs name, is not there"):
        train_lora(bases["owl"], [folder / "train.jsonl"], tmp_path / "run", RECIPE)


def test_a_loss_that_is_no_number_ends_the_run(bases, files, tmp_path):
    with pytest.raises(CheckpointError, match="is not a number; lower --rate"):
        train_lora(bases["owl"], [files["train"]], tmp_path, replace(RECIPE, rate=1e30))


def test_level_ids_are_those_that_scores_are_read_by(bases):
    for base in bases.values():
        comparator = open_base(base, torch.float32)
        assert level_ids(comparator) == comparator.prompt.level_ids
