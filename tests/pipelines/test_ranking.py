"""Ranking: real bursts of known order, and simulated comparisons whose truth is known."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.sparse.csgraph import connected_components
from scipy.stats import norm, spearmanr
from toy_bundle import ANCHOR_GRAYS, anchor_matrix, gray_image, preferred

from compare2score import ImageError, Scorer
from compare2score.errors import CollectionError
from compare2score.pipelines.ranking import (
    LIMIT,
    Design,
    Encoded,
    compare_images,
    compare_members,
    encode_images,
    probability_above,
    rank_images,
)
from compare2score.thurstone import map_estimate, posterior_covariance

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
ANCHORS = np.array([-1.2, -0.6, 0.0, 0.6, 1.2])
EVERY_PAIR = Design(all_up_to=10**6)


def grays_encoded(scorer, tmp_path, grays):
    paths = [gray_image(tmp_path / f"{place}.png", gray) for place, gray in enumerate(grays)]
    return list(encode_images(scorer, paths))


class Simulation:
    """Images with q drawn from the prior, each comparison of two decided by one throw of Thurstone's die."""

    def __init__(self, images, seed):
        generator = np.random.default_rng(seed)
        self.q = generator.normal(size=images)
        thrown = np.triu(generator.random((images, images)) < norm.cdf(self.q[:, None] - self.q), 1)
        self.outcomes = thrown + np.tril(1.0 - thrown.T, -1)
        self.matrix = norm.cdf(ANCHORS[:, None] - ANCHORS)
        chances = norm.cdf(self.q[:, None] - ANCHORS)
        self.answers = (generator.random(chances.shape) < chances).astype(float)
        self.asked: list[tuple[int, int]] = []

    def compare(self, design=None, order=None):
        """The standing, asked with the images in another order and put back into their own."""
        order = np.arange(len(self.q)) if order is None else order

        def ask(pairs):
            pairs = order[pairs]
            self.asked += [tuple(sorted(pair)) for pair in pairs.tolist()]
            return self.outcomes[pairs[:, 0], pairs[:, 1]]

        return compare_members(ask, self.matrix, self.answers[order], design=design)


@pytest.fixture(scope="module")
def embedded():
    return Scorer(threads=1)


@pytest.mark.parametrize("name", ["astronaut", "cat", "coffee", "rocket"])
def test_a_burst_is_ordered_by_its_blur(embedded, name):
    photo = Image.open(PHOTOS / f"{name}.jpg").convert("RGB")
    radii = [3.0, 0.0, 8.0, 1.5]
    shots = [photo.filter(ImageFilter.GaussianBlur(radius)) for radius in radii]
    ranking = rank_images(embedded, list(encode_images(embedded, shots)))
    assert [radii[place.index] for place in ranking] == sorted(radii)
    assert all(place.beats_next > 0.5 for place in ranking[:-1])
    assert ranking[-1].beats_next is None
    assert ranking[0].value > ranking[-1].value + 10


@pytest.mark.parametrize("gray", [10, 120, 250])
def test_an_image_alone_gets_its_score(scorer, tmp_path, gray):
    (place,) = rank_images(scorer, grays_encoded(scorer, tmp_path, [gray]))
    score = scorer.score(tmp_path / "0.png")
    assert (place.value, place.q, place.std) == pytest.approx((score.value, score.q, score.std), abs=1e-9)
    assert (place.index, place.beats_next, place.comparisons) == (0, None, 0)


def test_a_photograph_alone_gets_its_score(embedded):
    (place,) = rank_images(embedded, list(encode_images(embedded, [PHOTOS / "cat.jpg"])))
    score = embedded.score(PHOTOS / "cat.jpg")
    assert (place.q, place.std) == pytest.approx((score.q, score.std), abs=1e-9)


def test_both_orders_of_a_pair_count_alike(scorer, tmp_path):
    """The toy comparator favours the second of two: the average over both orders does not."""
    images = grays_encoded(scorer, tmp_path, [100, 100, 180])
    standing = compare_images(scorer, images)
    assert standing.q[0] == pytest.approx(standing.q[1], abs=1e-12)
    one, other = np.array([2]), np.array([0])
    assert probability_above(standing, one, other) + probability_above(standing, other, one) == pytest.approx(
        1
    )
    assert probability_above(standing, np.array([0]), np.array([1])) == pytest.approx(0.5)


