"""Sensors and samples of other exporters, before and after a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import responses

from joulewatch_harness.analysis.sources.history import History, RawSeries
from joulewatch_harness.analysis.sources.series import SensorId, Series
from joulewatch_harness.cli import main
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.runner import other_exporters
from joulewatch_harness.runner.other_exporters import check_sources, wait_for_samples
from support.fake_prometheus import URL, FakePrometheus


def raw(instance: str) -> RawSeries:
    times_s = np.arange(time.time() - 100, time.time(), 5.0)
    labels = {"instance": instance, "index": "0"}
    return RawSeries(
        name="node_rapl_package_joules_total", labels=labels, times_s=times_s, values=150 * (times_s - times_s[0])
    )


@pytest.fixture
def mocked() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield mock


def test_the_sensors_are_those_that_have_samples(mocked: responses.RequestsMock) -> None:
    FakePrometheus([raw("node1:9100")]).install(mocked)
    exporters, (sensor,) = check_sources(["node_exporter", "dcgm"], PrometheusOptions(URL))
    assert [(exporter.name, exporter.nodename) for exporter in exporters] == [("node1:9100", "node1")]
    assert (sensor.component, sensor.refresh_s) == ("cpu", pytest.approx(5.0)), "the time between its samples"


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        ((), r"node_exporter\) has no samples of the last minutes"),
        (("node1:9100", "node2:9100"), r"those of 2 machines \(node1, node2\).*--match instance=node1:9100"),
    ],
)
def test_no_machine_or_two(instances: tuple[str, ...], message: str, mocked: responses.RequestsMock) -> None:
    FakePrometheus([raw(instance) for instance in instances]).install(mocked)
    with pytest.raises(ConfigError, match=message):
        check_sources(["node_exporter"], PrometheusOptions(URL))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--source needs --prometheus URL"),
        ((f"--prometheus={URL}", "--exporter=http://node1:10717"), "--exporter reads joulewatch's exporter: add"),
    ],
)
def test_wrong_flags_are_one_line_and_code_2(
    words: tuple[str, ...],
    message: str,
    mocked: responses.RequestsMock,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    FakePrometheus([]).install(mocked)
    assert main(["profile", "--source=node_exporter", f"--output={tmp_path}", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


class Growing:
    """A source that has one sample more at each look."""

    def __init__(self) -> None:
        self.looks = 0

    def history(self, spans: object) -> History:
        self.looks += 1
        sensor = SensorId(
            exporter="node1:9100",
            scope="device",
            collector="node_exporter",
            component="cpu",
            device="socket0",
            domain="package",
        )
        times_s = np.arange(100.0, 100.0 + self.looks)
        return History(source="", counters={sensor: Series(times_s, times_s)})


def test_samples_behind_the_last_window_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_exporters, "_POLL_S", 0.0)
    source = Growing()
    wait_for_samples(source, 104.5, [])  # type: ignore[arg-type]
    assert source.looks == 6, "its samples are those of 100 to 105 s then"
