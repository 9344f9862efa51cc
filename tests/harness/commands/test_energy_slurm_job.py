"""``joulewatch energy --slurm-job``: the job alone, on nodes whose exporters share their energy."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import responses

from joulewatch_harness.analysis.sources.history import RawSeries
from joulewatch_harness.cli import main
from support.fake_prometheus import URL, FakePrometheus
from support.workload_series import T0, Life, Machine, steady

EVERY_15_S = tuple(np.arange(-300.0, 900.0, 15.0).tolist())
ARRAY = (
    f"12_1|c|COMPLETED|{T0 + 100:.0f}|{T0 + 200:.0f}|n1|13\n12_2|c|COMPLETED|{T0 + 150:.0f}|{T0 + 400:.0f}|n[1-2]|12\n"
)


def job(number: str, watts: float, begin_s: float, end_s: float) -> Life:
    """Return the series of a job, which are kept for 300 s after its end."""

    def joules(at_s: float) -> float:
        return watts * (min(max(at_s, begin_s), end_s) - begin_s)

    names = {"job": number, "user": "ann"}
    return Life(joules=joules, kind="slurm_job", workload=number, names=names, begin_s=begin_s, end_s=end_s + 300)


def node(name: str, *lives: Life, scrapes_s: Sequence[float] = EVERY_15_S) -> list[RawSeries]:
    others = (steady(15, reason="rest"), steady(60, reason="idle"), steady(25, kind="slurm_job", workload="7"))
    target = {"job": "joulewatch", "instance": f"{name}:10717"}
    return Machine(lives=[*lives, *others], scrapes_s=scrapes_s, nodename=name, target=target).samples()


N1 = node("n1", job("13", 30, 100, 200), job("12", 40, 150, 400))
N2 = node("n2.example.org", job("12", 80, 150, 400))


def run(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    samples: list[RawSeries],
    form: str,
) -> str:
    program = folder / "sacct"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{ARRAY}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mocked:
        FakePrometheus(samples).install(mocked)
        # No device has a series, so the command has no energy of whole nodes.
        assert main(["energy", "--slurm-job=12", f"--prometheus={URL}", f"--format={form}"]) == 1
    return capsys.readouterr().out


def test_the_tasks_of_an_array_on_two_nodes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Task 1 used 30 W for 100 s on n1, task 2 used 40 W and 80 W for 250 s. Another cluster has a job 12, too."""
    elsewhere = node("m1", job("12", 500, 150, 400))
    document: Any = json.loads(run(capsys, monkeypatch, tmp_path, [*N1, *N2, *elsewhere], "json"))
    own = document["own"]
    assert {one["node"]: one["energy"]["joules"] for one in own["nodes"]} == pytest.approx(
        {"n1": 30 * 100 + 40 * 250, "n2": 80 * 250}
    )
    assert own["total"]["energy"]["joules"] == pytest.approx(33000)
    assert own["total"]["energy"]["share_lower_joules"] < 33000 < own["total"]["energy"]["share_upper_joules"]
    assert (own["missing_nodes"], own["share_ratios"]) == ([], [2.0])
    assert [one["duration_s"] for one in own["nodes"]] == [300, 250]
    assert document["basis"] == "whole_nodes"


def test_a_node_without_the_job_leaves_no_sum(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = run(capsys, monkeypatch, tmp_path, [*N1, *node("n2")], "table")
    rows = [line.split() for line in text.splitlines() if line.startswith(("n1 ", "n2 ", "all nodes"))]
    assert [row[:3] for row in rows if row[2] != "missing"] == [["n1", "cpu", "13000"]]
    flat = " ".join(text.split())
    assert "The job alone, without other jobs, the operating system and idle power" in flat
    assert "Without a number for the job alone, so without a sum: n2." in flat
    assert "one draws at most 2 times as much as the other" in flat


def test_csv_has_both_bases(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = list(csv.DictReader(io.StringIO(run(capsys, monkeypatch, tmp_path, [*N1, *N2], "csv"))))
    own = {row["node"]: row for row in rows if row["basis"] == "job_active"}
    assert float(own["n2"]["energy_joules"]) == pytest.approx(20000)
    assert float(own["n2"]["share_lower_joules"]) < 20000 < float(own["n2"]["share_upper_joules"])
    assert own["n2"]["host"] == "n2.example.org"
    assert {row["share_lower_joules"] for row in rows if row["basis"] == "whole_nodes"} == {""}


def test_scrapes_that_begin_during_the_job_are_a_finding(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    late = node("n2", job("12", 80, 150, 400), scrapes_s=[one for one in EVERY_15_S if one >= 250])
    document: Any = json.loads(run(capsys, monkeypatch, tmp_path, [*N1, *late], "json"))
    assert [one["text"] for one in document["findings"] if one["reason"] == "unbracketed"] == [
        "n2: no samples in 105 s of the job; its own energy of that time is missing"
    ]
    (second,) = [one for one in document["own"]["nodes"] if one["node"] == "n2"]
    assert (second["measured_s"], second["duration_s"]) == (145, 250)
    assert second["energy"]["joules"] == pytest.approx(80 * 145)
