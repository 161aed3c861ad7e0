"""The report of an evaluation: JSON, Markdown, every image's score as csv, and the plots beside them."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compare2score.pipelines.correlation import STATISTICS, Agreement, Measurement
from compare2score.pipelines.evaluate import TableEvaluation
from compare2score.pipelines.resample import PAIR_LEVELS
from compare2score.pipelines.scatter import check_plots, draw_scatter

TITLES = {
    "srcc": "SRCC",
    "plcc": "PLCC",
    "krcc": "KRCC",
    "rmse": "RMSE",
    **{level: f"pairs: {level}" for level in PAIR_LEVELS},
}


@dataclass(frozen=True)
class NamedBundle:
    """A bundle as the report names it: a name that no other bundle of the report has, path, identity."""

    name: str
    path: str
    identity: str


@dataclass(frozen=True, eq=False)
class Report:
    """What was evaluated, how, and what came out."""

    bundles: tuple[NamedBundle, ...]
    tables: tuple[TableEvaluation, ...]
    resamples: int
    seed: int


def report_as_json(report: Report) -> dict[str, Any]:
    """The report as plain data; a number that is not defined is None."""
    names = [bundle.name for bundle in report.bundles]
    return {
        "bundles": [asdict(bundle) for bundle in report.bundles],
        "resamples": report.resamples,
        "seed": report.seed,
        "tables": [table_as_json(table, names) for table in report.tables],
    }


def table_as_json(evaluation: TableEvaluation, names: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": evaluation.table.name,
        **measurement_as_json(evaluation.whole, names),
        "std_assumed": not evaluation.table.has_std,
        "left_out": [
            {"path": path, "code": error.code, "message": str(error)} for path, error in evaluation.left_out
        ],
    }
    if evaluation.by is not None:
        parts = {value: measurement_as_json(part, names) for value, part in evaluation.parts.items()}
        found["by"] = {"column": evaluation.by, "parts": parts}
    if (splits := evaluation.splits) is not None:
        found["splits"] = {
            "parts": splits.parts,
            "images": splits.images,
            "results": of_bundles(splits.statistics, names),
            "differences": of_bundles(splits.differences, names[1:]),
        }
    return found


def measurement_as_json(measurement: Measurement, names: Sequence[str]) -> dict[str, Any]:
    return {
        "images": measurement.images,
        "units": measurement.units,
        "pairs": dict(measurement.pairs),
        "results": of_bundles([each.statistics for each in measurement.agreements], names),
        "differences": of_bundles([each.statistics for each in measurement.differences], names[1:]),
    }


def of_bundles(statistics: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Bundle to statistic to its numbers."""
    return {
        bundle: {name: defined(asdict(numbers)) for name, numbers in of_one.items()}
        for bundle, of_one in zip(names, statistics, strict=True)
    }


def defined(numbers: dict[str, float]) -> dict[str, float | None]:
    """Numbers with None, which JSON knows, for NaN, which it does not."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def decimals(value: float, signed: bool = False) -> str:
    """A number as tables show it, with a hyphen for one that is not defined."""
    if not math.isfinite(value):
        return "-"
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def with_interval(agreement: Agreement, name: str, signed: bool = False) -> str:
    """A statistic and its interval."""
    found = agreement.statistics[name]
    if not math.isfinite(found.low):
        return decimals(found.value, signed)
    return f"{decimals(found.value, signed)} [{decimals(found.low, signed)}, {decimals(found.high, signed)}]"


def columns_of(names: Sequence[str]) -> list[str]:
    """Headings: the bundles, then every bundle less the first."""
    return [*names, *(f"{name} - {names[0]}" for name in names[1:])]


def statistic_rows(measurement: Measurement) -> list[list[str]]:
    """One row a statistic: its title, each bundle's value and interval, the differences."""
    return [
        [
            TITLES[name],
            *(with_interval(each, name) for each in measurement.agreements),
            *(with_interval(each, name, signed=True) for each in measurement.differences),
        ]
        for name in STATISTICS
    ]


def split_rows(evaluation: TableEvaluation) -> list[list[str]]:
    """One row a statistic: its title, each bundle's median, lowest and highest, the differences."""
    if (splits := evaluation.splits) is None:
        return []
    rows = []
    for name in STATISTICS:
        cells = [TITLES[name]]
        for found, signed in ((splits.statistics, False), (splits.differences, True)):
            for spread in (each[name] for each in found):
                median, *ends = (decimals(value, signed) for value in asdict(spread).values())
                cells.append(f"{median} ({' to '.join(ends)})")
        rows.append(cells)
    return rows


