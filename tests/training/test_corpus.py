"""The corpus of a tiny made-up dataset and a folder of photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compare2score.errors import LabelError
from compare2score.training.corpus import SYNTHETIC_STD, Item, read_corpus
from compare2score.training.distortions import TYPES_PER_PHOTOGRAPH, UNSEEN, distort, opinion

VERSIONS = 1 + 2 * TYPES_PER_PHOTOGRAPH

ROWS = (
    ("a.png", 1.0, 0.1, "train"),
    ("b.png", 2.0, 0.2, "val"),
    ("c.png", 3.0, 0.3, "test"),
    ("d.png", 4.0, 0.4, "train"),
    ("e.png", 5.0, 0.5, "train"),
)


@pytest.fixture
def table(tmp_path) -> Path:
    folder = tmp_path / "rated"
    folder.mkdir()
    rows = [",".join(map(str, row)) for row in ROWS]
    (folder / "labels.csv").write_text("\n".join(["image,mos,std,split", *rows]))
    return folder


@pytest.fixture
def photographs(tmp_path, texture) -> Path:
    folder = tmp_path / "clean"
    folder.mkdir()
    for i in range(8):
        Image.fromarray(texture(i)).save(folder / f"{i}.png")
    return folder


def test_a_table_gives_a_part_for_training_and_one_for_validation(table):
    corpus = read_corpus([table], [], seed=0)
    (train,), (val,) = corpus.split("train"), corpus.split("val")
    assert (train.name, val.name) == ("rated", "rated")
    assert train.mos.tolist() == [1, 4, 5]
    assert train.std.tolist() == [0.1, 0.4, 0.5]
    assert val.mos.tolist() == [2]
    assert train.has_std
    assert [corpus.items[i] for i in train.items] == [Item(table / f"{name}.png") for name in "ade"]
    assert [corpus.items[i] for i in val.items] == [Item(table / "b.png")]
    assert "c.png" not in {item.path.name for item in corpus.items}


def test_a_table_with_an_expert_is_a_kind_of_its_own(table, photographs):
    other = table.parent / "other.csv"
    other.write_text("".join(f"{line}\n" for line in (table / "labels.csv").read_text().splitlines()))
    for name in "abcde":
        (table.parent / f"{name}.png").write_bytes(b"")
    tables, photos = [table, other], [photographs]
    corpus = read_corpus(tables, photos, seed=0, distort_best=1, expert=["other"])
    kinds = {(part.name, part.split): part.kind for part in corpus.parts}
    assert {key for key, kind in kinds.items() if kind == 1} == {
        ("other", "train"),
        ("other", "val"),
        ("other, distorted", "train"),
    }
    assert set(kinds.values()) == {0, 1}
    both = read_corpus(tables, photos, seed=0, expert=["other", "rated"])
    assert {(part.name, part.kind) for part in both.parts} == {("other", 1), ("rated", 2), ("clean", 0)}


def test_an_expert_for_no_table_is_refused(table):
    with pytest.raises(LabelError, match=r"No table is called 'ratde', .*; name a table\.$"):
        read_corpus([table], [], seed=0, expert=["ratde"])


def test_a_table_may_be_given_as_its_file(table):
    file = table.parent / "other.csv"
    file.write_text("image,mos,split\nx.png,1,train\ny.png,2,val\n")
    corpus = read_corpus([table, file], [], seed=0)
    assert [(part.name, part.split) for part in corpus.parts] == [
        ("rated", "train"),
        ("rated", "val"),
        ("other", "train"),
        ("other", "val"),
    ]
    assert not corpus.parts[2].has_std
    # Every image belongs to one part, in order.
    assert np.concatenate([part.items for part in corpus.parts]).tolist() == list(range(len(corpus.items)))


def test_photographs_are_labelled_by_what_people_think_of_their_distortion(photographs):
    corpus = read_corpus([], [photographs], seed=3)
    (part,) = corpus.parts
    assert (part.name, part.split, part.has_std) == ("clean", "train", False)
    items = [corpus.items[i] for i in part.items]
    # Of eight photographs the first and the seventh are held out.
    assert sorted({item.path.name for item in items}) == [f"{i}.png" for i in (1, 2, 3, 4, 5, 7)]
    assert len(items) == 6 * part.together == 6 * VERSIONS
    for start in range(0, len(items), part.together):
        versions = items[start : start + part.together]
        assert len({item.path for item in versions}) == 1
        assert versions[0].distortion == ""
        assert part.mos[start] > part.mos[start + 1 : start + part.together].max()
    assert part.mos.tolist() == [opinion(item.distortion, item.strength) for item in items]
    assert not {item.distortion for item in items} & set(UNSEEN)
    assert (part.std == SYNTHETIC_STD).all()
    assert read_corpus([], [photographs], seed=3).items == corpus.items
    assert read_corpus([], [photographs], seed=4).items != corpus.items


def test_the_best_images_of_a_table_are_distorted_too(table):
    corpus = read_corpus([table], [], seed=0, distort_best=2)
    assert [(part.name, part.split) for part in corpus.parts] == [
        ("rated", "train"),
        ("rated", "val"),
        ("rated, distorted", "train"),
    ]
    distorted = corpus.parts[2]
    assert [corpus.items[i].path.name for i in distorted.items] == ["e.png"] * VERSIONS + ["d.png"] * VERSIONS


def test_an_item_is_read_and_distorted(photographs, texture):
    clean = texture(1)
    path = photographs / "1.png"
    assert np.array_equal(Item(path).pixels(), clean)
    noisy = Item(path, "gaussian_noise", 3, seed=9).pixels()
    assert np.array_equal(noisy, distort(clean, "gaussian_noise", 3, 9))
    assert not np.array_equal(noisy, clean)


def test_what_cannot_be_used_is_named(table, photographs, tmp_path):
    (tmp_path / "unsplit.csv").write_text("image,mos\na.png,1\n")
    with pytest.raises(LabelError, match=r"unsplit\.csv"):
        read_corpus([tmp_path / "unsplit.csv"], [], seed=0)
    with pytest.raises(LabelError, match="nowhere"):
        read_corpus([], [tmp_path / "nowhere"], seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LabelError, match="fewer than two photographs"):
        read_corpus([], [tmp_path / "empty"], seed=0)
    with pytest.raises(LabelError, match="called 'rated'"):
        read_corpus([table, table], [], seed=0)
    with pytest.raises(LabelError, match="called 'clean'"):
        read_corpus([table], [photographs, photographs], seed=0)
