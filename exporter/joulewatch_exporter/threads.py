"""Calls that may never return, and the threads that make them.

A Python thread cannot be killed: a call into a driver that hangs keeps its thread until the driver answers. So every
such call is made on a thread of a `Worker`. While the call hangs, another thread can give it up: its subject (a device)
then counts as hung, a new thread may continue the work, and the old thread ends when its call returns. The result of a
call that was given up is never used.

Three users: `DeadlineThread` makes one call at a time for a caller that waits for it (opening a family, NVML);
`sampling.family_thread.FamilyThread` reads the devices of a family; `collectors.base.workers.Poller` keeps one slow
device connected and read.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from joulewatch_exporter.clock import NS_PER_S
from joulewatch_exporter.errors import SensorGlitchError, SensorTimeoutError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class GivenUpError(BaseException):
    """The call returned after it was given up. Not an Exception: it must not pass for a failure of the device."""


class Turn:
    """One thread's turn at the work of a `Worker`: it lasts until the thread is given up or the worker stops."""

    __slots__ = ("_lock", "_worker", "busy_since_ns", "is_claimed", "is_given_up", "subject")

    def __init__(self, worker: Worker | None = None) -> None:
        """Begin a turn; without a worker, calls are made by whoever asks for them and are never given up."""
        self._worker = worker
        self._lock = threading.Lock() if worker is None else worker.lock
        self.subject: str | None = None
        """Subject of the call in progress; None: no call is in progress, so the thread cannot be given up."""
        self.is_claimed = False
        """Whether `Worker.give_up` claims the call in progress; see there."""
        self.is_given_up = False
        self.busy_since_ns = 0
        """Monotonic start of the job in progress, which may make several calls; 0 when idle."""

    @property
    def is_over(self) -> bool:
        """Whether the thread is to end."""
        return self.is_given_up or (self._worker is not None and self._worker.is_stopping)

    @property
    def hung(self) -> frozenset[str]:
        """Subjects of the worker's calls that were given up and have not returned."""
        return frozenset() if self._worker is None else self._worker.hung

    def call(self, subject: str, function: Callable[[], T], discard: Callable[[T], object] | None = None) -> T:
        """Make a call that may hang.

        Args:
            subject: What counts as hung if the call is given up.
            function: The call.
            discard: Called with the result if the call was given up, to close what it opened.

        Raises:
            GivenUpError: Another thread gave the call up; this thread must end without touching shared state.
        """
        # No lock: it would cost more than a fast read. Instead, the order of two steps matters on each side: here the
        # call ends and then a claim is checked; `Worker.give_up` makes the claim and then checks that the call is still
        # in progress. So a claim is never overlooked, and the lock shows whether it was withdrawn.
        self.subject = subject
        result: Any = None
        try:
            result = function()
        finally:
            self.subject = None
            if self.is_claimed:
                self._end_late(subject, result, discard)
        return result  # type: ignore[no-any-return]

    def _end_late(self, subject: str, result: Any, discard: Callable[[Any], object] | None) -> None:
        with self._lock:
            if not self.is_given_up:
                return  # the call had ended before the claim
        assert self._worker is not None
        logger.info("%s: %s: a call that hung has returned", self._worker.name, subject)
        try:
            if discard is not None and result is not None:
                discard(result)
        except Exception as error:
            logger.debug("%s: %s: %s", self._worker.name, subject, error)
        self._worker.forget(self)
        raise GivenUpError from None

    def wait(self, due_ns: int, is_wanted: Callable[[], bool] = lambda: False) -> bool:
        """Wait until a job is due or wanted, and be busy from then on; False: the turn is over."""
        assert self._worker is not None
        condition = self._worker.condition
        with condition:
            while not self.is_over and not is_wanted() and (left_ns := due_ns - time.monotonic_ns()) > 0:
                condition.wait(left_ns / NS_PER_S)
            if self.is_over:
                return False
            self.busy_since_ns = time.monotonic_ns()
            return True


