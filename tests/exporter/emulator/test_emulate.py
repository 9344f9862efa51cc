"""Tests of emulated machines: files that follow the scenario, collectors that read them, and the truth."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from joulewatch_exporter.cli import main
from joulewatch_exporter.collectors.base.proc_stat import read_busy
from joulewatch_exporter.collectors.hwmon.collector import HwmonCollector, HwmonOptions
from joulewatch_exporter.collectors.rapl.collector import RaplCollector, RaplOptions
from joulewatch_exporter.emulator import replay
from joulewatch_exporter.emulator.main import builtin_names, run
from joulewatch_exporter.emulator.scenario import Scenario, load, parse
from joulewatch_exporter.emulator.signals import Points
from joulewatch_exporter.emulator.tree import Tree
from joulewatch_exporter.emulator.truth import Truth
from joulewatch_exporter.errors import ConfigError, SensorAbsentError, SensorGlitchError
from joulewatch_exporter.model import Host

UNIT = 2.0**-16
RANGE_UJ = 65_532_610_987


def scenario(**changes: Any) -> Scenario:
    zone = {"zone": "intel-rapl:0", "name": "package-0", "key": "socket0/package", "signal": 100, "start_joules": 0}
    document = {"name": "one", "zones": [zone | changes.pop("zone", {})], **changes}
    return parse(document, where="test", folder=None)


class Machine:
    """The tree of a scenario, moved by the test."""

    def __init__(self, spec: Scenario, folder: Path) -> None:
        scratch = folder / "scratch"
        scratch.mkdir()
        self.tree = Tree(spec, folder, scratch, boot_unix_s=1_700_000_000)
        self.host = Host(sysfs=folder / "sys", procfs=folder / "proc", dev=folder)
        self.tree.advance(0.0)

    def zone(self, zone: str = "intel-rapl:0") -> Path:
        return self.host.sysfs / "class/powercap" / zone

    def energy_uj(self, t_s: float) -> int:
        self.tree.advance(t_s)
        return int((self.zone() / "energy_uj").read_text())


def test_the_counter_is_the_exact_integral_in_steps_of_the_kernel(tmp_path: Path) -> None:
    machine = Machine(
        scenario(zone={"signal": {"kind": "ramp", "from_watts": 0, "to_watts": 100, "duration_s": 10}}), tmp_path
    )
    for t_s in (0.0, 0.013, 3.7, 9.99):
        steps = int(5 * t_s * t_s / UNIT)
        assert machine.energy_uj(t_s) == steps * 15258 // 1000
    assert int((machine.zone() / "max_energy_range_uj").read_text()) == RANGE_UJ
    assert machine.host.emulated


def test_links_are_those_of_a_kernel(tmp_path: Path) -> None:
    machine = Machine(load("intel-all-zones"), tmp_path)
    child = machine.zone("intel-rapl:a:0")
    assert str(child.readlink()) == "../../devices/virtual/powercap/intel-rapl/intel-rapl:a/intel-rapl:a:0"
    assert (machine.zone("intel-rapl") / "enabled").read_text() == "1\n"
    assert (machine.zone("intel-rapl") / "subsystem").resolve() == machine.host.sysfs / "class/powercap"
    hwmon = machine.host.sysfs / "class/hwmon/hwmon0"
    assert (hwmon / "device").resolve().name == "0000:03:00.0"
    assert not list(machine.host.sysfs.rglob("*value*"))  # no temporary files in the tree


def test_collectors_discover_the_node_of_the_paper(tmp_path: Path) -> None:
    machine = Machine(load("epyc-7763-node"), tmp_path)
    rapl = RaplCollector.open(machine.host, RaplOptions())
    hwmon = HwmonCollector.open(machine.host, HwmonOptions())
    infos = [info for sensor in (*rapl.sensors, *hwmon.sensors) for info in sensor.infos]
    assert [(i.quantity.scope, i.quantity.device, i.quantity.domain) for i in infos] == [
        ("device", "socket0", "package"),
        ("device", "socket1", "package"),
        ("node", "ACPI000D:00", "power1"),
    ]
    assert infos[0].wrap_joules == RANGE_UJ / 1e6
    assert infos[0].model == "AMD EPYC 7763 64-Core Processor"
    assert infos[2].accuracy == 0.05
    for t_s in (2.0, 8.0):
        machine.tree.advance(t_s)
        (reading,) = hwmon.sensors[0].read()
        assert 300 < (reading.power_watts or 0) < 900


def test_collectors_discover_every_kind_of_zone(tmp_path: Path) -> None:
    machine = Machine(load("intel-all-zones"), tmp_path)
    machine.tree.advance(1.0)
    rapl = RaplCollector.open(machine.host, RaplOptions())
    hwmon = HwmonCollector.open(machine.host, HwmonOptions())
    keys = {f"{s.infos[0].quantity.device}/{s.infos[0].quantity.domain}" for s in (*rapl.sensors, *hwmon.sensors)}
    assert keys == set(load("intel-all-zones").signals_by_key)
    assert sum("same counter as" in finding.text for finding in rapl.findings) == 1


@pytest.mark.parametrize("name", builtin_names())
def test_built_in_scenarios_are_valid(name: str) -> None:
    spec = load(name)
    assert spec.name == name
    assert spec.description
    assert json.loads(json.dumps(spec.document)) == spec.document
    if spec.is_deterministic:
        for key, signal in spec.signals_by_key.items():
            powers = [signal.power_watts(step / 10) for step in range(600)]
            assert min(powers) >= 0, key
            assert max(powers) <= 3000, key


def test_the_node_of_the_paper_has_plausible_power() -> None:
    spec = load("epyc-7763-node")
    power = {key: signal.energy_joules(0, 60) for key, signal in spec.signals_by_key.items()}
    assert power["ACPI000D:00/power1"] > power["socket0/package"] + power["socket1/package"]
    for socket in ("socket0", "socket1"):
        signal = spec.signals_by_key[f"{socket}/package"]
        powers = [signal.power_watts(step / 100) for step in range(6000)]
        assert min(powers) >= 90
        assert 260 <= max(powers) <= 280


def test_a_counter_wraps_at_wrap_at_s(tmp_path: Path) -> None:
    machine = Machine(scenario(zone={"wrap_at_s": 3}), tmp_path)
    assert machine.energy_uj(2.9) > RANGE_UJ - 11_000_000
    assert machine.energy_uj(3.1) < 11_000_000


def test_a_small_counter_wraps_often(tmp_path: Path) -> None:
    """20 bits in steps of 2^-16 J are 16 J, which are six wraps per second at 100 W."""
    machine = Machine(scenario(zone={"counter_bits": 20}), tmp_path)
    assert int((machine.zone() / "max_energy_range_uj").read_text()) == (2**20 - 1) * 15258 // 1000
    assert machine.energy_uj(0.2) == int((20 - 16) / UNIT) * 15258 // 1000
    collector = RaplCollector.open(machine.host, RaplOptions())
    assert collector.timing.poll_s == pytest.approx(15.999 / 1000 / 4, rel=0.01) or collector.timing.poll_s == 0.005


def test_dram_has_its_own_unit(tmp_path: Path) -> None:
    machine = Machine(scenario(zone={"unit_nj": 15300}), tmp_path)
    assert machine.energy_uj(1.0) == int(100 / 15300e-9) * 15300 // 1000
    assert int((machine.zone() / "max_energy_range_uj").read_text()) == 65_712_999_613


def test_a_zone_without_a_range_file(tmp_path: Path) -> None:
    machine = Machine(scenario(zone={"range_file": False, "power_limit_watts": 280}), tmp_path)
    assert not (machine.zone() / "max_energy_range_uj").exists()
    assert (machine.zone() / "constraint_0_power_limit_uw").read_text() == "280000000\n"


def test_faults_begin_and_end(tmp_path: Path) -> None:
    faults = [
        {"kind": "glitch", "at_s": 1, "for_s": 1, "text": "4294967295"},
        {"kind": "stuck", "at_s": 3, "for_s": 1},
        {"kind": "denied", "at_s": 5, "for_s": 1},
        {"kind": "reset", "at_s": 7},
    ]
    machine = Machine(scenario(zone={"faults": faults}), tmp_path)
    path = machine.zone() / "energy_uj"
    assert machine.energy_uj(1.5) == 4_294_967_295
    before = machine.energy_uj(2.5)
    assert before == int(250 / UNIT) * 15258 // 1000
    assert machine.energy_uj(3.5) == before
    assert machine.energy_uj(4.5) == int(450 / UNIT) * 15258 // 1000
    machine.tree.advance(5.5)
    assert path.stat().st_mode & 0o777 == 0
    machine.tree.advance(6.5)
    assert path.stat().st_mode & 0o444
    assert machine.energy_uj(7.0) == 0
    assert machine.energy_uj(8.0) == int(100 / UNIT) * 15258 // 1000


def test_invalid_text_is_a_glitch_for_the_collector(tmp_path: Path) -> None:
    machine = Machine(scenario(zone={"faults": [{"kind": "glitch", "at_s": 1, "for_s": 1}]}), tmp_path)
    (sensor,) = RaplCollector.open(machine.host, RaplOptions()).sensors
    machine.tree.advance(1.0)
    with pytest.raises(SensorGlitchError, match="garbage"):
        sensor.read()


def test_a_zone_vanishes_with_its_children_and_returns(tmp_path: Path) -> None:
    spec = {"name": "package-0", "key": "socket0/package", "signal": 100}
    zones = [
        spec | {"zone": "intel-rapl:0", "faults": [{"kind": "vanish", "at_s": 1, "for_s": 1}]},
        spec | {"zone": "intel-rapl:0:0", "name": "dram", "key": "socket0/dram", "signal": 10},
        spec | {"zone": "intel-rapl:1", "name": "package-1", "key": "socket1/package", "signal": 10},
    ]
    machine = Machine(parse({"name": "gone", "zones": zones}, where="test", folder=None), tmp_path)
    sensors = RaplCollector.open(machine.host, RaplOptions()).sensors
    by_name = {f"{s.infos[0].quantity.device}/{s.infos[0].quantity.domain}": s for s in sensors}
    package, memory, other = by_name["socket0/package"], by_name["socket0/dram"], by_name["socket1/package"]
    machine.tree.advance(1.5)
    for sensor in (package, memory):
        with pytest.raises(SensorAbsentError):
            sensor.read()
    assert other.read()
    assert len(RaplCollector.open(machine.host, RaplOptions()).sensors) == 1
    machine.tree.advance(2.5)
    energy_joules = package.read()[0].energy_joules
    assert energy_joules == pytest.approx(1000 + 250, rel=1e-4)
    assert len(RaplCollector.open(machine.host, RaplOptions()).sensors) == 3


def hwmon(**changes: Any) -> dict[str, Any]:
    channel = {
        "key": "i2c-3-3-0040/power1",
        "signal": {"kind": "ramp", "from_watts": 0, "to_watts": 10, "duration_s": 10},
    }
    chip = {"chip": "ina226", "path": "devices/platform/i2c-3/3-0040"}
    return chip | {"channels": [channel | changes.pop("channel", {})]} | changes


def value(machine: Machine, name: str, t_s: float) -> int:
    machine.tree.advance(t_s)
    return int((machine.host.sysfs / "class/hwmon/hwmon0" / name).read_text())


def test_a_momentary_power_changes_at_each_update(tmp_path: Path) -> None:
    machine = Machine(parse({"name": "x", "hwmon": [hwmon(channel={"update_s": 1})]}, where="t", folder=None), tmp_path)
    shown = [value(machine, "power1_input", t_s) for t_s in (0.0, 0.9, 1.0, 1.9, 2.5)]
    assert shown == [0, 0, 1_000_000, 1_000_000, 2_500_000]


def test_an_average_is_the_mean_of_the_interval(tmp_path: Path) -> None:
    chip = hwmon(channel={"update_s": 2, "average": True})
    machine = Machine(parse({"name": "x", "hwmon": [chip]}, where="t", folder=None), tmp_path)
    assert [value(machine, "power1_average", t_s) for t_s in (0.0, 2.0, 3.0, 4.0)] == [
        0,
        1_000_000,
        1_000_000,
        3_000_000,
    ]
    assert value(machine, "power1_average_interval", 4.0) == 2000


def test_an_energy_channel_counts_microjoules(tmp_path: Path) -> None:
    chip = hwmon(channel={"kind": "energy", "signal": 8, "label": "card", "faults": [{"kind": "reset", "at_s": 5}]})
    machine = Machine(parse({"name": "x", "hwmon": [chip]}, where="t", folder=None), tmp_path)
    assert value(machine, "energy1_input", 4.0) - value(machine, "energy1_input", 4.0) == 0
    assert value(machine, "energy1_input", 4.5) == 37_000_000
    assert value(machine, "energy1_input", 5.0) == 0
    assert (machine.host.sysfs / "class/hwmon/hwmon0/energy1_label").read_text() == "card\n"


def test_a_chip_vanishes_and_returns(tmp_path: Path) -> None:
    chip = hwmon(faults=[{"kind": "vanish", "at_s": 1, "for_s": 1}])
    machine = Machine(parse({"name": "x", "hwmon": [chip]}, where="t", folder=None), tmp_path)
    (sensor,) = HwmonCollector.open(machine.host, HwmonOptions()).sensors
    machine.tree.advance(1.0)
    with pytest.raises(SensorAbsentError):
        sensor.read()
    machine.tree.advance(3.0)
    assert sensor.read()[0].power_watts == pytest.approx(3.0)


def test_the_cpus_are_as_busy_as_the_load_of_the_scenario(tmp_path: Path) -> None:
    load_of_socket = {"signal": {"kind": "step", "points": [[0, 90], [4, 280]]}, "idle_watts": 90, "full_watts": 280}
    machine_spec = {"sockets": 2, "cpus_per_socket": 3, "load": [load_of_socket, load_of_socket | {"signal": 185}]}
    machine = Machine(scenario(machine=machine_spec), tmp_path)
    machine.tree.advance(6.0)
    busy_s, n_cpus = read_busy(str(machine.host.procfs / "stat"))
    assert busy_s == pytest.approx(3 * 2 + 3 * 3, abs=0.2)
    assert n_cpus == 6
    topology = machine.host.sysfs / "devices/system/cpu"
    assert [(topology / f"cpu{i}/topology/physical_package_id").read_text().strip() for i in (0, 2, 3, 5)] == list(
        "0011"
    )


def test_all_cpus_are_present_possible_and_online(tmp_path: Path) -> None:
    machine = Machine(scenario(machine={"sockets": 2, "cpus_per_socket": 4}), tmp_path)
    for name in ("online", "present", "possible"):
        assert (machine.host.sysfs / "devices/system/cpu" / name).read_text() == "0-7\n"


def test_a_program_can_keep_the_file_of_a_zone_open(tmp_path: Path) -> None:
    machine = Machine(scenario(), tmp_path)
    with (machine.zone() / "energy_uj").open() as held:
        for t_s in (1.0, 2.0):
            energy_uj = machine.energy_uj(t_s)
            held.seek(0)
            assert int(held.readline()) == energy_uj > 99_000_000 * t_s


def test_the_topology_shows_the_threads_of_each_core(tmp_path: Path) -> None:
    machine = Machine(scenario(machine={"sockets": 2, "cpus_per_socket": 8, "cores_per_socket": 4}), tmp_path)
    root = machine.host.sysfs / "devices/system/cpu"
    assert (root / "online").read_text() == "0-15\n"

    def read(cpu: int, name: str) -> str:
        return (root / f"cpu{cpu}/topology/{name}").read_text().strip()

    assert [read(cpu, "core_cpus_list") for cpu in (0, 4, 3, 8, 15)] == ["0,4", "0,4", "3,7", "8,12", "11,15"]
    assert [read(cpu, "core_id") for cpu in range(16)] == list("0123" * 4)
    assert {read(cpu, "die_id") for cpu in range(16)} == {"0"}


def test_registers_of_intel_show_the_counters_of_the_zones(tmp_path: Path) -> None:
    machine = Machine(load("intel-all-zones"), tmp_path)
    machine.tree.advance(7.3)
    assert sorted(path.name for path in (tmp_path / "dev/cpu").iterdir()) == ["0", "80"]
    zones = [(0, 0x611, "0", 61035), (0, 0x639, "0:0", 61035), (0, 0x619, "0:2", 15300), (80, 0x611, "a", 61035)]
    for cpu, register, zone, unit_nj in zones:
        descriptor = os.open(tmp_path / f"dev/cpu/{cpu}/msr", os.O_RDONLY)
        try:
            assert int.from_bytes(os.pread(descriptor, 8, 0x606), "little") >> 8 & 0x1F == 14
            count = int.from_bytes(os.pread(descriptor, 8, register), "little")
        finally:
            os.close(descriptor)
        shown = int((machine.zone(f"intel-rapl:{zone}") / "energy_uj").read_text())
        assert count * unit_nj // 1000 == shown
    machine.tree.close()
    machine.tree.close()


def test_registers_of_amd_are_not_emulated(tmp_path: Path) -> None:
    """They are adjacent, so 8-byte reads of a file would overlap."""
    machine = Machine(load("epyc-7763-node"), tmp_path)
    assert list((machine.host.sysfs.parent / "dev").iterdir()) == []
    with pytest.raises(ConfigError, match="only Intel's"):
        scenario(machine={"vendor": "AuthenticAMD", "msr": True})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"refresh": 1}, "test: unknown key refresh; did you mean refresh_s"),
        ({"refresh_s": 0.0001}, "test: refresh_s: must be 0.001 to 60, not 0.0001"),
        ({"refresh_s": "fast"}, "test: refresh_s: must be a number, not 'fast'"),
        ({"zone": {"wattage": 3}}, r"unknown key zones\[0\]\.wattage"),
        ({"zone": {"zone": "intel-rapl:G"}}, "hexadecimal"),
        ({"zone": {"key": "package"}}, r"zones\[0\]\.key: 'package' must be a device and a domain"),
        ({"zone": {"signal": "sokcet0"}, "signals": {"socket0": 1}}, r"zones\[0\]\.signal: .*did you mean socket0"),
        ({"zone": {"signal": -5}}, "at least 0"),
        ({"zone": {"signal": {"kind": "sqare"}}}, r"signal\.kind: 'sqare' is not one of .*; did you mean square"),
        ({"zone": {"signal": {"watts": 5}}}, r"signal\.kind: None is not one of constant"),
        ({"zone": {"signal": {"kind": "constant"}}}, r"zones\[0\]\.signal: needs watts"),
        ({"zone": {"signal": {"kind": "constant", "watts": True}}}, "watts: must be a number, not True"),
        ({"zone": {"signal": {"kind": "constant", "watts": float("inf")}}}, "watts: must be a number, not inf"),
        ({"zone": {"signal": {"kind": "sine", "mean_watts": 1, "amplitude_watts": 2, "period_s": 1}}},
         "amplitude_watts: must be 0 to 1, not 2"),
        ({"zone": {"signal": {"kind": "square", "low_watts": 1, "high_watts": 2, "period_s": 1, "duty": 2}}}, "duty"),
        ({"zone": {"signal": {"kind": "ramp", "from_watts": 1, "to_watts": 2, "duration_s": 0}}}, r"\.duration_s: "),
        ({"zone": {"signal": {"kind": "scale", "signal": 1, "factor": -1}}}, r"signal\.factor: must be at least 0"),
        ({"zone": {"signal": {"kind": "sum", "of": [1, "x"]}}}, r"signal\.of\[1\]: no signal 'x'"),
        ({"zone": {"signal": {"kind": "step", "points": [[1, 2], [1, 3]]}}}, r"signal\.points: times must increase"),
        ({"zone": {"signal": {"kind": "step", "points": [[1, -2]]}}}, "neither times nor powers may be negative"),
        ({"zone": {"signal": {"kind": "step", "points": [[1]]}}}, r"points\[0\]: must be a list of 2"),
        ({"zone": {"signal": {"kind": "replay", "points": [[0, 1]], "file": "a.csv"}}}, "either file or points"),
        ({"zone": {"signal": {"kind": "replay"}}}, "points: must be at least one"),
        ({"zone": {"signal": {"kind": "phases", "of": []}}}, "needs at least one phase"),
        ({"zone": {"signal": {"kind": "cpu_load", "idle_watts": 1, "full_watts": 2}, "wrap_at_s": 1}}, "be predicted"),
        ({"zone": {"signal": {"kind": "cpu_load", "idle_watts": 1, "full_watts": -2}}}, "full_watts: must be"),
        ({"zone": {"signal": {"kind": "workload_load", "idle_watts": -1}}}, "signal.idle_watts: must be at least 0"),
        ({"zone": {"signal": {"kind": "workload_load", "idle_watts": 1, "workloads": {"a": {"watts_per_core": -1}}}}},
         r"workloads\.a\.watts_per_core: must be at least 0"),
        ({"zone": {"signal": {"kind": "workload_load", "idle_watts": 1, "workloads": {"/a": {"watts_per_core": 1}}}}},
         r"workloads: '/a' must be a path below the cgroup"),
        ({"zone": {"faults": [{"kind": "explode", "at_s": 1}]}}, "'explode' is not one of reset, glitch"),
        ({"zone": {"faults": [{"kind": "stuck", "at_s": 1}]}}, r"faults\[0\]\.for_s: must be above 0"),
        ({"zone": {"faults": [{"kind": "stuck", "at_s": -1, "for_s": 1}]}}, r"faults\[0\]\.at_s: must be at least 0"),
        ({"zone": {"faults": [{"kind": "stuck", "at_s": 1, "for_s": 1, "text": "0"}]}}, "only a glitch has a text"),
        ({"zone": {"counter_bits": 99}}, r"zones\[0\]\.counter_bits: must be 8 to 64, not 99"),
        ({"zone": {"range_file": "no"}}, "range_file: must be true or false, not 'no'"),
        ({"machine": {"sockets": 2, "load": [{"signal": 1, "idle_watts": 1, "full_watts": 2}]}}, "needs 2 entries,"),
        ({"machine": {"load": [{"signal": 1, "idle_watts": 3, "full_watts": 2}]}}, "above idle_watts"),
        ({"machine": {"cpus_per_socket": 8, "cores_per_socket": 3}}, r"must divide the number of CPUs .* \(8\)"),
        ({"machine": {"cores_per_sockets": 8}}, "did you mean cores_per_socket"),
        ({"required": "yes"}, "required: must be true or false"),
        ({"hwmon": [{"chip": "x", "path": "../etc", "channels": []}]}, "below devices/"),
        ({"hwmon": [{"chip": "x", "path": "devices/x", "channels": []}]}, "needs at least one channel"),
        ({"hwmon": [{"chip": "x", "path": "devices/x", "files": {"a/b": 1}, "channels": [
            {"key": "a/b", "signal": 1}]}]}, "without a slash"),
        ({"hwmon": [{"chip": "x", "path": "devices/x", "channels": [{"key": "socket0/package", "signal": 1}]}]},
         "the key socket0/package has two signals"),
        ({"hwmon": [{"chip": "x", "path": "devices/x", "channels": [
            {"kind": "energy", "average": True, "key": "a/b", "signal": 1}]}]}, "no average"),
        ({"zones": []}, "nothing to emulate"),
        ({"zones": {}}, "zones: must be a list"),
        ({"signals": []}, "signals: must be a mapping"),
        ({"signals": {"a": "b", "b": 1}}, "signals.a: no signal 'b' is defined above"),
        ({"name": 5}, "name: must be a string, not 5"),
    ],
)  # fmt: skip
def test_an_invalid_scenario_is_named_by_its_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scenario(**changes)


def test_a_phase_cannot_follow_the_load() -> None:
    load_signal = {"kind": "cpu_load", "idle_watts": 1, "full_watts": 2}
    with pytest.raises(ConfigError, match="cannot be a phase"):
        scenario(zone={"signal": {"kind": "phases", "of": [{"signal": load_signal, "duration_s": 1}]}})


def test_a_zone_is_given_once() -> None:
    zone = {"zone": "intel-rapl:0", "name": "package-0", "key": "a/b", "signal": 1}
    with pytest.raises(ConfigError, match="zones: zone intel-rapl:0 is given twice"):
        parse({"name": "x", "zones": [zone, zone]}, where="t", folder=None)


def test_an_unknown_scenario_names_the_built_in_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean epyc-7763-node\?; built in: .*intel-all-zones"):
        load("epyc-7736-node")
    (tmp_path / "bad.yaml").write_text("name: [")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load(str(tmp_path / "bad.yaml"))
    (tmp_path / "bad.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="must be a mapping"):
        load(str(tmp_path / "bad.yaml"))


def test_the_points_of_a_replay_are_part_of_the_scenario(tmp_path: Path) -> None:
    """The CSV file is relative to the scenario; the stored scenario does not need it."""
    (tmp_path / "trace.csv").write_text("time_s,watts\n100,50\n101,70\n103,70\n")
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nzones: [{zone: 'intel-rapl:0', name: package-0, key: socket0/package,"
        " signal: {kind: replay, file: trace.csv, repeat: true}}]\n"
    )
    spec = load(str(tmp_path / "mine.yaml"))
    signal = spec.signals_by_key["socket0/package"]
    assert signal == Points(times_s=(0, 1, 3), watts=(50, 70, 70), is_linear=True, repeats=True)
    (tmp_path / "trace.csv").unlink()
    again = parse(json.loads(json.dumps(spec.document)), where="again", folder=None)
    assert again.signals_by_key == spec.signals_by_key


@pytest.mark.parametrize("text", ["", "t,w\n1,2\n", "time_s,watts\n1,x\n", "time_s,watts\n1\n", None])
def test_an_invalid_replay_is_named_by_its_file(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "trace.csv").write_text(text)
    zone = {"zone": "intel-rapl:0", "name": "x", "key": "a/b", "signal": {"kind": "replay", "file": "trace.csv"}}
    with pytest.raises(ConfigError, match=r"trace\.csv"):
        parse({"name": "x", "zones": [zone]}, where="t", folder=tmp_path)


def test_a_replay_without_end_is_one_line(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_MOST_BYTES", 1 << 20)
    (endless / "trace.csv").symlink_to("/dev/zero")
    zone = {"zone": "intel-rapl:0", "name": "x", "key": "a/b", "signal": {"kind": "replay", "file": "trace.csv"}}
    with pytest.raises(ConfigError, match=r"trace\.csv: longer than 1 MiB$"):
        parse({"name": "x", "zones": [zone]}, where="t", folder=endless)


@pytest.mark.parametrize(("code", "status"), [(errno.ENOSPC, 1), (errno.EDQUOT, 1), (errno.EROFS, 2)])
def test_a_full_disk_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, code: int, status: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("joulewatch_exporter.emulator.main._put", fail)
    folder = tmp_path / "machine"
    assert main(["emulate", "intel-all-zones", str(folder)]) == status
    assert f"{folder}: cannot be written: " in (err := capsys.readouterr().err)
    assert os.strerror(code) in err and err.count("\n") == 1


def test_a_run_writes_the_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "machine"
    assert run("intel-all-zones", folder, 0.05) == 0
    assert capsys.readouterr().err == (
        f"emulating intel-all-zones in {folder}; "
        f"read it with: joulewatch-exporter --config.file {folder}/exporter.yaml\n"
    )
    truth = Truth.load(folder)
    start_s = truth.start_unix_s
    signal = load("intel-all-zones").signals_by_key["socket0/package"]
    assert truth.energy_joules("socket0/package", start_s + 1, start_s + 3) == pytest.approx(signal.energy_joules(1, 3))
    assert truth.power_watts("socket0/package", start_s + 1) == pytest.approx(signal.power_watts(1), rel=1e-5)
    assert "0000:03:00.0/card" in truth.keys
    lines = [json.loads(line) for line in (folder / "truth.jsonl").read_text().splitlines()]
    assert set(lines[-1]) == {"unix_s", "monotonic_ns", "joules"}
    assert lines[-1]["joules"].keys() == set(truth.keys)
    with pytest.raises(ValueError, match="is not one of"):
        truth.energy_joules("socket9/package", start_s, start_s)
    with pytest.raises(ValueError, match="before the start of the emulator"):
        truth.energy_joules("socket0/package", start_s - 1, start_s)
    with pytest.raises(ValueError, match="ends before"):
        truth.energy_joules("socket0/package", start_s + 1, start_s)


def test_the_truth_of_a_load_is_its_trace(tmp_path: Path) -> None:
    folder = tmp_path / "machine"
    run("epyc-7763-node-load", folder, 0.15)
    truth = Truth.load(folder)
    a, b = truth.start_unix_s + 0.01, truth.start_unix_s + 0.12
    energy_joules = truth.energy_joules("socket0/package", a, b)
    assert 90 * 0.11 * 0.999 <= energy_joules <= 280 * 0.11 * 1.001
    assert truth.power_watts("socket0/package", a) + 1e-6 >= 90
    assert truth.power_watts("socket0/package", a) <= 280 + 1e-6
    with pytest.raises(ValueError, match="load the truth again later"):
        truth.energy_joules("socket0/package", a, b + 60)
    with (folder / "truth.jsonl").open("a") as file:
        file.write('{"half a li')
    assert Truth.load(folder).energy_joules("socket0/package", a, b) == energy_joules


def test_other_directories_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not empty"):
        run("epyc-7763-node-load", tmp_path, 0.0)
    with pytest.raises(ConfigError, match="is a file"):
        run("epyc-7763-node", tmp_path / "thesis.tex", 0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_directory_of_an_emulator_is_used_again(tmp_path: Path) -> None:
    run("intel-all-zones", tmp_path, 0.0)
    run("epyc-7763-node-load", tmp_path, 0.0)
    assert not (tmp_path / "sys/class/powercap/intel-rapl-mmio:0").exists()
    assert Truth.load(tmp_path).scenario.name == "epyc-7763-node-load"


def test_two_emulators_do_not_share_a_directory(tmp_path: Path) -> None:
    run("intel-all-zones", tmp_path, 0.0)
    with (tmp_path / ".lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="is used by another emulator"):
            run("intel-all-zones", tmp_path, 0.0)


def test_a_directory_without_a_machine_has_no_truth(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no emulated machine"):
        Truth.load(tmp_path)
