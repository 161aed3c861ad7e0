"""Scores and comparisons of the toy comparator, whose answers follow from a formula."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import root
from scipy.special import expit, log_ndtr, ndtr
from toy_bundle import (
    ANCHOR_GRAYS,
    LEAN,
    LEVELS,
    TILT,
    anchor_matrix,
    answers,
    gray_image,
    preferred,
    toy_anchors,
    toy_manifest,
    write_toy_bundle,
    write_toy_graphs,
)

from compare2score import Score, Scorer
from compare2score.bundle import write_bundle
from compare2score.errors import BackendError, BundleError, ImageError

GRAYS = (0, 17, 60, 101, 127, 128, 150, 199, 230, 255)


@pytest.fixture(scope="module")
def scorer(bundle):
    return Scorer(bundle)


@pytest.fixture
def photos(tmp_path):
    return [gray_image(tmp_path / f"{gray}.png", gray) for gray in GRAYS]


def solve(probabilities, link="probit", grays=ANCHOR_GRAYS):
    """q [6], test image last, where the log posterior's gradient vanishes, and the Hessian there.

    By scipy's general root finder, and finite differences.
    """
    n = len(grays) + 1
    matrix = np.full((n, n), 0.5)
    matrix[:-1, :-1] = anchor_matrix(grays)
    matrix[-1, :-1], matrix[:-1, -1] = probabilities, 1 - np.asarray(probabilities)
    off = ~np.eye(n, dtype=bool)

    def slope(q):
        d = q[:, None] - q
        if link == "probit":
            terms = matrix * np.exp(-(d**2) / 2 - log_ndtr(d)) / np.sqrt(2 * np.pi)
        else:
            terms = matrix * expit(-d)
        return np.where(off, terms, 0).sum(1) - np.where(off, terms, 0).sum(0) - q

    q = root(slope, np.zeros(n), tol=1e-12).x
    step = 1e-5
    hessian = np.array([(slope(q + step * row) - slope(q - step * row)) / (2 * step) for row in np.eye(n)])
    return q, hessian


@pytest.mark.parametrize("gray", GRAYS)
@pytest.mark.parametrize("link", ["probit", "logit"])
def test_a_score_follows_from_the_formula_by_another_solver(bundle, tmp_path, gray, link):
    probabilities = [preferred(gray, anchor) for anchor in ANCHOR_GRAYS]
    q, hessian = solve(probabilities, link)
    score = Scorer(bundle, link=link).score(gray_image(tmp_path / "gray.png", gray))
    assert score.probabilities == pytest.approx(probabilities, abs=1e-6)
    assert score.q == pytest.approx(q[-1], abs=1e-6)
    assert score.std == pytest.approx(np.sqrt(np.linalg.inv(-hessian)[-1, -1]), abs=1e-5)
    assert score.value == pytest.approx(100 * ndtr(q[-1]), abs=1e-4)


@pytest.mark.parametrize("gray", [0, 60, 128, 255])
def test_the_published_scale_lies_between_the_outer_images(bundle, tmp_path, gray):
    q, _ = solve([preferred(gray, anchor) for anchor in ANCHOR_GRAYS])
    score = Scorer(bundle, scale="minmax").score(gray_image(tmp_path / "gray.png", gray))
    assert score.value == pytest.approx(100 * (q[-1] - q.min()) / (q.max() - q.min()), abs=1e-4)
    assert score.value == {0: 0.0, 255: 100.0}.get(gray, score.value)


def test_brighter_is_better_and_even_beyond_the_anchors_no_two_are_equal(scorer, photos):
    values = [score.value for score in scorer.score_many(photos)]
    assert values == sorted(set(values))
    assert 0 < values[0] < values[-1] < 100


@pytest.mark.parametrize("kind", ["path", "text", "picture", "array"])
def test_every_kind_of_image_gets_the_same_score(scorer, photos, kind):
    path = photos[3]
    picture = Image.open(path)
    source = {"path": path, "text": str(path), "picture": picture, "array": np.asarray(picture)}[kind]
    assert scorer.score(source) == scorer.score(path)


def test_an_image_that_is_no_square_is_padded(scorer, tmp_path):
    # Half of the square is white, the rest is padding, (127, 127, 127).
    path = tmp_path / "wide.png"
    Image.new("L", (64, 32), 255).save(path)
    assert scorer.score(path).probabilities[2] == pytest.approx(preferred((255 + 127) / 2, 128), abs=0.01)


BAD = {
    "no_such.png": ("not_found", None),
    "text.png": ("not_an_image", b"this is text"),
    "empty.jpg": ("truncated", b""),
}


@pytest.fixture
def neighbours(tmp_path, photos):
    """Good images with bad ones between them, and the error code that each should have."""
    codes = []
    mixed = []
    for photo, (name, (code, content)) in zip(photos, [*BAD.items()] * 3, strict=False):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        mixed += [photo, tmp_path / name]
        codes += [None, code]
    return mixed, codes


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 8, 100])
def test_bad_neighbours_and_batches_do_not_change_a_bit(scorer, neighbours, batch):
    mixed, codes = neighbours
    results = list(scorer.score_many(mixed, batch))
    assert [getattr(result, "code", None) for result in results] == codes
    for path, result in zip(mixed, results, strict=True):
        if isinstance(result, Score):
            assert result == next(scorer.score_many([path]))


def test_scores_stream_while_only_the_next_batch_is_read(scorer, photos):
    read = []

    def source():
        for photo in photos:
            read.append(photo)
            yield photo

    results = scorer.score_many(source(), batch=2)
    assert read == []
    for taken in range(1, len(photos) + 1):
        next(results)
        assert len(read) <= min(len(photos), 2 * ((taken + 1) // 2) + 2)
    assert next(results, None) is None


def decoding_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("c2s-decode")]


def test_the_next_batch_is_decoded_while_one_is_scored(bundle, photos, monkeypatch):
    scorer = Scorer(bundle)
    decoded, counts = threading.Event(), []
    pixels, score_pixels = scorer.pixels, scorer.score_pixels

    def watched(image):
        counts.append(image)
        if len(counts) == 4:
            decoded.set()
        return pixels(image)

    def waiting(batch):
        # Were nothing decoded meanwhile, this would wait in vain.
        assert decoded.wait(30)
        return score_pixels(batch)

    monkeypatch.setattr(scorer, "pixels", watched)
    monkeypatch.setattr(scorer, "score_pixels", waiting)
    assert len(list(scorer.score_many(photos[:4], batch=2))) == 4


def test_a_generator_that_is_left_ends_its_threads(scorer, photos):
    before = len(decoding_threads())
    results = scorer.score_many(photos * 3, batch=2)
    next(results)
    assert len(decoding_threads()) > before
    results.close()
    assert len(decoding_threads()) == before


def test_an_unexpected_failure_of_decoding_is_raised_and_ends_the_threads(bundle, photos, monkeypatch):
    scorer = Scorer(bundle)

    def fail(image):
        raise RuntimeError("a bug")

    monkeypatch.setattr(scorer, "pixels", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        list(scorer.score_many(photos))
    assert decoding_threads() == []


def test_one_picture_given_many_times_is_scored_as_often(scorer, photos):
    with Image.open(photos[2]) as picture:
        found = list(scorer.score_many([picture] * 20, batch=10))
    assert found == [scorer.score(photos[2])] * 20


def test_nothing_but_bad_images_gives_nothing_but_errors(scorer, tmp_path):
    results = list(scorer.score_many([tmp_path / "a.png", tmp_path / "b.png"]))
    assert [type(result) for result in results] == [ImageError, ImageError]


def test_no_images_give_no_scores(scorer):
    assert list(scorer.score_many([])) == []


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_of_none_is_refused_rather_than_scoring_nothing(scorer, photos, batch):
    with pytest.raises(ValueError, match="choose 1 or more"):
        list(scorer.score_many(photos, batch))


def test_a_single_bad_image_raises_its_error(scorer, tmp_path):
    with pytest.raises(ImageError) as caught:
        scorer.score(tmp_path / "absent.png")
    assert caught.value.code == "not_found"


def test_one_image_a_call_gives_the_same_scores(tmp_path, scorer, photos):
    single = Scorer(write_toy_bundle(tmp_path / "single", images_per_call=1).path)
    assert list(single.score_many(photos)) == list(scorer.score_many(photos))


@pytest.mark.parametrize(("a", "b"), [(0, 255), (100, 110), (200, 180), (64, 64)])
def test_a_comparison_averages_both_orders_of_the_formula(scorer, tmp_path, a, b):
    comparison = scorer.compare(gray_image(tmp_path / "a.png", a), gray_image(tmp_path / "b.png", b))
    forward, backward = preferred(b, a), 1 - preferred(a, b)
    assert comparison.probability == pytest.approx((forward + backward) / 2, abs=1e-6)
    assert comparison.disagreement == pytest.approx(abs(forward - backward), abs=1e-6)
    both = answers(b, a) + answers(a, b)[::-1]
    assert comparison.level == LEVELS[int(both.argmax())]


@pytest.mark.parametrize(("a", "b"), [(0, 255), (100, 130), (90, 93)])
def test_exchanging_the_images_reverses_the_comparison(scorer, tmp_path, a, b):
    a, b = gray_image(tmp_path / "a.png", a), gray_image(tmp_path / "b.png", b)
    forward, backward = scorer.compare(a, b), scorer.compare(b, a)
    assert forward.probability + backward.probability == pytest.approx(1, abs=1e-12)
    assert forward.disagreement == pytest.approx(backward.disagreement, abs=1e-12)
    assert LEVELS.index(forward.level) + LEVELS.index(backward.level) == len(LEVELS) - 1


class Leaning:
    """A backend that answers "better" of whatever comes second."""

    name = "leaning"

    def encode(self, pixels):
        return np.zeros((len(pixels), 2, 2), np.float32)

    def prefix(self, visual_tokens):
        return toy_anchors(ANCHOR_GRAYS[: len(visual_tokens)]).prefix

    def compare(self, visual_tokens, prefix):
        logits = np.zeros((len(visual_tokens), len(prefix.keys), 5), np.float32)
        logits[..., 3] = 9
        return logits


def test_an_image_is_similar_to_itself_even_for_a_comparator_that_favours_the_second(bundle, photos):
    scorer = Scorer(bundle)
    scorer.backend = Leaning()
    comparison = scorer.compare(photos[0], photos[0])
    assert comparison.probability == 0.5
    assert comparison.level == "similar"
    assert comparison.disagreement > 0.4


def test_the_anchors_scores_agree_with_their_own_matrix(scorer, tmp_path):
    # An anchor scored as a test image is preferred over itself half the time, but for the lean.
    for place, gray in enumerate(ANCHOR_GRAYS):
        score = scorer.score(gray_image(tmp_path / "anchor.png", gray))
        assert score.probabilities[place] == pytest.approx(preferred(gray, gray), abs=1e-6)
        assert score.probabilities[place] == pytest.approx(0.5, abs=TILT * LEAN)


@pytest.mark.parametrize(
    ("option", "value"), [("scale", "percent"), ("scale", None), ("link", "normal"), ("link", "")]
)
def test_unknown_options_are_refused(bundle, option, value):
    with pytest.raises(ValueError, match=f"The {option} is .*; choose"):
        Scorer(bundle, **{option: value})


def test_a_bundle_without_anchors_compares_but_does_not_score(tmp_path, photos):
    graphs = write_toy_graphs(tmp_path / "graphs")
    scorer = Scorer(write_bundle(tmp_path / "bare", toy_manifest(), graphs, None).path)
    assert scorer.compare(photos[0], photos[-1]).level == "superior"
    with pytest.raises(BundleError, match="has no anchors yet"):
        scorer.score(photos[0])
    with pytest.raises(BundleError, match="has no anchors yet"):
        list(scorer.score_many(photos))


def with_answers(bundle, logits):
    """A scorer whose comparator answers every question with these numbers."""
    scorer = Scorer(bundle)
    scorer.backend = Leaning()
    scorer.backend.compare = lambda tokens, prefix: np.broadcast_to(
        np.asarray(logits, np.float32), (len(tokens), len(prefix.keys), len(logits))
    )
    return scorer


@pytest.mark.parametrize("logits", [[0, 0, np.nan, 0, 0], [0, 0, 0, 0, np.inf], [0, 0, 0, 0], [0] * 6])
def test_answers_that_are_no_numbers_or_too_few_are_a_broken_backend(bundle, photos, logits):
    scorer = with_answers(bundle, logits)
    with pytest.raises(BackendError, match=r"do not answer with \[1, 5, 5\] finite numbers"):
        scorer.score(photos[0])
    with pytest.raises(BackendError, match=r"do not answer with \[2, 2, 5\] finite numbers"):
        scorer.compare(photos[0], photos[1])


def test_the_published_scale_needs_images_that_differ(tmp_path, photos):
    alike = replace(toy_anchors(), matrix=np.full((5, 5), 0.5))
    folder = write_toy_bundle(tmp_path / "alike", alike).path
    scorer = with_answers(folder, [0, 0, 0, 0, 0])
    assert scorer.score(photos[0]).value == 50
    scorer.scale = "minmax"
    with pytest.raises(BundleError, match="choose the percentile scale or other anchors"):
        scorer.score(photos[0])


def test_scoring_opens_no_socket(bundle, photos):
    # An audit hook sees every socket that Python makes, and cannot be taken away.
    program = (
        "import sys\n"
        "def refuse(event, _):\n"
        "    if event.startswith(('socket.', 'urllib.', 'http.', 'ssl.')): sys.exit(f'{event} was used')\n"
        "sys.addaudithook(refuse)\n"
        "from compare2score import Scorer\n"
        "scorer = Scorer(sys.argv[1])\n"
        "print(len(list(scorer.score_many(sys.argv[2:]))), scorer.compare(sys.argv[2], sys.argv[-1]).level)\n"
    )
    command = [sys.executable, "-c", program, str(bundle), *map(str, photos)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [str(len(photos)), "superior"]


def test_the_socket_watch_would_notice_one():
    program = (
        "import sys, socket\n"
        "def refuse(event, _):\n"
        "    if event.startswith('socket.'): sys.exit(f'{event} was used')\n"
        "sys.addaudithook(refuse)\n"
        "socket.socket()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "socket.__new__ was used" in done.stderr


# Count matrix


def test_a_count_matrix_holds_whole_votes_and_has_the_maximum_that_another_solver_finds(bundle, tmp_path):
    counting = Scorer(bundle, matrix="count")
    for gray in (20, 100, 200):
        score = counting.score(Image.new("RGB", (8, 8), (gray,) * 3))
        wins = np.array([float(preferred(gray, anchor) > 0.5) for anchor in ANCHOR_GRAYS])
        assert score.probabilities == tuple(wins)
        matrix = np.full((6, 6), 0.5)
        matrix[:5, :5] = np.sign(anchor_matrix() - 0.5) / 2 + 0.5
        matrix[5, :5], matrix[:5, 5] = wins, 1 - wins

        def slope(q, matrix=matrix):
            apart = q[:, None] - q[None, :]
            ratio = np.exp(-(apart**2) / 2 - np.log(2 * np.pi) / 2 - log_ndtr(apart))
            off = matrix * ratio
            np.fill_diagonal(off, 0)
            return off.sum(axis=1) - off.sum(axis=0) - q

        assert score.q == pytest.approx(root(slope, np.zeros(6)).x[-1], abs=1e-8)


def test_an_unknown_matrix_is_refused(bundle):
    with pytest.raises(ValueError, match="choose 'probability' or 'count'"):
        Scorer(bundle, matrix="ballot")


def test_an_open_bundle_and_an_open_backend_are_taken_as_they_are(bundle):
    first = Scorer(bundle)
    second = Scorer(first.bundle, backend=first.backend)
    assert second.bundle is first.bundle
    assert second.backend is first.backend
    picture = Image.new("RGB", (8, 8), (90, 90, 90))
    assert second.score(picture) == first.score(picture)
