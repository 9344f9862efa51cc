"""Threads for calls that may never return.

A Python thread cannot be killed: if a driver hangs, the call into it occupies its thread until the driver answers. So
every such call is made on a thread of a `Worker`. While the call hangs, another thread can abandon it. Then its subject
(a device) counts as hung, a new thread may continue the work, and the old thread ends when the call returns. The result
of an abandoned call is never used.

Waking a thread takes 0.05 ms, longer than many jobs. So a thread that needs the result at once may borrow the work and
do the job itself (`Worker.borrow`), if somebody else can do what it has to do after a call that hangs.

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


class AbandonedError(BaseException):
    """The call returned after it was abandoned. Not an Exception, because it is not a failure of the device."""


class Turn:
    """The time in which one thread does the work of a `Worker`.

    It ends when the thread is abandoned or the worker stops or, if the thread has borrowed the work, after one job.
    """

    __slots__ = ("_worker", "busy_since_ns", "is_abandoned", "is_claimed", "lender", "subject")

    def __init__(self, worker: Worker | None = None, lender: Turn | None = None) -> None:
        """Start a turn. Without a worker, the calling thread makes the calls, and nothing abandons them."""
        self.lender = lender
        """Turn of the worker's own thread, if this is another thread, which has borrowed the work."""
        self._worker = Worker("unwatched", lambda turn: None) if worker is None else worker
        self.subject: str | None = None
        """Subject of the call in progress; None: no call is in progress, so the thread cannot be abandoned."""
        self.is_claimed = False
        """Whether `Worker.abandon` claims the call in progress; see there."""
        self.is_abandoned = False
        self.busy_since_ns = 0
        """Monotonic start of the job in progress, which may make several calls; 0 when idle."""

    @property
    def is_over(self) -> bool:
        """Whether the thread is to end."""
        return self.is_abandoned or self._worker.is_stopping

    @property
    def hung(self) -> frozenset[str]:
        """Subjects of the worker's abandoned calls that have not returned."""
        return self._worker.hung

    def call(self, subject: str, function: Callable[[], T], discard: Callable[[T], object] | None = None) -> T:
        """Make a call that may hang.

        Args:
            subject: What counts as hung if the call is abandoned.
            function: The call.
            discard: Called with the result if the call was abandoned, to close what it opened.

        Raises:
            AbandonedError: Another thread has abandoned the call. This thread must end without changing shared state.
        """
        # A lock around each call would take longer than a fast read. Instead, both sides do two steps in a fixed order:
        # this side ends the call, then checks for a claim; `Worker.abandon` makes a claim, then checks that the call is
        # still in progress. So this side never misses a claim, and only if there is one does it take the lock, to see
        # whether the claim was withdrawn.
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
        with self._worker.condition:
            if not self.is_abandoned:
                return  # withdrawn: the call had ended before the claim
        logger.info("%s: %s: the call that hung has returned", self._worker.name, subject)
        try:
            if discard is not None and result is not None:
                discard(result)
        except Exception as error:
            logger.debug("%s: %s: %s", self._worker.name, subject, error)
        self._worker.forget(self)
        raise AbandonedError from None

    def wait(self, is_wanted: Callable[[], bool] = lambda: False) -> bool:
        """Wait until a job is due or wanted, then mark the turn as busy; return False if the turn is over."""
        worker = self._worker
        with worker.condition:
            while not self.is_abandoned:
                if worker.turn is not self:
                    worker.wait()  # until the thread that has borrowed the work returns it
                elif worker.is_stopping:
                    break
                elif is_wanted() or (left_ns := worker.due_ns - time.monotonic_ns()) <= 0:
                    self.busy_since_ns = time.monotonic_ns()
                    return True
                else:
                    worker.condition.wait(left_ns / NS_PER_S)
            return False

    def rest(self) -> None:
        """Mark the turn as idle after a job, and return the work if it was borrowed."""
        worker = self._worker
        with worker.condition:
            self.busy_since_ns = 0
            if self.lender is not None and worker.turn is self:
                worker.turn = self.lender
            worker.notify()


