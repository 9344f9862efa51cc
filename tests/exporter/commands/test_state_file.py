"""The state file: one line for what cannot be used, one step for a new one, one call at a time."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from joulewatch_exporter.commands import state_file
from joulewatch_exporter.errors import ConfigError, ExporterError
from joulewatch_exporter.sampling.saved import SavedErrors, SavedQuantity, SavedState
from support.waiting import wait_until

STATE = SavedState(
    boot_id="b",
    saved_at_s=1.5,
    saved_at_ns=2,
    start_s=0.5,
    quantities=(
        SavedQuantity(
            collector="rapl",
            scope="device",
            component="cpu",
            device="socket0",
            domain="package",
            source="/sys/x",
            wrap_joules=65532.610987,
            reads="energy",
            total_joules=0.1 + 0.2,
            read_at_ns=2**60 + 1,
        ),
    ),
    errors=(SavedErrors(collector="rapl", device="socket1", reason="denied", count=3),),
)


def test_a_state_is_read_back_exactly_and_a_missing_file_is_a_new_start(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert state_file.load(path) is None
    state_file.store(path, STATE)
    assert state_file.load(path) == STATE
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a state file of joulewatch-exporter; choose another path, or remove the file"),
        ("\x7fELF", "not a state file"),
        ("[1]", "not a state file"),
        ('{"name": "package"}', "not a state file"),
        ('{"joulewatch_state": 2}', "has format 2, and this version reads 1; remove the file"),
        ('{"joulewatch_state": 1}', "needs boot_id and .*; the file is damaged: remove it"),
        (json.dumps({"joulewatch_state": 1, "boot_id": "b", "saved_at_s": "x"}), "the file is damaged"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_and_stays_as_it_is(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        state_file.load(path)
    assert str(caught.value).startswith(f"--state {path}: ")
    assert "\n" not in str(caught.value)
    assert path.read_text() == text


def test_a_file_without_end_is_one_line(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_file, "_MOST_BYTES", 1 << 20)
    path = endless / "state.json"
    path.symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match=f"^--state {path}: longer than 1 MiB$"):
        state_file.load(path)


def test_a_folder_that_is_missing_and_a_file_that_cannot_be_read_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"), state_file.locked(tmp_path / "none" / "state"):
        pass
    with pytest.raises(ConfigError, match="Is a directory"):
        state_file.load(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    state_file.store(path, STATE)
    before = path.read_text()

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ExporterError, match=r"state\.json: cannot be written: No space left"):
        state_file.store(path, STATE)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_followed_and_the_mode_follows_the_umask(tmp_path: Path) -> None:
    path, link = tmp_path / "state.json", tmp_path / "link"
    link.symlink_to(path)
    old = os.umask(0o027)
    try:
        state_file.store(link, STATE)
    finally:
        os.umask(old)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640


def test_one_call_at_a_time_uses_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    order: list[str] = []

    def second() -> None:
        with state_file.locked(path):
            order.append("second")

    with state_file.locked(path):
        with monkeypatch.context() as patch:
            patch.setattr(state_file, "LOCK_S", 0.0)
            with pytest.raises(ExporterError, match="another call has been using it"), state_file.locked(path):
                pass
        thread = threading.Thread(target=second)
        thread.start()
        order.append("first")
    thread.join(10.0)
    wait_until(lambda: order == ["first", "second"])
