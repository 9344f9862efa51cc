"""AMD Instinct cards and NPUs: every layout of gpu_metrics, dies and partitions, suspended GPUs, counters that lie.

The emulator's files have the layouts of C structures, so they check the places of the fields in the collector.
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from joulewatch_exporter.collectors.amdgpu import collector as amdgpu
from joulewatch_exporter.collectors.amdgpu.collector import AmdgpuCollector, AmdgpuOptions
from joulewatch_exporter.collectors.amdgpu.metrics import MetricsError, parse
from joulewatch_exporter.collectors.base import probe
from joulewatch_exporter.collectors.hwmon.collector import HwmonCollector, HwmonOptions
from joulewatch_exporter.emulator.amdgpu import AmdGpuSpec, AmdGpuTree, contents
from joulewatch_exporter.emulator.faults import Fault
from joulewatch_exporter.emulator.files import Writer
from joulewatch_exporter.emulator.signals import Constant, Points, Square
from joulewatch_exporter.errors import (
    SensorAbsentError,
    SensorAsleepError,
    SensorDeniedError,
    SensorError,
    SensorGlitchError,
)
from joulewatch_exporter.model import Collector, Host
from joulewatch_exporter.sampling.family import Family
from joulewatch_exporter.sampling.plausibility import Plausibility
from joulewatch_exporter.sampling.sampler import Sampler
from joulewatch_exporter.sampling.scan import FamilyScan
from support.clock import FakeClock
from support.collectors import findings, infos, joules, texts
from support.sysfs import public_folder, unprivileged
from support.waiting import wait_until

CARD = "0000:83:00.0"
SECOND = "0000:84:00.0"
STEP = 2.0**-16

MI300X = AmdGpuSpec(address=CARD, signal=Constant(400.0))
MI250X = AmdGpuSpec(address=CARD, signal=Constant(300.0), revision="1.3", device_id="0x7408", second_die=SECOND)
RYZEN_AI = AmdGpuSpec(
    address="0000:c5:00.0", signal=Constant(28.0), npu=Constant(2.5), revision="3.0", device_id="0x150e"
)


class Machine:
    """A machine with AMD GPUs, and its files at a given time."""

    def __init__(self, folder: Path, *specs: AmdGpuSpec) -> None:
        scratch = folder / ".scratch"
        scratch.mkdir(parents=True)
        self.host = Host(sysfs=folder / "sys", procfs=folder / "proc", dev=folder)
        self.host.sysfs.mkdir()
        self.gpus = AmdGpuTree(specs, self.host.sysfs, Writer(scratch), scratch)
        self.advance(0.0)

    def advance(self, t_s: float) -> None:
        self.gpus.advance(t_s)

    def file(self, address: str = CARD) -> Path:
        return self.host.sysfs / "devices/pci0000:00" / address / "gpu_metrics"

    def collect(self) -> AmdgpuCollector:
        return AmdgpuCollector.open(self.host, AmdgpuOptions())

    def hwmon(self, *before: Collector) -> HwmonCollector:
        claimed = {info.source for collector in before for sensor in collector.sensors for info in sensor.infos}
        return HwmonCollector.open(replace(self.host, claimed=frozenset(claimed)), HwmonOptions())


def fault(kind: str, at_s: float = 1.0, for_s: float = 1.0) -> Fault:
    return Fault(kind=kind, at_s=at_s, for_s=0.0 if kind == "reset" else for_s)


def values(readings: Any) -> dict[str, float | None]:
    return {r.quantity.domain: r.energy_joules if r.energy_joules is not None else r.power_watts for r in readings}


def test_a_card_that_hangs_at_the_start_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PROBE_S", 0.05)
    machine = Machine(tmp_path, MI300X, replace(MI300X, address=SECOND))
    text = machine.file().read_bytes()
    hanging = Writer(tmp_path / ".scratch").put_hanging(str(machine.file()))
    collector = machine.collect()
    assert set(infos(collector)) == {f"{SECOND}/total", f"{SECOND}/instant"}
    (finding,) = findings(collector, "broken")
    assert (finding.subject, finding.device) == (str(machine.file()), CARD)
    machine.file().unlink()
    machine.file().write_bytes(text)
    hanging.release()
    hanging.close()
    wait_until(lambda: len(infos(machine.collect())) == 4)


# -- layouts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", ["1.3", "1.4", "1.5", "1.6", "1.7", "1.8", "1.9"])
def test_energy_and_power_of_every_revision(tmp_path: Path, revision: str) -> None:
    device_id = "0x740f" if revision == "1.3" else "0x74a1"
    machine = Machine(tmp_path, replace(MI300X, revision=revision, device_id=device_id))
    collector = machine.collect()
    (sensor,) = collector.sensors
    power = "average" if revision == "1.3" else "instant"
    assert values(sensor.read()) == {"total": 1_000_000.0, power: 400.0}
    machine.advance(10.0)
    assert values(sensor.read()) == {"total": 1_004_000.0, power: 400.0}
    total, part = infos(collector).values()
    assert (total.quantity.scope, total.quantity.component, total.method) == ("device", "gpu", "counter")
    assert (total.resolution, total.wrap_joules, total.accuracy) == ("15.3 uJ", None, None)
    assert (part.quantity.scope, part.relation, part.method, part.resolution) == ("part", "same", "integrated", "1 W")
    assert total.source == os.path.realpath(machine.file())


def test_the_counter_has_steps_of_15_microjoules(tmp_path: Path) -> None:
    machine = Machine(tmp_path, replace(MI300X, signal=Constant(1.0)))
    machine.advance(1.5 * STEP)
    assert joules(machine.collect())[f"{CARD}/total"] == 1_000_000.0
    machine.advance(10.0 + 1.5 * STEP)
    assert joules(machine.collect())[f"{CARD}/total"] == 1_000_010.0 + STEP


def test_the_early_layout_of_revision_1_6() -> None:
    """It has 384 bytes and the counter of 1.5."""
    data = bytearray(contents("1.5", energy_accumulator=3 << 16, power=250))
    data += b"\xff" * (384 - len(data))
    data[:4] = (384).to_bytes(2, "little") + bytes((1, 6))
    metrics = parse(bytes(data))
    assert (metrics.energy_joules, metrics.power_watts) == (3.0, 250.0)


def test_a_longer_structure_of_a_known_revision_is_read() -> None:
    """Content is added at the end: 1.8 was longer in its first version."""
    data = bytearray(contents("1.8", energy_accumulator=3 << 16, power=250) + b"\xff" * 512)
    data[:2] = len(data).to_bytes(2, "little")
    assert parse(bytes(data)).energy_joules == 3.0


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "0 bytes are less than the header"),
        (contents("1.4", energy_accumulator=1, power=1)[:100], "100 of 288 bytes"),
        (b"\x10\x00\x01\x04" + bytes(12), "16 bytes are too short for revision 1.4"),
        (b"\x08\x00\x01\x09\xff\xff\xff\x7f", "2147483647 is not a number of fields"),
        (b"\x10\x00\x01\x09\x01\x00\x00\x00" + (15 << 20 | 7 << 10 | 1).to_bytes(8, "little"), "15 is not a type"),
        (b"\x10\x00\x01\x09\x01\x00\x00\x00" + (6 << 20 | 7 << 10 | 1).to_bytes(8, "little"), "its 1 field has 24 b"),
        (b"\x08\x00\x01\x09\x02\x00\x00\x00", "8 bytes are too short for revision 1.9"),
    ],
    # The contents have a timestamp, and all workers of pytest-xdist must collect the same names.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_contents(data: bytes, text: str) -> None:
    with pytest.raises(MetricsError, match=text):
        parse(data)


@pytest.mark.parametrize("revision", ["1.4", "1.9"])
@pytest.mark.parametrize("steps", [0, 2**32 - 1, 2**64 - 1])
def test_a_counter_without_value_is_not_energy(revision: str, steps: int) -> None:
    """Newer drivers set all bits where the firmware has no counter."""
    metrics = parse(contents(revision, energy_accumulator=steps, power=65_535))
    assert (metrics.energy_joules, metrics.power_watts) == (None, None)


def test_fields_of_a_list_that_are_arrays_or_unknown_are_skipped() -> None:
    fields = [(0x3FF, 0, 3, b"abc"), (7, 6, 2, bytes(16)), (7, 6, 1, (5 << 16).to_bytes(8, "little"))]
    body = len(fields).to_bytes(4, "little")
    for number, kind, count, value in fields:
        body += (9 << 24 | kind << 20 | number << 10 | count).to_bytes(8, "little") + value
    metrics = parse((4 + len(body)).to_bytes(2, "little") + bytes((1, 9)) + body)
    assert (metrics.energy_joules, metrics.power_watts) == (5.0, None)


# -- which devices are read ------------------------------------------------------------------------------


def test_a_card_is_read_here_and_not_by_hwmon(tmp_path: Path) -> None:
    machine = Machine(tmp_path, MI300X, replace(MI300X, address=SECOND))
    collector = machine.collect()
    assert [sensor.device for sensor in collector.sensors] == [CARD, SECOND]
    with pytest.raises(SensorAbsentError, match="the family amdgpu reads the energy counter of this card"):
        machine.hwmon(collector)
    assert list(infos(machine.hwmon())) == [f"{CARD}/PPT", f"{SECOND}/PPT"]


def test_partitions_of_a_card_are_one_series(tmp_path: Path) -> None:
    """Each partition has a DRM device, which belongs to no PCI device."""
    machine = Machine(tmp_path, replace(MI300X, partitions=8))
    assert len(list((machine.host.sysfs / "class/drm").glob("card*"))) == 8
    collector = machine.collect()
    assert list(infos(collector)) == [f"{CARD}/total", f"{CARD}/instant"]


@pytest.mark.parametrize("missing", ["drm", "hwmon"])
def test_one_of_the_two_classes_is_enough(tmp_path: Path, missing: str) -> None:
    machine = Machine(tmp_path, MI300X)
    shutil.rmtree(machine.host.sysfs / "class" / missing)
    assert joules(machine.collect()) == {f"{CARD}/total": 1_000_000.0, f"{CARD}/instant": 0.0}


def test_the_second_die_of_a_card_is_not_read(tmp_path: Path) -> None:
    """Its counter and its power are always zero."""
    machine = Machine(tmp_path, MI250X)
    collector = machine.collect()
    assert list(infos(collector)) == [f"{CARD}/total", f"{CARD}/average"]
    assert "second die of a card" in texts(collector, "skipped")
    with pytest.raises(SensorAbsentError, match="the second die of an MI250"):
        machine.hwmon(collector)


def test_a_processor_is_a_part(tmp_path: Path) -> None:
    """The counter of an MI300A includes its CPU, which RAPL may count."""
    machine = Machine(tmp_path, replace(MI300X, device_id="0x74a0"))
    collector = machine.collect()
    assert {info.quantity.scope for info in infos(collector).values()} == {"part"}
    assert "includes the CPU" in texts(collector, "found")


def test_the_npu_of_a_processor_is_a_part(tmp_path: Path) -> None:
    """The power of the processor is still read by hwmon; an NPU without work draws 0 W."""
    idle = Points(times_s=(0.0, 5.0), watts=(2.5, 0.0), is_linear=False)
    machine = Machine(tmp_path, replace(RYZEN_AI, npu=idle))
    collector = machine.collect()
    (info,) = infos(collector).values()
    assert info.quantity.device == RYZEN_AI.address
    assert (info.quantity.scope, info.quantity.component, info.quantity.domain) == ("part", "other", "npu")
    assert (info.resolution, info.method, info.relation) == ("1 mW", "integrated", "inside")
    (sensor,) = collector.sensors
    assert values(sensor.read()) == {"npu": 2.5}
    machine.advance(6.0)
    assert values(sensor.read()) == {"npu": 0.0}
    assert list(infos(machine.hwmon(collector))) == [f"{RYZEN_AI.address}/PPT"]


def test_an_npu_without_value_is_a_glitch(tmp_path: Path) -> None:
    machine = Machine(tmp_path, RYZEN_AI)
    (sensor,) = machine.collect().sensors
    machine.file(RYZEN_AI.address).unlink()
    machine.file(RYZEN_AI.address).write_bytes(contents("3.0", energy_accumulator=0, power=0, npu_mw=65_535))
    with pytest.raises(SensorGlitchError, match="npu: the driver has no value now"):
        sensor.read()


@pytest.mark.parametrize("device_id", ["0x738c", "0x744c"], ids=["MI100", "RX 7900"])
def test_a_counter_of_unknown_unit_is_left_to_hwmon(tmp_path: Path, device_id: str) -> None:
    machine = Machine(tmp_path, replace(MI250X, device_id=device_id, second_die=""))
    with pytest.raises(SensorAbsentError, match=r"revision 1\.3: the unit of its energy counter is not known"):
        machine.collect()
    assert list(infos(machine.hwmon())) == [f"{CARD}/PPT"]


def test_a_card_without_counter_is_left_to_hwmon(tmp_path: Path) -> None:
    machine = Machine(tmp_path, MI300X)
    machine.file().unlink()
    machine.file().write_bytes(contents("1.4", energy_accumulator=2**64 - 1, power=300))
    with pytest.raises(SensorAbsentError, match="the driver has no energy counter"):
        machine.collect()


def test_machines_without_amd_gpu(tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    host = Host(sysfs=tmp_path / "sys")
    with pytest.raises(SensorAbsentError, match="no GPU with gpu_metrics"):
        AmdgpuCollector.open(host, AmdgpuOptions())
    (tmp_path / "sys/class/drm/card0/device").mkdir(parents=True)
    with pytest.raises(SensorAbsentError, match="no GPU with gpu_metrics"):
        AmdgpuCollector.open(host, AmdgpuOptions())


# -- sleep -----------------------------------------------------------------------------------------------


def test_a_suspended_gpu_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, replace(MI300X, faults=(fault("asleep"),)))
    (sensor,) = machine.collect().sensors
    machine.advance(1.5)
    opened: list[str] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: opened.append(str(path)) or real(path, *rest))
    with pytest.raises(SensorAsleepError, match="gpu_metrics: the GPU is suspended"):
        sensor.read()
    assert not [path for path in opened if path.endswith("gpu_metrics")]
    machine.advance(2.5)
    assert values(sensor.read())["total"] == 1_001_000.0


@pytest.mark.parametrize(("device_id", "revision"), [("0x74a1", "1.8"), ("0x740f", "1.3")])
def test_a_card_that_is_suspended_at_the_start_is_asleep_until_it_wakes(
    tmp_path: Path, device_id: str, revision: str
) -> None:
    """It is known by its number, so hwmon never reads it."""
    card = replace(MI300X, device_id=device_id, revision=revision, faults=(fault("asleep", 0.0, 5.0),))
    machine = Machine(tmp_path, card)
    sampler = Sampler((AmdgpuCollector, HwmonCollector), machine.host, rediscover_s=0.0)
    sampler.start()
    try:
        (scan,) = sampler.fresh(5.0)
        assert (scan.collector, scan.up, scan.states) == ("amdgpu", (False,), ("asleep",))
        machine.advance(6.0)
        sampler.rediscover()
        (scan,) = sampler.fresh(5.0)
        assert (scan.collector, scan.layout.devices, scan.up) == ("amdgpu", (CARD,), (True,))
        assert None not in scan.energies_joules
    finally:
        sampler.stop()


def test_the_second_die_of_a_card_that_was_suspended_at_the_start_is_gone(tmp_path: Path) -> None:
    machine = Machine(tmp_path, MI250X)
    status = machine.file(SECOND).parent / "power/runtime_status"
    status.unlink()
    status.write_text("suspended\n")
    collector = machine.collect()
    first, second = collector.sensors
    assert len(first.read()) == 2
    status.write_text("active\n")
    with pytest.raises(SensorAbsentError, match="the second die of a card"):
        second.read()
    assert [sensor.device for sensor in machine.collect().sensors] == [CARD]


def test_an_npu_that_is_suspended_at_the_start_is_found_when_it_wakes(tmp_path: Path) -> None:
    machine = Machine(tmp_path, replace(RYZEN_AI, faults=(fault("asleep", 0.0, 5.0),)), MI300X)
    collector = machine.collect()
    assert [sensor.device for sensor in collector.sensors] == [CARD]
    assert "suspended: an NPU is found when it is awake" in texts(collector, "skipped")
    assert not collector.outdated
    machine.advance(6.0)
    assert collector.outdated
    assert [sensor.device for sensor in machine.collect().sensors] == [CARD, RYZEN_AI.address]


@pytest.mark.parametrize("is_suspended", [True, False])
def test_a_read_that_the_driver_refuses_is_no_missing_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_suspended: bool
) -> None:
    """EPERM from a file that was opened: the GPU fell asleep in between, or is in reset."""
    machine = Machine(tmp_path, MI300X)
    (sensor,) = machine.collect().sensors

    def refuse(*_: object) -> bytes:
        if is_suspended:
            status = machine.file().parent / "power/runtime_status"
            status.unlink()
            status.write_text("suspended\n")
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(amdgpu.os, "read", refuse)
    monkeypatch.setattr(
        amdgpu, "is_asleep", lambda directory: "suspended" in (Path(directory) / "power/runtime_status").read_text()
    )
    with pytest.raises(SensorAsleepError if is_suspended else SensorGlitchError, match="suspended"):
        sensor.read()


# -- failures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("eio", SensorGlitchError),
        ("glitch", SensorGlitchError),
        ("garbage", SensorGlitchError),
        ("absent", SensorAbsentError),
        ("vanish", SensorAbsentError),
    ],
)
def test_faults_of_one_card_do_not_affect_the_other(tmp_path: Path, kind: str, error: type[SensorError]) -> None:
    machine = Machine(tmp_path, replace(MI300X, faults=(fault(kind),)), replace(MI300X, address=SECOND))
    first, second = machine.collect().sensors
    machine.advance(1.5)
    with pytest.raises(error):
        first.read()
    assert values(second.read())["total"] == 1_000_600.0
    machine.advance(2.5)
    assert values(first.read())["total"] == 1_001_000.0


def test_a_card_that_disappears_makes_the_family_outdated(tmp_path: Path) -> None:
    machine = Machine(tmp_path, replace(MI300X, faults=(fault("vanish"),)), replace(MI300X, address=SECOND))
    collector = machine.collect()
    assert not collector.outdated
    machine.advance(1.5)
    assert collector.outdated


def test_denied() -> None:
    with public_folder() as folder:
        machine = Machine(folder, replace(MI300X, faults=(fault("denied"),)), replace(MI300X, address=SECOND))
        (first, _) = machine.collect().sensors
        machine.advance(1.5)
        with unprivileged():
            with pytest.raises(SensorDeniedError, match="chmod a"):
                first.read()
            collector = machine.collect()
            assert [sensor.device for sensor in collector.sensors] == [SECOND]
            (denied,) = findings(collector, "denied")
            assert (denied.device, denied.cure.endswith("gpu_metrics")) == (CARD, True)


def test_all_denied() -> None:
    with public_folder() as folder:
        machine = Machine(folder, replace(MI300X, faults=(fault("denied"),)))
        machine.advance(1.5)
        with unprivileged(), pytest.raises(SensorDeniedError, match="gpu_metrics") as caught:
            machine.collect()
        assert caught.value.devices == (CARD,)


def test_a_page_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, replace(MI300X, revision="1.8"))
    real = os.read
    monkeypatch.setattr(amdgpu.os, "read", lambda descriptor, _: real(descriptor, 1024))
    assert joules(machine.collect())[f"{CARD}/total"] == 1_000_000.0


# -- energy over minutes -----------------------------------------------------------------------------------


class Minutes:
    """Cards read through the sampling, on a fake clock."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *specs: AmdGpuSpec) -> None:
        self.machine = Machine(folder, *specs)
        self.clock = FakeClock()
        monkeypatch.setattr(amdgpu, "monotonic_ns", lambda: self.clock.now_ns)
        self._start_ns = self.clock.now_ns
        self.family = Family(self.machine.collect(), clock=self.clock)
        self.plausibility = Plausibility()
        self.implausible: set[tuple[str, str]] = set()

    def scan(self, until_s: float) -> FamilyScan:
        scan = self.family.scan()
        for second in range(1, round(until_s) + 1):
            self.clock.advance(1.0)
            self.machine.advance((self.clock.now_ns - self._start_ns) / 1e9)
            scan = self.family.scan()
            if second % 10 == 0:
                verdicts = self.plausibility.check([scan])
                self.implausible |= {(v.check, v.device) for v in verdicts if v.is_implausible}
        return scan


