"""Run a command as a shell would: signals are forwarded, and its exit code and resource use are returned."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

EXIT_NOT_EXECUTABLE: Final = 126
EXIT_NOT_FOUND: Final = 127
EXIT_SIGNAL: Final = 128
"""Plus the number of the signal that ended the command."""
FORWARDED: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
FROM_TERMINAL: Final = (signal.SIGINT, signal.SIGQUIT)
"""The terminal sends these, and SIGHUP when it closes, to all processes of the foreground group."""


class NotStartedError(Exception):
    """The command could not be started; ``exit_code`` is that of a shell."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a command ended, with the resources that it and its children used."""

    exit_code: int
    """128 + N if signal N ended it."""
    user_s: float
    system_s: float
    peak_memory_bytes: int | None
    """Of the largest of its processes; None: less than this process had, whose size Linux counts until ``exec``."""

    def details(self) -> dict[str, str]:
        """Return the outcome for the journal."""
        return {
            "exit_code": str(self.exit_code),
            "user_seconds": f"{self.user_s:.6f}",
            "system_seconds": f"{self.system_s:.6f}",
            **({} if self.peak_memory_bytes is None else {"peak_memory_bytes": str(self.peak_memory_bytes)}),
        }


class Child:
    """One command, started once at a time; between ``with`` and its end, signals are forwarded to it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.ended_by: int | None = None
        """A signal that this process has received."""

    def run(self, command: Sequence[str], *, folder: Path | None = None, stdout: int | None = None) -> Outcome:
        """Run a command with this process's stdin, stdout and stderr, and wait for its end.

        Args:
            command: A program and its arguments.
            folder: Working directory; default: that of this process.
            stdout: File descriptor that the command gets as stdout; default: that of this process.

        Raises:
            NotStartedError: The program does not exist (127) or cannot be executed (126).
        """
        own_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            process = subprocess.Popen(command, cwd=folder, stdout=stdout)
        except OSError as error:
            missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
            code = EXIT_NOT_FOUND if missing else EXIT_NOT_EXECUTABLE
            raise NotStartedError(f"{command[0]}: {error.strerror or error}", code) from error
        self._process = process
        if self.ended_by is not None:
            # It arrived while the command was being started.
            self._forward(self.ended_by, None)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        finally:
            self._process = None
        ended = os.waitstatus_to_exitcode(status)
        # Popen must not wait for a process that is gone.
        process.returncode = ended
        return Outcome(
            exit_code=EXIT_SIGNAL - ended if ended < 0 else ended,
            user_s=usage.ru_utime,
            system_s=usage.ru_stime,
            peak_memory_bytes=usage.ru_maxrss * 1024 if usage.ru_maxrss > own_kb else None,
        )

    @contextlib.contextmanager
    def signals_forwarded(self) -> Iterator[None]:
        """Forward signals to the command while it runs; without a command they end the repeats."""
        before: dict[signal.Signals, Any] = {}
        for number in (*FORWARDED, *FROM_TERMINAL):
            # A signal that is ignored, as SIGHUP under nohup, stays ignored, also by the command.
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, self._forward)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if number not in (signal.SIGUSR1, signal.SIGUSR2):
            self.ended_by = number
        process = self._process
        if process is None or (number in FROM_TERMINAL and _is_in_foreground()):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _is_in_foreground() -> bool:
    """Return whether the terminal sends its signals to this process's group, and so to the command, too."""
    try:
        with open("/dev/tty", "rb", buffering=0) as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False
