"""The process of one configuration's network: takes calls from a pipe, one at a time, and answers them.

Started by ``isolate``. Nothing that computes is imported before this process is pinned. A call is a tuple
``(operation, arguments...)``, an answer ``("ok", value)`` or ``("error", class, text, module)``.
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
    """Serve until the pipe closes.

    Args:
        descriptor: Our end of the pipe.
        parent: The harness's process id; when it is gone, so is this.
        cpus: Processors to stay on; none: all.
        log_level: Of this process's log, on stderr.
    """
    die_with_parent(parent)
    pin(cpus)
    # stdout is the harness's result; whatever a library prints belongs beside the log.
    os.dup2(2, 1)
    logging.basicConfig(level=log_level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    with contextlib.closing(Connection(descriptor)) as pipe:
        Worker(tuple(cpus)).serve(pipe)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the harness is gone, however that ended and whatever runs here."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Worker:
    """One network, and the driver of its scenario."""

    def __init__(self, cpus: tuple[int, ...]) -> None:
        self._cpus = cpus
        self._network: Any = None
        self._driver: Any = None

    def serve(self, pipe: Connection) -> None:
        """Answer calls until the other end closes."""
        while True:
            try:
                name, *arguments = pipe.recv()
            except (EOFError, ConnectionResetError):
                break
            try:
                answer: tuple[Any, ...] = ("ok", getattr(self, f"do_{name}")(*arguments))
            except Exception as error:
                answer = told(error)
            try:
                pipe.send(answer)
            except (BrokenPipeError, ConnectionResetError):
                break
        with contextlib.suppress(Exception):
            self.do_close()

    def do_open(self, configuration: Any) -> list[str]:
        """Make the network; answers the optional methods that it has."""
        from joulewatch_harness.plan.scenario import Scenario
        from joulewatch_harness.runner.drivers import local_driver
        from joulewatch_harness.runtimes import open_network

        self._network = open_network(configuration)
        self._driver = local_driver(self._network, Scenario())
        return [name for name in ("check", "trace") if callable(getattr(self._network, name, None))]

    def do_describe(self) -> Mapping[str, Any]:
        """What the network says of itself, and where this process really runs."""
        said = {
            str(key): value if isinstance(value, _SIMPLE) else str(value)
            for key, value in self._network.describe().items()
        }
        return {**said, "isolated": "true", "cpus": cpus_text(os.sched_getaffinity(0))}

    def do_load(self) -> None:
        """Load; then look whether all threads stayed where they were put."""
        self._network.load()
        outside = strays(self._cpus)
        if outside:
            count = sum(outside.values())
            self._network.close()
            raise ConfigError(
                f"cpus: {cpus_text(self._cpus)}: the runtime put {count} of its threads on processors "
                f"{', '.join(outside)}: tell it how many to use (option threads={len(self._cpus)}, where it has one), "
                "or leave out cpus"
            )

    def do_prepare(self, batch: int) -> None:
        """The network's own."""
        self._network.prepare(batch)

    def do_scenario(self, scenario: Any) -> None:
        """The rules by which ``run`` asks from now on."""
        from joulewatch_harness.runner.drivers import local_driver

        self._driver = local_driver(self._network, scenario)

    def do_begin(self, seed: str) -> None:
        """A span of calls begins."""
        self._driver.begin(seed)

    def do_run(self, batches: int, recorded: bool, driven: bool) -> tuple[int, int, int, dict[str, Any]]:
        """Run; answers start, end, how long the last query waited, and everything that was told meanwhile."""
        from joulewatch_harness.network import MarksOnly, Phases

        phases = Phases() if recorded else MarksOnly()
        who = self._driver if driven else self._network
        start_ns = time.monotonic_ns()
        who.run(batches, phases)
        end_ns = time.monotonic_ns()
        return start_ns, end_ns, self._driver.waited_ns, phases_state(phases)

    def do_check(self) -> bool:
        """The network's own."""
        return bool(self._network.check() is not False)

    def do_trace(self, path: Any) -> None:
        """The network's own."""
        self._network.trace(path)

    def do_close(self) -> None:
        """The network's own; the process stays."""
        if self._network is not None:
            self._network.close()


def phases_state(phases: Any) -> dict[str, Any]:
    """Everything that a call told, by the names of the public slots of ``Phases``."""
    slots = [name for kind in type(phases).__mro__ for name in getattr(kind, "__slots__", ())]
    return {name: getattr(phases, name) for name in slots if not name.startswith("_") and hasattr(phases, name)}


def told(error: Exception) -> tuple[str, str, str, str]:
    """An error as the other side can raise it again."""
    name = type(error).__name__
    return "error", name, located(error), getattr(error, "name", None) or "" if name == "ModuleNotFoundError" else ""
