"""Read all RAPL counters a few times and print them as JSON: ``read_rapl.py ROOT BACKEND TIMES PAUSE_S``.

Each reading is printed with the times just before and after it, which bound its true value on a busy machine.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from joulewatch_exporter.collectors.rapl.collector import RaplCollector, RaplOptions
from joulewatch_exporter.model import Host


def main() -> None:
    root, backend, times, pause_s = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    host = Host(sysfs=root / "sys", procfs=root / "proc", dev=root)
    collector = RaplCollector.open(host, RaplOptions(door=backend))  # type: ignore[arg-type]
    rounds = []
    for _ in range(times):
        readings_by_key = {}
        for sensor in collector.sensors:
            before_ns = time.monotonic_ns()
            readings = sensor.read()
            after_ns = time.monotonic_ns()
            for reading in readings:
                key = f"{reading.quantity.device}/{reading.quantity.domain}"
                readings_by_key[key] = (before_ns, after_ns, reading.energy_joules)
        rounds.append(readings_by_key)
        time.sleep(pause_s)
    infos = {
        f"{info.quantity.device}/{info.quantity.domain}": info.source
        for sensor in collector.sensors
        for info in sensor.infos
    }
    collector.close()
    print(json.dumps({"rounds": rounds, "sources": infos}))  # noqa: T201


if __name__ == "__main__":
    main()
