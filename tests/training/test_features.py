"""The cache of frozen features: what it holds, when it is reused, what it survives."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compare2score.image import preprocess
from compare2score.training import features
from compare2score.training.corpus import Corpus, Item
from compare2score.training.features import cached_features

IMAGES = 11
STAGES = 2
CPU = torch.device("cpu")


@pytest.fixture
def corpus(tmp_path, texture) -> Corpus:
    """Images in a format whose files keep their size whatever they show."""
    items = []
    for i in range(IMAGES):
        path = tmp_path / f"{i}.bmp"
        Image.fromarray(texture(i)[: 64 - 4 * (i % 3)]).save(path)
        items.append(Item(path))
    items.append(Item(tmp_path / "0.bmp", "gaussian_noise", 2, seed=1))
    return Corpus(tuple(items), ())


@pytest.fixture
def prepared(monkeypatch) -> list[str]:
    """Names of the images prepared since the list was cleared; two images a batch, two batches a save."""
    names: list[str] = []
    real = features.pixel_batch

    def recording(items, model):
        names.extend(item.path.name for item in items)
        return real(items, model)

    monkeypatch.setattr(features, "pixel_batch", recording)
    monkeypatch.setattr(features, "BATCH", 2)
    monkeypatch.setattr(features, "BATCHES_PER_SAVE", 2)
    return names


def kept(cache: features.FrozenFeatures) -> tuple[bytes, bytes]:
    return cache.maps.tobytes(), cache.statistics.tobytes()


def dies_at(name: str, monkeypatch) -> None:
    """Lets the next filling be killed when it comes to the image `name`."""
    alive = features.pixel_batch

    def mortal(items, model):
        if name in {item.path.name for item in items}:
            raise KeyboardInterrupt
        return alive(items, model)

    monkeypatch.setattr(features, "pixel_batch", mortal)


@pytest.mark.parametrize("stages", [0, 1, 2, 3])
def test_the_cache_holds_what_the_frozen_stages_compute(corpus, tiny_comparator, tmp_path, stages):
    model = tiny_comparator()
    cache = cached_features(model, corpus, stages, tmp_path / "cache")
    pixels = np.stack([preprocess(item.pixels(), model.config.image) for item in corpus.items])
    everything = np.arange(len(corpus.items))
    for variant, view in enumerate((pixels, pixels[..., ::-1].copy())):
        with torch.inference_mode():
            expected = model.run_frozen(torch.from_numpy(view), stages)
        found = cache.of(everything, np.full(len(everything), variant), CPU)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.shape == theirs.shape
            # bfloat16 in the convolutions.
            assert (ours.float() - theirs).norm() <= 0.02 * theirs.norm()
    assert cache.maps[0, 3].tobytes() != cache.maps[1, 3].tobytes()


def test_items_and_their_variants_are_picked_together(corpus, tiny_comparator, tmp_path):
    cache = cached_features(tiny_comparator(), corpus, STAGES, tmp_path / "cache")
    maps, statistics = cache.of(np.array([5, 2, 5]), np.array([0, 1, 1]), CPU)
    for row, (variant, item) in enumerate([(0, 5), (1, 2), (1, 5)]):
        np.testing.assert_array_equal(maps[row].permute(1, 2, 0).numpy(), cache.maps[variant, item])
        np.testing.assert_array_equal(statistics[row].numpy(), cache.statistics[variant, item])
    assert maps.is_contiguous(memory_format=torch.channels_last)


def test_the_cache_is_reused_when_nothing_changed(corpus, tiny_comparator, tmp_path, prepared):
    first = kept(cached_features(tiny_comparator(), corpus, STAGES, tmp_path / "cache"))
    prepared.clear()
    assert kept(cached_features(tiny_comparator(), corpus, STAGES, tmp_path / "cache")) == first
    assert prepared == ["0.bmp"]  # one image tells the shapes


def test_a_data_set_may_be_copied_anew(corpus, tiny_comparator, tmp_path, prepared):
    first = kept(cached_features(tiny_comparator(), corpus, STAGES, tmp_path / "cache"))
    (tmp_path / "copy").mkdir()
    copies = [replace(item, path=tmp_path / "copy" / item.path.name) for item in corpus.items]
    for item, copied in zip(corpus.items, copies, strict=True):
        copied.path.write_bytes(item.path.read_bytes())
    prepared.clear()
    again = cached_features(tiny_comparator(), Corpus(tuple(copies), ()), STAGES, tmp_path / "cache")
    assert kept(again) == first
    assert prepared == ["0.bmp"]


def test_weights_that_are_not_frozen_do_not_matter(corpus, tiny_comparator, tmp_path, prepared):
    first = kept(cached_features(tiny_comparator(), corpus, STAGES, tmp_path / "cache"))
    trained = tiny_comparator()
    with torch.no_grad():
        trained.encoder.stages[STAGES][0].project.weight.add_(1)
        trained.decoder.level_head.weight.add_(1)
    prepared.clear()
    assert kept(cached_features(trained, corpus, STAGES, tmp_path / "cache")) == first
    assert prepared == ["0.bmp"]


def change_pixels(corpus: Corpus) -> Corpus:
    path = corpus.items[4].path
    size, before = path.stat().st_size, path.stat().st_mtime_ns
    pixels = np.asarray(Image.open(path))
    Image.fromarray(255 - pixels).save(path)
    assert path.stat().st_size == size
    os.utime(path, ns=(before, before))
    return corpus


def change_size(corpus: Corpus) -> Corpus:
    path = corpus.items[4].path
    stamp = path.stat().st_mtime_ns
    Image.fromarray(np.asarray(Image.open(path))[:40]).save(path)
    os.utime(path, ns=(stamp, stamp))
    return corpus


def change_distortion(corpus: Corpus) -> Corpus:
    last = corpus.items[-1]
    return Corpus((*corpus.items[:-1], Item(last.path, last.distortion, 4, last.seed)), ())


def change_order(corpus: Corpus) -> Corpus:
    return Corpus(corpus.items[::-1], ())


@pytest.mark.parametrize("change", [change_pixels, change_size, change_distortion, change_order])
def test_the_cache_is_filled_anew_when_an_image_changed(corpus, tiny_comparator, tmp_path, change):
    first = kept(cached_features(tiny_comparator(), corpus, STAGES, tmp_path / "cache"))
    changed = change(corpus)
    again = kept(cached_features(tiny_comparator(), changed, STAGES, tmp_path / "cache"))
    assert again != first
    assert again == kept(cached_features(tiny_comparator(), changed, STAGES, tmp_path / "new"))


@pytest.mark.parametrize("stage", [None, 0, 1])
def test_the_cache_is_filled_anew_when_frozen_weights_changed(corpus, tiny_comparator, tmp_path, stage):
    first = kept(cached_features(tiny_comparator(), corpus, STAGES, tmp_path / "cache"))
    other = tiny_comparator()
    with torch.no_grad():
        layer = other.encoder.stem if stage is None else other.encoder.stages[stage][0].project
        layer.bias.add_(0.5)
    again = kept(cached_features(other, corpus, STAGES, tmp_path / "cache"))
    assert again != first
    assert again == kept(cached_features(other, corpus, STAGES, tmp_path / "new"))


def test_a_killed_filling_goes_on_where_it_was_saved(
    corpus, tiny_comparator, tmp_path, prepared, monkeypatch
):
    whole = kept(cached_features(tiny_comparator(), corpus, STAGES, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        dies_at("7.bmp", patch)
        with pytest.raises(KeyboardInterrupt):
            cached_features(tiny_comparator(), corpus, STAGES, tmp_path / "cache")
    assert json.loads((tmp_path / "cache" / "features.json").read_text())["done"] == 4
    prepared.clear()
    assert kept(cached_features(tiny_comparator(), corpus, STAGES, tmp_path / "cache")) == whole
    assert prepared == ["0.bmp", *(f"{i}.bmp" for i in range(4, IMAGES)), "0.bmp"]


def test_images_beyond_the_recorded_ones_are_computed_again(corpus, tiny_comparator, tmp_path, prepared):
    cache = cached_features(tiny_comparator(), corpus, STAGES, tmp_path / "cache")
    whole = kept(cache)
    cache.maps[:, 8:] = 0
    cache.statistics[:, 8:] = 0
    record = tmp_path / "cache" / "features.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "done": 8}))
    assert kept(cached_features(tiny_comparator(), corpus, STAGES, tmp_path / "cache")) == whole


def test_a_killed_filling_for_other_weights_does_not_pass_for_the_first(
    corpus, tiny_comparator, tmp_path, prepared, monkeypatch
):
    whole = kept(cached_features(tiny_comparator(), corpus, STAGES, tmp_path / "cache"))
    with monkeypatch.context() as patch:
        dies_at("3.bmp", patch)  # after the first batch, before the first save
        with pytest.raises(KeyboardInterrupt):
            cached_features(tiny_comparator(seed=1), corpus, STAGES, tmp_path / "cache")
    assert kept(cached_features(tiny_comparator(), corpus, STAGES, tmp_path / "cache")) == whole


def lose(name: str):
    return lambda folder: (folder / name).unlink()


def cut(name: str, size: int):
    return lambda folder: os.truncate(folder / name, size)


@pytest.mark.parametrize(
    "damage",
    [
        lose("features.json"),
        cut("features.json", 10),
        cut("features.json", 0),
        lambda folder: (folder / "features.json").write_text("[]"),
        lose("maps.npy"),
        cut("maps.npy", 1000),
        lose("statistics.npy"),
        cut("statistics.npy", 0),
    ],
)
def test_a_damaged_cache_is_filled_anew(corpus, tiny_comparator, tmp_path, damage):
    folder: Path = tmp_path / "cache"
    whole = kept(cached_features(tiny_comparator(), corpus, STAGES, folder))
    damage(folder)
    assert kept(cached_features(tiny_comparator(), corpus, STAGES, folder)) == whole
