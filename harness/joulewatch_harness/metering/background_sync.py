"""Sync the journal of a meter on a thread: the user's code continues while the disk is busy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from joulewatch_harness.errors import StorageError
from joulewatch_harness.records import Configuration, Line, RunEnd, Window, WindowKind
from joulewatch_harness.runner.run_log import Delivering
from joulewatch_harness.storage.journal import Journal


class BackgroundSync:
    """Writes lines at once, so that a kill of the process loses none, and syncs and delivers them on a thread.

    ``settle`` waits until all lines are on the disk. Nothing is delivered before.

    Args:
        journal: Written by one thread at a time.
        delivery: Gets what the journal has.
    """

    def __init__(self, journal: Journal, delivery: Delivering) -> None:
        self._journal = journal
        self._delivery = delivery
        self._condition = threading.Condition()
        self._written = self._synced = 0
        self._events: list[Callable[[], None]] = []
        self._failure: StorageError | None = None
        self._closing = False
        # A daemon, because the meter may be closed at the exit of the program, which is after that of other threads.
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()

    def append(self, line: Line) -> None:
        """Write a line.

        Raises:
            StorageError: the disk is full or broken, now or while an earlier line was synced.
            RecordError: see ``Journal.append``.
        """
        self._raise_failure()
        self._journal.write(line)
        with self._condition:
            self._written += 1
            self._condition.notify_all()

    def settle(self) -> None:
        """Wait until all lines are on the disk.

        Raises:
            StorageError: they could not be written.
        """
        with self._condition:
            written = self._written
            self._condition.wait_for(lambda: self._synced >= written)
        self._raise_failure()

    def close(self) -> None:
        """Wait as ``settle`` does, and end the thread."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join()
        self._raise_failure()

    def configuration(self, configuration: Configuration) -> None:
        self._post(partial(self._delivery.configuration, configuration))

    def window_opened(self, kind: WindowKind, configuration: str, batch_size: int, at_s: float) -> None:
        self._post(partial(self._delivery.window_opened, kind, configuration, batch_size, at_s))

    def window(self, window: Window) -> None:
        self._post(partial(self._delivery.window, window))

    def end(self, end: RunEnd) -> None:
        self._post(partial(self._delivery.end, end))

    def _post(self, event: Callable[[], None]) -> None:
        with self._condition:
            if self._synced < self._written:
                self._events.append(event)
                return
        event()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._synced < self._written or self._closing)
                if self._synced == self._written:
                    return
                written = self._written
            try:
                self._journal.sync()
            except StorageError as error:
                self._failure = error
            with self._condition:
                if self._failure is not None:
                    self._events.clear()
                elif written == self._written:  # else there may be events of lines that are not synced yet
                    for event in self._events:
                        event()
                    self._events.clear()
                self._synced = written
                self._condition.notify_all()
