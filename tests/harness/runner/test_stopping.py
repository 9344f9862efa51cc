"""Ctrl-C and other signals: the first one ends the run, the second one the process."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from joulewatch_harness.runner.stopping import SIGNALS, WARNINGS, RunStopped, StopRequest


@pytest.mark.parametrize("number", [*SIGNALS, *WARNINGS])
def test_the_first_signal_asks_and_the_second_kills(number: signal.Signals) -> None:
    heard: list[int] = []
    before = signal.signal(number, lambda number, _frame: heard.append(number))
    try:
        with StopRequest() as stop:
            assert not stop.requested
            os.kill(os.getpid(), number)
            assert stop.requested
            assert signal.getsignal(number) not in (signal.SIG_DFL, before)
        os.kill(os.getpid(), number)
        assert heard == [number]
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGHUP, *WARNINGS])
def test_a_signal_that_is_ignored_stays_ignored(number: signal.Signals) -> None:
    """Nohup ignores SIGHUP."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), number)
            assert not stop.requested
    finally:
        signal.signal(number, before)


def test_repeated_warnings_do_not_end_the_process() -> None:
    """The kernel sends SIGXCPU every second."""
    with StopRequest() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGXCPU)
        assert stop.requested
    try:
        os.kill(os.getpid(), signal.SIGXCPU)  # while the result is written
    finally:
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)


def test_the_second_signal_has_its_default_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[tuple[int, Any]] = []
    stop = StopRequest()
    for warning in WARNINGS:
        stop._on_signal(warning, None)
    stop._on_signal(signal.SIGINT, None)
    monkeypatch.setattr(signal, "signal", lambda number, handler: raised.append((number, handler)))
    monkeypatch.setattr(signal, "raise_signal", lambda number: raised.append((number, "raised")))
    stop._on_signal(signal.SIGTERM, None)
    assert raised == [(signal.SIGTERM, signal.SIG_DFL), (signal.SIGTERM, "raised")]


def test_a_check_raises_once_the_run_is_stopped() -> None:
    stop = StopRequest()
    stop.check()
    stop.requested = True
    with pytest.raises(RunStopped):
        stop.check()
