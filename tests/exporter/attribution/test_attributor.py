"""The attributor: scans in, shares out; sources that fail or hang cost a gap and nothing else."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from joulewatch_exporter.attribution.attributor import Attributor
from joulewatch_exporter.attribution.model import UsageSource, Workload
from joulewatch_exporter.attribution.shares import Shares
from joulewatch_exporter.config.config import AttributionSettings, SourceSettings
from joulewatch_exporter.errors import ConfigError, SensorGlitchError
from joulewatch_exporter.model import EMULATION_MARKER, Host
from joulewatch_exporter.sampling.family import Family
from support.clock import NS_PER_S, FakeClock
from support.fake_family import FakeSensor, Machine, energy_sensor, fake_family
from support.usage import ScriptedUsage, scripted, scripted_source


class Node:
    """A machine with a processor, memory and a GPU, and workloads that use known seconds."""

    def __init__(self, tmp_path: Path, **settings: object) -> None:
        self.clock = FakeClock()
        self.script: ScriptedUsage = scripted(self.clock)
        self.script.cgroups.make("a", "b", "system/x")
        now_ns = self.clock.monotonic_ns
        self.cpu = energy_sensor("socket0", now_ns=now_ns)
        self.memory = energy_sensor("socket0", now_ns=now_ns, domain="dram", component="memory")
        self.gpu = energy_sensor("GPU-1", now_ns=now_ns, domain="total", component="gpu", wrap_joules=None)
        self.node = energy_sensor("psu", now_ns=now_ns, domain="total", component="node", scope="node")
        self.sensors = [self.cpu, self.memory, self.gpu, self.node]
        machine = Machine(list(self.sensors))
        self.family = Family(fake_family("fake", machine).open(Host(), None), clock=self.clock)
        self.host = Host(sysfs=tmp_path, procfs=tmp_path, dev=tmp_path)
        self.settings = AttributionSettings(**settings)  # type: ignore[arg-type]
        self.state_folder: Path | None = None
        self.attributor = self.new([scripted_source(self.script)])

    def new(self, sources: list[type[UsageSource]]) -> Attributor:
        return Attributor(
            sources, self.host, self.settings, clock=self.clock, state_folder=self.state_folder, least_seconds=0.0
        )

    def count(self, joules: float, *sensors: FakeSensor) -> None:
        for sensor in sensors or self.sensors:
            assert sensor.energies_joules[0] is not None
            sensor.energies_joules[0] += joules

    def look(self, seconds: float = 1.0, *, survey: bool = False, timeout_s: float = 5.0) -> Shares:
        self.clock.advance(seconds)
        scan = self.family.scan()
        if survey:
            self.attributor.survey()
        shares = self.attributor.look([scan], timeout_s)
        assert shares is not None
        return shares

    def show_all(self) -> None:
        """Let each workload use something, so that it gets series."""
        self.attributor.open()
        self.look(survey=True)
        for key in ("a", "b", "system/x"):
            self.script.cgroups.use(key, 1.0)
        self.count(1.0)  # a counter that does not move has no interval
        self.look(survey=True)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.attributor.stop()


def energy(shares: Shares) -> dict[tuple[str, str, str], float]:
    layout = shares.layout
    workloads = zip(layout.energy, shares.energy_joules, strict=True)
    unattributed = zip(layout.unattributed, shares.unattributed_joules, strict=True)
    return {
        **{(component, device, workload.workload): joules for (component, device, workload), joules in workloads},
        **dict(unattributed),
    }


def test_a_look_shares_what_the_scans_have(node: Node) -> None:
    node.show_all()
    before = energy(node.look())
    node.script.cgroups.use("a", 0.75)
    node.script.cgroups.use("b", 0.25)
    node.count(8.0)
    shares = node.look()
    after = energy(shares)
    change = {key: after[key] - before[key] for key in after if after[key] - before[key] > 0.01}
    assert change == pytest.approx(
        {
            ("cpu", "", "a"): 6.0,
            ("cpu", "", "b"): 2.0,
            ("memory", "", "a"): 6.0,
            ("memory", "", "b"): 2.0,
            ("gpu", "GPU-1", "gap"): 8.0,  # no source has its usage
        }
    )
    assert dict(zip([one.workload for one in shares.layout.cpu], shares.cpu_seconds, strict=True)) == pytest.approx(
        {"a": 0.75, "b": 0.25, "system/x": 0.0}
    )
    assert (shares.shown, shares.rest, shares.gone) == (3, 1, 0)
    assert shares.layout.how == (
        ("cpu", "cpu_time", "none", "counter"),
        ("memory", "cpu_time", "none", "counter"),
    )


def test_a_new_layout_only_if_a_workload_comes_or_goes(node: Node) -> None:
    node.show_all()
    first = node.look()
    node.script.cgroups.use("a", 1.0)
    node.count(1.0)
    assert node.look().layout is first.layout
    node.script.cgroups.make("c")
    node.script.cgroups.use("c", 5.0)
    assert [one.workload for one in node.look(survey=True).layout.workloads] == ["a", "b", "system/x", "c"]


def test_a_source_that_fails_is_a_gap(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.show_all()
    node.script.error = SensorGlitchError("/sys/fs/cgroup/cpu.stat: Input/output error")
    node.count(5.0)
    with caplog.at_level(logging.WARNING):
        shares = node.look()
        node.look()
    assert energy(shares)["cpu", "", "gap"] == 5.0
    assert len(caplog.records) == 1, "logged once"
    assert shares.gone == 0, "an unreadable source does not end workloads"


def test_a_bug_in_a_source_is_a_gap(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.show_all()
    node.script.error = ZeroDivisionError()
    node.count(5.0)
    assert energy(node.look())["cpu", "", "gap"] == 5.0
    assert "ZeroDivisionError" in caplog.text


def test_a_source_that_hangs_is_a_gap_until_it_returns(node: Node) -> None:
    node.show_all()
    node.script.hang = threading.Event()
    node.count(5.0)
    assert energy(node.look(timeout_s=0.02))["cpu", "", "gap"] == 5.0
    node.count(5.0)
    assert energy(node.look(timeout_s=0.02))["cpu", "", "gap"] == 10.0
    hang, node.script.hang = node.script.hang, None
    hang.set()
    for thread in threading.enumerate():
        if thread.name == "usage-scripted" and thread is not threading.current_thread():
            thread.join(5.0)
    node.count(5.0)
    before = energy(node.look())
    node.script.cgroups.use("a", 1.0)
    node.count(5.0)
    after = energy(node.look())
    assert after["cpu", "", "a"] - before["cpu", "", "a"] == pytest.approx(5.0)
    assert after["cpu", "", "gap"] == 15.0


def test_a_gpu_is_shared_by_a_source_of_its_own_and_shows_its_holder(tmp_path: Path) -> None:
    node = Node(tmp_path)
    gpus = scripted(node.clock)
    gpus.devices = {"GPU-1": scripted(node.clock).cgroups}
    gpus.devices["GPU-1"].make("a")
    gpus.weight = "gpu_utilisation"
    gpus.holders = {"GPU-1": ["b"]}
    node.attributor = node.new([scripted_source(node.script), scripted_source(gpus, "gpus", ("gpu",))])
    node.show_all()
    gpus.devices["GPU-1"].use("a", 0.5)
    node.count(8.0)
    shares = node.look()
    node.attributor.stop()
    assert energy(shares)["gpu", "GPU-1", "a"] == 8.0
    assert [(device, one.workload) for device, one in shares.layout.gpu] == [("GPU-1", "a")]
    assert shares.gpu_seconds == (0.5,)
    assert [(device, one.workload) for device, one in shares.layout.held] == [("GPU-1", "b")]
    assert ("gpu", "gpu_utilisation", "none", "counter") in shares.layout.how


def test_names_come_from_the_source(node: Node) -> None:
    node.script.names["a"] = Workload(kind="slurm_job", workload="4711", user="1000")
    node.show_all()
    assert node.look().layout.workloads[0] == node.script.names["a"]


def test_an_emulated_machine_says_so_and_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / EMULATION_MARKER).touch()
    node = Node(tmp_path, idle_watts={"socket0": 2.0})
    node.state_folder = tmp_path
    node.attributor = node.new([scripted_source(node.script)])
    node.show_all()
    assert ("cpu", "cpu_time", "configured", "emulated") in node.look().layout.how
    idle_for(node, 120)
    node.attributor.stop()
    assert not (tmp_path / "idle.json").exists()


# -- idle power -----------------------------------------------------------------------------------


def idle_for(node: Node, seconds: int, watts: float = 10.0) -> Shares:
    for _ in range(seconds):
        node.count(watts)
        node.script.cgroups.use("system/x", 0.001)
        shares = node.look()
    return shares


def test_idle_power_is_measured_and_survives_a_restart_under_load(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.state_folder = tmp_path
    node.attributor = node.new([scripted_source(node.script)])
    node.show_all()
    before = energy(idle_for(node, 40))
    after = energy(idle_for(node, 40))
    assert after["cpu", "", "idle"] - before["cpu", "", "idle"] == pytest.approx(400.0, rel=1e-6)
    node.attributor.stop()
    (entry, _) = json.loads((tmp_path / "idle.json").read_text("utf-8"))["devices"]
    assert (entry["device"], entry["watts"]) == ("socket0", pytest.approx(10.0))
    assert entry["measured_at_s"] == pytest.approx(node.clock.time(), abs=60.0)

    node.attributor = node.new([scripted_source(node.script)])
    node.show_all()
    node.count(30.0)
    before = energy(node.look())
    for _ in range(5):
        node.count(50.0)
        node.script.cgroups.use("a", 1.0)
        shares = node.look()
    node.attributor.stop()
    assert energy(shares)["cpu", "", "idle"] - before["cpu", "", "idle"] == pytest.approx(50.0)
    assert ("cpu", "cpu_time", "measured", "counter") in shares.layout.how


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"joulewatch_idle": 1, "devices": [{"watts": "x"}]}', "\x00"])
def test_a_damaged_file_is_ignored(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "idle.json").write_text(text, "utf-8")
    node = Node(tmp_path)
    node.state_folder = tmp_path
    node.attributor = node.new([scripted_source(node.script)])
    node.show_all()
    assert "not used" in caplog.text
    node.attributor.stop()


# -- opening --------------------------------------------------------------------------------------


def test_a_machine_without_a_source_shares_nothing(node: Node) -> None:
    node.script.is_absent = True
    node.attributor.open()
    node.clock.advance(1.0)
    assert not node.attributor.is_open
    assert node.attributor.look([node.family.scan()]) is None


def test_a_source_that_appears_later_is_opened(node: Node) -> None:
    node.script.is_absent = True
    node.attributor.start()
    node.script.is_absent = False
    node.attributor._open_missing(first=False)
    assert node.attributor.is_open


def test_required_attribution_needs_a_source(tmp_path: Path) -> None:
    node = Node(tmp_path, enabled=True)
    node.script.is_absent = True
    with pytest.raises(ConfigError, match=r"attribution\.enabled is true, but no usage source"):
        node.attributor.start()


def test_a_required_source_must_open(tmp_path: Path) -> None:
    node = Node(tmp_path, sources={"scripted": SourceSettings(enabled=True)})
    node.script.is_absent = True
    with pytest.raises(ConfigError, match="usage source scripted is required: no scripted tree"):
        node.attributor.start()


def test_a_disabled_source_is_not_opened(tmp_path: Path) -> None:
    node = Node(tmp_path, sources={"scripted": SourceSettings(enabled=False)})
    node.attributor.open()
    assert not node.attributor.is_open


def test_a_second_source_of_the_same_processors_is_not_opened(node: Node) -> None:
    other = scripted(node.clock)
    node.attributor = node.new([scripted_source(node.script), scripted_source(other, "other")])
    node.show_all()
    assert (node.script.reads > 0, other.reads) == (True, 0)


def test_the_period_of_surveys_follows_their_processor_time(node: Node) -> None:
    """On a busy machine a survey waits for the processor; that is not a reason to survey less often."""
    node.attributor.open()
    node.script.cgroups.between_reads = lambda: node.clock.advance(0.4)
    started_ns = node.clock.now_ns
    node.attributor.survey()
    assert node.attributor._survey_due_ns == started_ns + 2 * NS_PER_S


def test_the_thread_looks_without_scrapes(tmp_path: Path) -> None:
    node = Node(tmp_path)
    done = threading.Event()

    def latest() -> tuple[()]:
        done.set()
        return ()

    attributor = Attributor([scripted_source(node.script)], node.host, node.settings, latest=latest)
    attributor.start()
    assert done.wait(10.0)
    attributor.stop()
    assert (node.script.surveys, node.script.closed) == (1, 1)


def reserved(shares: Shares) -> dict[str, float]:
    names = [workload.workload for workload in shares.layout.reserved]
    return dict(zip(names, shares.reserved, strict=True))


def test_shares_of_the_processors_by_weight(node: Node) -> None:
    """They are read by surveys, every 30 s: never by a look. An ended workload has none."""
    node.script.reserved = {"": 1.0, "a": 0.5, "b": 0.25, "system": 0.25, "system/x": 0.1}
    node.show_all()
    shares = node.look()
    assert reserved(shares) == {"a": 0.5, "b": 0.25, "system/x": 0.1}
    assert "system" not in [workload.workload for workload in shares.layout.reserved]  # it has no series
    assert node.script.reserved_reads == 1
    layout = shares.layout
    node.script.reserved["a"] = 0.4
    node.look(20.0, survey=True)
    assert node.script.reserved_reads == 1
    shares = node.look(15.0, survey=True)
    assert (node.script.reserved_reads, reserved(shares)["a"]) == (2, 0.4)
    assert shares.layout is layout
    node.script.cgroups.remove("b")
    assert reserved(node.look(survey=True)) == {"a": 0.4, "system/x": 0.1}


def test_without_weights_there_are_no_such_series(node: Node) -> None:
    node.show_all()
    shares = node.look()
    assert (shares.layout.reserved, shares.reserved) == ((), ())
