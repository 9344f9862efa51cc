"""A synthetic run with known true energies: sensors, windows, edges, scrapes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from joulewatch_exporter import catalog
from joulewatch_harness.analysis.sources.history import History, RawSeries, RunSummary, build_history
from joulewatch_harness.clients.exporter import ExporterClient, Scrape
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.clients.prometheus import PrometheusClient
from joulewatch_harness.delivery.annotations import Sample, by_series
from joulewatch_harness.delivery.remote_write import send_samples
from joulewatch_harness.delivery.sinks import run_items
from joulewatch_harness.errors import QueryError
from joulewatch_harness.records import (
    CalibrationRecord,
    Configuration,
    Edge,
    EdgeClock,
    EdgeCounter,
    ExporterRecord,
    Latency,
    RunEnd,
    RunHeader,
    RunRecord,
    SensorRecord,
    Window,
)
from joulewatch_harness.storage.recording import RecordingWriter

EXPORTER = "127.0.0.1:10717"
T0 = 1_790_000_000.0
RUN = "20260921T141320Z-0a1b2c"


@dataclass(frozen=True)
class Signal:
    """Power that is constant between steps, so that its integral is exact."""

    times_s: tuple[float, ...]
    """Start of each step; before the first step the power is ``watts[0]``."""
    watts: tuple[float, ...]

    @functools.cached_property
    def _steps(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Start, power and energy up to the start of each step."""
        times, watts = np.asarray(self.times_s), np.asarray(self.watts)
        return times, watts, np.concatenate(([0.0], np.cumsum(np.diff(times) * watts[:-1])))

    def energy_joules(self, at_s: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the joules from the first step to ``at_s``; negative before it."""
        times, watts, sums = self._steps
        at = np.asarray(at_s, dtype=np.float64)
        index = np.clip(np.searchsorted(times, at, side="right") - 1, 0, len(times) - 1)
        return np.asarray(sums[index] + (at - times[index]) * watts[index])

    def counter_joules(self, at_s: float | NDArray[np.float64], refresh_s: float) -> NDArray[np.float64]:
        """Return the value of a sensor with this refresh period."""
        at = np.asarray(at_s, dtype=np.float64)
        if refresh_s > 0:
            at = T0 + np.floor((at - T0) / refresh_s) * refresh_s
        return self.energy_joules(at)


@dataclass
class World:
    """Sensors with their signals, and a run over some configurations."""

    sensors: dict[SensorRecord, Signal] = field(default_factory=dict)
    record: RunRecord | None = None
    scrape_s: float = 0.2
    read_delay_s: float = 0.0013
    base_joules: float = 1000.0
    start_s: float = T0
    end_s: float = T0

    def truth_joules(self, sensor: SensorRecord, window: Window) -> float:
        signal = self.sensors[sensor]
        return float(signal.energy_joules(window.start_s + window.duration_s) - signal.energy_joules(window.start_s))

    def scrapes(self, *, instance: str = EXPORTER) -> list[RawSeries]:
        """Return the samples that a Prometheus would store: sample times on a grid of milliseconds."""
        times = np.round(np.arange(self.start_s, self.end_s + 2.0, self.scrape_s) * 1000) / 1000
        reads = times + self.read_delay_s
        result = [
            RawSeries(
                name=catalog.EXPORTER_START.name,
                labels={"instance": instance},
                times_s=times,
                values=np.full(times.shape, self.start_s - 100),
            ),
            RawSeries(
                name=catalog.EXPORTER_INFO.name,
                labels={"instance": instance, "nodename": "node1", "version": "0", "emulated": "0"},
                times_s=times,
                values=np.ones(times.shape),
            ),
        ]
        devices = set()
        for item, signal in self.sensors.items():
            labels = {
                "instance": instance,
                "collector": item.collector,
                "component": item.component,
                "device": item.device,
                "domain": item.domain,
            }
            counter = self.base_joules + signal.counter_joules(reads, item.refresh_s or 0.0)
            result.append(
                RawSeries(name=catalog.ENERGY_BY_SCOPE[item.scope].name, labels=labels, times_s=times, values=counter)
            )
            info = {
                "scope": item.scope,
                "method": item.method,
                "reads": item.reads,
                "model": item.model,
                "source": item.source,
                "resolution": item.resolution,
                "accuracy": "" if item.accuracy is None else f"{item.accuracy:g}",
                "primary": {True: "1", False: "0", None: ""}[item.primary],
                "host": item.host,
            }
            ones = np.ones(times.shape)
            named = {**labels, **{key: value for key, value in info.items() if value}}
            result.append(RawSeries(name=catalog.SENSOR_INFO.name, labels=named, times_s=times, values=ones))
            if item.refresh_s is not None:
                result.append(
                    RawSeries(
                        name=catalog.SENSOR_REFRESH.name, labels=labels, times_s=times, values=item.refresh_s * ones
                    )
                )
            if item.calibration is not None:
                result += _calibration(item.calibration, labels, times)
            device = {"instance": instance, "collector": item.collector, "device": item.device}
            if (item.collector, item.device) not in devices:
                devices.add((item.collector, item.device))
                result.append(RawSeries(name=catalog.READ_TIMESTAMP.name, labels=device, times_s=times, values=reads))
        return result


def _calibration(one: CalibrationRecord, labels: dict[str, str], times: NDArray[np.float64]) -> list[RawSeries]:
    """Return the series of a calibration, as an exporter publishes it."""
    accuracy = "" if one.reference_accuracy is None else repr(one.reference_accuracy)
    texts = {"reference": one.reference, "reference_accuracy": accuracy, "date": one.date}
    ones = np.ones(times.shape)
    name = catalog.SENSOR_CALIBRATION_INFO.name
    return [
        RawSeries(name=name, labels={**labels, **texts}, times_s=times, values=ones),
        *(
            RawSeries(
                name=catalog.SENSOR_CALIBRATION.name,
                labels={**labels, "parameter": parameter},
                times_s=times,
                values=getattr(one, parameter) * ones,
            )
            for parameter in catalog.CALIBRATION_PARAMETERS
        ),
    ]


def sensor(device: str, domain: str, component: str = "cpu", scope: str = "device", **more: object) -> SensorRecord:
    """Return the record of a sensor, with defaults."""
    values = {"collector": "rapl", "method": "counter", "reads": "energy", "refresh_s": 0.001, **more}
    return SensorRecord(exporter=EXPORTER, scope=scope, component=component, device=device, domain=domain, **values)  # type: ignore[arg-type]


Power = Callable[[SensorRecord, str, int], float]
"""(sensor, configuration or "idle", batch size) -> watts."""


def default_power(item: SensorRecord, configuration: str, batch_size: int) -> float:
    share = {"cpu": 1.0, "memory": 0.2, "node": 3.0}.get(item.component, 0.5)
    if item.scope == "part":
        share *= 0.6
    load = 40.0 if configuration == "idle" else 150.0 + 10.0 * np.log2(batch_size)
    return float(share * load)


def make_world(
    sensors: Iterable[SensorRecord],
    *,
    configurations: Sequence[str] = ("net/onnxruntime/fp32", "net/onnxruntime/int8"),
    batch_sizes: Sequence[int] = (1, 8, 64),
    rounds: int = 3,
    window_s: float = 2.0,
    idle_s: float = 3.0,
    settle_s: float = 0.5,
    slack_s: float = 0.001,
    scrape_s: float = 0.2,
    power: Power = default_power,
    edges: bool = True,
    noise: float = 0.0,
    seed: int = 0,
    loaded_idle: bool = True,
    run: str = RUN,
    start_s: float = T0,
) -> World:
    """Make a run: idle, rounds over all configurations and batch sizes, idle; the load settles around windows."""
    random = np.random.default_rng(seed)
    items = list(sensors)
    steps: list[tuple[float, str, int, float]] = [(start_s, "idle", 0, 1.0)]
    spans: list[tuple[str, str, int, int, float, float, tuple[str, ...]]] = []
    at = start_s + 2.0

    def idle(configuration: str, flags: tuple[str, ...]) -> None:
        nonlocal at
        steps.append((at, "idle", 0, 1.0))
        # Idle settles as well, as in the runner: no step of power is within a scrape of an edge.
        spans.append(("idle", configuration, 0, 0, at + settle_s, at + settle_s + idle_s, flags))
        at += idle_s + 2 * settle_s

    idle("", ())
    if loaded_idle:
        for name in configurations:
            idle(name, ("loaded",))
    for number in range(rounds):
        for name in configurations:
            for batch_size in batch_sizes:
                steps.append((at, name, batch_size, 1.0 + noise * float(random.standard_normal())))
                start = at + settle_s
                spans.append(("measure", name, batch_size, number, start, start + window_s, ()))
                at = start + window_s + settle_s
    idle("", ())
    signals = {
        item: Signal(tuple(step[0] for step in steps), tuple(power(item, name, size) * f for _, name, size, f in steps))
        for item in items
    }
    world = World(signals, scrape_s=scrape_s, start_s=start_s, end_s=at)
    windows = []
    for index, (kind, name, batch_size, number, start, end, flags) in enumerate(spans):
        # Rates differ between networks and grow with the batch size; all batches are whole.
        rate = (900.0 if name.endswith("fp32") else 2100.0) * batch_size**0.5
        batches = int(rate * (end - start) / batch_size) if batch_size else 0
        latency = (end - start) / batches if batches else 0.0
        windows.append(
            Window(
                run=run,
                index=index,
                kind=kind,  # type: ignore[arg-type]
                start_s=start,
                end_s=end,
                duration_s=end - start,
                clock_error_s=0.0,
                configuration=name,
                phase="",
                batch_size=batch_size,
                repeat=number,
                batches=batches,
                inferences=batches * batch_size,
                latency=Latency(
                    count=batches,
                    mean_s=latency,
                    min_s=0.8 * latency,
                    max_s=3 * latency,
                    p50_s=latency,
                    p90_s=1.2 * latency,
                    p99_s=1.9 * latency,
                )
                if batches
                else None,
                phases={},
                start_edge=_edge(world, items, start - slack_s) if edges else None,
                end_edge=_edge(world, items, end + slack_s) if edges else None,
                flags=flags,
            )
        )
    loaded = tuple(
        Configuration(
            name=name,
            network=network,
            runtime=runtime,
            precision=precision,
            actual_precision=precision,
            provider="CPU",
        )
        for name in configurations
        for network, runtime, precision in [name.split("/")]
    )
    header = RunHeader(
        run=run,
        started_at_s=start_s,
        schema=1,
        command=("joulewatch", "profile"),
        plan={"batch_sizes": list(batch_sizes)},
        plan_sha256="0" * 64,
        configurations=loaded,
        exporters=(ExporterRecord(name=EXPORTER, url=f"http://{EXPORTER}", nodename="node1", version="0.1.0"),),
        sensors=tuple(items),
        provenance={
            "host": "node1",
            "kernel": "6.1.0",
            "cpu": {"model": "AMD EPYC 7763", "sockets": 2, "governor": "performance"},
        },
    )
    world.record = RunRecord(
        header=header, configurations=loaded, windows=tuple(windows), notes=(), end=RunEnd(at, "complete")
    )
    return world


def _edge(world: World, items: Sequence[SensorRecord], at_s: float) -> Edge:
    counters = tuple(
        EdgeCounter(
            exporter=item.exporter,
            scope=item.scope,
            collector=item.collector,
            component=item.component,
            device=item.device,
            domain=item.domain,
            energy_joules=world.base_joules + float(world.sensors[item].counter_joules(at_s, item.refresh_s or 0.0)),
            read_at_s=at_s,
        )
        for item in items
    )
    return Edge(
        requested_at_s=at_s - 0.0004,
        answered_at_s=at_s + 0.0004,
        counters=counters,
        clocks=(EdgeClock(EXPORTER, -0.0004, 0.0004),),
    )


class ListSource:
    """A source with raw samples in memory."""

    def __init__(self, samples: Sequence[RawSeries], record: RunRecord | None = None) -> None:
        self.samples = samples
        self.record = record

    def describe(self) -> str:
        return "memory"

    def close(self) -> None: ...

    def runs(self, start_s: float, end_s: float) -> tuple[RunSummary, ...]:
        return ()

    def run(self, run: str) -> RunRecord:
        if self.record is None:
            raise QueryError(f"unknown run {run!r}")
        return self.record

    def history(
        self,
        spans: Sequence[tuple[float, float]],
        exporters: Sequence[ExporterRecord] | None = None,
        *,
        power: bool = False,
    ) -> History:
        return build_history("memory", self.samples)


def without_edges(record: RunRecord) -> RunRecord:
    """Return the run without readings at the edges."""
    return dataclasses.replace(
        record,
        windows=tuple(dataclasses.replace(window, start_edge=None, end_edge=None) for window in record.windows),
    )


TWO_SOCKETS = (
    sensor("socket0", "package"),
    sensor("socket1", "package"),
    sensor("socket0", "dram", "memory"),
    sensor("socket1", "dram", "memory"),
    sensor("socket0", "core", "cpu", "part"),
    sensor("psys", "total", "node", "node"),
)


def raw_of(samples: Iterable[Sample]) -> list[RawSeries]:
    """Return annotations as a Prometheus returns them."""
    return [
        RawSeries(
            name=name,
            labels=dict(labels),
            times_s=np.array([item.at_ms / 1000 for item in result]),
            values=np.array([item.value for item in result]),
        )
        for (name, labels), result in by_series(samples).items()
    ]


def run_samples(record: RunRecord) -> list[Sample]:
    """Return all samples that a run delivers."""
    return [sample for item in run_items(record) for sample in (*item.samples, *item.info)]


def scrape_samples(world: World, **more: str) -> list[Sample]:
    """Return the scrapes as samples of remote write, with the labels that a scrape job adds."""
    return samples_of(world.scrapes(), **more)


def samples_of(raws: Iterable[RawSeries], **more: str) -> list[Sample]:
    """Return series as samples of remote write, with the labels that a scrape job adds."""
    return [
        Sample(
            name=raw.name,
            labels=tuple(sorted({**raw.labels, "job": "joulewatch", **more}.items())),
            at_ms=round(t * 1000),
            value=float(value),
        )
        for raw in raws
        for t, value in zip(raw.times_s, raw.values, strict=True)
    ]


def write_recording(world: World, path: Path, samples: Sequence[RawSeries] | None = None) -> None:
    """Write the recording of the local mode; ``samples`` replace those of the world."""
    assert world.record is not None
    record = world.record
    scrapes: dict[float, list[tuple[str, float]]] = {}
    for raw in world.scrapes() if samples is None else samples:
        labels = ",".join(f'{key}="{value}"' for key, value in sorted(raw.labels.items()) if key != "instance")
        key = f"{raw.name}{{{labels}}}" if labels else raw.name
        for t, value in zip(raw.times_s, raw.values, strict=True):
            scrapes.setdefault(float(t), []).append((key, float(value)))
    client = ExporterClient(f"http://{EXPORTER}", name=EXPORTER)
    writer = RecordingWriter.create(path, record.header)
    try:
        for at_s, samples in sorted(scrapes.items()):
            writer.add_scrape(client, Scrape(at_s, at_s + 0.002, samples))
        for line in (*record.configurations, *record.windows, *record.notes, record.end):
            if line is not None:
                writer.add_line(line)
    finally:
        writer.close()
        client.close()


def send_world(server: str | PrometheusOptions, world: World, **labels: str) -> None:
    """Write the scrapes and annotations to a real Prometheus, in order of time."""
    assert world.record is not None
    samples = [*scrape_samples(world, **labels), *run_samples(world.record)]
    samples.sort(key=lambda item: item.at_ms)
    with PrometheusClient(PrometheusOptions(server) if isinstance(server, str) else server) as client:
        for first in range(0, len(samples), 20_000):
            send_samples(client, samples[first : first + 20_000])
