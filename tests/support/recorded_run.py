"""A real Prometheus that contains a real run, made once for all tests of the dashboards.

Two emulated machines, an exporter for each, a Prometheus that scrapes both, and a run of 34 s. Its windows, edges and
results pass through the real EdgeReader, Delivery, analysis and publish. Only the network under test is missing: its
windows contain no work. The fixture is in ``support.recorded_run_fixture``.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from joulewatch_harness.analysis.results.summary import analyze_run
from joulewatch_harness.analysis.sources.opening import open_source
from joulewatch_harness.cli import main
from joulewatch_harness.clients.exporter import ExporterClient
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.clients.prometheus import PrometheusClient
from joulewatch_harness.delivery.delivery import open_delivery
from joulewatch_harness.delivery.results import publish
from joulewatch_harness.records import (
    SCHEMA_VERSION,
    Configuration,
    Latency,
    PhaseTime,
    RunEnd,
    RunHeader,
    Window,
    WindowKind,
)
from joulewatch_harness.runner.edges import EdgeReader
from joulewatch_harness.storage.journal import Journal, new_run_id, read_run
from support.cgroups import FakeTree
from support.paths import ROOT
from support.servers import Emulator, ExporterServer, PrometheusServer
from support.waiting import wait_until

SCENARIOS: Final = ("a100-node", "epyc-7763-node")
NODE_SENSORS: Final = 5
"""IPMI and Redfish of each machine, and ACPI of the second one."""
SCRAPE_S: Final = 0.5
IDLE_S: Final = 2.0
WINDOW_S: Final = 2.0
SETTLE_S: Final = 0.5
ROUNDS: Final = 2
PHASES: Final = {"copy_in": 0.1, "execute": 0.8, "copy_out": 0.05}
PREDICTED: Final = ROOT / "tests" / "benchmarks" / "data" / "prediction" / "finn_rfsoc2x2_measured.csv"
"""FINN designs whose energies are predicted and published."""
# Inferences per second of an imaginary network: batch size, FP32, INT8.
THROUGHPUT: Final = ((1, 900, 1700), (16, 4800, 9400), (256, 21000, 46000))


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """Address and time (Unix seconds) of the run."""

    url: str
    run: str
    start_s: float
    end_s: float
    windows: int
    """Number of measure windows."""
    idle_windows: int
    inferences: int
    """Inferences in all measure windows."""


def configuration(precision: str) -> Configuration:
    return Configuration(
        name=f"radioml-vgg10/onnxruntime/{precision}",
        network="radioml-vgg10",
        runtime="onnxruntime",
        precision=precision,
        actual_precision=precision,
        provider="CPUExecutionProvider",
        runtime_version="1.20.0",
        model_sha256=hashlib.sha256(precision.encode()).hexdigest(),
    )


class Pretender:
    """Makes the windows of a run without a network, and hands them over as the runner does."""

    def __init__(self, folder: Path, prometheus: PrometheusServer, exporters: list[ExporterServer]) -> None:
        self.options = PrometheusOptions(url=prometheus.url)
        self.exporters = exporters
        self.run = new_run_id(time.time())
        self.folder = folder
        self.windows: list[Window] = []

    def perform(self) -> RunEnd:
        """Make the whole run: idle, all rounds, idle."""
        configurations = (configuration("fp32"), configuration("int8"))
        with EdgeReader([ExporterClient(server.url) for server in self.exporters]) as edges:
            result = [client.describe() for client in edges.clients]
            header = RunHeader(
                run=self.run,
                started_at_s=time.time(),
                schema=SCHEMA_VERSION,
                command=("joulewatch", "profile"),
                plan={},
                plan_sha256=hashlib.sha256(b"").hexdigest(),
                configurations=configurations,
                exporters=tuple(exporter for exporter, _ in result),
                sensors=tuple(sensor for _, sensors in result for sensor in sensors),
                provenance={
                    "host": "emulated",
                    "kernel": "6.1.0",
                    "cpu": {"model": "AMD EPYC 7763 64-Core Processor", "sockets": 2, "governor": "performance"},
                    "versions": {"joulewatch": "0.1.0"},
                },
            )
            with Journal.create(self.folder, header) as journal:
                self.journal = journal
                self.edges = edges
                self.delivery = open_delivery(self.options, folder=journal.folder)
                self.delivery.start(header)
                for item in configurations:
                    journal.append(item)
                    self.delivery.configuration(item)
                self.window("idle", IDLE_S)
                for repeat in range(ROUNDS):
                    for number, item in enumerate(configurations):
                        for batch_size, *rates in THROUGHPUT:
                            time.sleep(SETTLE_S)
                            self.window("measure", WINDOW_S, item, batch_size, repeat, rates[number])
                time.sleep(SETTLE_S)
                self.window("idle", IDLE_S)
                end = RunEnd(ended_at_s=time.time(), status="complete")
                journal.append(end)
                self.delivery.end(end)
                report = self.delivery.close()
        assert report.complete, report
        return end

    def window(
        self,
        kind: WindowKind,
        length_s: float,
        item: Configuration | None = None,
        batch_size: int = 0,
        repeat: int = 0,
        rate: float = 0.0,
    ) -> None:
        name = item.name if item is not None else ""
        start = self.edges.fetch()
        start_s, start_ns = time.time(), time.monotonic_ns()
        self.delivery.window_opened(kind, name, batch_size, start_s)
        time.sleep(length_s)
        duration_s = (time.monotonic_ns() - start_ns) / 1e9
        end = self.edges.fetch()
        batches = round(rate * duration_s / batch_size) if batch_size else 0
        latency_s = duration_s / batches if batches else 0.0
        window = Window(
            run=self.run,
            index=len(self.windows),
            kind=kind,
            start_s=start_s,
            end_s=start_s + duration_s,
            duration_s=duration_s,
            clock_error_s=1e-5,
            configuration=name,
            batch_size=batch_size,
            repeat=repeat,
            batches=batches,
            inferences=batches * batch_size,
            latency=Latency(
                count=batches,
                mean_s=latency_s,
                min_s=0.9 * latency_s,
                max_s=1.9 * latency_s,
                p50_s=latency_s,
                p90_s=1.2 * latency_s,
                p99_s=1.6 * latency_s,
            )
            if batches
            else None,
            phases={name: PhaseTime(batches, share * duration_s) for name, share in PHASES.items()} if batches else {},
            start_edge=start.parse(),
            end_edge=end.parse(),
        )
        self.windows.append(window)
        self.journal.append(window)
        self.delivery.window(window)

    def publish_results(self) -> None:
        record = read_run(self.journal.folder)
        source = open_source(prometheus=self.options)
        assert source is not None
        with closing(source):
            result = analyze_run(record, source)
        with PrometheusClient(self.options) as client:
            publish(result, client)


@contextmanager
def workloads_in(machine: Path) -> Iterator[None]:
    """Give an emulated machine two units, whose processor time goes on until the context ends."""
    tree = FakeTree(machine)
    done = threading.Event()
    began_s = time.monotonic()

    def run() -> None:
        while not done.wait(0.2):
            busy_s = time.monotonic() - began_s
            # Another test of this process may give up the rights of root for a moment.
            with suppress(PermissionError):
                # A parent before its children: it never has less than they have.
                tree.stat(busy_s)
                tree.use("", busy_s)
                tree.use("system.slice", 0.9 * busy_s)
                tree.use("system.slice/nginx.service", 0.6 * busy_s)
                tree.use("system.slice/postgresql.service", 0.3 * busy_s)

    thread = threading.Thread(target=run, name="workloads")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def recorded_run_in(folder: Path, program: str) -> Iterator[RecordedRun]:
    """Yield the run; its Prometheus (``program``) stops with the context."""
    with ExitStack() as stack:
        exporters = []
        for scenario in SCENARIOS:
            machine = Emulator(scenario)
            stack.callback(machine.remove)
            machine.start()
            stack.enter_context(workloads_in(machine.folder))
            exporter = ExporterServer(
                folder / f"{scenario}-exporter", f"--config.file={machine.folder / 'exporter.yaml'}"
            )
            stack.callback(exporter.stop)
            exporter.start()
            exporters.append(exporter)
        prometheus = PrometheusServer(
            program,
            folder / "prometheus",
            scrape_targets=[exporter.address for exporter in exporters],
            scrape_interval=f"{round(SCRAPE_S * 1000)}ms",
        )
        stack.callback(prometheus.stop)
        prometheus.start()
        # A new Prometheus waits some seconds for its service discovery, and a BMC appears after the first login.
        with PrometheusClient(PrometheusOptions(url=prometheus.url)) as client:
            deadline_s = time.monotonic() + 60
            while len(client.query('joulewatch_sensor_info{scope="node"}')) < NODE_SENSORS:
                assert time.monotonic() < deadline_s, "Prometheus has no data of all sensors"
                time.sleep(0.1)
        start_s = time.time()
        time.sleep(4 * SCRAPE_S)
        pretender = Pretender(folder / "runs", prometheus, exporters)
        pretender.perform()
        pretender.publish_results()
        words = ["predict", str(PREDICTED), "--device", "rfsoc2x2", "--prometheus", prometheus.url, "--publish"]
        assert main(words) == 0
        with PrometheusClient(PrometheusOptions(url=prometheus.url)) as client:
            # The first check of the sensors comes after 30 s with samples.
            wait_until(lambda: client.query("joulewatch_plausibility_ratio"), "a check of the sensors", limit_s=60)
        time.sleep(2 * SCRAPE_S)
        measured = [window for window in pretender.windows if window.kind == "measure"]
        yield RecordedRun(
            url=prometheus.url,
            run=pretender.run,
            start_s=start_s,
            end_s=time.time(),
            windows=len(measured),
            idle_windows=len(pretender.windows) - len(measured),
            inferences=sum(window.inferences for window in measured),
        )
