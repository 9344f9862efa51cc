"""Records of runs for unit tests."""

from __future__ import annotations

from typing import Any

from joulewatch_harness.records import (
    SCHEMA_VERSION,
    Configuration,
    Edge,
    EdgeClock,
    EdgeCounter,
    ExporterRecord,
    Latency,
    PhaseTime,
    RunHeader,
    Window,
)

RUN = "20261121T013005Z-1f9c3a"
NETWORK = Configuration(
    name="net/onnxruntime/fp32",
    network="net",
    runtime="onnxruntime",
    precision="fp32",
    actual_precision="fp32",
    provider="CPUExecutionProvider",
    runtime_version="1.20",
    model_sha256="ab" * 32,
)


def header(run: str = RUN, started_at_s: float = 1_700_000_000.25, **values: Any) -> RunHeader:
    """Return the header of a run."""
    settings: dict[str, Any] = {
        "command": ("joulewatch", "profile"),
        "plan": {"rounds": 3},
        "plan_sha256": "cd" * 32,
        "configurations": (NETWORK,),
        "exporters": (ExporterRecord(name="node1:10717", url="http://node1:10717/metrics"),),
        "sensors": (),
        "provenance": {},
        "schema": SCHEMA_VERSION,
    }
    return RunHeader(run=run, started_at_s=started_at_s, **{**settings, **values})


def edge(at_s: float, energy_joules: float) -> Edge:
    """Return an edge with two counters of one exporter, read just before ``at_s``."""
    sensors = (("package", "cpu", energy_joules), ("dram", "memory", energy_joules / 7))
    return Edge(
        requested_at_s=at_s - 0.002,
        answered_at_s=at_s - 0.0005,
        counters=tuple(
            EdgeCounter(
                exporter="node1:10717",
                scope="device",
                collector="rapl",
                component=component,
                device="socket0",
                domain=domain,
                energy_joules=joules,
                read_at_s=at_s - 0.001,
            )
            for domain, component, joules in sensors
        ),
        clocks=(EdgeClock("node1:10717", -0.0005, 0.001),),
    )


def window(index: int, start_s: float, duration_s: float = 1.0, *, run: str = RUN, **values: Any) -> Window:
    """Return a measure window with all its fields."""
    end_s = start_s + duration_s
    settings: dict[str, Any] = {
        "kind": "measure",
        "clock_error_s": 1.7e-7,
        "configuration": NETWORK.name,
        "batch_size": 8,
        "repeat": 1,
        "batches": 100,
        "inferences": 800,
        "latency": Latency(count=100, mean_s=0.01, min_s=0.009, max_s=0.02, p50_s=0.0101, p90_s=0.013, p99_s=0.0177),
        "phases": {"execute": PhaseTime(100, duration_s * 0.9)},
        "start_edge": edge(start_s, 1234.5678901 + index),
        "end_edge": edge(end_s + 0.003, 1300.1 + index),
        "flags": ("not_steady",),
    }
    return Window(run=run, index=index, start_s=start_s, end_s=end_s, duration_s=duration_s, **{**settings, **values})
