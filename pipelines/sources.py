"""What a collection is made of: files, folders, patterns, lists and shards become a stream of entries.

Every list below is made in the order of its names and in constant memory, so that the same sources give the
same entries in the same order, however many they are.
"""

from __future__ import annotations

import glob
import heapq
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, TypeVar

from compare2score.errors import CollectionError, ImageErrorCode

SUFFIXES = (".bmp", ".gif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""What a folder's images end in, in small letters or capitals. A file that is named need not."""
LIST_SUFFIXES = (".txt", ".lst")
SHARD_SUFFIXES = (".tar",)
TABLE_SUFFIXES = (".parquet",)
PACKED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_NAMES_AT_ONCE = 65_536

T = TypeVar("T", bound="tuple[Any, ...]")


@dataclass(frozen=True)
class Entry:
    """One input of a collection: its name, and where its bytes lie.

    Attributes:
        path: its name in the rows; for a shard's member the shard's path, a slash and the member's name.
        file: the file that holds it.
        place: where below a folder a copy of it belongs; a relative path without "..".
        root: the folder, list or shard that stands behind its source; once that is gone, so is all of it.
        offset, size: where in `file` its bytes lie; None for the whole file.
        row: its row in `file`, a Parquet file that holds the bytes; None for other files.
        error: the code and the text of what is known to be wrong with it.
    """

    path: str
    file: str
    place: str
    root: str
    offset: int | None = None
    size: int | None = None
    row: int | None = None
    error: tuple[ImageErrorCode, str] | None = None

    def to_line(self) -> str:
        """The entry as a line of JSON, which `from_line` reads back."""
        return json.dumps(astuple(self)) + "\n"

    @staticmethod
    def from_line(line: str) -> Entry:
        """The entry of a line."""
        *place, offset, size, row, error = json.loads(line)
        path, file, inside, root = place
        return Entry(path, file, inside, root, offset, size, row, error and (error[0], error[1]))


def list_entries(sources: Sequence[str], follow_links: bool = False) -> Iterator[Entry]:
    """The entries of all sources, in the order given.

    A folder stands for all files below it that have an image's suffix, but for hidden ones (a dot in front).
    A pattern (`*`, `?`, `[...]`; `**` for any folders between) stands for the files it matches, unless
    something has just that name. A text file (`LIST_SUFFIXES`) lists paths, one a line. A tar file is a
    shard, a Parquet file (with the extra "filter") holds images or paths; both in their own order. Anything
    else stands for itself, whether it exists or not. Relative paths start at the working folder.

    A symbolic link that was not named as a source itself is not followed unless `follow_links` is set: a
    link to a file gets an entry with an error, one to a folder none.

    Raises CollectionError for a source that holds no images, or cannot be read as what its suffix says.
    """
    for source in sources:
        empty = True
        for entry in entries_of(source, follow_links):
            empty = False
            yield entry
        if empty:
            raise CollectionError(f"{source} {nothing_in(source)}")


def entries_of(source: str, follow_links: bool) -> Iterator[Entry]:
    """One source's entries."""
    from compare2score.pipelines import shards

    small = source.lower()
    # os.path, because Path raises for what may not be looked into; that gets its error row instead.
    if os.path.isdir(source):  # noqa: PTH112
        return images_below(source, follow_links)
    if glob.has_magic(source) and not os.path.lexists(source):
        return (named for match in matches(source, follow_links) for named in entries_of_match(match))
    if small.endswith(PACKED_SUFFIXES):
        raise CollectionError(f"{source} is compressed; shards are plain tar files: decompress it first.")
    if small.endswith(LIST_SUFFIXES):
        return listed(source, follow_links)
    if small.endswith(SHARD_SUFFIXES):
        return shards.tar_entries(source)
    if small.endswith(TABLE_SUFFIXES):
        return shards.parquet_entries(source, follow_links)
    return iter([file_entry(source, source, follow_links=True)])


def entries_of_match(entry: Entry) -> Iterator[Entry]:
    """What a file that a pattern matches stands for: itself, or what is in it if it is a shard."""
    from compare2score.pipelines import shards

    small = entry.path.lower()
    if entry.error is None and small.endswith(SHARD_SUFFIXES):
        return shards.tar_entries(entry.path)
    if entry.error is None and small.endswith(TABLE_SUFFIXES):
        return shards.parquet_entries(entry.path, follow_links=False)
    return iter([entry])


def nothing_in(source: str) -> str:
    """What a source that has no entries is told."""
    if os.path.isdir(source):  # noqa: PTH112
        return f"holds no images ({' '.join(SUFFIXES)}); give another folder."
    if glob.has_magic(source) and not os.path.lexists(source):
        return "matches no file; check the pattern."
    return "holds no images; give another source."


def file_entry(path: str, root: str, follow_links: bool, place: str | None = None) -> Entry:
    """The entry of one file; a symbolic link's error where links are not followed."""
    error: tuple[ImageErrorCode, str] | None = None
    if not follow_links and os.path.islink(path):  # noqa: PTH114
        text = f"{path} is a symbolic link, and those are followed only with --follow-links."
        error = ("unsupported", text)
    return Entry(path, path, place or os.path.basename(path) or "image", root, error=error)  # noqa: PTH119


def images_below(folder: str, follow_links: bool) -> Iterator[Entry]:
    """Images in a folder and the folders in it, sorted; a folder that cannot be read, with its error."""
    return walk(folder, folder, follow_links, ())


def walk(folder: str, root: str, follow_links: bool, above: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
    """`images_below` of one folder; `above` identifies those that lead to it, lest a link lead round."""
    try:
        status = os.stat(folder)  # noqa: PTH116
        here = (*above, (status.st_dev, status.st_ino))
        if here[-1] in above:
            return
        for name, is_folder in in_order(lambda: scan(folder, follow_links)):
            path = str(Path(folder, name))
            if is_folder:
                yield from walk(path, root, follow_links, here)
            else:
                yield file_entry(path, root, follow_links, os.path.relpath(path, root))
    except OSError as error:
        text = f"{folder} cannot be read ({error.strerror}); check the folder's permissions."
        yield Entry(folder, folder, "image", root, error=("io_error", text))


def scan(folder: str, follow_links: bool) -> Iterator[tuple[str, bool]]:
    """Name and whether it is a folder, of all images and folders in `folder` that are not hidden."""
    with os.scandir(folder) as found:
        for item in found:
            if not item.name.startswith("."):
                is_folder = item.is_dir(follow_symlinks=follow_links)
                linked = not follow_links and item.is_symlink() and item.is_dir()
                if is_folder or (item.name.lower().endswith(SUFFIXES) and not linked):
                    yield item.name, is_folder


def matches(pattern: str, follow_links: bool) -> Iterator[Entry]:
    """The files that a pattern matches, sorted."""
    fixed = len(Path(re.split(r"[*?[]", pattern, maxsplit=1)[0] + "*").parts) - 1

    def found() -> Iterator[tuple[str]]:
        for path in glob.iglob(pattern, recursive=True):  # noqa: PTH207 (Path.glob refuses absolute ones)
            if not os.path.isdir(path) and (follow_links or not through_link(path, fixed)):  # noqa: PTH112
                yield (path,)

    root = str(Path(*Path(pattern).parts[:fixed]))
    return (file_entry(path, root, follow_links) for (path,) in in_order(found))


def through_link(path: str, fixed: int) -> bool:
    """Whether a folder of `path` after its first `fixed` parts is a symbolic link."""
    parts = Path(path).parts
    return any(Path(*parts[:end]).is_symlink() for end in range(fixed + 1, len(parts)))


def listed(source: str, follow_links: bool) -> Iterator[Entry]:
    """The paths in a text file, one a line; empty lines are passed over."""
    try:
        # Names may be any bytes, on any system but Windows; a byte order mark is none of the first.
        with open(source, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:  # noqa: PTH123
            for line in lines:
                if path := line.rstrip("\r\n"):
                    yield file_entry(path, source, follow_links)
    except OSError as error:
        raise CollectionError(f"{source} cannot be read ({error.strerror}); check the list.") from error


def in_order(scan: Callable[[], Iterable[T]], at_once: int = _NAMES_AT_ONCE) -> Iterator[T]:
    """Sorts what `scan` finds in constant memory: it is called again for every `at_once` results.

    What appears or vanishes between two calls is passed on once or not at all.
    """
    last: T | None = None
    while True:
        chunk = heapq.nsmallest(at_once, (item for item in scan() if last is None or item > last))
        yield from chunk
        if len(chunk) < at_once:
            return
        last = chunk[-1]
