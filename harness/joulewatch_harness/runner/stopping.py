"""Stop a run on Ctrl-C, SIGTERM, or SIGHUP, which a terminal sends when it closes."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self


class RunStopped(Exception):
    """The user stopped the run; the current step is discarded."""


class StopRequest:
    """Stop the run after the current call on the first Ctrl-C, SIGTERM or SIGHUP; end the process on the second."""

    def __init__(self) -> None:
        self.requested = False
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                    continue  # nohup
                self._previous_handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers.clear()

    def check(self) -> None:
        """Raise RunStopped if the user has stopped the run."""
        if self.requested:
            raise RunStopped

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.requested = True
