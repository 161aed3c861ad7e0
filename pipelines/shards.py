"""Files that hold many images: tar shards (as webdataset writes them) and Parquet tables.

Nothing is ever unpacked to a disk; a member's name is a name, never a place to write to.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from compare2score.errors import CollectionError, MissingExtraError
from compare2score.pipelines.sources import SUFFIXES, Entry, file_entry

_BLOCK = 512
_ROWS_AT_ONCE = 16
_NAME_BYTES, _NAME_PARTS = 200, 8
_BYTES_NAMES = ("image", "bytes", "image_bytes", "data", "content", "jpg", "jpeg", "png", "webp")
_PATH_NAMES = ("path", "file", "file_name", "filename", "image_path", "image", "key", "__key__")


def tar_entries(shard: str) -> Iterator[Entry]:
    """The images in a tar file that is not compressed, in its order; what comes after damage is one error.

    Raises CollectionError if it cannot be opened as a tar file.
    """
    try:
        with tarfile.open(shard, "r:") as tar:
            try:
                while (member := tar.next()) is not None:
                    # tarfile would keep every member for ever.
                    tar.__dict__["members"] = []
                    if member.name.lower().endswith(SUFFIXES) and not member.isdir():
                        yield member_entry(shard, member)
                damaged = not ends_well(tar)
            except tarfile.TarError:
                damaged = True
    except (OSError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or "it is no tar file"
        raise CollectionError(f"{shard} cannot be read ({reason}); check the shard.") from error
    if damaged:
        text = f"{shard} is damaged: its members end early or cannot be told apart; fetch it again."
        yield Entry(shard, shard, "image", shard, error=("truncated", text))


def member_entry(shard: str, member: tarfile.TarInfo) -> Entry:
    """Entry of a member that looks like an image; a link or device is an error, never followed."""
    name = f"{shard}/{member.name}"
    if not member.isreg() or member.sparse is not None:
        text = f"{name} is no regular file in its shard (a link or a sparse file); pack the file itself."
        return Entry(name, shard, inside(member.name), shard, error=("unsupported", text))
    return Entry(name, shard, inside(member.name), shard, member.offset_data, member.size)


def ends_well(tar: tarfile.TarFile) -> bool:
    """Whether a tar file that gave no more members ends there, and not in something that is no member."""
    file: Any = tar.fileobj
    file.seek(tar.offset)
    rest = file.read(_BLOCK)
    return not rest.strip(b"\0")


def inside(name: str) -> str:
    """`name` as a relative path that stays below the folder it is joined to, on any system.

    Absolute names lose their root, and "..", drives and empty parts are dropped. What is too long for a file
    system loses its beginning.
    """
    parts = PurePosixPath(name.replace("\\", "/").replace("\0", "")).parts
    safe = [PureWindowsPath(part).name for part in parts if part not in ("/", "//", "..", ".")]
    short = [os.fsdecode(os.fsencode(part)[-_NAME_BYTES:]) for part in safe if part]
    return "/".join(short[-_NAME_PARTS:]) or "image"


def parquet_entries(table: str, follow_links: bool) -> Iterator[Entry]:
    """The images in a Parquet file, a row each: their bytes, or else their paths.

    Bytes lie in a binary column or, as Hugging Face's data sets have them, in the field `bytes` of a
    structure whose `path` names them. Of several columns those called like images go first.

    Raises CollectionError if it is no Parquet file or has no such column, MissingExtraError without pyarrow.
    """
    with open_parquet(table) as file:
        bytes_column, name_column = columns(table, file.schema_arrow)
        if bytes_column is None:
            for _, name in named_rows(file, name_column):
                yield file_entry(name or "", table, follow_links)
            return
        for row, name in named_rows(file, name_column):
            shown = name or f"{row}"
            yield Entry(f"{table}/{shown}", table, inside(shown), table, row=row)


def named_rows(file: Any, column: str | None) -> Iterator[tuple[int, str | None]]:
    """Number of every row and what the column says in it."""
    if column is None:
        yield from ((row, None) for row in range(file.metadata.num_rows))
        return
    row = 0
    for batch in file.iter_batches(columns=[column]):
        values = batch.column(0)
        for name in (field(values, column) if "." in column else values).to_pylist():
            yield row, name
            row += 1


def field(values: Any, column: str) -> Any:
    """The field that `column`, "structure.field", names, of the structure's values."""
    return values.field(column.partition(".")[2])


