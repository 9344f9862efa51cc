"""Run the network of one configuration in its own process, behind the protocol of ``network``.

Spinning threads, memory, library flags and open devices of one runtime then do not disturb another one in the same run,
and a crash costs one batch size instead of the run. The process loops over
the batches itself: one message and one answer per call of ``run``, which takes 50 to 100 ms. The times of a call are
taken in the process, on the monotonic clock, which all processes of a machine share.

Between two calls the process waits in a read and uses no power, once the threads of its runtime have stopped spinning
(ONNX Runtime: about 50 ms after the last batch). ``processor_use`` checks that.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, Final

from joulewatch_harness import errors
from joulewatch_harness.errors import JoulewatchError, NetworkError
from joulewatch_harness.network import Phases
from joulewatch_harness.plan.scenario import Scenario
from joulewatch_harness.records import Configuration
from joulewatch_harness.runner.drivers import Driver
from joulewatch_harness.runner.pinning import thread_environment
from joulewatch_harness.runner.process_group import ProcessGroup

logger = logging.getLogger(__name__)

START_LIMIT_S: Final = 60.0
"""Shortest limit for an interpreter to start and to import a runtime: long, because the machine may be busy."""
CLOSE_LIMIT_S: Final = 10.0
END_LIMIT_S: Final = 5.0
_LONGEST_OUTPUT: Final = 600
"""Characters of a dead process's output in the error."""
_CODE: Final = (
    "import sys; sys.path[:] = sys.argv[5].split('\\n'); from joulewatch_harness.runner.worker import main; "
    "main(int(sys.argv[1]), int(sys.argv[2]), tuple(map(int, filter(None, sys.argv[3].split(',')))), int(sys.argv[4]))"
)


class RemoteError(Exception):
    """An error of the other process, with its class name."""


