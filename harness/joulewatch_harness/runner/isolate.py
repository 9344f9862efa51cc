"""A configuration's network in a process of its own, behind the same protocol.

So that what one runtime leaves behind (spinning threads, an allocator's arenas, flags of a library, a bound
device) cannot disturb another one in the same run, and so that a crash takes one batch size and not the run. The
process loops over batches itself: a message goes out and comes back once per call of ``run``, which lasts 50 to
100 ms. Times of a call are taken over there, on the one monotonic clock that all processes of a machine share.

Between its calls a process waits in a read and draws no power, once its runtime's threads have stopped spinning
(ONNX Runtime: some 50 ms after the last batch). The runner looks at the processor time of those that wait.
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
import time
from array import array
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, Final

from joulewatch_harness import errors
from joulewatch_harness.errors import JoulewatchError, NetworkError
from joulewatch_harness.network import MarksOnly, Phases
from joulewatch_harness.plan.scenario import Scenario
from joulewatch_harness.records import Configuration
from joulewatch_harness.runner.drivers import Driver
from joulewatch_harness.runner.pinning import cpu_time_s, thread_environment

logger = logging.getLogger(__name__)

START_LIMIT_S: Final = 60.0
"""For an interpreter to start and import a runtime, at least: long, for a machine that has much else to do."""
CLOSE_LIMIT_S: Final = 10.0
END_LIMIT_S: Final = 5.0
_LAST_WORDS: Final = 600
_CODE: Final = (
    "import sys; sys.path[:] = sys.argv[5].split('\\n'); from joulewatch_harness.runner.worker import main; "
    "main(int(sys.argv[1]), int(sys.argv[2]), tuple(map(int, filter(None, sys.argv[3].split(',')))), int(sys.argv[4]))"
)


class RemoteError(Exception):
    """An error of the other process, raised again under its own class name."""


class IsolatedNetwork:
    """The network of one configuration in its own process (the protocol of ``network``).

    The process starts with the first call that needs it, outlives ``close`` (what it has imported need not be
    imported again) and ends with ``end``. One that died is started and loaded again by the next ``prepare``.

    Args:
        configuration: What to open over there.
        cpus: Processors it stays on; none: all.
        time_limit_s: For one call; a process that is over it is killed.
    """

    def __init__(self, configuration: Configuration, *, cpus: Sequence[int] = (), time_limit_s: float = 600.0) -> None:
        self._configuration = configuration
        self._cpus = tuple(cpus)
        self._limit_s = time_limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._said: IO[bytes] | None = None
        self._relayed = 0
        self._offers: list[str] = []
        self._wanted = False
        """Whether it was loaded, and must be again after a crash."""
        self._scenario = Scenario()

    # The protocol

    def open(self) -> None:
        """Start the process and make the network in it.

        Raises:
            ConfigError: as ``runtimes.open_network``.
            NetworkError: the process does not start.
        """
        self._need_process()

    def describe(self) -> Mapping[str, Any]:
        """What the network says of itself, ``isolated`` and the processors that its process may use."""
        described: Mapping[str, Any] = self._call("describe")
        return described

    def load(self) -> None:
        """Load over there.

        Raises:
            ConfigError, NetworkError: as the network's own; or the process died, or took too long.
        """
        self._call("load")
        self._wanted = True

    def prepare(self, batch: int) -> None:
        """Prepare over there; a process that died before is started and loaded again first."""
        if self._process is None and self._wanted:
            logger.info("%s: its process is started again", self._configuration.name)
            self._call("load")
            self._call("scenario", self._scenario)
        self._call("prepare", batch)

    def run(self, batches: int, phases: Phases) -> None:
        """Run over there, back to back."""
        self._run(batches, phases, driven=False)

    def check(self) -> bool:
        """The network's own check; True where it has none."""
        self._need_process()
        return bool(self._call("check")) if "check" in self._offers else True

    def trace(self, path: Path) -> None:
        """The network's own trace.

        Raises:
            NetworkError: it has none.
        """
        self._need_process()
        if "trace" not in self._offers:
            raise NetworkError(f"{self._configuration.name}: this network offers no trace")
        self._call("trace", path)

    def close(self) -> None:
        """Free the network; the process stays, asleep. Safe to call twice."""
        self._wanted = False
        if self._process is not None:
            with contextlib.suppress(NetworkError):
                self._call("close", limit_s=CLOSE_LIMIT_S)

    # Beyond it

    def driver(self, scenario: Scenario) -> Driver:
        """The rules of a scenario, kept over there."""
        self._scenario = scenario
        self._call("scenario", scenario)
        return _RemoteDriver(self)

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    def cpu_time_s(self) -> float | None:
        """Processor time of the process so far; None without one."""
        return None if self._process is None else cpu_time_s(self._process.pid)

    def end(self) -> None:
        """End the process; safe to call twice. One that does not go by itself is killed."""
        process, self._process = self._process, None
        if self._pipe is not None:
            self._pipe.close()  # it sees the end of its calls, closes the network and goes
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
        self._relay()
        if self._said is not None:
            self._said.close()
            self._said = None

    # Calls

    def _run(self, batches: int, phases: Phases, *, driven: bool) -> int:
        recorded = not isinstance(phases, MarksOnly)
        start_ns, end_ns, waited_ns, state = self._call("run", batches, recorded, driven)
        phases.call_ns = None
        merge(phases, state)
        phases.call_ns = (start_ns, end_ns)
        return int(waited_ns)

    def _call(self, name: str, *arguments: Any, limit_s: float | None = None) -> Any:
        """One call and its answer.

        Raises:
            NetworkError: the process died or took too long; it is gone then.
            Exception: whatever was raised over there.
        """
        self._need_process()
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
                    f"killed (time_limit_s of the plan sets the limit){self._last_words()}"
                )
            answer = self._pipe.recv()
        except (EOFError, ConnectionResetError, BrokenPipeError) as error:
            raise self._died(name) from error
        except KeyboardInterrupt:
            # The answer to this call would be taken for that to the next one.
            self._kill()
            raise
        if name != "run":
            self._relay()
        if answer[0] == "ok":
            return answer[1]
        raise raised(*answer[1:])

    def _need_process(self) -> None:
        if self._process is None:
            self._start()
            try:
                self._offers = self._exchange("open", self._configuration, limit_s=max(START_LIMIT_S, self._limit_s))
            except BaseException:
                self.end()
                raise

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self._said = tempfile.TemporaryFile(prefix="joulewatch-")  # noqa: SIM115  # closed by end()
        self._relayed = 0
        command = [
            # -u: what a network prints is told with the call that printed it, and not lost when it is killed.
            *(sys.executable, "-u", "-P", "-c", _CODE),
            *(str(theirs.fileno()), str(os.getpid()), ",".join(map(str, self._cpus))),
            *(str(logging.getLogger().getEffectiveLevel()), "\n".join(sys.path)),
        ]
        try:
            with theirs:
                # A session of its own keeps the terminal's Ctrl-C from it: the run ends after the current call.
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=self._said,
                    stderr=self._said,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                    env=thread_environment(self._cpus, os.environ),
                )
        except OSError as error:
            ours.close()
            raise NetworkError(f"{self._configuration.name}: no process could be started: {error.strerror}") from error
        self._pipe = Connection(ours.detach())

    def _kill(self) -> None:
        process = self._process
        if process is not None:
            process.kill()
        self._gone()

    def _gone(self) -> int | None:
        """Collect what is left of a process that is ending; its exit status."""
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

    def _died(self, doing: str) -> NetworkError:
        status = self._gone()
        if status is not None and status < 0:
            try:
                how = f"was ended by {signal.Signals(-status).name} (signal {-status})"
            except ValueError:
                how = f"was ended by signal {-status}"
            if status == -signal.SIGKILL:
                how += ", as the kernel does when memory runs out"
        else:
            how = f"ended with exit code {status}"
        return NetworkError(f"{self._configuration.name}: its process {how} in {doing}{self._last_words()}")

    def _last_words(self) -> str:
        """The end of what it said, after it is gone."""
        text = self._relay()
        if self._said is not None:
            self._said.close()
            self._said = None
        lines = [line for line in text.splitlines() if line.strip()][-3:]
        return f"; it said: {' | '.join(lines)[-_LAST_WORDS:]}" if lines else ""

    def _relay(self) -> str:
        """Pass on what it has said since the last time; answers that."""
        if self._said is None:
            return ""
        size = os.fstat(self._said.fileno()).st_size
        if size <= self._relayed:
            return ""
        data = os.pread(self._said.fileno(), size - self._relayed, self._relayed)
        self._relayed = size
        text = data.decode("utf-8", "replace")
        sys.stderr.write(text)
        sys.stderr.flush()
        return text


