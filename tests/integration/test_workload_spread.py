"""``joulewatch calibrate --workloads``: real loads whose watts per core are known; what cannot show them is refused."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from joulewatch_exporter.config.calibration import load_calibrations
from joulewatch_harness.analysis.calibration.spread import IDLE, spreads
from joulewatch_harness.cli import main
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.metering import load_windows, loads
from joulewatch_harness.metering.meter import Meter
from joulewatch_harness.runner.processor_time import descendants, process_time_s
from support.counting_exporter import Counter, CountingExporter

if TYPE_CHECKING:
    from integration.conftest import StartEmulator, StartExporter

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

WATTS_PER_CORE = {"integer": 10.0, "interpreter": 16.0, "light": 20.0}
NODENAME = os.uname().nodename


class LoadedMachine(CountingExporter):
    """An exporter of a machine on which only the loads of this process run: ``WATTS_PER_CORE``, and 1 W when idle.

    What else runs on the test machine does not change its energies.
    """

    def __init__(self) -> None:
        self._joules: dict[int, float] = {}
        super().__init__([Counter(watts=1.0)], NODENAME)

    def page(self) -> str:
        for pid in descendants(os.getpid()):
            used_s = process_time_s(pid)
            words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")
            if used_s is not None and loads.__name__ in words:
                self._joules[pid] = used_s * WATTS_PER_CORE[words[-3]]
        self.burned_joules = math.fsum(self._joules.values())
        return super().page()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 0.3 s, of three loads, on a machine that other tests use."""
    kept = {name: load for name, load in loads.LOADS.items() if name in WATTS_PER_CORE}
    for name, value in {
        "LOADS": kept, "ROUNDS": 3, "WINDOW_S": 0.3, "SETTLE_S": 0.0, "LEAST_CORES": 0.0, "MOST_OTHERS": math.inf,
    }.items():  # fmt: skip
        monkeypatch.setattr(load_windows, name, value)


@pytest.mark.usefixtures("short")
def test_the_ratio_of_known_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "workloads.yaml"
    with LoadedMachine() as exporter:
        words = ["calibrate", "--workloads", f"--exporter={exporter.url}", f"--output={tmp_path}", f"--out={out}"]
        assert main([*words, "--format=json"]) == 0
    text, error = capsys.readouterr()
    (cpu,) = json.loads(text)["components"]
    assert {load["load"]: load["watts_per_core"] for load in cpu["loads"]} == pytest.approx(WATTS_PER_CORE, rel=0.1)
    assert cpu["ratio"] == pytest.approx(2.0, rel=0.15)
    (entry,) = load_calibrations([out], NODENAME).ratios
    assert entry.component == "cpu" and entry.ratio >= cpu["ratio"]
    assert f"calibration: {out}" in error


@pytest.mark.usefixtures("short")
def test_windows_on_an_emulated_machine(
    emulator: StartEmulator, exporter_server: StartExporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every round has every load once; the emulated power follows the machine, which other tests share."""
    exporter = exporter_server(*emulator("epyc-7763-node-load").flags)
    cpus = [min(os.sched_getaffinity(0))]
    with Meter(exporter.url, output=tmp_path) as meter:
        windows = load_windows.measure_loads(meter, cpus, ["cpu"], rounds=2, window_s=0.2, settle_s=0.0)
        assert {(window.round, window.load) for window in windows} == {
            (number, load) for number in range(2) for load in (IDLE, *WATTS_PER_CORE)
        }
        assert all(window.watts["cpu"] > 0 for window in windows)
        assert all((window.cores > 0) == (window.load != IDLE) for window in windows)
        assert [len(one.loads) for one in spreads(windows)] == [3]
        monkeypatch.setattr(load_windows, "LEAST_CORES", 1.5)
        with pytest.raises(ConfigError, match=r"the machine is busy: \w+ had \d\.\d\d of its 1 core;"):
            load_windows.measure_loads(meter, cpus, ["cpu"], rounds=1, window_s=0.1, settle_s=0.0)
        monkeypatch.setattr(load_windows, "MOST_OTHERS", -1.0)
        with pytest.raises(ConfigError, match=r"the machine is busy: other programs used \d\.\d\d cores during \w+"):
            load_windows.measure_loads(meter, cpus, ["cpu"], rounds=1, window_s=0.1, settle_s=0.0)


@pytest.mark.parametrize("load", [*loads.LOADS, "none"])
def test_each_load_works_on_its_processor(load: str) -> None:
    cpu = min(os.sched_getaffinity(0))
    if load == "none":
        with pytest.raises(ConfigError, match="the load none did not start"), loads.Workers(load, [cpu]):
            pass
        return
    with loads.Workers(load, [cpu]) as workers:
        assert workers.cpu_seconds() > 0
        (process,) = workers._processes
        assert os.sched_getaffinity(process.pid) == {cpu}
    assert process.poll() is not None


def test_the_processors_are_half_and_first_those_of_different_cores() -> None:
    pairs = {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}
    assert loads.chosen_cpus(range(8), pairs.__getitem__) == [0, 1, 2, 3]
    assert loads.chosen_cpus([0, 4, 1, 5, 2, 3], pairs.__getitem__) == [0, 1, 2]
    assert loads.chosen_cpus([0, 4, 5], pairs.__getitem__) == [0]
    assert loads.chosen_cpus([3]) == [3]


@pytest.mark.parametrize(
    ("counters", "nodename", "text"),
    [
        ([Counter(method="estimated")], NODENAME, "is estimated from their use, by a model that knows no instructions"),
        ([Counter(component="gpu")], NODENAME, "there is no sensor of the processors"),
        ([Counter(component="node", scope="node")], NODENAME, "there is no sensor of the processors"),
        ([Counter()], "node1", f"is on node1, but the loads run on {NODENAME}: run the command there"),
    ],
    ids=["model", "gpu", "node", "remote"],
)
def test_what_cannot_show_the_loads_is_refused(
    counters: list[Counter], nodename: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "workloads.yaml"
    with CountingExporter(counters, nodename) as exporter:
        words = ["calibrate", "--workloads", f"--exporter={exporter.url}", f"--output={tmp_path}", f"--out={out}"]
        assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("short")
def test_a_power_that_does_not_change_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_windows, "LOADS", {"integer": loads.LOADS["integer"]})
    out = tmp_path / "workloads.yaml"
    with CountingExporter([Counter(watts=30.0)], NODENAME) as exporter:
        words = ["calibrate", "--workloads", f"--exporter={exporter.url}", f"--output={tmp_path}", f"--out={out}"]
        assert main(words) == 2
    assert "does not differ from idle power; repeat this" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--workloads", "20260101T000000Z-000002"), "--workloads and RUN exclude each other"),
        (("--workloads", "--sensor=x"), "--workloads and --sensor exclude each other"),
        (("--workloads", "--accuracy=1%"), "--workloads and --accuracy exclude each other"),
        (("--workloads", "--power=watts"), "--workloads and --power exclude each other"),
        (("--workloads", "--time=when"), "--workloads and --time exclude each other"),
        ((), "give RUN and --reference LOG.csv, or --workloads"),
        (("RUN", "--reference=x.csv", "--exporter=http://127.0.0.1:1"), "--exporter needs --workloads"),
    ],
)
def test_arguments_that_do_not_go_together(
    words: tuple[str, ...], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", *words, f"--out={tmp_path / 'x.yaml'}"]) == 2
    assert text in capsys.readouterr().err
