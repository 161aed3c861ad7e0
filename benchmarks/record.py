"""A measurement's record: results as JSON, with the machine and the versions that made them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = (
    "compare2score-edge",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "cuda-bindings",
    "openvino",
    "pillow",
    "scipy",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "torch",
)


def processor() -> str:
    """The CPU's own name where the system tells it (Linux), else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def graphics() -> str | None:
    """NVIDIA's names of the GPUs here; None where its driver shows none."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return ", ".join(told.split("\n")).strip(", ") or None


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Versions of the packages that matter here, of those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Processor, GPU, cores this process may use, system, versions."""
    return {
        "processor": processor(),
        "gpu": graphics(),
        "cores": cores(),
        "system": platform.system(),
        "python": platform.python_version(),
        **versions(),
    }


def commit() -> str:
    """The commit measured, with "+" where the tree was changed; "unknown" outside a checkout."""
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    described = subprocess.run(
        [*git, "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"


def write_record(name: str, results: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Writes `folder`/name.json with results, machine, commit and date; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    record = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": machine(),
        "results": results,
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path
