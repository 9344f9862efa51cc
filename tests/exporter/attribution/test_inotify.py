"""inotify: which folders came and went."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from joulewatch_exporter.attribution import inotify
from joulewatch_exporter.attribution.inotify import Change, Watcher


def test_folders_that_come_and_go_are_reported(tmp_path: Path) -> None:
    watcher = Watcher()
    watcher.watch(str(tmp_path))
    assert watcher.changes() == []
    (tmp_path / "a").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "b").rmdir()
    folder = str(tmp_path)
    assert watcher.changes() == [
        Change(folder, "a", True),
        Change(folder, "a", False),
        Change(folder, "b", True),
        Change(folder, "b", False),
    ]
    watcher.close()
    watcher.close()


def test_a_folder_that_was_made_again_can_be_watched_again(tmp_path: Path) -> None:
    watcher = Watcher()
    inner = tmp_path / "inner"
    inner.mkdir()
    watcher.watch(str(inner))
    watcher.watch(str(inner))
    assert len(watcher) == 1
    inner.rmdir()
    assert watcher.changes() == []
    assert str(inner) not in watcher
    inner.mkdir()
    watcher.watch(str(inner))
    (inner / "a").mkdir()
    assert watcher.changes() == [Change(str(inner), "a", True)]
    watcher.close()


def test_dropped_events_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Watcher()
    overflow = inotify._HEADER.pack(-1, inotify._OVERFLOW, 0, 0)
    answers = [overflow]

    def read(descriptor: int, size: int) -> bytes:
        if not answers:
            raise BlockingIOError
        return answers.pop()

    monkeypatch.setattr("os.read", read)
    assert watcher.changes() is None
    assert watcher.changes() == []
    monkeypatch.undo()
    watcher.close()


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    watcher = Watcher()
    with pytest.raises(OSError) as caught:
        watcher.watch(str(tmp_path / "missing"))
    assert caught.value.errno == errno.ENOENT
    watcher.close()
