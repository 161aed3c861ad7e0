"""Import time, cold start and peak memory of the lean runtime, each in fresh processes.

python -m compare2score.benchmarks.footprint PHOTO
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from compare2score.benchmarks.record import RESULTS, write_record

BASE = "pass"
IMPORT = "import compare2score"
SCORE = "import sys; from compare2score import Scorer; Scorer().score(sys.argv[1])"
# The process asks itself: what the parent hears (ru_maxrss) counts the parent's own memory before exec.
PEAK = """
try:
    print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))
except OSError:
    print('unknown 0 kB')
"""


def run_fresh(code: str, *arguments: str) -> tuple[float, float]:
    """Seconds and peak resident MB (0 but on Linux) of a fresh Python process that runs `code` to its end.

    Raises RuntimeError if it fails.
    """
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code + PEAK, *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"The measured process ended with status {done.returncode}.")
    return seconds, int(done.stdout.split()[-2]) / 1024


def main(
    photo: Annotated[Path, typer.Argument(help="A photograph to score.")],
    repeats: Annotated[int, typer.Option(help="Processes of each kind.")] = 7,
    out: Annotated[Path, typer.Option(help="Folder of the record.")] = RESULTS,
) -> None:
    """Measures start-up and memory and writes footprint.json."""
    cases = {"python alone": (BASE,), "import": (IMPORT,), "first score": (SCORE, str(photo))}
    runs = {name: [run_fresh(*case) for _ in range(repeats)] for name, case in cases.items()}
    results = {
        name: {
            "seconds_median": round(statistics.median(seconds for seconds, _ in run), 3),
            "seconds_worst": round(max(seconds for seconds, _ in run), 3),
            "peak_mb": round(max(memory for _, memory in run), 1),
        }
        for name, run in runs.items()
    }
    print(write_record("footprint", {"repeats": repeats, **results}, out).read_text(encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