@pytest.mark.parametrize("design", [None, Design(all_up_to=2, partners=4, each_round=2)])
def test_what_is_asked_is_the_comparator_in_both_orders(scorer, tmp_path, design):
    grays = [30, 200, 90, 140, 60, 230, 115]
    standing = compare_images(scorer, grays_encoded(scorer, tmp_path, grays), design)
    asked = set()

    def ask(pairs):
        asked.update(frozenset(pair) for pair in pairs.tolist())
        values = [(grays[i], grays[j]) for i, j in pairs.tolist()]
        return np.array([(preferred(i, j) + 1 - preferred(j, i)) / 2 for i, j in values])

    answers = np.array([[preferred(gray, anchor) for anchor in ANCHOR_GRAYS] for gray in grays])
    expected = compare_members(ask, anchor_matrix(), answers, design=design)
    np.testing.assert_allclose(standing.q, expected.q, atol=1e-5)
    np.testing.assert_allclose(standing.covariance, expected.covariance, atol=1e-5)
    assert len(asked) == (21 if design is None else 14)
    assert expected.comparisons.sum() == 2 * len(asked)
    assert np.argsort(standing.q).tolist() == np.argsort(grays).tolist()


def test_a_sparse_design_connects_all_images_asks_no_pair_twice_and_keeps_to_its_size():
    simulation = Simulation(150, 0)
    standing = simulation.compare(Design())
    pairs = np.array(simulation.asked)
    assert len(set(simulation.asked)) == len(pairs) == 150 * 16 // 2
    joined = np.zeros((150, 150))
    joined[pairs[:, 0], pairs[:, 1]] = 1
    assert connected_components(joined, directed=False)[0] == 1
    assert standing.comparisons.tolist() == np.bincount(pairs.ravel(), minlength=150).tolist()
    assert standing.comparisons.min() >= 8
    assert standing.comparisons.max() <= 24


def test_a_sparse_ranking_is_close_to_that_of_all_pairs():
    """Judged by how far the two are from the truth, since single throws make either err."""
    sparse, whole = [], []
    for seed in range(5):
        simulation = Simulation(60, seed)
        sparse.append(spearmanr(simulation.compare(Design()).q, simulation.q).statistic)
        whole.append(spearmanr(simulation.compare(EVERY_PAIR).q, simulation.q).statistic)
        assert spearmanr(simulation.compare(Design()).q, simulation.compare(EVERY_PAIR).q).statistic > 0.9
    assert np.mean(sparse) > np.mean(whole) - 0.06
    assert np.mean(sparse) > 0.9


def test_a_sure_comparator_is_ranked_perfectly_by_few_pairs():
    simulation = Simulation(60, 0)
    simulation.outcomes = norm.cdf(simulation.q[:, None] - simulation.q)
    simulation.answers = norm.cdf(simulation.q[:, None] - ANCHORS)
    assert spearmanr(simulation.compare(Design()).q, simulation.q).statistic > 0.995


def test_chosen_pairs_say_more_than_pairs_at_random():
    """Mean posterior variance of all differences, after as many comparisons."""
    simulation = Simulation(60, 1)
    chosen = simulation.compare(Design(all_up_to=2, partners=12, each_round=2))
    generator = np.random.default_rng(0)
    drawn = np.zeros((60, 60), dtype=bool)
    while drawn.sum() < 60 * 12:
        cycle = generator.permutation(60)
        drawn[cycle, np.roll(cycle, 1)] = drawn[np.roll(cycle, 1), cycle] = True
    matrix = np.zeros((65, 65))
    matrix[:5, :5], matrix[5:, :5], matrix[:5, 5:] = (
        simulation.matrix,
        simulation.answers,
        1 - simulation.answers.T,
    )
    matrix[5:, 5:] = np.where(drawn, simulation.outcomes, 0)
    covariance = posterior_covariance(matrix, map_estimate(matrix).q)[5:, 5:]
    at_random = 2 * (25 / 36) * (60 * covariance.trace() - covariance.sum()) / 60**2
    after_choice = 2 * (60 * chosen.covariance.trace() - chosen.covariance.sum()) / 60**2
    assert after_choice < at_random


@pytest.mark.parametrize("images", [10, 40])
def test_the_order_of_the_images_does_not_matter(images):
    simulation = Simulation(images, 3)
    # Anchors' answers that tie would leave the order of the work to that of the images.
    simulation.answers = norm.cdf(simulation.q[:, None] - ANCHORS)
    expected = simulation.compare()
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(images)
        found = simulation.compare(order=order)
        np.testing.assert_allclose(found.q, expected.q[order], atol=1e-9)
        np.testing.assert_allclose(found.covariance, expected.covariance[np.ix_(order, order)], atol=1e-9)


