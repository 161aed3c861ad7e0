"""Energy counters are read, summed and unwrapped as their documents say."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from compare2score.benchmarks import energy
from compare2score.benchmarks.energy import NvmlMeter, RaplMeter, TegrastatsMeter, energy_meters

ORIN = (
    "11-22-2026 01:00:00 RAM 3000/7620MB CPU [2%@729,off] GR3D_FREQ 0% VDD_IN 5336mW/4890mW VDD_SOC 1mW/1mW"
)
NANO = "RAM 1000/3956MB SWAP 0/1978MB POM_5V_IN 2532/2480 POM_5V_GPU 80/80 POM_5V_CPU 486/400"
# No line of its own for the input: the module takes the sum of the three.
AGX_ORIN = (
    "RAM 4012/62841MB (lfb 2x4MB) GR3D_FREQ 0% VDD_GPU_SOC 4800mW/4700mW VDD_CPU_CV 1600mW/1500mW "
    "VIN_SYS_5V0 5200mW/5100mW"
)
THOR = (
    "RAM 6012/125772MB (lfb 2x4MB) VDD_GPU 3100mW/3000mW VDD_CPU_SOC_MSS 9000mW/8900mW "
    "VIN_SYS_5V0 6000mW/5900mW VIN 31500mW/31000mW"
)


@pytest.fixture
def powercap(tmp_path):
    """A machine of two packages: zones as the kernel lays them out."""

    def zone(folder, name, energy, largest=1_000_000):
        folder = tmp_path / folder
        folder.mkdir(parents=True)
        for file, value in {"name": name, "energy_uj": energy, "max_energy_range_uj": largest}.items():
            (folder / file).write_text(f"{value}\n")

    zone("intel-rapl:0", "package-0", 100)
    zone("intel-rapl:0:0", "core", 7)
    zone("intel-rapl:0:1", "dram", 50)
    zone("intel-rapl:1", "package-1", 999_000)
    zone("intel-rapl:2", "psys", 5)
    (tmp_path / "intel-rapl").mkdir()
    return tmp_path


def advance(root, **energies):
    for folder, value in energies.items():
        (root / f"intel-rapl:{folder.strip('z').replace('_', ':')}" / "energy_uj").write_text(str(value))


def test_rapl_sums_packages_and_memory_once(powercap):
    meter = RaplMeter(powercap)
    assert meter.joules() == 0
    advance(powercap, z0=400_100, z0_0=300_007, z0_1=50_050, z2=900_000)
    assert meter.joules() == pytest.approx(0.45)


def test_a_rapl_counter_that_wraps_goes_on(powercap):
    meter = RaplMeter(powercap)
    advance(powercap, z1=4_000)
    assert meter.joules() == pytest.approx(5_000e-6)
    advance(powercap, z1=500_000)
    advance(powercap, z0=1_100)
    assert meter.joules() == pytest.approx(502_000e-6)


def test_no_counter_is_no_meter(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="RAPL"):
        RaplMeter(tmp_path)
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setattr(energy, "RaplMeter", lambda: RaplMeter(tmp_path))
    monkeypatch.setattr(energy, "TegrastatsMeter", lambda: TegrastatsMeter(("no-such-program-here",)))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with energy_meters() as meters:
        assert meters == ()


def test_nvml_sums_all_gpus_in_joules():
    counters = [1_000, 250]
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda device: counters[device],
    )
    meter = NvmlMeter(nvml)
    before = meter.joules()
    counters[0] += 3_000
    counters[1] += 500
    assert meter.joules() - before == pytest.approx(3.5)


@pytest.mark.parametrize(("line", "watts"), [(ORIN, 5.336), (NANO, 2.532), (AGX_ORIN, 11.6), (THOR, 31.5)])
def test_a_jetsons_input_power_is_summed_over_time(line, watts):
    now = [0.0]
    command = (sys.executable, "-c", f"print({line!r}, flush=True); import time; time.sleep(60)")
    meter = TegrastatsMeter(command, clock=lambda: now[0])
    try:
        for _ in range(500):
            if meter.watts:
                break
            meter.reader.join(0.02)
        now[0] = 10.0
        assert meter.joules() == pytest.approx(10 * watts)
        meter.note(1.0)
        now[0] = 12.0
        assert meter.joules() == pytest.approx(10 * watts + 2)
    finally:
        meter.close()
    assert meter.process.returncode is not None
