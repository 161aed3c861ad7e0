"""The rows of a collection's output: one for every input, whatever happened to it.

Three formats by extension, all with the same columns. The numbers are exact in each of them: floats are
written so that they read back to the same bits.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from compare2score.errors import CollectionError, MissingExtraError

FORMATS = (".parquet", ".csv", ".jsonl")
_ROWS_AT_ONCE = 8192

Cells = dict[str, Any]
Write = Callable[["Row"], None]


@dataclass(frozen=True)
class Row:
    """One input's outcome. It holds no time and nothing of its neighbours.

    Attributes:
        path: the input's name, see `sources.Entry`.
        bytes: length of its data; None, as all that follows, where it is not known.
        width, height: in pixels, as shown (the EXIF orientation applied).
        sha256: of its data, in hexadecimal.
        value, q, std: see `compare2score.Score`.
        probabilities: P(preferred over anchor n), [anchors]; empty without a score.
        error_code: one of `compare2score.errors.ImageErrorCode`; None where there is a score.
        error_text: one sentence for people.
        bundle: the identity of the bundle that the run used.
    """

    path: str
    bundle: str
    bytes: int | None = None
    width: int | None = None
    height: int | None = None
    sha256: str | None = None
    value: float | None = None
    q: float | None = None
    std: float | None = None
    probabilities: tuple[float, ...] = ()
    error_code: str | None = None
    error_text: str | None = None

    @property
    def status(self) -> str:
        """ "ok" where there is a score, else "error"."""
        return "ok" if self.error_code is None else "error"


def column_names(anchors: int) -> list[str]:
    """The columns in their order; `p1` belongs to the lowest of the anchors."""
    before = ["path", "bytes", "width", "height", "sha256", "value", "q", "std"]
    return [*before, *probability_names(anchors), "status", "error_code", "error_text", "bundle"]


def probability_names(anchors: int) -> list[str]:
    return [f"p{place}" for place in range(1, anchors + 1)]


def to_cells(row: Row, anchors: int) -> Cells:
    """A row as one value a column."""
    probabilities = row.probabilities or (None,) * anchors
    cells: Cells = dict(zip(probability_names(anchors), probabilities, strict=True))
    return {name: cells[name] if name in cells else getattr(row, name) for name in column_names(anchors)}


def from_cells(cells: Cells, name: str = "the table") -> Row:
    """A row of its columns; further columns are passed over. Raises CollectionError if one is missing."""
    try:
        found = [cells[f"p{place}"] for place in range(1, sum(is_probability(key) for key in cells) + 1)]
        fields = ("path", "bundle", "bytes", "width", "height", "sha256", "value", "q", "std")
        given = {field: cells[field] for field in (*fields, "error_code", "error_text")}
    except KeyError as error:
        raise CollectionError(f"{name} has no column {error}, so it is no output of c2s filter.") from error
    scored = given["error_code"] is None
    return Row(**given, probabilities=tuple(found) if scored else ())


def is_probability(name: str) -> bool:
    return name[:1] == "p" and name[1:].isdecimal()


def check_format(out: Path) -> None:
    """Raises CollectionError for an extension that is not in FORMATS, MissingExtraError without pyarrow."""
    if out.suffix.lower() not in FORMATS:
        raise CollectionError(f"{out} is none of {' '.join(FORMATS)}; choose one of these extensions.")
    if out.suffix.lower() == ".parquet":
        require_pyarrow()


def require_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("filter", "Parquet") from error


def write_rows(rows: Iterable[Row], path: Path, kind: str, anchors: int) -> None:
    """Writes rows to `path` in the format `kind`, one of FORMATS, in constant memory.

    Raises OSError where the system refuses the file.
    """
    with WRITERS[kind](path, anchors) as write:
        for row in rows:
            write(row)


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of an output in any of FORMATS, in constant memory. Raises CollectionError if it is none."""
    check_format(path)
    try:
        for cells in READERS[path.suffix.lower()](path):
            yield from_cells(cells, str(path))
    except (OSError, ValueError, TypeError, AttributeError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise CollectionError(f"{path} cannot be read as rows ({reason}); remove or replace it.") from error


def valid_text(text: str | None) -> str | None:
    """`text` for a table that holds UTF-8 alone: bytes of a name that are not get a backslash's escape."""
    return text and text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def to_line(row: Row, anchors: int) -> str:
    """A row as a line of JSON. Bytes of a name that are no UTF-8 are kept, as escaped surrogates."""
    return json.dumps(to_cells(row, anchors)) + "\n"


def from_line(line: str | bytes) -> Row:
    """The row of a line. Raises ValueError if it is none."""
    try:
        return from_cells(json.loads(line))
    except (CollectionError, AttributeError, TypeError) as error:
        raise ValueError("no row") from error


@contextmanager
def json_writer(path: Path, anchors: int) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        yield lambda row: discard(file.write(to_line(row, anchors)))
        flush(file)


@contextmanager
def csv_writer(path: Path, anchors: int) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(column_names(anchors))

        def write(row: Row) -> None:
            cells = to_cells(row, anchors)
            cells |= {name: valid_text(cells[name]) for name in ("path", "error_text")}
            # csv writes None as nothing and a float by repr, which reads back to the same bits.
            writer.writerow(cells.values())

        yield write
        flush(file)


@contextmanager
def parquet_writer(path: Path, anchors: int) -> Iterator[Write]:
    require_pyarrow()
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    kinds = {"bytes": pyarrow.int64(), "width": pyarrow.int32(), "height": pyarrow.int32()}
    floats = {"value", "q", "std", *probability_names(anchors)}
    schema = pyarrow.schema(
        [
            (name, kinds.get(name) or (pyarrow.float64() if name in floats else pyarrow.string()))
            for name in column_names(anchors)
        ]
    )
    waiting: list[Cells] = []
    with ExitStack() as stack:
        file = stack.enter_context(path.open("wb"))
        table = stack.enter_context(ParquetWriter(file, schema, compression="zstd"))

        def write(row: Row) -> None:
            cells = to_cells(row, anchors)
            cells |= {name: valid_text(cells[name]) for name in ("path", "error_text")}
            waiting.append(cells)
            if len(waiting) == _ROWS_AT_ONCE:
                table.write_table(pyarrow.Table.from_pylist(waiting, schema))
                waiting.clear()

        yield write
        if waiting:
            table.write_table(pyarrow.Table.from_pylist(waiting, schema))
        table.close()
        flush(file)


def discard(_: object) -> None:
    """What a writer returns is of no use."""


def flush(file: IO[Any]) -> None:
    """Sends what was written to the disk, before the file is renamed."""
    import os

    file.flush()
    os.fsync(file.fileno())


def json_cells(path: Path) -> Iterator[Cells]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def csv_cells(path: Path) -> Iterator[Cells]:
    with path.open(encoding="utf-8", newline="") as file:
        for record in csv.DictReader(file):
            yield {name: typed(name, text) for name, text in record.items()}


def typed(name: str, text: str | None) -> Any:
    """A CSV cell's value."""
    if not text:
        return None
    if name in ("bytes", "width", "height"):
        return int(text)
    return float(text) if name in ("value", "q", "std") or is_probability(name) else text


def parquet_cells(path: Path) -> Iterator[Cells]:
    from compare2score.pipelines.shards import open_parquet

    with open_parquet(str(path)) as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE):
            yield from batch.to_pylist()


WRITERS: dict[str, Callable[[Path, int], AbstractContextManager[Write]]] = {
    ".parquet": parquet_writer,
    ".csv": csv_writer,
    ".jsonl": json_writer,
}
READERS: dict[str, Callable[[Path], Iterator[Cells]]] = {
    ".parquet": parquet_cells,
    ".csv": csv_cells,
    ".jsonl": json_cells,
}


def in_batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Rows, `size` at a time."""
    source = iter(rows)
    while chunk := list(islice(source, size)):
        yield chunk
