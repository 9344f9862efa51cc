"""Loads of a known kind on some cores, to compare their watts per core: ``joulewatch calibrate --workloads``.

Each core has its own process, ``python -m joulewatch_harness.metering.loads NAME CPU``, which works until it is ended
or its parent is gone.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Final, Self

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.runner.processor_time import process_time_s

READY_S: Final = 60.0
LIGHT: Final = "light"
_LIGHT_SHARE: Final = 0.1
_LIGHT_PERIOD_S: Final = 0.01
_ONE_THREAD: Final = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def _integer() -> Callable[[], object]:
    """Multiply, add and mix integers that stay in the first cache."""
    import numpy as np

    values = np.arange(2048, dtype=np.uint64)

    def work() -> None:
        for _ in range(500):
            np.multiply(values, np.uint64(6364136223846793005), out=values)
            np.add(values, np.uint64(1442695040888963407), out=values)
            np.bitwise_xor(values, np.right_shift(values, np.uint64(29)), out=values)

    return work


def _vector() -> Callable[[], object]:
    """Multiply matrices of floating-point numbers: the widest vector units, near the highest power."""
    import numpy as np

    left = np.random.default_rng(1).random((256, 256))
    out = np.empty_like(left)
    return lambda: [np.matmul(left, left, out=out) for _ in range(10)]


def _memory() -> Callable[[], object]:
    """Copy more than any cache holds."""
    import numpy as np

    source, target = np.ones(1 << 23), np.zeros(1 << 23)
    return lambda: np.copyto(target, source)


def _interpreter() -> Callable[[], object]:
    """Interpret bytecode: branches and dependent loads."""

    def work() -> int:
        total = 0
        for number in range(50_000):
            total += number % 7 if number & 3 else -1
        return total

    return work


def _light() -> Callable[[], object]:
    """Wake often and work a tenth of the time, as a service that waits for requests."""

    def work() -> None:
        end_s = time.perf_counter() + _LIGHT_SHARE * _LIGHT_PERIOD_S
        while time.perf_counter() < end_s:
            pass
        time.sleep((1 - _LIGHT_SHARE) * _LIGHT_PERIOD_S)

    return work


LOADS: Final[Mapping[str, Callable[[], Callable[[], object]]]] = MappingProxyType(
    {"integer": _integer, "vector": _vector, "memory": _memory, "interpreter": _interpreter, LIGHT: _light}
)


class Workers:
    """Context manager: one process of a load on each of some processors."""

    def __init__(self, load: str, cpus: Sequence[int]) -> None:
        self._load = load
        self._cpus = cpus
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        """Start all of them and wait until they work.

        Raises:
            ConfigError: One of them did not start.
        """
        try:
            for cpu in self._cpus:
                command = [sys.executable, "-m", __name__, self._load, str(cpu)]
                environment = {**os.environ, **_ONE_THREAD}
                self._processes.append(
                    subprocess.Popen(
                        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
                    )
                )
            end_s = time.monotonic() + READY_S
            for process in self._processes:
                assert process.stdout is not None
                is_ready, _, _ = select.select([process.stdout], [], [], max(end_s - time.monotonic(), 0))
                if not is_ready or process.stdout.readline() != "ready\n":
                    raise ConfigError(f"calibrate --workloads: the load {self._load} did not start")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    def cpu_seconds(self) -> float:
        """Return the processor time of all of them so far."""
        return sum(process_time_s(process.pid) or 0.0 for process in self._processes)


def chosen_cpus(available: Sequence[int], siblings: Callable[[int], str] | None = None) -> list[int]:
    """Return half of the available processors, at least one, at first no two of one core.

    The other half is free for everything else on the machine.
    """
    read = _siblings if siblings is None else siblings
    first: list[int] = []
    second: list[int] = []
    cores: set[str] = set()
    for cpu in sorted(available):
        core = read(cpu)
        (second if core in cores else first).append(cpu)
        cores.add(core)
    return sorted([*first, *second][: max(len(available) // 2, 1)])


def _siblings(cpu: int) -> str:
    try:
        with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return str(cpu)


def main(words: Sequence[str]) -> None:
    """Work on one processor until the parent is gone."""
    load, cpu = words
    os.sched_setaffinity(0, {int(cpu)})
    parent = os.getppid()
    work = LOADS[load]()
    work()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while os.getppid() == parent:
        work()


if __name__ == "__main__":
    main(sys.argv[1:])
