"""``joulewatch analyze`` and ``joulewatch energy`` as typed on the command line."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import responses

from joulewatch_harness.analysis.sources.history import RawSeries
from joulewatch_harness.cli import main
from joulewatch_harness.commands.energy import parse_time
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.storage.journal import Journal
from support.fake_prometheus import URL, FakePrometheus
from support.synthetic import (
    EXPORTER,
    TWO_SOCKETS,
    Signal,
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
    assert "1 degree of freedom)" in " ".join(capsys.readouterr().out.split())


def test_a_figure_on_a_full_disk_is_one_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = tmp_path / "figure.png"
    figure.symlink_to("/dev/full")
    assert main(["analyze", str(runs / RUN), f"--figure={figure}"]) == 1
    assert capsys.readouterr().err == f"joulewatch: --figure {figure}: cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--start=-1m", "--per=rate(x[5m])"], "--per rate(x[5m]): not the name of a counter"),
        (["--start=-1m", "--workload=colour=red"], "--workload colour=red: no label colour"),
        (["--slurm-job=12 3"], "--slurm-job '12 3': must be a job's id"),
        (["--slurm-job=12"], "sacct is not installed"),
    ],
    ids=["per", "workload", "job", "sacct"],
)
def test_arguments_of_energy_are_checked_before_prometheus_is_asked(
    words: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with responses.RequestsMock() as mocked:
        assert main(["energy", *words, f"--prometheus={URL}"]) == 2
        assert not mocked.calls
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


def test_the_energy_of_a_slurm_job(
    fake: FakePrometheus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's machine was node1, and another program has the place of sacct."""
    program = tmp_path / "sacct"
    program.write_text(f"#!/bin/sh\necho '12|c|COMPLETED|{START_S + 5:.0f}|{START_S + 25:.0f}|node1|12'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    words = ["energy", "--slurm-job=12", f"--prometheus={URL}"]
    assert main([*words, "--format=json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {one["host"] for one in document["nodes"]} == {"node1"} and document["totals"]["devices"]["joules"] > 0
    assert (document["own"]["nodes"], document["own"]["missing_nodes"]) == ([], ["node1"])
    assert main([*words, "--format=csv"]) == 0
    assert capsys.readouterr().out.startswith("slurm_job,basis,node,host")
    assert main(words) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Energy of whole nodes while the job had them" in text
    assert "no exporter of its nodes has published a workload of it" in text
    program.write_text("#!/bin/sh\necho '12|c|PENDING|Unknown|Unknown|None assigned|12'\n")
    assert main(words) == 2
    assert "job 12 has not started: PENDING" in capsys.readouterr().err


def test_formats_for_other_programs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", str(runs / RUN), "--format=codecarbon", "--carbon=250"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 4 and all(float(row["emissions"]) > 0 for row in rows)
    assert main(["analyze", str(runs / RUN), "--format=mlperf-energy"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 4
    assert main(["analyze", str(runs / RUN), "--format=aiperf"]) == 0
    assert len(json.loads(capsys.readouterr().out)["results"]) == 4


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["analyze", "nothing"], "unknown run 'nothing'"),
        (["analyze", "a" * 300], "aaa: File name too long"),
        (["analyze", "RUN", "--figure=figure.jpg"], "must end in .png, .svg, .pdf"),
        (["analyze", "RUN", "--publish"], "--publish needs --prometheus"),
        (["analyze", "RUN", "--carbon=250"], "--carbon needs --format codecarbon"),
        (["energy", "--start=-10m"], "give one source"),
        (["energy", "--start=-10m", "--recording=none.sqlite"], "no such recording"),
        (["energy", "--start=soon", "--recording=REC"], "--start 'soon': not a valid time"),
        (["energy", "--start=now", "--end", "-10m", "--recording=REC"], "is not after"),
        (
            ["energy", "--start", "-10m", "--end=2099-01-01T00:00:00Z", "--recording=REC"],
            "s in the future: the window has not ended",
        ),
        (["energy", "--start", "-10m", "--recording=REC", "--sensor=gpu*"], "no sensor matches --sensor gpu*"),
        (["energy", "--start", "1000", "--end=2000", "--recording=REC"], "no sensor has samples"),
        (["energy", "--start", "1000", "--end=2000", "--recording=REC", "--every=1h"], "no sensor that matches"),
        (["energy", "--start=0", "--recording=none", "--every=1h"], "intervals since --start 0, and at most 100000"),
        (["energy", "--start=-10m", "--recording=REC", "--price=1"], "--price needs --every"),
        (["energy", "--start=-10m", "--recording=REC", "--every=1d", "--format=json"], "--every writes CSV"),
        (["energy", "--start=-10m", "--recording=REC", "--every=1d", "--scope=part"], "--scope device, node or all"),
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


def test_a_frozen_gauge_has_no_energy_and_a_doubtful_one_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the text, CSV and JSON of ``energy``."""
    gauge = sensor("gpu0", "board", "gpu", collector="nvml", method="integrated", reads="power", refresh_s=None)
    other = sensor("socket0", "package")

    for load_watts, reason in ((150.0, "frozen"), (41.0, "")):
        world = make_world(
            [gauge, other],
            batch_sizes=(1,),
            window_s=20.0,
            start_s=START_S,
            power=lambda item, name, _, w=load_watts: 46.19 if item is gauge else 40.0 if name == "idle" else w,  # type: ignore[misc]
        )
        path = tmp_path / f"{load_watts}.sqlite"
        write_recording(world, path)
        words = [
            "energy",
            f"--start={START_S + 2}",
            f"--end={START_S + 130}",
            f"--recording={path}",
            "--sensor=*/nvml/*",
        ]
        assert main([*words, "--format=json"]) == (1 if reason else 0)
        document = json.loads(capsys.readouterr().out)
        (row,) = document["sensors"]
        assert (row["missing"], row["energy"] is None) == (reason, bool(reason))
        findings = [(item["severity"], item["reason"], item["text"]) for item in document["findings"]]
        assert [item[:2] for item in findings] == ([] if reason else [("warning", "frozen")])
        assert "exactly 46.19 W" in (row["missing_text"] if reason else findings[0][2])
        main([*words, "--format=csv"])
        (line,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
        assert (line["missing"], bool(line["warning"])) == (reason, not reason)
        main(words)
        text = " ".join(capsys.readouterr().out.split())
        assert "[frozen]" in text and ("warning [frozen]: " in text) == (not reason)
        main([*words, "--every=1h"])
        captured = capsys.readouterr()
        (line, *_) = csv.DictReader(io.StringIO(captured.out))
        assert (line["unmeasured_reasons"] == reason, bool(line["energy_joules"])) == (True, not reason)
        assert captured.err.count("warning [frozen]: ") == (not reason)


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


def test_a_recording_has_precedence_over_prometheus_and_stderr_reports_it(
    runs: Path, fake: FakePrometheus, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.samples = []
    for name in (RUN, str(runs / RUN / "recording.sqlite")):
        assert main(["analyze", name, f"--output={runs}", f"--prometheus={URL}", "--format=csv"]) == 0
        output = capsys.readouterr()
        assert len(output.out.splitlines()) == 5
        assert f"samples are read from {runs / RUN / 'recording.sqlite'}, not from {URL}" in output.err


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


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("utc")
def test_energy_every_hour_is_csv(fake: FakePrometheus, capsys: pytest.CaptureFixture[str]) -> None:
    """Two processors at 100 W, scraped every 15 s in the first two of three hours."""
    hour_s = START_S // 3600 * 3600
    start_s, end_s = hour_s - 3 * 3600, hour_s
    sensors = [sensor(f"socket{number}", "package", host="node1") for number in range(2)]
    signals = {one: Signal((start_s - 600,), (100.0,)) for one in sensors}
    fake.samples = World(signals, scrape_s=15.0, start_s=start_s - 300, end_s=end_s - 3600 + 120).scrapes()
    words = ["energy", f"--start={start_s}", f"--end={end_s}", f"--prometheus={URL}"]
    assert main([*words, "--every=1h", "--price=0.4", "--scope=device"]) == 0
    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert captured.err == "" and [(row["host"], row["component"]) for row in rows] == 3 * [("node1", "cpu")]
    assert [row["start"] for row in rows] == [
        time.strftime("%Y-%m-%dT%H:00:00+00:00", time.gmtime(start_s + 3600 * number)) for number in range(3)
    ]
    assert [float(row["energy_kwh"]) for row in rows[:2]] == pytest.approx([0.2, 0.2], rel=1e-3)
    assert [float(row["cost"]) for row in rows[:2]] == pytest.approx([0.08, 0.08], rel=1e-3)
    assert [float(row["unmeasured_seconds"]) for row in rows[:2]] == [0, 0]
    assert 3600 - 240 <= float(rows[2]["unmeasured_seconds"]) <= 3600 - 60
    assert float(rows[2]["energy_joules"]) == pytest.approx(200 * float(rows[2]["measured_seconds"]), rel=1e-3)
    assert main([*words, "--every=1mo"]) == 0
    total = sum(float(row["energy_joules"]) for row in rows)
    months = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert sum(float(row["energy_joules"]) for row in months) == pytest.approx(total, rel=1e-4)
    assert "cost" not in months[0]


def labelled(samples: Iterable[RawSeries], **labels: str) -> list[RawSeries]:
    return [dataclasses.replace(raw, labels={**raw.labels, **labels}) for raw in samples]


def test_two_clusters_with_one_address_need_match(
    world: World, fake: FakePrometheus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The annotations of the run arrived by remote write and have no label ``cluster``."""
    assert world.record is not None
    other = make_world(TWO_SOCKETS, batch_sizes=(1,), start_s=START_S - 7, run=RUN, power=lambda *_: 500.0)
    renamed = [
        dataclasses.replace(raw, labels={**raw.labels, "nodename": "node2"}) if "nodename" in raw.labels else raw
        for raw in other.scrapes()
    ]
    fake.samples = [
        *labelled(world.scrapes(), cluster="x"),
        *labelled(renamed, cluster="y"),
        *raw_of(run_samples(world.record)),
    ]
    window = next(item for item in world.record.windows if item.kind == "measure")
    energy = ["energy", f"--start={window.start_s}", f"--end={window.end_s}", f"--prometheus={URL}", "--format=json"]
    analyze = ["analyze", RUN, f"--output={tmp_path}", f"--prometheus={URL}", "--format=json"]
    for words in (energy, analyze):
        assert main(words) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        assert "2 different exporters have this address" in captured.err
        assert "; select one with --match cluster=x\n" in captured.err
    fake.queries.clear()
    assert main([*energy, "--match=cluster=x"]) == 0
    document = json.loads(capsys.readouterr().out)
    truth = sum(world.truth_joules(item, window) for item in world.sensors if item.scope == "device")
    assert document["total_over_devices"]["joules"] == pytest.approx(truth, rel=0.01)
    assert {one["exporter"] for one in document["sensors"]} == {EXPORTER} and document["findings"] == []
    assert fake.queries and all('cluster="x"' in query for query in fake.queries)
    assert main([*analyze, "--match=cluster=x"]) == 0
    assert {one["exporter"] for one in json.loads(capsys.readouterr().out)["sensors"]} == {EXPORTER}
    config = tmp_path / "prometheus.yaml"
    config.write_text(f"url: {URL}\nmatch: {{cluster: y}}\n")
    assert main([*energy[:3], f"--prometheus.config={config}", "--format=csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [float(row["mean_power_watts"]) for row in rows] == pytest.approx(len(TWO_SOCKETS) * [500.0], rel=0.01)
    assert main([*energy, "--match=cluster=z"]) == 2
    assert "no sensor has samples" in capsys.readouterr().err


def test_a_run_finds_its_exporter_in_two_clusters_by_its_nodename(
    runs: Path, world: World, fake: FakePrometheus, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a recording, the journal's exporter is compared with those of Prometheus."""
    (runs / RUN / "recording.sqlite").unlink()
    renamed = [
        dataclasses.replace(raw, labels={**raw.labels, "nodename": "node2"}) if "nodename" in raw.labels else raw
        for raw in world.scrapes()
    ]
    fake.samples = [
        *labelled(world.scrapes(), cluster="x"),
        *(dataclasses.replace(raw, values=3 * raw.values) for raw in labelled(renamed, cluster="y")),
    ]
    assert main(["analyze", RUN, f"--output={runs}", f"--prometheus={URL}", "--format=json"]) == 0
    reasons = {finding["reason"] for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert not reasons & {"edge_history_disagreement", "exporter_missing", "identity_conflict"}


def test_replicas_are_merged_and_the_result_shows_it(
    world: World, fake: FakePrometheus, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert world.record is not None
    fake.samples = [raw for replica in "01" for raw in labelled(world.scrapes(), prometheus_replica=replica)]
    window = next(item for item in world.record.windows if item.kind == "measure")
    words = ["energy", f"--start={window.start_s}", f"--end={window.end_s}", f"--prometheus={URL}"]
    assert main([*words, "--format=json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (finding,) = document["findings"]
    assert (finding["severity"], finding["reason"]) == ("info", "targets_merged")
    assert finding["evidence"] == {"exporter": EXPORTER}
    truth = sum(world.truth_joules(item, window) for item in world.sensors if item.scope == "device")
    assert document["total_over_devices"]["joules"] == pytest.approx(truth, rel=0.01)
    assert main(words) == 0
    text = capsys.readouterr().out
    assert f"info [targets_merged]: {EXPORTER}: one exporter, stored under 2 targets (prometheus_replica=0; " in text


def test_the_primary_node_sensor_is_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    nodes = [
        sensor("bmc", "total", "node", "node", collector="ipmi", primary=True, host="node1"),
        sensor("psys", "total", "node", "node", primary=False, host="node1"),
    ]
    world = make_world([TWO_SOCKETS[0], *nodes], batch_sizes=(1,), start_s=START_S)
    write_recording(world, tmp_path / "recording.sqlite")
    words = ["energy", f"--start={START_S + 3}", f"--end={world.end_s - 1}", f"--recording={tmp_path}/recording.sqlite"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "bmc/total (primary)" in text and text.count("(primary)") == 1 and "primary: the one node sensor" in text
    assert main([*words, "--format=json"]) == 0
    sensors = {one["device"]: one for one in json.loads(capsys.readouterr().out)["sensors"]}
    assert {name: (one["primary"], one["host"]) for name, one in sensors.items()} == {
        "bmc": (True, "node1"), "psys": (False, "node1"), "socket0": (None, ""),
    }  # fmt: skip
    assert main([*words, "--format=csv"]) == 0
    rows = {row["device"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert {name: (row["primary"], row["host"]) for name, row in rows.items()} == {
        "bmc": ("1", "node1"), "psys": ("0", "node1"), "socket0": ("", ""),
    }  # fmt: skip


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
    assert "total over devices" in text and "1 degree of freedom)" in " ".join(text.split())
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
    for text in ("1969-12-31", "-99999999999999999999d"):
        with pytest.raises(ConfigError, match=f"--start {text}: is before 1970"):
            parse_time(text, "--start", now_s)
