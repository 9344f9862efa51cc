"""``joulewatch runs`` lists the stored runs and reports the result of a push."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, Self

import pytest

from joulewatch_harness.cli import main
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.commands import runs
from joulewatch_harness.delivery import delivery
from joulewatch_harness.delivery.courier import DeliveredLog, DeliveryReport, Parked
from joulewatch_harness.delivery.sinks import window_item
from joulewatch_harness.errors import QueryRangeError
from joulewatch_harness.records import RunEnd
from joulewatch_harness.storage.journal import Journal
from support.runs import NETWORK, RUN, header, window


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A finished run, half of it delivered, and an interrupted run."""
    folder = tmp_path / "runs"
    with Journal.create(folder, header()) as journal:
        journal.append(NETWORK)
        made = [window(index, 1_700_000_001.0 + 2 * index) for index in range(2)]
        for item in made:
            journal.append(item)
        journal.append(RunEnd(1_700_000_010.0, "complete"))
    DeliveredLog(journal.folder, way="remote_write", target="http://p").add([window_item(header(), None, made[0])])
    cut_off = header("20261122T000000Z-000000", 1_700_086_400.0, plan={"prometheus": "http://planned:9090"})
    Journal.create(folder, cut_off).close()
    return folder


def test_the_list_as_a_table(output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["runs", f"--output={output}"]) == 0
    assert capsys.readouterr().out == (
        "run                      started (UTC)        status      windows  delivered  configurations\n"
        "20261121T013005Z-1f9c3a  2023-11-14 22:13:20  complete          2          1  net/onnxruntime/fp32\n"
        "20261122T000000Z-000000  2023-11-15 22:13:20  unfinished        0          0  net/onnxruntime/fp32\n"
    )


