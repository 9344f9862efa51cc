"""A polled family that follows its target file."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from joulewatch_exporter.collectors.base.targeted import TargetedCollector
from joulewatch_exporter.collectors.base.targets import TargetList
from joulewatch_exporter.collectors.base.workers import Poller
from joulewatch_exporter.errors import ConfigError
from joulewatch_exporter.model import Quantity, Reading, SensorInfo


@dataclass(frozen=True, slots=True)
class Meter:
    name: str
    watts: float = 100.0


class MeterDevice:
    """Always answers."""

    def __init__(self, meter: Meter) -> None:
        quantity = Quantity(scope="node", component="node", device=meter.name, domain="total")
        self.infos: Sequence[SensorInfo] = (SensorInfo(quantity=quantity, method="integrated", source=meter.name),)
        self._reading = Reading(
            quantity=quantity, read_at_ns=time.monotonic_ns(), energy_joules=None, power_watts=meter.watts
        )

    def read(self) -> Sequence[Reading]:
        return (self._reading,)

    def close(self) -> None:
        pass


class MeterCollector(TargetedCollector):
    name: ClassVar[str] = "meters"

    def __init__(self, file: Path | None, *inline: Meter, check_s: float = 0.0) -> None:
        self.made: list[Meter] = []

        def make(meter: Meter) -> Poller:
            self.made.append(meter)
            return Poller(meter.name, lambda: MeterDevice(meter), poll_s=3600.0, deadline_s=10.0)

        super().__init__(TargetList(Meter, inline, file, where="collectors.meters"), make, check_s=check_s)

    @property
    def watts(self) -> dict[str, float | None]:
        _ = self.sensors
        self.settle(10.0)
        return {sensor.device: sensor.infos and sensor.read()[0].power_watts for sensor in self.sensors}  # type: ignore[misc]


Open = Callable[..., MeterCollector]


@pytest.fixture
def open_meters() -> Iterator[Open]:
    opened: list[MeterCollector] = []

    def make(file: Path | None, *inline: Meter, check_s: float = 0.0) -> MeterCollector:
        opened.append(MeterCollector(file, *inline, check_s=check_s))
        return opened[-1]

    yield make
    for collector in opened:
        collector.close()


def test_targets_come_and_go_with_the_file_and_the_others_stay(tmp_path: Path, open_meters: Open) -> None:
    file = tmp_path / "targets.yaml"
    file.write_text("targets: [{name: a, watts: 1}, {name: b, watts: 2}]\n")
    collector = open_meters(file, Meter("inline", 9.0))
    assert collector.watts == {"inline": 9.0, "a": 1.0, "b": 2.0}
    kept = {sensor.device: sensor for sensor in collector.sensors}
    file.write_text("targets: [{name: b, watts: 22}, {name: c, watts: 3}, {name: inline2}]\n")
    assert collector.watts == {"inline": 9.0, "b": 22.0, "c": 3.0, "inline2": 100.0}
    assert next(sensor for sensor in collector.sensors if sensor.device == "inline") is kept["inline"]
    assert [meter.name for meter in collector.made] == ["inline", "a", "b", "b", "c", "inline2"]


def test_a_file_that_did_not_change_starts_nothing(tmp_path: Path, open_meters: Open) -> None:
    file = tmp_path / "targets.yaml"
    file.write_text("targets: [{name: a}]\n")
    collector = open_meters(file)
    sensors = collector.sensors
    for _ in range(5):
        collector.settle(10.0)
        sensors = collector.sensors
    assert collector.sensors is sensors
    assert len(collector.made) == 1


def test_a_file_that_becomes_invalid_keeps_the_targets_and_is_logged_once(
    tmp_path: Path, open_meters: Open, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "targets.yaml"
    file.write_text("targets: [{name: a}]\n")
    collector = open_meters(file)
    for broken in ("targets: [{name: a, wats: 5}]\n", "targets: [[[\n", "targets: [{name: a}, {name: a}]\n"):
        caplog.clear()
        file.write_text(broken)
        for _ in range(3):
            assert collector.watts == {"a": 100.0}
        (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert str(file) in record.getMessage()
        (finding,) = collector.findings
        assert (finding.status, finding.collector, finding.subject) == ("broken", "meters", str(file))
    assert len(collector.made) == 1
    file.write_text("targets: [{name: a}, {name: b}]\n")
    assert collector.watts.keys() == {"a", "b"}
    assert not collector.findings


def test_a_file_that_is_missing_for_a_moment_changes_nothing(tmp_path: Path, open_meters: Open) -> None:
    """An editor that writes a new file and renames it."""
    file = tmp_path / "targets.yaml"
    file.write_text("targets: [{name: a}]\n")
    collector = open_meters(file)
    file.unlink()
    assert collector.watts == {"a": 100.0}
    assert not collector.findings
    file.write_text("targets: []\n")
    assert collector.watts == {}


def test_an_invalid_file_at_the_start_is_an_error(tmp_path: Path, open_meters: Open) -> None:
    file = tmp_path / "targets.yaml"
    with pytest.raises(ConfigError, match="cannot be read"):
        open_meters(file)


def test_the_file_is_not_checked_in_each_scan(tmp_path: Path, open_meters: Open) -> None:
    file = tmp_path / "targets.yaml"
    file.write_text("targets: [{name: a}]\n")
    collector = open_meters(file, check_s=3600.0)
    file.write_text("targets: [{name: a}, {name: b}]\n")
    assert collector.watts.keys() == {"a"}


def test_a_closed_family_starts_nothing(tmp_path: Path, open_meters: Open) -> None:
    file = tmp_path / "targets.yaml"
    file.write_text("targets: [{name: a}]\n")
    collector = open_meters(file)
    collector.close()
    file.write_text("targets: [{name: b}]\n")
    _ = collector.sensors
    assert [meter.name for meter in collector.made] == ["a"]


def test_without_a_file_the_targets_never_change(open_meters: Open) -> None:
    assert open_meters(None, Meter("a", 5.0)).watts == {"a": 5.0}
