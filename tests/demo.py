"""``make demo``: the whole chain on an emulated machine, which compares every result with the true energy.

The power of an emulated node (2 × EPYC 7763) follows the real CPU load of this machine. A real exporter reads it, a
real Prometheus scrapes the exporter, and joulewatch profiles RadioML VGG10. Then the run is analyzed from Prometheus
alone, and each energy is compared with the truth of the emulator.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from joulewatch_exporter.emulator.truth import Truth
from joulewatch_harness.storage.journal import list_runs
from support.servers import Emulator, ExporterServer, PrometheusServer
from support.truth import true_joules_per_inference

SCENARIO = "epyc-7763-node-load"
SOCKETS = ("socket0/package", "socket1/package")
LARGEST_ERROR_PERCENT = 2.0
"""The emulated counters change every 10 ms, 1 % of a window; twice that is the limit."""
ROUNDS = ("--window", "1", "--rounds", "3")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="quick", choices=("quick", "normal"))
    parser.add_argument("--batch-sizes", default="1,16,256")
    args = parser.parse_args()
    console = Console(stderr=True)
    program = shutil.which("prometheus")
    if program is None:
        console.print("the demo requires a Prometheus server: apt-get install prometheus")
        return 1
    output = Path("runs")
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        machine = Emulator(SCENARIO)
        exporter = ExporterServer(base / "exporter", *machine.flags)
        prometheus = PrometheusServer(program, base / "prometheus", scrape_targets=[exporter.address])
        try:
            machine.start()
            exporter.start()
            prometheus.start()
            console.print(f"emulated node [bold]{SCENARIO}[/], exporter {exporter.url}, Prometheus {prometheus.url}")
            chain = ["--prometheus", prometheus.url, "--exporter", exporter.url, "--output", str(output)]
            sweep = ["--network", "radioml-vgg10", "--precision", "fp32,int8", "--batch-sizes", args.batch_sizes]
            began_s = time.time()
            command = [sys.executable, "-m", "joulewatch_harness"]
            subprocess.run([*command, "profile", *sweep, "--preset", args.preset, *ROUNDS, *chain], check=True)
            record = next(run for run in reversed(list_runs(output)) if run.header.started_at_s >= began_s - 1)
            time.sleep(1.5)
            from_prometheus_alone = ["--prometheus", prometheus.url, "--output", str(base / "no runs here")]
            answer = subprocess.run(
                [*command, "analyze", record.header.run, "--format", "json", *from_prometheus_alone],
                check=True,
                stdout=subprocess.PIPE,
            )
            result = json.loads(answer.stdout)
            truth = true_joules_per_inference(record, Truth.load(machine.folder), SOCKETS)
        finally:
            for server in (prometheus, exporter, machine):
                server.stop()
            machine.remove()
    table = Table(title="from Prometheus alone, compared with the truth of the emulated node")
    for column in ("precision", "batch", "J/inf measured", "± meter", "J/inf true", "error %", "true within ±"):
        table.add_column(column, justify="left" if column == "precision" else "right")
    worst, inside = 0.0, 0
    for cell in result["results"]:
        energy = cell["energy"]["total"]["gross"]
        true = truth[cell["configuration"]["name"], cell["batch_size"]]
        error = 100 * (energy["value"] / true - 1)
        # Both energies are of the same windows, so only the uncertainty of the meter counts.
        meter = 2 * math.hypot(*(entry["standard_uncertainty"] for entry in energy["budget"] if entry["type"] == "B"))
        is_within = abs(energy["value"] - true) <= meter
        worst, inside = max(worst, abs(error)), inside + is_within
        table.add_row(
            cell["configuration"]["precision"],
            str(cell["batch_size"]),
            f"{energy['value']:.5g}",
            f"{meter:.2g}",
            f"{true:.5g}",
            f"{error:+.2f}",
            "yes" if is_within else "NO",
        )
    Console().print(table)
    cells = len(result["results"])
    Console().print(
        f"largest error {worst:.2f} %; {inside} of {cells} within ± (95 % coverage, uncertainty of the meter only)"
    )
    return 0 if worst <= LARGEST_ERROR_PERCENT else 1


if __name__ == "__main__":
    sys.exit(main())