class _RemoteDriver:
    """A scenario's rules in the other process."""

    def __init__(self, network: IsolatedNetwork) -> None:
        self.waited_ns = 0
        self._network = network

    def begin(self, seed: str) -> None:
        self._network._call("begin", seed)

    def run(self, batches: int, phases: Phases) -> None:
        self.waited_ns = self._network._run(batches, phases, driven=True)


def merge(phases: Phases, state: Mapping[str, Any]) -> None:
    """Lay what one call told over there upon what was told here."""
    for name, value in state.items():
        mine = getattr(phases, name, None)
        if isinstance(mine, array):
            mine.extend(value)
        elif isinstance(mine, dict):
            for key, told in value.items():
                known = mine.get(key)
                if known is None:
                    mine[key] = told
                else:
                    mine[key] = (
                        [a + b for a, b in zip(known, told, strict=True)] if isinstance(told, list) else known + told
                    )
        elif isinstance(mine, (int, float)) and not isinstance(mine, bool):
            setattr(phases, name, mine + value)
        elif value is not None:
            setattr(phases, name, value)


def raised(name: str, text: str, module: str) -> Exception:
    """The error of the other process, as one of ours where it is one."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, JoulewatchError) and kind is not errors.CoverageError:
        return kind(text)
    if name == "MemoryError":
        return MemoryError(text)
    if name == "ModuleNotFoundError":
        return ModuleNotFoundError(text, name=module or None)
    made: Exception = type(name, (RemoteError,), {})(text)
    return made


def overhead_s(network: IsolatedNetwork, calls: int = 200) -> float:
    """What one call costs beside the work in it: the mean over calls that do none."""
    start = time.perf_counter()
    for _ in range(calls):
        network._run(0, Phases(), driven=False)
    return (time.perf_counter() - start) / calls
