"""`c2s filter`: a score for every image of a collection, and what becomes of the best."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from compare2score.cli.console import print_facts, print_json, print_table, remark
from compare2score.cli.options import Backend, Bundle, Json, Threads, examples
from compare2score.cli.progress import meter

if TYPE_CHECKING:
    from compare2score.pipelines.collection import Engine, Result
    from compare2score.pipelines.selection import Choice

EXAMPLES = examples(
    "c2s filter photos/ --out scores.csv",
    "c2s filter 'shards/*.tar' --out scores.parquet --keep-top 20% --copy-to best/",
    "c2s filter photos/ --out scores.csv --resume",
)
SOME_FAILED = 1
STOPPED_BY_SIGNAL = 128
_BAR = 30


def filter_(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE", help="Folders, files, quoted patterns, .txt lists, .tar, .parquet."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Rows: .parquet, .csv or .jsonl.")],
    min_score: Annotated[
        float | None, typer.Option(metavar="X", help="Keep images of at least this score (0-100).")
    ] = None,
    keep_top: Annotated[
        str | None, typer.Option(metavar="N|P%", help="Keep the best, so many or this share of all scored.")
    ] = None,
    copy_to: Annotated[Path | None, typer.Option(metavar="DIR", help="Copy what is kept.")] = None,
    link_to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Link what is kept, symbolically.")
    ] = None,
    listing: Annotated[
        Path | None, typer.Option("--list", metavar="FILE", help="Write the paths of what is kept.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an HTML page about the outcome.")
    ] = None,
    bundle: Bundle = None,
    backend: Backend = "auto",
    threads: Threads = None,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Images scored at a time.")] = 8,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Decoding processes, or actors; without it, half the cores."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0.001, help="Seconds allowed for decoding one image.")
    ] = 30.0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run, or update a complete output.")
    ] = False,
    max_errors: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Stop once more images than this have an error.")
    ] = None,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Follow symbolic links in folders, patterns and lists.")
    ] = False,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="This machine, or Ray Data.")] = "local",
    as_json: Json = False,
) -> None:
    """Score a collection of any size: one row for every image, whatever happens to it.

    Interrupted at any moment, the same command with --resume goes on where it was. With --resume on a
    complete output, images whose content that has scored already are not scored again. stdout gets a summary,
    with --json as one line of JSON.

    Exit status 1 says that some images have an error in place of a score, or more than --max-errors; 130 and
    143 that Ctrl-C or SIGTERM have ended the run.
    """
    from compare2score import Scorer
    from compare2score.benchmarks.record import cores
    from compare2score.pipelines.collection import Job, TooManyFailuresError, run_job
    from compare2score.pipelines.scoring import Effort

    if report is not None:
        from compare2score.pipelines.collection_report import check_report, write_report

        check_report(report)
    choice = read_choice(min_score, keep_top, copy_to, link_to, listing)
    effort = Effort(batch, workers or max(1, cores() // 2), timeout)
    job = Job(tuple(sources), out, resume, follow_links, max_errors, effort, choice)
    score_entries = open_engine(engine)
    scorer = Scorer(bundle, backend=backend, threads=threads)
    # Asked now: a bundle without anchors is refused before any image is read.
    _ = scorer.anchors
    try:
        with stopping() as (stop, signals), meter("Filtering") as progress:
            result = run_job(job, scorer, score_entries, progress, stop)
    except TooManyFailuresError as error:
        remark(str(error))
        raise typer.Exit(SOME_FAILED) from error
    if not result.complete:
        done = f"{result.summary.rows} of {result.total} rows are written"
        remark(f"Stopped by {signal.Signals(signals[0]).name}: {done}; go on with --resume.")
        raise typer.Exit(STOPPED_BY_SIGNAL + signals[0])
    if report is not None:
        write_report(out, report, choice, timeout)
    if as_json:
        print_json(summary_json(result))
    else:
        print_summary(result)
    if result.summary.failed:
        remark(
            f"{result.summary.failed} of {result.total} images have no score; their rows in {out} say why."
        )
        raise typer.Exit(SOME_FAILED)


def open_engine(name: str) -> Engine:
    """The engine of a name. Raises MissingExtraError."""
    if name == "ray":
        from compare2score.pipelines.cluster import require_ray, score_on_ray

        require_ray()
        return score_on_ray
    from compare2score.pipelines.scoring import score_entries

    return score_entries


def read_choice(
    min_score: float | None,
    keep_top: str | None,
    copy_to: Path | None,
    link_to: Path | None,
    listing: Path | None,
) -> Choice:
    """What the options choose. Raises CollectionError if they contradict each other."""
    from compare2score.pipelines.selection import Choice, read_top

    top, share = (None, None) if keep_top is None else read_top(keep_top)
    return Choice(min_score, top, share, copy_to, link_to, listing)


@contextmanager
def stopping() -> Iterator[tuple[threading.Event, list[int]]]:
    """An event that SIGINT and SIGTERM set, and which of them did; a second one ends the process at once."""
    stop, signals = threading.Event(), list[int]()

    def note(number: int, _: Any) -> None:
        signals.append(number)
        stop.set()
        remark("Finishing the batch in flight; once more ends at once.")
        signal.signal(number, before[number])

    before: dict[int, Any] = {}
    # Only the main thread hears signals; elsewhere they are the host's.
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop, signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def summary_json(result: Result) -> dict[str, Any]:
    """A run's summary as JSON values."""
    summary = result.summary
    return {
        "rows": summary.rows,
        "scored": summary.scored,
        "reused": summary.reused,
        "errors": dict(sorted(summary.errors.items())),
        "histogram": summary.histogram,
        "worst": [{"path": path, "value": value} for value, path in summary.worst],
        "slowest": [{"path": path, "seconds": round(seconds, 3)} for seconds, path in summary.slowest],
        "kept": result.kept,
    }


def print_summary(result: Result) -> None:
    """Prints counts, the distribution of scores, the worst and the slowest images."""
    summary = result.summary
    facts = [("rows", f"{summary.rows}"), ("scored", f"{summary.scored}")]
    facts += [("reused", f"{summary.reused} scored before")] * bool(summary.reused)
    facts += [(code, f"{number}") for code, number in summary.errors.most_common()]
    facts += [] if result.kept is None else [("kept", f"{result.kept}")]
    print_facts(facts)
    if summary.scored:
        print()
        print_histogram(summary.histogram)
        print()
        print_table(["worst", "score"], [[path, f"{value:.2f}"] for value, path in summary.worst])
    if summary.slowest:
        print()
        rows = [[path, f"{seconds:.2f}"] for seconds, path in summary.slowest]
        print_table(["slowest to decode in this run", "s"], rows)


def print_histogram(bins: list[int]) -> None:
    """Prints a bar for every bin of the scores, from the first that holds one to the last."""
    width = 100 / len(bins)
    blocks = "█" if can_print("█") else "#"
    filled = [place for place, number in enumerate(bins) if number]
    for place in range(filled[0], filled[-1] + 1):
        number = bins[place]
        bar = blocks * round(_BAR * number / max(bins))
        label = f"{place * width:3.0f}-{(place + 1) * width:<3.0f}"
        print(f"{label}  {bar:<{_BAR}}  {number}".rstrip())


def can_print(text: str) -> bool:
    """Whether stdout's encoding has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
