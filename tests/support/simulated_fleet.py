"""A Prometheus with three hours of the recorded series of 1,000 servers, back-filled.

Only what the recording rules write is simulated, because the dashboards Fleet and LLM serving read nothing else. Of the
servers, 40 have sensors in trouble, one in ten has no node sensor, and six serve language models.
"""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import requests

from support import dashboards, simulated_llm
from support.dashboards import Query
from support.servers import PrometheusServer

SERVERS: Final = 1000
CLUSTERS: Final = ("cpu", "gpu", "storage", "test")
SHARES: Final = {"cpu": 0.45, "gpu": 0.25, "memory": 0.1}
WORKLOADS: Final = 50
"""Workloads of a cluster, as many as the recording rules keep."""
REASONS: Final = {"idle": 0.3, "rest": 0.06, "system": 0.03, "gap": 0.01}
IN_TROUBLE: Final = 70
SPAN_S: Final = 3 * 3600
STEP_S: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Address and time (Unix seconds) of the simulated series, and the sum of the servers' power at the end."""

    url: str
    start_s: float
    end_s: float
    watts: float

    def execute(self, query: Query, *, steps: int, **variables: str) -> list[dict[str, Any]]:
        """Run a query as Grafana does when the dashboard opens.

        Args:
            query: Of a panel.
            steps: Points of a range.
            variables: Values of the dashboard's variables.
        """
        span_s = self.end_s - self.start_s
        values = {"__range": f"{round(span_s)}s", "__rate_interval": "60s", "cluster": ".*", **variables}
        parameters: dict[str, object] = {"query": dashboards.substitute(query.expr, values), "time": self.end_s}
        path = "query"
        if query.kind == "range":
            path = "query_range"
            parameters |= {"start": self.start_s, "end": self.end_s, "step": span_s / steps}
        body = requests.post(f"{self.url}/api/v1/{path}", data=parameters, timeout=60).json()
        assert body["status"] == "success", body
        return list(body["data"]["result"])


def watts_of(server: int, at_s: float) -> float:
    """Return the power of a server: larger ones have larger numbers, with the load of a day."""
    return 200 + server + 50 * math.sin(at_s / 1800 + server)


def cluster_of(server: int) -> str:
    return CLUSTERS[server % len(CLUSTERS)]


def write_series(path: Path, times_s: list[int]) -> None:
    """Write all series as OpenMetrics text, each with its samples in ascending order."""
    power: dict[str, list[float]] = {name: [0.0] * len(times_s) for name in CLUSTERS}
    with path.open("w", encoding="utf-8") as file:

        def write(metric: str, labels: str, values: Sequence[float]) -> None:
            file.writelines(
                f"{metric}{{{labels}}} {value:.6g} {at}\n" for value, at in zip(values, times_s, strict=True)
            )

        hosts = [f'cluster="{cluster_of(number)}",host="node{number:04}"' for number in range(SERVERS)]
        file.write("# TYPE host:joulewatch_host_energy_joules:rate5m gauge\n")
        for number, labels in enumerate(hosts):
            values = [watts_of(number, at) for at in times_s]
            power[cluster_of(number)] = [a + b for a, b in zip(power[cluster_of(number)], values, strict=True)]
            write("host:joulewatch_host_energy_joules:rate5m", labels, values)
        file.write("# TYPE host:joulewatch_host_energy_kwh:increase1d gauge\n")
        for number, labels in enumerate(hosts):
            write("host:joulewatch_host_energy_kwh:increase1d", labels, [0.024 * (200 + number)] * len(times_s))
        count = SERVERS / len(CLUSTERS)
        for metric, factor in (
            ("cluster:joulewatch_host_energy_joules:rate5m", 1.0),
            ("cluster:joulewatch_host_energy_kwh:increase1h", 1e-3),
            ("cluster:joulewatch_host_energy_kwh:increase1d", 24e-3),
        ):
            file.write(f"# TYPE {metric} gauge\n")
            for name in CLUSTERS:
                write(metric, f'cluster="{name}"', [factor * watts for watts in power[name]])
        for metric, value in (
            ("cluster:joulewatch_host_energy_joules:count", count),
            ("cluster:joulewatch_node_energy_joules:count", 0.9 * count),
            ("cluster:joulewatch_sensor_unmeasured_seconds:rate5m", 0.0004),
        ):
            file.write(f"# TYPE {metric} gauge\n")
            for name in CLUSTERS:
                write(metric, f'cluster="{name}"', [value] * len(times_s))
        file.write("# TYPE cluster_component:joulewatch_device_energy_joules:rate5m gauge\n")
        for name in CLUSTERS:
            for component, share in SHARES.items():
                labels = f'cluster="{name}",component="{component}"'
                values = [share * watts for watts in power[name]]
                write("cluster_component:joulewatch_device_energy_joules:rate5m", labels, values)
        write_workloads(write, power)
        for metric, servers in (
            ("instance:joulewatch_sensor_up:count_down", range(IN_TROUBLE)),
            ("instance:joulewatch_sensor_implausible:count", range(IN_TROUBLE - 5, IN_TROUBLE + 5)),
        ):
            file.write(f"# TYPE {metric} gauge\n")
            for number in servers:
                labels = f'cluster="{cluster_of(number)}",job="joulewatch",instance="node{number:04}:10717"'
                write(metric, labels, [1 + number % 3] * len(times_s))
        for metric, series in simulated_llm.series(times_s).items():
            file.write(f"# TYPE {metric} gauge\n")
            for labels, values in series:
                write(metric, labels, values)
        file.write("# EOF\n")


