"""``joulewatch calibrate``: from a run and a log to a file; every wrong input is one line and exit code 2."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import yaml

from joulewatch_harness.cli import main
from support.synthetic import write_recording
from support.wall_meter import GAIN, node_world, wall_log


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Return the command for a recorded run and a log of the meter."""
    world = node_world()
    write_recording(world, tmp_path / "recording.sqlite")
    wall_log(tmp_path / "wall.csv", world, noise_watts=0.5)
    return [
        "calibrate",
        str(tmp_path / "recording.sqlite"),
        f"--reference={tmp_path / 'wall.csv'}",
        "--power=watts",
        f"--out={tmp_path / 'bmc.yaml'}",
    ]


def test_a_file_a_figure_and_a_table(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    figure = tmp_path / "residuals.svg"
    assert main([*words, f"--figure={figure}", "--accuracy=0.1%", "--reference-name=WT310"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("ipmi/bmc/total against WT310 (accuracy ±0.1 %), run 20260921T141320Z-0a1b2c\n\n")
    assert all(len(line) <= 100 for line in out.splitlines())
    assert "\ngain: 1.0" in out and "; after: " in out
    assert err == f"calibration: {tmp_path / 'bmc.yaml'}\nfigure: {figure}\n"
    (entry,) = yaml.safe_load((tmp_path / "bmc.yaml").read_text())["calibrations"]
    assert entry["gain"] == pytest.approx(GAIN, rel=2e-3)
    assert entry["reference"] == {"name": "WT310", "accuracy": 0.001}
    drawn = figure.read_text()
    assert "ipmi bmc total against WT310: gain 1.0" in drawn and "calibrated − reference, W" in drawn


def test_a_figure_on_a_full_disk_is_one_line(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = tmp_path / "residuals.png"
    figure.symlink_to("/dev/full")
    assert main([*words, f"--figure={figure}"]) == 1
    err = capsys.readouterr().err
    assert err.endswith(f"--figure {figure}: cannot be written: No space left on device\n")


def test_csv_and_json(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--format=csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 16 and {row["kind"] for row in rows} == {"idle", "measure"}
    assert float(rows[3]["calibrated_watts"]) == pytest.approx(float(rows[3]["reference_watts"]), rel=5e-3)
    (tmp_path / "bmc.yaml").unlink()
    assert main([*words, "--format=json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (one,) = document["calibrations"]
    assert one["sensor"]["device"] == "bmc" and one["calibration"]["reference"] == "wall"
    assert one["calibration"]["reference_accuracy"] is None
    assert len(document["windows"]) == 16 and document["warning"] == ""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--power=wats"], "unknown column 'wats'; did you mean watts?"),
        (["--time=when"], "unknown column 'when'"),
        (["--energy=joules"], "give the column of the log: --power COLUMN or --energy COLUMN"),
        (["--unit=Wats"], "--unit: unknown unit 'Wats'"),
        (["--unit=kWh"], "is not the unit of a power"),
        (["--accuracy=1 W"], "--accuracy '1 W': must be a share of the value"),
        (["--timezone=Nowhere"], "--timezone 'Nowhere': no such time zone"),
        (["--sensor=*/nvml/*"], "no sensor matches */nvml/*; the sensors are 127.0.0.1:10717/ipmi/bmc/total"),
        (["--figure=x.bmp"], "--figure x.bmp: the name must end in .png, .svg, .pdf"),
        (["--out=/nowhere/bmc.yaml"], "the directory /nowhere does not exist"),
        (["--reference=/nowhere/wall.csv"], "/nowhere/wall.csv: cannot be read: No such file or directory"),
    ],
)
def test_wrong_arguments(
    more: list[str], message: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, *more]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "bmc.yaml").exists()


def test_a_calibration_is_never_overwritten(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bmc.yaml").write_text("precious")
    assert main(words) == 2
    assert "exists already; a calibration is never overwritten" in capsys.readouterr().err
    assert (tmp_path / "bmc.yaml").read_text() == "precious"


def test_an_unknown_run(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "20300101", *words[2:], f"--output={tmp_path}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
