"""The progress of a long run: a bar on stderr, if that is a terminal, with its rate and what went wrong."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from compare2score.cli.console import progress_bar


@contextmanager
def meter(label: str) -> Iterator[Callable[[int, int, int], None]]:
    """A bar; it is told how many are done, how many there are, and how many have failed."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]}"),
    )
    begin: list[tuple[float, int]] = []
    with progress_bar(*columns) as bar:
        task = bar.add_task(label, total=None, rate="", failed="")

        def show(done: int, total: int, failed: int) -> None:
            begin.append((time.monotonic(), done))
            del begin[1:]
            seconds, before = time.monotonic() - begin[0][0], done - begin[0][1]
            rate = f"{before / seconds:.1f}/s" if before else ""
            errors = f"{failed} error{'' if failed == 1 else 's'}" if failed else ""
            bar.update(task, completed=done, total=total, rate=rate, failed=errors)

        yield show
