"""The cluster of the demo: eight emulated nodes with CPUs, GPUs, FPGAs and BMCs, their exporters, and a Prometheus."""

from __future__ import annotations

import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import yaml

from support.paths import ROOT
from support.servers import EXPORTER, Emulator, ExporterServer, PrometheusServer

CLUSTER: Final = "demo"
PROGRAM: Final = (sys.executable, str(ROOT / "tests" / "support" / "demo_node.py"))
NODES: Final[Mapping[str, str]] = {
    "cpu1": "epyc-7763-node-load",
    "cpu2": "epyc-7763-node-load",
    "gpu1": "a100-node",
    "fpga1": "u280-node",
    "cpu3": "epyc-7763-node",
    "gpu2": "a100-node",
    "gpu3": "mi300x-node",
    "fpga2": "u280-node",
}
"""Node -> scenario."""
FOLLOWING: Final = ("cpu2", "gpu1", "fpga1")
"""Nodes whose power follows the doubles of ``support.doubles``."""
BACKGROUND: Final = ("cpu3", "gpu2", "gpu3", "fpga2")
"""Nodes that nobody measures; they change slowly, which leaves more of this machine to the others."""
BACKGROUND_REFRESH_S: Final = 0.1
SIGNALS: Final[Mapping[str, Mapping[str, Any]]] = {
    "a100-node": {
        "gpu0": {"kind": "cpu_load", "idle_watts": 55, "full_watts": 390},
        "socket0": {"kind": "cpu_load", "idle_watts": 90, "full_watts": 125},
        "socket1": 92,
        **dict.fromkeys(("gpu1", "gpu2", "gpu3"), 0),
    },
    "u280-node": {
        "load": {"kind": "cpu_load", "idle_watts": 25, "full_watts": 64},
        # A card whose power never changes has no refresh period that the exporter could measure.
        "card0": {
            "kind": "sum",
            "of": ["load", {"kind": "sine", "mean_watts": 1, "amplitude_watts": 1, "period_s": 9}],
        },
        "socket0": {"kind": "cpu_load", "idle_watts": 85, "full_watts": 140},
        "socket1": 86,
        **dict.fromkeys(("card1", "card2"), 0),
    },
}
"""Scenario -> the signals that follow the doubles; one card instead of several, as in the paper."""
EVALUATION: Final = "5s"
SETTLING_READS: Final = 20
SETTLING_S: Final = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One emulated node."""

    name: str
    machine: Emulator
    exporter: ExporterServer
    load: Path
    """The file of its load, if it follows the doubles."""

    @property
    def instance(self) -> str:
        """Its label ``instance`` in Prometheus."""
        return f"{self.name}:10717"

    def exporters(self) -> list[dict[str, str]]:
        """Return the key ``exporters`` of a plan that measures this node."""
        return [{"url": self.exporter.url, "name": self.instance}]


@contextmanager
def cluster(folder: Path, prometheus: str) -> Iterator[tuple[dict[str, Node], PrometheusServer]]:
    """Start the cluster and a Prometheus (path of the program) that scrapes it; stop them at the end."""
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        nodes = {name: _node(folder, name) for name in NODES}
        for node in nodes.values():
            stack.callback(node.machine.remove)
            stack.callback(node.exporter.stop)
        # An exporter measures at its start how often its sensors change; by then, the emulators must be on time.
        list(pool.map(lambda node: node.machine.start(), nodes.values()))
        list(pool.map(lambda node: node.exporter.start(), nodes.values()))
        list(pool.map(_settle, (node for name, node in nodes.items() if name not in BACKGROUND)))
        targets = [(node.exporter.address, {"cluster": CLUSTER, "instance": node.instance}) for node in nodes.values()]
        server = PrometheusServer(
            prometheus,
            folder / "prometheus",
            scrape_jobs={"nodes": targets},
            rule_files=[_rules(folder)],
            evaluation_interval=EVALUATION,
        )
        stack.callback(server.stop)
        server.start()
        yield nodes, server


def _settle(node: Node) -> None:
    """Read the exporter often: if a counter changes between two reads, its refresh period is not longer than that."""
    for _ in range(SETTLING_READS):
        with urllib.request.urlopen(f"{node.exporter.url}/metrics", timeout=10) as response:
            response.read()
        time.sleep(SETTLING_S)


def _node(folder: Path, name: str) -> Node:
    load = folder / f"{name}.load"
    program = (*PROGRAM, "emulate", str(load)) if name in FOLLOWING else (*EXPORTER, "emulate")
    machine = Emulator(_scenario(folder, name), program)
    config = f"--config.file={machine.folder / 'exporter.yaml'}"
    exporter = ExporterServer(folder / name, config, program=(*PROGRAM, "exporter", name))
    return Node(name=name, machine=machine, exporter=exporter, load=load)


def _scenario(folder: Path, node: str) -> str:
    """Return the scenario of a node: a built-in one, or a changed copy of it."""
    name = NODES[node]
    source = resources.files("joulewatch_exporter.emulator").joinpath("scenarios", f"{name}.yaml")
    scenario = yaml.safe_load(source.read_text("utf-8"))
    if node in FOLLOWING and name in SIGNALS:
        # A signal refers to those above it.
        others = {key: value for key, value in scenario["signals"].items() if key not in SIGNALS[name]}
        scenario["signals"] = {**SIGNALS[name], **others}
        for cards in {"gpus", "fpgas"} & set(scenario):
            scenario[cards] = scenario[cards][:1]
    elif node in BACKGROUND:
        scenario["refresh_s"] = BACKGROUND_REFRESH_S
    else:
        return name
    path = folder / f"{node}.yaml"
    path.write_text(yaml.safe_dump(scenario, sort_keys=False), "utf-8")
    return str(path)


def _rules(folder: Path) -> Path:
    """Return the recording rules over one minute instead of five, because the cluster is only some minutes old."""
    text = (ROOT / "dashboards" / "rules" / "joulewatch.rules.yaml").read_text("utf-8")
    path = folder / "rules.yaml"
    path.write_text(text.replace("[5m]", "[1m]").replace("/ 300", "/ 60"), "utf-8")
    return path