class Worker:
    """Work that one thread does at a time, with calls that may hang.

    The condition guards the state of the worker and of its user; it is not reentrant.
    """

    def __init__(self, name: str, work: Callable[[Turn], None]) -> None:
        """Prepare; ``start`` begins.

        Args:
            name: Name of the threads, for logs and debuggers.
            work: Runs on the thread until its turn is over.
        """
        self.name = name
        self._work = work
        self.condition = threading.Condition(threading.Lock())
        self.is_stopping = False
        self.due_ns = 0
        """Monotonic time at which the next job is due."""
        self.turn: Turn | None = None
        """Turn of the thread that does the work now; None: no thread is running."""
        self._waiting = 0
        """Number of threads in `Worker.wait`, not in `Turn.wait`."""
        self.hung: frozenset[str] = frozenset()
        """Subjects of abandoned calls that have not returned. The set is replaced, not changed: reads need no lock."""
        self._abandoned: dict[Turn, str] = {}
        self.thread: threading.Thread | None = None
        """The last thread that was started."""

    def start(self) -> None:
        """Start a thread; hold the condition if other threads may do the same.

        Raises:
            RuntimeError: The process is out of threads.
        """
        turn = self.turn = Turn(self)
        thread = threading.Thread(target=self._run, args=(turn,), name=self.name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # out of threads
            self.turn = None
            raise
        self.thread = thread

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for the end of a job. The condition must be held."""
        self._waiting += 1
        try:
            self.condition.wait(timeout_s)
        finally:
            self._waiting -= 1

    def notify(self) -> None:
        """Wake the threads in ``wait``, if there are any: the worker's own thread need not wake for nothing."""
        if self._waiting:
            self.condition.notify_all()

    def borrow(self) -> Turn | None:
        """Let the calling thread do one job instead of the worker's own thread; end it with `Turn.rest`.

        The condition must be held. If a call hangs, it is abandoned like any other: the calling thread gets an
        `AbandonedError` when the call returns.

        Returns:
            The turn of the calling thread; None: another thread is busy with a job, or the worker has no thread or is
            stopping.
        """
        own = self.turn
        if self.is_stopping or own is None or own.lender is not None or own.busy_since_ns:
            return None
        turn = self.turn = Turn(self, lender=own)
        turn.busy_since_ns = time.monotonic_ns()
        return turn

    def abandon(self) -> str | None:
        """Abandon the call in progress, and with it the thread that makes it. The condition must be held.

        If the thread had borrowed the work, the worker's own thread goes on; otherwise ``start`` another one.

        Returns:
            The subject of the call; None: no call is in progress, and the thread continues.
        """
        turn = self.turn
        if turn is None:
            return None
        turn.is_claimed = True
        subject = turn.subject
        if subject is None:
            turn.is_claimed = False
            return None
        turn.is_abandoned = True
        self._abandoned[turn] = subject
        self.hung = frozenset(self._abandoned.values())
        self.turn = turn.lender
        self.notify()
        return subject

    def forget(self, turn: Turn) -> None:
        """Remove an abandoned call that has returned."""
        with self.condition:
            del self._abandoned[turn]
            self.hung = frozenset(self._abandoned.values())

    def busy_ns(self, now_ns: int) -> int:
        """Return how long the current job has been running; 0 when idle."""
        turn = self.turn
        return now_ns - turn.busy_since_ns if turn is not None and turn.busy_since_ns else 0

    def stop(self) -> None:
        """Ask the thread to end, without waiting; a hung thread ends when its call returns. Safe to call twice."""
        with self.condition:
            self.is_stopping = True
            self.condition.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to end, ``timeout_s`` at most."""
        if self.thread is not None:
            self.thread.join(timeout_s)

    def _run(self, turn: Turn) -> None:
        try:
            self._work(turn)
        except AbandonedError:
            pass


class DeadlineThread:
    """Makes one call at a time on its own thread, for a caller that waits a limited time."""

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

    @property
    def hung_thread(self) -> int | None:
        """Identifier of the last thread that was started; None: none was."""
        thread = self._worker.thread
        return None if thread is None else thread.ident

    def call(self, function: Callable[[], T], timeout_s: float, discard: Callable[[T], object] | None = None) -> T:
        """Run ``function`` on the thread and return its result, or raise what it raised.

        Args:
            function: The call.
            timeout_s: How long to wait.
            discard: Called with a result that is too late, to close what the call opened.

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
            if self._job is not None or self._worker.abandon() is not None:
                raise SensorTimeoutError(f"{self._name}: no answer within {timeout_s:g} s")
            # The call has just returned, and its thread is about to store the outcome.
            self._condition.wait_for(lambda: self._outcome is not None)
        assert self._outcome is not None
        return self._outcome

    def close(self) -> None:
        """End the thread; a hung thread ends when its call returns. Safe to call twice."""
        self._worker.stop()

    def _serve(self, turn: Turn) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._job is not None or turn.is_over)
                if self._job is None:
                    return
                (function, discard), self._job = self._job, None
                turn.subject = self._name  # from here on the caller can abandon it
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
