"""Comparative instructions in a file train a comparator as opinion scores do."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from compare2score.errors import LabelError
from compare2score.training.batches import epoch_batches, steps_of
from compare2score.training.corpus import read_corpus
from compare2score.training.instructions import read_instructions, sample_pairs, write_instructions
from compare2score.training.labels import read_labels


@pytest.fixture
def instructions(tmp_path, texture):
    for i in range(9):
        Image.fromarray(texture(i, 32)).save(tmp_path / f"{i}.png")
    rows = "".join(f"{i}.png,{i},0.9\n" for i in range(9))
    (tmp_path / "labels.csv").write_text("image,mos,std\n" + rows)
    path = tmp_path / "pairs.jsonl"
    write_instructions(path, sample_pairs([read_labels(tmp_path / "labels.csv")], 30, seed=0))
    return path


def test_every_pair_of_a_file_is_trained_on_once_an_epoch_with_its_own_level(instructions):
    given = read_instructions(instructions)
    expected = sorted((*map(str, given.paths(i)), int(given.level[i])) for i in range(len(given)))
    corpus = read_corpus([], [], seed=0, instructions=[instructions])
    (source,) = corpus.pairs
    batches = list(epoch_batches(corpus.pairs, size=10, partners=2, seed=0, epoch=0))
    assert len(batches) == steps_of(source, 10) == 6
    seen = []
    for batch in batches:
        assert len(batch.items) <= 10
        assert len(np.unique(batch.items)) == len(batch.items)
        paths = [str(corpus.items[item].path) for item in batch.items]
        np.testing.assert_array_equal(batch.targets.sum(axis=1), 1)
        levels = batch.targets.argmax(axis=1)
        triples = zip(batch.first, batch.second, levels, strict=True)
        seen += [(paths[first], paths[second], int(level)) for first, second, level in triples]
    assert sorted(seen) == expected


def test_a_missing_file_of_instructions_is_one_sentence(tmp_path):
    with pytest.raises(LabelError, match=r"cannot be read as instructions"):
        read_corpus([], [], seed=0, instructions=[tmp_path / "none.jsonl"])
