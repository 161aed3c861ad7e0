"""`c2s bench`: how fast bundles are on this machine."""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from compare2score.cli.console import print_json, print_table, track
from compare2score.cli.extra import extra
from compare2score.cli.options import Json, examples

EXAMPLES = examples(
    "c2s bench",
    "c2s bench --bundle a/ b/ --threads 1,2 --batch 1,4,16 --mode latency,throughput,stages --markdown",
    "c2s bench --against reference --batch 1,16 --roofline --out speed.json --plot plots/",
)
BACKENDS = {"ort": "onnxruntime"}
"""Short names."""
Baseline = Literal["reference"]


def bench(
    bundle: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR...", help="Bundle folders; without them, the embedded one."),
    ] = None,
    backend: Annotated[
        str, typer.Option(metavar="NAME,...", help="What runs the graphs: auto, onnxruntime (or ort).")
    ] = "auto",
    threads: Annotated[
        str | None,
        typer.Option(metavar="N,...", help="CPU threads of a call; without it, the backend's choice."),
    ] = None,
    batch: Annotated[
        str, typer.Option(metavar="N,...", help="Images at a time: throughput, memory, --against.")
    ] = "1",
    mode: Annotated[
        str, typer.Option(metavar="NAME,...", help="What to measure; the modes are below.")
    ] = "latency,stages",
    against: Annotated[
        Baseline | None, typer.Option(help="Alternate with the published loop, in torch; print the ratio.")
    ] = None,
    roofline: Annotated[
        bool, typer.Option("--roofline", help="Hold the graphs against the machine's own limit.")
    ] = False,
    image: Annotated[
        Path | None, typer.Option(help="Photograph to score; without it, a 512 x 512 JPEG is made.")
    ] = None,
    anchor_images: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE...", help="Anchors, worst first; --against makes five without them."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The bundle's checkpoint, if its graphs do not show the weights.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Exactly so many, in place of what follows.")
    ] = None,
    warmup: Annotated[int, typer.Option(metavar="N", min=0, help="Calls that are not counted.")] = 3,
    variation: Annotated[
        float, typer.Option(min=0, help="Repeat until standard deviation over mean is at most this,")
    ] = 0.05,
    budget: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="or for so long.")] = 20.0,
    scores: Annotated[
        int, typer.Option(metavar="N", min=0, help="Scores after which memory is looked at again.")
    ] = 1000,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV, a line a row.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Markdown tables.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a record: rows, machine, versions, commit.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw stages and throughput, as PNG and SVG.")
    ] = None,
) -> None:
    """Measure how fast bundles are on this machine.

    Everything is repeated until it is stable, or the budget is spent; a row that is not stable says so.
    Percentiles are of calls, images a second follow from the median. With --json a line a row, each with
    the machine, the versions and the commit.

    Modes: latency (one file to one score), throughput (batches), stages (decode, preprocess, vision,
    decoder, MAP, total), cold (fresh processes), memory (fresh processes), map (the estimate alone).

    With --against reference, pairs of calls: the published loop, with the bundle's own weights and the same
    anchors, then the scorer; the ratio pair by pair, its median, and how far apart the probabilities are.
    """
    with extra("bench", "Measuring speed"):
        if roofline or against:
            import onnx  # noqa: F401
        if against:
            import torch  # noqa: F401
        if plot is not None:
            from compare2score.benchmarks.plot import draw
        from compare2score.benchmarks.energy import energy_meters
        from compare2score.benchmarks.photographs import write_photograph
        from compare2score.benchmarks.plan import MODES, Plan, planned
        from compare2score.benchmarks.record import commit, machine, write_record
        from compare2score.benchmarks.timing import Limits

    limits = Limits(warmup, 10, 1000, budget, variation)
    if repeats is not None:
        limits = Limits(warmup, repeats, repeats, float("inf"), variation)
    with tempfile.TemporaryDirectory(prefix="c2s-bench-") as scratch, energy_meters() as meters:
        plan = Plan(
            bundles=bundle or [None],
            backends=[BACKENDS.get(name, name) for name in listed(backend)],
            threads=[None] if threads is None else numbers(threads, "threads"),
            batches=numbers(batch, "batch"),
            modes=chosen(mode, MODES),
            roofline=roofline,
            against=against is not None,
            image=image or write_photograph(Path(scratch, "photograph.jpg")),
            anchors=anchor_images or (),
            checkpoint=checkpoint,
            limits=limits,
            scores=scores,
            meters=meters,
        )
        jobs = list(planned(plan, Path(scratch)))
        rows = [row for job in track(jobs, len(jobs), "Measuring") for row in job()]
    here = {**machine(), "commit": commit()}
    if as_json:
        for row in rows:
            print_json({**row, **here})
    elif as_csv:
        print_csv([{**row, **here} for row in rows])
    else:
        print_tables(rows, here, as_markdown)
    # After the rows: they are not lost if the disk refuses a file.
    if out is not None:
        write_record(out.stem, {"image": image and image.name, "rows": rows}, out.parent)
    if plot is not None:
        draw(rows, plot)


def listed(text: str) -> list[str]:
    """The parts of `a,b,c`."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str, option: str) -> list[int]:
    """Whole numbers from `1,4,16`. Raises typer.BadParameter for anything else."""
    parts = listed(text)
    if not parts or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"--{option} is {text!r}; give whole numbers above 0, as in 1,4,16.")
    return [int(part) for part in parts]


def chosen(text: str, known: Sequence[str]) -> list[str]:
    """Names of those known. Raises typer.BadParameter for another."""
    for name in listed(text):
        if name not in known:
            raise typer.BadParameter(f"There is no mode {name!r}; choose from {', '.join(known)}.")
    return listed(text)


def print_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows under the names of all their columns."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v) if isinstance(v, dict) else v for k, v in row.items()})


def print_tables(rows: Sequence[Mapping[str, Any]], here: Mapping[str, Any], as_markdown: bool) -> None:
    """Prints a table a mode, and a line that names the machine, the versions and the commit."""
    from compare2score.benchmarks.speed import cells, markdown, rows_by_mode

    for mode, some in rows_by_mode(rows).items():
        headings, lines = cells(mode, some)
        print(f"{mode}\n" if as_markdown else mode)
        if as_markdown:
            print(markdown(headings, lines))
        else:
            print_table(headings, lines)
        print()
    facts = ", ".join(f"{name} {value}" for name, value in here.items() if value is not None)
    print(f"Measured with {facts}.")
