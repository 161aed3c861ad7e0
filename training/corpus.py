"""What a comparator is trained on: labelled tables and distorted photographs, as one list of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compare2score.anchors.select import select_anchors_of
from compare2score.decode import load_image
from compare2score.errors import LabelError
from compare2score.training.distortions import distort, opinion, split_photographs, versions_of
from compare2score.training.instructions import read_instructions
from compare2score.training.labels import read_labels

SYNTHETIC_STD = 0.72
"""Deviation of the opinions of one distorted photograph in KADID-10k, mean over all of them."""


@dataclass(frozen=True)
class Item:
    """One image of the corpus: a file, and what is done to it before it is preprocessed."""

    path: Path
    distortion: str = ""
    strength: int = 0
    seed: int = 0

    def pixels(self) -> NDArray[np.uint8]:
        """RGB pixels [H, W, 3]. Raises ImageError if the file cannot be read."""
        return distort(load_image(self.path), self.distortion, self.strength, self.seed)


@dataclass(frozen=True)
class Part:
    """Images that may be compared with each other: those of one table and one split.

    `mos` and `std` are float64 [N]; `items` index the corpus, [N]. Every `together` consecutive images are
    versions of one photograph, which training compares with each other first of all: 1 where people rated the
    images themselves. `kind` is 0 where the images have no expert, else the number of theirs, from 1.
    """

    name: str
    split: str
    items: NDArray[np.intp]
    mos: NDArray[np.float64]
    std: NDArray[np.float64]
    has_std: bool
    together: int = 1
    kind: int = 0

    def anchors(self, intervals: int = 5, per_interval: int = 1) -> NDArray[np.intp]:
        """Corpus indices [intervals * per_interval] of images to compare with. Raises LabelError."""
        return self.items[select_anchors_of(self, intervals, per_interval)]


@dataclass(frozen=True)
class InstructedPairs:
    """Pairs whose level is given, from a file of comparative instructions.

    `items` index the corpus, [N]; `first` and `second` index `items`, [P]; `level` indexes LEVELS, [P].
    """

    name: str
    items: NDArray[np.intp]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    level: NDArray[np.int64]


@dataclass(frozen=True)
class Corpus:
    """All images, the parts they belong to, and the pairs that were given instead of opinion scores."""

    items: tuple[Item, ...]
    parts: tuple[Part, ...]
    pairs: tuple[InstructedPairs, ...] = ()

    def split(self, name: str) -> tuple[Part, ...]:
        """The parts of one split ("train", "val")."""
        return tuple(part for part in self.parts if part.split == name)


def read_corpus(
    tables: list[Path],
    photographs: list[Path],
    seed: int,
    instructions: Sequence[Path] = (),
    std: float | None = None,
    distort_best: int = 0,
    splits: Sequence[str] = ("train", "val"),
    expert: Sequence[str] = (),
) -> Corpus:
    """Reads label tables (rows of the named splits), and clean photographs and instructions (train only).

    A photograph's versions are labelled by what people think of their distortion, whatever the content: a
    clean photograph is better than another one's distorted version, too.

    Args:
        tables: folders that hold a `labels.csv`, or label files.
        photographs: folders of undistorted photographs; every sixth one is held out.
        seed: of the distortions.
        instructions: files of `training.instructions.write_instructions`.
        std: standard deviation for tables that state none, see `read_labels`.
        distort_best: how many of every table's best training images are distorted like clean photographs.
        splits: of the tables, in the corpus's order.
        expert: names of tables whose images are a kind of their own.

    Raises:
        LabelError: a table, file or folder cannot be used, or two have the same name.
    """
    items: list[Item] = []
    parts: list[Part] = []

    def add(new: list[Item]) -> NDArray[np.intp]:
        items.extend(new)
        return np.arange(len(items) - len(new), len(items))

    def add_distorted(name: str, photos: list[Path], kind: int = 0) -> None:
        versions = [versions_of(i, seed) for i in range(len(photos))]
        index = add(
            [
                Item(path, kind, strength, seed=seed + i)
                for i, path in enumerate(photos)
                for kind, strength in versions[i]
            ]
        )
        mos = np.array([opinion(*version) for photo in versions for version in photo])
        deviation = np.full(len(mos), SYNTHETIC_STD)
        parts.append(Part(name, "train", index, mos, deviation, False, len(versions[0]), kind))

    for table in tables:
        for split in splits:
            labels = read_labels(table / "labels.csv" if table.is_dir() else table, std, split)
            index = add([Item(labels.root / image) for image in labels.images])
            kind = 1 + list(expert).index(labels.name) if labels.name in expert else 0
            parts.append(Part(labels.name, split, index, labels.mos, labels.std, labels.has_std, kind=kind))
    missing = sorted(set(expert) - {part.name for part in parts})
    if missing:
        raise LabelError(f"No table is called {missing[0]!r}, which should have an expert; name a table.")
    if distort_best:
        for part in [part for part in parts if part.split == "train"]:
            best = part.items[np.argsort(-part.mos, kind="stable")[:distort_best]]
            add_distorted(f"{part.name}, distorted", [items[i].path for i in best], part.kind)
    for folder in photographs:
        photos = split_photographs(folder)[0] if folder.is_dir() else []
        if not photos:
            raise LabelError(f"{folder} holds fewer than two photographs (.jpg, .png); name another folder.")
        add_distorted(folder.name, photos)
    names = [part.name for part in parts if part.split == "train"]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise LabelError(f"Two tables or folders are called '{twice}'; rename one.")
    pairs = []
    for path in instructions:
        given = read_instructions(path)
        for d, name in enumerate(given.datasets):
            chosen = given.dataset == d
            index = np.arange(len(items), len(items) + len(given.images[d]))
            items.extend(Item(given.roots[d] / image) for image in given.images[d])
            rows = (given.first[chosen], given.second[chosen], given.level[chosen])
            pairs.append(InstructedPairs(name, index, *rows))
    return Corpus(tuple(items), tuple(parts), tuple(pairs))