class IsolatedNetwork:
    """The network of one configuration in its own process.

    The process starts with the first call that needs it. It survives ``close``, so that it does not import everything
    again, and ends with ``end``. After a crash the next ``prepare`` starts a new process and loads the
    network again.

    Args:
        configuration: The network to open.
        cpus: Processors that the process may use; by default all.
        time_limit_s: Limit for one call; a process that exceeds it is killed.
    """

    def __init__(self, configuration: Configuration, *, cpus: Sequence[int] = (), time_limit_s: float = 600.0) -> None:
        self._configuration = configuration
        self._cpus = tuple(cpus)
        self._limit_s = time_limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._group = ProcessGroup()
        self._pipe: Connection | None = None
        self._output: IO[bytes] | None = None
        self._relayed_bytes = 0
        self._optional_methods: list[str] = []
        self._reload = False
        """Whether a new process must load the network."""
        self._scenario = Scenario()

    # The protocol of ``network``

    def open(self) -> None:
        """Start the process and open the network in it.

        Raises:
            ConfigError: as ``runtimes.open_network``.
            NetworkError: the process does not start.
        """
        self._ensure_process()

    def describe(self) -> Mapping[str, Any]:
        """Return the facts of the network, with ``isolated``, the processors of its process, and how it is counted."""
        facts: Mapping[str, Any] = self._call("describe")
        return {**facts, "counted_by": self._group.kind, "cgroup": self._group.path}

    def load(self) -> None:
        """Load the network.

        Raises:
            ConfigError: raised by the network.
            NetworkError: raised by the network; or the process died or exceeded the limit.
        """
        self._call("load")
        self._reload = True

    def prepare(self, batch: int) -> None:
        """Prepare a batch size; after a crash, start a new process and load the network first."""
        self._reload_after_crash()
        self._call("prepare", batch)

    def run(self, batches: int, phases: Phases) -> None:
        """Run batches back to back."""
        self.run_remote(batches, phases, driven=False)

    def check(self, batch: int) -> bool:
        """Return the result of the network's own check, at this batch size; True if it has none.

        After a crash, start a new process and load the network first.
        """
        self._reload_after_crash()
        return bool(self._call("check", batch))

    def trace(self, path: Path) -> None:
        """Write the network's own trace.

        Raises:
            NetworkError: The network does not support tracing.
        """
        self._ensure_process()
        if "trace" not in self._optional_methods:
            raise NetworkError(f"{self._configuration.name}: this network does not support tracing")
        self._call("trace", path)

    def close(self) -> None:
        """Close the network and keep the process, idle; safe to call twice."""
        self._reload = False
        if self._process is not None:
            with contextlib.suppress(NetworkError):
                self._call("close", limit_s=CLOSE_LIMIT_S)

    # Beyond the protocol

    def driver(self, scenario: Scenario) -> Driver:
        """Return the driver of a scenario; the driver itself runs in the process of the network."""
        self._scenario = scenario
        self._call("scenario", scenario)
        return _RemoteDriver(self)

    @property
    def pid(self) -> int | None:
        """Id of the process; None without one."""
        return None if self._process is None else self._process.pid

    def cpu_time_s(self) -> float | None:
        """Return the processor time of the process and of all that it started, so far; None without a process."""
        return None if self._process is None else self._group.time_s()

    def begin(self, seed: str) -> None:
        """Begin a span of calls in the process's driver."""
        self._call("begin", seed)

    def run_remote(self, batches: int, phases: Phases, *, driven: bool) -> int:
        """Run batches in the process, by its driver or back to back.

        Returns:
            How long the last query waited in the queue, in nanoseconds.
        """
        recorded = type(phases).__name__
        start_ns, end_ns, waited_ns, state = self._call("run", batches, recorded, driven)
        phases.call_ns = None
        add_recorded(phases, state)
        phases.call_ns = (start_ns, end_ns)
        return int(waited_ns)

    def end(self) -> None:
        """End the process, by force if it does not end by itself; safe to call twice."""
        process, self._process = self._process, None
        if self._pipe is not None:
            self._pipe.close()  # the process sees the end of its calls, closes the network and exits
            self._pipe = None
        if process is not None:
            for stop in (None, process.terminate, process.kill):
                if stop is not None:
                    stop()
                try:
                    process.wait(END_LIMIT_S)
                    break
                except subprocess.TimeoutExpired:
                    logger.warning("%s: process %d does not end", self._configuration.name, process.pid)
        self._group.remove()
        self._relay_output()
        if self._output is not None:
            self._output.close()
            self._output = None

    # Calls

    def _reload_after_crash(self) -> None:
        if self._process is None and self._reload:
            logger.info("%s: starting a new process", self._configuration.name)
            self._call("load")
            self._call("scenario", self._scenario)

    def _call(self, name: str, *arguments: Any, limit_s: float | None = None) -> Any:
        """Send one call and return its result.

        Raises:
            NetworkError: the process died, or exceeded the limit and was killed.
            Exception: the error that the call raised in the process.
        """
        self._ensure_process()
        return self._exchange(name, *arguments, limit_s=limit_s)

    def _exchange(self, name: str, *arguments: Any, limit_s: float | None = None) -> Any:
        assert self._pipe is not None
        limit_s = self._limit_s if limit_s is None else limit_s
        try:
            self._pipe.send((name, *arguments))
            if not self._pipe.poll(limit_s):
                self._kill()
                raise NetworkError(
                    f"{self._configuration.name}: {name} did not return within {limit_s:g} s and its process was "
                    f"killed (time_limit_s of the plan sets the limit){self._last_output()}"
                )
            answer = self._pipe.recv()
        except (EOFError, ConnectionResetError, BrokenPipeError) as error:
            raise self._death(name) from error
        except KeyboardInterrupt:
            # Without the process the late answer to this call cannot be mistaken for the answer to the next one.
            self._kill()
            raise
        if name != "run":
            self._relay_output()
        if answer[0] == "ok":
            return answer[1]
        raise decode_error(*answer[1:])

    def _ensure_process(self) -> None:
        if self._process is None:
            self._start()
            try:
                limit_s = max(START_LIMIT_S, self._limit_s)
                self._optional_methods = self._exchange("open", self._configuration, limit_s=limit_s)
                self._group.started()
            except BaseException:
                self.end()
                raise

    def _start(self) -> None:
        own_end, other_end = socket.socketpair()
        self._output = tempfile.TemporaryFile(prefix="joulewatch-")  # noqa: SIM115  # closed by end()
        self._relayed_bytes = 0
        command = [
            *self._group.command_prefix(),
            # -u: the output of a call is complete when the call returns, and when the process is killed.
            *(sys.executable, "-u", "-P", "-c", _CODE),
            *(str(other_end.fileno()), str(os.getpid()), ",".join(map(str, self._cpus))),
            *(str(logging.getLogger().getEffectiveLevel()), "\n".join(sys.path)),
        ]
        try:
            with other_end:
                # In its own session the process does not get the terminal's Ctrl-C: the current call is completed.
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=self._output,
                    stderr=self._output,
                    pass_fds=(other_end.fileno(),),
                    start_new_session=True,
                    env=thread_environment(self._cpus, os.environ),
                )
        except OSError as error:
            own_end.close()
            raise NetworkError(f"{self._configuration.name}: cannot start a process: {error.strerror}") from error
        self._group.add(self._process.pid)
        self._pipe = Connection(own_end.detach())

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
        self._reap()

    def _reap(self) -> int | None:
        """Wait for the end of a dying process and return its exit status."""
        process, self._process = self._process, None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if process is None:
            return None
        try:
            return process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _death(self, call: str) -> NetworkError:
        """Return the error for a process that died during a call."""
        status = self._reap()
        if status is not None and status < 0:
            try:
                how = f"was ended by {signal.Signals(-status).name} (signal {-status})"
            except ValueError:
                how = f"was ended by signal {-status}"
            if status == -signal.SIGKILL:
                how += ", as the kernel does when memory is exhausted,"
        else:
            how = f"ended with exit code {status}"
        return NetworkError(f"{self._configuration.name}: its process {how} during {call}{self._last_output()}")

    def _last_output(self) -> str:
        """Return the last lines that a dead process printed, for an error text."""
        text = self._relay_output()
        if self._output is not None:
            self._output.close()
            self._output = None
        lines = [line for line in text.splitlines() if line.strip()][-3:]
        return f"; its last output: {' | '.join(lines)[-_LONGEST_OUTPUT:]}" if lines else ""

    def _relay_output(self) -> str:
        """Copy new output of the process to stderr and return it."""
        if self._output is None:
            return ""
        size = os.fstat(self._output.fileno()).st_size
        if size <= self._relayed_bytes:
            return ""
        data = os.pread(self._output.fileno(), size - self._relayed_bytes, self._relayed_bytes)
        self._relayed_bytes = size
        text = data.decode("utf-8", "replace")
        sys.stderr.write(text)
        sys.stderr.flush()
        return text


