"""``joulewatch import``: logs of known energy keep it in ``energy`` and ``analyze``; wrong input is one line."""

from __future__ import annotations

import datetime
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from joulewatch_harness.cli import main
from joulewatch_harness.errors import StorageError
from joulewatch_harness.records import Configuration, ExporterRecord, RunEnd, Window
from joulewatch_harness.storage.journal import Journal
from joulewatch_harness.storage.recording import RecordingWriter
from support import runs

T0 = 1795860000
"""2026-11-28 10:00:00 UTC."""


def json_of(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    assert main([*words, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def ptdaemon(folder: Path) -> tuple[Path, list[float]]:
    """Write a log of a minute at 10 Hz, and return it with its powers."""
    watts = [round(300 + 80 * np.sin(i / 37) + 5 * np.cos(i), 6) for i in range(601)]
    lines = []
    for i, value in enumerate(watts):
        at = datetime.datetime.fromtimestamp(T0, datetime.UTC) + datetime.timedelta(milliseconds=100 * i)
        stamp = f"{at:%m-%d-%Y %H:%M:%S}.{at.microsecond // 1000:03d}"
        lines.append(f"Time,{stamp},Watts,{value:.6f},Volts,227.370000,Amps,1.2,PF,0.9,Mark,run_1\n")
    path = folder / "spl.txt"
    path.write_text("".join(lines), encoding="utf-8")
    return path, watts


def trapezoid(watts: list[float], first: int, last: int) -> float:
    part = np.array(watts[first : last + 1])
    return float((part[1:] + part[:-1]).sum() / 2 * 0.1)


def test_mlperf_power(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The window of LoadGen has the energy of the log of PTDaemon."""
    log, watts = ptdaemon(tmp_path)
    detail = tmp_path / "mlperf_log_detail.txt"
    times = {"power_begin": "11-28-2026 10:00:10.000", "power_end": "11-28-2026 10:00:50.000"}
    entries = [("loadgen_version", "4.0"), *times.items()]
    detail.write_text("".join(f':::MLLOG {{"key": "{key}", "value": "{value}"}}\n' for key, value in entries))
    out = tmp_path / "a.sqlite"
    assert main(["import", str(log), "--timezone=UTC", f"--windows={detail}", f"--out={out}"]) == 0
    assert "601 powers from 1795860000.000 to 1795860060.000, ptdaemon, accuracy unknown" in capsys.readouterr().out
    result = json_of(capsys, "analyze", str(out))
    (group,) = result["results"]
    assert group["energy"]["nodes"][0]["gross"]["value"] == pytest.approx(trapezoid(watts, 100, 500), rel=1e-6)
    assert {"accuracy_unknown", "clock_unknown"} <= {finding["reason"] for finding in result["findings"]}


def test_windows_of_a_csv_are_on_the_clock_of_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, watts = ptdaemon(tmp_path)
    windows = tmp_path / "windows.csv"
    rows = ["name,start,end,inferences", "a,2026-11-28 10:00:05,2026-11-28 10:00:10,50"]
    rows += [f"b,{T0 + start},{T0 + start + 10},100" for start in (20, 40)]
    windows.write_text("\n".join(rows), encoding="utf-8")
    out = tmp_path / "a.sqlite"
    words = [f"--windows={windows}", f"--out={out}", "--timezone=UTC", "--accuracy=0.1%", "--name=wall"]
    assert main(["import", str(log), *words]) == 0
    result = json_of(capsys, "analyze", str(out))
    values = [group["energy"]["nodes"][0]["gross"]["value"] for group in result["results"]]
    b = (trapezoid(watts, 200, 300) + trapezoid(watts, 400, 500)) / 200
    assert values == pytest.approx([trapezoid(watts, 50, 100) / 50, b], rel=1e-6)
    assert not {"accuracy_unknown", "clock_unknown"} & {finding["reason"] for finding in result["findings"]}


def test_mlperf_tiny(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An ``energy.bin`` of 5 s at 1 kHz; its times begin at 0."""
    samples = (30 + 10 * np.sin(np.arange(5000) / 50)).astype("<f4")
    log = tmp_path / "js110-energy.bin"
    log.write_bytes(struct.pack("<Bf", 0xF1, 1000.0) + samples.tobytes())
    out = tmp_path / "a.sqlite"
    assert main(["import", str(log), f"--out={out}", "--clock-offset=1000"]) == 0
    (row,) = json_of(capsys, "energy", f"--recording={out}", "--start=1001", "--end=1003")["sensors"]
    assert row["energy"]["joules"] == pytest.approx(float(samples[1000:3000].astype(np.float64).sum()) * 1e-6, rel=1e-6)
    assert row["energy"]["covers"] == ["sampling"]


def write_run(folder: Path, windows: list[tuple[str, float, float]]) -> str:
    """Write the journal of a run with windows of 100 inferences; return its name."""
    network = Configuration(name="net/python/fp32", network="net", runtime="python", precision="fp32")
    header = runs.header(
        "20261128T100000Z-abcdef",
        T0,
        configurations=(network,),
        exporters=(ExporterRecord(name="node1:10717", url="http://node1:10717", nodename="node1"),),
        provenance={"host": "node1"},
    )
    with Journal.create(folder / "runs", header) as journal:
        journal.append(network)
        for index, (kind, start_s, end_s) in enumerate(windows):
            times = {"start_s": T0 + start_s, "end_s": T0 + end_s, "duration_s": end_s - start_s}
            work = {"configuration": network.name, "batch_size": 4, "batches": 25, "inferences": 100}
            fields: dict[str, Any] = {"run": header.run, "index": index, "kind": kind, "clock_error_s": 0.0}
            journal.append(Window(**fields, **times, **(work if kind == "measure" else {})))
        journal.append(RunEnd(ended_at_s=T0 + windows[-1][2], status="complete"))
    return header.run


def test_the_windows_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recording has the run's configurations and windows, with the energy of the meter."""
    log, watts = ptdaemon(tmp_path)
    run = write_run(tmp_path, [("idle", 10.0, 20.0), ("measure", 30.0, 40.0)])
    out = tmp_path / "a.sqlite"
    words = [f"--windows={run}", f"--output={tmp_path / 'runs'}", f"--out={out}", "--timezone=UTC"]
    assert main(["import", str(log), *words]) == 0
    result = json_of(capsys, "analyze", str(out))
    (group,) = result["results"]
    assert group["batch_size"] == 4
    assert group["energy"]["nodes"][0]["gross"]["value"] == pytest.approx(trapezoid(watts, 300, 400) / 100, rel=1e-6)


def test_a_run_is_aligned_by_its_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The clock of the meter is 41 s behind; its offset is a part of the uncertainty, so no finding is left."""
    run = write_run(tmp_path, [("idle", 10.0, 20.0), ("measure", 22.0, 30.0), ("measure", 33.0, 40.0)])
    rows = ["time,watts"]
    for tenth in range(600):
        at_s = tenth / 10
        rows.append(f"{T0 + at_s - 41:.1f},{90 if 22 <= at_s < 30 or 33 <= at_s < 40 else 50}")
    log, out = tmp_path / "wall.csv", tmp_path / "a.sqlite"
    log.write_text("\n".join(rows), encoding="utf-8")
    words = [f"--windows={run}", f"--output={tmp_path / 'runs'}", f"--out={out}", "--power=watts", "--align-by-load"]
    assert main(["import", str(log), *words]) == 0
    assert "clock offset: 41.0" in capsys.readouterr().err
    result = json_of(capsys, "analyze", str(out))
    energy = result["results"][0]["energy"]["nodes"][0]["gross"]
    assert energy["value"] == pytest.approx(90 * 15 / 200, abs=2 * energy["standard_uncertainty"])
    (clock,) = (item for item in energy["budget"] if item["name"] == "clock")
    assert "100 ms at either edge" in clock["text"]
    assert "clock_unknown" not in {finding["reason"] for finding in result["findings"]}


def test_the_table_has_the_uncertainty_of_a_wall_meter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wall meter has no energy of devices: the only number of the run must have its ±, or the reason why not."""
    log, windows, out = tmp_path / "wall.csv", tmp_path / "windows.csv", tmp_path / "a.sqlite"
    log.write_text("time,watts\n" + "".join(f"{T0 + i},{2000 + i % 2}\n" for i in range(100)), encoding="utf-8")
    spans = "".join(f"{name},{T0 + at},{T0 + at + 10}\n" for name, at in (("twice", 10), ("twice", 30), ("once", 50)))
    windows.write_text(f"name,start,end\n{spans}", encoding="utf-8")
    assert main(["import", str(log), "--power=watts", f"--windows={windows}", f"--out={out}"]) == 0
    assert main(["analyze", str(out)]) == 0
    text = capsys.readouterr().out
    assert "Whole servers and parts of devices, kJ per inference" in text
    assert re.search(r"\n    1 +20\.00\d* ± 0\.0\d+†\n", text)
    assert "†: sampling and repeats only" in text
    assert "once, batch 1: 1 of 1 round: repeatability unknown; ± is omitted." in text


def test_a_log_without_windows_misses_no_exporter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, out = tmp_path / "wall.csv", tmp_path / "a.sqlite"
    log.write_text(WALL, encoding="utf-8")
    assert main(["import", str(log), "--power=watts", "--accuracy=1%", f"--out={out}"]) == 0
    result = json_of(capsys, "analyze", str(out))
    assert result["results"] == [] and result["findings"] == []


WALL = "time,watts\n1795860000,2\n1795860001,3\n1795860002,3\n"


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        (WALL, ("--power=power",), "unknown column 'power'"),
        (WALL, ("--power=watts", "--unit=watt"), "unknown unit 'watt'"),
        (WALL, ("--power=watts", "--unit=J"), "--unit J: is not the unit of a power"),
        (WALL + "1795860001,3\n", ("--power=watts",), "line 5: the time '1795860001' is not later"),
        (
            WALL + "2026-11-28 12:00:00,3\n",
            ("--power=watts",),
            "line 5: the time '2026-11-28 12:00:00' has no time zone",
        ),
        (WALL, ("--power=watts", "--timezone=Mars"), "--timezone 'Mars': no such time zone"),
        (WALL, ("--power=watts", "--timezone=UTC", "--clock-offset=1e300"), "an offset of 1e+300 s is too large"),
        (WALL, ("--power=watts", "--accuracy=much"), "--accuracy 'much'"),
        (WALL, (), "the format is not recognized"),
        (WALL, ("--time=when",), "--time: needs --power COLUMN or --energy COLUMN"),
        (WALL, ("--power=watts", "--windows=NONE.CSV"), "NONE.CSV: cannot be read"),
        (WALL, ("--power=watts", "--windows=none.csv"), "none.csv: cannot be read"),
        (WALL, ("--power=watts", "--windows=20260101"), "no run"),
        (WALL, ("--power=watts", "--align-by-load"), "--align-by-load: needs the windows of another clock"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(
    text: str,
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wall.csv").write_text(text, encoding="utf-8")
    assert main(["import", "wall.csv", "--out=a.sqlite", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not Path("a.sqlite").exists()


def test_several_devices_cannot_each_be_the_whole_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, out = tmp_path / "gpus.csv", tmp_path / "a.sqlite"
    header = "timestamp, uuid, power.draw [W]\n"
    rows = [f"2026/11/28 10:00:0{second}.000, GPU-{gpu}, {100 + gpu} W\n" for second in range(3) for gpu in range(2)]
    log.write_text(header + "".join(rows), encoding="utf-8")
    words = ["import", str(log), "--timezone=UTC", f"--out={out}"]
    assert main([*words, "--scope=node"]) == 2
    assert capsys.readouterr().err == (
        f"joulewatch: --scope node: {log} has 2 devices (GPU-0, GPU-1), and only one can be the whole machine; "
        "use --scope device\n"
    )
    assert not out.exists()
    assert main([*words, "--scope=device"]) == 0
    assert "gpus/import/GPU-1/total: 3 powers" in capsys.readouterr().out
    log.write_text(header + "".join(rows[::2]), encoding="utf-8")
    out.unlink()
    assert main([*words, "--scope=node"]) == 0, "one device can"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,begin,end\n", "unknown column 'start'"),
        ("name,start,end\n", "has no window"),
        ("name,start,end\na,2,1\n", "the window 'a' does not end after its start"),
        ("name,start,end\na,now,1\n", "line 2: 'now' is not a time"),
        ("name,start,end\n,1,2\n", "line 2: the window has no name"),
        ("name,start,end\na,1\n", "line 2: has only 2 columns"),
        ("name,start,end\na,1,5,2,5\n", "line 2: has 5 columns, the header has 3; decimals need a point"),
        pytest.param(f"name,start,end\n{'a' * 140_000},1,2\n", "line 2: is not CSV: field larger than", id="long"),
        ("name,start,end,inferences\na,1,2,some\n", "line 2: 'some' is not a number of inferences"),
        ("name,start,end\na,1,2\n", "no window lies within the log"),
        (":::MLLOG {\n", "line 1: is not a line of LoadGen"),
        (':::MLLOG {"key": "power_end", "value": "11-28-2026 10:00:10.000"}\n', "power_end without power_begin"),
        (':::MLLOG {"key": "power_begin", "value": "soon"}\n', "line 1: 'soon' is not a time"),
    ],
)
def test_wrong_windows_are_one_line_and_code_2(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, windows = tmp_path / "wall.csv", tmp_path / "windows.txt"
    log.write_text(WALL, encoding="utf-8")
    windows.write_text(text, encoding="utf-8")
    words = [str(log), "--power=watts", "--timezone=UTC", f"--windows={windows}", f"--out={tmp_path / 'a.sqlite'}"]
    assert main(["import", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_recording_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.sqlite"
    out.touch()
    assert main(["import", "wall.csv", "--power=watts", f"--out={out}"]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("error", [StorageError("a.sqlite: the disk is full"), KeyboardInterrupt()])
def test_an_import_that_fails_leaves_no_recording(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a log of several devices, it would have the energy of some."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(RecordingWriter, "add_line", lambda self, line: fail() if isinstance(line, RunEnd) else None)
    log, out = tmp_path / "wall.csv", tmp_path / "a.sqlite"
    log.write_text(WALL, encoding="utf-8")
    assert main(["import", str(log), "--power=watts", f"--out={out}"]) != 0
    assert sorted(tmp_path.iterdir()) == [log]


def test_power_over_many_hours_is_integrated_over_all_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Longer windows of counters are read at both ends only."""
    log, out = tmp_path / "wall.csv", tmp_path / "a.sqlite"
    rows = [f"{T0 + 15 * i},{100 + i % 3}" for i in range(4 * 240)]
    log.write_text("\n".join(["time,watts", *rows]), encoding="utf-8")
    assert main(["import", str(log), "--power=watts", f"--out={out}"]) == 0
    words = [f"--recording={out}", f"--start={T0}", f"--end={T0 + 3 * 3600}"]
    (row,) = json_of(capsys, "energy", *words)["sensors"]
    assert row["energy"]["joules"] == pytest.approx(101 * 3 * 3600, rel=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "time,power\n1795860000,{}\n",
        "time,power\n{},1\n",
        "time,{}\n1795860000,1\n",
        "time,\x1b[2J\n1795860000,1\n",
        "time,power\n1795860000,1\n1795860000{},2\n".replace("{}", "." + "0" * 100_000),
    ],
    ids=["value", "time", "column", "escape", "order"],
)
def test_a_long_value_is_cut_in_the_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    log = tmp_path / "log.csv"
    log.write_text(text.replace("{}", "x" * 100_000))
    assert main(["import", str(log), "--power=power", f"--out={tmp_path / 'a.sqlite'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) < 2300 and line.isprintable()
