"""Tests of emulated cards, with and without faults, read by the exporter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from joulewatch_exporter.collectors.base import probe
from joulewatch_exporter.collectors.fpga.collector import FpgaCollector, FpgaOptions
from joulewatch_exporter.emulator.faults import Fault
from joulewatch_exporter.emulator.files import Writer
from joulewatch_exporter.emulator.fpga import CardSpec, FpgaTree
from joulewatch_exporter.emulator.signals import Constant, Square, ramp
from joulewatch_exporter.errors import SensorAbsentError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Host, Sensor
from support.sysfs import public_folder, unprivileged

CARD = "0000:d8:00"
OTHER = "0000:3b:00"


class Machine:
    """A tree with cards, and how the exporter reads it."""

    def __init__(self, folder: Path, *specs: CardSpec) -> None:
        scratch = folder / ".scratch"
        scratch.mkdir()
        (folder / "sys").mkdir()
        self.host = Host(sysfs=folder / "sys", procfs=folder / "proc", dev=folder)
        self.tree = FpgaTree(specs, self.host.sysfs, Writer(scratch), scratch)
        self.tree.advance(0.0)

    def collect(self, **options: Any) -> FpgaCollector:
        return FpgaCollector.open(self.host, FpgaOptions(**options))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path


def spec(card: str = CARD, **fields: Any) -> CardSpec:
    defaults: dict[str, Any] = {"signal": Constant(28.123456)}
    return CardSpec(card=card, **(defaults | fields))


def fault(kind: str, text: str | None = None) -> Fault:
    return Fault(kind=kind, at_s=1.0, for_s=1.0, text=text)


def watts(sensor: Sensor) -> dict[str, float]:
    return {reading.quantity.domain: reading.power_watts or 0.0 for reading in sensor.read()}


def first(collector: FpgaCollector, card: str = CARD) -> Sensor:
    return next(sensor for sensor in collector.sensors if sensor.device == card)


@pytest.mark.parametrize("version", ["2.14", "2.15"])
@pytest.mark.parametrize("functions", [("user", "mgmt"), ("user",), ("mgmt",)])
@pytest.mark.parametrize(("has_xmc", "has_hwmon"), [(True, True), (True, False), (False, True)])
def test_the_exporter_reads_the_truth(
    folder: Path, version: str, functions: tuple[str, ...], has_xmc: bool, has_hwmon: bool
) -> None:
    card = spec(xrt=version, functions=functions, has_xmc=has_xmc, has_hwmon=has_hwmon)
    sensor = first(Machine(folder, card).collect())
    shown = watts(sensor)
    assert shown["total"] == pytest.approx(28.123456, abs=0.002)
    assert set(shown) == {"total", "12v_pex", "12v_aux", "3v3_pex", "vccint"}
    # The rails are in whole milliamperes, and the power of the card is exactly their sum.
    assert shown["12v_pex"] + shown["12v_aux"] + shown["3v3_pex"] == pytest.approx(shown["total"], abs=1e-9)
    assert set(card.truth) == {f"{CARD}/{domain}" for domain in shown}
    for domain, value in shown.items():
        assert card.truth[f"{CARD}/{domain}"].power_watts(0.0) == pytest.approx(value, abs=0.007)
    source = sensor.infos[0].source
    assert ("/xmc.u." in source or "_user" in source or ".1/" in source) == ("mgmt" not in functions)
    assert source.endswith("power1_input" if not has_xmc else "xmc_power" if version == "2.14" else "xmc_power_ins")


def test_a_card_without_the_auxiliary_cable(folder: Path) -> None:
    sensor = first(Machine(folder, spec(rails={"12v_pex": 0.9, "3v3_pex": 0.1})).collect())
    assert set(watts(sensor)) == {"total", "12v_pex", "3v3_pex", "vccint"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rails": {"12v_pex": 0.5}}, "rails"),
        ({"rails": {"12v_pex": 0.5, "5v": 0.5}}, "rails: '5v'"),
        ({"rails": {"12v_aux": 1.0}}, "rails: needs 12v_pex"),
        ({"functions": ()}, "functions"),
    ],
)
def test_invalid_cards_are_rejected(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec(**fields)


def test_the_management_function_shows_new_values_at_once_and_the_user_function_once_per_second(folder: Path) -> None:
    machine = Machine(folder, spec(signal=ramp(10.0, 30.0, 2.0, start_s=0.0, repeats=False), rails={"12v_pex": 1.0}))
    user, mgmt = (first(machine.collect(function=kind)) for kind in ("user", "mgmt"))
    shown = []
    for t_s in (0.0, 0.05, 0.5, 1.0):
        machine.tree.advance(t_s)
        shown.append((watts(user)["total"], watts(mgmt)["total"]))
    assert [mgmt for _, mgmt in shown] == pytest.approx([10.0, 10.0, 15.0, 20.0], abs=0.01)
    assert [user for user, _ in shown] == pytest.approx([10.0, 10.0, 10.0, 20.0], abs=0.01)


def test_the_cache_shows_the_time_of_its_values(folder: Path) -> None:
    machine = Machine(folder, spec())
    sensor = first(machine.collect(function="user"))
    before = sensor.read()[0].read_at_ns
    machine.tree.advance(0.5)
    assert sensor.read()[0].read_at_ns == before
    machine.tree.advance(1.0)
    assert sensor.read()[0].read_at_ns > before


def test_the_maximum_is_not_the_power(folder: Path) -> None:
    machine = Machine(folder, spec(signal=Square(low_watts=20.0, high_watts=60.0, period_s=2.0), has_xmc=False))
    sensor = first(machine.collect())
    machine.tree.advance(1.2)
    (maximum,) = [path.read_text() for path in machine.host.sysfs.glob("class/hwmon/*/power1_average")][:1]
    machine.tree.advance(2.0)
    machine.tree.advance(3.0)
    assert watts(sensor)["total"] == pytest.approx(20.0, abs=0.01)
    assert int(maximum) >= 20_000_000


@pytest.mark.parametrize(
    ("kind", "text"), [("garbage", None), ("eio", None), ("glitch", None), ("glitch", "0"), ("absent", None)]
)
@pytest.mark.parametrize("has_xmc", [True, False])
def test_a_fault_of_one_card_does_not_affect_another(folder: Path, kind: str, text: str | None, has_xmc: bool) -> None:
    broken = spec(faults=(fault(kind, text),), has_xmc=has_xmc)
    machine = Machine(folder, broken, spec(OTHER, signal=Constant(50.0)))
    collector = machine.collect()
    faulty, healthy = first(collector), first(collector, OTHER)
    machine.tree.advance(1.5)
    with pytest.raises(SensorAbsentError if kind == "absent" else SensorGlitchError):
        faulty.read()
    assert watts(healthy)["total"] == pytest.approx(50.0, abs=0.002)
    machine.tree.advance(2.5)
    assert watts(first(machine.collect()))["total"] == pytest.approx(28.123456, abs=0.002)
    assert watts(faulty)["total"] == pytest.approx(28.123456, abs=0.002)
    machine.tree.close()
    machine.tree.close()


def test_denied_files() -> None:
    with public_folder() as folder:
        machine = Machine(folder, spec(faults=(fault("denied"),)), spec(OTHER))
        (folder / ".scratch").chmod(0o755)
        collector = machine.collect()
        machine.tree.advance(1.5)
        with unprivileged():
            with pytest.raises(SensorError, match="chmod a"):
                first(collector).read()
            assert watts(first(collector, OTHER))["total"] > 28
        machine.tree.advance(2.5)
        with unprivileged():
            assert watts(first(collector))["total"] > 28


def test_a_stuck_card_keeps_its_values(folder: Path) -> None:
    signal = ramp(10.0, 30.0, 4.0, start_s=0.0, repeats=False)
    machine = Machine(folder, spec(signal=signal, faults=(fault("stuck"),)))
    sensor = first(machine.collect(function="mgmt"))
    for t_s in (0.9, 1.5, 1.9):
        machine.tree.advance(t_s)
    assert watts(sensor)["total"] == pytest.approx(14.5, abs=0.01)
    machine.tree.advance(2.5)
    assert watts(sensor)["total"] == pytest.approx(22.5, abs=0.01)


def test_a_reset_card_returns_with_new_numbers(folder: Path) -> None:
    machine = Machine(folder, spec(faults=(fault("vanish"),)), spec(OTHER))
    collector = machine.collect()
    removed, other = first(collector), first(collector, OTHER)
    chips = machine.host.sysfs / "class/hwmon"
    before = {chip.name for chip in chips.iterdir()}
    machine.tree.advance(1.5)
    with pytest.raises(SensorAbsentError):
        removed.read()
    assert collector.outdated
    assert [sensor.device for sensor in machine.collect().sensors] == [OTHER]
    assert not list(machine.host.sysfs.rglob(f"*{CARD}*"))
    machine.tree.advance(2.5)
    with pytest.raises(SensorAbsentError):
        removed.read()
    rediscovered = machine.collect()
    assert first(rediscovered).infos[0].source.split("/")[-2] == "xmc.m.1027"
    assert removed.infos[0].source.split("/")[-2] == "xmc.m.1025"
    assert first(rediscovered).infos[0].quantity == removed.infos[0].quantity
    assert watts(first(rediscovered))["total"] == pytest.approx(28.123456, abs=0.002)
    assert watts(other)["total"] == pytest.approx(28.123456, abs=0.002)
    assert {chip.name for chip in chips.iterdir()} != before


def test_a_card_that_hangs_costs_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PROBE_S", 0.05)
    machine = Machine(folder, spec(faults=(fault("hang"),)), spec(OTHER))
    machine.tree.advance(1.5)
    collector = machine.collect()
    assert [sensor.device for sensor in collector.sensors] == [OTHER]
    assert watts(first(collector, OTHER))["total"] > 28
    machine.tree.close()
