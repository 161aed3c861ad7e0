"""A long run of `c2s filter` over the same files again and again: is its memory flat?

python -m compare2score.benchmarks.soak PHOTO_OR_FOLDER... --images 20000

Needs psutil (Linux, macOS). Memory is the resident set of the run and of its decoding processes together.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

import typer

from compare2score.benchmarks.record import RESULTS, write_record
from compare2score.pipelines.sources import list_entries

_SECONDS = 2.0
_MB = 1 << 20


def list_repeatedly(sources: list[str], images: int, path: Path) -> int:
    """Writes the paths of all images in `sources`, again and again; returns how many files they are."""
    files = [str(Path(entry.file).absolute()) for entry in list_entries(sources)]
    with path.open("w", encoding="utf-8", errors="surrogateescape") as lines:
        lines.writelines(f"{file}\n" for file in islice(cycle(files), images))
    return len(files)


def measured_run(listing: Path, out: Path, options: list[str]) -> dict[str, Any]:
    """Runs the filter in a process of its own and watches its memory.

    Raises RuntimeError if it ends with anything but a complete output.
    """
    import psutil

    command = [sys.executable, "-m", "compare2score.cli", "filter", str(listing), "--out", str(out), "--json"]
    start = time.perf_counter()
    samples: list[tuple[int, float]] = []
    rows = Path(f"{out}.run") / "rows.jsonl"
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            time.sleep(_SECONDS)
            try:
                memory = sum(one.memory_info().rss for one in [watched, *watched.children(recursive=True)])
                samples.append((rows.stat().st_size, memory / _MB))
            except (psutil.Error, OSError):
                continue
        printed = process.stdout.read() if process.stdout else ""
    seconds = time.perf_counter() - start
    if process.returncode not in (0, 1):
        raise RuntimeError(f"The filter ended with status {process.returncode}.")
    return {**json.loads(printed), "seconds": round(seconds, 1), "memory": memory_course(samples)}


def memory_course(samples: list[tuple[int, float]]) -> dict[str, Any]:
    """Mean resident MB in each tenth of the run, by rows written, and the most of all."""
    last = max((written for written, _ in samples), default=0) or 1
    tenths: list[list[float]] = [[] for _ in range(10)]
    for written, memory in samples:
        tenths[min(9, 10 * written // last)].append(memory)
    means = [round(sum(tenth) / len(tenth), 1) if tenth else None for tenth in tenths]
    return {"mb_by_tenth": means, "peak_mb": round(max((memory for _, memory in samples), default=0), 1)}


def main(
    sources: Annotated[list[str], typer.Argument(help="Photographs, folders, patterns.")],
    images: Annotated[int, typer.Option(help="Rows in all; 0 for each file once.")] = 20_000,
    name: Annotated[str, typer.Option(help="Name of the record.")] = "soak",
    workers: Annotated[int, typer.Option(help="Decoding processes.")] = 1,
    batch: Annotated[int, typer.Option(help="Images scored at a time.")] = 8,
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder; without it, the embedded one.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the record.")] = RESULTS,
) -> None:
    """Runs the filter over a long list and writes NAME.json."""
    options = ["--workers", str(workers), "--batch", str(batch)]
    options += [] if bundle is None else ["--bundle", str(bundle)]
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder, "list.txt")
        number = images or sum(1 for _ in list_entries(sources))
        files = list_repeatedly(sources, number, listing)
        run = measured_run(listing, Path(folder, "scores.csv"), options)
    # The lists of single files name places on this machine.
    results = {key: value for key, value in run.items() if key not in ("worst", "slowest", "kept", "reused")}
    rate = round(run["rows"] / run["seconds"], 2)
    record = {"files": files, "workers": workers, "batch": batch, "images_per_second": rate, **results}
    print(write_record(name, record, out).read_text(encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
