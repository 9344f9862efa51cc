"""Describe the host and the versions of a benchmark, and write its results."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def describe_machine() -> dict[str, Any]:
    """Return CPU, cores, kernel, load, and versions of packages and programs."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    versions = {"python": platform.python_version()}
    for package in ("joulewatch", "prometheus-client", "numpy", "requests", "onnxruntime", "openvino", "torch"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    for program in ("prometheus", "prometheus-node-exporter"):
        try:
            answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            continue
        versions[program] = (answer.stdout or answer.stderr).split("version ")[1].split(" ")[0]
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpu": model,
        "cpus": os.cpu_count(),
        "virtual": "hypervisor" in Path("/proc/cpuinfo").read_text(),
        "kernel": platform.release(),
        "load_average_at_start": os.getloadavg()[0],
        "versions": versions,
    }


def write_result(name: str, result: dict[str, Any], table: str) -> None:
    """Write ``result`` to ``results/NAME.json`` and ``table`` to ``results/NAME.md``; print the table.

    The result includes the load average at the end.
    """
    RESULTS.mkdir(exist_ok=True)
    result = {**result, "load_average_at_end": os.getloadavg()[0]}
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(table)
    sys.stdout.write(table + "\n")


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def host_line(machine: dict[str, Any]) -> str:
    """Return one line with date, host and versions."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    kind = "virtual machine, " if machine["virtual"] else ""
    return f"{machine['date']}; {kind}{machine['cpus']} × {machine['cpu']}, Linux {machine['kernel']}; {versions}.\n"