def write_workloads(write: Callable[[str, str, Sequence[float]], None], power: Mapping[str, Sequence[float]]) -> None:
    """Write the workloads of all clusters: the n-th largest has the n-th part of a quarter of the power."""
    for metric, hours, factor in (
        ("cluster_kind_workload:joulewatch_workload_energy_joules:rate5m", 1.0, 1.0),
        ("cluster_kind_workload:joulewatch_workload_energy_joules:increase1h", 3600.0, 1.0),
        ("cluster_kind_workload:joulewatch_workload_energy_joules:lower_increase1h", 3600.0, 0.6),
        ("cluster_kind_workload:joulewatch_workload_energy_joules:upper_increase1h", 3600.0, 1.5),
    ):
        for cluster in CLUSTERS:
            for number in range(1, WORKLOADS + 1):
                kind, name = ("pod", "prod/web") if number % 3 else ("slurm_job", "40")
                labels = f'cluster="{cluster}",kind="{kind}",workload="{name}{number}"'
                write(metric, labels, [hours * factor * watts / (16 * number) for watts in power[cluster]])
    for cluster in CLUSTERS:
        labels = f'cluster="{cluster}"'
        write("cluster:joulewatch_workload_energy_joules:rate5m", labels, [0.4 * watts for watts in power[cluster]])
        for reason, share in REASONS.items():
            values = [share * watts for watts in power[cluster]]
            write("cluster_reason:joulewatch_unattributed_energy_joules:rate5m", f'{labels},reason="{reason}"', values)


@contextmanager
def simulated_fleet_in(folder: Path, prometheus: str, promtool: str) -> Iterator[Fleet]:
    """Yield the fleet; its Prometheus stops with the context."""
    end_s = int(time.time()) // STEP_S * STEP_S
    times_s = list(range(end_s - SPAN_S, end_s + 1, STEP_S))
    text = folder / "series.om"
    write_series(text, times_s)
    data = folder / "prometheus" / "data"
    data.mkdir(parents=True)
    subprocess.run(
        [promtool, "tsdb", "create-blocks-from", "openmetrics", str(text), str(data)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    text.unlink()
    server = PrometheusServer(prometheus, folder / "prometheus")
    server.start()
    try:
        watts = sum(watts_of(number, end_s) for number in range(SERVERS))
        yield Fleet(url=server.url, start_s=end_s - SPAN_S, end_s=end_s, watts=watts)
    finally:
        server.stop()
