"""``joulewatch-exporter --once``: print one scrape and exit."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Final

from joulewatch_exporter.config.config import Config
from joulewatch_exporter.errors import EXIT_DONE, EXIT_FAILED
from joulewatch_exporter.model import Collector, Host

INTERVAL_S: Final = 0.15
"""Time between two reads; the power of an energy counter needs two."""

SETTLE_S: Final = 15.0
"""Longest wait for devices that are read in the background; the first answer of a BMC takes seconds."""


def once(families: Sequence[type[Collector]], host: Host, config: Config) -> int:
    """Read all sensors, print the exposition on stdout, and return the exit code."""
    from joulewatch_exporter.sampling.sampler import Sampler
    from joulewatch_exporter.server.exposition import Exposition

    start_s = time.time()
    primary_node_sensor = config.exporter.primary_node_sensor
    sampler = Sampler(families, host, config.collectors, rediscover_s=0.0, primary=primary_node_sensor)
    sampler.start()
    try:
        timeout_s = config.exporter.read_timeout_seconds
        sampler.settle(SETTLE_S)
        sampler.fresh(timeout_s)
        time.sleep(INTERVAL_S)
        scans = sampler.fresh(timeout_s)
        primary = sampler.primary
    finally:
        sampler.stop()
    is_any_found = any(scan.layout.infos for scan in scans)
    if not is_any_found:
        why = "no sensor can be read" if any(scan.layout.devices for scan in scans) else "no sensor found"
        print(f"joulewatch-exporter: {why}; run 'joulewatch-exporter check' for the reasons", file=sys.stderr)  # noqa: T201
    exposition = Exposition(emulated=host.emulated, start_s=start_s, self_metrics=config.exporter.exporter_metrics)
    sys.stdout.write(exposition.render(scans, "text", primary=primary).decode())
    sys.stdout.flush()
    return EXIT_DONE if is_any_found else EXIT_FAILED
