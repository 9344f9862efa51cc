"""Names of the workloads next to a run, from the metrics of an exporter."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from joulewatch_harness.clients.exporter import Scrape
from joulewatch_harness.errors import ExporterUnreachableError
from joulewatch_harness.records import ProcessorTime
from joulewatch_harness.runner.other_workloads import METRIC, OtherWorkloads
from joulewatch_harness.runner.processor_time import ProcessorReading

BUSY = ProcessorTime(busy_s=10.0, own_s=6.0, processors=4)


class Exporter:
    """Answers with the workloads' processor times, and counts the scrapes."""

    def __init__(self, workloads_s: Mapping[str, float] | None) -> None:
        self.workloads_s = workloads_s
        self.gpus: list[tuple[str, float]] = []
        self.scrapes = 0

    def scrape(self) -> Scrape:
        self.scrapes += 1
        if self.workloads_s is None:
            raise ExporterUnreachableError("gone")
        samples = [(f'{METRIC}{{kind="unit",workload="{name}"}}', value) for name, value in self.workloads_s.items()]
        return Scrape(0.0, 0.0, [("joulewatch_up", 1.0), *samples, *self.gpus])


class Processors:
    def __init__(self) -> None:
        self.own_s = 100.0

    def read(self) -> ProcessorReading:
        return ProcessorReading(at_ns=0, idle_s=0.0, counted_s=0.0, own_s=self.own_s, processors=4)


def others(exporter: Any, processors: Processors) -> OtherWorkloads:
    return OtherWorkloads(exporter, processors, "/user.slice/user-7.slice/session-3.scope")


def test_the_largest_three_are_named_without_the_run_and_its_exporter() -> None:
    processors = Processors()
    exporter = Exporter({"a": 1.0, "b": 5.0, "c": 0.0, "d": 0.0, "session-3.scope": 50.0, "joulewatch-exporter": 0.0})
    reader = others(exporter, processors)
    before = reader.read()
    exporter.workloads_s = {
        "a": 1.5, "b": 5.2, "c": 0.1, "new": 0.05, "d": 0.0, "session-3.scope": 56.3, "joulewatch-exporter": 9.0,
        "joulewatch-9-1.scope": 8.0,
    }  # fmt: skip
    processors.own_s = 106.0
    named = reader.largest(before, BUSY)
    assert list(named) == ["a", "session-3.scope", "b"], "another program in the session of the run is other work"
    assert [round(seconds, 6) for seconds in named.values()] == [0.5, 0.3, 0.2]


def test_nothing_is_read_after_a_window_without_other_work() -> None:
    exporter = Exporter({"a": 1.0})
    reader = others(exporter, Processors())
    before = reader.read()
    quiet = ProcessorTime(busy_s=10.0, own_s=9.96, processors=4)
    assert reader.largest(before, quiet) == reader.largest(before, None) == reader.largest(None, BUSY) == {}
    assert exporter.scrapes == 1


def test_an_exporter_without_attribution_is_read_once() -> None:
    exporter = Exporter({})
    reader = others(exporter, Processors())
    before = reader.read()
    assert reader.read() is None and exporter.scrapes == 1
    assert reader.largest(before, BUSY) == {}


def test_an_exporter_that_does_not_answer_costs_the_names_only() -> None:
    exporter = Exporter(None)
    reader = others(exporter, Processors())
    assert reader.read() is None
    exporter.workloads_s = {"a": 1.0}
    before = reader.read()
    exporter.workloads_s = None
    assert reader.largest(before, BUSY) == {}


def gpu(workload: str, seconds: float, held: float = 1.0) -> list[tuple[str, float]]:
    labels = f'{{device="GPU-1",kind="unit",workload="{workload}"}}'
    return [
        ('joulewatch_device_energy_joules_total{component="gpu",device="GPU-1"}', 1.0),
        (f"joulewatch_workload_gpu_seconds_total{labels}", seconds),
        (f"joulewatch_gpu_held{labels}", held),
    ]


def use_of_gpus(names: Sequence[str], first: Sequence[tuple[str, float]], last: Sequence[tuple[str, float]]) -> Any:
    exporter = Exporter(dict.fromkeys(names, 1.0))
    reader = others(exporter, Processors())
    exporter.gpus = list(first)
    before = reader.read()
    assert before is not None
    exporter.gpus = list(last)
    return reader.gpus(dataclasses.replace(before, at_s=before.at_s - 100.0))


def test_other_holders_of_a_gpu_and_their_use() -> None:
    own = "joulewatch-9-1"
    first = [*gpu(own, 50.0), *gpu("train.service", 7.0), *gpu("idle.service", 2.0)]
    last = [*gpu(own, 90.0), *gpu("train.service", 17.0), *gpu("idle.service", 2.0, held=0.0)]
    conditions = use_of_gpus(["session-3.scope"], first, last)
    assert conditions == {"gpu_others/GPU-1": 2, "gpu_others_share/GPU-1": pytest.approx(0.1, rel=0.01)}
    assert use_of_gpus(["session-3.scope"], gpu(own, 1.0), gpu(own, 9.0)) == {}


def test_the_use_of_a_gpu_is_not_negative_after_a_restart_of_the_exporter() -> None:
    own = "joulewatch-9-1"
    conditions = use_of_gpus(["session-3.scope"], [*gpu(own, 50.0), *gpu("a", 700.0)], [*gpu(own, 2.0), *gpu("a", 5.0)])
    assert conditions["gpu_others_share/GPU-1"] == pytest.approx(0.05, rel=0.01)


def test_use_of_gpus_is_not_known_where_names_are_hashed() -> None:
    """The exporter's unit always has its name."""
    hashed = [*gpu("3f9a", 1.0), *gpu("77cc", 1.0)]
    assert use_of_gpus(["joulewatch-exporter.service", "3f9a"], hashed, hashed) == {}


def test_without_gpus_nothing_more_is_read() -> None:
    exporter = Exporter({"session-3.scope": 1.0})
    reader = others(exporter, Processors())
    assert reader.gpus(reader.read()) == reader.gpus(None) == {}
    assert exporter.scrapes == 1
