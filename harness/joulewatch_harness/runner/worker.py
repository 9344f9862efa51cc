"""The process of an isolated network: reads calls from a pipe, one at a time, and answers them.

Started by ``isolate``. No library that computes is imported before the process is pinned to its processors. A call is
a tuple ``(operation, arguments...)``, an answer ``("ok", value)`` or ``("error", class, text, module)``.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, Final

from joulewatch_harness.errors import ConfigError, located
from joulewatch_harness.plan.cpus import cpus_text
from joulewatch_harness.runner.pinning import pin, strays

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG: Final = 1
_SIMPLE: Final = (str, int, float, bool, type(None))


def main(descriptor: int, parent: int, cpus: Sequence[int], log_level: int) -> None:
    """Serve calls until the pipe closes.

    Args:
        descriptor: This process's end of the pipe.
        parent: Process id of the harness; this process ends with it.
        cpus: Processors that this process may use; empty: all.
        log_level: Log level of this process; the log goes to stderr.
    """
    die_with_parent(parent)
    pin(cpus)
    # stdout belongs to the harness's result; the output of libraries goes to stderr, next to the log.
    os.dup2(2, 1)
    logging.basicConfig(level=log_level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    with contextlib.closing(Connection(descriptor)) as pipe:
        Worker(tuple(cpus)).serve(pipe)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the harness ends, for any reason, also during a call."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Worker:
    """Holds the network and the driver of its scenario; ``do_NAME`` answers the call NAME."""

    def __init__(self, cpus: tuple[int, ...]) -> None:
        self._cpus = cpus
        self._network: Any = None
        self._driver: Any = None

    def serve(self, pipe: Connection) -> None:
        """Answer calls until the harness closes the pipe."""
        while True:
            try:
                name, *arguments = pipe.recv()
            except (EOFError, ConnectionResetError):
                break
            try:
                answer: tuple[Any, ...] = ("ok", getattr(self, f"do_{name}")(*arguments))
            except Exception as error:
                answer = encode_error(error)
            try:
                pipe.send(answer)
            except (BrokenPipeError, ConnectionResetError):
                break
        with contextlib.suppress(Exception):
            self.do_close()

    def do_open(self, configuration: Any) -> list[str]:
        """Open the network; return the names of its optional methods."""
        from joulewatch_harness.plan.scenario import Scenario
        from joulewatch_harness.runner.drivers import local_driver
        from joulewatch_harness.runtimes import open_network

        self._network = open_network(configuration)
        self._driver = local_driver(self._network, Scenario())
        return ["trace"] if callable(getattr(self._network, "trace", None)) else []

    def do_describe(self) -> Mapping[str, Any]:
        """Return the facts of the network, and the processors that this process may use."""
        facts = {
            str(key): value if isinstance(value, _SIMPLE) else str(value)
            for key, value in self._network.describe().items()
        }
        return {**facts, "isolated": "true", "cpus": cpus_text(os.sched_getaffinity(0))}

    def do_load(self) -> None:
        """Load the network, then check that its threads stay on the process's processors."""
        self._network.load()
        stray_threads = strays(self._cpus)
        if stray_threads:
            count = sum(stray_threads.values())
            self._network.close()
            raise ConfigError(
                f"cpus: {cpus_text(self._cpus)}: the runtime runs {count} of its threads on processors "
                f"{', '.join(stray_threads)}: set the number of its threads (option threads={len(self._cpus)}, if it "
                "has one), or remove cpus"
            )

    def do_prepare(self, batch: int) -> None:
        """Prepare a batch size."""
        self._network.prepare(batch)

    def do_scenario(self, scenario: Any) -> None:
        """Set the scenario of later calls."""
        from joulewatch_harness.runner.drivers import local_driver

        self._driver = local_driver(self._network, scenario)

    def do_begin(self, seed: str) -> None:
        """Begin a span of calls."""
        self._driver.begin(seed)

    def do_run(self, batches: int, recorded: str, driven: bool) -> tuple[int, int, int, dict[str, Any]]:
        """Run batches; return start, end, waiting time of the last query, and everything recorded meanwhile.

        Args:
            batches: Their number.
            recorded: Name of the class that records: ``MarksOnly``, ``Phases`` or ``TimedPhases``.
            driven: Whether the scenario's driver runs them.
        """
        from joulewatch_harness import network

        phases = getattr(network, recorded)()
        run = self._driver.run if driven else self._network.run
        start_ns = time.monotonic_ns()
        run(batches, phases)
        end_ns = time.monotonic_ns()
        return start_ns, end_ns, self._driver.waited_ns, recorded_state(phases)

    def do_check(self, batch: int) -> bool:
        """Return the result of the network's own check."""
        from joulewatch_harness.network import run_check

        return run_check(self._network, batch)

    def do_trace(self, path: Any) -> None:
        """Write the network's own trace."""
        self._network.trace(path)

    def do_close(self) -> None:
        """Close the network; the process continues."""
        if self._network is not None:
            self._network.close()


def recorded_state(phases: Any) -> dict[str, Any]:
    """Return everything that a call recorded: the public slots of ``Phases``."""
    slots = [name for kind in type(phases).__mro__ for name in getattr(kind, "__slots__", ())]
    return {name: getattr(phases, name) for name in slots if not name.startswith("_") and hasattr(phases, name)}


def encode_error(error: Exception) -> tuple[str, str, str, str]:
    """Return an error as an answer, from which the harness raises it again."""
    name = type(error).__name__
    module = getattr(error, "name", None) or "" if name == "ModuleNotFoundError" else ""
    return "error", name, located(error), module
