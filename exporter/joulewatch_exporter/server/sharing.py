"""Concurrent scrapes that ask for the same share one answer, so that many scrapers cost little more than one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

TURN_S: Final = 0.05
"""How long a scrape waits for an equal one that began before it. It must not wait longer, because a sensor that hangs
delays a scrape by seconds."""


class NoSlotError(Exception):
    """All slots are in use."""


class _Batch(Generic[T]):
    """Equal scrapes with one answer."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.outcome: tuple[T | None, Exception | None] | None = None
        """Result or error; None: its thread was relieved, so those that wait for it start again."""
        self.has_slot = False


class SharedScrapes(Generic[T]):
    """Runs at most ``slots`` scrapes at a time.

    A scrape must not show values that were read before it was requested. So it joins an equal one that has not begun
    yet: the first of them waits for a slot, and for an equal scrape in progress; those that arrive meanwhile join it.
    """

    def __init__(self, slots: int) -> None:
        """Prepare; ``slots`` is the number of concurrent scrapes, 0: no limit."""
        self._slots = threading.BoundedSemaphore(slots) if slots else None
        self._lock = threading.Lock()
        self._waiting: dict[Hashable, _Batch[T]] = {}
        self._running: dict[Hashable, _Batch[T]] = {}

    def run(self, key: Hashable, scrape: Callable[[Callable[[], None]], T], wait_s: float) -> T:
        """Return the result of ``scrape``, or of an equal scrape that begins after this call.

        Args:
            key: Scrapes with the same key are equal.
            scrape: Makes the answer. Its argument, called when another thread takes over because this one hangs, frees
                the slot and lets those that wait start again.
            wait_s: Longest time to wait for a slot.

        Raises:
            NoSlotError: There was no slot in time.
            Exception: ``scrape`` raised it.
        """
        while True:
            with self._lock:
                batch = self._waiting.get(key)
                is_first = batch is None
                if batch is None:
                    batch = self._waiting[key] = _Batch()
            if is_first:
                self._run(key, batch, scrape, wait_s)
            else:
                batch.done.wait()
            if batch.outcome is not None:
                result, error = batch.outcome
                if error is not None:
                    raise error
                return result  # type: ignore[return-value]

    def _run(self, key: Hashable, batch: _Batch[T], scrape: Callable[[Callable[[], None]], T], wait_s: float) -> None:
        started_s = time.monotonic()
        try:
            before = self._running.get(key)
            if before is not None:
                before.done.wait(min(TURN_S, wait_s))
            left_s = max(wait_s - (time.monotonic() - started_s), 0.0)
            batch.has_slot = self._slots is None or self._slots.acquire(timeout=left_s)
            with self._lock:
                # From here on a scrape cannot join: its values would be older than its request.
                del self._waiting[key]
                self._running[key] = batch
            if not batch.has_slot:
                raise NoSlotError
            batch.outcome = (scrape(lambda: self._end(key, batch)), None)
        except Exception as error:
            batch.outcome = (None, error)
        finally:
            self._end(key, batch)

    def _end(self, key: Hashable, batch: _Batch[T]) -> None:
        """Let others scrape; the second call for a batch does nothing."""
        with self._lock:
            if self._running.get(key) is batch:
                del self._running[key]
            had_slot, batch.has_slot = batch.has_slot, False
        if had_slot and self._slots is not None:
            self._slots.release()
        batch.done.set()