class Worker:
    """Work that one thread at a time does, in which calls may hang.

    Its condition guards the worker and the state of its user; it is not reentrant.
    """

    def __init__(self, name: str, work: Callable[[Turn], None]) -> None:
        """Prepare; ``start`` begins.

        Args:
            name: Of the threads, for logs and debuggers.
            work: Runs on the thread, until its turn is over.
        """
        self.name = name
        self._work = work
        self.lock = threading.Lock()
        self.condition = threading.Condition(self.lock)
        self.is_stopping = False
        self.turn: Turn | None = None
        """Of the thread that works now; None: there is none."""
        self.hung: frozenset[str] = frozenset()
        """Subjects of calls that were given up and have not returned; replaced as a whole, so any thread may read."""
        self._given_up: dict[Turn, str] = {}
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start a thread; with the lock held where threads may meet."""
        turn = self.turn = Turn(self)
        self._thread = threading.Thread(target=self._run, args=(turn,), name=self.name, daemon=True)
        self._thread.start()

    def give_up(self) -> str | None:
        """Leave the thread behind if it is in a call; the lock must be held.

        Returns:
            The subject, hung until the call returns; None: no call is in progress, and the thread continues.
        """
        turn = self.turn
        if turn is None:
            return None
        turn.is_claimed = True
        subject = turn.subject
        if subject is None:
            turn.is_claimed = False
            return None
        turn.is_given_up = True
        self._given_up[turn] = subject
        self.hung = frozenset(self._given_up.values())
        self.turn = None
        return subject

    def forget(self, turn: Turn) -> None:
        """Take note that a call that was given up has returned."""
        with self.condition:
            del self._given_up[turn]
            self.hung = frozenset(self._given_up.values())

    def busy_ns(self, now_ns: int) -> int:
        """Return how long the job in progress has run; 0 when idle."""
        turn = self.turn
        return now_ns - turn.busy_since_ns if turn is not None and turn.busy_since_ns else 0

    def stop(self) -> None:
        """Ask the thread to end, without waiting; one that hangs ends when its call returns. Safe to call twice."""
        with self.condition:
            self.is_stopping = True
            self.condition.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the thread, ``timeout_s`` at most."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self, turn: Turn) -> None:
        try:
            self._work(turn)
        except GivenUpError:
            pass


class DeadlineThread:
    """Makes one call at a time on a thread of its own, for a caller that waits a limited time."""

    def __init__(self, name: str) -> None:
        """Prepare; the first call starts the thread."""
        self._name = name
        self._worker = Worker(name, self._serve)
        self._condition = self._worker.condition
        self._job: tuple[Callable[[], Any], Callable[[Any], object] | None] | None = None
        self._outcome: tuple[Any, Exception | None] | None = None
        self._is_calling = False

    @property
    def is_hanging(self) -> bool:
        """Whether an earlier call has not returned yet."""
        return self._is_calling or bool(self._worker.hung)

    def call(self, function: Callable[[], T], timeout_s: float, discard: Callable[[T], object] | None = None) -> T:
        """Run ``function`` on the thread and return its result, or raise what it raised.

        Args:
            function: The call.
            timeout_s: How long to wait.
            discard: Called with a result that came too late.

        Raises:
            SensorTimeoutError: It has not returned within ``timeout_s``, or an earlier call has not returned yet.
        """
        with self._condition:
            if self._worker.is_stopping:
                raise SensorGlitchError(f"{self._name}: closed")
            if self.is_hanging:
                raise SensorTimeoutError(f"{self._name}: an earlier call has not returned")
            if self._worker.turn is None:
                self._worker.start()
            self._is_calling = True
            self._job = (function, discard)
            self._condition.notify_all()
            try:
                result, error = self._wait(timeout_s)
            finally:
                self._is_calling = False
                self._job = self._outcome = None
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def _wait(self, timeout_s: float) -> tuple[Any, Exception | None]:
        if not self._condition.wait_for(lambda: self._outcome is not None, timeout_s):
            if self._job is not None or self._worker.give_up() is not None:
                raise SensorTimeoutError(f"{self._name}: no answer within {timeout_s:g} s")
            # The call returned at the last moment, and its thread is about to hand over the outcome.
            self._condition.wait_for(lambda: self._outcome is not None)
        assert self._outcome is not None
        return self._outcome

    def close(self) -> None:
        """End the thread; one that hangs ends when its call returns. Safe to call twice."""
        self._worker.stop()

    def _serve(self, turn: Turn) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._job is not None or turn.is_over)
                if self._job is None:
                    return
                (function, discard), self._job = self._job, None
                turn.subject = self._name  # from here on the caller can give it up
            outcome: tuple[Any, Exception | None]
            try:
                outcome = (turn.call(self._name, function, discard), None)
            except Exception as error:
                outcome = (None, error)
            del function, discard
            with self._condition:
                self._outcome = outcome
                self._condition.notify_all()
            del outcome
