"""The windows of ``joulewatch calibrate --workloads``: each load and the idle machine, round by round."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Final

from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.calibration.spread import IDLE, LoadWindow
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.metering.loads import LIGHT, LOADS, Workers
from joulewatch_harness.metering.meter import Meter
from joulewatch_harness.records import Window

ROUNDS: Final = 5
WINDOW_S: Final = 4.0
SETTLE_S: Final = 1.0
REFRESHES_PER_WINDOW: Final = 40
LEAST_CORES: Final = 0.9
"""A load that has less of its processors shares them with other programs."""
MOST_OTHERS: Final = 0.1
"""Other programs may use this share of the processors of a load."""


def measure_loads(
    meter: Meter,
    cpus: Sequence[int],
    components: Sequence[str],
    *,
    rounds: int,
    window_s: float,
    settle_s: float,
    report: Callable[[str], None] = lambda _: None,
) -> list[LoadWindow]:
    """Measure every load and the idle machine in each round, in random order.

    Raises:
        ConfigError: A load did not start, other programs are busy, or an energy is not known.
    """
    windows = []
    for number in range(rounds):
        for load in random.Random(number).sample((IDLE, *LOADS), len(LOADS) + 1):
            report(f"round {number + 1} of {rounds}: {load}")
            with Workers(load, () if load == IDLE else cpus) as workers:
                time.sleep(settle_s)
                before_s, used_s = time.monotonic(), workers.cpu_seconds()
                with meter.measure(load) as window:
                    time.sleep(window_s)
                used_s = workers.cpu_seconds() - used_s
                cores = used_s / (time.monotonic() - before_s)
            _check_quiet(load, cores, len(cpus), window.window)
            watts = {}
            for component in components:
                energy = window.per_component[component]
                if energy.watts is None:
                    raise ConfigError(f"calibrate --workloads: {component}: {energy.missing} [{energy.reason}]")
                watts[component] = energy.watts
            windows.append(LoadWindow(load=load, round=number, watts=watts, cores=cores))
    return windows


def _check_quiet(load: str, cores: float, processors: int, window: Window) -> None:
    """Raise ConfigError if other programs used processors during a load."""
    advice = "repeat this on a machine without other load"
    used = window.processor_time
    others = 0.0 if used is None else used.others_s / window.duration_s
    if others > MOST_OTHERS * processors:
        raise ConfigError(
            f"calibrate --workloads: the machine is busy: other programs used {others:.2f} cores during {load}; "
            f"{advice}"
        )
    if load not in (IDLE, LIGHT) and cores < LEAST_CORES * processors:
        raise ConfigError(
            f"calibrate --workloads: the machine is busy: {load} had {cores:.2f} of its "
            f"{count_of(processors, 'core')}; {advice}"
        )
