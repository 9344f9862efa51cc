"""The recorder scrapes at absolute deadlines, and each gap in the recording has a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from joulewatch_harness.clients.exporter import ExporterClient, Scrape
from joulewatch_harness.errors import ConfigError, ExporterUnreachableError, RecordError
from joulewatch_harness.runner.recorder import Recorder
from joulewatch_harness.storage.recording import Recording, RecordingWriter
from support.clock import FakeClock
from support.fake_exporter import FakeExporter, scrape
from support.runs import header


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recording.sqlite"


class FakeWait:
    """A stop event: time passes only while it waits; set after ``rounds`` waits."""

    def __init__(self, clock: FakeClock, rounds: int) -> None:
        self.clock = clock
        self.rounds = rounds
        self.waits: list[float] = []

    def is_set(self) -> bool:
        return len(self.waits) >= self.rounds

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.clock.advance(max(0.0, seconds))
        return self.is_set()

    def set(self) -> None:
        self.rounds = 0


def test_the_recorder_keeps_absolute_deadlines_and_records_failures(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()

    class Slow(FakeExporter):
        def scrape(self) -> Scrape:
            started_s = clock.time()
            # A scrape takes 30 ms, the third one 250 ms: two deadlines are skipped.
            clock.advance(0.25 if self.asked == 2 else 0.03)
            self.asked += 1
            if self.asked in (5, 6):
                raise ExporterUnreachableError("exporter http://node1:10717/metrics: refused")
            return scrape(started_s, started_s)

    exporter = Slow()
    with RecordingWriter.create(path, header()) as writer:
        recorder = Recorder([exporter], writer, rate_hz=10, clock=clock)
        stop = FakeWait(clock, 7)
        monkeypatch.setattr(recorder, "_stop", stop)
        recorder._record(exporter)
        recorder.stop()
        assert recorder.error is None
    with Recording.open(path) as recording:
        scrapes = recording.scrapes(exporter.name)
    starts_ms = [round((attempt.started_at_s - 1_700_000_000.0) * 1000) for attempt in scrapes]
    assert starts_ms == [0, 100, 200, 500, 600, 700, 800, 900]
    assert [bool(attempt.error) for attempt in scrapes] == [False] * 4 + [True] * 2 + [False] * 2
    assert caplog.text.count("refused") == 1
    assert "answers again" in caplog.text
    assert exporter.closed


def test_a_recorder_makes_a_last_scrape_when_it_is_stopped(path: Path) -> None:
    exporter = FakeExporter("node1:1", scrape(1.0, 1.0))
    with RecordingWriter.create(path, header()) as writer:
        with Recorder([exporter], writer, rate_hz=0.001):
            pass
        assert exporter.asked in (1, 2)
        assert exporter.closed
        for rate_hz in (0, -1, 1e6, float("nan")):
            with pytest.raises(ConfigError, match="rate_hz"):
                Recorder([], writer, rate_hz=rate_hz)


def test_recording_pauses_while_the_disk_is_full_and_the_gap_has_a_reason(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    full = RecordError("recording.sqlite: database or disk is full")

    class Exporter(FakeExporter):
        def scrape(self) -> Scrape:
            self.asked += 1
            return scrape(clock.time(), float(self.asked))

    exporter = Exporter()
    with RecordingWriter.create(path, header()) as writer:
        recorder = Recorder([exporter], writer, rate_hz=10, clock=clock)
        monkeypatch.setattr(recorder, "_stop", FakeWait(clock, 6))
        real = writer.add_scrape

        def add_scrape(client: ExporterClient, taken: Scrape) -> None:
            if exporter.asked in (3, 4):
                raise full
            real(client, taken)

        monkeypatch.setattr(writer, "add_scrape", add_scrape)
        recorder._record(exporter)
        assert recorder.error is full
    with Recording.open(path) as recording:
        scrapes = recording.scrapes(exporter.name)
        assert recording.series("joulewatch_device_energy_joules_total")[0].values == [1, 2, 5, 6, 7]
    assert [attempt.error for attempt in scrapes].count("") == 5
    gaps = [attempt for attempt in scrapes if attempt.error]
    assert all(gap.error.startswith("not written: ") for gap in gaps)
    assert gaps[0].started_at_s == pytest.approx(1_700_000_000.2)
    assert "recording paused" in caplog.text
    assert "recording continues" in caplog.text
