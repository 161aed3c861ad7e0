"""Tables of speed: what `c2s bench` prints, and what the README shows of `benchmarks/results/speed.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str]]

NOT_TOLD = "not available"
MET, MISSED = "met", "missed"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are aligned right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def duration(seconds: float) -> str:
    """Seconds in the unit that leaves a few digits before the point."""
    if abs(seconds) >= 1:
        return f"{seconds:.2f} s"
    return f"{1e3 * seconds:.2f} ms" if abs(seconds) >= 1e-3 else f"{1e6 * seconds:.1f} µs"


def spread(row: Row) -> str:
    return f"{100 * row['variation']:.1f} %" + ("" if row["stable"] else ", unstable")


def energy(row: Row) -> str:
    joules = row["joules_per_image"]
    if isinstance(joules, str):
        return joules
    return ", ".join(f"{value:.3g} ({name})" for name, value in joules.items())


def amount(value: float | None, unit: str, digits: int = 1) -> str:
    return NOT_TOLD if value is None else f"{value:.{digits}f} {unit}"


def threads(row: Row) -> str:
    return "default" if row["threads"] is None else str(row["threads"])


def pair_or_median(row: Row) -> str:
    """How far apart the probabilities are stands with the median."""
    difference = row.get("probability_difference")
    return "" if difference is None else f"{difference:.1e}"


CASE: list[Column] = [("case", lambda row: row["case"])]
SETTING: list[Column] = [
    ("bundle", lambda row: f"{row['bundle']}, {row['precision']}"),
    ("backend", lambda row: row["backend"].partition(",")[0]),
    ("threads", threads),
]
BATCH: list[Column] = [("batch", lambda row: str(row["batch"]))]
SECONDS: list[Column] = [
    ("p50", lambda row: duration(row["p50"])),
    ("p90", lambda row: duration(row["p90"])),
    ("p99", lambda row: duration(row["p99"])),
    ("mean ± std", lambda row: f"{duration(row['mean'])} ± {duration(row['std'])}"),
    ("variation", spread),
]
RATE: list[Column] = [
    ("images/s", lambda row: f"{row['images_per_second']:.1f}"),
    ("J/image", energy),
]
SHARE: list[Column] = [("of the score", lambda row: f"{100 * row['share']:.1f} %")]
COLUMNS: dict[str, list[Column]] = {
    "latency": [*CASE, *SETTING, *SECONDS, *RATE],
    "throughput": [*CASE, *SETTING, *BATCH, *SECONDS, *RATE],
    "stages": [*CASE, *SETTING, *SHARE, *SECONDS],
    "cold": [*CASE, *SETTING, *SECONDS, ("peak memory", lambda row: amount(row["peak_mb"], "MB"))],
    "memory": [*CASE, *SETTING, *BATCH, ("memory", lambda row: amount(row["megabytes"], "MB"))],
    "map": [
        *CASE,
        ("each", lambda row: duration(row["p50"] / row["images"])),
        *SECONDS,
        ("x Adam", lambda row: "" if row["ratio"] is None else f"{row['ratio']:.0f}"),
    ],
    "against reference": [
        *CASE,
        *SETTING,
        *BATCH,
        ("reference, an image", lambda row: duration(row["reference_seconds"])),
        ("scorer, an image", lambda row: duration(row.get("seconds", row.get("p50")) / row["images"])),
        ("ratio", lambda row: f"{row['ratio']:.1f}"),
        ("probabilities differ by", pair_or_median),
    ],
    "roofline": [
        *CASE,
        *SETTING,
        ("GFLOP", lambda row: f"{1e-9 * row['flops']:.2f}"),
        ("MB", lambda row: f"{1e-6 * row['bytes']:.1f}"),
        ("GFLOP/s", lambda row: f"{1e-9 * row['flops_per_second']:.0f}"),
        ("best GFLOP/s", lambda row: f"{1e-9 * row['peak_flops_per_second']:.0f}"),
        ("copy GB/s", lambda row: f"{1e-9 * row['copied_bytes_per_second']:.0f}"),
        ("attainable", lambda row: duration(row["attainable"])),
        ("measured p50", lambda row: duration(row["p50"])),
        ("achieved / attainable", lambda row: f"{100 * row['share']:.0f} %"),
        ("variation", spread),
    ],
}
"""By mode, in the order of display."""


def rows_by_mode(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by mode, in the order of COLUMNS; modes without rows are left out."""
    found = {mode: [row for row in rows if row["mode"] == mode] for mode in COLUMNS}
    return {mode: some for mode, some in found.items() if some}


