"""Small pictures of rows' images, decoded as for scoring: in a process of their own, with the same bounds."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping

from PIL import Image

from compare2score.errors import CollectionError, MissingExtraError
from compare2score.image import ImageSpec
from compare2score.pipelines.decoding import Decoded, decoding_pool
from compare2score.pipelines.rows import Row
from compare2score.pipelines.shards import ParquetBytes, parquet_entries, tar_entries
from compare2score.pipelines.sources import SHARD_SUFFIXES, TABLE_SUFFIXES, Entry, file_entry

SIDE = 192
"""Pixels of the longer side."""
_SPEC = ImageSpec(SIDE, (0.0,) * 3, (1.0,) * 3, (255,) * 3)
_QUALITY = 80


def make_thumbnails(rows: Iterable[Row], seconds: float = 30.0) -> dict[str, bytes]:
    """JPEG files by row path, the longer side of each SIDE pixels; `seconds` bounds the decoding of one.

    A row's image is missing where it is gone, or its content is not what was scored.

    Raises CollectionError if no decoding process starts.
    """
    wanted = {row.path: row for row in rows}
    files: dict[str, bytes] = {}
    tables = ParquetBytes()
    with decoding_pool(_SPEC, 1, seconds) as pool:
        for path, entry in find_entries(wanted):
            try:
                data = None if entry.row is None else tables.read(entry) or b""
            except CollectionError:
                continue
            # One after the other, so that only one image's bytes are held.
            decoded = pool.submit(entry, data).result()
            file = encode(decoded) if decoded.sha256 == wanted[path].sha256 else None
            if file is not None:
                files[path] = file
    return files


def encode(decoded: Decoded) -> bytes | None:
    """The JPEG file of what was decoded, without the square's margins; None where there are no pixels."""
    if decoded.fitted is None or not decoded.width or not decoded.height:
        return None
    longer = max(decoded.width, decoded.height)
    width, height = (max(1, round(SIDE * side / longer)) for side in (decoded.width, decoded.height))
    left, top = (SIDE - width) // 2, (SIDE - height) // 2
    file = io.BytesIO()
    picture = Image.fromarray(decoded.fitted[top : top + height, left : left + width])
    picture.save(file, "JPEG", quality=_QUALITY, optimize=True)
    return file.getvalue()


def find_entries(wanted: Mapping[str, Row]) -> Iterator[tuple[str, Entry]]:
    """Where the images of rows lie, those of one shard or table together and in its order."""
    inside: dict[str, set[str]] = {}
    for path in wanted:
        shard = shard_of(path)
        if shard is None:
            yield path, file_entry(path, path, follow_links=True)
        else:
            inside.setdefault(shard, set()).add(path)
    for shard, paths in inside.items():
        yield from members(shard, paths)


def shard_of(path: str) -> str | None:
    """The tar or Parquet file that a row's path leads into; None for a file of its own."""
    slashes = (place for place, character in enumerate(path) if character == "/")
    shards = (path[:place] for place in slashes)
    suffixes = SHARD_SUFFIXES + TABLE_SUFFIXES
    # os.path, because Path raises for names that no system takes.
    return next((name for name in shards if name.lower().endswith(suffixes) and os.path.isfile(name)), None)  # noqa: PTH113


def members(shard: str, paths: set[str]) -> Iterator[tuple[str, Entry]]:
    """The entries of `paths` in a shard; none of one that cannot be read any more."""
    left = set(paths)
    is_tar = shard.lower().endswith(SHARD_SUFFIXES)
    try:
        for entry in tar_entries(shard) if is_tar else parquet_entries(shard, follow_links=False):
            if entry.path in left:
                left.remove(entry.path)
                yield entry.path, entry
            if not left:
                return
    except (CollectionError, MissingExtraError):
        return
