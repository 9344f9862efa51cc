"""``joulewatch analyze`` and ``joulewatch energy`` as typed on the command line."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import responses

from joulewatch_harness.cli import main
from joulewatch_harness.commands.energy import parse_time
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.storage.journal import Journal
from support.fake_prometheus import URL, FakePrometheus
from support.synthetic import (
    EXPORTER,
    TWO_SOCKETS,
    World,
    make_world,
    raw_of,
    run_samples,
    sensor,
    write_recording,
)

START_S = float(int(time.time()) - 600)
RUN = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(START_S)) + "-0a1b2c"


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(TWO_SOCKETS, batch_sizes=(1, 8), rounds=2, noise=0.01, start_s=START_S, run=RUN)


@pytest.fixture
def runs(world: World, tmp_path: Path) -> Path:
    """An output directory with the run, as the local mode writes it."""
    assert world.record is not None
    with Journal.create(tmp_path / "runs", world.record.header) as journal:
        for line in (*world.record.configurations, *world.record.windows, world.record.end):
            assert line is not None
            journal.append(line)
    write_recording(world, tmp_path / "runs" / RUN / "recording.sqlite")
    return tmp_path / "runs"


@pytest.fixture
def fake(world: World) -> Iterator[FakePrometheus]:
    assert world.record is not None
    server = FakePrometheus([*world.scrapes(), *raw_of(run_samples(world.record))])
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mocked:
        server.install(mocked)
        yield server


def test_a_run_is_found_by_id_folder_journal_and_recording(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for words in (
        [RUN, f"--output={runs}"],
        [RUN[:18], f"--output={runs}"],
        [str(runs / RUN)],
        [str(runs / RUN / "journal.jsonl")],
        [str(runs / RUN / "recording.sqlite")],
    ):
        assert main(["analyze", *words, "--format=csv"]) == 0
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 1 and len(texts[0].splitlines()) == 5


def test_edges_are_used_if_there_is_no_recording(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / RUN / "recording.sqlite").unlink()
    assert main(["analyze", str(runs / RUN)]) == 0
    assert "edges of the journal only" in capsys.readouterr().out


def test_figure_json_and_budget(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = tmp_path / "figure.png"
    assert main(["analyze", str(runs / RUN), "--format=json", f"--figure={figure}", "--net"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["run"]["id"] == RUN and len(document["results"]) == 4 and figure.stat().st_size > 10_000
    assert main(["analyze", str(runs / RUN), "--budget"]) == 0
    assert "degrees of freedom" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["analyze", "nothing"], "unknown run 'nothing'"),
        (["analyze", "RUN", "--figure=figure.jpg"], "must end in .png, .svg, .pdf"),
        (["analyze", "RUN", "--publish"], "--publish needs --prometheus"),
        (["energy", "--start=-10m"], "give one source"),
        (["energy", "--start=-10m", "--recording=none.sqlite"], "no such recording"),
        (["energy", "--start=soon", "--recording=REC"], "--start 'soon': not a valid time"),
        (["energy", "--start=now", "--end", "-10m", "--recording=REC"], "is not after"),
        (
            ["energy", "--start", "-10m", "--end=2099-01-01T00:00:00Z", "--recording=REC"],
            "s in the future: the window has not ended",
        ),
        (["energy", "--start", "-10m", "--recording=REC", "--sensor=gpu*"], "no sensor matches --sensor gpu*"),
        (["energy", "--start", "1000", "--end=2000", "--recording=REC"], "no joulewatch sensor has samples"),
    ],
)
def test_bad_input_is_an_error_with_exit_code_2(
    runs: Path, words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"RUN": str(runs / RUN), "--recording=REC": f"--recording={runs / RUN / 'recording.sqlite'}"}
    words = [known.get(word, word) for word in words]
    if "analyze" in words:
        words.append(f"--output={runs}")
    assert main(words) == 2
    assert text in capsys.readouterr().err


def test_a_window_that_the_samples_do_not_enclose_has_no_energy(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording = runs / RUN / "recording.sqlite"
    assert main(["energy", "--start=-30m", "--end=-590s", f"--recording={recording}"]) == 1
    text = capsys.readouterr().out
    assert "missing" in text and "[unbracketed]" in text and "No total" in text


def test_strict_fails_on_audit_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = make_world(
        [sensor("socket0", "package"), sensor("socket0", "core", "cpu", "part")],
        batch_sizes=(1,),
        power=lambda item, *_: 60.0 if item.scope == "part" else 50.0,
    )
    write_recording(broken, tmp_path / "recording.sqlite")
    words = ["analyze", str(tmp_path / "recording.sqlite")]
    assert main(words) == 0
    assert main([*words, "--strict"]) == 3
    captured = capsys.readouterr()
    assert "core_exceeds_package" in captured.err and "core_exceeds_package" in captured.out


def test_a_run_is_analyzed_from_prometheus_alone(
    runs: Path, fake: FakePrometheus, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", RUN, f"--output={runs}", "--format=csv"]) == 0
    here = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    elsewhere = ["analyze", RUN, "--output=nowhere", f"--prometheus={URL}", "--format=csv"]
    assert main(elsewhere) == 0
    there = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    for mine, theirs in zip(here, there, strict=True):
        assert float(mine["total_net_joules_per_inference"]) == pytest.approx(
            float(theirs["total_net_joules_per_inference"])
        )


def test_energy_of_a_window_of_history(
    runs: Path, world: World, fake: FakePrometheus, capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.record is not None
    window = next(item for item in world.record.windows if item.kind == "measure")
    span = [f"--start={window.start_s}", f"--end={window.end_s}", "--format=json"]
    documents = []
    for source in (f"--recording={runs / RUN / 'recording.sqlite'}", f"--prometheus={URL}"):
        assert main(["energy", *span, source]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    assert [item["energy"]["joules"] for item in documents[0]["sensors"]] == pytest.approx(
        [item["energy"]["joules"] for item in documents[1]["sensors"]]
    )
    truth = sum(world.truth_joules(item, window) for item in world.sensors if item.scope == "device")
    total = documents[0]["total_over_devices"]
    assert total["lower_joules"] <= truth <= total["upper_joules"]
    assert abs(total["joules"] - truth) <= total["expanded_uncertainty"]


def test_energy_by_pattern_and_scope(
    runs: Path, world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    base = ["energy", f"--start={world.record.windows[0].start_s if world.record else 0}", f"--end={world.end_s - 1}"]
    base.append(f"--recording={runs / RUN / 'recording.sqlite'}")
    assert main([*base, "--sensor=*/socket0/*", "--format=csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {(row["device"], row["domain"]) for row in rows} == {
        ("socket0", "package"),
        ("socket0", "dram"),
        ("socket0", "core"),
    }
    assert main([*base, "--scope=node"]) == 0
    text = capsys.readouterr().out
    assert f"{EXPORTER}/rapl/psys/total" in text and "total over devices" not in text
    assert main([*base, "--scope=device"]) == 0
    assert "total over devices" in capsys.readouterr().out


def test_tables_fit_80_columns(
    runs: Path, world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(runs)
    assert main(["analyze", RUN, "--output=.", "--budget"]) == 0
    assert world.record is not None
    recording = f"--recording={RUN}/recording.sqlite"
    start_s = world.record.windows[0].start_s
    assert main(["energy", f"--start={start_s}", f"--end={world.end_s - 1}", recording]) == 0
    text = capsys.readouterr().out
    assert "total over devices" in text and "degrees of freedom" in " ".join(text.split())
    assert [line for line in text.splitlines() if len(line) > 80] == []


def test_times() -> None:
    now_s = 1_790_000_000.0
    assert parse_time("now", "--end", now_s) == now_s
    assert parse_time("-10m", "--end", now_s) == now_s - 600
    assert parse_time("now-1.5h", "--end", now_s) == now_s - 5400
    assert parse_time("1790000000.25", "--end", now_s) == now_s + 0.25
    assert parse_time("2026-09-21T14:13:20Z", "--end", now_s) == now_s
    assert parse_time("2026-09-21T16:13:20+02:00", "--end", now_s) == now_s
    with pytest.raises(ConfigError, match="not a valid time"):
        parse_time("10 minutes ago", "--end", now_s)
