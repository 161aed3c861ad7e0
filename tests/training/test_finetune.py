"""Fine-tuning on pictures blurred to known levels: it learns, it survives, it refuses what does not fit."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from blurred_table import write_blurred_table
from PIL import Image
from same_tensors import same_tensors
from scipy.optimize import minimize
from scipy.stats import norm, spearmanr

from compare2score.anchors.select import select_anchors
from compare2score.comparator import abstractor, load_comparator
from compare2score.comparator.nano import NanoComparator
from compare2score.errors import CheckpointError, LabelError
from compare2score.image import preprocess
from compare2score.training import finetune, nano
from compare2score.training.batches import pair_batch
from compare2score.training.corpus import Corpus, read_corpus
from compare2score.training.features import FrozenFeatures, cached_features
from compare2score.training.finetune import Finetuner
from compare2score.training.nano import calibrate_abstractor, train_nano
from compare2score.training.recipe import Recipe

TRAIN, VAL = 48, 16
RECIPE = Recipe(
    probe_epochs=1,
    encoder_epochs=1,
    decoder_epochs=2,
    batch=16,
    partners=15,
    frozen_stages=2,
    encoder_rate=1e-3,
    decoder_rate=4e-3,
)

ONLY_DECODER = replace(RECIPE, probe_epochs=0, encoder_epochs=0, decoder_epochs=1)


@pytest.fixture(autouse=True, scope="module")
def _on_the_processor():
    """What is compared to the bit is computed where it is reproducible."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, texture) -> Path:
    """Pictures blurred by up to 3 pixels, labelled by it; every fourth is for validation."""
    splits = ["train" if i % 4 else "val" for i in range(TRAIN + VAL)]
    return write_blurred_table(tmp_path_factory.mktemp("blurred"), texture, splits)


@pytest.fixture(scope="module")
def corpus(dataset) -> Corpus:
    return read_corpus([dataset], [], seed=0)


@pytest.fixture(scope="module")
def fresh(tiny_comparator, corpus, tmp_path_factory) -> Callable[..., tuple[NanoComparator, FrozenFeatures]]:
    """Makes the same untrained comparator again and again, with its features."""
    cache = tmp_path_factory.mktemp("features")

    def make(comparison: str = "late") -> tuple[NanoComparator, FrozenFeatures]:
        model = tiny_comparator(comparison)
        features = cached_features(model, corpus, RECIPE.frozen_stages, cache)
        calibrate_abstractor(model, features)
        return model, features

    return make


