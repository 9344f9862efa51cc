"""Damaged files and hostile expositions end in one error of joulewatch, never in another exception.

Seeded, so each run is the same. ``make fuzz`` runs far more cases with another seed each time.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from joulewatch_harness.analysis.results.summary import analyze_run, run_spans
from joulewatch_harness.analysis.sources.opening import open_recording
from joulewatch_harness.analysis.sources.recording import RecordingSource
from joulewatch_harness.analysis.sources.stored import find
from joulewatch_harness.clients.exporter import Answer, ExporterClient, parse_key
from joulewatch_harness.errors import ExporterUnreachableError, JoulewatchError, RecordError
from joulewatch_harness.storage.journal import Journal, read_run
from support.runs import header, window
from support.synthetic import TWO_SOCKETS, World, make_world, write_recording

IS_LONG = "JOULEWATCH_FUZZ_CASES" in os.environ
CASES = int(os.environ.get("JOULEWATCH_FUZZ_CASES", "120"))
SEED = random.SystemRandom().randrange(10**9) if IS_LONG else 20261129


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(TWO_SOCKETS, batch_sizes=(1,), rounds=1)


@pytest.fixture(scope="module")
def recording(world: World, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("fuzz") / "recording.sqlite"
    write_recording(world, path)
    return path.read_bytes()


def damaged(content: bytes, at_random: random.Random) -> bytes:
    """Cut the end off, or change some bytes, or both."""
    copy = bytearray(content)
    if at_random.random() < 0.3:
        del copy[at_random.randrange(len(copy)) :]
    for _ in range(at_random.choice((0, 1, 3, 30))):
        if copy:
            copy[at_random.randrange(len(copy))] = at_random.randrange(256)
    return bytes(copy)


def test_a_damaged_recording_gives_a_result_or_one_error(world: World, recording: bytes, tmp_path: Path) -> None:
    assert world.record is not None
    at_random = random.Random(SEED)
    path = tmp_path / "recording.sqlite"
    errors = findings = 0
    for _ in range(CASES):
        path.write_bytes(damaged(recording, at_random))
        source = open_recording(path)
        try:
            source.run("")
        except JoulewatchError as error:
            errors += 1
            assert "\n" not in str(error)
        try:
            source.history(run_spans(world.record), world.record.header.exporters)
        except RecordError:
            # Then the analysis uses the edges of the journal.
            findings += 1
            if findings <= 3:
                result = analyze_run(world.record, source)
                assert [item.severity for item in result.findings if item.reason == "recording_damaged"] == ["warning"]
                assert result.source == ""
                assert all(group.total.gross is not None for group in result.groups)
        except JoulewatchError:
            pass
        source.close()
    assert errors > CASES / 10 and findings > CASES / 10


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (b"CREATE TABLE", b"CREATE\x98TABLE"),  # Python cannot decode the error
        (b"tablemeta", b"table\x98eta"),
        (b"CREATE TABLE series", b"CREATE TABLE s'ries"),  # the error has several lines
    ],
)
def test_a_damaged_schema_is_one_error_of_one_line(recording: bytes, good: bytes, bad: bytes, tmp_path: Path) -> None:
    """SQLite quotes the damaged schema in its error."""
    path = tmp_path / "recording.sqlite"
    path.write_bytes(recording.replace(good, bad))
    with pytest.raises(RecordError, match="is not a recording") as caught:
        RecordingSource(path)
    assert "\n" not in str(caught.value)


def test_a_run_with_a_damaged_recording_is_found_by_its_journal(world: World, tmp_path: Path) -> None:
    assert world.record is not None
    with Journal.create(tmp_path, header()) as journal:
        journal.append(window(0, 1_700_000_001.0))
    path = journal.folder / "recording.sqlite"
    for content in (b"", b"x" * 9000, b"SQLite format 3\x00" + b"x" * 9000):
        path.write_bytes(content)
        for word in (str(journal.folder), *([str(path)] if content.startswith(b"SQLite") else [])):
            record, source = find(word, tmp_path, None)
            assert source is not None
            assert len(record.windows) == 1
            assert "recording_damaged" in {item.reason for item in analyze_run(record, source).findings}
            source.close()
    with pytest.raises(RecordError):
        RecordingSource(path)


def test_a_damaged_journal_is_read_or_one_error(world: World, tmp_path: Path) -> None:
    with Journal.create(tmp_path, header()) as journal:
        for index in range(20):
            journal.append(window(index, 1_700_000_001.0 + index))
    content = journal.path.read_bytes()
    at_random = random.Random(SEED)
    errors = 0
    for _ in range(4 * CASES):
        journal.path.write_bytes(damaged(content, at_random))
        try:
            read_run(journal.folder)
        except RecordError as error:
            errors += 1
            assert "\n" not in str(error)
    assert errors > CASES


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def journal_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with Journal.create(tmp_path_factory.mktemp("journal"), header()) as journal:
        journal.append(window(0, 1_700_000_001.0))
    journal.path.with_suffix(".whole").write_bytes(journal.path.read_bytes())
    return journal.path


@settings(max_examples=max(300, CASES), derandomize=not IS_LONG, deadline=None)
@given(field=st.sampled_from(["type", "run", "index", "start_s", "kind", "start_edge", "latency", "flags"]), value=JSON)
def test_a_line_with_a_wrong_value_is_read_or_one_error(field: str, value: object, journal_path: Path) -> None:
    first, second, _ = journal_path.with_suffix(".whole").read_text().split("\n")
    line = {**json.loads(second), field: value}
    journal_path.write_text(f"{first}\n{json.dumps(line)}\n{second}\n")
    try:
        read_run(journal_path.parent)
    except RecordError as error:
        assert "\n" not in str(error)


@settings(max_examples=max(500, CASES), derandomize=not IS_LONG, deadline=None)
@given(
    body=st.binary(max_size=60)
    | st.text(alphabet='a_{}="\\ \n,1e+-.NaInf#\t\r\x00µ', max_size=60).map(lambda text: text.encode("utf-8"))
)
@example(b"a" * 100_000)
@example(b'a{b="' + b"\\" * 50_000 + b"} 1")
@example(b"joulewatch_device_energy_joules_total{ 1")
def test_any_exposition_is_parsed_or_one_error(body: bytes) -> None:
    with ExporterClient("http://node:1") as client:
        for prefix in (b"", b"joulewatch_device_energy_joules_total", b"joulewatch_sensor_info{", b"x 1\n"):
            answer = Answer(requested_at_s=1.0, answered_at_s=2.0, body=prefix + body)
            try:
                for raw, _ in client.parse(answer.body):
                    try:
                        parse_key(raw)
                    except ValueError as error:
                        assert "\n" not in str(error)
                client.parse_edge(answer)
            except ExporterUnreachableError as error:
                assert "\n" not in str(error)
