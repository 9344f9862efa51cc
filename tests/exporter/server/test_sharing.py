"""Concurrent scrapes that ask for the same."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from joulewatch_exporter.server import sharing
from joulewatch_exporter.server.sharing import NoSlotError, SharedScrapes
from joulewatch_exporter.threads import AbandonedError
from support.waiting import wait_until


class Held:
    """A scrape that waits for the test, and counts its calls."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.began = threading.Semaphore(0)
        self.calls = 0

    def __call__(self, end: Callable[[], None]) -> int:
        self.calls += 1
        call = self.calls
        self.began.release()
        assert self.release.wait(10)
        return call


def test_scrapes_that_wait_for_the_same_share_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one in progress began before them, so they share the next."""
    monkeypatch.setattr(sharing, "TURN_S", 10.0)
    shared: SharedScrapes[int] = SharedScrapes(1)
    held = Held()
    with ThreadPoolExecutor(10) as pool:
        first = pool.submit(shared.run, "key", held, 10.0)
        assert held.began.acquire(timeout=10)
        others = [pool.submit(shared.run, "key", held, 10.0) for _ in range(9)]
        wait_until(lambda: all(other.running() for other in others) and "key" in shared._waiting)
        held.release.set()
        assert first.result(10) == 1
        results = {other.result(10) for other in others}
    assert 2 in results
    assert held.calls < 10, "a thread that started late may have missed the second scrape"


def test_a_scrape_that_hangs_does_not_hold_up_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "TURN_S", 0.0)
    shared: SharedScrapes[int] = SharedScrapes(0)
    held = Held()
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(shared.run, "key", held, 10.0)
        assert held.began.acquire(timeout=10)
        assert shared.run("key", lambda end: 7, 10.0) == 7
        held.release.set()
        assert hanging.result(10) == 1


def test_without_a_slot_in_time_the_scrape_is_refused() -> None:
    shared: SharedScrapes[int] = SharedScrapes(1)
    held = Held()
    with ThreadPoolExecutor(1) as pool:
        busy: Future[int] = pool.submit(shared.run, "a", held, 10.0)
        assert held.began.acquire(timeout=10)
        with pytest.raises(NoSlotError):
            shared.run("b", lambda end: 1, 0.0)
        held.release.set()
        busy.result(10)
    assert shared.run("b", lambda end: 1, 0.0) == 1


def test_an_error_reaches_its_caller_and_frees_the_slot() -> None:
    shared: SharedScrapes[int] = SharedScrapes(1)

    def fail(end: Callable[[], None]) -> int:
        raise ValueError("broken")

    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            shared.run("a", fail, 0.0)


def test_when_another_thread_takes_over_the_slot_is_free_and_those_that_wait_start_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread that hangs may never come back."""
    monkeypatch.setattr(sharing, "TURN_S", 0.0)
    shared: SharedScrapes[str] = SharedScrapes(1)
    release, began = threading.Event(), threading.Event()
    ends: list[Callable[[], None]] = []

    def hang(end: Callable[[], None]) -> str:
        ends.append(end)
        began.set()
        assert release.wait(10)
        raise AbandonedError

    with ThreadPoolExecutor(2) as pool:
        hanging = pool.submit(shared.run, "key", hang, 10.0)
        assert began.wait(10)
        waiting = pool.submit(shared.run, "key", lambda end: "again", 10.0)
        wait_until(lambda: "key" in shared._waiting)
        ends[0]()
        assert waiting.result(10) == "again"
        assert shared.run("other", lambda end: "other", 0.0) == "other"
        release.set()
        with pytest.raises(AbandonedError):
            hanging.result(10)
    assert shared.run("key", lambda end: "one slot", 0.0) == "one slot"
    assert shared._slots is not None
    with pytest.raises(ValueError, match="too many"):
        shared._slots.release()  # it was released once only


def test_those_that_had_joined_a_scrape_start_again_too() -> None:
    class Joined(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            has_joined.set()
            return super().wait(timeout)

    has_joined = threading.Event()
    shared: SharedScrapes[str] = SharedScrapes(1)
    joined = shared._waiting["key"] = sharing._Batch()
    joined.done = Joined()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(shared.run, "key", lambda end: "again", 10.0)
        assert has_joined.wait(10)
        del shared._waiting["key"]
        shared._end("key", joined)
        assert waiting.result(10) == "again"
