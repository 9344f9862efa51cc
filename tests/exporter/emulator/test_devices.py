"""Tests of the devices of an emulated machine: their description, their threads, the settings for the exporter."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from joulewatch_exporter.collectors import FAMILIES
from joulewatch_exporter.config.config import load_config
from joulewatch_exporter.emulator import devices as devices_module
from joulewatch_exporter.emulator.devices import DeviceThread, Place, Running, exporter_collectors, open_devices
from joulewatch_exporter.emulator.files import Writer
from joulewatch_exporter.emulator.fpga import FpgaTree
from joulewatch_exporter.emulator.main import run
from joulewatch_exporter.emulator.scenario import Scenario, builtin_names, load, parse
from joulewatch_exporter.emulator.truth import Truth
from joulewatch_exporter.errors import ConfigError
from support import golden
from support.paths import ROOT

GOLDEN = ROOT / "tests" / "exporter" / "golden"

GPU = {"uuid": "GPU-1", "bus_id": "0000:17:00.0", "signal": 100}
AMD_GPU = {"address": "0000:83:00.0", "signal": 400}
BMC = {"name": "bmc", "signal": 300}
CARD = {"card": "0000:d8:00", "signal": 30}
ZONE = {"zone": "intel-rapl:0", "name": "package-0", "key": "socket0/package", "signal": 100}


def scenario(**devices: Any) -> Scenario:
    return parse({"name": "one", "zones": [ZONE], **devices}, where="test", folder=None)


# -- descriptions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ({"gpu": [GPU]}, "test: unknown key gpu; did you mean gpus"),
        ({"gpus": [GPU | {"uid": "x"}]}, r"unknown key gpus\[0\]\.uid; did you mean uuid"),
        ({"gpus": [GPU | {"bus_id": "17"}]}, r"gpus\[0\]\.bus_id: '17' must be like"),
        ({"gpus": [{"uuid": "GPU-1"}]}, r"gpus\[0\]: needs bus_id and signal"),
        ({"gpus": [GPU | {"signal": "laod"}], "signals": {"load": 1}},
         r"gpus\[0\]\.signal: no signal 'laod' is defined above; did you mean load"),
        ({"gpus": [GPU | {"memory": -1}]}, r"gpus\[0\]\.memory\.watts: must be at least 0, not -1"),
        ({"gpus": [GPU | {"max_limit_watts": 10}]}, r"gpus\[0\]\.max_limit_watts: must be at least 350, not 10"),
        ({"gpus": [GPU | {"faults": [{"kind": "explode", "at_s": 1}]}]}, r"gpus\[0\]\.faults\[0\]\.kind: 'explode' is"),
        ({"amd_gpus": [AMD_GPU | {"address": "83"}]}, r"amd_gpus\[0\]\.address: '83' must be like 0000:83:00\.0"),
        ({"amd_gpus": [AMD_GPU | {"revision": "1.0"}]}, r"amd_gpus\[0\]\.revision: '1\.0' is not one of 1\.3, 1\.4"),
        ({"amd_gpus": [AMD_GPU | {"device_id": "74a1"}]}, r"amd_gpus\[0\]\.device_id: '74a1' must be like 0x74a1"),
        ({"amd_gpus": [AMD_GPU | {"npu": 2}]}, r"amd_gpus\[0\]\.npu: needed with revision 3\.0, and only there"),
        ({"amd_gpus": [AMD_GPU | {"second_die": "0000:83:00.0"}]}, "amd_gpus: address 0000:83:00.0 is given twice"),
        ({"bmcs": [BMC | {"pasword": "x"}]}, r"unknown key bmcs\[0\]\.pasword; did you mean password"),
        ({"bmcs": [BMC | {"port": 70000}]}, r"bmcs\[0\]\.port: must be 0 to 65535, not 70000"),
        ({"bmcs": [BMC, BMC]}, "bmcs and redfish: name bmc is given twice"),
        ({"bmcs": [BMC], "redfish": [BMC]}, "bmcs and redfish: name bmc is given twice"),
        ({"gpus": [GPU, GPU | {"uuid": "GPU-2"}]}, "gpus: bus_id 0000:17:00.0 is given twice"),
        ({"fpgas": [CARD | {"xrt": "2.13"}]}, r"fpgas\[0\]\.xrt: must be 2\.14 or 2\.15, not '2\.13'"),
        ({"fpgas": [CARD | {"rails": {"5v": 1}}]}, r"fpgas\[0\]\.rails: '5v' is not one of"),
        ({"fpgas": [CARD | {"funtions": ["user"]}]}, "did you mean functions"),
        ({"cray": {"nod": 1}}, "unknown key cray.nod; did you mean node"),
        ({"cray": {"node": 1}}, "cray: needs parts"),
        ({"cray": {"node": 1, "parts": {"cpu": "x"}}}, r"cray\.parts\.cpu: no signal"),
        ({"cray": []}, "cray: must be a mapping"),
        ({"redfish": [BMC | {"flavor": "both"}]}, r"unknown key redfish\[0\]\.flavor; did you mean flavour"),
        ({"redfish": [BMC | {"faults": [{"kind": "expired", "at_s": 1, "for_s": 1}]}]},
         r"redfish\[0\]\.faults\[0\]\.for_s: the fault expired has no duration"),
    ],
)  # fmt: skip
def test_an_invalid_device_is_named_by_its_key(devices: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scenario(**devices)


def test_the_truth_has_every_device() -> None:
    spec = scenario(
        gpus=[GPU | {"averaging_s": 0, "memory": 20}],
        amd_gpus=[AMD_GPU, {"address": "0000:c5:00.0", "signal": 28, "revision": "3.0", "npu": 2}],
        fpgas=[CARD | {"rails": {"12v_pex": 0.9, "3v3_pex": 0.1}}],
        cray={"node": 200, "parts": {"cpu": 90}},
        bmcs=[BMC],
        redfish=[{"name": "chassis", "signal": 300, "supplies": [0.25]}],
    )
    watts = {key: signal.power_watts(1.0) for key, signal in spec.signals_by_key.items()}
    assert watts == {
        "socket0/package": 100,
        "GPU-1/total": 100,
        "GPU-1/instant": 100,
        "GPU-1/memory": 20,
        "0000:83:00.0/total": 400,
        "0000:83:00.0/instant": 400,
        "0000:c5:00.0/npu": 2,
        "0000:d8:00/total": 30,
        "0000:d8:00/12v_pex": 27,
        "0000:d8:00/3v3_pex": 3,
        "0000:d8:00/vccint": 18,
        "node/total": 200,
        "node/cpu": 90,
        "bmc/total": 300,
        "chassis/total": 300,
        "chassis/psu0_input": 75,
        "chassis/psu0_output": 70.5,
    }
    assert "bmc/total" not in spec.without(["bmc/total"]).signals_by_key


def test_each_chassis_of_a_service_is_a_device() -> None:
    (modern,) = scenario(
        redfish=[{"name": "rack", "signal": 300, "chassis": ["a", "b"], "flavour": "modern"}]
    ).devices.redfish
    spec = scenario(redfish=[{"name": "rack", "signal": 300, "chassis": ["a", "b"], "flavour": "classic"}])
    assert [modern.chassis, spec.signals_by_key["rack/a/total"].power_watts(0)] == [("a", "b"), 150]
    assert spec.signals_by_key["rack/b/psu1_input"].power_watts(0) == 75


# -- running devices ----------------------------------------------------------------------------------


class FakeDevice:
    """Counts its moves; can fail or hang."""

    def __init__(self, *, fails: bool = False, hangs: bool = False) -> None:
        self.fails = fails
        self.released = threading.Event()
        if not hangs:
            self.released.set()
        self.moves: list[float] = []
        self.has_moved_twice = threading.Event()
        self.closed = 0

    def advance(self, t_s: float) -> None:
        self.moves.append(t_s)
        self.released.wait(30)
        if self.fails:
            raise RuntimeError("on fire")
        if len(self.moves) >= 2:
            self.has_moved_twice.set()

    def close(self) -> None:
        self.closed += 1


def test_a_device_that_fails_or_hangs_does_not_stop_others(caplog: pytest.LogCaptureFixture) -> None:
    fakes = {"good": FakeDevice(), "failing": FakeDevice(fails=True), "hanging": FakeDevice(hangs=True)}
    threads = [
        DeviceThread(Running(name=name, device=fake, tick_s=0.001, settings={}), start_ns=0)
        for name, fake in fakes.items()
    ]
    with caplog.at_level(logging.WARNING):
        for thread in threads:
            thread.settle(0.02 if thread is threads[2] else 5.0)
        assert fakes["good"].has_moved_twice.wait(5.0)
    assert [record.message.split(":")[0] for record in caplog.records] == ["failing", "hanging"]
    for thread in threads:
        thread.stop()
    fakes["hanging"].released.set()
    for thread in threads:
        thread.join()
    assert [fake.closed for fake in fakes.values()] == [1, 1, 1]
    assert fakes["good"].moves == sorted(fakes["good"].moves)
    assert fakes["good"].moves[0] > 0


def test_a_device_receives_the_start_of_the_scenario() -> None:
    starts_ns: list[int] = []
    thread = DeviceThread(
        Running(name="x", device=FakeDevice(), tick_s=0.001, settings={}, begin=starts_ns.append), start_ns=123
    )
    thread.settle(5.0)
    thread.stop()
    thread.join()
    assert starts_ns == [123]


def test_the_tree_of_an_alveo_card_is_that_of_xrt(tmp_path: Path, update_golden: bool) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    sysfs = tmp_path / "sys"
    cards = FpgaTree(load("u280-node").devices.fpgas[:1], sysfs, Writer(scratch), scratch)
    cards.advance(0.0)
    lines = []
    for path in sorted(sysfs.rglob("*")):
        name = str(path.relative_to(sysfs))
        if path.is_symlink():
            lines.append(f"{name} -> {path.readlink()}")
            assert path.exists()
        elif path.is_file():
            value = "(a time)" if path.name == "sensor_update_timestamp" else path.read_text().strip()
            lines.append(f"{name} = {value}")
    cards.close()
    golden.check("\n".join(lines) + "\n", GOLDEN / "emulated_u280_tree.txt", update=update_golden)


def test_the_settings_of_several_devices_are_joined() -> None:
    running = [
        Running(name="a", device=FakeDevice(), tick_s=1.0, settings={"ipmi": {"targets": [{"name": "a"}]}}),
        Running(name="b", device=FakeDevice(), tick_s=1.0, settings={"ipmi": {"targets": [{"name": "b"}]}}),
        Running(name="g", device=FakeDevice(), tick_s=1.0, settings={"nvml": {"library": "x.so"}}),
    ]
    assert exporter_collectors(running) == {
        "ipmi": {"targets": [{"name": "a"}, {"name": "b"}]},
        "nvml": {"library": "x.so"},
    }


class FakeService(FakeDevice):
    """Replaces the emulator of any family; needs no compiler and no port."""

    port = 12345

    def __init__(self, _specs: object, directory: Path) -> None:
        super().__init__()
        self.path = directory / "lib.so"
        self.password_file = directory / "password"
        self.target = {"name": "redfish", "url": "https://127.0.0.1:1"}


@pytest.fixture
def fake_services(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NvmlLibrary", "Bmc", "RedfishService"):
        monkeypatch.setattr(devices_module, name, FakeService)


def write(folder: Path, **devices: Any) -> str:
    path = folder / "scenario.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "zones": [ZONE], **devices}))
    return str(path)


def test_a_device_that_cannot_be_emulated_is_excluded_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConfigError("no compiler: apt-get install gcc")

    monkeypatch.setattr(devices_module, "NvmlLibrary", refuse)
    folder = tmp_path / "machine"
    assert run(write(tmp_path, gpus=[GPU]), folder, 0.01) == 0
    assert "without GPUs: no compiler: apt-get install gcc\n" in capsys.readouterr().err
    truth = Truth.load(folder)
    assert truth.keys == ("socket0/package",)
    assert yaml.safe_load((folder / "exporter.yaml").read_text())["collectors"].get("nvml", {}).get("library") is None
    with pytest.raises(ConfigError, match="mine: GPUs: no compiler"):
        run(write(tmp_path, gpus=[GPU], required=True), folder, 0.01)


def test_a_zone_keeps_its_truth_when_the_device_with_the_same_key_is_excluded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("Address already in use")

    monkeypatch.setattr(devices_module, "Bmc", refuse)
    run(write(tmp_path, bmcs=[BMC | {"name": "socket0", "signal": 100}]), tmp_path / "machine", 0.01)
    assert Truth.load(tmp_path / "machine").keys == ("socket0/package",)


def test_devices_made_of_files_move_with_the_tree(tmp_path: Path) -> None:
    folder = tmp_path / "machine"
    card = CARD | {"faults": [{"kind": "hang", "at_s": 0.01, "for_s": 60}]}
    path = write(tmp_path, fpgas=[card], cray={"node": 200, "parts": {"cpu": 90}})
    for _ in range(2):  # the second run replaces the files of the first
        run(path, folder, 0.05)
        power = (folder / "sys/cray/pm_counters/power").read_text()
        assert power.startswith("200 W ")
        (xmc,) = (folder / "sys/bus/pci/devices/0000:d8:00.1").glob("xmc.u.*")
        assert (xmc / "serial_num").exists()
        # A file that still hangs at the end is removed, and its readers are released.
        assert not any(file.is_fifo() for file in xmc.iterdir())
        assert list((folder / ".scratch").iterdir()) == []
    assert yaml.safe_load((folder / "exporter.yaml").read_text())["collectors"] == {}


def test_services_of_a_fleet_do_not_belong_to_the_machine(tmp_path: Path, fake_services: None) -> None:
    def is_local(**scenario: Any) -> bool:
        (tmp_path / "fleet.yaml").write_text(yaml.safe_dump({"name": "f", "redfish": [BMC], **scenario}))
        run(str(tmp_path / "fleet.yaml"), tmp_path / "machine", 0.01)
        settings = yaml.safe_load((tmp_path / "machine/exporter.yaml").read_text())
        return "this_machine" in settings["collectors"]["redfish"]["targets"][0]

    assert is_local(zones=[ZONE])
    assert not is_local()


@pytest.mark.usefixtures("fake_services")
def test_a_service_moves_at_least_as_often_as_it_makes_a_value(tmp_path: Path) -> None:
    def ticks_s(refresh_s: float) -> list[float]:
        quick = BMC | {"refresh_s": refresh_s}
        devices = scenario(bmcs=[quick], redfish=[quick | {"name": "redfish"}]).devices
        running, excluded = open_devices(devices, Place(tmp_path, refresh_s=0.01, is_one_machine=True))
        assert not excluded
        return [device.tick_s for device in running]

    assert ticks_s(0.05) == [0.05, 0.05]
    assert ticks_s(2.0) == [0.1, 0.1]


@pytest.mark.parametrize("name", builtin_names())
@pytest.mark.usefixtures("fake_services")
def test_the_configuration_for_the_exporter_is_valid(name: str, tmp_path: Path) -> None:
    """For each built-in machine, with fake devices: the exporter accepts its configuration."""
    folder = tmp_path / "machine"
    run(name, folder, 0.01)
    document = yaml.safe_load((folder / "exporter.yaml").read_text())
    assert set(document["collectors"]) <= {family.name for family in FAMILIES}
    config = load_config(folder / "exporter.yaml", FAMILIES)
    host = config.exporter.path.host()
    assert host.emulated
    assert host.dev == folder / "dev"
    assert load(name).name == name
