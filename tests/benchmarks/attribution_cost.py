"""Cost of attribution: an exporter with 100 shown workloads out of 500 cgroups, and one with ``--no-attribution``.

The cgroups are real, so it needs root; a process visits them and uses about a tenth of a core there. Both exporters
read the same emulated node and are scraped in turns.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.exporter_cost import measure
from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from joulewatch_exporter.attribution.cgroup_mounts import find_hierarchies
from joulewatch_exporter.model import Host
from support.servers import Emulator, ExporterServer

SCENARIO = "epyc-7763-node"
CGROUPS, QUICK_CGROUPS = 500, 50
LONGEST_WAIT_S = 60.0

VISIT = """
import os, sys, time
folders = sys.argv[1:]
while True:
    for index, folder in enumerate(folders):
        with open(f"{folder}/cgroup.procs", "w") as file:
            file.write(str(os.getpid()))
        end = time.thread_time() + 0.001
        while time.thread_time() < end:
            pass
        time.sleep(0.009)
"""


def shown(url: str) -> int:
    """Return the number of workloads with series."""
    with urllib.request.urlopen(f"{url}/metrics?collect[]=attribution", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    counts = [line for line in lines if line.startswith('joulewatch_workloads{state="shown"}')]
    return int(float(counts[0].rpartition(" ")[2])) if counts else 0


def run(quick: bool = False) -> dict[str, Any]:
    """Run the benchmark; write and return the result."""
    machine = describe_machine()
    count = QUICK_CGROUPS if quick else CGROUPS
    wanted = min(count, 100)
    mounted = Path(find_hierarchies(Host(), "auto")[0].root)
    top = mounted / f"joulewatch-bench-{os.getpid()}.slice"
    folders = [top / f"unit-{number}.service" for number in range(count)]
    emulated = Emulator(SCENARIO)
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        (base / "exporter.yaml").write_text("attribution: {min_share: 0.000001}\n")
        flags = (*emulated.flags, f"--config.file={base / 'exporter.yaml'}")
        exporters = {
            "with attribution": ExporterServer(base / "with", *flags),
            "--no-attribution": ExporterServer(base / "without", *flags, "--no-attribution"),
        }
        visitor: subprocess.Popen[bytes] | None = None
        try:
            for folder in folders:
                folder.mkdir(parents=True)
            emulated.start()
            (emulated.sysfs / "fs").mkdir(exist_ok=True)
            (emulated.sysfs / "fs/cgroup").symlink_to("/sys/fs/cgroup")
            for server in exporters.values():
                server.start()
            visitor = subprocess.Popen([sys.executable, "-S", "-c", VISIT, *map(str, folders)])
            end_s = time.monotonic() + LONGEST_WAIT_S
            while shown(exporters["with attribution"].url) < wanted and time.monotonic() < end_s:
                time.sleep(1.0)
            workloads = shown(exporters["with attribution"].url)
            measured = measure(dict(exporters), 5 if quick else 60)
        finally:
            if visitor is not None:
                visitor.kill()
                visitor.wait()
            for server in exporters.values():
                server.stop()
            emulated.stop()
            for folder in folders:
                if folder.is_dir():
                    folder.rmdir()
            if top.is_dir():
                top.rmdir()
    keys = {
        "scrape_median_ms": "scrape, median ms",
        "scrape_p99_ms": "scrape, p99 ms",
        "processor_ms_per_scrape": "processor time per scrape, ms",
        "cpu_percent_of_a_core_at_1s": "% of a core at 1 s scrapes",
        "rss_mebibytes": "RSS, MiB",
        "exposition_bytes": "size of a scrape, bytes",
    }
    both = [measured[name] for name in exporters]
    rows = [
        [text, *(f"{one[key]:.2f}" for one in both), f"{both[0][key] - both[1][key]:+.2f}"]
        for key, text in keys.items()
    ]
    table = (
        f"# Cost of attribution\n\n{host_line(machine)}\n{count} cgroups, {workloads} workloads shown, emulated node "
        f"{SCENARIO}.\n\n" + markdown_table(["figure", *exporters, "difference"], rows)
    )
    result = {"machine": machine, "cgroups": count, "workloads": workloads, "exporters": measured}
    write_result("attribution_cost", result, table)
    return result