def part_rows(evaluation: TableEvaluation, names: Sequence[str]) -> list[list[str]]:
    """One row for each value of the column that the table is broken down by, and each bundle."""
    return [
        [
            value if len(names) == 1 else f"{value}, {bundle}",
            str(part.images),
            *(with_interval(agreement, name) for name in STATISTICS),
        ]
        for value, part in evaluation.parts.items()
        for bundle, agreement in zip(names, part.agreements, strict=True)
    ]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    cells = [[escaped(cell) for cell in row] for row in [header, rule, *rows]]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def escaped(text: str) -> str:
    """Text that Markdown takes as it is: names of files and columns may be a stranger's."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))


def report_as_markdown(report: Report) -> str:
    """The report for people; the plots lie beside it."""
    names = [bundle.name for bundle in report.bundles]
    blocks = ["# Evaluation", bundle_lines(report)]
    for place, evaluation in enumerate(report.tables):
        whole = evaluation.whole
        drawn = "groups" if whole.units < whole.images else "images"
        pairs = ", ".join(f"{count} {level}" for level, count in whole.pairs.items())
        assumed = "" if evaluation.table.has_std else " (by an assumed deviation of the opinions)"
        blocks += [
            f"## {escaped(evaluation.table.name)}",
            f"{whole.images} images, {whole.units} {drawn} resampled. Pairs{assumed}: {pairs}.",
            markdown_table(["", *columns_of(names)], statistic_rows(whole)),
            *(
                f"![{escaped(name)}]({file_stem(report, place, bundle)}.png)"
                for bundle, name in enumerate(names)
            ),
        ]
        if (splits := evaluation.splits) is not None:
            blocks += [
                f"Median over {splits.parts} test parts of {min(splits.images)} to {max(splits.images)} "
                "images (lowest to highest):",
                markdown_table(["", *columns_of(names)], split_rows(evaluation)),
            ]
        if evaluation.parts:
            blocks += [
                f"By {escaped(evaluation.by or '')}:",
                markdown_table(["", "images", *TITLES.values()], part_rows(evaluation, names)),
            ]
        if evaluation.left_out:
            lines = (f"- {escaped(path)}: {error.code}" for path, error in evaluation.left_out)
            blocks += [f"Left out, {len(evaluation.left_out)} images:", "\n".join(lines)]
    return "\n\n".join(blocks) + "\n"


def bundle_lines(report: Report) -> str:
    lines = [f"- {escaped(each.name)}: bundle {each.identity[:12]}" for each in report.bundles]
    explained = (
        f"Bias-corrected intervals of 95 % from {report.resamples} bootstrap resamples, seed {report.seed}. "
        "PLCC and RMSE after a four-parameter logistic fitted to q. Pairs: the share that q orders as people "
        "do, by how far apart they rate the two (within one deviation of the difference, two, or more)."
    )
    return "\n".join(lines) + "\n\n" + explained


def file_stem(report: Report, table: int, bundle: int) -> str:
    """Name of a plot's files: table and bundle, made safe for any file system, and unique."""
    text = f"{report.tables[table].table.name}-{report.bundles[bundle].name}"
    return f"{table + 1}-{bundle + 1}-{re.sub(r'[^A-Za-z0-9.-]+', '_', text)}"


def write_report(report: Report, folder: Path) -> list[Path]:
    """Writes report.json, report.md, scores.csv and two files a plot into a folder; returns their paths.

    Raises MissingExtraError without matplotlib.
    """
    check_plots()
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "report.json", folder / "report.md", folder / "scores.csv"]
    written[0].write_text(json.dumps(report_as_json(report), indent=1) + "\n", encoding="utf-8")
    written[1].write_text(report_as_markdown(report), encoding="utf-8")
    write_scores(report, written[2])
    for table, evaluation in enumerate(report.tables):
        for place, bundle in enumerate(report.bundles):
            written += draw_scatter(evaluation, place, bundle.name, folder / file_stem(report, table, place))
    return written


def write_scores(report: Report, path: Path) -> None:
    """Every row of every table: table, image, mos, then q of each bundle or its error's code."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["table", "image", "mos", *(bundle.name for bundle in report.bundles)])
        for evaluation in report.tables:
            table = evaluation.table
            for row, (image, mos) in enumerate(zip(table.images, table.mos.tolist(), strict=True)):
                cells = [
                    scored.errors[row].code if row in scored.errors else repr(float(scored.q[row]))
                    for scored in evaluation.scored
                ]
                writer.writerow([table.name, image, mos, *cells])
