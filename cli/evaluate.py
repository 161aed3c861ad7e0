"""`c2s eval`: how well scores agree with people's, on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from compare2score.cli.console import print_json, print_table, remark, track
from compare2score.cli.options import Backend, Json, Threads, examples
from compare2score.cli.original import AnchorImages, Checkpoint, open_original
from compare2score.errors import CheckpointError, LabelError

if TYPE_CHECKING:
    from compare2score import Scorer
    from compare2score.pipelines.evaluate import ScoredTable, TableEvaluation
    from compare2score.pipelines.evaluation_report import NamedBundle, Report
    from compare2score.training.labels import LabelTable

EXAMPLES = examples(
    "c2s eval --labels photos/labels.csv --split test --out report/",
    "c2s eval --dataset live=databaserelease2/ koniq10k=koniq/ --splits 10",
    "c2s eval --labels photos/labels.csv --bundle old/ new/",
    "c2s eval --labels photos/labels.csv --bundle exported/ --against torch --checkpoint checkpoint/",
    "c2s eval --labels photos/labels.csv --matrix count probability",
)
SOME_FAILED = 1
LISTED = 20
"""Unreadable images named on the terminal; the report names all."""
EVERY_ROW, TEST = "all", "test"
Against = Literal["torch"]


class Matrix(str, Enum):
    """The scorer's `matrix`; an Enum, for typer takes no list of literals."""

    PROBABILITY = "probability"
    COUNT = "count"


def evaluate(
    labels: Annotated[
        list[Path] | None,
        typer.Option(metavar="CSV...", help="Label tables: image,mos[,std][,group][,split][,type]."),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR...",
            help="Datasets as they are distributed: agiqa3k, bid, csiq, kadid10k, koniq10k, live, livec, "
            "spaq or tid2013.",
        ),
    ] = None,
    split: Annotated[
        str,
        typer.Option(metavar="NAME", help="Rows of label tables that have splits; 'all' for all of them."),
    ] = TEST,
    bundle: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR...", help="Bundles; the second and later are compared with the first."),
    ] = None,
    checkpoint: Checkpoint = None,
    anchor_images: AnchorImages = None,
    against: Annotated[
        Against | None,
        typer.Option(help="Compare the checkpoint, run by torch over the first bundle's anchors, with it."),
    ] = None,
    matrix: Annotated[
        list[Matrix] | None,
        typer.Option(help="Soft comparisons or hard votes, or both to compare them  [default: probability]."),
    ] = None,
    splits: Annotated[
        str | None,
        typer.Option(
            metavar="N|DIR",
            help="Median over N random test parts of a fifth, groups undivided, or over published ones.",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Break tables down by this column [default: type, if any]."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the report, its plots and all scores.")
    ] = None,
    resamples: Annotated[int, typer.Option(metavar="N", min=0, help="Of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the bootstrap and the splits.")] = 0,
    backend: Backend = "auto",
    threads: Threads = None,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Images scored at a time.")] = 8,
    as_json: Json = False,
) -> None:
    """Measure how well scores agree with people's opinions of labelled images.

    SRCC, KRCC, and PLCC and RMSE after a fitted four-parameter logistic; the share of pairs that the scores
    order as people do, by how far apart people rate the two. Each with its bootstrap interval of 95 %.

    An image that cannot be read is named, left out of the statistics, and makes the exit status 1.
    """
    from compare2score.pipelines.evaluate import evaluate_table
    from compare2score.pipelines.evaluation_report import Report, report_as_json, write_report

    tables = read_tables(labels or [], dataset or [], split)
    parts = None if splits is None else int(splits) if splits.isdecimal() else Path(splits)
    check(tables, by, parts, seed)
    if out is not None:
        prepare(out)
    forms = matrix or [Matrix.PROBABILITY]
    if checkpoint is None or against is not None:
        scorers = open_bundles(bundle or [None], forms, backend, threads)
    else:
        scorers = []
    if checkpoint is not None:
        scorers += open_checkpoint(checkpoint, anchor_images, scorers, forms)
    elif against is not None:
        raise CheckpointError("--against torch has nothing to run; give its --checkpoint.")
    scored = [[score(scorer, table, batch) for _, scorer in scorers] for table in tables]
    report = Report(
        bundles=tuple(name for name, _ in scorers),
        tables=tuple(evaluate_table(each, by, parts, resamples, seed, track) for each in scored),
        resamples=resamples,
        seed=seed,
    )
    if out is not None:
        write_report(report, out)
    if as_json:
        print_json(report_as_json(report))
    else:
        print_report(report)
        if out is not None:
            print(f"{out / 'report.md'}: the report, its plots and all scores beside it")
    if failed := name_left_out(report.tables):
        total = sum(len(table) for table in tables)
        remark(f"{failed} of {total} images could not be scored; the statistics are of the others.")
        raise typer.Exit(SOME_FAILED)


