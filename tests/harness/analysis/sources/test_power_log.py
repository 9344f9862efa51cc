"""Logs of other meters: units, times, limits of the meter; every wrong input is one line with the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from joulewatch_harness.analysis.sources.power_log import LogFormat, accuracy_of, read_power_log
from joulewatch_harness.errors import ConfigError

POWER = LogFormat(power="watts")
ENERGY = LogFormat(energy="total", unit="Wh")


def log_of(folder: Path, text: str) -> Path:
    path = folder / "wall.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("unit", "factor"), [("", 1.0), ("W", 1.0), ("mW", 1e-3), ("kW", 1e3)])
def test_units_of_power(unit: str, factor: float, tmp_path: Path) -> None:
    path = log_of(tmp_path, "time,watts\n100,2.50\n101,3.25\n")
    log = read_power_log(path, LogFormat(power="watts", unit=unit))
    assert log.series.values.tolist() == [2.5 * factor, 3.25 * factor]
    assert log.traits.resolution_watts == pytest.approx(0.01 * factor)
    assert not log.is_energy and log.span == (100.0, 101.0)


@pytest.mark.parametrize(("unit", "factor"), [("", 1.0), ("J", 1.0), ("Wh", 3600.0), ("kWh", 3.6e6)])
def test_units_of_energy(unit: str, factor: float, tmp_path: Path) -> None:
    path = log_of(tmp_path, "time,total\n100,2.5\n101,2.6\n")
    log = read_power_log(path, LogFormat(energy="total", unit=unit))
    assert log.series.values.tolist() == [2.5 * factor, 2.6 * factor]
    assert log.is_energy and log.traits.resolution_joules == pytest.approx(0.1 * factor)


@pytest.mark.parametrize(
    ("text", "timezone", "seconds"),
    [
        ("1796032800.25", "", 1796032800.25),
        ("2026-11-30T10:00:00Z", "", 1796032800.0),
        ("2026-11-30T11:00:00.250+01:00", "", 1796032800.25),
        ("2026-11-30 10:00:00", "UTC", 1796032800.0),
        ("2026-11-30 11:00:00", "Europe/Zurich", 1796032800.0),
        ("2026-11-30 11:00:00", "+01:00", 1796032800.0),
        ("2026-11-30 04:30:00", "-05:30", 1796032800.0),
        ("2026-11-30T10:00:00Z", "Europe/Zurich", 1796032800.0),
    ],
)
def test_times(text: str, timezone: str, seconds: float, tmp_path: Path) -> None:
    """A zone in the log counts before the option."""
    path = log_of(tmp_path, f"time,watts\n100,1\n{text},2\n")
    assert read_power_log(path, LogFormat(power="watts", timezone=timezone)).span[1] == seconds


@pytest.mark.parametrize("text", ["2026-10-25 02:30:00", "2026-03-29 02:30:00"])
def test_times_that_exist_twice_or_not_at_all_are_refused(text: str, tmp_path: Path) -> None:
    """Daylight saving time ends or begins: such a time could be an hour off."""
    path = log_of(tmp_path, f"time,watts\n{text},1\n2026-11-01 00:00:00,2\n")
    with pytest.raises(ConfigError, match=f"line 2: the time '{text}' exists twice, or not at all, in the zone Europe"):
        read_power_log(path, LogFormat(power="watts", timezone="Europe/Zurich"))
    assert read_power_log(path, LogFormat(power="watts", timezone="+01:00")).span[0] % 3600 == 1800


def test_other_delimiters_a_byte_order_mark_and_missing_values(tmp_path: Path) -> None:
    path = log_of(tmp_path, "\ufeffid; time ;watts\n1;100;5\n2;101;-\n\n3;102;NaN\n4;103;7\n")
    log = read_power_log(path, POWER)
    assert log.series.times_s.tolist() == [100.0, 103.0]


def test_steps_and_updates_of_the_meter(tmp_path: Path) -> None:
    """A counter in steps of 10 Wh, logged each second with three decimals, and updated every other second."""
    rows = "".join(f"{100 + i},{10 * (i // 2):.3f}\n" for i in range(20))
    log = read_power_log(log_of(tmp_path, f"time,total\n{rows}"), ENERGY)
    assert log.traits.resolution_joules == pytest.approx(36_000)
    assert log.traits.refresh_s == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time,power\n1,2\n", "unknown column 'watts'"),
        ("when,watts\n1,2\n", "unknown column 'time'"),
        ("time,watts,watts\n1,2,3\n", "the column 'watts' is there twice"),
        ("", "unknown column 'time'"),
        ("time,watts\n1,2\n", "fewer than two rows"),
        ("time,watts\n1,2\n3\n", "line 3: has only 1 column"),
        ("time,watts\n1,2,5\n3,4,5\n", "line 2: has 3 columns, the header has 2; decimals need a point"),
        ("time,watts,\n1,2,\n3,4,,\n3,5,,\n", "line 4: the time '3' is not later"),
        pytest.param(f'time,watts\n1,2\n3,"{"x" * 140_000}"\n', "line 3: is not CSV: field larger than", id="long"),
        ("time,watts\n1,2\n3,4 W\n", "line 3: '4 W' is not a number"),
        ("time;watts\n1;2,5\n", "line 2: '2,5' is not a number; decimals need a point, not a comma"),
        ("time,watts\n1,2\n3,inf\n", "line 3: 'inf' is not a number"),
        ("time,watts\n3,2\n3,2\n", "line 3: the time '3' is not later than that of the row before; record fewer rows"),
        ("time,watts\n2026-11-30 10:00:00,2\n", "line 2: the time '2026-11-30 10:00:00' has no time zone"),
        ("time,watts\nnow,2\n", "line 2: 'now' is not a time"),
        ("time,watts\n1796032800123,2\n", "line 2: the time '1796032800123' is not in Unix seconds"),
    ],
)
def test_a_wrong_log_names_the_line(text: str, message: str, tmp_path: Path) -> None:
    path = log_of(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_power_log(path, POWER)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_an_energy_that_falls_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"line 3: the energy falls to 2.0: the meter was reset"):
        read_power_log(log_of(tmp_path, "time,total\n1,3.0\n2,2.0\n"), ENERGY)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "wall.csv"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_power_log(path, POWER)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not text in UTF-8"):
        read_power_log(path, POWER)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "--power COLUMN or --energy COLUMN"),
        ({"power": "a", "energy": "b"}, "--power COLUMN or --energy COLUMN"),
        ({"power": "a", "unit": "watt"}, "unknown unit 'watt'"),
        ({"power": "a", "unit": "kWh"}, "--unit kWh: is not the unit of a power; use --energy, or W, mW, kW"),
        ({"energy": "a", "unit": "W"}, "--unit W: is not the unit of an energy; use --power, or J, Wh, kWh"),
        ({"power": "a", "timezone": "Mars/Olympus"}, "--timezone 'Mars/Olympus': no such time zone"),
        ({"power": "a", "timezone": "../etc/passwd"}, "no such time zone"),
        ({"power": "a", "timezone": "+25:00"}, "--timezone '+25:00': no such time zone"),
    ],
)
def test_formats_that_are_not_valid(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LogFormat(**fields)
    assert message in str(caught.value)


def test_accuracies() -> None:
    assert [accuracy_of(text) for text in ("1%", "0.5 %", "0.01", "0")] == [0.01, 0.005, 0.01, 0.0]
    for text in ("", "one", "1 W", "120%", "-1%", "1%%", "nan"):
        with pytest.raises(ConfigError, match="must be a share"):
            accuracy_of(text)
