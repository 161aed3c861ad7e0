"""Writes the README's result tables from the records in `benchmarks/results/`.

python -m compare2score.benchmarks.tables README.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer

from compare2score.benchmarks.architectures import MODELS
from compare2score.benchmarks.deployment import NOT_MEASURED, boards_table
from compare2score.benchmarks.full_size import full_size_table
from compare2score.benchmarks.record import RESULTS
from compare2score.benchmarks.speed import markdown, scores_table, stages_table, targets_table

Record = dict[str, Any]

SRCC_TARGETS = {"biq2021": 0.87, "agiqa3k": 0.88}
DISTORTION_TARGETS = (
    ("order of strengths, types never trained on, pairs right", 0.95, "unseen_pairs_right"),
    ("clean against every type at its strongest, preferred", 0.97, "clean_preferred"),
)


def accuracy(record: Record) -> str:
    """SRCC and PLCC by method and table."""
    tables = record["results"]["tables"]
    header = ["method", *(f"{name} SRCC / PLCC ({table['images']} images)" for name, table in tables.items())]
    methods = next(iter(tables.values()))["methods"]
    rows = []
    for method in methods:
        values = [table["methods"][method] for table in tables.values()]
        rows.append([method, *(f"{value['srcc']:.3f} / {value['plcc']:.3f}" for value in values)])
    rows[0][0] = f"**shipped comparator, {record['results']['precision']}**"
    return markdown(header, rows)


def accuracy_targets(record: Record) -> str:
    """What was wanted, what the shipped comparator does, and the better regressor."""
    results = record["results"]
    found: dict[str, tuple[float, dict[str, float]]] = {
        f"{name} {table['split']}, SRCC": (
            SRCC_TARGETS[name],
            {method: value["srcc"] for method, value in table["methods"].items()},
        )
        for name, table in results["tables"].items()
        if name in SRCC_TARGETS
    }
    for label, target, key in DISTORTION_TARGETS:
        methods = results["distortions"]["methods"]
        found[label] = (target, {method: value[key] for method, value in methods.items()})
    rows = []
    for label, (target, methods) in found.items():
        shipped = methods["comparator"]
        others = [(value, name) for name, value in methods.items() if name != "comparator"]
        best = "not recorded" if not others else "{:.3f}, {}".format(*max(others))
        verdict = "met" if shipped >= target else "missed"
        rows.append([label, f">= {target:g}", f"{shipped:.3f}", verdict, best])
    return markdown(["what", "target", "shipped comparator", "", "best regressor"], rows)


def distortions(record: Record) -> str:
    """Order of strengths and preference for the clean photograph, by type."""
    found = record["results"]["distortions"]["methods"]
    rows = []
    for name, shipped in found["comparator"]["types"].items():
        cells = [f"{100 * shipped[key]:.1f} %" for key in ("pairs_right", "clean_preferred")]
        rows.append([name.replace("_", " "), "no" if shipped["unseen"] else "yes", *cells])
    return markdown(["distortion", "trained on", "order of strengths", "clean preferred"], rows)


def ablations(record: Record) -> str:
    """Mean and spread of the SRCC over the seeds, by row and table."""
    found = record["results"]["rows"]
    names = list(found[0]["srcc"][0])
    rows = []
    for row in found:
        cells = []
        for name in names:
            values = [seed[name] for seed in row["srcc"]]
            cells.append(f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        rows.append([row["name"], str(len(row["srcc"])), *cells])
    return markdown(["what", "seeds", *(f"{name} test SRCC, mean (spread)" for name in names)], rows)


def seeds(record: Record) -> str:
    """What runs of one recipe from different seeds reach."""
    split, found = record["results"]["split"], record["results"]["rows"]
    names = list(found[0]["srcc"])
    rows = [
        [
            str(row["seed"]),
            *(f"{row['srcc'][name]:.3f}" for name in names),
            *(f"{100 * row['distortions'][key]:.1f} %" for _, _, key in DISTORTION_TARGETS),
        ]
        for row in found
    ]
    labels = (label for label, _, _ in DISTORTION_TARGETS)
    return markdown(["seed", *(f"{name} {split} SRCC" for name in names), *labels], rows)


def anchor_sets(record: Record) -> str:
    """SRCC, and how often the posterior's interval holds what people say, by choice of anchors."""
    found = record["results"]["anchors"]
    names = list(found[0]["srcc"])
    rows = [
        [
            row["anchors"],
            *(f"{row['srcc'][name]:.3f}" for name in names),
            *(f"{100 * row['cover'][name]:.0f} %" for name in names),
        ]
        for row in found
    ]
    header = ["anchors", *(f"{name} SRCC" for name in names), *(f"{name} cover" for name in names)]
    return markdown(header, rows)


def pareto(record: Record) -> str:
    """Accuracy and time by input size and precision."""
    found = record["results"]["rows"]
    names = list(found[0]["srcc"])
    rows = [
        [
            f"{row['size']} px",
            row["precision"],
            f"{row['milliseconds']:.1f} ms",
            *(f"{row['srcc'][name]:.3f}" for name in names),
        ]
        for row in found
    ]
    return markdown(["input", "precision", "a score, median", *(f"{name} SRCC" for name in names)], rows)


