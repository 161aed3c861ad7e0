"""Energy meters: RAPL (Linux), NVML (NVIDIA), tegrastats (Jetson). A machine without one has no meters."""

from __future__ import annotations

import importlib
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

POWERCAP = Path("/sys/class/powercap")
# A package's counter already holds its cores and its integrated graphics, but not its memory.
COUNTED_ZONES = re.compile(r"package-\d+|dram")
# "VDD_IN 5336mW/4890mW" of Orin Nano, Orin NX and Xavier, "POM_5V_IN 2532/2480" of older boards, "VIN" of
# Thor: now / average, in mW. AGX Orin shows no input, but the rails whose sum the module takes.
TEGRA_INPUT = re.compile(r"\b(?:VDD_IN|POM_5V_IN|VIN) (\d+)(?:mW)?/")
TEGRA_RAILS = re.compile(r"\b(?:VDD_GPU_SOC|VDD_CPU_CV|VIN_SYS_5V0) (\d+)(?:mW)?/")
TEGRASTATS = ("tegrastats", "--interval", "100")


class Meter(Protocol):
    """Something that counts energy."""

    name: str
    """What is measured, and how."""

    def joules(self) -> float:
        """Energy since a fixed moment: only differences mean something."""


class RaplMeter:
    """CPU packages and their memory, by the counters that the powercap driver shows.

    A counter wraps at its `max_energy_range_uj`; one wrap between two readings (about half an hour at 150 W)
    is made good, two are not noticed.

    Raises OSError if there is no counter that this user may read.
    """

    name = "rapl"

    def __init__(self, root: Path = POWERCAP) -> None:
        zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if (zone / "name").is_file()]
        named = [zone for zone in zones if COUNTED_ZONES.fullmatch((zone / "name").read_text().strip())]
        if not named:
            raise FileNotFoundError(f"no RAPL package below {root}")
        self.ranges = {zone: int((zone / "max_energy_range_uj").read_text()) for zone in named}
        self.last = self.read()
        self.microjoules = 0

    def read(self) -> dict[Path, int]:
        return {zone: int((zone / "energy_uj").read_text()) for zone in self.ranges}

    def joules(self) -> float:
        now = self.read()
        for zone, value in now.items():
            step = value - self.last[zone]
            self.microjoules += step if step >= 0 else step + self.ranges[zone]
        self.last = now
        return self.microjoules * 1e-6


class NvmlMeter:
    """All GPUs that NVML shows (module `pynvml`), since their drivers were loaded.

    Raises ImportError without the module, and what it raises itself where a GPU does not count energy.
    """

    name = "nvml"

    def __init__(self, nvml: Any = None) -> None:
        self.nvml = nvml or importlib.import_module("pynvml")
        self.nvml.nvmlInit()
        count = self.nvml.nvmlDeviceGetCount()
        self.devices = [self.nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        self.joules()

    def joules(self) -> float:
        millijoules = [self.nvml.nvmlDeviceGetTotalEnergyConsumption(device) for device in self.devices]
        return 1e-3 * float(sum(millijoules))


class TegrastatsMeter:
    """A Jetson's input power, summed over time from what `tegrastats` prints ten times a second.

    It is the board's or, on Orin, the module's.

    Raises OSError if the program cannot be started.
    """

    name = "tegrastats"

    def __init__(
        self, command: tuple[str, ...] = TEGRASTATS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.clock = clock
        self.total, self.watts, self.since = 0.0, 0.0, clock()
        self.lock = threading.Lock()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.reader = threading.Thread(target=self.follow, daemon=True)
        self.reader.start()

    def follow(self) -> None:
        for line in self.process.stdout or ():
            found = TEGRA_INPUT.findall(line) or TEGRA_RAILS.findall(line)
            if found:
                self.note(sum(map(int, found)) * 1e-3)

    def note(self, watts: float) -> None:
        """Takes `watts` as the power from now on."""
        with self.lock:
            now = self.clock()
            self.total += self.watts * (now - self.since)
            self.watts, self.since = watts, now

    def joules(self) -> float:
        with self.lock:
            return self.total + self.watts * (self.clock() - self.since)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.reader.join()


@contextmanager
def energy_meters() -> Iterator[tuple[Meter, ...]]:
    """The meters of this machine, of which there may be none."""
    meters: list[Meter] = []
    kinds: tuple[Callable[[], Meter], ...] = (RaplMeter, NvmlMeter, TegrastatsMeter)
    for kind in kinds:
        try:
            meters.append(kind())
        except Exception:  # NVML's classes are known only where it is installed; without a meter none is read
            continue
    try:
        yield tuple(meters)
    finally:
        for meter in meters:
            if isinstance(meter, TegrastatsMeter):
                meter.close()
