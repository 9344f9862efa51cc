"""Real processes in real cgroups on an emulated machine: a steady one, a storm of short ones, short containers.

The emulator follows the processor time of each cgroup, so the true energy of each is known. The exporter reads the same
cgroups as those of its machine.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from support.cgroups import RealTree
from support.servers import Emulator

Kind = Literal["steady", "forks", "containers"]

IDLE_WATTS = 10.0
KEY = "socket0/package"
_PROGRAM = """
import os, sys, time

kind, folder, busy = sys.argv[1], sys.argv[2], float(sys.argv[3])
PERIOD_S = {"steady": 0.01, "forks": 0.03, "containers": 0.4}[kind]

def enter(path):
    with open(path + "/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))

def burn(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass

if kind != "containers":
    enter(folder)
number = 0
while True:
    if kind == "steady":
        burn(PERIOD_S * busy)
    else:
        number += 1
        place = f"{folder}/docker-{number:064x}.scope"
        if kind == "containers":
            os.mkdir(place)
        if (pid := os.fork()) == 0:
            if kind == "containers":
                enter(place)
            burn(PERIOD_S)
            os._exit(0)
        os.waitpid(pid, 0)
        if kind == "containers":
            os.rmdir(place)
    time.sleep(PERIOD_S * ((1 - busy) if kind == "steady" else (1 - busy) / busy))
"""


@dataclass(frozen=True, kw_only=True)
class Load:
    """One workload."""

    kind: Kind
    path: str
    """Its cgroup; of containers, the slice in which each has its own for 0.4 s."""
    busy: float
    """Part of the time in which it wants a processor."""
    watts_per_core: float

    def owns(self, series: tuple[str, str]) -> bool:
        """Return whether the exporter's series, kind and workload, is this one's."""
        kind, workload = series
        return workload == self.path.rpartition("/")[2] or (self.kind == "containers" and kind == "container")


def scenario(tree: RealTree, loads: Sequence[Load]) -> dict[str, Any]:
    """Return a machine with one socket whose power follows the loads."""
    signal = {
        "kind": "workload_load",
        "idle_watts": IDLE_WATTS,
        "cgroup": str(tree.root),
        "workloads": {load.path: {"watts_per_core": load.watts_per_core} for load in loads},
    }
    zone = {"zone": "intel-rapl:0", "name": "package-0", "key": KEY, "signal": signal}
    return {"name": "storm", "machine": {"cpus_per_socket": 64}, "zones": [zone]}


def emulate(tree: RealTree, loads: Sequence[Load], folder: Path) -> Emulator:
    """Make the cgroups and start the machine."""
    tree.make(*(load.path for load in loads))
    path = folder / "storm.yaml"
    path.write_text(json.dumps(scenario(tree, loads)))
    machine = Emulator(path)
    machine.start()
    return machine


def configure(machine: Emulator) -> str:
    """Write a configuration of the exporter with the known idle power; return its flag."""
    path = machine.folder / "exporter.yaml"
    settings = yaml.safe_load(path.read_text()) | {
        "attribution": {"enabled": True, "idle_watts": {"socket0": IDLE_WATTS}}
    }
    path.write_text(yaml.safe_dump(settings))
    return f"--config.file={path}"


@contextlib.contextmanager
def running(tree: RealTree, loads: Sequence[Load]) -> Iterator[None]:
    """Run the processes of all loads, and end them; the last children end by themselves within 0.4 s."""
    commands = [
        [sys.executable, "-S", "-c", _PROGRAM, load.kind, str(tree.root / load.path), str(load.busy)] for load in loads
    ]
    processes = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in commands]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Scrape:
    """The shares of one scrape."""

    read_at_s: float
    device_joules: float
    workloads: Mapping[tuple[str, str], float]
    unattributed: Mapping[str, float]

    @classmethod
    def get(cls, url: str) -> Scrape:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            text = answer.read().decode()

        def samples(name: str) -> Iterator[tuple[dict[str, str], float]]:
            for labels, value in re.findall(rf"^joulewatch_{name}{{(.*)}} (\S+)$", text, re.MULTILINE):
                yield dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)

        ((_, read_at_s),) = samples("read_timestamp_seconds")
        ((_, device_joules),) = samples("device_energy_joules_total")
        return cls(
            read_at_s,
            device_joules,
            {(one["kind"], one["workload"]): value for one, value in samples("workload_energy_joules_total")},
            {one["reason"]: value for one, value in samples("unattributed_energy_joules_total")},
        )

    def since(self, before: Scrape, load: Load) -> float:
        """Return the joules of a load since an earlier scrape; a new series started at 0."""
        return sum(
            joules - before.workloads.get(series, 0.0) for series, joules in self.workloads.items() if load.owns(series)
        )

    @property
    def shared_joules(self) -> float:
        """Sum of all workloads and reasons."""
        return sum((*self.workloads.values(), *self.unattributed.values()))


def wait_for_series(url: str, loads: Sequence[Load]) -> Scrape:
    """Return the first scrape in which each load has series."""
    end_s = time.monotonic() + 20
    while not all(any(map(load.owns, (scrape := Scrape.get(url)).workloads)) for load in loads):
        assert time.monotonic() < end_s, f"not within 20 s: series of {loads}; {scrape}"
        time.sleep(0.1)
    return scrape
