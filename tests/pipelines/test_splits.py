"""Test parts: no group divided, and published splits found again under other folders' names."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from compare2score.errors import LabelError
from compare2score.pipelines.splits import published_parts, random_parts
from compare2score.training.labels import LabelTable


def table(images, group=None, name="demo"):
    opinions = np.arange(len(images), dtype=float)
    return LabelTable(
        name, tuple(images), opinions, np.ones(len(images)), True, None, group, Path("/nowhere")
    )


def test_a_random_part_is_a_fifth_of_the_images():
    parts = random_parts(table([f"{n}.png" for n in range(1162)]), 10)
    assert [len(part) for part in parts] == [232] * 10
    assert all(len(set(part.tolist())) == 232 for part in parts)
    assert len({tuple(part.tolist()) for part in parts}) == 10
    # Ten draws of a fifth leave out (4/5)^10 of the images, a tenth.
    assert len(set(np.concatenate(parts).tolist())) == pytest.approx(1162 * (1 - 0.8**10), rel=0.03)


def test_no_group_is_divided_and_a_fifth_of_the_groups_is_drawn():
    generator = np.random.default_rng(0)
    group = tuple(f"reference {n}" for n in generator.integers(29, size=779))
    whole = Counter(group)
    for part in random_parts(table([f"{n}.png" for n in range(779)], group), 10):
        held = Counter(group[row] for row in part)
        # As in the published splits of LIVE: 6 of 29 references.
        assert len(held) == 6
        assert all(whole[name] == count for name, count in held.items())


def test_the_same_seed_draws_the_same_parts():
    rows = table([f"{n}.png" for n in range(50)])
    first, again, other = (random_parts(rows, 2, seed) for seed in (0, 0, 1))
    assert [part.tolist() for part in first] == [part.tolist() for part in again]
    assert [part.tolist() for part in first] != [part.tolist() for part in other]
    assert len(random_parts(rows, 1)[0]) == 10


@pytest.mark.parametrize("parts", [0, -1])
def test_no_parts_are_refused(parts):
    with pytest.raises(LabelError, match="at least 1"):
        random_parts(table(["a", "b", "c", "d", "e"]), parts)


def test_too_few_groups_are_refused():
    with pytest.raises(LabelError, match="'demo' has 2 groups"):
        random_parts(table([f"{n}.png" for n in range(50)], ("a", "b") * 25), 10)


def publish(folder, split, name, images, key="image"):
    (folder / str(split)).mkdir(parents=True, exist_ok=True)
    entries = [{key: image, "gt_score": 1.0, "std": 0.1} for image in images]
    (folder / str(split) / f"{name}_test.json").write_text(json.dumps(entries))


def test_published_parts_are_found_under_other_folder_names_and_in_order_of_number(tmp_path):
    for split in (1, 2, 10):
        publish(tmp_path, split, "live", ["live/jp2k/img1.bmp", f"live/jpeg/img{split}.bmp"])
        publish(tmp_path, split, "kadid10k", [f"kadid10k/I01_01_{split:02d}.png"])
    live = table([f"{kind}/img{n}.bmp" for kind in ("jp2k", "jpeg", "wn") for n in range(1, 11)])
    # Images of one name lie in several folders: jpeg/img1 is not jp2k/img1.
    assert [part.tolist() for part in published_parts(live, tmp_path)] == [[0, 10], [0, 11], [0, 19]]
    kadid = table(["images/I01_01_01.PNG", "images/I01_01_02.png", "images/I01_01_10.png"])
    assert [part.tolist() for part in published_parts(kadid, tmp_path)] == [[0], [1], [2]]


def test_the_file_of_most_images_is_the_tables_and_none_is_no_part(tmp_path):
    publish(tmp_path, 1, "a", ["a/1.jpg", "a/7.jpg"])
    publish(tmp_path, 1, "b", ["b/1.jpg", "b/2.jpg", "b/3.jpg", "b/99.jpg"], key="img_path")
    mine = table(["x/1.jpg", "x/2.jpg", "x/3.jpg", "x/4.jpg"])
    assert [part.tolist() for part in published_parts(mine, tmp_path)] == [[0, 1, 2]]
    assert published_parts(table(["other.jpg"]), tmp_path) == []


def test_a_folder_without_splits_or_with_a_damaged_one_is_refused(tmp_path):
    with pytest.raises(LabelError, match="holds no splits"):
        published_parts(table(["a.jpg"]), tmp_path)
    (tmp_path / "1").mkdir()
    for damaged in ("{", '{"image": 1}', "[1]", '[{"other": 1}]'):
        (tmp_path / "1" / "x.json").write_text(damaged)
        with pytest.raises(LabelError, match="not a list of objects"):
            published_parts(table(["a.jpg"]), tmp_path)
