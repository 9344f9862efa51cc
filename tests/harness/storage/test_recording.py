"""A recording contains all scrapes and annotations, and the reason of each gap."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from joulewatch_harness.clients.exporter import Scrape
from joulewatch_harness.errors import ConfigError, RecordError
from joulewatch_harness.records import RunEnd
from joulewatch_harness.storage import recording as recording_module
from joulewatch_harness.storage.recording import Recording, RecordingWriter
from support.fake_exporter import ENERGY, FakeExporter, scrape
from support.runs import NETWORK, RUN, header, window


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recording.sqlite"


def test_series_are_read_exactly_with_instance_and_time(path: Path) -> None:
    node1, node2 = FakeExporter("node1:1"), FakeExporter("node2:1")
    with RecordingWriter.create(path, header()) as writer:
        for number in range(50):
            writer.add_scrape(node1, scrape(1_700_000_000.1 + number / 10, number / 3, 7.0))
        writer.add_scrape(node2, scrape(1_700_000_002.0, 5.5))
    assert sorted(file.name for file in path.parent.iterdir()) == ["recording.sqlite"]
    with Recording.open(path) as recording:
        first, second, other = recording.series("joulewatch_device_energy_joules_total")
        assert first.labels == {"collector": "rapl", "device": "socket0", "instance": "node1:1"}
        assert first.values == [number / 3 for number in range(50)]
        assert first.scrape_times_s == pytest.approx([1_700_000_000.1 + n / 10 for n in range(50)], abs=1e-6)
        assert second.values == [7.0] * 50
        assert (other.labels["instance"], other.values) == ("node2:1", [5.5])
        (part,) = recording.series(
            "joulewatch_device_energy_joules_total",
            start_s=1_700_000_001.05,
            end_s=1_700_000_001.35,
            matchers={"instance": "node1:1", "device": "socket0"},
        )
        assert part.values == [10 / 3, 11 / 3, 12 / 3]
        assert recording.series("joulewatch_none") == []
        assert recording.exporters() == {"node1:1": node1.url, "node2:1": node2.url}
        assert recording.metrics() == ["joulewatch_device_energy_joules_total"]
        assert recording.span() == pytest.approx((1_700_000_000.1, 1_700_000_005.0))


def test_a_span_is_exact_although_the_clock_stepped(path: Path) -> None:
    """Scrapes are stored in their order, which after a step is not that of their times."""
    with RecordingWriter.create(path, header()) as writer:
        for at_s, joules in ((10.0, 1.0), (20.0, 2.0), (12.0, 3.0), (30.0, 4.0)):
            writer.add_scrape(FakeExporter(), scrape(at_s, joules))
    name = "joulewatch_device_energy_joules_total"
    with Recording.open(path) as recording:
        (stepped,) = recording.series(name, start_s=11.0, end_s=21.0)
        assert (stepped.scrape_times_s, stepped.values) == ([12.0, 20.0], [3.0, 2.0])
        assert recording.series(name, start_s=21.0, end_s=29.0) == []
        (newest,) = recording.newest(name, end_s=29.0)
        assert (newest.scrape_times_s, newest.values) == ([12.0], [3.0]), "the newest is the last that was stored"
        assert recording.newest(name, end_s=9.0) == []
        assert recording.extremes(name, start_s=9.0, end_s=11.0) == [(1.0, 1.0)]
        assert recording.extremes(name, start_s=25.0, end_s=40.0) == [(4.0, 4.0)]
        assert recording.extremes(name, start_s=40.0, end_s=50.0) == []


def test_a_short_span_of_a_long_recording_is_read_quickly(path: Path) -> None:
    """Reading a day hour by hour took minutes, because each hour visited all scrapes of every series."""
    with RecordingWriter.create(path, header()) as writer:
        for number in range(2000):
            writer.add_scrape(FakeExporter(), scrape(1000.0 + number, number))
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    name = "joulewatch_device_energy_joules_total"
    with Recording.open(path) as recording:
        recording._connection.set_progress_handler(count, 10)
        assert recording.series(name)[0].values == list(range(2000))
        whole, steps = steps, 0
        assert recording.series(name, start_s=2500.0, end_s=2509.0)[0].values == list(range(1500, 1510))
        recording.extremes(name, start_s=2500.0, end_s=2509.0)
        assert steps < whole / 20


def test_only_joulewatch_series_and_no_nan_are_kept(path: Path) -> None:
    with RecordingWriter.create(path, header()) as writer:
        samples = [("process_cpu_seconds_total", 1.0), (ENERGY % "socket0", float("nan")), ("joulewatch_x", 0.0)]
        writer.add_scrape(FakeExporter(), Scrape(1.0, 1.1, samples))
    with Recording.open(path) as recording:
        assert recording.metrics() == ["joulewatch_x"]
        assert recording.series("joulewatch_x")[0].values == [0.0]  # zero is a measurement


def test_info_is_stored_when_new_and_again_after_a_gap(path: Path) -> None:
    exporter = FakeExporter()
    with RecordingWriter.create(path, header()) as writer:
        for at_s in (1.0, 2.0):
            writer.add_scrape(exporter, scrape(at_s, at_s, info=True))
        writer.add_failure(exporter, 3.0, 5.0, "no answer within 2 s")
        for at_s in (6.0, 7.0):
            writer.add_scrape(exporter, scrape(at_s, at_s, info=True))
    with Recording.open(path) as recording:
        assert recording.series("joulewatch_exporter_info")[0].scrape_times_s == [1.0, 6.0]
        scrapes = recording.scrapes(exporter.name)
        assert [attempt.error for attempt in scrapes] == ["", "", "no answer within 2 s", "", ""]
        assert scrapes[2].duration_s == 2.0
        assert recording.scrapes(exporter.name, start_s=2.5, end_s=6.5) == scrapes[2:4]


def test_a_recording_contains_the_run_and_can_be_read_while_it_is_written(path: Path) -> None:
    with RecordingWriter.create(path, header()) as writer:
        writer.add_line(NETWORK)
        writer.add_line(window(0, 1_700_000_001.0))
        with Recording.open(path.parent) as recording:
            record = recording.run()
            assert record.windows == (window(0, 1_700_000_001.0),)
            assert record.end is None
            writer.add_line(RunEnd(1_700_000_003.0, "complete"))
            record = recording.run()
    assert record.header == header()
    assert record.configurations == (NETWORK,)
    assert record.end == RunEnd(1_700_000_003.0, "complete")


def test_a_full_disk_is_an_error_with_the_file_and_earlier_scrapes_stay(path: Path) -> None:
    writer = RecordingWriter.create(path, header())
    writer.add_scrape(FakeExporter(), scrape(1.0, 1.0))
    pages = writer._connection.execute("PRAGMA page_count").fetchone()[0]
    writer._connection.execute(f"PRAGMA max_page_count = {pages}")  # for SQLite the same as a full disk
    with pytest.raises(RecordError, match=r"recording\.sqlite: cannot be written: database or disk is full"):
        for number in range(2000):
            writer.add_scrape(FakeExporter(f"node{number}:1"), scrape(2.0, *map(float, range(20))))
    writer._connection.execute("PRAGMA max_page_count = 100000")
    writer.add_scrape(FakeExporter(), scrape(3.0, 3.0))
    writer.close()
    writer.close()
    with Recording.open(path) as recording:
        values = recording.series("joulewatch_device_energy_joules_total", matchers={"instance": "node1:10717"})
        assert values[0].values == [1.0, 3.0]


def test_a_file_that_is_not_a_recording_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no such recording"):
        Recording.open(path)
    path.write_text("this is text, and not a database at all, of no use" * 100)
    with pytest.raises(RecordError, match="is not a recording"):
        Recording.open(path)
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE x (y)")
    connection.close()
    with pytest.raises(RecordError, match="is not a recording of joulewatch"):
        Recording.open(other)
    newer = tmp_path / "newer.sqlite"
    with RecordingWriter.create(newer, header()) as writer:
        writer._connection.execute("PRAGMA user_version = 99")
    with pytest.raises(RecordError, match="newer joulewatch"):
        Recording.open(newer)


def test_a_recording_is_never_overwritten_and_a_bad_folder_is_an_error(path: Path) -> None:
    RecordingWriter.create(path, header()).close()
    with pytest.raises(ConfigError, match="exists already"):
        RecordingWriter.create(path, header())
    with pytest.raises(ConfigError, match="cannot be created"):
        RecordingWriter.create(path.parent / "none" / "recording.sqlite", header())


def test_an_interrupted_recording_is_read_from_a_read_only_folder(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RecordingWriter.create(path, header())
    writer.add_scrape(FakeExporter(), scrape(1.0, 42.0))
    cut = tmp_path / "cut"
    cut.mkdir()
    for name in ("recording.sqlite", "recording.sqlite-wal"):
        (cut / name).write_bytes((tmp_path / name).read_bytes())
    writer.close()
    real = recording_module._connect

    def no_log(file: Path, mode: str) -> sqlite3.Connection:
        # SQLite cannot create its -shm file there, so that every statement fails.
        if file.parent == cut:
            return real(tmp_path / "missing.sqlite", "mode=ro") if mode != "mode=ro" else _Broken(":memory:")
        return real(file, mode)

    monkeypatch.setattr(recording_module, "_connect", no_log)
    with Recording.open(cut) as recording:
        assert recording.series("joulewatch_device_energy_joules_total")[0].values == [42.0]
    assert recording._copy is not None
    assert not Path(recording._copy.name).exists()


class _Broken(sqlite3.Connection):
    def execute(self, *_: object) -> sqlite3.Cursor:
        raise sqlite3.OperationalError("unable to open database file")


def test_the_run_id_is_in_the_file(path: Path) -> None:
    RecordingWriter.create(path, header()).close()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT value FROM meta WHERE key = 'run'").fetchone() == (RUN,)
    connection.close()
