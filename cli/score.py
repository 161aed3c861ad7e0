"""`c2s score`: a score for every image."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from compare2score.cli.console import print_json, printable, remark, terminal, track
from compare2score.cli.extra import extra
from compare2score.cli.inputs import Input, expand
from compare2score.cli.options import Backend, Bundle, Json, Threads, examples
from compare2score.cli.original import AnchorImages, Checkpoint, open_original
from compare2score.errors import CollectionError, ImageError, LabelError

if TYPE_CHECKING:
    from compare2score import Score, Scorer

    Result = tuple[str, Score | ImageError]

EXAMPLES = examples("c2s score photo.jpg", "c2s score photos/ 'more/**/*.png' --json > scores.jsonl")
SOME_FAILED = 1
Scale = Literal["percentile", "minmax"]
Link = Literal["probit", "logit"]
AnchorUse = Literal["all", "adaptive"]


def score(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Files, folders and quoted patterns.")],
    bundle: Bundle = None,
    checkpoint: Checkpoint = None,
    anchor_images: AnchorImages = None,
    backend: Backend = "auto",
    scale: Annotated[
        Scale,
        typer.Option(help="0-100 as a share of the prior, or as published (saturates beyond the anchors)."),
    ] = "percentile",
    link: Annotated[Link, typer.Option(help="The comparison's distribution: normal or logistic.")] = "probit",
    anchors: Annotated[
        AnchorUse, typer.Option(help="All anchors, or the most informative first until it is enough.")
    ] = "all",
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS", min=0, max=100, help="Adaptive: leave out what cannot move the score by more."
        ),
    ] = None,
    threads: Threads = None,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Images scored at a time.")] = 8,
    explain: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw one image's comparisons: .png, .svg or .pdf."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score images from 0 to 100, higher is better.

    With --checkpoint and --anchor-images, torch runs a comparator that was never exported.

    A folder stands for all its JPEG, PNG, WebP, BMP, TIFF and GIF files, folders in it included, hidden ones
    not, sorted. Quote patterns: c2s expands them itself, on every system and for any number of files.

    With --json one line a path, as soon as it is scored: path, value, q, std, probabilities (null for an
    anchor that was left out) and comparisons, or path and error with its code and message. Exit status 1 says
    that some images have an error in place of a score.
    """
    from compare2score import Scorer
    from compare2score.adaptive import Stopping

    inputs = expand(paths)
    if explain is not None:
        check_explanation(inputs, explain)
    stopping = None if tolerance is None else Stopping(tolerance)
    options: dict[str, Any] = {"scale": scale, "link": link, "anchors": anchors, "stopping": stopping}
    if checkpoint is None:
        scorer = Scorer(bundle, backend=backend, threads=threads, **options)
    elif anchor_images is None:
        raise LabelError("A checkpoint has no anchors; give --anchor-images, a label table or a folder.")
    else:
        scorer = open_original(checkpoint, anchor_images, **options)
    # Asked now: a bundle without anchors is refused before any image is read.
    _ = scorer.anchors
    # Lines that run down the screen show the progress themselves.
    drawn = not as_json and sys.stdout.isatty()
    shown = drawn or not sys.stdout.isatty()
    results = track(score_inputs(scorer, inputs, batch), len(inputs), "Scoring", shown)
    if as_json:
        failed = print_lines(results)
    elif drawn:
        failed = print_drawn(list(results))
    else:
        failed = print_aligned(results, max(len(printable(item.path)) for item in inputs))
    if failed:
        remark(f"{failed} of {len(inputs)} images could not be scored; their rows say why.")
        raise typer.Exit(SOME_FAILED)
    if explain is not None:
        draw(scorer, inputs[0].path, explain)


def check_explanation(inputs: Sequence[Input], out: Path) -> None:
    """Raises CollectionError or MissingExtraError if the picture cannot be drawn: before the scoring."""
    with extra("eval", "Drawing the comparisons"):
        from compare2score.pipelines.explanation import check_kind
    if len(inputs) != 1:
        raise CollectionError(f"--explain draws one image, not {len(inputs)}; name just one.")
    check_kind(out)


def draw(scorer: Scorer, path: str, out: Path) -> None:
    """Writes the picture of one image's comparisons."""
    from compare2score.pipelines.explanation import draw_explanation, explain

    explanation = explain(scorer, path)
    title = f"{printable(Path(path).name)}: {explanation.score.value:.2f} of 100"
    draw_explanation(explanation, title, out)


def score_inputs(scorer: Scorer, inputs: Sequence[Input], batch: int) -> Iterator[Result]:
    """Path and score, or path and error, of every input in order."""
    scores = scorer.score_many((item.path for item in inputs if item.error is None), batch)
    for item in inputs:
        yield item.path, item.error or next(scores)


def print_lines(results: Iterable[Result]) -> int:
    """Prints every result as a line of JSON; returns how many are errors."""
    failed = 0
    for path, result in results:
        row: dict[str, Any] = {"path": path}
        if isinstance(result, ImageError):
            failed += 1
            row["error"] = {"code": result.code, "message": str(result)}
        else:
            row |= {
                "value": result.value,
                "q": result.q,
                "std": result.std,
                "probabilities": [None if isnan(p) else p for p in result.probabilities],
                "comparisons": result.comparisons,
            }
        print_json(row)
    return failed


def print_aligned(results: Iterable[Result], width: int) -> int:
    """Prints every result as a line of aligned text, at once; returns how many are errors."""
    failed = 0
    width = max(width, len("path"))
    print(f"{'path':<{width}}  {'score':>6}  {'q':>6}  {'std':>5}", flush=True)
    for path, result in results:
        name = f"{printable(path):<{width}}"
        if isinstance(result, ImageError):
            failed += 1
            print(
                f"{name}  {'-':>6}  {'-':>6}  {'-':>5}  {result.code}: {printable(str(result))}", flush=True
            )
        else:
            print(f"{name}  {result.value:6.2f}  {result.q:+6.2f}  {result.std:5.2f}", flush=True)
    return failed


def print_drawn(results: Sequence[Result]) -> int:
    """Prints a table with a bar for every score; returns how many results are errors."""
    from rich import box
    from rich.bar import Bar
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("Path", overflow="fold")
    table.add_column("Score", justify="right")
    table.add_column("0 to 100", min_width=20)
    table.add_column("q", justify="right")
    table.add_column("std", justify="right")
    failed = 0
    for path, result in results:
        # Text, because rich would take square brackets in a file's name for markup.
        name = Text(printable(path))
        if isinstance(result, ImageError):
            failed += 1
            reason = Text(f"{result.code}: {printable(str(result))}", style="red")
            table.add_row(name, Text("-"), reason, "", "")
        else:
            bar = Bar(100, 0, result.value, width=20)
            table.add_row(name, f"{result.value:.2f}", bar, f"{result.q:+.2f}", f"{result.std:.2f}")
    terminal(sys.stdout).print(table)
    return failed
