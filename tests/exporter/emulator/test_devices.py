"""Devices of an emulated machine: read from the scenario, run side by side, told to the exporter."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from joulewatch_exporter.collectors import FAMILIES
from joulewatch_exporter.config.config import load_config
from joulewatch_exporter.emulator import devices as devices_module
from joulewatch_exporter.emulator.builder import SignalBuilder
from joulewatch_exporter.emulator.devices import Companion, Place, Running, exporter_collectors, open_devices
from joulewatch_exporter.emulator.faults import Fault
from joulewatch_exporter.emulator.files import Writer
from joulewatch_exporter.emulator.fpga import FpgaTree
from joulewatch_exporter.emulator.main import run
from joulewatch_exporter.emulator.scenario import Scenario, builtin_names, load, parse
from joulewatch_exporter.emulator.signals import Constant, Signal, Square
from joulewatch_exporter.emulator.specs import build
from joulewatch_exporter.emulator.table import Table
from joulewatch_exporter.emulator.truth import Truth
from joulewatch_exporter.errors import ConfigError
from support import golden
from support.paths import ROOT

GOLDEN = ROOT / "tests" / "exporter" / "golden"

GPU = {"uuid": "GPU-1", "bus_id": "0000:17:00.0", "signal": 100}
BMC = {"name": "bmc", "signal": 300}
ZONE = {"zone": "intel-rapl:0", "name": "package-0", "key": "socket0/package", "signal": 100}


def scenario(**devices: Any) -> Scenario:
    return parse({"name": "one", "zones": [ZONE], **devices}, where="test", folder=None)


# -- descriptions ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Rail:
    name: str
    share: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Board:
    """Every kind of field that a description may have."""

    name: str
    signal: Signal
    memory: Signal | None = None
    kind: Literal["big", "small"] = "big"
    number: int = 0
    refresh_s: float = 1.0
    is_new: bool = False
    version: tuple[int, int] = (2, 14)
    levels: tuple[float, ...] = ()
    rails: tuple[Rail, ...] = ()
    signals_by_name: Mapping[str, Signal] = dataclasses.field(default_factory=dict)
    mig: bool | None = None
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError("number: must not be below 0")


def board(**values: Any) -> Board:
    builder = SignalBuilder(Path())
    builder.named["load"] = Square(low_watts=1, high_watts=2, period_s=3)
    return build(Board, Table("test: board", {"name": "b", "signal": "load", **values}), builder, ("hang", "reset"))


def test_a_description_is_made_of_its_fields() -> None:
    made = board(
        memory={"kind": "constant", "watts": 3},
        kind="small",
        number=7,
        refresh_s=2,
        is_new=True,
        version=[2, 18],
        levels=[1, 2.5],
        rails=[{"name": "12v"}, {"name": "3v3", "share": 0.5}],
        signals_by_name={"a": 5},
        mig=None,
        faults=[{"kind": "hang", "at_s": 1, "for_s": 2}, {"kind": "reset", "at_s": 5}],
    )
    assert made == Board(
        name="b",
        signal=Square(low_watts=1, high_watts=2, period_s=3),
        memory=Constant(3),
        kind="small",
        number=7,
        refresh_s=2.0,
        is_new=True,
        version=(2, 18),
        levels=(1.0, 2.5),
        rails=(Rail("12v"), Rail("3v3", 0.5)),
        signals_by_name={"a": Constant(5)},
        faults=(Fault(kind="hang", at_s=1, for_s=2, text=""), Fault(kind="reset", at_s=5, for_s=0, text="")),
    )
    assert board() == Board(name="b", signal=Square(low_watts=1, high_watts=2, period_s=3))
    assert board(mig=True).mig is True


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sgnal": 1}, r"board: unknown key 'sgnal', did you mean 'signal'\?"),
        ({"name": 5}, "board.name: 5 is not text"),
        ({"signal": "laod"}, "did you mean 'load'"),
        ({"signal": None}, "must be a mapping"),
        ({"kind": "smal"}, r"board.kind: 'smal' is none of big, small, did you mean 'small'\?"),
        ({"number": 1.5}, "no whole number"),
        ({"number": True}, "no whole number"),
        ({"number": -1}, "test: board.number: must not be below 0"),
        ({"refresh_s": "1"}, "is no number"),
        ({"is_new": 1}, "neither true nor false"),
        ({"version": [1]}, "a list of 2"),
        ({"levels": 1}, "must be a list"),
        ({"rails": [{"nam": "x"}]}, r"board.rails\[0\].name: is missing"),
        ({"rails": [{"name": "x", "shore": 1}]}, r"board.rails\[0\]: unknown key 'shore', did you mean 'share'\?"),
        ({"rails": ["x"]}, "must be a mapping"),
        ({"signals_by_name": []}, "must be a mapping"),
        ({"faults": [{"kind": "stuck", "at_s": 1, "for_s": 1}]}, r"faults\[0\].kind: 'stuck' is none of hang, reset"),
        ({"faults": [{"kind": "hang", "at_s": 1}]}, "for_s: is missing"),
    ],
)  # fmt: skip
def test_a_bad_description_is_named_by_its_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        board(**values)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ({"gpu": [GPU]}, r"unknown key 'gpu', did you mean 'gpus'\?"),
        ({"gpus": [GPU | {"uid": "x"}]}, r"gpus\[0\]: unknown key 'uid', did you mean 'uuid'\?"),
        ({"gpus": [GPU | {"bus_id": "17"}]}, r"gpus\[0\]\.bus_id: '17' is not like"),
        ({"gpus": [{"uuid": "GPU-1"}]}, r"gpus\[0\]\.bus_id: is missing"),
        ({"gpus": [GPU | {"faults": [{"kind": "explode", "at_s": 1}]}]}, r"gpus\[0\]\.faults\[0\]\.kind"),
        ({"bmcs": [BMC | {"pasword": "x"}]}, r"bmcs\[0\]: unknown key 'pasword', did you mean 'password'\?"),
        ({"bmcs": [BMC | {"port": 70000}]}, r"bmcs\[0\]\.port"),
        ({"bmcs": [BMC, BMC]}, "bmcs and redfish: name bmc is there twice"),
        ({"bmcs": [BMC], "redfish": [BMC]}, "bmcs and redfish: name bmc is there twice"),
        ({"gpus": [GPU, GPU | {"uuid": "GPU-2"}]}, "gpus: bus_id 0000:17:00.0 is there twice"),
        ({"fpgas": [{"card": "0000:d8:00", "signal": 1, "xrt": "2.13"}]}, r"fpgas\[0\]\.xrt: '2\.13' is none of 2\.14"),
        ({"fpgas": [{"card": "0000:d8:00", "signal": 1, "rails": {"5v": 1}}]}, r"fpgas\[0\]\.rails: 5v is none of"),
        ({"fpgas": [{"card": "0000:d8:00", "signal": 1, "funtions": ["user"]}]}, "did you mean 'functions'"),
        ({"cray": {"nod": 1}}, r"cray\.node: is missing"),
        ({"cray": {"node": 1, "parts": {"cpu": "x"}}}, r"cray\.parts\.cpu: no signal"),
        ({"cray": []}, "must be a mapping"),
        ({"redfish": [{"name": "a", "signal": 1, "flavor": "both"}]}, r"redfish\[0\]: unknown key 'flavor', did you"),
        ({"redfish": [{"name": "a", "signal": 1, "faults": [{"kind": "expired", "at_s": 1, "for_s": 1}]}]},
         "unknown key 'for_s'"),
    ],
)  # fmt: skip
def test_a_bad_device_is_named_by_its_key(devices: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scenario(**devices)


def test_the_truth_has_every_device() -> None:
    spec = scenario(
        gpus=[GPU | {"averaging_s": 0, "memory": 20}],
        fpgas=[{"card": "0000:d8:00", "signal": 30, "rails": {"12v_pex": 0.9, "3v3_pex": 0.1}}],
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


def test_chassis_that_share_a_service_are_devices_of_their_own() -> None:
    (many,) = scenario(
        redfish=[{"name": "rack", "signal": 300, "chassis": ["a", "b"], "flavour": "modern"}]
    ).devices.redfish
    spec = scenario(redfish=[{"name": "rack", "signal": 300, "chassis": ["a", "b"], "flavour": "classic"}])
    assert [many.chassis, spec.signals_by_key["rack/a/total"].power_watts(0)] == [("a", "b"), 150]
    assert spec.signals_by_key["rack/b/psu1_input"].power_watts(0) == 75


# -- running them ----------------------------------------------------------------------------------


class FakeDevice:
    """Counts its moves; fails or hangs where asked to."""

    def __init__(self, *, fails: bool = False, hangs: bool = False) -> None:
        self.fails = fails
        self.go_on = threading.Event()
        if not hangs:
            self.go_on.set()
        self.moves: list[float] = []
        self.has_moved_twice = threading.Event()
        self.closed = 0

    def advance(self, t_s: float) -> None:
        self.moves.append(t_s)
        self.go_on.wait(30)
        if self.fails:
            raise RuntimeError("on fire")
        if len(self.moves) >= 2:
            self.has_moved_twice.set()

    def close(self) -> None:
        self.closed += 1


def test_a_device_that_fails_or_hangs_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    fakes = {"good": FakeDevice(), "failing": FakeDevice(fails=True), "hanging": FakeDevice(hangs=True)}
    companions = [
        Companion(Running(what=name, device=fake, tick_s=0.001, settings={}), start_ns=0)
        for name, fake in fakes.items()
    ]
    with caplog.at_level(logging.WARNING):
        for companion in companions:
            companion.settle(0.02 if companion is companions[2] else 5.0)
        assert fakes["good"].has_moved_twice.wait(5.0)
    assert [record.message.split(":")[0] for record in caplog.records] == ["failing", "hanging"]
    for companion in companions:
        companion.stop()
    fakes["hanging"].go_on.set()
    for companion in companions:
        companion.join()
    assert [fake.closed for fake in fakes.values()] == [1, 1, 1]
    assert fakes["good"].moves == sorted(fakes["good"].moves)
    assert fakes["good"].moves[0] > 0


def test_a_device_learns_when_the_scenario_began() -> None:
    began: list[int] = []
    companion = Companion(
        Running(what="x", device=FakeDevice(), tick_s=0.001, settings={}, begin=began.append), start_ns=123
    )
    companion.settle(5.0)
    companion.stop()
    companion.join()
    assert began == [123]


def test_the_tree_of_an_alveo_card_lies_as_xrt_lays_it_out(tmp_path: Path, update_golden: bool) -> None:
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


def test_what_the_exporter_is_told_of_several_devices_is_joined() -> None:
    running = [
        Running(what="a", device=FakeDevice(), tick_s=1.0, settings={"ipmi": {"targets": [{"name": "a"}]}}),
        Running(what="b", device=FakeDevice(), tick_s=1.0, settings={"ipmi": {"targets": [{"name": "b"}]}}),
        Running(what="g", device=FakeDevice(), tick_s=1.0, settings={"nvml": {"library": "x.so"}}),
    ]
    assert exporter_collectors(running) == {
        "ipmi": {"targets": [{"name": "a"}, {"name": "b"}]},
        "nvml": {"library": "x.so"},
    }


class FakeService(FakeDevice):
    """Stands for any family's emulator: no compiler, no port."""

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