@pytest.fixture(scope="module")
def trained(fresh, corpus, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("run")
    model, features = fresh()
    finetuner = Finetuner(model, corpus, features, RECIPE, folder)
    finetuner.resume()
    finetuner.run()
    return folder


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def same_runs(a: Path, b: Path) -> bool:
    states = [torch.load(folder / "state.pt", weights_only=True) for folder in (a, b)]
    weights = [load_comparator(folder / "checkpoint").state_dict() for folder in (a, b)]
    return same_tensors(*states) and same_tensors(*weights) and log_of(a) == log_of(b)


def test_the_loss_falls_and_the_scores_follow_the_labels(fresh, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "plot_log", lambda folder: None)  # slower than such an epoch
    model, features = fresh()
    monkeypatch.setattr(abstractor, "FEATURE_DROPOUT", 0.0)  # of the few features here half are too many
    recipe = replace(RECIPE, probe_epochs=4, encoder_epochs=16, decoder_epochs=20, batch=8, encoder_rate=2e-3)
    Finetuner(model, corpus, features, recipe, tmp_path).run()
    rows = log_of(tmp_path)
    for first, last in ((0, 19), (20, 39)):  # the probe's loss, and the decoder's
        assert rows[last]["train_loss"] < 0.9 * rows[first]["train_loss"]
        assert rows[last]["val_loss"] < 0.95 * rows[first]["val_loss"]
        # Of sixteen pictures in random order one in twenty does as well.
        assert rows[last][f"val_srcc_{corpus.parts[0].name}"] > 0.43


def test_every_epoch_has_a_row_in_the_log(trained, corpus):
    rows = log_of(trained)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert [row.pop("phase") for row in rows] == ["probe", "encoder", "decoder", "decoder"]
    for row in rows:
        assert set(row) == {"epoch", "train_loss", "val_loss", f"val_srcc_{corpus.parts[0].name}"}
        assert all(math.isfinite(value) for value in row.values())


def test_each_phase_changes_its_own_modules(fresh, corpus, tmp_path):
    model, features = fresh()
    finetuner = Finetuner(model, corpus, features, RECIPE, tmp_path)
    labelled = replace(RECIPE, distil=False)
    expected = [
        (RECIPE.phase_of(0), {"abstractor", "probe"}),
        (RECIPE.phase_of(1), {"abstractor", "encoder", "probe"}),
        (RECIPE.phase_of(2), {"decoder"}),
        (labelled.phase_of(2), {"abstractor", "decoder"}),
    ]

    def weights() -> dict[str, dict[str, torch.Tensor]]:
        modules = {
            "encoder": model.encoder,
            "abstractor": model.abstractor,
            "decoder": model.decoder,
            "probe": finetuner.probe,
        }
        return {
            name: {k: v.clone() for k, v in module.state_dict().items()} for name, module in modules.items()
        }

    for phase, changed in expected:
        before = weights()
        finetuner.begin(phase)
        finetuner.run_epoch()
        after = weights()
        assert {name for name in before if not same_tensors(before[name], after[name])} == changed


@pytest.fixture(scope="module")
def two_kinds(dataset, tmp_path_factory) -> Corpus:
    """The table, and one of the same pictures in other colours, which has an expert."""
    folder = tmp_path_factory.mktemp("other")
    lines = (dataset / "labels.csv").read_text()
    (folder / "labels.csv").write_text(lines)
    for path in dataset.glob("*.png"):
        with Image.open(path) as picture:
            Image.merge("RGB", picture.convert("RGB").split()[::-1]).point(lambda x: x // 2).save(
                folder / path.name
            )
    return read_corpus([dataset, folder], [], seed=0, expert=[folder.name])


@pytest.fixture(scope="module")
def with_expert(two_kinds, tiny_comparator, tmp_path_factory) -> Callable[[Path], Finetuner]:
    """Makes the same run with an expert again and again."""
    cache = tmp_path_factory.mktemp("features")

    def make(folder: Path) -> Finetuner:
        model = tiny_comparator(experts=1)
        features = cached_features(model, two_kinds, RECIPE.frozen_stages, cache)
        calibrate_abstractor(model, features)
        return Finetuner(model, two_kinds, features, RECIPE, folder)

    return make


def test_every_image_goes_to_the_abstractor_of_its_kind(with_expert, two_kinds, tmp_path):
    finetuner = with_expert(tmp_path)
    model = finetuner.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    finetuner.run_epoch()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.rpartition(".project")[0] for name in changed if ".project" in name} == {
        "abstractor",
        "mixture.experts.0",
    }
    assert not any(name.startswith(("mixture.gate", "encoder", "decoder")) for name in changed)
    with torch.no_grad():
        model.abstractors[1].position.fill_(torch.nan)
    for part in two_kinds.parts:
        tokens = finetuner.tokens_of_all(part.items)
        assert bool(tokens.isnan().all() if part.kind else tokens.isfinite().all())
    assert {part.kind for part in two_kinds.parts} == {0, 1}


def test_the_gate_learns_the_kinds_before_the_decoder_needs_it(with_expert, tmp_path):
    finetuner = with_expert(tmp_path)
    finetuner.run()
    model = finetuner.model
    statistics = torch.from_numpy(finetuner.features.statistics[0])
    with torch.inference_mode():
        told = model.mixture.gate(model.abstractor.standardise(statistics)).argmax(dim=1).numpy()
    assert (told == finetuner.kinds).mean() > 0.9


