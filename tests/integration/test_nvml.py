"""A real exporter and the real nvidia-ml-py against GPUs that move: what it counts is what they took."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from joulewatch_exporter.emulator.nvml import GpuSpec, NvmlLibrary
from joulewatch_exporter.emulator.signals import Sine, Square
from support.commands import joulewatch
from support.nvml import A100, FIRST, H100, P100, SECOND, fault
from support.require import require_program

if TYPE_CHECKING:
    from integration.conftest import StartExporter

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

TICK_S = 0.01
ENERGY = "joulewatch_device_energy_joules_total"

JOB = Square(low_watts=90.0, high_watts=330.0, period_s=1.7, duty=0.6)
RIPPLE = Sine(mean_watts=220.0, amplitude_watts=60.0, period_s=2.0)


@dataclass(frozen=True)
class Moving:
    """GPUs that are moved in the background."""

    config: Path
    start_unix_s: float

    def true_joules(self, spec: GpuSpec, start_unix_s: float, end_unix_s: float) -> float:
        return spec.signal.energy_joules(start_unix_s - self.start_unix_s, end_unix_s - self.start_unix_s)


@contextmanager
def moving(folder: Path, specs: Sequence[GpuSpec]) -> Iterator[Moving]:
    """Emulate GPUs, and write the configuration with which an exporter reads them and nothing else."""
    require_program("gcc", "gcc")
    (folder / "sys").mkdir(parents=True)
    (folder / "dev").mkdir()
    library = NvmlLibrary(specs, folder)
    config = folder / "exporter.yaml"
    paths = {
        name: str(folder / directory) for name, directory in (("sysfs", "sys"), ("procfs", "proc"), ("dev", "dev"))
    }
    collectors = {"nvml": {"enabled": True, "library": str(library.path)}, "estimate": {"enabled": False}}
    config.write_text(yaml.safe_dump({"exporter": {"path": paths}, "collectors": collectors}))
    start_ns, start_unix_s = time.monotonic_ns(), time.time()
    library.start_monotonic_ns = start_ns
    stop = threading.Event()

    def move() -> None:
        while not stop.wait(TICK_S):
            library.advance((time.monotonic_ns() - start_ns) / 1e9)

    mover = threading.Thread(target=move)
    mover.start()
    try:
        yield Moving(config, start_unix_s)
    finally:
        stop.set()
        mover.join()
        library.close()


class Scrape:
    """One answer of the exporter."""

    def __init__(self, url: str) -> None:
        with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
            self.text = str(answer.read().decode())

    def value(self, name: str, device: str, domain: str = "") -> float | None:
        more = f'[^}}]*domain="{domain}"' if domain else ""
        match = re.search(rf'^{name}{{[^}}]*device="{device}"{more}[^}}]*}} (\S+)$', self.text, re.MULTILINE)
        return None if match is None else float(match[1])

    def sure(self, name: str, device: str, domain: str = "") -> float:
        value = self.value(name, device, domain)
        assert value is not None, f"{name} of {device} is not in the scrape"
        return value


def error(machine: Moving, spec: GpuSpec, first: Scrape, last: Scrape, domain: str = "total") -> float:
    """How far what was counted between two scrapes is from the truth, as a share of it."""
    name = ENERGY if domain == "total" else ENERGY.replace("device", "part")
    counted = last.sure(name, spec.uuid, domain) - first.sure(name, spec.uuid, domain)
    read_at = [scrape.sure("joulewatch_read_timestamp_seconds", spec.uuid) for scrape in (first, last)]
    return counted / machine.true_joules(spec, *read_at) - 1


def eventually(condition: Callable[[], bool], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.1)


def test_energy_is_the_truth(tmp_path: Path, exporter_server: StartExporter) -> None:
    """0.1 % where the GPU counts, 1 % where momentary or averaged power is integrated."""
    counted = replace(H100, signal=JOB, energy_refresh_s=0.001)
    sampled = replace(P100, signal=RIPPLE)
    with moving(tmp_path / "machine", (counted, sampled)) as machine:
        exporter = exporter_server(f"--config.file={machine.config}")
        time.sleep(1.0)
        first = Scrape(exporter.url)
        time.sleep(6.0)
        last = Scrape(exporter.url)
        assert error(machine, counted, first, last) == pytest.approx(0.0, abs=1e-3)
        assert error(machine, sampled, first, last) == pytest.approx(0.0, abs=1e-2)
        assert error(machine, replace(H100, signal=JOB), first, last, "average") == pytest.approx(0.0, abs=0.15)
        for uuid in (FIRST, SECOND):
            assert last.value("joulewatch_sensor_up", uuid) == 1
            assert last.value("joulewatch_sensor_unmeasured_seconds_total", uuid, "total") == 0
        done = joulewatch("check", f"--config.file={machine.config}", folder=tmp_path, module="joulewatch_exporter")
        assert done.code == 0, done.err
        assert "NVIDIA H100 PCIe @ 0000:17:00.0, driver 550.54.15" in " ".join(done.out.split())


def test_what_befalls_one_gpu_is_not_in_the_other_ones_series(tmp_path: Path, exporter_server: StartExporter) -> None:
    """It hangs, then the driver loses it; a scrape is late once, and the other GPU's energy is right throughout."""
    sick = replace(H100, signal=JOB, faults=(fault("hang", 2.0, 2.0), fault("absent", 5.0, 1.0)))
    healthy = replace(A100, signal=RIPPLE, energy_refresh_s=0.001)
    with moving(tmp_path / "machine", (sick, healthy)) as machine:
        exporter = exporter_server(f"--config.file={machine.config}")
        first = Scrape(exporter.url)
        eventually(lambda: Scrape(exporter.url).value("joulewatch_sensor_up", sick.uuid) == 0, 10.0)
        started = time.monotonic()
        Scrape(exporter.url)
        assert time.monotonic() - started < 0.4  # less than the deadline of the call that hangs
        eventually(lambda: time.time() - machine.start_unix_s > 6.5, 10.0)
        # Looked for every 10 s.
        eventually(lambda: Scrape(exporter.url).value("joulewatch_sensor_up", sick.uuid) == 1, 30.0)
        eventually(lambda: Scrape(exporter.url).value("joulewatch_sensor_up", healthy.uuid) == 1, 5.0)
        last = Scrape(exporter.url)
        assert error(machine, healthy, first, last) == pytest.approx(0.0, abs=1e-3)
        assert error(machine, sick, first, last) == pytest.approx(0.0, abs=5e-3)
        assert last.value("joulewatch_sensor_resets_total", sick.uuid, "total") == 0