def cells(mode: str, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of one mode's rows."""
    columns = COLUMNS[mode]
    return [heading for heading, _ in columns], [[show(row) for _, show in columns] for row in rows]


def scores_table(rows: Sequence[Row]) -> str:
    """One image and batches: time an image, images a second, and the ratio to the reference loop."""
    medians = {place(row): row["ratio"] for row in rows if is_median(row)}
    header = ["bundle", "threads", "batch", "p50 an image", "p90 an image", "images/s", "x reference loop"]
    table = []
    for row in rows:
        if row["mode"] not in ("latency", "throughput"):
            continue
        if row["mode"] == "throughput" and row["batch"] == 1:
            continue  # the same as latency, but for the stream
        ratio = medians.get(place(row))
        table.append(
            [
                f"{row['bundle']}, {row['precision']}",
                threads(row),
                str(row["batch"]),
                duration(row["p50"] / row["images"]),
                duration(row["p90"] / row["images"]),
                f"{row['images_per_second']:.1f}" + ("" if row["stable"] else ", unstable"),
                "" if ratio is None else f"{ratio:.1f}",
            ]
        )
    return markdown(header, table)


def stages_table(rows: Sequence[Row]) -> str:
    """Where the time of a score goes, by stage, and how near the limit the graphs run."""
    limits = {(row["case"], *place(row)): row["share"] for row in rows if row["mode"] == "roofline"}
    header = ["stage", "bundle", "threads", "p50", "of the score", "achieved / attainable"]
    table = []
    for row in rows:
        if row["mode"] == "stages":
            limit = limits.get((row["case"], *place(row)))
            table.append(
                [
                    row["case"],
                    f"{row['bundle']}, {row['precision']}",
                    threads(row),
                    duration(row["p50"]),
                    f"{100 * row['share']:.1f} %",
                    "" if limit is None else f"{100 * limit:.0f} %",
                ]
            )
    return markdown(header, table)


def place(row: Row) -> tuple[Any, ...]:
    """What two rows of one setting share."""
    return row["bundle"], row["precision"], row["backend"], row["threads"], row["batch"]


def is_median(row: Row) -> bool:
    return bool(row["mode"] == "against reference" and row["case"] == "median")


def targets_table(rows: Sequence[Row]) -> str:
    """The project's targets beside what was measured, at the first bundle and its most threads."""
    first = rows[0]["bundle"]
    most = max((row["threads"] or 0 for row in rows), default=0)
    chosen = [row for row in rows if row["bundle"] == first and (row["threads"] or 0) == most]
    table = []
    for what, target, mode, case, batch, value, bound, at_least, show in TARGETS:
        found = next((row for row in chosen if matches(row, mode, case, batch)), None)
        if found is None or found.get(value) is None:
            table.append([what, target, "not measured", ""])
            continue
        measured = found[value] / (found["images"] if value == "p50" else 1)
        verdict = "" if bound is None else MET if (measured >= bound) == at_least else MISSED
        table.append([what, target, show(measured), verdict])
    return markdown(["what", "target", "measured", ""], table)


def matches(row: Row, mode: str, case: str, batch: int | None) -> bool:
    return row["mode"] == mode and row["case"].startswith(case) and batch in (None, row["batch"])


def times(value: float) -> str:
    return f"{value:,.1f} x" if value < 100 else f"{value:,.0f} x"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def megabytes(value: float) -> str:
    return f"{value:.1f} MB"


Target = tuple[str, str, str, str, "int | None", str, "float | None", bool, Callable[[float], str]]
AGAINST, REST = "against reference", "all but vision, decoder"
# What, target, where it is found (mode, case, batch, value), the bound and whether it is a lower one.
TARGETS: list[Target] = [
    ("one score, against the reference loop", ">= 20 x", AGAINST, "median", 1, "ratio", 20, True, times),
    ("throughput, batch 16, against it", ">= 30 x", AGAINST, "median", 16, "ratio", 30, True, times),
    ("vision, of the attainable", ">= 60 %", "roofline", "vision", 1, "share", 0.6, True, percent),
    ("decoder, of the attainable", ">= 60 %", "roofline", "decoder", 1, "share", 0.6, True, percent),
    ("not vision or decoder, of a score", "<= 15 %", "stages", REST, 1, "share", 0.15, False, percent),
    ("`map_estimate`, one 6 x 6", "<= 60 µs", "map", "one", None, "p50", 60e-6, False, duration),
    ("`map_estimate`, of 10,000, each", "<= 2 µs", "map", "10,000", None, "p50", 2e-6, False, duration),
    ("the same, against 100 Adam steps", ">= 1,000 x", "map", "10,000", None, "ratio", 1000, True, times),
    ("cold start to first score", "<= 1.0 s", "cold", "first", 1, "p50", 1.0, False, duration),
    ("import", "<= 0.2 s", "cold", "import", 1, "p50", 0.2, False, duration),
    (
        "memory of an image more in a batch",
        "stated",
        "memory",
        "an image",
        None,
        "megabytes",
        None,
        False,
        megabytes,
    ),
    ("memory after many scores", "no growth", "memory", "growth", None, "megabytes", None, False, megabytes),
]