def test_an_expert_without_a_probe_is_refused(tmp_path):
    with pytest.raises(LabelError, match=r"learns by the probe; give --probe-epochs"):
        train_nano([], [], tmp_path / "run", ONLY_DECODER, expert=["table"])
    assert not (tmp_path / "run").exists()


def test_a_run_with_an_expert_goes_on_where_it_was_killed(with_expert, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with_expert(whole).run()
    assert [row["phase"] for row in log_of(whole)] == ["probe", "encoder", "decoder", "decoder"]
    for killed_in in (2, 3):
        with monkeypatch.context() as patch:
            run_epoch = Finetuner.run_epoch

            def dies(self, epoch=killed_in, own=run_epoch):
                if self.epoch + 1 == epoch:
                    raise KeyboardInterrupt
                own(self)

            patch.setattr(Finetuner, "run_epoch", dies)
            finetuner = with_expert(cut)
            finetuner.resume()
            with pytest.raises(KeyboardInterrupt):
                finetuner.run()
    finetuner = with_expert(cut)
    finetuner.resume()
    finetuner.run()
    assert same_runs(whole, cut)


def test_a_taught_decoder_follows_the_probe_across_tables(fresh, dataset, tmp_path):
    """Two tables of the same pictures: labels say nothing of pairs between them."""
    other = tmp_path / "other"
    other.mkdir()
    lines = (dataset / "labels.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    moved = [f"{dataset}/{name},{float(mos) + 1000},{std},{split}" for name, mos, std, split in rows]
    (other / "labels.csv").write_text("\n".join([lines[0], *moved]))
    both = read_corpus([dataset, other], [], seed=0)
    model, _ = fresh()
    features = cached_features(model, both, RECIPE.frozen_stages, tmp_path / "features")
    recipe = replace(RECIPE, probe_epochs=6, encoder_epochs=0, decoder_epochs=12)
    finetuner = Finetuner(model, both, features, recipe, other)
    finetuner.run()
    first, second = (part.items for part in both.split("train"))
    quality = finetuner.probe(finetuner.tokens_of_all(np.concatenate([first, second]))).detach().numpy()
    with torch.inference_mode():
        scores = finetuner.scores(first, second[:: len(second) // 5][:5])
    assert spearmanr(scores, quality[: len(first)]).statistic > 0.9


def test_the_learning_curve_is_drawn(trained):
    with Image.open(trained / "log.png") as curve:
        assert curve.format == "PNG"
        assert len(set(curve.convert("L").getdata())) > 10


def test_only_the_frozen_weights_stay(trained, fresh):
    before, after = fresh()[0].state_dict(), load_comparator(trained / "checkpoint").state_dict()
    kept = {name for name in before if torch.equal(before[name], after[name])}
    frozen = ("encoder.stem.", "encoder.stages.0.", "encoder.stages.1.", "abstractor.feature_")
    assert kept == {n for n in before if n.startswith(frozen) or n.endswith("depthwise.weight")}


def test_the_checkpoint_is_the_state_that_is_resumed(trained):
    state = torch.load(trained / "state.pt", weights_only=True)
    assert state["epoch"] == RECIPE.epochs == 4
    assert same_tensors(state["model"], dict(load_comparator(trained / "checkpoint").state_dict()))


@pytest.mark.parametrize("epoch", [3, 4], ids=["first of a phase", "second of a phase"])
@pytest.mark.parametrize("moment", ["before its log row", "between log row and save", "in the save"])
def test_a_run_killed_and_resumed_equals_an_uninterrupted_one(
    trained, fresh, corpus, tmp_path, monkeypatch, moment, epoch
):
    def dies(self, *_):
        raise KeyboardInterrupt

    def row_then_death(self, row):
        real_record(self, row)
        if self.epoch == epoch:
            raise KeyboardInterrupt

    def death_then_row(self, row):
        if self.epoch == epoch:
            raise KeyboardInterrupt
        real_record(self, row)

    def half_a_state(state, path):
        if state["epoch"] == epoch:
            path.write_bytes(b"half a state")
            raise KeyboardInterrupt
        real_save(state, path)

    real_record, real_save = Finetuner.record, torch.save
    model, features = fresh()
    with monkeypatch.context() as patch:
        if moment == "in the save":
            patch.setattr(torch, "save", half_a_state)
        else:
            patch.setattr(Finetuner, "record", death_then_row if "before" in moment else row_then_death)
        with pytest.raises(KeyboardInterrupt):
            Finetuner(model, corpus, features, RECIPE, tmp_path).run()
    assert torch.load(tmp_path / "state.pt", weights_only=True)["epoch"] == epoch - 1
    model, features = fresh()
    resumed = Finetuner(model, corpus, features, RECIPE, tmp_path)
    resumed.resume()
    assert resumed.epoch == epoch - 1
    resumed.run()
    assert same_runs(tmp_path, trained)


def test_a_finished_run_stays_as_it_is(trained, fresh, corpus):
    before = (trained / "state.pt").read_bytes(), log_of(trained)
    model, features = fresh()
    finetuner = Finetuner(model, corpus, features, RECIPE, trained)
    finetuner.resume()
    finetuner.run()
    assert ((trained / "state.pt").read_bytes(), log_of(trained)) == before


def test_a_run_killed_in_its_first_epoch_starts_over(trained, fresh, corpus, tmp_path):
    (tmp_path / "log.jsonl").write_text('{"epoch": 1, "train_loss": 9.0}\n{"epo')
    model, features = fresh()
    finetuner = Finetuner(model, corpus, features, ONLY_DECODER, tmp_path)
    finetuner.resume()
    finetuner.run()
    assert [row["epoch"] for row in log_of(tmp_path)] == [1]


@pytest.mark.parametrize("change", ["recipe", "model", "data"])
def test_another_run_in_the_same_folder_is_refused(trained, fresh, corpus, change):
    recipe = replace(RECIPE, decoder_rate=1e-5) if change == "recipe" else RECIPE
    model, features = fresh("causal" if change == "model" else "late")
    if change == "data":
        part = corpus.parts[0]
        fewer = replace(part, items=part.items[1:], mos=part.mos[1:], std=part.std[1:])
        corpus = replace(corpus, parts=(fewer, *corpus.parts[1:]))
    finetuner = Finetuner(model, corpus, features, recipe, trained)
    with pytest.raises(CheckpointError, match=r"another recipe, model or data; choose .*\.$"):
        finetuner.resume()


@pytest.mark.parametrize("part", [0, 0.5, 0.99])
def test_a_damaged_state_is_refused(trained, fresh, corpus, tmp_path, part):
    data = (trained / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(data[: int(len(data) * part)])
    model, features = fresh()
    with pytest.raises(CheckpointError, match="damaged"):
        Finetuner(model, corpus, features, RECIPE, tmp_path).resume()


def test_a_corpus_smaller_than_a_batch_is_refused(fresh, corpus, tmp_path):
    model, features = fresh()
    with pytest.raises(LabelError, match=f"{TRAIN + 1} training images"):
        Finetuner(model, corpus, features, replace(RECIPE, batch=TRAIN + 1), tmp_path)


def test_a_table_without_anchors_is_refused_before_training(fresh, corpus, tmp_path):
    part = corpus.parts[0]
    gap = replace(part, mos=np.where(part.mos > part.mos.mean(), 100.0, 0.0))
    model, features = fresh()
    with pytest.raises(LabelError, match="have a MOS in"):
        Finetuner(model, replace(corpus, parts=(gap, *corpus.parts[1:])), features, RECIPE, tmp_path)


@pytest.mark.parametrize("comparison", ["late", "causal"])
def test_the_loss_is_the_cross_entropy_of_the_levels(fresh, corpus, tmp_path, comparison):
    model, features = fresh(comparison)
    model.config = replace(model.config, temperature=2.5)
    part = corpus.parts[0]
    batch = pair_batch(part, np.arange(8), 3, np.random.default_rng(0))
    finetuner = Finetuner(model, corpus, features, ONLY_DECODER, tmp_path)
    model.eval()
    loss = finetuner.loss(batch, np.zeros(8, dtype=np.intp)).item()
    pixels = [preprocess(corpus.items[i].path, model.config.image) for i in batch.items]
    with torch.inference_mode():
        tokens = model.encode(torch.from_numpy(np.stack(pixels)))
        logits = model.compare(tokens, *model.prefix(tokens)).double().numpy()
    expected = []
    for first, second, target in zip(batch.first, batch.second, batch.targets, strict=True):
        powers = np.exp(logits[second, first] / 2.5)
        expected.append(-(target * np.log(powers / powers.sum())).sum())
    assert loss == pytest.approx(np.mean(expected), rel=0.02)  # bfloat16


def test_validation_scores_are_the_maximum_a_posteriori(trained, fresh, corpus, tmp_path):
    _, features = fresh()
    model = load_comparator(trained / "checkpoint")
    train, val = corpus.parts
    items = val.items[:4]
    finetuner = Finetuner(model, corpus, features, ONLY_DECODER, tmp_path)
    model.eval()
    with torch.inference_mode():
        scores = finetuner.scores(items, finetuner.anchors[val.name])
    anchors = train.items[select_anchors(train.mos, train.std)]
    weights = np.array([0, 0.25, 0.5, 0.75, 1])

    def preferred(second: int, first: int) -> float:
        pair = [preprocess(corpus.items[i].path, model.config.image) for i in (second, first)]
        with torch.inference_mode():
            tokens = model.encode(torch.from_numpy(np.stack(pair)))
            logits = model.compare(tokens[:1], *model.prefix(tokens[1:])).double().numpy().ravel()
        return float(weights @ np.exp(logits) / np.exp(logits).sum())

    among = {(i, j): preferred(i, j) for i in anchors for j in anchors if i != j}
    for item, score in zip(items, scores, strict=True):
        matrix = np.full((6, 6), 0.5)
        for r, i in enumerate(anchors):
            for c, j in enumerate(anchors):
                if r != c:
                    matrix[r, c] = (among[i, j] + 1 - among[j, i]) / 2
            matrix[5, r] = preferred(item, i)
            matrix[r, 5] = 1 - matrix[5, r]

        def loss(q: np.ndarray, matrix: np.ndarray = matrix) -> float:
            return -(matrix * norm.logcdf(q[:, None] - q[None])).sum() + (q @ q) / 2

        assert score == pytest.approx(minimize(loss, np.zeros(6)).x[5], abs=0.05)  # bfloat16


def test_rates_rise_linearly_and_fall_to_nothing_as_a_cosine(fresh, corpus, tmp_path):
    model, features = fresh()
    finetuner = Finetuner(model, corpus, features, replace(RECIPE, probe_epochs=10, warmup=0.2), tmp_path)
    rates = [finetuner.rate(step) for step in range(31)]  # three steps an epoch
    np.testing.assert_allclose(rates[:6], np.arange(1, 7) / 6)
    np.testing.assert_allclose(rates[6:], [math.cos(math.pi * k / 48) ** 2 for k in range(25)], atol=1e-12)


def test_training_calibrates_the_abstractor_on_the_corpus(fresh, corpus):
    model, _ = fresh()
    pixels = np.stack([preprocess(item.path, model.config.image) for item in corpus.items])
    with torch.inference_mode():
        maps = model.encoder(torch.from_numpy(pixels))[1:]
    moments = [moment for m in maps for moment in (m.mean(dim=(2, 3)), m.std(dim=(2, 3), correction=0))]
    expected = torch.cat(moments, dim=1)
    # The last token describes the whole map; bfloat16 in the cached stages.
    mean, deviation = model.abstractor.feature_mean[-1], 1 / model.abstractor.feature_scale[-1]
    np.testing.assert_allclose(mean, expected.mean(dim=0), atol=0.02)
    np.testing.assert_allclose(deviation, expected.std(dim=0), rtol=0.1, atol=2e-3)


def test_training_in_one_call_and_again(tiny_comparator, dataset, texture, tmp_path, monkeypatch):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for i in range(8):
        Image.fromarray(texture(100 + i, 96)).save(photographs / f"{i}.jpg")
    asked = []

    def untrained(*arguments):
        asked.append(arguments)
        return tiny_comparator("causal")

    monkeypatch.setattr(nano, "pretrained_nano", untrained)
    out, recipe = tmp_path / "new" / "out", ONLY_DECODER
    checkpoint = train_nano([dataset], [photographs], out, recipe, size=64, layers=2, comparison="causal")
    assert asked == [(2, 64, "causal", 0)]
    assert checkpoint == out / "checkpoint"
    weights, rows = load_comparator(checkpoint).state_dict(), log_of(out)
    assert [row["epoch"] for row in rows] == [1]
    train_nano([dataset], [photographs], out, recipe, size=64, layers=2, comparison="causal")
    assert same_tensors(dict(load_comparator(checkpoint).state_dict()), dict(weights))
    assert log_of(out) == rows
    with pytest.raises(CheckpointError, match="choose another --out"):
        train_nano([dataset], [photographs], out, replace(recipe, seed=1), size=64)


KILLED_RUN = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from compare2score.comparator import abstractor, load_comparator
from compare2score.training import features, finetune, nano, recipe

untrained, dataset, out, moment = sys.argv[1:]
nano.pretrained_nano = lambda *_: load_comparator(untrained)
features.BATCH, features.BATCHES_PER_SAVE = 4, 3
pixel_batch, record, save = features.pixel_batch, finetune.Finetuner.record, torch.save

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def caching(items, model):
    if moment == "caching" and items[0].path.name == {twentieth!r}:
        die()
    return pixel_batch(items, model)

def logging(self, row):
    record(self, row)
    if moment == "logging" and self.epoch == 2:
        die()

def saving(state, path):
    save(state, path)
    if moment == "saving" and state["epoch"] == 3:
        os.truncate(path, 5000)
        die()

features.pixel_batch, finetune.Finetuner.record, torch.save = caching, logging, saving
nano.train_nano([Path(dataset)], [], Path(out), recipe.Recipe(
    probe_epochs=1, encoder_epochs=2, decoder_epochs=1, batch=16, partners=4, frozen_stages=2))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_run_killed_by_the_system_again_and_again_equals_an_uninterrupted_one(
    tiny_comparator, dataset, corpus, tmp_path
):
    tiny_comparator().save(tmp_path / "untrained")
    program = KILLED_RUN.replace("{twentieth!r}", repr(corpus.items[20].path.name))

    def run(out: Path, moment: str) -> int:
        command = [sys.executable, "-c", program, tmp_path / "untrained", dataset, out, moment]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode

    assert run(tmp_path / "whole", "never") == 0
    for moment in ("caching", "logging", "saving"):
        assert run(tmp_path / "killed", moment) == -signal.SIGKILL
    done = json.loads((tmp_path / "killed" / "features" / "features.json").read_text())["done"]
    assert done == TRAIN + VAL
    assert [row["epoch"] for row in log_of(tmp_path / "killed")] == [1, 2, 3]
    assert torch.load(tmp_path / "killed" / "state.pt", weights_only=True)["epoch"] == 2
    assert run(tmp_path / "killed", "never") == 0
    assert same_runs(tmp_path / "killed", tmp_path / "whole")