def failures(record: Record) -> str:
    """The worst of every table, by name."""
    rows = [
        [name, row["image"], f"{row['people']:.0f} %", f"{row['score']:.0f} %"]
        for name, found in record["results"]["tables"].items()
        for row in found
    ]
    return markdown(["table", "image", "rank by people", "rank by score"], rows)


def footprint(record: Record) -> str:
    """Start-up and memory."""
    rows = [
        [
            name,
            f"{case['seconds_median']:.2f} s",
            f"{case['seconds_worst']:.2f} s",
            f"{case['peak_mb']:.0f} MB",
        ]
        for name, case in record["results"].items()
        if isinstance(case, dict)
    ]
    return markdown(["fresh process", "median", "worst", "peak memory"], rows)


def adaptive(record: Record) -> str:
    """What stopping early saves and costs."""
    rows = []
    for row in record["results"]["rows"]:
        bounds = [f"{name} {row[name]:g}" for name in ("tolerance", "std") if row[name]]
        changed = [f"{row['srcc']:.3f}", f"{row['srcc_with_all']:.4f}", f"{row['mean_change']:.1f}"]
        label = "all anchors" if row["tolerance"] is None else ", ".join(bounds) or "no bound"
        rows.append([label, f"{row['comparisons']:.2f}", *changed])
    header = ["stop at", "comparisons an image", "SRCC with people", "SRCC with all anchors", "points moved"]
    return markdown(header, rows)


def collection(record: Record) -> str:
    """A run of the filter: what became of the rows, how fast, with how much memory."""
    found = record["results"]
    errors = ", ".join(f"{count} {code}" for code, count in found["errors"].items()) or "none"
    tenths = [value for value in found["memory"]["mb_by_tenth"] if value is not None]
    memory = f"{tenths[len(tenths) // 2]:.0f} MB, {tenths[-1]:.0f} MB"
    row = [f"{found['rows']:,}", f"{found['scored']:,}", errors, f"{found['images_per_second']:.1f}", memory]
    header = ["rows", "scored", "errors", "images/s", "memory halfway, at the end"]
    return markdown(header, [row])


def precision(record: Record) -> str:
    """The ladder of precisions: size, drift of the scores, GPUs that engines are compiled for."""
    rows = []
    for found in record["results"]["comparators"]:
        deviation = found["rows"][0]["q_deviation"]
        for row in found["rows"]:
            engines = row.get("engine_bytes", {})
            held = sum(engines.get(graph, 0) for graph in ("vision", "decoder"))
            rows.append(
                [
                    found["model"],
                    row["precision"],
                    f"{row['graph_bytes'] / 1e6:.1f} MB",
                    f"{held / 1e6:.1f} MB" if held else "none",
                    f"{row['srcc_with_fp32']:.4f}",
                    f"{row['mean_q_change']:.2g}",
                    f"{100 * row['mean_q_change'] / deviation:.1f} %",
                    ", ".join(row["builds_for"]) or "none",
                ]
            )
    header = ["comparator", "precision", "graphs", "engines", "SRCC with fp32", "mean change of q"]
    return markdown([*header, "of fp32's deviation", "builds for (compile check)"], rows)


def origin(record: Record) -> str:
    """One line that names the machine, the versions and the commit."""
    machine = record["machine"]
    return (
        f"Measured {record['date']} on {machine['cores']} cores of an {machine['processor']}, "
        f"Python {machine['python']}, onnxruntime {machine['onnxruntime']}, commit {record['commit']}."
    )


TABLES: dict[str, tuple[str, Callable[[Record], str]]] = {
    "accuracy": ("accuracy", accuracy),
    "accuracy_targets": ("accuracy", accuracy_targets),
    "distortions": ("accuracy", distortions),
    "footprint": ("footprint", footprint),
    "ablations": ("ablations", ablations),
    "anchor_sets": ("ablations", anchor_sets),
    "seeds": ("seeds", seeds),
    "pareto": ("pareto", pareto),
    "failures": ("failures", failures),
    "adaptive": ("adaptive", adaptive),
    "filter": ("filter", collection),
    "full_size": ("full_size", lambda record: full_size_table(record["results"])),
    "hostile": ("hostile", collection),
    "soak": ("soak", collection),
    "precision": ("precision", precision),
    "speed": ("speed", lambda record: scores_table(record["results"]["rows"])),
    "stages": ("speed", lambda record: stages_table(record["results"]["rows"])),
    "targets": ("speed", lambda record: targets_table(record["results"]["rows"])),
}

COMPUTED: dict[str, Callable[[], str]] = {"plan": lambda: boards_table(MODELS["7b"]())}
"""Tables that come from no measurement, and say so."""


def filled(text: str, results: Path) -> str:
    """The text with every block between `<!-- table:NAME -->` and `<!-- end -->` written anew."""

    def block(match: re.Match[str]) -> str:
        if match[1] in COMPUTED:
            table, note = COMPUTED[match[1]](), NOT_MEASURED
        else:
            name, render = TABLES[match[1]]
            record = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
            table, note = render(record), origin(record)
        return f"<!-- table:{match[1]} -->\n{table}\n\n{note}\n<!-- end -->"

    return re.sub(r"<!-- table:(\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def main(
    document: Annotated[Path, typer.Argument(help="Markdown file with table markers.")],
    results: Annotated[Path, typer.Option(help="Folder of the records.")] = RESULTS,
) -> None:
    """Fills the tables of a document."""
    document.write_text(filled(document.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