def energies(scan: FamilyScan) -> dict[str, float | None]:
    names = [f"{info.quantity.device}/{info.quantity.domain}" for info in scan.layout.infos]
    return dict(zip(names, scan.energies_joules, strict=True))


def test_energy_over_minutes_with_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Energy is exact, except at a restart of the driver, where 0 is no value; the other card is not affected."""
    job = Square(low_watts=120.0, high_watts=700.0, period_s=7.0)
    first = replace(MI300X, signal=job, faults=(fault("reset", 60.5), fault("eio", 90.5, 3.0)))
    minutes = Minutes(tmp_path, monkeypatch, first, replace(MI300X, signal=job, address=SECOND))
    scan = minutes.scan(180.0)
    truth = job.energy_joules(0.0, 180.0)
    assert energies(scan)[f"{SECOND}/total"] == pytest.approx(truth, abs=2 * STEP)
    assert energies(scan)[f"{CARD}/total"] == pytest.approx(truth - job.energy_joules(60.0, 62.0), abs=0.01)
    assert minutes.implausible == set()


def test_a_counter_that_stands_still_is_stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some cards until their next reboot; the integrated power contradicts it, too."""
    frozen = replace(MI300X, faults=(fault("frozen", 60.0, 240.0),))
    minutes = Minutes(tmp_path, monkeypatch, frozen, replace(MI300X, address=SECOND))
    minutes.scan(180.0)
    assert minutes.implausible == {("stuck", CARD), ("power_to_energy", CARD)}


def test_a_counter_that_runs_backwards_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single lower value is rejected."""
    minutes = Minutes(tmp_path, monkeypatch, replace(MI300X, faults=(fault("backward", 60.5, 1.0),)))
    scan = minutes.scan(120.0)
    assert energies(scan)[f"{CARD}/total"] == pytest.approx(400.0 * 120.0, abs=2 * STEP)
    (health,) = [
        health for health, info in zip(scan.healths, scan.layout.infos, strict=True) if info.method == "counter"
    ]
    assert health is not None
    assert (health.rejected, health.resets) == (1, 0)


def test_the_power_of_an_npu_over_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Square(low_watts=0.0, high_watts=8.0, period_s=10.0)
    scan = Minutes(tmp_path, monkeypatch, replace(RYZEN_AI, npu=job)).scan(120.0)
    assert energies(scan)[f"{RYZEN_AI.address}/npu"] == pytest.approx(job.energy_joules(0.0, 120.0), rel=0.02)
