"""What the verbs print: results on stdout, remarks and progress on stderr; colours only on a terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def printable(text: str) -> str:
    """`text` with its control characters escaped: a file's name may be a stranger's."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def remark(sentence: str) -> None:
    """Prints one sentence for people, in one line, on stderr."""
    print(printable(" ".join(sentence.split())), file=sys.stderr)


def print_json(value: object) -> None:
    """Prints a value as one line of JSON, at once."""
    print(json.dumps(value), flush=True)


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Prints names and values, aligned."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:<{width}}  {printable(value)}")


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: drawn on a terminal, aligned text elsewhere.

    The first column is text, the others are numbers.
    """
    if sys.stdout.isatty():
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD)
        for place, heading in enumerate(headings):
            table.add_column(Text(heading), justify="right" if place else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        terminal(sys.stdout).print(table)
        return
    cells = [list(headings), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for name, *numbers in cells:
        aligned = (number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True))
        print("  ".join((name.ljust(widths[0]), *aligned)).rstrip())


def terminal(stream: Any) -> Any:
    """A rich Console on `stream`, which is a terminal: rich would take FORCE_COLOR for one, too."""
    from rich.console import Console

    return Console(file=stream, highlight=False)


def track(items: Iterable[T], total: int, label: str, shown: bool = True) -> Iterator[T]:
    """Passes `items` on, with a progress bar on stderr if that is a terminal and `shown` is true."""
    if not (shown and sys.stderr.isatty()):
        yield from items
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with progress_bar(*columns) as bar:
        task = bar.add_task(label, total=total)
        for item in items:
            yield item
            bar.advance(task)


def progress_bar(*columns: Any) -> Any:
    """A rich Progress on stderr, which is a terminal, that goes when it is done."""
    from rich.progress import Progress

    # Unless told, rich would send stdout's results to stderr while the bar is up.
    return Progress(
        *columns, console=terminal(sys.stderr), transient=True, redirect_stdout=False, redirect_stderr=False
    )


def redirect_bars() -> None:
    """Sends the progress bars that libraries draw to stderr, or nowhere if that is no terminal.

    To be called before the libraries are imported.
    """
    import rich

    shown = sys.stderr.isatty()
    rich.reconfigure(stderr=True, quiet=not shown)
    if not shown:
        os.environ["TQDM_DISABLE"] = "1"
