"""The exporter measures every device of the built-in machines with the configuration that the emulator writes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from joulewatch_exporter.collectors import FAMILIES
from joulewatch_exporter.emulator.truth import Truth
from support.require import require_program

if TYPE_CHECKING:
    from integration.conftest import StartEmulator, StartExporter
    from support.servers import Emulator, ExporterServer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

WARM_UP_S = 30.0
SPAN_S = 6.0

GPUS = tuple(f"GPU-a1000000-7763-4000-8000-00000000000{number}/total" for number in range(4))
SOCKETS = ("socket0/package", "socket1/package")
AMD_GPUS = tuple(f"0000:{bus}:00.0/total" for bus in ("05", "26", "85", "c9"))
CARDS = ("0000:21:00/total", "0000:81:00/total", "0000:a1:00/total")

LIBRARIES = {"ipmi": "pyghmi", "nvml": "pynvml", "redfish": "requests"}


def config_flag(machine: Emulator) -> str:
    """Return the flag with which an exporter reads the whole machine; skip if a library is not installed."""
    file = machine.folder / "exporter.yaml"
    families = set(yaml.safe_load(file.read_text())["collectors"])
    assert families <= {family.name for family in FAMILIES}
    for family in sorted(families & set(LIBRARIES)):
        if importlib.util.find_spec(LIBRARIES[family]) is None:
            pytest.skip(f"{LIBRARIES[family]} is not installed: pip install 'joulewatch[{family}]'")
    return f"--config.file={file}"


def read_energies(exporter: ExporterServer) -> dict[str, tuple[float, float]]:
    """Return the time and energy of the readings of devices and nodes, by ``device/domain``."""
    with urllib.request.urlopen(f"{exporter.url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    stamps: dict[tuple[str, str], float] = {}
    energies: dict[str, tuple[float, float]] = {}
    for name in ("read_timestamp_seconds", "device_energy_joules_total", "node_energy_joules_total"):
        for labels, value in re.findall(rf"^joulewatch_{name}{{(.*)}} (\S+)$", text, re.MULTILINE):
            label = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            key = label["collector"], label["device"]
            if name.startswith("read"):
                stamps[key] = float(value)
            elif key in stamps:
                energies[f"{label['device']}/{label['domain']}"] = stamps[key], float(value)
    return energies


@pytest.mark.parametrize(
    ("scenario", "keys"),
    [
        ("epyc-7763-node", (*SOCKETS, "ACPI000D:00/power1", "bmc/total", "chassis/total")),
        ("a100-node", (*SOCKETS, *GPUS, "bmc/total", "chassis/total")),
        ("mi300x-node", (*SOCKETS, *AMD_GPUS, "bmc/total")),
        ("u280-node", (*SOCKETS, *CARDS, "bmc/total")),
    ],
)
def test_every_device_of_a_node_is_measured(
    scenario: str, keys: tuple[str, ...], emulator: StartEmulator, exporter_server: StartExporter
) -> None:
    """The tolerances are wide; the benchmarks measure the accuracy."""
    if scenario == "a100-node":
        require_program("gcc", "gcc")
    machine = emulator(scenario)
    exporter = exporter_server(config_flag(machine))
    truth = Truth.load(machine.folder)
    assert set(keys) <= set(truth.keys)
    # A BMC appears after the first login.
    end_s = time.monotonic() + WARM_UP_S
    while not set(keys) <= set(before := read_energies(exporter)) and time.monotonic() < end_s:
        time.sleep(0.2)
    time.sleep(SPAN_S)
    after = read_energies(exporter)
    assert set(after) == set(keys)
    for key in keys:
        (start_s, start_joules), (end_s, end_joules) = before[key], after[key]
        true_joules = truth.energy_joules(key, start_s, end_s)
        # Nodes are sampled once per second while their power jumps; the emulator may be late on a busy machine.
        is_sampled = key in ("bmc/total", "chassis/total", "ACPI000D:00/power1")
        assert end_joules - start_joules == pytest.approx(true_joules, rel=0.35 if is_sampled else 0.05), key


THREE_METERS = """
name: three-meters
description: one server, measured by an ACPI meter that fails after a while, by IPMI and by Redfish
signals: {node: 300}
hwmon:
  - chip: power_meter
    path: devices/LNXSYSTM:00/LNXSYBUS:00/ACPI000D:00
    files_at_device: true
    files: {power1_is_battery: "0", power1_oem_info: ""}
    channels:
      - {kind: power, number: 1, key: "ACPI000D:00/power1", signal: node, average: true, update_s: 1,
         faults: [{kind: eio, at_s: 15, for_s: 600}]}
bmcs: [{name: bmc, signal: node}]
redfish: [{name: chassis, signal: node, flavour: classic}]
"""


def node_sensors(exporter: ExporterServer) -> dict[str, tuple[str, str, str]]:
    """Return read mode, primary and host of the node sensors that can be read, by collector."""
    with urllib.request.urlopen(f"{exporter.url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    labels = [
        dict(re.findall(r'(\w+)="([^"]*)"', line))
        for line in text.splitlines()
        if line.startswith('joulewatch_sensor_info{scope="node"')
    ]
    return {label["collector"]: (label["read_mode"], label["primary"], label["host"]) for label in labels}


def test_one_of_three_meters_of_a_server_is_primary(
    tmp_path: Path, emulator: StartEmulator, exporter_server: StartExporter
) -> None:
    """No other meter replaces it while it is down, and the configuration can name another one."""
    scenario = tmp_path / "three-meters.yaml"
    scenario.write_text(THREE_METERS, "utf-8")
    machine = emulator(scenario)
    flag = config_flag(machine)
    exporter = exporter_server(flag)
    host = os.uname().nodename
    expected = {
        "hwmon": ("on_request", "1", host),
        "ipmi": ("remote", "0", host),
        "redfish": ("remote", "0", host),
    }
    end_s = time.monotonic() + WARM_UP_S
    while (shown := node_sensors(exporter)) != expected and time.monotonic() < end_s:
        time.sleep(0.2)
    assert shown == expected
    del expected["hwmon"]
    while (shown := node_sensors(exporter)) != expected and time.monotonic() < end_s + WARM_UP_S:
        time.sleep(0.2)
    assert shown == expected

    config = yaml.safe_load((machine.folder / "exporter.yaml").read_text("utf-8"))
    config.setdefault("exporter", {})["primary_node_sensor"] = {host: "redfish"}
    named = machine.folder / "named.yaml"
    named.write_text(yaml.safe_dump(config), "utf-8")
    command = [sys.executable, "-m", "joulewatch_exporter", f"--config.file={named}", "check", "--format", "json"]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
    primary = {reading["collector"]: reading["primary"] for reading in report["readings"] if reading["scope"] == "node"}
    assert primary == {"hwmon": False, "ipmi": False, "redfish": True}
