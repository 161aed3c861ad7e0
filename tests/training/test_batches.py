"""Targets and pairs of a batch against simulation, the hard levels, and counting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compare2score.comparator.prompt import LEVEL_WEIGHTS
from compare2score.training.batches import epoch_batches, pair_batch, soft_levels
from compare2score.training.corpus import Part
from compare2score.training.instructions import comparative_level

numbers = st.floats(-1e3, 1e3)
spreads = st.floats(1e-3, 1e3)


def hard_levels(difference: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """The paper's level of pairs whose MOS differ by first minus second `difference`."""
    nothing = np.zeros_like(difference)
    return comparative_level(difference, sigma, nothing, nothing)


def make_part(count: int, seed: int = 0, start: int = 100) -> Part:
    generator = np.random.default_rng(seed)
    items = start + np.arange(count)
    return Part("p", "train", items, generator.uniform(0, 100, count), generator.uniform(5, 20, count), True)


@given(st.lists(st.tuples(numbers, spreads), min_size=1, max_size=20))
def test_soft_levels_are_probabilities(pairs):
    difference, sigma = np.array(pairs).T
    levels = soft_levels(difference, sigma)
    assert levels.dtype == np.float32
    assert (levels >= 0).all()
    np.testing.assert_allclose(levels.sum(axis=1), 1, atol=1e-6)


@given(st.lists(numbers, min_size=2, max_size=20), spreads)
def test_the_better_the_first_image_the_lower_the_second_ones_level(differences, sigma):
    difference = np.sort(np.array(differences))
    levels = soft_levels(difference, np.full(len(difference), sigma))
    # At most as likely to reach any level, not only on average.
    at_least = levels[:, ::-1].cumsum(axis=1)
    assert (np.diff(at_least, axis=0) <= 1e-6).all()
    assert (np.diff(levels @ np.array(LEVEL_WEIGHTS)) <= 1e-6).all()


def test_swapping_the_images_reverses_the_levels():
    difference = np.linspace(-5, 5, 41)
    sigma = np.full(41, 1.3)
    np.testing.assert_allclose(
        soft_levels(-difference, sigma), soft_levels(difference, sigma)[:, ::-1], atol=1e-6
    )


@pytest.mark.parametrize("difference", [-3.5, -1.0, 0.0, 0.4, 1.7, 2.0])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0])
def test_soft_levels_are_how_often_the_true_difference_has_each_level(difference, sigma):
    true = np.random.default_rng(0).normal(difference, sigma, 200_000)
    level = hard_levels(true, np.full(len(true), sigma))
    frequency = np.bincount(level, minlength=5) / len(true)
    np.testing.assert_allclose(
        soft_levels(np.array([difference]), np.array([sigma]))[0], frequency, atol=5e-3
    )


@pytest.mark.parametrize("sigma", [0.0, 1e-12, 1e-3])
def test_without_spread_the_soft_levels_are_the_hard_ones(sigma):
    difference = np.array([-7.0, -0.5, -0.02, 0.02, 3.0])
    spread = np.full(len(difference), sigma)
    levels = soft_levels(difference, spread)
    np.testing.assert_allclose(levels.max(axis=1), 1, atol=1e-6)
    assert (levels.argmax(axis=1) == hard_levels(difference, spread)).all()


def test_the_likeliest_level_in_the_middle_of_an_interval_is_the_hard_one():
    sigma = np.full(5, 0.7)
    difference = np.array([3.0, 1.5, 0.0, -1.5, -3.0]) * sigma
    hard = hard_levels(difference, sigma)
    assert hard.tolist() == [0, 1, 2, 3, 4]
    assert (soft_levels(difference, sigma).argmax(axis=1) == hard).all()


@pytest.mark.parametrize(
    ("count", "partners", "steps"), [(16, 4, 4), (7, 3, 3), (5, 4, 4), (5, 99, 4), (2, 1, 1)]
)
def test_every_image_is_first_and_second_equally_often(count, partners, steps):
    batch = pair_batch(make_part(30), np.arange(count) + 3, partners, np.random.default_rng(1))
    assert np.bincount(batch.first, minlength=count).tolist() == [steps] * count
    assert np.bincount(batch.second, minlength=count).tolist() == [steps] * count
    assert (batch.first != batch.second).all()
    assert len(set(zip(batch.first.tolist(), batch.second.tolist(), strict=True))) == count * steps
    assert batch.targets.shape == (count * steps, 5)


def test_a_batch_names_corpus_images_and_targets_their_labels():
    part, members = make_part(30), np.array([3, 20, 11, 7])
    batch = pair_batch(part, members, 3, np.random.default_rng(0))
    assert batch.items.tolist() == [103, 120, 111, 107]
    for first, second, target in zip(batch.first, batch.second, batch.targets, strict=True):
        i, j = members[first], members[second]
        sigma = (part.std[i] ** 2 + part.std[j] ** 2) ** 0.5
        expected = soft_levels(np.array([part.mos[i] - part.mos[j]]), np.array([sigma]))[0]
        np.testing.assert_allclose(target, expected, atol=1e-6)


def as_lists(batches) -> list[list[list[float]]]:
    return [[b.items.tolist(), b.first.tolist(), b.second.tolist(), b.targets.tolist()] for b in batches]


def test_an_epoch_depends_on_its_seed_and_number_alone():
    parts = (make_part(50), make_part(33, seed=1, start=500))
    epoch = as_lists(epoch_batches(parts, 8, 3, seed=4, epoch=2))
    assert epoch == as_lists(epoch_batches(parts, 8, 3, seed=4, epoch=2))
    assert epoch != as_lists(epoch_batches(parts, 8, 3, seed=4, epoch=3))
    assert epoch != as_lists(epoch_batches(parts, 8, 3, seed=5, epoch=2))


def test_an_epoch_shows_every_image_once_at_most_in_batches_of_one_part():
    parts = (make_part(50), make_part(33, seed=1, start=500), make_part(7, seed=2, start=900))
    batches = list(epoch_batches(parts, 8, 3, seed=0, epoch=0))
    assert len(batches) == 50 // 8 + 33 // 8  # the third part is smaller than a batch
    shown = np.concatenate([batch.items for batch in batches])
    assert len(set(shown.tolist())) == len(shown) == 8 * len(batches)
    sources = [{int(item >= 500) for item in batch.items} for batch in batches]
    assert all(len(source) == 1 for source in sources)
    assert sources != sorted(sources, key=min)  # the parts take turns


def test_over_many_epochs_every_image_is_shown():
    part = make_part(21)
    shown = {i for epoch in range(20) for b in epoch_batches((part,), 8, 3, 0, epoch) for i in b.items}
    assert shown == set(part.items)
