"""Comparative instructions: what a comparator is trained on, and the JSON lines file that holds them.

One instruction is a pair of images of one dataset, the question, and the level to answer. The file has one
JSON object a line, in the conversation form of LLaVA, mPLUG-Owl2 and Q-Align's published training data
(theirs is one JSON list of such objects), and three fields more:

    {"id": "bid-3-17", "image": ["bid/a.jpg", "bid/b.jpg"], "conversations": [
        {"from": "human", "value": "<|image|> <|image|> Compared with the first image, ...?"},
        {"from": "gpt", "value": "The quality of the second image is better."}],
     "dataset": "bid", "level": "better", "mos_difference": 1.25}

Image paths are relative to the folder of the file that names them, in label tables and here alike.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from compare2score.comparator.prompt import ANSWERED, ASKED, IMAGE, LEVELS
from compare2score.errors import LabelError
from compare2score.training.labels import LabelTable
from compare2score.training.pairs import Mix, comparative_level, draw_pairs, equal_shares

__all__ = [
    "Instructions",
    "comparative_level",
    "read_instructions",
    "sample_pairs",
    "shortfall",
    "write_instructions",
]

LEVEL_WORD = re.compile(rf"\b({'|'.join(LEVELS)})\b")


@dataclass(frozen=True, eq=False)
class Instructions:
    """P comparative instructions over the images of D datasets.

    datasets: [D] names of the datasets.
    images: [D] the image paths of each dataset, relative to its entry of `roots` or absolute.
    roots: [D] the folders that relative image paths start from.
    dataset: int64 [P], 0 ... D-1.
    first, second: int64 [P], rows of `images[dataset]`, never equal.
    level: int64 [P], index into LEVELS of the second image's quality compared with the first: 0 inferior,
        1 worse, 2 similar, 3 better, 4 superior.
    mos_difference: float64 [P], MOS of the second image minus MOS of the first, on the dataset's own scale;
        NaN where a file that was read did not say.
    """

    datasets: tuple[str, ...]
    images: tuple[tuple[str, ...], ...]
    roots: tuple[Path, ...]
    dataset: NDArray[np.int64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    level: NDArray[np.int64]
    mos_difference: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.level)

    def paths(self, index: int) -> tuple[Path, Path]:
        """The first and the second image of one instruction, as paths that can be opened."""
        source = int(self.dataset[index])
        names, root = self.images[source], self.roots[source]
        return root / names[self.first[index]], root / names[self.second[index]]

    def level_counts(self) -> NDArray[np.int64]:
        """int64 [D, 5]: instructions of each dataset and level."""
        cells = self.dataset * len(LEVELS) + self.level
        counts = np.bincount(cells, minlength=len(self.datasets) * len(LEVELS))
        return counts.astype(np.int64).reshape(-1, len(LEVELS))


def sample_pairs(tables: Sequence[LabelTable], pairs: int, seed: int, mix: Mix = "balanced") -> Instructions:
    """Draws `pairs` instructions from every table, each a pair of different images that no other repeats.

    Every table gives the same number whatever its size, or all its N (N - 1) ordered pairs if it has fewer.
    The paper trains on 180,000 from six datasets. The instructions of all tables are shuffled together.

    mix: "balanced" for as many pairs of each of the five levels as of the others, "natural" for all pairs
        alike, as in the paper; see `draw_pairs`. `Instructions.level_counts` shows what came of it.
    seed: >= 0; the same tables in the same order, pairs, seed and mix give the same instructions in the same
        order. What is drawn from a table does not depend on the tables behind it.

    Raises LabelError for no tables, two of one name, a table of fewer than two images, pairs < 1, a negative
    seed or an unknown mix.
    """
    names = [table.name for table in tables]
    if not tables:
        raise LabelError("There is no label table to draw pairs from; give at least one.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise LabelError(f"Two label tables are called '{twice}'; rename one of the files.")
    if seed < 0:
        raise LabelError(f"The seed is {seed}; give 0 or more.")
    parts = []
    streams = np.random.SeedSequence(seed).spawn(len(tables))
    for index, (table, stream) in enumerate(zip(tables, streams, strict=True)):
        first, second = draw_pairs(table, pairs, mix, np.random.default_rng(stream))
        level = comparative_level(table.mos[first], table.std[first], table.mos[second], table.std[second])
        difference = table.mos[second] - table.mos[first]
        parts.append((np.full(len(first), index), first, second, level, difference))
    dataset, first, second, level, difference = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.random.default_rng(seed).permutation(len(level))
    return Instructions(
        datasets=tuple(names),
        images=tuple(table.images for table in tables),
        roots=tuple(table.root for table in tables),
        dataset=dataset[order],
        first=first[order],
        second=second[order],
        level=level[order],
        mos_difference=difference[order],
    )


def shortfall(instructions: Instructions, pairs: int) -> NDArray[np.int64]:
    """int64 [D, 5]: how many instructions each level lacks of its equal share of `pairs` a dataset, or 0.

    Of a balanced mix, a number above 0 says that the table has no more pairs of that level.
    """
    share = equal_shares(pairs, np.full(len(LEVELS), pairs))
    lacking: NDArray[np.int64] = np.maximum(share - instructions.level_counts(), 0)
    return lacking


def write_instructions(path: str | Path, instructions: Instructions) -> None:
    """Writes the instructions as JSON lines in UTF-8, in their order.

    The file appears under its name only when complete: it is written as `<name>.partial` and then renamed.
    Question and answer are those of the scoring prompt, so that training and scoring see the same text.
    Raises LabelError if the folder cannot be written to.
    """
    path = Path(path)
    folder = path.resolve().parent
    # Encoded once an image, level and dataset rather than once a line: 180,000 lines take about a second.
    images = [
        [_encode(_path_from(folder, root, name)) for name in names]
        for root, names in zip(instructions.roots, instructions.images, strict=True)
    ]
    question = {"from": "human", "value": f"{IMAGE} {IMAGE} {ASKED}"}
    talks = [_encode([question, {"from": "gpt", "value": f"{ANSWERED} {level}."}]) for level in LEVELS]
    datasets = [_encode(name) for name in instructions.datasets]
    partial = path.with_name(f"{path.name}.partial")
    rows = zip(
        instructions.dataset.tolist(),
        instructions.first.tolist(),
        instructions.second.tolist(),
        instructions.level.tolist(),
        instructions.mos_difference.tolist(),
        strict=True,
    )
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(
                f'{{"id": {datasets[dataset][:-1]}-{first}-{second}", '
                f'"image": [{images[dataset][first]}, {images[dataset][second]}], '
                f'"conversations": {talks[level]}, "dataset": {datasets[dataset]}, '
                f'"level": "{LEVELS[level]}", '
                # JSON has no NaN.
                f'"mos_difference": {"null" if math.isnan(difference) else repr(difference)}}}\n'
                for dataset, first, second, level, difference in rows
            )
        partial.replace(path)
    except OSError as error:
        raise LabelError(f"{path} cannot be written ({error.strerror}).") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def read_instructions(path: str | Path) -> Instructions:
    """Reads a file of `write_instructions`, or another's JSON lines of the same conversation form.

    The level is the one level word in the last turn. Where `dataset` is absent the file's stem stands for it,
    where `mos_difference` is absent or null the number is NaN. Datasets and images are numbered in the order
    in which the file first names them.

    Raises LabelError, naming the file and the line, for a line that is no JSON object, an `image` that is not
    two different paths, conversations that are not one question with two `<|image|>` and one answer with one
    level, a `level` that disagrees with the answer, or a difference that is no finite number; also for a file
    that is missing, empty or not UTF-8.
    """
    path = Path(path)
    numbers: dict[str, dict[str, int]] = {}
    rows = []
    try:
        with path.open(encoding="utf-8") as file:
            for line, text in enumerate(file, start=1):
                if text.isspace():
                    continue
                try:
                    dataset, pair, level, difference = _parse(json.loads(text, parse_int=float), path.stem)
                except (ValueError, RecursionError) as error:
                    raise LabelError(f"{path}, line {line}: {_reason(error)}.") from error
                number = numbers.setdefault(dataset, {})
                first, second = (number.setdefault(image, len(number)) for image in pair)
                rows.append((dataset, first, second, level, difference))
    except OSError as error:
        raise LabelError(f"{path} cannot be read as instructions ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise LabelError(f"{path} is not UTF-8 text; write it again as JSON lines.") from error
    if not rows:
        raise LabelError(f"{path} holds no instructions; write it again from a label table.")
    index = {name: place for place, name in enumerate(numbers)}
    return Instructions(
        datasets=tuple(numbers),
        images=tuple(tuple(number) for number in numbers.values()),
        roots=(path.parent,) * len(numbers),
        dataset=np.array([index[row[0]] for row in rows], np.int64),
        first=np.array([row[1] for row in rows], np.int64),
        second=np.array([row[2] for row in rows], np.int64),
        level=np.array([row[3] for row in rows], np.int64),
        mos_difference=np.array([row[4] for row in rows], np.float64),
    )


def _parse(entry: Any, default_dataset: str) -> tuple[str, list[str], int, float]:
    """Dataset, two images, level and MOS difference of one line; ValueError says what is wrong with it."""
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    images = entry.get("image")
    if not _are_strings(images, 2) or images[0] == images[1]:
        raise ValueError("'image' must be a list of two different paths")
    turns = entry.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("'conversations' must be a list of turns")
    values = [turn.get("value") for turn in turns]
    if [turn.get("from") for turn in turns] != ["human", "gpt"] or not _are_strings(values, 2):
        raise ValueError("'conversations' must be one turn from human and one from gpt, each with its value")
    if values[0].count(IMAGE) != 2:
        raise ValueError(f"the question must hold {IMAGE} twice")
    words = LEVEL_WORD.findall(values[1])
    if len(words) != 1:
        raise ValueError(f"the answer must name one level of {', '.join(LEVELS)}")
    if entry.get("level", words[0]) != words[0]:
        raise ValueError(f"'level' is {entry['level']!r} but the answer says '{words[0]}'")
    dataset = entry.get("dataset", default_dataset)
    if not isinstance(dataset, str):
        raise ValueError("'dataset' must be a name")
    difference = entry.get("mos_difference")
    if difference is None:
        return dataset, images, LEVELS.index(words[0]), math.nan
    if not isinstance(difference, float) or not math.isfinite(difference):
        raise ValueError("'mos_difference' must be a finite number")
    return dataset, images, LEVELS.index(words[0]), difference


def _are_strings(values: Any, count: int) -> TypeGuard[list[str]]:
    return isinstance(values, list) and len(values) == count and all(isinstance(v, str) and v for v in values)


def _reason(error: Exception) -> str:
    return f"not JSON ({error.msg})" if isinstance(error, json.JSONDecodeError) else str(error)


def _encode(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _path_from(folder: Path, root: Path, name: str) -> str:
    """An image path of a table in `root`, as seen from `folder`, with forward slashes."""
    if Path(name).is_absolute():
        return name
    try:
        prefix = Path(os.path.relpath(root.resolve(), folder))
    except ValueError:  # another drive, on Windows
        prefix = root.resolve()
    return (prefix / name).as_posix()