class _RemoteDriver:
    """The driver in the other process."""

    def __init__(self, network: IsolatedNetwork) -> None:
        self.waited_ns = 0
        self._network = network

    def begin(self, seed: str) -> None:
        self._network.begin(seed)

    def run(self, batches: int, phases: Phases) -> None:
        self.waited_ns = self._network.run_remote(batches, phases, driven=True)


def add_recorded(phases: Phases, state: Mapping[str, Any]) -> None:
    """Add what one call recorded in the other process to what was recorded before."""
    for name, new in state.items():
        present = getattr(phases, name, None)
        if isinstance(present, array):
            present.extend(new)
        elif isinstance(present, dict):
            for key, value in new.items():
                before = present.get(key)
                if before is None:
                    present[key] = value
                elif isinstance(value, list):
                    present[key] = [a + b for a, b in zip(before, value, strict=True)]
                else:
                    present[key] = before + value
        elif isinstance(present, (int, float)) and not isinstance(present, bool):
            setattr(phases, name, present + new)
        elif new is not None:
            setattr(phases, name, new)


def decode_error(name: str, text: str, module: str) -> Exception:
    """Return an error of the other process, as joulewatch's own class if it was one."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, JoulewatchError) and kind is not errors.CoverageError:
        return kind(text)
    if name == "MemoryError":
        return MemoryError(text)
    if name == "ModuleNotFoundError":
        return ModuleNotFoundError(text, name=module or None)
    error: Exception = type(name, (RemoteError,), {})(text)
    return error