def test_the_windows_of_a_renamed_folder_are_delivered(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (output / RUN).rename(output / "baseline")
    assert main(["runs", f"--output={output}", "--format=json"]) == 0
    assert [row["delivered"] for row in json.loads(capsys.readouterr().out)] == [1, 0]


def test_the_list_fits_80_columns(
    output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["runs", f"--output={output}"]) == 0
    assert capsys.readouterr().out == (
        "run                      status      windows  delivered  configurations\n"
        "20261121T013005Z-1f9c3a  complete          2          1  net/onnxruntime/fp32\n"
        "20261122T000000Z-000000  unfinished        0          0  net/onnxruntime/fp32\n"
        "Omitted to fit 80 columns: started (UTC). A wider terminal or --format json\n"
        "  shows them.\n"
    )


def test_the_list_as_json_and_csv(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "list", f"--output={output}", "--format=json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0] == {
        "run": RUN,
        "started_at_s": 1_700_000_000.25,
        "status": "complete",
        "configurations": [NETWORK.name],
        "windows": 2,
        "delivered": 1,
    }
    assert main(["runs", f"--output={output}", "--format=csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["run"] for row in table] == [RUN, "20261122T000000Z-000000"]
    assert table[0]["started_at_s"] == "1700000000.25"


def test_no_runs_is_an_empty_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", f"--output={tmp_path / 'none'}"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no runs in" in captured.err
    assert main(["runs", f"--output={tmp_path / 'none'}", "--format=json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


class Client:
    """What both fakes of ``PrometheusClient`` share; each has a ``query``."""

    def __init__(self, options: PrometheusOptions) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ping(self) -> str:
        return ""


def test_the_list_from_prometheus(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, list[dict[str, Any]]] = {
        "last_over_time(joulewatch_run_start": [
            {"metric": {"run": "b", "status": "complete"}, "value": [9, "20.5"]},
            {"metric": {"run": "b", "status": "running"}, "value": [9, "20.5"]},
            {"metric": {"run": "a", "status": "running"}, "value": [9, "10"]},
        ],
        "sum by (run)": [{"metric": {"run": "b"}, "value": [9, "12"]}],
        "group by (run, configuration, kind, phase, window)": [
            {"metric": {"run": "a", "window": str(number)}, "value": [9, "1"]} for number in range(3)
        ],
        "group by (run, configuration)": [{"metric": {"run": "b", "configuration": NETWORK.name}, "value": [9, "1"]}],
    }

    class FakeClient(Client):
        def query(self, promql: str) -> list[dict[str, Any]]:
            # Annotations that were delivered by remote write have no target labels.
            assert "[30d]" in promql and 'cluster=~"x|"' in promql
            return next(result for start, result in answers.items() if promql.startswith(start))

    monkeypatch.setattr(runs, "PrometheusClient", FakeClient)
    match = {"cluster": "x"}
    assert runs.prometheus_runs(PrometheusOptions("http://p", match=match), "30d") == [
        runs.RunRow(run="a", started_at_s=10.0, status="unfinished", configurations=(), windows=3, delivered=None),
        runs.RunRow(
            run="b",
            started_at_s=20.5,
            status="complete",
            configurations=(NETWORK.name,),
            windows=12,
            delivered=None,
        ),
    ]


def test_push_prints_a_report_and_its_exit_code_shows_whether_all_windows_are_delivered(
    output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, str, str | None]] = []
    report = DeliveryReport(windows=2, delivered=2, pending=0)

    def push(folder: Path, options: PrometheusOptions, *, pushgateway_url: str | None, timeout_s: float) -> object:
        asked.append((folder, options.url, pushgateway_url))
        return report

    monkeypatch.setattr(delivery, "push_run", push)
    words = ["runs", "push", RUN[:10], f"--output={output}"]
    assert main([*words, "--prometheus=http://p"]) == 0
    assert capsys.readouterr().out == f"{RUN}: 2 of 2 windows are in http://p\n"
    report = DeliveryReport(
        windows=3, delivered=1, pending=1, parked=(Parked("window 1", "out of order"),), trouble="cannot be reached"
    )
    assert main([*words, "--prometheus=http://p", "--pushgateway=http://g"]) == 1
    captured = capsys.readouterr()
    assert "1 of 3 windows" in captured.out
    assert "window 1 was refused: out of order" in captured.err
    assert "incomplete: cannot be reached" in captured.err
    assert main([*words, "--prometheus=http://p", "--format=json"]) == 1
    assert json.loads(capsys.readouterr().out)["parked"] == [{"what": "window 1", "reason": "out of order"}]
    assert main([*words, "--prometheus=http://p", "--format=csv"]) == 1
    assert capsys.readouterr().out.splitlines()[1] == f"{RUN},http://p,3,1,1,1"
    (output / RUN).rename(output / "baseline")
    monkeypatch.chdir(output / "baseline")
    assert main(["runs", "push", ".", "--prometheus=http://p"]) == 1
    assert capsys.readouterr().out.startswith(f"{RUN}: 1 of 3 windows")
    # The Prometheus of the plan is the default.
    assert main(["runs", "push", "20261122", f"--output={output}"]) == 1
    assert [url for _, url, _ in asked][-1] == "http://planned:9090"
    assert [gateway for _, _, gateway in asked] == [None, "http://g", None, None, None, None]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["push"], "'joulewatch runs push' needs a run"),
        (["push", RUN], "needs --prometheus URL"),
        (["push", "nothing", "--prometheus=http://p"], "unknown run 'nothing'"),
        (["--since=30d"], "--since needs --prometheus URL"),
        (["list", "x"], "did you mean 'joulewatch runs push x'"),
        (["push", RUN, "--prometheus=p:9090"], "is not a valid URL"),
    ],
)
def test_bad_arguments_are_errors(
    output: Path, words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", *words, f"--output={output}"]) == 2
    assert text in capsys.readouterr().err


def test_a_list_longer_than_the_servers_longest_range_is_queried_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    ranges: list[float] = []

    class FakeClient(Client):
        def query(self, promql: str, at_s: float | None = None) -> list[dict[str, Any]]:
            if "[90d]" in promql:
                raise QueryRangeError("limit: 768h0m0s")
            length_s = int(promql.partition("[")[2].partition("ms]")[0]) / 1000
            if length_s > 32 * 86_400:
                raise QueryRangeError("limit: 768h0m0s")
            ranges.append(length_s)
            if promql.startswith("last_over_time"):
                return [{"metric": {"run": "a", "status": "complete"}, "value": [9, "10"]}]
            if promql.startswith("group by (run, configuration, kind"):
                return [{"metric": {"run": "a", "window": "7"}, "value": [9, "1"]}]
            if promql.startswith("sum by"):
                return [{"metric": {"run": "a"}, "value": [9, "2"]}]
            return [{"metric": {"run": "a", "configuration": NETWORK.name}, "value": [9, "1"]}]

    monkeypatch.setattr(runs, "PrometheusClient", FakeClient)
    (row,) = runs.prometheus_runs(PrometheusOptions("http://p"), "90d")
    assert (row.run, row.status, row.configurations) == ("a", "complete", (NETWORK.name,))
    assert row.windows == 4 * 2 + 1  # four parts of windows from remote write, and one window of a Pushgateway
    assert sum(ranges) == pytest.approx(4 * 90 * 86_400)
