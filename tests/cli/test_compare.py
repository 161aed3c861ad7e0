"""`c2s compare`: the level, the probability and the disagreement of the toy formula."""

from __future__ import annotations

import json

import pytest
from toy_bundle import preferred


def test_a_comparison_as_json(c2s, bundle, photos):
    a, b = photos / "a.png", photos / "c.png"  # greys 20 and 160
    result = c2s("compare", a, b, "--bundle", bundle, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    answer = json.loads(result.stdout)
    forward, backward = preferred(160, 20), 1 - preferred(20, 160)
    assert answer == {
        "a": str(a),
        "b": str(b),
        "probability": pytest.approx((forward + backward) / 2, abs=1e-6),
        "level": "superior",
        "disagreement": pytest.approx(abs(forward - backward), abs=1e-6),
    }


def test_a_comparison_in_words(c2s, bundle, photos):
    result = c2s("compare", photos / "d.png", photos / "a.png", "--bundle", bundle)
    lines = result.stdout.splitlines()
    assert lines[0] == "level           B is inferior"
    assert lines[1].startswith("P(B preferred)  0.0")
    assert lines[2].startswith("disagreement    0.0")


@pytest.mark.parametrize("place", [0, 1])
def test_an_image_that_cannot_be_read_is_one_sentence(c2s, bundle, photos, place):
    paths = [photos / "a.png", photos / "a.png"]
    paths[place] = photos / "gone.png"
    result = c2s("compare", *paths, "--bundle", bundle, "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"{photos / 'gone.png'} does not exist; check the path.\n"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_it_takes_two_images(c2s, bundle, photos, count):
    result = c2s("compare", *[photos / "a.png"] * count, "--bundle", bundle)
    assert (result.exit_code, result.stdout) == (2, "")
