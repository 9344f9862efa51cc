"""RAPL through perf events and registers, with the system calls of a real process, against known energies.

Only the kernel's side is simulated (``support/rapl_shim.c``); ctypes, descriptors and reads are real.
"""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import joulewatch_exporter
import support
from support.rapl_shim import ShimMachine, build_shim
from support.rapl_tree import (
    AMD_CORE,
    AMD_PACKAGE,
    AMD_UNIT,
    INTEL_CORES,
    INTEL_DRAM,
    INTEL_PACKAGE,
    INTEL_UNIT,
    UNITS_2_14,
    UNITS_2_16,
    pmu,
    power_core,
    topology,
)
from support.scrapes import Scrape
from support.servers import Emulator, ExporterServer, Server
from support.sysfs import EPYC, XEON, FakeSysfs

pytestmark = pytest.mark.integration

CORE_WATTS = (3.5, 7.25, 1.125, 10.0)
PACKAGE_WATTS = 95.5
INTEL_WATTS = {"socket0/package": 180.0, "socket0/core": 120.5, "socket0/dram": 24.75}
NEAR_THE_END = 2**32 - 65536 * 90
"""Wraps after 90 J, one second after the first read."""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def amd(tmp_path: Path, library: Path) -> ShimMachine:
    """One EPYC of four cores with two threads each, with both backends."""
    places = [(0, 0, core) for core in range(4)]
    sysfs = topology(FakeSysfs(tmp_path / "amd").cpuinfo(**EPYC), *places, *places)
    power_core(pmu(sysfs, "energy-pkg"), "0-3")
    machine = ShimMachine(sysfs=sysfs, library=library).event("energy-pkg", 0, PACKAGE_WATTS)
    machine.count(0, AMD_PACKAGE, PACKAGE_WATTS, 2**16, NEAR_THE_END)
    for cpu, watts in enumerate(CORE_WATTS):
        machine.event("energy-core", cpu, watts)
        machine.fixed(cpu, AMD_UNIT, UNITS_2_16).count(cpu, AMD_CORE, watts, 2**16, 12345)
    return machine


@pytest.fixture
def intel(tmp_path: Path, library: Path) -> ShimMachine:
    """A Xeon with memory counters, with both backends."""
    sysfs = topology(FakeSysfs(tmp_path / "intel").cpuinfo(**XEON), (0, 0, 0), (0, 0, 1))
    pmu(sysfs, "energy-pkg", "energy-cores", "energy-ram")
    machine = ShimMachine(sysfs=sysfs, library=library).fixed(0, INTEL_UNIT, UNITS_2_14)
    units = {"package": 2.0**14, "core": 2.0**14, "dram": 1e6 / 15.3}
    names = {"package": "energy-pkg", "core": "energy-cores", "dram": "energy-ram"}
    registers = {"package": INTEL_PACKAGE, "core": INTEL_CORES, "dram": INTEL_DRAM}
    for domain, unit in units.items():
        watts = INTEL_WATTS[f"socket0/{domain}"]
        machine.event(names[domain], 0, watts).count(0, registers[domain], watts, unit, 1)
    return machine


def true_watts(machine: ShimMachine) -> dict[str, float]:
    if "intel" in str(machine.sysfs.root):
        return INTEL_WATTS
    return {"socket0/package": PACKAGE_WATTS} | {f"socket0/core{i}": watts for i, watts in enumerate(CORE_WATTS)}


def python_path() -> str:
    folders = [Path(str(module.__file__)).parents[1] for module in (joulewatch_exporter, support)]
    return ":".join(map(str, folders))


