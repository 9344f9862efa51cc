"""Calls that hang: when they are abandoned, which thread continues, and what happens when they return."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from joulewatch_exporter.errors import SensorGlitchError, SensorTimeoutError
from joulewatch_exporter.threads import AbandonedError, DeadlineThread, Turn, Worker
from support.waiting import wait_until

WAIT_S = 10.0
"""For what takes microseconds; only a broken test waits so long."""


# -- a turn and its worker, without threads ------------------------------------------------------------


@pytest.fixture
def worker() -> Worker:
    """A worker whose turn belongs to the test's thread."""
    worker = Worker("read-fake", lambda turn: None)
    worker.turn = Turn(worker)
    return worker


def turn_of(worker: Worker) -> Turn:
    assert worker.turn is not None
    return worker.turn


def abandon(worker: Worker) -> str | None:
    with worker.condition:
        return worker.abandon()


def test_a_call_returns_its_result_or_raises_its_error(worker: Worker) -> None:
    turn = turn_of(worker)
    assert turn.call("gpu0", lambda: 42) == 42
    with pytest.raises(ZeroDivisionError):
        turn.call("gpu0", lambda: 1 // 0)
    assert Turn().call("gpu0", lambda: 42) == 42, "without a worker, too"


def test_a_thread_without_a_call_in_progress_is_not_abandoned(worker: Worker) -> None:
    turn = turn_of(worker)
    turn.call("gpu0", lambda: None)
    assert abandon(worker) is None
    assert not turn.is_abandoned
    assert worker.turn is turn


def test_the_result_of_an_abandoned_call_is_not_used(worker: Worker) -> None:
    """Not even if it returns in the same moment."""
    turn = turn_of(worker)
    hung: list[frozenset[str]] = []

    def read() -> int:
        assert abandon(worker) == "gpu0"
        hung.append(turn.hung)
        assert abandon(worker) is None, "once"
        return 42

    with pytest.raises(AbandonedError):
        turn.call("gpu0", read)
    assert hung == [frozenset({"gpu0"})]
    assert worker.hung == frozenset(), "it has returned"
    assert turn.is_over


def test_the_error_of_an_abandoned_call_is_not_raised(worker: Worker) -> None:
    def read() -> None:
        abandon(worker)
        raise OSError("EIO")

    with pytest.raises(AbandonedError):
        turn_of(worker).call("gpu0", read)


def test_work_that_catches_exceptions_does_not_catch_the_end_of_an_abandoned_call() -> None:
    failures: list[Exception] = []

    def work(turn: Turn) -> None:
        try:
            turn.call("gpu0", lambda: abandon(own))
        except Exception as error:
            failures.append(error)
        failures.append(AssertionError("the thread has ended"))

    own = Worker("w", work)
    own.start()
    own.join(WAIT_S)
    assert failures == []


def test_a_late_result_is_closed_before_the_call_counts_as_returned(worker: Worker) -> None:
    closed: list[tuple[str, frozenset[str]]] = []

    def open_() -> str:
        abandon(worker)
        return "connection"

    with pytest.raises(AbandonedError):
        turn_of(worker).call("bmc1", open_, discard=lambda opened: closed.append((opened, worker.hung)))
    assert closed == [("connection", frozenset({"bmc1"}))]
    assert worker.hung == frozenset()


def test_a_subject_hangs_as_long_as_one_of_its_calls_does(worker: Worker) -> None:
    first = turn_of(worker)
    second = Turn(worker)

    def hang_in_second() -> None:
        abandon(worker)
        worker.turn = second
        with pytest.raises(AbandonedError):
            second.call("socket0", lambda: abandon(worker))
        assert worker.hung == {"socket0"}

    with pytest.raises(AbandonedError):
        first.call("socket0", hang_in_second)
    assert worker.hung == frozenset()


def test_a_claim_that_was_withdrawn_does_not_count(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """``abandon`` makes a claim before it sees that the call has ended; the thread may see the claim meanwhile."""
    turn = turn_of(worker)

    class Condition:
        """Blocks until ``abandon`` has withdrawn its claim."""

        def __enter__(self) -> None:
            turn.is_claimed = False

        def __exit__(self, *error: object) -> None:
            pass

    def read() -> int:
        turn.is_claimed = True
        return 42

    monkeypatch.setattr(worker, "condition", Condition())
    assert turn.call("gpu0", read) == 42


class WatchedTurn(Turn):
    """Calls a function before its subject is read or changed, to do what another thread might do in that moment."""

    def __init__(self, worker: Worker) -> None:
        self.then: Callable[[str], object] = lambda event: None
        self._subject: str | None = None
        super().__init__(worker)

    @property
    def subject(self) -> str | None:
        self.then("read")
        return self._subject

    @subject.setter
    def subject(self, subject: str | None) -> None:
        self.then("change" if subject is not None else "end")
        self._subject = subject


def test_a_call_that_is_abandoned_as_it_ends_is_not_counted(worker: Worker) -> None:
    turn = worker.turn = WatchedTurn(worker)
    turn.then = lambda event: event == "end" and abandon(worker)
    with pytest.raises(AbandonedError):
        turn.call("gpu0", lambda: 42)


def test_a_call_is_claimed_before_it_is_seen_to_be_in_progress(worker: Worker) -> None:
    """Otherwise the call could end, and its result be counted, between the two steps."""
    turn = worker.turn = WatchedTurn(worker)
    claims: list[bool] = []

    def note(event: str) -> None:
        if event == "read":
            claims.append(turn.is_claimed)

    def read() -> None:
        turn.then = note
        abandon(worker)
        turn.then = lambda event: None

    with pytest.raises(AbandonedError):
        turn.call("gpu0", read)
    assert claims
    assert all(claims)


def test_each_call_is_counted_or_abandoned_and_one_thread_at_a_time_is_between_calls() -> None:
    """Calls are abandoned at random moments."""
    made: list[int] = []
    counted: list[int] = []
    late: list[int] = []
    overlaps: list[int] = []
    between = threading.Lock()

    def read() -> int:
        made.append(1)
        return sum(1 for _ in range(20))  # long enough to be abandoned now and then

    def work(turn: Turn) -> None:
        while not turn.is_over:
            number = turn.call("gpu0", read, discard=late.append)
            if not between.acquire(blocking=False):
                overlaps.append(number)
                return
            counted.append(number)
            between.release()

    worker = Worker("w", work)
    switch_interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        worker.start()
        abandoned = 0
        while abandoned < 100:
            with worker.condition:
                if worker.abandon() is not None:
                    abandoned += 1
                    worker.start()
        worker.stop()
        worker.join(WAIT_S)
        wait_until(lambda: not worker.hung)
    finally:
        sys.setswitchinterval(switch_interval_s)
    assert not overlaps
    assert len(late) == abandoned
    assert len(made) == len(counted) + abandoned


def test_a_thread_waits_until_a_job_is_due_or_wanted(worker: Worker) -> None:
    turn = turn_of(worker)
    assert worker.busy_ns(time.monotonic_ns()) == 0
    assert turn.wait()
    assert worker.busy_ns(turn.busy_since_ns + 5) == 5
    worker.due_ns = time.monotonic_ns() + 10**12
    assert turn.wait(is_wanted=lambda: True)
    worker.stop()
    assert not turn.wait()


# -- work that another thread borrows --------------------------------------------------------------------


def borrow(worker: Worker) -> Turn | None:
    with worker.condition:
        return worker.borrow()


def test_one_thread_at_a_time_borrows_the_work(worker: Worker) -> None:
    own = turn_of(worker)
    first = borrow(worker)
    assert first is not None
    assert borrow(worker) is None
    assert worker.busy_ns(first.busy_since_ns + 5) == 5
    first.rest()
    assert worker.turn is own
    assert worker.busy_ns(time.monotonic_ns()) == 0
    assert own.wait()
    assert borrow(worker) is None, "its own thread is busy"
    own.rest()
    assert borrow(worker) is not None


def test_nothing_can_be_borrowed_without_a_thread_or_at_the_end(worker: Worker) -> None:
    worker.stop()
    assert borrow(worker) is None
    assert borrow(Worker("read-fake", lambda turn: None)) is None


def test_a_borrowed_call_that_hangs_is_abandoned_and_the_own_thread_goes_on(worker: Worker) -> None:
    own = turn_of(worker)
    borrowed = borrow(worker)
    assert borrowed is not None
    with pytest.raises(AbandonedError):
        borrowed.call("gpu0", lambda: abandon(worker))
    assert worker.turn is own
    assert own.wait()
    borrowed.rest()
    assert worker.turn is own
    assert worker.busy_ns(own.busy_since_ns + 5) == 5, "a job that was abandoned does not end that of the others"


def test_the_own_thread_waits_for_the_thread_that_has_borrowed_the_work() -> None:
    """Also when it is asked to end: it closes what the other one is using."""
    jobs: list[str] = []

    def work(turn: Turn) -> None:
        while turn.wait():
            worker.due_ns = time.monotonic_ns() + 10**15
            turn.rest()
            jobs.append("own")
        jobs.append("closed")

    worker = Worker("read-fake", work)
    worker.due_ns = 10**18
    worker.start()
    borrowed = borrow(worker)
    assert borrowed is not None
    worker.due_ns = 0
    with worker.condition:
        worker.condition.notify_all()
    wait_until(lambda: worker._waiting == 1)
    borrowed.rest()
    wait_until(lambda: jobs == ["own"])
    again = borrow(worker)
    assert again is not None
    worker.stop()
    wait_until(lambda: worker._waiting == 1)
    assert jobs == ["own"]
    again.rest()
    worker.join(WAIT_S)
    assert jobs == ["own", "closed"]


def test_each_job_is_done_by_one_thread_at_a_time_whoever_borrows_and_abandons_it() -> None:
    """Calls of both threads are abandoned at random moments."""
    overlaps: list[str] = []
    ended = {"own": 0, "borrowed": 0}
    busy = threading.Lock()

    def read() -> int:
        return sum(range(50))

    def job(turn: Turn, kind: str) -> None:
        turn.call("gpu0", read)
        if not busy.acquire(blocking=False):
            overlaps.append(kind)
        else:
            ended[kind] += 1
            busy.release()
        turn.rest()

    def work(turn: Turn) -> None:
        while turn.wait():
            job(turn, "own")

    def borrow_often() -> None:
        while not worker.is_stopping:
            turn = borrow(worker)
            if turn is not None:
                try:
                    job(turn, "borrowed")
                except AbandonedError:
                    pass

    worker = Worker("w", work)
    threads = [threading.Thread(target=borrow_often, daemon=True) for _ in range(2)]
    deadline_s = time.monotonic() + WAIT_S
    switch_interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        worker.start()
        for thread in threads:
            thread.start()
        abandoned = 0
        while (abandoned < 50 or min(ended.values()) < 50) and time.monotonic() < deadline_s:
            with worker.condition:
                if worker.abandon() is not None:
                    abandoned += 1
                    if worker.turn is None:
                        worker.start()
        worker.stop()
        for thread in threads:
            thread.join(WAIT_S)
        worker.join(WAIT_S)
        wait_until(lambda: not worker.hung)
    finally:
        worker.stop()
        sys.setswitchinterval(switch_interval_s)
    assert not overlaps
    assert abandoned > 0
    assert min(ended.values()) > 0


def test_a_worker_that_is_out_of_threads_starts_at_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    deadline = DeadlineThread("gpu0")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            deadline.call(lambda: 42, WAIT_S)
    assert deadline.call(lambda: 42, WAIT_S) == 42
    deadline.close()


# -- one call at a time, for a caller that waits ---------------------------------------------------------


@pytest.fixture
def thread() -> Iterator[DeadlineThread]:
    thread = DeadlineThread("gpu0")
    yield thread
    thread.close()


def test_the_caller_gets_the_result_or_the_error(thread: DeadlineThread) -> None:
    assert thread.call(lambda: 42, WAIT_S) == 42
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 // 0, WAIT_S)
    assert thread.call(threading.get_ident, WAIT_S) == thread.call(threading.get_ident, WAIT_S)
    assert thread.call(threading.get_ident, WAIT_S) != threading.get_ident()
    assert not thread.is_hanging


def test_while_a_call_hangs_further_calls_are_refused(thread: DeadlineThread) -> None:
    release = threading.Event()
    discarded: list[bool] = []
    with pytest.raises(SensorTimeoutError, match=r"gpu0: no answer within 0\.01 s"):
        thread.call(lambda: release.wait(WAIT_S), 0.01, discard=discarded.append)
    assert thread.is_hanging
    with pytest.raises(SensorTimeoutError, match="an earlier call has not returned"):
        thread.call(lambda: 1, WAIT_S)
    release.set()
    wait_until(lambda: not thread.is_hanging)
    assert discarded == [True]
    assert thread.call(lambda: 2, WAIT_S) == 2, "and not the late result of the call that hung"


def test_a_call_while_another_is_in_progress_is_refused(thread: DeadlineThread) -> None:
    begun, release = threading.Event(), threading.Event()
    results: list[bool] = []

    def hang() -> bool:
        begun.set()
        return release.wait(WAIT_S)

    first = threading.Thread(target=lambda: results.append(thread.call(hang, WAIT_S)))
    first.start()
    assert begun.wait(WAIT_S)
    assert thread.is_hanging
    with pytest.raises(SensorTimeoutError, match="an earlier call has not returned"):
        thread.call(lambda: 1, WAIT_S)
    release.set()
    first.join(WAIT_S)
    assert results == [True]


def test_a_closed_thread_refuses_calls() -> None:
    thread = DeadlineThread("t")
    thread.close()
    thread.close()
    with pytest.raises(SensorGlitchError, match="closed"):
        thread.call(lambda: 1, WAIT_S)


def test_a_closed_thread_that_hung_ends_when_its_call_returns() -> None:
    thread = DeadlineThread("hung-and-closed")
    release = threading.Event()
    with pytest.raises(SensorTimeoutError):
        thread.call(lambda: release.wait(WAIT_S), 0.01)
    thread.close()
    release.set()
    wait_until(lambda: "hung-and-closed" not in [other.name for other in threading.enumerate()])