def test_what_cannot_be_emulated_is_left_out_and_said(
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


def test_a_sensor_of_the_files_keeps_its_truth_without_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("Address already in use")

    monkeypatch.setattr(devices_module, "Bmc", refuse)
    run(write(tmp_path, bmcs=[BMC | {"name": "socket0", "signal": 100}]), tmp_path / "machine", 0.01)
    assert Truth.load(tmp_path / "machine").keys == ("socket0/package",)


def test_devices_that_are_files_move_with_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "machine"
    card = {"card": "0000:d8:00", "signal": 30, "faults": [{"kind": "hang", "at_s": 0.01, "for_s": 60}]}
    path = write(tmp_path, fpgas=[card], cray={"node": 200, "parts": {"cpu": 90}})
    for _ in range(2):  # the second time in the place of the first
        run(path, folder, 0.05)
        power = (folder / "sys/cray/pm_counters/power").read_text()
        assert power.startswith("200 W ")
        (xmc,) = (folder / "sys/bus/pci/devices/0000:d8:00.1").glob("xmc.u.*")
        assert (xmc / "serial_num").exists()
        # What hung at the end was let go, and is gone.
        assert not any(file.is_fifo() for file in xmc.iterdir())
        assert list((folder / ".scratch").iterdir()) == []
    assert yaml.safe_load((folder / "exporter.yaml").read_text())["collectors"] == {}


def test_services_of_a_fleet_are_not_this_machines(tmp_path: Path, fake_services: None) -> None:
    def is_own(**scenario: Any) -> bool:
        (tmp_path / "fleet.yaml").write_text(yaml.safe_dump({"name": "f", "redfish": [BMC], **scenario}))
        run(str(tmp_path / "fleet.yaml"), tmp_path / "machine", 0.01)
        settings = yaml.safe_load((tmp_path / "machine/exporter.yaml").read_text())
        return "this_machine" in settings["collectors"]["redfish"]["targets"][0]

    assert is_own(zones=[ZONE])
    assert not is_own()


@pytest.mark.usefixtures("fake_services")
def test_a_service_is_moved_as_often_as_it_makes_a_value(tmp_path: Path) -> None:
    def ticks_s(refresh_s: float) -> list[float]:
        quick = BMC | {"refresh_s": refresh_s}
        devices = scenario(bmcs=[quick], redfish=[quick | {"name": "redfish"}]).devices
        running, left_out = open_devices(devices, Place(tmp_path, refresh_s=0.01, is_one_machine=True))
        assert not left_out
        return [one.tick_s for one in running]

    assert ticks_s(0.05) == [0.05, 0.05]
    assert ticks_s(2.0) == [0.1, 0.1]


@pytest.mark.parametrize("name", builtin_names())
@pytest.mark.usefixtures("fake_services")
def test_the_exporters_configuration_is_one(name: str, tmp_path: Path) -> None:
    """Each built-in machine, its devices faked: what is written down for the exporter is what the exporter takes."""
    folder = tmp_path / "machine"
    run(name, folder, 0.01)
    document = yaml.safe_load((folder / "exporter.yaml").read_text())
    known = {family.name for family in FAMILIES}
    unknown = set(document["collectors"]) - known
    if unknown:
        pytest.skip(f"no such family: {', '.join(sorted(unknown))}")
    config = load_config(folder / "exporter.yaml", FAMILIES)
    host = config.exporter.path.host()
    assert host.emulated
    assert host.dev == folder / "dev"
    assert load(name).name == name
