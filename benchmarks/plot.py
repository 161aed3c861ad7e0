"""Draws a record of speed: latency by stage, throughput by batch.

python -m compare2score.benchmarks.plot benchmarks/results/speed.json docs/
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from compare2score.benchmarks.record import RESULTS
from compare2score.benchmarks.speed import threads

Row = Mapping[str, Any]

STAGES = ("decode", "preprocess", "vision", "decoder", "MAP")
# Six colours that people with any colour vision tell apart (Okabe and Ito, 2008).
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#0072B2", "#CC79A7", "#999999")
NAME = "speed"


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes speed.png and speed.svg; returns their paths. The same rows give the same bytes of SVG.

    A panel without rows says so.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_stages(left, [row for row in rows if row["mode"] == "stages"])
    draw_throughput(right, [row for row in rows if row["mode"] == "throughput"])
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{NAME}.png", folder / f"{NAME}.svg"]
    with mpl.rc_context({"svg.hashsalt": NAME}):
        figure.savefig(paths[0], dpi=120)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def setting(row: Row) -> str:
    """What distinguishes a bar or a line."""
    return f"{row['bundle']}, {row['precision']}\n{row['backend'].partition(',')[0]}, threads: {threads(row)}"


def draw_stages(axes: Axes, rows: Sequence[Row]) -> None:
    """A bar a setting, its stages stacked; what no stage accounts for is "other"."""
    axes.set_title("Latency of one score, by stage")
    axes.set_xlabel("milliseconds, median")
    if not rows:
        empty(axes)
        return
    settings = list(dict.fromkeys(setting(row) for row in rows))
    seconds = {(setting(row), row["case"]): 1e3 * row["p50"] for row in rows}
    left = [0.0] * len(settings)
    for stage, color in zip((*STAGES, "other"), COLORS, strict=True):
        if stage == "other":
            lengths = [
                max(0.0, seconds[name, "total"] - start) for name, start in zip(settings, left, strict=True)
            ]
        else:
            lengths = [seconds[name, stage] for name in settings]
        axes.barh(settings, lengths, left=left, color=color, label=stage, height=0.6)
        left = [start + length for start, length in zip(left, lengths, strict=True)]
    axes.invert_yaxis()
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.18))


def draw_throughput(axes: Axes, rows: Sequence[Row]) -> None:
    """A line a setting over the batch."""
    axes.set_title("Throughput, by batch")
    axes.set_xlabel("images in a batch")
    axes.set_ylabel("images a second, median")
    if not rows:
        empty(axes)
        return
    for place, name in enumerate(dict.fromkeys(setting(row) for row in rows)):
        points = sorted((row["batch"], row["images_per_second"]) for row in rows if setting(row) == name)
        batches, rates = zip(*points, strict=True)
        axes.plot(
            batches, rates, "o-", color=COLORS[(place + 3) % len(COLORS)], label=name.replace("\n", ", ")
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({row["batch"] for row in rows}))
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_ylim(0, 1.1 * max(row["images_per_second"] for row in rows))
    axes.legend(fontsize=7, frameon=False, loc="lower right")


def empty(axes: Axes) -> None:
    axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])


def main(
    record: Annotated[Path, typer.Argument(help="JSON that `c2s bench --out` wrote.")] = RESULTS
    / "speed.json",
    folder: Annotated[Path, typer.Argument(help="Where to write speed.png and speed.svg.")] = Path("docs"),
) -> None:
    """Draws a record of speed."""
    rows = json.loads(record.read_text(encoding="utf-8"))["results"]["rows"]
    for path in draw(rows, folder):
        print(path)


if __name__ == "__main__":
    typer.run(main)
