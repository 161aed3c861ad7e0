"""`c2s score --explain`: one image's comparisons as a picture."""

from __future__ import annotations

import json
import sys

import pytest
from PIL import Image


def test_the_score_is_printed_and_the_picture_written(c2s, bundle, photos, tmp_path):
    out = tmp_path / "why.png"
    result = c2s("score", photos / "b.png", "--bundle", bundle, "--json", "--explain", out)
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == json.loads(
        c2s("score", photos / "b.png", "--bundle", bundle, "--json").stdout
    )
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400


def test_more_than_one_image_is_wrong_use(c2s, bundle, photos, tmp_path):
    result = c2s("score", photos, "--bundle", bundle, "--explain", tmp_path / "why.png")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "--explain draws one image, not 4; name just one.\n"


def test_another_kind_of_file_is_refused_before_the_scoring(c2s, bundle, photos, tmp_path):
    result = c2s("score", photos / "a.png", "--bundle", bundle, "--explain", tmp_path / "why.docx")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "end it in .pdf, .png, .svg" in result.stderr


def test_a_folder_that_is_not_there_is_one_sentence(c2s, bundle, photos, tmp_path):
    result = c2s("score", photos / "a.png", "--bundle", bundle, "--explain", tmp_path / "none" / "why.png")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert str(tmp_path / "none" / "why.png") in result.stderr


def test_an_image_that_cannot_be_scored_is_not_drawn(c2s, bundle, tmp_path):
    result = c2s("score", tmp_path / "gone.png", "--bundle", bundle, "--explain", tmp_path / "why.png")
    assert result.exit_code == 1
    assert not (tmp_path / "why.png").exists()


@pytest.mark.parametrize("explained", [True, False])
def test_without_matplotlib_only_the_picture_is_missing(
    c2s, bundle, photos, tmp_path, monkeypatch, explained
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "compare2score.pipelines.explanation", raising=False)
    more = ["--explain", tmp_path / "why.png"] if explained else []
    result = c2s("score", photos / "a.png", "--bundle", bundle, *more)
    if explained:
        assert (result.exit_code, result.stdout) == (2, "")
        assert "pip install 'compare2score-edge[eval]'" in result.stderr
    else:
        assert result.exit_code == 0
