"""``joulewatch-exporter --once``: print one scrape and exit; with ``--state``, counters continue in the next call."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from joulewatch_exporter.commands import state_file
from joulewatch_exporter.config.calibration import load_calibrations
from joulewatch_exporter.config.config import Config
from joulewatch_exporter.errors import EXIT_DONE, EXIT_FAILED
from joulewatch_exporter.model import Collector, Host

if TYPE_CHECKING:
    from joulewatch_exporter.attribution.model import UsageSource

INTERVAL_S: Final = 0.15
"""Time between two reads; the power of an energy counter needs two."""

SETTLE_S: Final = 15.0
"""Longest wait for devices that are read in the background; the first answer of a BMC takes seconds."""


def once(
    families: Sequence[type[Collector]],
    host: Host,
    config: Config,
    state_path: Path | None = None,
    sources: Sequence[type[UsageSource]] = (),
) -> int:
    """Read all sensors, print the exposition on stdout, and return the exit code.

    Args:
        families: The sensor families.
        host: Where the files are.
        config: The configuration.
        state_path: Continue the counters of the last call with this file, and keep them in it. Energy is not shared
            then: nobody reads the usage between two calls.
        sources: The usage sources.
    """
    with contextlib.ExitStack() as stack:
        if state_path is not None:
            stack.enter_context(state_file.locked(state_path))
        return _once(families, host, config, state_path, sources)


def _once(
    families: Sequence[type[Collector]],
    host: Host,
    config: Config,
    state_path: Path | None,
    sources: Sequence[type[UsageSource]],
) -> int:
    from joulewatch_exporter.attribution.attributor import Attributor
    from joulewatch_exporter.attribution.state_folder import state_folder
    from joulewatch_exporter.sampling.sampler import Sampler
    from joulewatch_exporter.sampling.saved import SavedState
    from joulewatch_exporter.server.exposition import Exposition

    calibrations = load_calibrations(config.exporter.calibration_files, host.nodename)
    boot_id = state_file.boot_id()
    saved = None if state_path is None else state_file.load(state_path)
    if saved is not None:
        saved = saved.at(boot_id=boot_id, now_s=time.time(), now_ns=time.monotonic_ns())
    start_s = time.time() if saved is None else saved.start_s
    primary_node_sensor = config.exporter.primary_node_sensor
    sampler = Sampler(families, host, config.collectors, rediscover_s=0.0, primary=primary_node_sensor, saved=saved)
    is_shared = config.attribution.enabled is not False and state_path is None
    attributor = Attributor(
        sources if is_shared else (), host, config.attribution, state_folder=state_folder(os.environ), least_seconds=0.0
    )
    shares = None
    try:
        attributor.open()
        attributor.survey()
        sampler.start()
        timeout_s = config.exporter.read_timeout_seconds
        sampler.settle(SETTLE_S)
        scans = sampler.fresh(timeout_s)
        attributor.survey()
        attributor.look(scans)
        time.sleep(INTERVAL_S)
        scans = sampler.fresh(timeout_s)
        shares = attributor.look(scans)
        primary = sampler.primary
    finally:
        attributor.stop()
        sampler.stop()
    is_any_found = any(scan.layout.infos for scan in scans)
    if not is_any_found:
        why = "no sensor can be read" if any(scan.layout.devices for scan in scans) else "no sensor found"
        print(f"joulewatch-exporter: {why}; run 'joulewatch-exporter check' for the reasons", file=sys.stderr)  # noqa: T201
    if state_path is not None:
        state = SavedState(boot_id=boot_id, saved_at_s=time.time(), saved_at_ns=time.monotonic_ns(), start_s=start_s)
        if saved is not None:
            state = dataclasses.replace(state, quantities=saved.quantities, errors=saved.errors)
        # Before the scrape is printed: what was shown must never be counted again.
        state_file.store(state_path, sampler.save(state))
    # node_exporter has its own process metrics, and rejects a textfile that repeats them.
    self_metrics = config.exporter.exporter_metrics and state_path is None
    exposition = Exposition(
        emulated=host.emulated,
        start_s=start_s,
        nodename=host.nodename,
        self_metrics=self_metrics,
        calibrations=calibrations,
    )
    sys.stdout.write(exposition.render(scans, "text", primary=primary, shares=shares).decode())
    sys.stdout.flush()
    return EXIT_DONE if is_any_found else EXIT_FAILED
