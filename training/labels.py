"""Label tables: which images people rated, and how."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compare2score.errors import LabelError

STD_FRACTION = 0.15
"""Standard deviation assumed for a table without one, as a fraction of its MOS range (max - min).

0.15 is the median, over nine public tables (BID, LIVE Challenge, CSIQ, KADID-10k, KonIQ-10k, LIVE, SPAQ,
TID2013, AGIQA-3K), of the mean standard deviation divided by the MOS range.
"""

REQUIRED = ("image", "mos")
OPTIONAL = ("std", "group", "split")


@dataclass(frozen=True, eq=False)
class LabelTable:
    """The rated images of one dataset, N rows in the order of the file.

    MOS of different tables are not comparable: each study has its own scale.

    name: the dataset: the file's stem, or its folder's name where the file is called labels.csv.
    images: [N] image paths as the file gives them, relative to `root` or absolute; no two are equal.
    mos: float64 [N], mean opinion score on the table's own scale, finite, higher is better.
    std: float64 [N], standard deviation of the opinions, finite, >= 0, on the scale of `mos`; the same
        number in every row where `has_std` is false.
    has_std: whether the file gives `std`.
    split: [N] the part of the dataset that a row belongs to ("train", ...), or None without that column.
    group: [N] images of one group (one scene, one prompt) share a value and should not be divided between
        training and test, or None without that column.
    root: the folder of the file.
    more: [N] each, by name: what the file's other columns say (the type of distortion, ...), as text.
    """

    name: str
    images: tuple[str, ...]
    mos: NDArray[np.float64]
    std: NDArray[np.float64]
    has_std: bool
    split: tuple[str, ...] | None
    group: tuple[str, ...] | None
    root: Path
    more: Mapping[str, tuple[str, ...]] = dataclass_field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)


def read_labels(path: str | Path, std: float | None = None, split: str | None = None) -> LabelTable:
    """Read a csv file with the header `image,mos[,std][,group][,split]` (any order, others kept as text).

    std: the standard deviation of every row, > 0 and on the scale of the MOS, for a table without a std
        column (one with the column keeps its own); by default STD_FRACTION times the MOS range of the whole
        file, so that every split of it gets the same number.
    split: keep only the rows whose split column says this. The other rows are checked all the same.

    Raises LabelError, naming the file and the line, for a file or column that is missing, a row of another
    length than the header, an MOS or std that is no finite number, a negative std, an image without a name
    or named twice, and a table or split without rows.
    """
    path = Path(path)
    if std is not None and not (math.isfinite(std) and std > 0):
        raise LabelError(f"The standard deviation for {path} is {std}; give a finite number above 0.")
    header, rows, lines = _read_rows(path)
    column = _find_columns(path, header)
    if not rows:
        raise LabelError(f"{path} has a header but no rows; a label table needs at least one rated image.")

    images = _read_images(path, [row[column["image"]] for row in rows], lines)
    mos = _read_numbers(path, "mos", [row[column["mos"]] for row in rows], lines)
    if "std" in column:
        deviations = _read_numbers(path, "std", [row[column["std"]] for row in rows], lines)
        if (deviations < 0).any():
            at = int(np.argmax(deviations < 0))
            raise LabelError(
                f"{path}, line {lines[at]}: std is {deviations[at]}; a standard deviation is 0 or more."
            )
    else:
        deviations = np.full(len(mos), STD_FRACTION * np.ptp(mos) if std is None else std)
    group = tuple(row[column["group"]].strip() for row in rows) if "group" in column else None
    splits = tuple(row[column["split"]].strip() for row in rows) if "split" in column else None
    # Reversed, so that of two columns of one name the first is kept.
    others = {name: place for place, name in reversed(list(enumerate(header))) if name not in column}
    more = {name: tuple(row[place].strip() for row in rows) for name, place in others.items()}

    if split is not None:
        if splits is None:
            raise LabelError(f"{path} has no split column; leave the split out or add the column.")
        kept = [row for row, name in enumerate(splits) if name == split]
        if not kept:
            known = ", ".join(sorted(set(splits)))
            raise LabelError(f"{path} has no rows of split '{split}'; its splits are {known}.")
        images = tuple(images[row] for row in kept)
        mos, deviations = mos[kept], deviations[kept]
        group = None if group is None else tuple(group[row] for row in kept)
        splits = (split,) * len(kept)
        more = {name: tuple(texts[row] for row in kept) for name, texts in more.items()}

    mos.flags.writeable = deviations.flags.writeable = False
    return LabelTable(
        # Datasets that keep their table as <dataset>/labels.csv would otherwise share one name.
        name=path.resolve().parent.name if path.stem == "labels" else path.stem,
        images=images,
        mos=mos,
        std=deviations,
        has_std="std" in column,
        split=splits,
        group=group,
        root=path.parent,
        more=more,
    )


def _read_rows(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """The header, the rows that are not blank, and the line of the file at which each row ends."""
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        # utf-8-sig: spreadsheets put a byte order mark in front of the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            try:
                header = [name.strip() for name in next(reader, [])]
                for row in reader:
                    if not row:
                        continue
                    if len(row) != len(header):
                        raise LabelError(
                            f"{path}, line {reader.line_num}: {len(row)} fields where the header has "
                            f"{len(header)}; quote fields that contain a comma."
                        )
                    rows.append(row)
                    lines.append(reader.line_num)
            except csv.Error as error:
                raise LabelError(f"{path}, line {reader.line_num}: not valid csv ({error}).") from error
    except OSError as error:
        raise LabelError(f"{path} cannot be read as a label table ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise LabelError(f"{path} is not UTF-8 text; save it as a UTF-8 csv file.") from error
    return header, rows, lines


def _find_columns(path: Path, header: Sequence[str]) -> dict[str, int]:
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise LabelError(
            f"{path}, line 1: no column '{missing[0]}'; the header must name at least image and mos."
        )
    for name in REQUIRED + OPTIONAL:
        if header.count(name) > 1:
            raise LabelError(f"{path}, line 1: two columns are called '{name}'; keep one.")
    return {name: header.index(name) for name in REQUIRED + OPTIONAL if name in header}


def _read_images(path: Path, names: Sequence[str], lines: Sequence[int]) -> tuple[str, ...]:
    first_line: dict[str, int] = {}
    for name, line in zip((name.strip() for name in names), lines, strict=True):
        if not name:
            raise LabelError(f"{path}, line {line}: the image column is empty; give the image's path.")
        if name in first_line:
            raise LabelError(
                f"{path}, line {line}: '{name}' is already on line {first_line[name]}; keep one row an image."
            )
        first_line[name] = line
    return tuple(first_line)


def _read_numbers(
    path: Path, column: str, fields: Sequence[str], lines: Sequence[int]
) -> NDArray[np.float64]:
    numbers = np.empty(len(fields))
    for row, field in enumerate(fields):
        try:
            numbers[row] = float(field)
        except ValueError:
            numbers[row] = math.nan
        if not math.isfinite(numbers[row]):
            raise LabelError(f"{path}, line {lines[row]}: {column} is '{field}'; give a finite number.")
    return numbers