def test_photographs_are_ranked_alike_in_any_order(embedded):
    paths = sorted(PHOTOS.glob("*.jpg"))
    images = list(encode_images(embedded, paths))
    expected = [paths[place.index].name for place in rank_images(embedded, images)]
    turned = paths[3:] + paths[:3]
    found = rank_images(embedded, list(encode_images(embedded, turned, batch=2)))
    assert [turned[place.index].name for place in found] == expected


@pytest.mark.parametrize("design", [EVERY_PAIR, Design(all_up_to=2, partners=6, each_round=2)])
def test_probabilities_keep_what_they_promise(design):
    """Of pairs said to be ordered with probability p, a share p is: truth and throws drawn from the model."""
    stated, held = [], []
    first, second = np.triu_indices(12, 1)
    for seed in range(300):
        simulation = Simulation(12, seed)
        standing = simulation.compare(design)
        stated.append(probability_above(standing, first, second))
        held.append(simulation.q[first] > simulation.q[second])
    stated, held = np.concatenate(stated), np.concatenate(held)
    for low, high in pairwise((0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)):
        inside = (stated >= low) & (stated < high)
        assert inside.sum() > 500
        assert held[inside].mean() == pytest.approx(stated[inside].mean(), abs=0.03)


def test_the_next_is_beaten_with_the_probability_of_the_pair(scorer, tmp_path):
    images = grays_encoded(scorer, tmp_path, [30, 200, 90])
    ranking, standing = rank_images(scorer, images), compare_images(scorer, images)
    assert [place.index for place in ranking] == [1, 2, 0]
    for place, following in pairwise(ranking):
        pair = np.array([place.index]), np.array([following.index])
        assert place.beats_next == float(probability_above(standing, *pair)[0])
        assert 0.5 < place.beats_next < 1
    assert [place.comparisons for place in ranking] == [2, 2, 2]


@pytest.mark.parametrize("images", [2, 5])
def test_more_partners_than_there_are_images_is_all_pairs(images):
    simulation = Simulation(images, 0)
    found = simulation.compare(Design(all_up_to=1, partners=16, each_round=1))
    np.testing.assert_allclose(found.q, simulation.compare(EVERY_PAIR).q, atol=1e-12)
    assert found.comparisons.tolist() == [images - 1] * images


def test_images_are_encoded_once_and_errors_keep_their_places(scorer, tmp_path, monkeypatch):
    counted = []
    encode = type(scorer.backend).encode
    monkeypatch.setattr(
        type(scorer.backend),
        "encode",
        lambda self, pixels: counted.append(len(pixels)) or encode(self, pixels),
    )
    paths = [gray_image(tmp_path / f"{place}.png", 20 * place) for place in range(7)]
    (tmp_path / "bad.png").write_text("not an image")
    sources = [tmp_path / "gone.png", *paths[:3], tmp_path / "bad.png", *paths[3:]]
    for batch in (1, 3, 20):
        counted.clear()
        results = list(encode_images(scorer, iter(sources), batch=batch))
        assert [result.code for result in results if isinstance(result, ImageError)] == [
            "not_found",
            "not_an_image",
        ]
        assert [isinstance(result, ImageError) for result in results] == [
            True,
            *[False] * 3,
            True,
            *[False] * 4,
        ]
        good = [result for result in results if isinstance(result, Encoded)]
        rank_images(scorer, good)
        assert sum(counted) == 7
        for result, path in zip(good, paths, strict=True):
            np.testing.assert_array_equal(result.tokens, encode(scorer.backend, scorer.pixels(path)[None])[0])


def test_hashes_are_made_when_asked_for(scorer, tmp_path):
    path = gray_image(tmp_path / "a.png", 50)
    without, with_hash = (next(encode_images(scorer, [path], hashed=hashed)) for hashed in (False, True))
    assert (without.hash, with_hash.hash) == (None, 0)


def test_too_many_images_are_refused_in_a_sentence(scorer, tmp_path):
    images = grays_encoded(scorer, tmp_path, [1]) * (LIMIT + 1)
    with pytest.raises(CollectionError, match=f"{LIMIT + 1} images are too many"):
        rank_images(scorer, images)
