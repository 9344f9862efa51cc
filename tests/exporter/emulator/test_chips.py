"""Emulated boards and GPUs, read as the exporter reads them: energies against the truth, and devices that sleep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from joulewatch_exporter.collectors.hwmon.collector import HwmonCollector, HwmonOptions
from joulewatch_exporter.emulator.scenario import Scenario, load, parse
from joulewatch_exporter.emulator.tree import Tree
from joulewatch_exporter.errors import ConfigError
from joulewatch_exporter.model import Host
from joulewatch_exporter.sampling.family import Family
from joulewatch_exporter.sampling.scan import FamilyScan

STEP_S = 0.1


class Machine:
    """The tree of a scenario and its hwmon family; the test moves their common clock."""

    def __init__(self, spec: Scenario, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        scratch = folder / "scratch"
        scratch.mkdir()
        self._tree = Tree(spec, folder, scratch, boot_unix_s=1_700_000_000)
        self._now_ns = 0
        monkeypatch.setattr("joulewatch_exporter.collectors.hwmon.values.monotonic_ns", lambda: self._now_ns)
        self._tree.advance(0.0)
        self.family = Family(HwmonCollector.open(Host(sysfs=folder / "sys"), HwmonOptions()))

    def scan(self, t_s: float) -> FamilyScan:
        self._tree.advance(t_s)
        self._now_ns = round(t_s * 1e9)
        return self.family.scan()

    def energies(self, scan: FamilyScan) -> dict[str, float | None]:
        keys = [f"{info.quantity.device}/{info.quantity.domain}" for info in scan.layout.infos]
        return dict(zip(keys, scan.energies_joules, strict=True))


@pytest.mark.parametrize(
    ("name", "summed"),
    [("jetson-orin-nx", ("VDD_IN",)), ("jetson-tx2", ("VDD_IN",)), ("grace-hopper", ("package",))],
)
def test_integrated_energies_are_the_truth(
    name: str, summed: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Volts x amperes, milliwatts and means, integrated over 12 s with the edges of a square wave in it."""
    spec = load(name)
    machine = Machine(spec, tmp_path, monkeypatch)
    for step in range(121):
        scan = machine.scan(step * STEP_S)
    energies = machine.energies(scan)
    assert set(energies) == set(spec.signals_by_key)
    for key, signal in spec.signals_by_key.items():
        assert energies[key] == pytest.approx(signal.energy_joules(0.0, 12.0), rel=5e-3), key
    assert tuple(info.quantity.domain for info in scan.layout.infos if info.quantity.scope != "part") == summed


def test_sleeping_gpus_have_no_values_and_lose_no_counted_energy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load("sleeping-gpus")
    machine = Machine(spec, tmp_path, monkeypatch)
    states = {}
    for step in range(301):
        scan = machine.scan(step * STEP_S)
        states[step * STEP_S] = dict(zip(scan.layout.devices, scan.states, strict=True))
    assert [states[t_s]["0000:03:00.0"] for t_s in (0.0, 15.0, 25.0)] == ["asleep", "asleep", "ok"]
    assert [states[t_s]["0000:08:00.0"] for t_s in (0.0, 15.0, 25.0)] == ["ok", "asleep", "ok"]
    assert scan.errors == ()
    energies = machine.energies(scan)
    amdgpu = spec.signals_by_key["0000:03:00.0/PPT"]
    assert energies["0000:03:00.0/PPT"] == pytest.approx(amdgpu.energy_joules(20.0, 30.0), rel=1e-6)
    # The driver's counter goes on while the device sleeps.
    for key in ("0000:08:00.0/card", "0000:08:00.0/pkg", "0000:0a:00.0/energy1", "0000:0a:00.0/gt0-energy1"):
        assert energies[key] == pytest.approx(spec.signals_by_key[key].energy_joules(0.0, 30.0), rel=1e-6), key
    devices = {info.quantity.domain for info in scan.layout.infos if info.quantity.scope == "device"}
    assert devices == {"PPT", "card", "energy1"}  # never a package or a tile inside a card


def chip(**keys: Any) -> Scenario:
    channel = {"key": "a/b", "signal": 6} | keys.pop("channel", {})
    spec = {"chip": "x", "path": "devices/x", "channels": [channel]} | keys
    return parse({"name": "one", "hwmon": [spec]}, where="test", folder=None)


@pytest.mark.parametrize(
    ("keys", "files"),
    [
        ({"channel": {"kind": "volts_amperes", "label": "A"}},
         {"in1_input": "12000", "in1_label": "A", "curr1_input": "500"}),
        ({"channel": {"kind": "volts_amperes", "in_number": 2, "volts": 1.2, "average": True}},
         {"in2_average": "1200", "in2_average_interval": "10", "curr1_average": "5000"}),
        ({"channel": {"kind": "energy", "with_power": True}},
         {"energy1_input": "1000000", "power1_input": "6000000"}),
        ({"subsystem": "iio", "channel": {"number": 0, "label": "A"}}, {"in_power0_input": "6000", "rail_name_0": "A"}),
        ({"subsystem": "iio", "channel": {"kind": "volts_amperes", "number": 2}},
         {"in_voltage2_input": "12000", "in_current2_input": "500"}),
    ],
)  # fmt: skip
def test_files_of_each_kind_of_channel(
    keys: dict[str, Any], files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    Tree(chip(**keys), tmp_path, scratch, boot_unix_s=1).advance(0.0)
    place = "bus/iio/devices/iio:device0" if "subsystem" in keys else "class/hwmon/hwmon0"
    shown = {path.name: path.read_text().strip() for path in (tmp_path / "sys" / place).iterdir() if path.is_file()}
    assert shown == files | {"name": "x"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"channel": {"with_power": True}}, "with_power: only an energy"),
        ({"channel": {"kind": "volts_amperes", "volts": 0}}, "volts: must be 0.1 to 1000"),
        ({"subsystem": "iio", "channel": {"kind": "energy"}}, "subsystem: chips of IIO have power or volts_amperes"),
        ({"subsystem": "iio", "files_at_device": True}, "subsystem: chips of IIO"),
        ({"faults": [{"kind": "suspend", "at_s": 1}]}, "for_s: must be above 0"),
    ],
)
def test_invalid_keys_of_a_chip(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chip(**keys)
