"""A worker thread for calls that may hang, with a deadline for each call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from joulewatch_exporter.errors import SensorGlitchError, SensorTimeoutError

T = TypeVar("T")


class DeadlineThread:
    """A thread of its own for calls that may never come back."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._condition = threading.Condition()
        self._call: Callable[[], Any] | None = None
        self._outcome: tuple[Any, BaseException | None] | None = None
        self._is_closed = False
        self._is_busy = False
        self._thread: threading.Thread | None = None

    @property
    def is_hanging(self) -> bool:
        """Whether an earlier call has not come back yet."""
        return self._is_busy

    def call(self, function: Callable[[], T], timeout_s: float) -> T:
        """Run ``function`` on the thread; its result, or what it raised.

        Raises:
            SensorTimeoutError: It has not come back within ``timeout_s``; at once while an earlier call hangs.
        """
        with self._condition:
            if self._is_closed:
                raise SensorGlitchError(f"{self._name}: closed")
            if self._is_busy:
                raise SensorTimeoutError(f"{self._name}: an earlier call has not come back")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._is_busy = True
            self._outcome = None
            self._call = function
            self._condition.notify_all()
            if not self._condition.wait_for(lambda: self._outcome is not None, timeout_s):
                raise SensorTimeoutError(f"{self._name}: no answer within {timeout_s:g} s")
            assert self._outcome is not None
            result, error = self._outcome
            self._outcome = None
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """End the thread; one that hangs ends when its call comes back. Safe to call twice."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._call is not None or self._is_closed)
                call, self._call = self._call, None
            if call is None:
                return
            outcome: tuple[Any, BaseException | None]
            try:
                outcome = (call(), None)
            except Exception as error:
                outcome = (None, error)
            del call
            with self._condition:
                self._outcome = outcome
                self._is_busy = False
                self._condition.notify_all()