def read_in_child(machine: ShimMachine, backend: str, times: int = 4, pause_s: float = 0.15) -> dict[str, Any]:
    script = Path(str(support.__file__)).with_name("read_rapl.py")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(machine.sysfs.root), backend, str(times), str(pause_s)],
        env={**machine.environment, "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("vendor", ["amd", "intel"])
@pytest.mark.parametrize("backend", ["perf", "msr"])
def test_energy_is_exact(request: pytest.FixtureRequest, vendor: str, backend: str) -> None:
    """The energy between two reads is bounded by the shortest and longest possible time between them."""
    machine: ShimMachine = request.getfixturevalue(vendor)
    result = read_in_child(machine, backend)
    watts = true_watts(machine)
    rounds = result["rounds"]
    assert set(rounds[0]) == set(watts)
    assert all(source.startswith(f"{backend}:") for source in result["sources"].values())
    spans: dict[str, tuple[float, float, float]] = {}
    for key, true in watts.items():
        range_joules = 65536.0 if backend == "msr" and vendor == "amd" else float("inf")
        step_joules = {"perf": 2**-32, "msr": 2**-14}[backend]
        risen_joules = 0.0
        first = last = rounds[0][key]
        for read in rounds[1:]:
            rise = read[key][2] - last[2]
            risen_joules += rise if rise >= 0 else rise + range_joules
            last = read[key]
        shortest_s, longest_s = (last[0] - first[1]) / 1e9, (last[1] - first[0]) / 1e9
        assert true * shortest_s - 2 * step_joules <= risen_joules <= true * longest_s + 2 * step_joules, key
        spans[key] = (risen_joules, shortest_s, longest_s)
    if vendor == "amd":
        cores = sum(joules for key, (joules, _, _) in spans.items() if key != "socket0/package")
        assert cores <= spans["socket0/package"][0]


def test_each_read_returns_the_registers_position(amd: ShimMachine) -> None:
    """The register's position is known, so single reads are checked, not only differences."""
    for read in read_in_child(amd, "msr", times=3, pause_s=0.0)["rounds"]:
        for core, watts in enumerate(CORE_WATTS):
            before_ns, after_ns, joules = read[f"socket0/core{core}"]
            low, high = ((now_ns - amd.start_ns) / 1e9 * watts + 12345 / 65536 for now_ns in (before_ns, after_ns))
            assert low - 2**-15 <= joules <= high + 2**-15


@pytest.mark.parametrize("backend", ["perf", "msr"])
def test_the_exporter_publishes_exact_energies(
    amd: ShimMachine, tmp_path: Path, servers: list[Server | Emulator], backend: str
) -> None:
    """Scrape the daemon twice, across a wrap of the package's register: energies, powers, parts and the backend."""
    config = tmp_path / "exporter.yaml"
    config.write_text(f"collectors: {{rapl: {{enabled: true, door: {backend}}}}}\n")
    amd.start_ns = 0
    environment = {**amd.environment, "PYTHONPATH": python_path()}
    exporter = ExporterServer(tmp_path / "exporter", f"--config.file={config}", *amd.flags, environment=environment)
    servers.append(exporter)
    exporter.start()
    before = Scrape(exporter.url)
    deadline = time.monotonic() + 20
    while True:
        time.sleep(1.0)
        after = Scrape(exporter.url)
        wraps = after.samples("joulewatch_sensor_wraps_total")
        if backend == "perf" or wraps["socket0/package"] or time.monotonic() > deadline:
            break
    assert wraps["socket0/package"] == (backend == "msr")
    span_s = (
        after.samples("joulewatch_read_timestamp_seconds")["socket0"]
        - before.samples("joulewatch_read_timestamp_seconds")["socket0"]
    )
    energies = {}
    for key, watts in true_watts(amd).items():
        scope = "device" if key.endswith("package") else "part"
        first, last = (scrape.samples(f"joulewatch_{scope}_energy_joules_total")[key] for scrape in (before, after))
        energies[key] = last - first
        # Loose: the device's timestamp is a mean over its reads, and a busy machine may pause between two reads.
        assert energies[key] == pytest.approx(watts * span_s, rel=0.05), key
        assert after.samples(f"joulewatch_{scope}_power_watts")[key] == pytest.approx(watts, rel=0.1)
    assert sum(energies.values()) - energies["socket0/package"] <= energies["socket0/package"]
    assert set(after.samples("joulewatch_sensor_resets_total").values()) == {0.0}
    assert set(after.samples("joulewatch_sensor_rejected_readings_total").values()) == {0.0}
    assert f'source="{backend}:' in after.text
    assert 'source="/sys' not in after.text


def check(machine: ShimMachine, *flags: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "joulewatch_exporter", "check", "--format", "json", *machine.flags, *flags],
        env={**machine.environment, "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_check_reports_backends_and_fixes(amd: ShimMachine) -> None:
    """perf is denied, so the registers are read; without them, `check` names the fix."""
    folder = amd.sysfs.proc / "sys" / "kernel"
    folder.mkdir(parents=True)
    (folder / "perf_event_paranoid").write_text("2\n")
    amd.deny(errno.EACCES)
    code, report = check(amd)
    assert code == 0
    rapl = [reading for reading in report["readings"] if reading["collector"] == "rapl"]
    assert {reading["source"].partition(":")[0] for reading in rapl} == {"msr"}
    assert len(rapl) == 5
    note = next(finding for finding in report["findings"] if "perf_event_open" in finding["text"])
    assert (note["status"], note["cure"]) == ("skipped", "sudo sysctl kernel.perf_event_paranoid=0")
    for cpu in range(4):
        (amd.sysfs.host.dev / "cpu" / str(cpu) / "msr").unlink()
    code, report = check(amd)
    denied = next(finding for finding in report["findings"] if finding["collector"] == "rapl")
    assert (denied["status"], denied["cure"]) == ("denied", "sudo sysctl kernel.perf_event_paranoid=0")
    assert "CAP_PERFMON" in denied["text"]
