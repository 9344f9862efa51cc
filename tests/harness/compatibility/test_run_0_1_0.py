"""A run recorded by version 0.1.0 has the same numbers, keys and codes as in version 0.1.0.

``run-0.1.0`` is an extract of a real run (two configurations, two rounds, two idle windows): its journal, its recording
as SQL, and the output of version 0.1.0 for it. Never regenerate these files with a newer version. Texts for people may
change and keys may be added; numbers, keys and codes may not change. Uncertainties may change if their rules do: each
is listed in ``uncertainties``, as it was and as it is, for review (``pytest --update-golden``).
"""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from joulewatch_harness.analysis.reports import to_json
from joulewatch_harness.analysis.sources.history import RawSeries, build_history
from joulewatch_harness.cli import main
from support import golden
from support.paths import ROOT

RUN = "20261128T111652Z-212543"
DATA = ROOT / "tests" / "harness" / "compatibility" / "run-0.1.0"
CHANGED = DATA.parent / "uncertainties"
LATER_FINDINGS = {("error", "missing_windows")}
"""What a later version finds besides: the extract has 6 of the 51 windows of its run."""
TEXTS = {"generator", "text"}
"""Keys and columns with texts for people."""
UNCERTAINTIES = {
    "standard_uncertainty", "expanded_uncertainty", "standard_uncertainty_watts", "coverage_factor",
    "degrees_of_freedom",
}  # fmt: skip
"""Keys of uncertainties, which may change with their rules."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The directory of the run, as version 0.1.0 left it."""
    folder = tmp_path / "runs" / RUN
    folder.mkdir(parents=True)
    journal = (DATA / "journal.jsonl").read_text(encoding="utf-8")
    (folder / "journal.jsonl").write_text(journal, encoding="utf-8")
    recording = sqlite3.connect(folder / "recording.sqlite")
    recording.executescript((DATA / "recording.sql").read_text(encoding="utf-8"))
    recording.executemany("INSERT INTO line (json) VALUES (?)", [(line,) for line in journal.splitlines()])
    recording.commit()
    recording.close()
    return folder


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 0
    return capsys.readouterr().out


def check(now: Any, then: Any, changed: list[str], where: str = "") -> None:
    """Require the same numbers and codes, and no key less; append the uncertainties that have changed."""
    if isinstance(then, dict):
        assert then.keys() <= now.keys(), where
        for key in then:
            if key in UNCERTAINTIES:
                if rounded(now[key]) != rounded(then[key]):
                    changed.append(f"{where}/{key}: {rounded(then[key])}, now {rounded(now[key])}")
            elif key not in TEXTS:
                check(now[key], then[key], changed, f"{where}/{key}")
    elif isinstance(then, list):
        assert len(now) == len(then), where
        for number, (value, expected) in enumerate(zip(now, then, strict=True)):
            check(value, expected, changed, f"{where}/{number}")
    elif isinstance(then, float):
        assert now == pytest.approx(then, rel=1e-9, abs=1e-15), where
    else:
        assert now == then, where


def rounded(number: float | None) -> str:
    return "none" if number is None else f"{number:.4g}"


def check_csv(now: str, name: str, update: bool) -> None:
    """Require the same values, and the uncertainties that are listed."""
    rows, expected_rows = (
        list(csv.DictReader(io.StringIO(text))) for text in (now, (DATA / name).read_text(encoding="utf-8"))
    )
    assert len(rows) == len(expected_rows) > 0
    changed = []
    for number, (row, expected) in enumerate(zip(rows, expected_rows, strict=True)):
        assert expected.keys() <= row.keys()
        for column in sorted(expected.keys() - TEXTS):
            if "uncertainty" in column and row[column] != expected[column]:
                changed.append(f"{number}/{column}: {expected[column]}, now {row[column]}")
            elif "uncertainty" not in column:
                try:
                    value = float(expected[column])
                except ValueError:
                    assert row[column] == expected[column], column
                else:
                    assert float(row[column]) == pytest.approx(value, rel=2e-8), column
    check_changed(changed, name, update)