def columns(table: str, schema: Any) -> tuple[str | None, str | None]:
    """The columns of the bytes and of the names; without the first the second holds paths.

    Raises CollectionError if there is neither.
    """
    from pyarrow import types

    named = {item.name: item.type for item in schema}
    texts = [n for n, kind in named.items() if types.is_string(kind) or types.is_large_string(kind)]
    binary = [n for n, kind in named.items() if types.is_binary(kind) or types.is_large_binary(kind)]
    name = first(_PATH_NAMES, texts)
    for structure, kind in named.items():
        fields = {kind.field(i).name for i in range(kind.num_fields)} if types.is_struct(kind) else set()
        if "bytes" in fields:
            return f"{structure}.bytes", f"{structure}.path" if "path" in fields else name
    held = first(_BYTES_NAMES, binary)
    if held is None and name is None:
        listing = ", ".join(named) or "none"
        raise CollectionError(f"{table} has no column of image bytes or paths (its columns: {listing}).")
    return held, name


def first(preferred: tuple[str, ...], there: list[str]) -> str | None:
    """The first preferred column that is there, else the only one there."""
    return next((name for name in preferred if name in there), there[0] if len(there) == 1 else None)


class ParquetBytes:
    """Image bytes of Parquet rows that are asked for in rising order, read as a stream."""

    def __init__(self) -> None:
        self.table = ""
        self.next_row = 0
        self.rows: Iterator[bytes | None] = iter(())

    def read(self, entry: Entry) -> bytes | None:
        """The bytes of an entry that has a row; None where the row holds none.

        Raises CollectionError if the table cannot be read (any more).
        """
        row = entry.row or 0
        if entry.file != self.table or row < self.next_row:
            self.table, self.next_row, self.rows = entry.file, *rows_from(entry.file, row)
        try:
            while self.next_row <= row:
                value = next(self.rows)
                self.next_row += 1
        except StopIteration:
            raise CollectionError(f"{entry.file} has fewer rows than it had; put it back.") from None
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CollectionError(f"{entry.file} cannot be read ({reason}); check the table.") from error
        return value


def rows_from(table: str, row: int) -> tuple[int, Iterator[bytes | None]]:
    """The first row of the row group that holds `row`, and the bytes from there on."""
    with open_parquet(table) as file:
        start = group = 0
        while group < file.num_row_groups - 1 and start + file.metadata.row_group(group).num_rows <= row:
            start += file.metadata.row_group(group).num_rows
            group += 1
    return start, held_bytes(table, group)


def held_bytes(table: str, group: int) -> Iterator[bytes | None]:
    with open_parquet(table) as file:
        column = columns(table, file.schema_arrow)[0] or ""
        groups = range(group, file.num_row_groups)
        for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=groups, columns=[column]):
            values = batch.column(0)
            for value in field(values, column) if "." in column else values:
                yield value.as_py()


def open_parquet(table: str) -> Any:
    """The open file. Raises CollectionError or MissingExtraError."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise MissingExtraError("filter", "Parquet") from error
    try:
        # Not mapped into memory: a file that shrinks meanwhile would end the process.
        return ParquetFile(table, memory_map=False, pre_buffer=False)
    except (OSError, ArrowException) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else "it is no Parquet file"
        raise CollectionError(f"{table} cannot be read ({reason}); check the table.") from error
