"""The journal keeps every line for which append() returned, whatever happens next."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from joulewatch_harness.errors import ConfigError, RecordError, StorageError
from joulewatch_harness.records import Note, RunEnd, Setup
from joulewatch_harness.storage import journal as journal_module
from joulewatch_harness.storage.journal import Journal, find_run, list_runs, new_run_id, read_run
from support.runs import NETWORK, RUN, header, window
from support.sysfs import public_folder, unprivileged


def written(folder: Path) -> Path:
    with Journal.create(folder, header()) as journal:
        journal.append(NETWORK)
        journal.append(window(0, 1_700_000_001.0))
        journal.append(Note(at_s=1_700_000_002.5, reason="slow", text="Grüße ☃ \n two lines"))
        journal.append(window(1, 1_700_000_003.0))
        journal.append(RunEnd(1_700_000_004.5, "complete"))
    return journal.folder


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = read_run(written(tmp_path))
    assert record.header == header()
    assert record.configurations == (NETWORK,)
    assert record.windows == (window(0, 1_700_000_001.0), window(1, 1_700_000_003.0))
    assert record.notes[0].text == "Grüße ☃ \n two lines"
    assert record.end == RunEnd(1_700_000_004.5, "complete")
    assert read_run(tmp_path / RUN / "journal.jsonl") == record


def test_every_line_is_synced_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with Journal.create(tmp_path, header()) as journal:
        of_file = journal.path.stat().st_ino
        # The file, then the folders that contain its name.
        assert synced == [of_file, journal.folder.stat().st_ino, tmp_path.stat().st_ino]
        journal.append(window(0, 1_700_000_001.0))
        assert synced[-1] == of_file
        assert len(synced) == 4


@pytest.mark.parametrize("cut", [1, 20, 300])
def test_an_incomplete_last_line_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cut: int
) -> None:
    with Journal.create(tmp_path, header()) as journal:
        journal.append(window(0, 1_700_000_001.0))
        journal.append(window(1, 1_700_000_003.0))
    content = journal.path.read_bytes()
    journal.path.write_bytes(content[:-cut])
    with caplog.at_level(logging.WARNING):
        record = read_run(journal.folder)
    assert [entry.index for entry in record.windows] == [0]
    assert record.end is None
    assert "ignored an incomplete last line" in caplog.text


def test_a_last_line_of_zeros_after_a_power_failure_is_ignored(tmp_path: Path) -> None:
    folder = written(tmp_path)
    with (folder / "journal.jsonl").open("ab") as file:
        file.write(bytes(40) + b"\n")
    assert len(read_run(folder).windows) == 2


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = written(tmp_path) / "journal.jsonl"
    rows = path.read_text().splitlines()
    rows[2] = rows[2][:50]
    path.write_text("\n".join(rows) + "\n")
    with pytest.raises(RecordError, match=r"journal\.jsonl:3: is not valid JSON"):
        read_run(path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_keeps_earlier_lines_and_the_run_can_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    with Journal.create(tmp_path, header()) as journal:
        journal.append(window(0, 1_700_000_001.0))
        real = journal_module._write_all

        def half(descriptor: int, content: bytes) -> None:
            real(descriptor, content[: len(content) // 2])
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(journal_module, "_write_all", half)
        with pytest.raises(RecordError, match=r"journal\.jsonl.*could not be written"):
            journal.append(window(1, 1_700_000_003.0))
        monkeypatch.undo()
        assert [entry.index for entry in read_run(journal.folder).windows] == [0]
        journal.append(window(1, 1_700_000_003.0))
    assert [entry.index for entry in read_run(journal.folder).windows] == [0, 1]


def test_a_record_that_is_not_valid_json_is_not_written(tmp_path: Path) -> None:
    with Journal.create(tmp_path, header()) as journal:
        with pytest.raises(RecordError, match="Window cannot be written as JSON"):
            journal.append(window(0, 1_700_000_001.0, clock_error_s=float("nan")))
        journal.append(window(0, 1_700_000_001.0))
    assert len(read_run(journal.folder).windows) == 1


def test_windows_that_prometheus_cannot_distinguish_are_refused(tmp_path: Path) -> None:
    with Journal.create(tmp_path, header()) as journal:
        journal.append(window(0, 1_700_000_001.0))
        with pytest.raises(RecordError, match="already has a window 0"):
            journal.append(window(0, 1_700_000_005.0))
        with pytest.raises(RecordError, match="same millisecond"):
            journal.append(window(1, 1_700_000_001.0001))
        journal.append(window(1, 1_700_000_001.0001, kind="idle", configuration=""))
        journal.append(window(2, 1_700_000_001.001))
    assert len(read_run(journal.folder).windows) == 3


def test_an_output_folder_that_cannot_be_used_is_a_bad_argument(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match=r"cannot be written|is not a folder"):
        Journal.create(tmp_path / "file", header())
    written(tmp_path)
    with pytest.raises(ConfigError, match="exists already"):
        Journal.create(tmp_path, header())


def test_a_read_only_output_folder_is_an_error_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(ConfigError, match=r"cannot be written: Permission denied: choose another folder"):
        Journal.create(tmp_path, header())


def test_a_newer_schema_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    with Journal.create(tmp_path, header(schema=99)) as journal:
        pass
    with pytest.raises(RecordError, match="newer joulewatch"):
        read_run(journal.folder)
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text("")
    with pytest.raises(RecordError, match="is not the journal of a run"):
        read_run(foreign)
    with pytest.raises(RecordError, match="no such journal"):
        read_run(tmp_path / "none.jsonl")


def test_runs_are_listed_by_time_and_selected_by_the_beginning_of_their_id(tmp_path: Path) -> None:
    for run, at_s in (("20261121T000000Z-bbbbbb", 20.0), ("20261120T000000Z-aaaaaa", 10.0)):
        Journal.create(tmp_path, header(run, at_s)).close()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "journal.jsonl").write_text("broken\nbroken\n")
    assert [record.header.started_at_s for record in list_runs(tmp_path).values()] == [10.0, 20.0]
    assert list_runs(tmp_path / "none") == {}
    assert find_run("20261121", tmp_path).name == "20261121T000000Z-bbbbbb"
    assert find_run(str(tmp_path / "20261120T000000Z-aaaaaa"), tmp_path / "x").name == "20261120T000000Z-aaaaaa"
    with pytest.raises(RecordError, match="is ambiguous"):
        find_run("2026112", tmp_path)
    with pytest.raises(RecordError, match=r"unknown run 'x'.*bbbbbb"):
        find_run("x", tmp_path)
    with pytest.raises(RecordError, match="there are no runs"):
        find_run("x", tmp_path / "none")
    with pytest.raises(RecordError, match="cannot be read: File name too long"):
        find_run("x" * 5000, tmp_path)


def test_the_folder_of_a_run_may_have_another_name(tmp_path: Path) -> None:
    Journal.create(tmp_path, header("20261121T000000Z-bbbbbb", 20.0)).close()
    (tmp_path / "20261121T000000Z-bbbbbb").rename(tmp_path / "baseline")
    assert list(list_runs(tmp_path)) == [tmp_path / "baseline"]
    assert find_run("20261121T", tmp_path) == find_run("base", tmp_path) == tmp_path / "baseline"
    shutil.copytree(tmp_path / "baseline", tmp_path / "copy")
    with pytest.raises(RecordError, match="'20261121T' is ambiguous: baseline, copy"):
        find_run("20261121T", tmp_path)


def test_a_folder_of_another_user_hides_no_run(caplog: pytest.LogCaptureFixture) -> None:
    with public_folder() as output:
        Journal.create(output, header("20261121T000000Z-bbbbbb", 20.0)).close()
        (output / "20261121T000000Z-bbbbbb").chmod(0o755)
        (output / "20261121T000000Z-bbbbbb" / "journal.jsonl").chmod(0o644)
        (output / "locked").mkdir(mode=0)
        with unprivileged():
            assert [folder.name for folder in list_runs(output)] == ["20261121T000000Z-bbbbbb"]
            assert find_run("2026", output).name == "20261121T000000Z-bbbbbb"
            with pytest.raises(RecordError, match="locked: cannot be read: Permission denied"):
                find_run(str(output / "locked"), output)
        (output / "locked").chmod(0o700)  # only root can remove what it cannot read
        assert f"{output / 'locked'}: cannot be read: Permission denied" in caplog.messages


def test_a_folder_or_file_that_is_not_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=rf"^{tmp_path}: not the directory of a run: it contains no journal\.jsonl$"):
        find_run(str(tmp_path), tmp_path)
    other = tmp_path / "result.json"
    other.touch()
    with pytest.raises(RecordError, match=rf"^{other}: not a journal: the name must be journal\.jsonl$"):
        find_run(str(other), tmp_path)


def test_run_ids_sort_by_time() -> None:
    first, second = new_run_id(1_700_000_000.9), new_run_id(1_700_000_001.0)
    assert first < second
    assert re.fullmatch(r"20231114T221320Z-[0-9a-f]{6}", first)


def test_a_journal_of_schema_1_is_read(tmp_path: Path) -> None:
    """Schema 1 has no setups and no counts."""
    folder = tmp_path / RUN
    folder.mkdir()
    old = written(tmp_path / "new")
    rows = [json.loads(row) for row in (old / "journal.jsonl").read_text().splitlines()]
    rows[0]["schema"] = 1
    for row in rows:
        if row["type"] == "window":
            del row["counts"]
    (folder / "journal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = read_run(folder)
    assert record.setups == () and record.header.schema == 1
    assert record.windows == read_run(old).windows


def test_a_network_that_is_a_path_is_shown_by_its_stem(tmp_path: Path) -> None:
    """Version 0.1.0 wrote the path as the name of the network; its windows keep the name of the configuration."""
    with Journal.create(tmp_path, header()) as journal:
        journal.append(replace(NETWORK, network="/data/nets/net.onnx"))
        journal.append(replace(NETWORK, name="other", network="lib/other.py:Other", runtime="numpy"))
    read = read_run(journal.folder).configurations
    assert [(item.name, item.network, item.path) for item in read] == [
        ("net/onnxruntime/fp32", "net", "/data/nets/net.onnx"),
        ("other", "Other", "lib/other.py:Other"),
    ]


def test_setups_are_read_as_lines_and_as_windows(tmp_path: Path) -> None:
    long = window(0, 1_700_000_001.0, 7.0, kind="setup", phase="prepare", batches=0, inferences=0, latency=None)
    with Journal.create(tmp_path, header()) as journal:
        journal.append(Setup(configuration=NETWORK.name, phase="load", duration_s=0.25))
        journal.append(long)
    record = read_run(journal.folder)
    assert record.setups == (Setup(configuration=NETWORK.name, phase="load", duration_s=0.25, batch_size=0),)
    assert record.windows == (long,)


def test_a_disk_that_is_full_at_the_start_leaves_no_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("joulewatch_harness.storage.journal.os.write", full)
    with pytest.raises(StorageError, match="No space left on device") as caught:
        Journal.create(tmp_path, header())
    assert caught.value.exit_code == 1
    assert not list(tmp_path.rglob("journal.jsonl"))


def test_deeply_nested_json_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text("[" * 100_000 + "\n{}\n")
    with pytest.raises(RecordError, match=r"journal\.jsonl:1: is not valid JSON"):
        read_run(tmp_path)
