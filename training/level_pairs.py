"""Pairs of image files with the level to answer, from files of comparative instructions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compare2score.errors import LabelError
from compare2score.training.corpus import read_corpus


@dataclass(frozen=True, eq=False)
class LevelPairs:
    """P pairs of images and the levels to answer.

    Attributes:
        paths: the image files, [N].
        first, second: of each pair, as indices into `paths`, [P].
        level: index into LEVELS of the second image compared with the first, [P].
        sources: names of the datasets, and how many pairs each gave.
    """

    paths: tuple[Path, ...]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    level: NDArray[np.int64]
    sources: tuple[tuple[str, int], ...]

    def __len__(self) -> int:
        return len(self.level)

    def digest(self) -> str:
        """Hash of the pairs, their levels and the names of their files."""
        hashed = hashlib.sha256(json.dumps([str(path) for path in self.paths]).encode())
        for part in (self.first, self.second, self.level):
            hashed.update(part.tobytes())
        return hashed.hexdigest()


def read_pairs(files: Sequence[Path]) -> LevelPairs:
    """Reads files of `training.instructions.write_instructions`, of which only images and levels count.

    Raises LabelError if there are none, a file cannot be used, or an image is not there.
    """
    corpus = read_corpus([], [], 0, files)
    if not corpus.pairs:
        raise LabelError("There are no pairs to train on; give --pairs a file of 'c2s train instructions'.")
    paths = tuple(item.path for item in corpus.items)
    for path in paths:
        if not path.is_file():
            raise LabelError(f"{path}, an image that the pairs name, is not there; correct the path.")
    return LevelPairs(
        paths,
        np.concatenate([part.items[part.first] for part in corpus.pairs]),
        np.concatenate([part.items[part.second] for part in corpus.pairs]),
        np.concatenate([part.level for part in corpus.pairs]),
        tuple((part.name, len(part.level)) for part in corpus.pairs),
    )
