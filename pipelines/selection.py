"""The images worth keeping: chosen by score, then copied, linked or listed.

All of it can be done again after an interruption: what is in its place already stays there.
"""

from __future__ import annotations

import math
import os
import shutil
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath

import numpy as np

from compare2score.errors import CollectionError
from compare2score.pipelines.decoder import digest
from compare2score.pipelines.rows import Row
from compare2score.pipelines.shards import ParquetBytes
from compare2score.pipelines.sources import Entry


@dataclass(frozen=True)
class Choice:
    """Which images to keep, and what becomes of them. Only images with a score are ever kept.

    Attributes:
        min_score: those of at least this value.
        top: the best ones, so many.
        top_share: the best ones, this share of all that have a score (0-1], rounded up. With none of the
            three all are kept. Of equal ones, those that come first.
        copy_to, link_to: folder for copies, or for symbolic links; at most one of the two.
        listing: text file for their paths, one a line.
    """

    min_score: float | None = None
    top: int | None = None
    top_share: float | None = None
    copy_to: Path | None = None
    link_to: Path | None = None
    listing: Path | None = None

    def __post_init__(self) -> None:
        """Raises CollectionError for what contradicts itself."""
        if self.min_score is not None and (self.top is not None or self.top_share is not None):
            raise CollectionError("--min-score and --keep-top are two ways to choose; give one of them.")
        if self.copy_to is not None and self.link_to is not None:
            raise CollectionError(
                "--copy-to and --link-to put the same images in two places; give one of them."
            )

    @property
    def wanted(self) -> bool:
        """Whether there is anything to choose or to do."""
        return any(value is not None for value in vars(self).values())


def read_top(text: str) -> tuple[int | None, float | None]:
    """ "20%" or "500" as a share or a number. Raises CollectionError for anything else."""
    try:
        if text.endswith("%"):
            share = float(text[:-1]) / 100
            if 0 < share <= 1:
                return None, share
        elif int(text) > 0:
            return int(text), None
    except ValueError:
        pass
    raise CollectionError(f"{text!r} is neither a number of images nor a share such as 20%; give one.")


def keep(rows: Iterable[Row], choice: Choice, all_rows: Iterable[Row]) -> Iterator[bool]:
    """For every row whether it is kept; `all_rows` are the same rows, once more.

    Of the best N it holds every value in memory, eight bytes an image.
    """
    least, at_least = bounds(all_rows, choice)
    for row in rows:
        if row.value is None or row.value < least:
            yield False
        elif row.value > least or at_least is None:
            yield True
        else:
            yield at_least > 0
            at_least -= 1


def bounds(rows: Iterable[Row], choice: Choice) -> tuple[float, int | None]:
    """The least value to keep, and how many of those equal to it; None for all."""
    if choice.top is None and choice.top_share is None:
        return (-math.inf if choice.min_score is None else choice.min_score), None
    values = np.frombuffer(array("d", (row.value for row in rows if row.value is not None)), np.float64)
    share = choice.top_share or 0
    # A share such as 0.07 of 100 must not become 8 through rounding.
    wanted = choice.top or math.ceil(round(share * len(values), 6))
    if wanted >= len(values):
        return -math.inf, None
    least = float(np.partition(values, len(values) - wanted)[len(values) - wanted])
    return least, wanted - int((values > least).sum())


def carry_out(kept: Iterable[tuple[Entry, Row]], choice: Choice) -> int:
    """Copies, links and lists what is kept; returns how many there are.

    Raises CollectionError for what cannot be linked or listed, OSError where the system refuses.
    """
    tables, number = ParquetBytes(), 0
    aside = choice.listing and choice.listing.with_name(f"{choice.listing.name}.part")
    path = aside or Path(os.devnull)
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for entry, row in kept:
            number += 1
            if choice.copy_to is not None:
                put(entry, row, choice.copy_to, tables)
            if choice.link_to is not None:
                link(entry, choice.link_to)
            if aside and "\n" in row.path:
                raise CollectionError(f"{row.path!r} has a line break, which no list can hold; rename it.")
            lines.write(row.path + "\n")
    if aside and choice.listing:
        aside.replace(choice.listing)
    return number


def put(entry: Entry, row: Row, folder: Path, tables: ParquetBytes) -> None:
    """Copies an image to its place below `folder`, unless it is there."""
    for target in targets(entry, folder):
        if not os.path.lexists(target):
            # One name for all runs, so that the next one finds and replaces what a killed one has left.
            aside = target.with_name(f".{target.name[-100:]}.part")
            try:
                write_copy(entry, aside, tables)
                aside.replace(target)
            finally:
                aside.unlink(missing_ok=True)
            return
        if not target.is_symlink() and target.is_file() and digest(str(target))[1] == row.sha256:
            return


def write_copy(entry: Entry, target: Path, tables: ParquetBytes) -> None:
    if entry.row is not None:
        target.write_bytes(tables.read(entry) or b"")
    elif entry.offset is not None:
        with Path(entry.file).open("rb") as shard:
            shard.seek(entry.offset)
            target.write_bytes(shard.read(entry.size))
    else:
        shutil.copyfile(entry.file, target)


def link(entry: Entry, folder: Path) -> None:
    """Makes a symbolic link to a file at its place below `folder`, unless it is there."""
    if entry.offset is not None or entry.row is not None:
        raise CollectionError(f"{entry.path} lies inside a shard and cannot be linked; use --copy-to.")
    source = os.path.abspath(entry.file)  # noqa: PTH100 (resolve would follow links)
    for target in targets(entry, folder):
        if not os.path.lexists(target):
            target.symlink_to(source)
            return
        if target.is_symlink() and os.readlink(target) == source:  # noqa: PTH115
            return


def targets(entry: Entry, folder: Path) -> Iterator[Path]:
    """Paths for an image in `folder`, to be tried in turn: names that collide get a number."""
    place = PurePosixPath(entry.place.replace(os.sep, "/"))
    try:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        # An image has the name of another one's folder.
        place = PurePosixPath("_".join(place.parts))
    for number in count(1):
        name = place.name if number == 1 else f"{place.stem}-{number}{place.suffix}"
        yield folder / place.with_name(name)
