"""Busy time of all processors of a machine, from ``/proc/stat``; proc_stat(5)."""

from __future__ import annotations

import os
from typing import Final

from joulewatch_exporter.collectors.base.sysfs import read_text
from joulewatch_exporter.errors import SensorGlitchError

_STAT_BYTES: Final = 1 << 20
TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")


def read_busy(stat_path: str) -> tuple[float, int]:
    """Read the busy time of all CPUs together.

    Args:
        stat_path: ``/proc/stat``.

    Returns:
        Busy seconds (user, nice, system, irq, softirq; user includes guests), summed over all CPUs since boot; and the
        number of online CPUs.

    Raises:
        SensorGlitchError: The text is not in the format of /proc/stat.
        SensorError: The file cannot be read.
    """
    text = read_text(stat_path, _STAT_BYTES)
    head, _, _ = text.partition("\n")
    fields = head.split()
    n_cpus = text.count("\ncpu")
    try:
        if fields[0] != "cpu" or n_cpus == 0:
            raise ValueError(head)
        user, nice, system, _idle, _iowait, irq, softirq = (int(field) for field in fields[1:8])
    except (IndexError, ValueError) as error:
        raise SensorGlitchError(f"{stat_path}: does not begin with CPU times") from error
    return (user + nice + system + irq + softirq) / TICKS_PER_SECOND, n_cpus
