"""Which processors a process may use: parsing, pinning before any library is loaded, and reading it back.

A runtime may set the affinity of its own threads and leave what was given to the process: ONNX Runtime does so
unless it is told a number of threads. So pinning is read back from every thread, never taken for done.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.plan.cpus import cpus_text

THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "TVM_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
"""What libraries read, once, when they are loaded."""

_TASKS: Final = Path("/proc/self/task")


def check_cpus(cpus: Sequence[int], where: str) -> None:
    """Raise ConfigError where this process may not use all of ``cpus``."""
    allowed = os.sched_getaffinity(0)
    missing = [number for number in cpus if number not in allowed]
    if missing:
        raise ConfigError(
            f"{where}: cpus: {cpus_text(missing)} cannot be used here; this process may use {cpus_text(allowed)}"
        )


def pin(cpus: Sequence[int]) -> None:
    """Keep this process, and every thread it starts from now on, on ``cpus``."""
    if cpus:
        os.sched_setaffinity(0, cpus)


def thread_environment(cpus: Sequence[int], environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with as many threads as there are processors; what a person set is left alone."""
    if not cpus:
        return dict(environment)
    return {**dict.fromkeys(THREAD_VARIABLES, str(len(cpus))), **environment}


def strays(cpus: Sequence[int]) -> dict[str, int]:
    """Threads of this process that may run elsewhere than on ``cpus``: processors -> number of threads."""
    found: dict[str, int] = {}
    for task in _TASKS.iterdir() if cpus else ():
        try:
            allowed = os.sched_getaffinity(int(task.name))
        except OSError:
            continue  # it has ended meanwhile
        if not allowed <= set(cpus):
            text = cpus_text(allowed)
            found[text] = found.get(text, 0) + 1
    return found


def cpu_time_s(pid: int) -> float | None:
    """Seconds of processor time that a process has used, in steps of 10 ms; None where it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field is a name in brackets, which may hold anything.
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