def check_changed(changed: list[str], name: str, update: bool) -> None:
    """Require the uncertainties that are listed as changed since version 0.1.0."""
    golden.check("".join(f"{line}\n" for line in changed), CHANGED / f"{name}.txt", update=update)


def stored_result() -> Any:
    return json.loads((DATA / "result.json").read_text(encoding="utf-8"))


def test_the_run_analyzes_to_the_same_numbers(
    folder: Path, capsys: pytest.CaptureFixture[str], update_golden: bool
) -> None:
    expected = stored_result()
    del expected["source"]  # the path of the recording
    for source in (folder, folder / "recording.sqlite"):
        document = json.loads(printed(capsys, "analyze", str(source), "--format=json"))
        later = [item for item in document["findings"] if (item["severity"], item["reason"]) in LATER_FINDINGS]
        assert {(item["severity"], item["reason"]) for item in later} == LATER_FINDINGS
        document["findings"] = [item for item in document["findings"] if item not in later]
        changed: list[str] = []
        check(document, expected, changed)
        check_changed(changed, "result.json", update_golden)
    assert len(expected["results"]) == 2


def test_without_the_recording_the_edges_give_the_same_numbers(
    folder: Path, capsys: pytest.CaptureFixture[str], update_golden: bool
) -> None:
    (folder / "recording.sqlite").unlink()
    check_csv(printed(capsys, "analyze", str(folder), "--format=csv"), "edges.csv", update_golden)


def test_the_stored_result_compares_to_the_same_numbers(
    capsys: pytest.CaptureFixture[str], update_golden: bool
) -> None:
    """With the same verdict words, which programs read."""
    check_csv(printed(capsys, "compare", str(DATA / "result.json"), "--format=csv"), "compare.csv", update_golden)


def test_a_new_analysis_compares_with_the_stored_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(printed(capsys, "compare", str(DATA / "result.json"), str(folder), "--format=json"))
    values = [
        row["difference"]["value"] for pair in document["comparisons"] for row in pair["results"] if row["difference"]
    ]
    assert len(values) == 14
    assert values == pytest.approx([0.0] * 14, abs=1e-9)


def test_a_window_of_the_recording_has_the_same_energy(
    folder: Path, capsys: pytest.CaptureFixture[str], update_golden: bool
) -> None:
    words = ["--start=1795864637.2", "--end=1795864638.05", "--format=csv"]
    check_csv(
        printed(capsys, "energy", f"--recording={folder / 'recording.sqlite'}", *words), "energy.csv", update_golden
    )


def test_the_schema_accepts_the_stored_result() -> None:
    jsonschema.validate(stored_result(), to_json.schema())


def test_labels_and_metrics_of_a_newer_exporter_are_ignored() -> None:
    labels = {"instance": "a:1", "collector": "new", "component": "gpu", "device": "0", "domain": "total"}
    info = {**labels, "scope": "device", "method": "counter", "read_mode": "polled", "vendor": "x"}
    times_s = np.arange(0.0, 5.0)
    history = build_history(
        "memory",
        [
            RawSeries(name="joulewatch_sensor_info", labels=info, times_s=times_s[-1:], values=np.ones(1)),
            RawSeries(
                name="joulewatch_device_energy_joules_total", labels=labels, times_s=times_s, values=10 * times_s
            ),
            RawSeries(name="joulewatch_metric_of_a_later_version", labels=labels, times_s=times_s, values=times_s),
        ],
    )
    (record,) = history.sensors.values()
    assert (record.collector, record.method, record.accuracy, record.refresh_s) == ("new", "counter", None, None)
    assert len(history.counters) == 1


def test_the_run_is_listed_and_exported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = json.loads(printed(capsys, "runs", f"--output={folder.parent}", "--format=json"))
    assert row == {
        "run": RUN,
        "started_at_s": 1795864613.2980404,
        "status": "complete",
        "configurations": ["radioml-vgg10/onnxruntime/fp32", "radioml-vgg10/onnxruntime/int8"],
        "windows": 6,
        "delivered": 0,
    }
    text = printed(capsys, "export", "--openmetrics", str(folder))
    assert text.endswith("# EOF\n")
    assert text.count("\njoulewatch_device_energy_joules_total{") == 122
