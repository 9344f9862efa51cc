"""A real exporter and the real nvidia-ml-py with emulated GPUs: published energy is compared with the true energy."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from joulewatch_exporter.emulator.nvml import GpuSpec, NvmlLibrary
from joulewatch_exporter.emulator.nvml_load import GpuConditions, GpuLoadSpec, GpuProcessSpec
from joulewatch_exporter.emulator.signals import Constant, Sine, Square
from joulewatch_exporter.model import Host
from support.cgroups import make_cgroup2
from support.commands import SLEEPER, joulewatch
from support.nvml import A100, FIRST, H100, P100, SECOND, fault
from support.require import require_program
from support.scrapes import Scrape
from support.waiting import wait_until

if TYPE_CHECKING:
    from integration.conftest import StartExporter

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

TICK_S = 0.01
ENERGY = "joulewatch_device_energy_joules_total"

JOB = Square(low_watts=90.0, high_watts=330.0, period_s=1.7, duty=0.6)
ZERO = Constant(0.0)
RIPPLE = Sine(mean_watts=220.0, amplitude_watts=60.0, period_s=2.0)


@dataclass(frozen=True)
class Moving:
    """Emulated GPUs that advance in the background."""

    config: Path
    start_unix_s: float

    def true_joules(self, spec: GpuSpec, start_unix_s: float, end_unix_s: float) -> float:
        return spec.signal.energy_joules(start_unix_s - self.start_unix_s, end_unix_s - self.start_unix_s)


@contextmanager
def moving(
    folder: Path, specs: Sequence[GpuSpec], *, driver_version: str = "550.54.15", **attribution: Any
) -> Iterator[Moving]:
    """Emulate GPUs, and write a configuration with which an exporter reads only these GPUs."""
    require_program("gcc", "gcc")
    (folder / "sys").mkdir(parents=True)
    (folder / "dev").mkdir()
    library = NvmlLibrary(specs, folder, driver_version=driver_version)
    config = folder / "exporter.yaml"
    paths = {
        name: str(folder / directory) for name, directory in (("sysfs", "sys"), ("procfs", "proc"), ("dev", "dev"))
    }
    collectors = {"nvml": {"enabled": True, "library": str(library.path)}, "estimate": {"enabled": False}}
    document = {"exporter": {"path": paths}, "collectors": collectors, "attribution": attribution}
    config.write_text(yaml.safe_dump(document))
    start_ns, start_unix_s = time.monotonic_ns(), time.time()
    library.start_monotonic_ns = start_ns
    stop = threading.Event()

    def advance() -> None:
        while not stop.wait(TICK_S):
            library.advance((time.monotonic_ns() - start_ns) / 1e9)

    thread = threading.Thread(target=advance)
    thread.start()
    try:
        yield Moving(config, start_unix_s)
    finally:
        stop.set()
        thread.join()
        library.close()


def quickest(url: str) -> Scrape:
    """Return the scrape of ten whose reads took the shortest time: on a busy machine, others are interrupted midway."""

    def read_duration_s(scrape: Scrape) -> float:
        return sum(
            map(float, re.findall(r"^joulewatch_read_duration_seconds{[^}]*} (\S+)$", scrape.text, re.MULTILINE))
        )

    return min((Scrape(url) for _ in range(10)), key=read_duration_s)


def error(machine: Moving, spec: GpuSpec, first: Scrape, last: Scrape, domain: str = "total") -> float:
    """Return the relative error of the energy counted between two scrapes."""
    name = ENERGY if domain == "total" else ENERGY.replace("device", "part")
    counted = last.samples(name)[f"{spec.uuid}/{domain}"] - first.samples(name)[f"{spec.uuid}/{domain}"]
    read_at = [scrape.samples("joulewatch_read_timestamp_seconds")[spec.uuid] for scrape in (first, last)]
    return counted / machine.true_joules(spec, *read_at) - 1


def test_energy_is_exact(tmp_path: Path, exporter_server: StartExporter) -> None:
    """Within 0.1 % for energy counters, within 1 % for integrated momentary power."""
    counted = replace(H100, signal=JOB, energy_refresh_s=0.001)
    sampled = replace(P100, signal=RIPPLE)
    with moving(tmp_path / "machine", (counted, sampled)) as machine:
        exporter = exporter_server(f"--config.file={machine.config}")
        time.sleep(1.0)
        first = quickest(exporter.url)
        time.sleep(6.0)
        last = quickest(exporter.url)
        assert error(machine, counted, first, last) == pytest.approx(0.0, abs=1e-3)
        assert error(machine, sampled, first, last) == pytest.approx(0.0, abs=1e-2)
        assert error(machine, replace(H100, signal=JOB), first, last, "average") == pytest.approx(0.0, abs=0.15)
        for uuid in (FIRST, SECOND):
            assert last.samples("joulewatch_sensor_up")[uuid] == 1
            assert last.samples("joulewatch_sensor_unmeasured_seconds_total")[f"{uuid}/total"] == 0
        done = joulewatch("check", f"--config.file={machine.config}", folder=tmp_path, module="joulewatch_exporter")
        assert done.code == 0, done.err
        assert "NVIDIA H100 PCIe @ 0000:17:00.0, driver 550.54.15" in " ".join(done.out.split())


def test_workloads_share_a_gpu(tmp_path: Path, exporter_server: StartExporter) -> None:
    """By their use: idle power aside, one has a third and the other two thirds, and no joule is lost."""
    users = {11: "system.slice/train.service", 12: "system.slice/serve.service"}
    processes = [GpuProcessSpec(pid=pid, utilisation=Constant(30.0 * (pid - 10))) for pid in users]
    shared = replace(H100, load=GpuLoadSpec(processes=tuple(processes), accounting=False))
    held = replace(A100, signal=Constant(60.0), load=GpuLoadSpec(processes=(replace(processes[0], utilisation=ZERO),)))
    idle_watts = {FIRST: 60.0, SECOND: 60.0}
    with moving(tmp_path / "machine", (shared, held), driver_version="595.10", idle_watts=idle_watts) as machine:
        host = Host(sysfs=tmp_path / "machine/sys", procfs=tmp_path / "machine/proc")
        make_cgroup2(host)
        for pid, key in users.items():
            (host.procfs / str(pid)).mkdir()
            (host.procfs / str(pid) / "cgroup").write_text(f"0::/{key}\n")
        exporter = exporter_server(f"--config.file={machine.config}")
        name = "joulewatch_workload_energy_joules_total"

        def joules(text: str, device: str) -> dict[str, float]:
            """Return the counters of a device by workload or reason."""
            pattern = rf'^joulewatch_(?:workload|unattributed)_energy_joules_total{{component="gpu",device="{device}",'
            lines = re.findall(pattern + r'(?:kind="unit",workload|reason)="([^"]*)"} (\S+)$', text, re.MULTILINE)
            return {label: float(value) for label, value in lines}

        wait_until(lambda: Scrape(exporter.url).text.count(f"{name}{{") == 2, limit_s=20.0)
        first = Scrape(exporter.url)
        time.sleep(5.0)
        last = Scrape(exporter.url)
        for uuid, watts in ((FIRST, 240.0), (SECOND, 0.0)):
            before, after = joules(first.text, uuid), joules(last.text, uuid)
            rises = {label: after[label] - before.get(label, 0.0) for label in after}
            used = last.samples(ENERGY)[f"{uuid}/total"] - first.samples(ENERGY)[f"{uuid}/total"]
            assert sum(rises.values()) == pytest.approx(used, abs=1e-6)
            active = used * watts / (watts + 60.0)
            assert rises["idle"] == pytest.approx(used - active, rel=0.02)
            if active:
                assert rises["train.service"] == pytest.approx(active / 3, rel=0.03)
                assert rises["serve.service"] == pytest.approx(active * 2 / 3, rel=0.03)
        holds = re.findall(r'^joulewatch_gpu_held{device="([^"]*)",kind="unit",workload="([^"]*)"} 1', last.text, re.M)
        assert sorted(holds) == [(FIRST, "serve.service"), (FIRST, "train.service"), (SECOND, "train.service")]
        done = joulewatch("check", f"--config.file={machine.config}", folder=tmp_path, module="joulewatch_exporter")
        text = " ".join(done.out.split())
        assert "shared by utilisation samples; processes: 2" in text
        assert "accounting mode is off" in text
        assert "sudo nvidia-smi -am 1" in text


def test_failures_of_one_gpu_do_not_affect_the_other(tmp_path: Path, exporter_server: StartExporter) -> None:
    """One GPU hangs and is then lost; one scrape is late, and the energy of the other GPU stays exact."""
    failing = replace(H100, signal=JOB, faults=(fault("hang", 2.0, 2.0), fault("absent", 5.0, 1.0)))
    healthy = replace(A100, signal=RIPPLE, energy_refresh_s=0.001)
    with moving(tmp_path / "machine", (failing, healthy)) as machine:
        exporter = exporter_server(f"--config.file={machine.config}")
        first = Scrape(exporter.url)
        wait_until(lambda: Scrape(exporter.url).samples("joulewatch_sensor_up")[failing.uuid] == 0, limit_s=10.0)
        started = time.monotonic()
        Scrape(exporter.url)
        assert time.monotonic() - started < 0.4  # less than the deadline of the hanging call
        wait_until(lambda: time.time() - machine.start_unix_s > 6.5, limit_s=10.0)
        # Probed every 10 s.
        wait_until(lambda: Scrape(exporter.url).samples("joulewatch_sensor_up")[failing.uuid] == 1, limit_s=30.0)
        wait_until(lambda: Scrape(exporter.url).samples("joulewatch_sensor_up")[healthy.uuid] == 1, limit_s=5.0)
        last = Scrape(exporter.url)
        assert error(machine, healthy, first, last) == pytest.approx(0.0, abs=1e-3)
        assert error(machine, failing, first, last) == pytest.approx(0.0, abs=5e-3)
        assert last.samples("joulewatch_sensor_resets_total")[f"{failing.uuid}/total"] == 0


def test_the_uncertainty_and_the_findings_of_a_run_on_gpus(tmp_path: Path) -> None:
    """The ± has the accuracy of a studied model, and of one that was not; the findings are the conditions of each."""
    busy = GpuProcessSpec(pid=11, utilisation=Constant(80.0))
    capped = GpuConditions(throttled={"power": Constant(40.0)}, power_smoothing=True, power_floor_watts=90)
    hot = GpuConditions(throttled={"thermal": Constant(20.0)}, temperature_celsius=Constant(84.0))
    studied = replace(
        A100,
        name="NVIDIA A100-PCIE-40GB",
        energy_refresh_s=0.001,
        load=GpuLoadSpec(conditions=capped, processes=(busy,), default_limit_watts=500.0),
    )
    other = replace(H100, energy_refresh_s=0.001, load=GpuLoadSpec(conditions=hot, processes=(busy,)))
    with moving(tmp_path / "machine", (studied, other), driver_version="595.10") as machine:
        done = joulewatch(
            *("profile", "--network", SLEEPER, "--batch-sizes", "1", "--preset", "quick", "--rounds", "3"),
            *("--window", "0.5", "--idle", "1", f"--exporter.flags=--config.file={machine.config}"),
            folder=tmp_path,
        )
    assert done.code == 0, done.err
    (run,) = (tmp_path / "runs").iterdir()
    result = json.loads((run / "result.json").read_text())
    total = result["results"][0]["energy"]["total"]
    gross = total["gross"]
    findings = {
        (item["severity"], item["reason"], item["evidence"].get("device"))
        for item in result["findings"]
        if "device" in item["evidence"]
    }
    assert findings == {
        ("info", "gpu_power_capped", SECOND),
        ("info", "power_limit_not_default", SECOND),
        ("warning", "power_smoothing_on", SECOND),
        ("error", "gpu_throttled_thermal", FIRST),
        ("info", "hot", FIRST),
    }
    shares = [item["evidence"]["share"] for item in result["findings"] if item["reason"] == "gpu_throttled_thermal"]
    assert shares == pytest.approx([0.2] * len(shares), abs=0.03)
    assert total["net"] is None
    assert total["net_missing"] == f"power smoothing keeps the idle power of {SECOND} up [power_smoothing_on]"
    header = json.loads((run / "journal.jsonl").read_text().partition("\n")[0])
    assert header["provenance"]["gpus"][SECOND] == {
        "limit_watts": 400.0, "default_limit_watts": 500.0, "power_smoothing": 1.0, "power_floor_watts": 90.0
    }  # fmt: skip
    (item,) = [item for item in gross["budget"] if item["name"] == "accuracy (nvml)"]
    half_width = (0.055 * 200 + 0.1 * 300) / (200 + 300)  # the GPUs draw 200 W and 300 W
    assert item["standard_uncertainty"] / gross["value"] == pytest.approx(half_width / 3**0.5, rel=1e-3)
    assert gross["expanded_uncertainty"] / gross["value"] >= 0.94 * half_width
    text = " ".join(done.out.split())
    assert "±5.5 %, error -5.5 % at steady load (Yang, Adamek, Armour" in text
    assert "±10 %, not studied: assumed" in text