def read_tables(labels: Sequence[Path], datasets: Sequence[str], split: str) -> list[LabelTable]:
    """The tables in the order of the command line. Raises LabelError."""
    from compare2score.pipelines.datasets import read_dataset
    from compare2score.pipelines.evaluate import named_apart
    from compare2score.training.labels import read_labels

    tables = []
    for path in labels:
        table = read_labels(path)
        whole = table.split is None or split == EVERY_ROW
        tables.append(table if whole else read_labels(path, split=split))
    for named in datasets:
        name, equals, folder = named.partition("=")
        if not equals:
            raise LabelError(f"'{named}' names no folder; write --dataset NAME=DIR, such as live=release2/.")
        tables.append(read_dataset(name, folder))
    if not tables:
        raise LabelError("There is nothing to evaluate on; give --labels or --dataset.")
    return named_apart(tables)


def check(tables: Sequence[LabelTable], by: str | None, parts: int | Path | None, seed: int) -> None:
    """Raises LabelError for a column or splits that cannot be had: now, not after hours of scoring."""
    from compare2score.pipelines.evaluate import breakdown, drawn_parts

    for table in tables:
        breakdown(table, by)
        if parts is not None and not drawn_parts(table, parts, seed):
            remark(f"{parts} names no image of {table.name}; see the statistics of all its rows.")


def prepare(out: Path) -> None:
    """Makes the report's folder and sees that plots can be drawn, before anything is scored."""
    from compare2score.pipelines.scatter import check_plots

    check_plots()
    out.mkdir(parents=True, exist_ok=True)


def open_bundles(
    bundles: Sequence[Path | None], forms: Sequence[Matrix], backend: str, threads: int | None
) -> list[tuple[NamedBundle, Scorer]]:
    """A scorer for each bundle and form of the matrix, with a name that tells it from the others."""
    from compare2score import Scorer

    opened: list[tuple[NamedBundle, Scorer]] = []
    for path in bundles:
        for form in forms:
            scorer = Scorer(path, backend=backend, threads=threads, matrix=form.value)
            # Asked now: a bundle without anchors is refused before any image is read.
            _ = scorer.anchors
            name = "embedded" if path is None else path.resolve().name
            opened.append((name_apart(name, form.value if len(forms) > 1 else "", scorer, opened), scorer))
    return opened


def open_checkpoint(
    checkpoint: Path,
    anchor_images: Path | None,
    bundles: Sequence[tuple[NamedBundle, Scorer]],
    forms: Sequence[Matrix],
) -> list[tuple[NamedBundle, Scorer]]:
    """Scorers that run a checkpoint in torch, with anchors of its own or those of the first bundle."""
    if anchor_images is None and not bundles:
        raise LabelError("A checkpoint has no anchors; give --anchor-images, a label table or a folder.")
    anchors = bundles[0][1].anchors if anchor_images is None else anchor_images
    opened: list[tuple[NamedBundle, Scorer]] = []
    for form in forms:
        scorer = open_original(checkpoint, anchors, matrix=form.value)
        name = f"{checkpoint.resolve().name} in torch"
        named = name_apart(name, form.value if len(forms) > 1 else "", scorer, [*bundles, *opened])
        opened.append((named, scorer))
    return opened


def name_apart(
    name: str, form: str, scorer: Scorer, others: Sequence[tuple[NamedBundle, Scorer]]
) -> NamedBundle:
    """A name that no other scorer of the report has."""
    from compare2score.pipelines.evaluation_report import NamedBundle

    name = f"{name}, {form}" if form else name
    if any(other.name == name for other, _ in others):
        name = f"{name} ({len(others) + 1})"
    return NamedBundle(name, str(scorer.bundle.path), scorer.bundle.identity)


def score(scorer: Scorer, table: LabelTable, batch: int) -> ScoredTable:
    """Scores a table's images with a progress bar."""
    from compare2score.pipelines.evaluate import image_paths, score_table

    results = scorer.score_many(image_paths(table), batch)
    return score_table(table, track(results, len(table), f"Scoring {table.name}"))


def print_report(report: Report) -> None:
    """Prints each table's statistics, then those over test parts and by column."""
    from compare2score.pipelines.correlation import STATISTICS
    from compare2score.pipelines.evaluation_report import (
        TITLES,
        columns_of,
        decimals,
        split_rows,
        statistic_rows,
    )

    names = [bundle.name for bundle in report.bundles]
    for evaluation in report.tables:
        name = evaluation.table.name
        print_table(
            (f"{name}, {evaluation.whole.images} images", *columns_of(names)),
            statistic_rows(evaluation.whole),
        )
        if (splits := evaluation.splits) is not None:
            print_table(
                (f"{name}, median of {splits.parts} test parts", *columns_of(names)), split_rows(evaluation)
            )
        if evaluation.parts:
            # Without intervals, which would not fit a line; the report has them.
            rows = [
                [
                    value if len(names) == 1 else f"{value}, {bundle}",
                    str(part.images),
                    *(decimals(agreement.statistics[key].value) for key in STATISTICS),
                ]
                for value, part in evaluation.parts.items()
                for bundle, agreement in zip(names, part.agreements, strict=True)
            ]
            print_table((f"{name} by {evaluation.by}", "images", *TITLES.values()), rows)


def name_left_out(tables: Sequence[TableEvaluation]) -> int:
    """Says which images were left out, and why; returns how many."""
    errors = [error for table in tables for _, error in table.left_out]
    for error in errors[:LISTED]:
        remark(f"{error.code}: {error}")
    if len(errors) > LISTED:
        remark(f"{len(errors) - LISTED} more images could not be scored; --out or --json names all of them.")
    return len(errors)
