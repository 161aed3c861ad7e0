"""The picture of a score says what the score says."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from PIL import Image
from toy_bundle import ANCHOR_GRAYS, gray_image, preferred

from compare2score import Scorer
from compare2score.adaptive import Stopping
from compare2score.comparison import extend_preference_matrix
from compare2score.errors import CollectionError, ImageError
from compare2score.pipelines.explanation import SHOWN, draw_explanation, explain
from compare2score.thurstone import map_estimate

GRAY = 150


@pytest.fixture
def explanation(scorer, tmp_path):
    return explain(scorer, gray_image(tmp_path / "a.png", GRAY))


def texts(path):
    """What an SVG says, in its order: matplotlib writes each text as a comment before its outlines."""
    return re.findall(r"<!-- (.*?) -->", path.read_text(encoding="utf-8"))


def test_it_holds_the_score_and_where_its_estimate_puts_the_anchors(scorer, explanation, tmp_path):
    score = scorer.score(tmp_path / "a.png")
    assert explanation.score == score
    answers = [preferred(GRAY, anchor) for anchor in ANCHOR_GRAYS]
    q = map_estimate(extend_preference_matrix(scorer.anchors.matrix, answers)).q
    np.testing.assert_allclose([*explanation.anchors, score.q], q, atol=1e-5)
    assert (np.diff(explanation.anchors) > 0).all()


def test_the_picture_states_every_preference_and_anchor(explanation, tmp_path):
    draw_explanation(explanation, "a.png", tmp_path / "why.svg")
    said = texts(tmp_path / "why.svg")
    for probability in explanation.score.probabilities:
        assert f"{probability:.2f}" in said
    for anchor in "12345":
        assert said.count(anchor) >= 2  # a mark on the scale, a row of the bars
    assert "P(image preferred over the anchor)" in said


def test_an_anchor_that_was_not_asked_has_no_bar(bundle, tmp_path):
    scorer = Scorer(bundle, anchors="adaptive", stopping=Stopping(100.0))
    found = explain(scorer, gray_image(tmp_path / "a.png", GRAY))
    assert sum(map(math.isnan, found.score.probabilities)) == 4
    draw_explanation(found, "a.png", tmp_path / "why.svg")
    assert texts(tmp_path / "why.svg").count("not asked") == 4


def test_the_same_score_gives_the_same_bytes(explanation, tmp_path):
    for kind in ("png", "svg", "pdf"):
        first, second = tmp_path / f"first.{kind}", tmp_path / f"second.{kind}"
        for path in (first, second):
            draw_explanation(explanation, "a.png", path)
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", ["$x^2$.png", "costs $5.jpg", r"\frac{.png", "<&>.png", "猫.jpg", "x" * 300])
def test_names_are_no_formulas(explanation, tmp_path, name, recwarn):
    draw_explanation(explanation, name, tmp_path / "why.png")
    assert not recwarn.list
    with Image.open(tmp_path / "why.png") as picture:
        assert picture.width > 1000


def test_a_large_photograph_is_reduced_and_upright(scorer, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (2000, 1000)).save(tmp_path / "a.jpg", exif=exif)
    assert explain(scorer, tmp_path / "a.jpg").photograph.size == (SHOWN // 2, SHOWN)


def test_what_cannot_be_read_or_written_is_named(scorer, explanation, tmp_path):
    with pytest.raises(ImageError, match="does not exist"):
        explain(scorer, tmp_path / "gone.png")
    with pytest.raises(CollectionError, match="no kind of picture"):
        draw_explanation(explanation, "a", tmp_path / "why.txt")
