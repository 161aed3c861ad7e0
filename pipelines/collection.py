"""A collection's run: list it, score it, lose nothing.

The state between any two steps is on the disk (`journal`), so that the same command with `resume` goes on
from wherever the last run ended.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from compare2score import Scorer
from compare2score.errors import CollectionError
from compare2score.pipelines.journal import KNOWN, OUTPUT, Journal, open_journal
from compare2score.pipelines.known import KnownScores, index_scores, open_index
from compare2score.pipelines.rows import check_format, read_rows, write_rows
from compare2score.pipelines.scoring import Effort, Outcome, score_entries
from compare2score.pipelines.selection import Choice, carry_out, keep
from compare2score.pipelines.sources import Entry, list_entries
from compare2score.pipelines.summary import Summary

Progress = Callable[[int, int, int], None]
"""Called with rows done, rows in all, and how many of the former are errors."""


class Engine(Protocol):
    """What scores entries: outcomes in their order, some at a time. See `scoring.score_entries`."""

    def __call__(
        self,
        scorer: Scorer,
        entries: Iterable[Entry],
        effort: Effort,
        known: KnownScores | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[list[Outcome]]: ...


@dataclass(frozen=True)
class Job:
    """What to do with which collection.

    Attributes:
        sources: see `sources.list_entries`.
        out: the output; its extension is its format, see `rows.FORMATS`.
        resume: go on with the run that was interrupted, or bring a complete output up to date: images whose
            content it has scored with this bundle keep their scores.
        follow_links: see `sources.list_entries`.
        max_errors: stop once there are more rows with an error.
        effort: see `scoring.Effort`.
        choice: what to keep of the images.
    """

    sources: tuple[str, ...]
    out: Path
    resume: bool = False
    follow_links: bool = False
    max_errors: int | None = None
    effort: Effort = field(default_factory=Effort)
    choice: Choice = field(default_factory=Choice)


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        complete: whether the output is written; else `resume` goes on.
        total: entries of the collection.
        summary: of the rows that are done.
        kept: how many images the choice keeps; None without one.
    """

    complete: bool
    total: int
    summary: Summary
    kept: int | None = None


class TooManyFailuresError(CollectionError):
    """More rows than allowed have an error; the rows so far are safe."""


def run_job(
    job: Job,
    scorer: Scorer,
    engine: Engine = score_entries,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Result:
    """Scores a collection into `job.out`, one row an entry, and carries out the choice.

    Once `stop` is set, the batch in flight is finished and written, and an incomplete result returned.

    Raises:
        CollectionError: a source cannot be listed or is gone, the output cannot be written, another run
            writes it, or it exists already and `job.resume` is not set. All rows so far are safe.
        TooManyFailuresError: see `Job.max_errors`.
        MissingExtraError: Parquet is read or written without pyarrow.
        BackendError, BundleError: the bundle cannot score.
    """
    check_format(job.out)
    stop = stop or threading.Event()
    with open_journal(job.out) as journal, naming(job.out):
        prepare(job, journal, scorer)
        total = journal.total()
        journal.open_rows()
        summary = Summary()
        for row in journal.rows():
            summary.add(row)
        show = progress or (lambda *_: None)
        show(summary.rows, total, summary.failed)
        with known_scores(job, journal, scorer) as known:
            anchors = len(scorer.anchors.names)
            entries = journal.entries(journal.done)
            check_errors(job, summary)
            for outcomes in engine(scorer, entries, job.effort, known, stop):
                check_sources(outcomes, journal)
                journal.append((outcome.row for outcome in outcomes), anchors)
                count_outcomes(summary, outcomes)
                show(summary.rows, total, summary.failed)
                check_errors(job, summary)
        if journal.done < total:
            return Result(False, total, summary)
        journal.close()
        aside = journal.folder / OUTPUT
        write_rows(journal.rows(), aside, job.out.suffix.lower(), anchors)
        aside.replace(job.out)
        kept = choose(job.choice, journal)
        journal.remove()
        return Result(True, total, summary, kept)


def prepare(job: Job, journal: Journal, scorer: Scorer) -> None:
    """Sees to it that the journal has this job's plan. Raises CollectionError if it may not."""
    settings = {
        "format": 1,
        "bundle": scorer.bundle.identity,
        "sources": list(job.sources),
        "follow_links": job.follow_links,
    }
    if not journal.begun:
        if job.out.exists() and not job.resume:
            raise CollectionError(
                f"{job.out} exists already; bring it up to date with --resume, or remove it."
            )
        journal.begin(settings, list_entries(job.sources, job.follow_links))
        return
    if not job.resume:
        raise CollectionError(
            f"An interrupted run has left {journal.folder}; go on with --resume, or remove that folder."
        )
    before = journal.settings()
    if different := [name for name, value in settings.items() if before.get(name) != value]:
        raise CollectionError(
            f"The interrupted run in {journal.folder} had another {' and '.join(different)}; "
            "repeat its command, or remove that folder."
        )


@contextmanager
def known_scores(job: Job, journal: Journal, scorer: Scorer) -> Iterator[KnownScores | None]:
    """What the output that is there holds already; None without one."""
    index = journal.folder / KNOWN
    index.unlink(missing_ok=True)
    if not job.out.exists():
        yield None
        return
    try:
        index_scores(read_rows(job.out), scorer.bundle.identity, index)
        with open_index(index) as known:
            yield known
    finally:
        index.unlink(missing_ok=True)


def count_outcomes(summary: Summary, outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        summary.add(outcome.row)
        summary.reused += outcome.reused
        summary.time(outcome.seconds, outcome.row.path)


def check_errors(job: Job, summary: Summary) -> None:
    """Raises TooManyFailuresError."""
    if job.max_errors is not None and summary.failed > job.max_errors:
        raise TooManyFailuresError(
            f"{summary.failed} of {summary.rows} images have an error, more than --max-errors "
            f"{job.max_errors}; {job.out}.run/rows.jsonl has them: go on with --resume and a larger bound."
        )


def check_sources(outcomes: list[Outcome], journal: Journal) -> None:
    """Raises CollectionError if a file is not found because all of its source is gone."""
    for outcome in outcomes:
        root = outcome.entry.root
        if outcome.row.error_code == "not_found" and root != outcome.entry.path and gone(root):
            raise CollectionError(
                f"{root} is gone; the {journal.done} rows so far are safe: bring it back and go on with "
                "--resume."
            )


def gone(root: str) -> bool:
    """Whether a source is not there any more: what was mounted on a folder leaves it empty."""
    try:
        with os.scandir(root) as found:
            return next(found, None) is None
    except NotADirectoryError:
        return False
    except OSError:
        return True


def choose(choice: Choice, journal: Journal) -> int | None:
    """Carries out the choice on the journal's rows; how many it keeps."""
    if not choice.wanted:
        return None
    pairs = zip(journal.entries(), journal.rows(), strict=False)
    flags = keep(journal.rows(), choice, journal.rows())
    return carry_out((pair for pair, kept in zip(pairs, flags, strict=True) if kept), choice)


@contextmanager
def naming(out: Path) -> Iterator[None]:
    """Turns what the system refuses into one sentence."""
    try:
        yield
    except OSError as error:
        name = error.filename if error.filename is not None else out
        raise CollectionError(
            f"The system refuses {name} ({error.strerror}); all rows so far are safe: mend it and go on "
            "with --resume."
        ) from error
