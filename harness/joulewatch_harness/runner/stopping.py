"""Stop a run on Ctrl-C, SIGTERM, or SIGHUP, which a terminal sends when it closes, or a warning of a batch system."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Final, Self

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ALWAYS: Final = (signal.SIGINT, signal.SIGTERM)
"""The others stay ignored if they are."""
WARNINGS: Final = (signal.SIGXCPU, signal.SIGUSR1, signal.SIGUSR2)
"""Batch systems warn of the end of a job with these; without a handler they would kill the process, and the run would
have no end. The kernel repeats SIGXCPU every second, so the second warning does not end the process."""


class RunStopped(Exception):
    """The user stopped the run; the current step is discarded."""


class StopRequest:
    """Stop the run after the current call on the first signal; end the process on the second one of `SIGNALS`."""

    def __init__(self) -> None:
        self.requested = False
        self._signalled = False
        self._warnings: set[int] = set()
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (*SIGNALS, *WARNINGS):
                if number not in ALWAYS and signal.getsignal(number) is signal.SIG_IGN:
                    continue  # nohup
                self._previous_handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            # A warning that is repeated must not kill the process while it writes the result.
            is_ignored = number in self._warnings and handler is signal.SIG_DFL
            signal.signal(number, signal.SIG_IGN if is_ignored else handler)
        self._previous_handlers.clear()

    def check(self) -> None:
        """Raise RunStopped if the user has stopped the run."""
        if self.requested:
            raise RunStopped

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number in SIGNALS:
            if self._signalled:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            self._signalled = True
        else:
            self._warnings.add(number)
        self.requested = True
