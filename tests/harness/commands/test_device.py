"""``joulewatch device``: cards as table, JSON and CSV, and a card made from a run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from joulewatch_harness.cli import main
from joulewatch_harness.prediction.cards import cards, find_card
from support.paths import ROOT

STORED = ROOT / "tests/harness/compatibility/run-0.1.0/result.json"
Change = Callable[[dict[str, Any]], object]


def shown(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(["device", *words]) == code
    out, err = capsys.readouterr()
    if code:
        assert out == ""
        assert len(err.splitlines()) == 1, err
        return err
    return out


def test_all_cards_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys).splitlines()
    assert all(len(line) <= 80 for line in lines)
    rows = [line.split() for line in lines if line.split()[:1] and line.split()[0] in cards()]
    assert [row[0] for row in rows] == list(cards())
    assert ["epyc-7763", "cpu", "5.018*", "204.8", "280", "100*"] in rows
    assert ["alveo-u280", "fpga", "-", "460", "-", "40.3*"] in rows


def test_one_card_is_shown_with_its_sources_and_with_what_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "AMD EPYC 9654")
    assert "fp32_operations_per_cycle 32" in text
    assert "Not known: idle_watts" in text
    assert "[1] AMD processor specifications" in text
    assert "2026-11-28" in text
    assert "estimated" in text


def test_json_and_csv_have_every_number_with_source_and_status(capsys: pytest.CaptureFixture[str]) -> None:
    (document,) = json.loads(shown(capsys, "raspberry-pi-4", "--format", "json"))
    idle = document["fields"]["idle_watts"]
    assert (idle["value"], idle["unit"], idle["status"], idle["scope"]) == (
        pytest.approx(3.06), "W", "datasheet", "wall",
    )  # fmt: skip
    assert idle["formula"] == "supply_volts 5.1 × idle_amperes 0.6"
    assert idle["sources"][0]["url"] == "https://github.com/raspberrypi/documentation"
    rows = list(csv.DictReader(io.StringIO(shown(capsys, "--format", "csv"))))
    assert len(rows) == sum(len(card.facts()) for card in cards().values())
    assert all(row["source"] and row["status"] and row["date"] for row in rows)


def stored(tmp_path: Path, change: Change) -> str:
    document = json.loads(STORED.read_text(encoding="utf-8"))
    change(document)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return str(path)


def metered(document: dict[str, Any]) -> None:
    """Let the run have been measured by counters."""
    for group in document["results"]:
        for energy in (*group["energy"]["components"], group["energy"]["total"]):
            energy["methods"] = ["counter"]


def test_a_run_gives_a_card_that_can_be_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(shown(capsys, "--from-run", stored(tmp_path, metered)), encoding="utf-8")
    card = find_card(str(path))
    assert (card.title, card.kind, card.tdp_watts) == ("Intel(R) Xeon(R) Processor", "cpu", None)
    idle = card.fact("idle_watts")
    assert idle is not None
    assert (idle.value, idle.status, idle.scope) == (1.692, "measured", "device")
    assert idle.sources[0].title == "joulewatch run 20261128T111652Z-212543"
    assert "2 idle windows" in idle.note
    whole = card.fact("machine_idle_watts")
    assert whole is not None
    assert (whole.value, whole.status) == (1.692, "measured")
    shown(capsys, str(path))


def test_the_largest_rate_of_a_run_is_a_lower_bound_not_a_peak(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(shown(capsys, "--from-run", str(STORED)), encoding="utf-8")
    card = find_card(str(path))
    rates = [
        group["throughput"]["value"] * 2 * 12864512
        for group in json.loads(STORED.read_text(encoding="utf-8"))["results"]
        if group["configuration"]["precision"] == "fp32"
    ]
    fact = card.fact("observed_operations_per_second.fp32")
    assert fact is not None
    assert fact.value == pytest.approx(max(rates), rel=1e-3)
    assert fact.note.startswith("lower bound of the peak: radioml-vgg10/onnxruntime/fp32, batch size")
    assert card.peak_operations_per_second == {}


@pytest.mark.parametrize("method", ["estimated", "emulated"])
def test_an_idle_power_that_was_not_measured_is_estimated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    def change(document: dict[str, Any]) -> None:
        for group in document["results"]:
            for component in group["energy"]["components"]:
                component["methods"] = [method]

    path = tmp_path / "mine.yaml"
    path.write_text(shown(capsys, "--from-run", stored(tmp_path, change)), encoding="utf-8")
    idle = find_card(str(path)).fact("idle_watts")
    assert idle is not None
    assert idle.status == "estimated"
    assert idle.note.endswith(f"method: {method}")


def test_a_run_without_idle_windows_has_no_idle_power(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        shown(capsys, "--from-run", stored(tmp_path, lambda document: document.update(idle={}))), encoding="utf-8"
    )
    card = find_card(str(path))
    assert card.idle_watts is None
    assert "no valid idle window" in card.note


def two_devices(document: dict[str, Any]) -> None:
    document["results"][0]["configuration"]["device"] = "cuda:0"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("alveo-u28",), "unknown device 'alveo-u28'; did you mean alveo-u280"),
        (("missing.yaml",), "missing.yaml: cannot be read"),
        (("--from-run", "TWO"), "measured 2 devices (Intel(R) Xeon(R) Processor, cuda:0): give a run of one device"),
        (("--from-run", "TWO", "--format", "json"), "--from-run writes YAML: omit --format"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    run = stored(tmp_path, two_devices)
    assert message in shown(capsys, *(run if word == "TWO" else word for word in words), code=2)
