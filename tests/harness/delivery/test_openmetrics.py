"""The export is strict OpenMetrics and contains everything in a recording."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from joulewatch_exporter import catalog
from joulewatch_harness.cli import main
from joulewatch_harness.clients.exporter import ExporterClient, Scrape
from joulewatch_harness.clocktime import to_ms
from joulewatch_harness.delivery.openmetrics import _seconds, export_openmetrics
from joulewatch_harness.records import RunEnd
from joulewatch_harness.storage.recording import Recording, RecordingWriter
from support.runs import NETWORK, header, window

START_S = 1_700_000_000.0004
SENSOR = '{collector="rapl",component="cpu",device="socket0",domain="package"}'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a recording: two minutes of scrapes with a gap, two windows, one series that the catalog does not have."""
    path = tmp_path / "recording.sqlite"
    client = ExporterClient("http://node1:10717")
    with RecordingWriter.create(path, header(started_at_s=START_S)) as writer:
        writer.add_line(NETWORK)
        for number in range(240):
            at_s = START_S + number / 2
            if number == 200:
                writer.add_failure(client, at_s, at_s, "gone")
                continue
            samples = [
                (f"joulewatch_device_energy_joules_total{SENSOR}", number / 3),
                ('joulewatch_exporter_info{version="a\\"b\\\\c"}', 1.0),
                ("joulewatch_of_the_future", float("inf")),
            ]
            writer.add_scrape(client, Scrape(at_s, at_s + 0.001, samples))
        writer.add_line(window(0, START_S + 3))
        writer.add_line(window(1, START_S + 6, 40.0))
        writer.add_line(RunEnd(START_S + 60, "complete"))
    return path


def exported(path: Path) -> str:
    lines: list[str] = []
    with Recording.open(path) as recording:
        count = export_openmetrics(recording, lines.append)
    assert count == sum(not line.startswith("#") for line in lines)
    return "".join(lines)


def values(text: str, name: str, **labels: str) -> list[tuple[int, float]]:
    points = []
    for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                assert sample.timestamp is not None
                points.append((int(float(sample.timestamp) * 1000), sample.value))
    return points


def test_a_strict_parser_accepts_the_export_and_finds_every_value(path: Path) -> None:
    text = exported(path)
    assert text.endswith("# EOF\n")
    families = {family.name: family for family in text_string_to_metric_families(text)}  # type: ignore[no-untyped-call]
    energy = families["joulewatch_device_energy_joules"]
    assert (energy.type, energy.unit) == ("counter", "joules")
    assert energy.samples[0].labels["instance"] == "node1:10717"
    assert energy.samples[0].labels["job"] == "joulewatch"
    assert families["joulewatch_of_the_future"].type == "unknown"
    assert families["joulewatch_exporter_info"].samples[0].labels["version"] == 'a"b\\c'
    assert values(text, "joulewatch_device_energy_joules_total") == [
        (to_ms(START_S + number / 2), number / 3) for number in range(240) if number != 200
    ]
    assert values(text, catalog.WINDOW_START.name) == [
        (to_ms(START_S + 4), START_S + 3),
        (to_ms(START_S + 46), START_S + 6),
    ]
    edges = values(text, catalog.WINDOW_EDGE_JOULES.name, domain="package", edge="start")
    assert [value for _, value in edges] == [1234.5678901, 1235.5678901]
    assert values(text, catalog.RUN_STATUS.name, status="complete") == [(to_ms(START_S + 60), START_S)]
    assert len(values(text, catalog.RUN_INFO.name)) == 3


def test_info_is_repeated_until_a_gap_and_again_after_it(path: Path) -> None:
    times = [(at_ms - to_ms(START_S)) / 1000 for at_ms, _ in values(exported(path), "joulewatch_exporter_info")]
    assert times == [0.0, 60.0, 100.5]


def test_the_live_view_shades_the_windows_and_ends_with_zero(path: Path) -> None:
    shown = values(exported(path), catalog.WINDOW_ACTIVE.name)
    seconds = [(round((at_ms - to_ms(START_S)) / 1000, 3), value) for at_ms, value in shown]
    assert seconds == [(3, 1), (4, 1), (4.001, 0), (6, 1), (21, 1), (36, 1), (46, 1), (46.001, 0)]
    text = exported(path)
    assert [value for _, value in values(text, catalog.RUN_INFERENCES.name)] == [800, 1600]


def test_times_survive_the_truncation_in_prometheus() -> None:
    for at_ms in (0, 1, 999, 1_700_000_000_001, *range(1_763_000_000_000, 1_763_000_002_000)):
        assert int(float(_seconds(at_ms)) * 1000) == at_ms


def test_the_command_writes_a_complete_file_or_none(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(path), "--openmetrics"]) == 0
    text = capsys.readouterr().out
    assert text == exported(path)
    output = tmp_path / "out.om"
    assert main(["export", str(tmp_path), "--openmetrics", f"--output={output}"]) == 0
    captured = capsys.readouterr()
    assert output.read_text() == text
    assert captured.out == ""
    assert "samples to" in captured.err
    assert main(["export", str(path), "--openmetrics", f"--output={tmp_path / 'none' / 'x'}"]) == 2
    assert "cannot be written: No such file" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["out.om", "recording.sqlite"]  # noqa: PTH208


@pytest.mark.parametrize(
    ("words", "text"),
    [(["none.sqlite", "--openmetrics"], "no such recording"), (["x"], "--openmetrics is required")],
)
def test_bad_arguments_are_named(words: Sequence[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["export", *words])
    except SystemExit as error:
        code = int(str(error.code))
    assert code == 2
    assert text in capsys.readouterr().err


def test_a_recording_without_a_run_in_it_is_refused(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RecordingWriter.create(path.parent / "b.sqlite", header()) as writer:
        writer._connection.execute("UPDATE line SET json = ?", (json.dumps({"type": "note"}),))
    assert main(["export", str(path.parent / "b.sqlite"), "--openmetrics"]) == 2
    assert "line 1: missing field 'at_s'" in capsys.readouterr().err
