"""The journal of a meter: written at once, synced on a thread, and delivered after that."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from joulewatch_harness.errors import StorageError
from joulewatch_harness.metering.background_sync import BackgroundSync
from joulewatch_harness.records import Configuration, Note, RunEnd, Window, WindowKind
from joulewatch_harness.storage.journal import Journal, read_run
from support.runs import header
from support.runs import window as window_at


class Delivered:
    """Notes what it gets."""

    def __init__(self) -> None:
        self.got: list[str] = []

    def configuration(self, configuration: Configuration) -> None:
        self.got.append(configuration.name)

    def window_opened(self, kind: WindowKind, configuration: str, batch_size: int, at_s: float) -> None:
        self.got.append(f"{kind} opened")

    def window(self, window: Window) -> None:
        self.got.append(f"window {window.index}")

    def end(self, end: RunEnd) -> None:
        self.got.append(end.status)


class Disk:
    """Syncs when it is allowed to, or fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_ready = threading.Event()
        self.error: OSError | None = None
        monkeypatch.setattr(os, "fsync", self.sync)

    def sync(self, _: Any) -> None:
        self.is_ready.wait(5)
        error, self.error = self.error, None
        if error is not None:
            raise error


def window(index: int) -> Window:
    return window_at(index, 1_700_000_000.0 + 2 * index)


def note(text: str) -> Note:
    return Note(at_s=1.0, reason="r", text=text)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.create(tmp_path, header()) as journal:
        yield journal


def notes(journal: Journal) -> list[str]:
    return [note.text for note in read_run(journal.folder).notes]


def test_lines_are_in_the_file_before_they_are_on_the_disk_and_delivered_after_it(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, delivered = Disk(monkeypatch), Delivered()
    sync = BackgroundSync(journal, delivered)
    sync.append(window(0))
    sync.window(window(0))
    sync.window_opened("measure", "a", 1, 1.0)
    assert len(read_run(journal.folder).windows) == 1
    assert delivered.got == []
    disk.is_ready.set()
    sync.settle()
    assert delivered.got == ["window 0", "measure opened"]
    sync.window_opened("measure", "a", 1, 1.0)
    assert len(delivered.got) == 3, "with everything on the disk there is nothing to wait for"
    sync.close()


def test_a_line_that_comes_during_a_sync_is_delivered_after_the_next_one(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[int] = []
    allowed, begun = threading.Semaphore(0), threading.Semaphore(0)

    def slow(_: Any) -> None:
        begun.release()
        allowed.acquire(timeout=5)
        syncs.append(len(delivered.got))

    monkeypatch.setattr(os, "fsync", slow)
    delivered = Delivered()
    sync = BackgroundSync(journal, delivered)
    sync.append(window(0))
    sync.window(window(0))
    begun.acquire(timeout=5)
    sync.append(window(1))
    sync.window(window(1))
    allowed.release(2)
    sync.settle()
    assert syncs == [0, 0]
    assert delivered.got == ["window 0", "window 1"]
    sync.close()


@pytest.mark.parametrize("call", ["settle", "close"])
def test_a_disk_that_fails_later_is_an_error_of_the_next_call(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    disk, delivered = Disk(monkeypatch), Delivered()
    disk.is_ready.set()
    sync = BackgroundSync(journal, delivered)
    sync.append(note("kept"))
    sync.settle()
    disk.error = OSError(28, "No space left on device")
    sync.append(note("lost"))
    sync.window(window(0))
    with pytest.raises(StorageError, match="No space left on device"):
        getattr(sync, call)()
    assert notes(journal) == ["kept"]
    assert "window 0" not in delivered.got
    if call != "close":
        sync.append(note("later"))
        sync.close()
        assert notes(journal) == ["kept", "later"]


def test_close_waits_for_the_disk(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, delivered = Disk(monkeypatch), Delivered()
    sync = BackgroundSync(journal, delivered)
    sync.append(RunEnd(1.0, "complete"))
    sync.end(RunEnd(1.0, "complete"))
    disk.is_ready.set()
    sync.close()
    assert delivered.got == ["complete"]
