"""The report of a collection: one HTML file that opens offline, with nothing in it that runs."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compare2score.errors import CollectionError, MissingExtraError
from compare2score.pipelines.overview import Overview, survey
from compare2score.pipelines.rows import Row, read_rows
from compare2score.pipelines.selection import Choice
from compare2score.pipelines.thumbnail import make_thumbnails

SUFFIXES = (".html", ".htm")
_TEMPLATE = "collection_report.html"
_CHART = (1000, 240)
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Bar:
    """A bar of the histogram, in the chart's units: x from 0 to 1000, y downwards from 0 to 240."""

    x: float
    width: float
    height: float
    title: str


def check_report(path: Path) -> None:
    """Asked before long work: can a report be written to `path`?

    Raises CollectionError if not, MissingExtraError without jinja2.
    """
    require_jinja()
    if path.suffix.lower() not in SUFFIXES:
        raise CollectionError(
            f"{path} is no {' or '.join(SUFFIXES)} file; choose another name for the report."
        )
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise CollectionError(
            f"{path.parent} is no folder that can be written to; make it first, or choose another --report."
        )
    if path.is_dir():
        raise CollectionError(f"{path} is a folder; choose another name for the report.")


def require_jinja() -> None:
    """Raises MissingExtraError."""
    try:
        import jinja2  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("filter", "A report") from error


def write_report(out: Path, path: Path, choice: Choice | None = None, seconds: float = 30.0) -> None:
    """Writes the report of the rows in `out`, whatever their format, to `path`: whole or not at all.

    Args:
        out: an output of `c2s filter`. Its relative paths start at the working folder.
        path: an HTML file; what is there is replaced.
        choice: which images are kept, if not all.
        seconds: time limit for the picture of one image.

    Raises:
        CollectionError: the rows cannot be read, or the report not written.
        MissingExtraError: without jinja2, or pyarrow for Parquet.
    """
    require_jinja()
    overview = survey(lambda: read_rows(out), choice)
    page = render(overview, make_thumbnails(overview.pictured(), seconds), out.name)
    aside = path.with_name(f".{path.name[-100:]}.{os.getpid()}.part")
    try:
        aside.write_text(page, encoding="utf-8", newline="\n")
        aside.replace(path)
    except OSError as error:
        raise CollectionError(
            f"{path} cannot be written ({error.strerror}); all rows are safe in {out}: repeat the command "
            "with --resume and another --report."
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def render(overview: Overview, thumbnails: Mapping[str, bytes], title: str) -> str:
    """The page; `thumbnails` are JPEG files by row path. It is the same for the same arguments."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(shown=shown, short=short, size=size_text)

    def picture(row: Row) -> str | None:
        """A picture as the address of itself."""
        file = thumbnails.get(row.path)
        return None if file is None else f"data:image/jpeg;base64,{b64encode(file).decode()}"

    return environment.get_template(_TEMPLATE).render(
        title=title,
        overview=overview,
        bars=bars(overview.histogram),
        chart=_CHART,
        picture=picture,
    )


def bars(histogram: Sequence[int]) -> list[Bar]:
    """The histogram's bars; the highest fills the chart, and none that counts anything is invisible."""
    width, height = _CHART[0] / len(histogram), _CHART[1]
    most, step = max(1, *histogram), 100 / len(histogram)
    return [
        Bar(
            place * width,
            width,
            max(1.0, height * number / most) if number else 0.0,
            f"{place * step:g} to {(place + 1) * step:g}: {number}",
        )
        for place, number in enumerate(histogram)
    ]


def shown(text: str) -> str:
    """`text` with what has no shape, turns the writing round or is no character at all escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def short(path: str) -> str:
    """The end of a long path: its name and the folder that holds it."""
    parts = path.split("/")
    return path if len(parts) <= 2 else "…/" + "/".join(parts[-2:])


def size_text(number: int) -> str:
    """A number of bytes for people."""
    value, unit = float(number), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {_UNITS[unit]}"
