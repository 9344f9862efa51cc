"""The processors that a process may use: check them, pin the process, and check all its threads afterwards.

A runtime may set the affinity of its threads to other processors than those of the process: ONNX Runtime does so
unless it is given a number of threads. Therefore the affinity is read back from every thread.
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
"""Libraries read these once, when they are loaded."""

_TASKS: Final = Path("/proc/self/task")


def check_cpus(cpus: Sequence[int], where: str) -> None:
    """Raise ConfigError if this process may not use all of ``cpus``."""
    allowed = os.sched_getaffinity(0)
    missing = [number for number in cpus if number not in allowed]
    if missing:
        raise ConfigError(
            f"{where}: cpus: {cpus_text(missing)} cannot be used; this process may use {cpus_text(allowed)}"
        )


def pin(cpus: Sequence[int]) -> None:
    """Restrict this process, and every thread that it starts later, to ``cpus``; empty: no restriction."""
    if cpus:
        os.sched_setaffinity(0, cpus)


def thread_environment(cpus: Sequence[int], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with as many threads as processors; variables that the user set stay as they are."""
    if not cpus:
        return dict(environment)
    return {**dict.fromkeys(THREAD_VARIABLES, str(len(cpus))), **environment}


def strays(cpus: Sequence[int]) -> dict[str, int]:
    """Return the threads of this process that may run on other processors: processors -> number of threads."""
    threads: dict[str, int] = {}
    for task in _TASKS.iterdir() if cpus else ():
        try:
            allowed = os.sched_getaffinity(int(task.name))
        except OSError:
            continue  # the thread has ended
        if not allowed <= set(cpus):
            text = cpus_text(allowed)
            threads[text] = threads.get(text, 0) + 1
    return threads
