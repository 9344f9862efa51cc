"""Logs of tools and meters: each format is recognized, with its unit, its devices and its times."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from joulewatch_harness.analysis.sources.log_formats import KNOWN, NAMES, ReadLog, read_log
from joulewatch_harness.errors import ConfigError

T0 = 1795860000.0
"""2026-11-28 10:00:00 UTC."""
PTDAEMON = """\
Time,11-28-2026 10:00:00.000,Watts,25.650000,Volts,227.370000,Amps,0.225410,PF,0.500600,Mark,run_1
Time,11-28-2026 10:00:01.500,Watts,26.250000,Volts,227.370000,Amps,0.225410,PF,0.500600,Mark,run_1
"""
NVIDIA_SMI = """\
timestamp, uuid, power.draw [W]
2026/11/28 10:00:00.000, GPU-a, 63.21 W
2026/11/28 10:00:00.002, GPU-b, 41.00 W
2026/11/28 10:00:01.500, GPU-a, 64.21 W
2026/11/28 10:00:01.502, GPU-b, [N/A]
2026/11/28 10:00:02.502, GPU-b, 42.00 W
"""
JOULESCOPE = """\
#time,current,voltage,power,charge,energy
0.0,0.01,5.0,0.05,0.0,0.0
0.5,0.02,5.0,0.10,0.0,0.0
"""
TEGRASTATS = """\
11-28-2026 10:00:00 RAM 2461/7620MB (lfb 3x2MB) CPU [19%@729] tj@48.843C VDD_IN 5704mW/5704mW VDD_CPU_GPU_CV 831mW/831mW
11-28-2026 10:00:01 RAM 2461/7620MB (lfb 3x2MB) CPU [19%@729] tj@48.843C VDD_IN 6004mW/5854mW VDD_CPU_GPU_CV 831mW/831mW
"""
TURBOSTAT = """\
turbostat version 2023.03.17 - Len Brown <lenb@kernel.org>
Time_Of_Day_Seconds\tBusy%\tPkgWatt\tRAMWatt
1795860000.000100\t1.20\t35.11\t4.2
Time_Of_Day_Seconds\tBusy%\tPkgWatt\tRAMWatt
1795860001.500100\t1.30\t36.11\t4.2
"""
PCM = """\
System,,,,Proc Energy (Joules),,DRAM Energy (Joules),
Date,Time,EXEC,Proc Energy (Joules),SKT0,SKT1,SKT0,SKT1
2026-11-28,10:00:00.000,0.1,9,80.0,70.0,5,6
2026-11-28,10:00:01.000,0.1,9,81.5,71.5,5,6
2026-11-28,10:00:02.000,0.1,9,82.0,72.0,5,6
"""
IPMITOOL = """\
    Instantaneous power reading:                   220 Watts
    Minimum during sampling period:                 18 Watts
    IPMI timestamp:                           Sat Nov 28 10:00:00 2026
    Sampling period:                          00000001 Seconds.
    Power reading state is:                   activated

    Instantaneous power reading:                   225 Watts
    Minimum during sampling period:                 18 Watts
    IPMI timestamp:                           11/28/2026 10:00:05 UTC
    Sampling period:                          00000001 Seconds.
"""


def read(folder: Path, text: str, **arguments: str) -> ReadLog:
    path = folder / "log.txt"
    path.write_text(text, encoding="utf-8")
    return read_log(path, None, **{"timezone": "UTC", **arguments})


@pytest.mark.parametrize(
    ("text", "name", "component", "times_s", "values"),
    [
        (PTDAEMON, "ptdaemon", "node", [T0, T0 + 1.5], [25.65, 26.25]),
        (JOULESCOPE, "joulescope", "node", [0.0, 0.5], [0.05, 0.1]),
        (TEGRASTATS, "tegrastats", "node", [T0, T0 + 1], [5.704, 6.004]),
        (TURBOSTAT, "turbostat", "cpu", [T0 + 1e-4, T0 + 1.5 + 1e-4], [35.11, 36.11]),
        (IPMITOOL, "ipmitool", "node", [T0, T0 + 5], [220, 225]),
    ],
)
def test_logs_of_one_device(
    text: str, name: str, component: str, times_s: list[float], values: list[float], tmp_path: Path
) -> None:
    result = read(tmp_path, text)
    (log,) = result.logs
    assert (result.format, result.component, log.device, log.is_energy) == (name, component, "", False)
    assert log.series.times_s.tolist() == pytest.approx(times_s, abs=1e-6)
    assert log.series.values.tolist() == pytest.approx(values)


@pytest.mark.parametrize("cell", ["[N/A]", "[Not Supported]", "[Unknown Error]", "[GPU requires reset]"])
def test_nvidia_smi_writes_in_brackets_why_it_has_no_value(cell: str, tmp_path: Path) -> None:
    rows = "".join(f"2026/11/28 10:00:0{i}.000, 0, {i}.5 W\n2026/11/28 10:00:0{i}.000, 1, {cell}\n" for i in range(3))
    (log,) = read(tmp_path, f"timestamp, index, power.draw [W]\n{rows}").logs
    assert (log.device, log.series.values.tolist()) == ("0", [0.5, 1.5, 2.5])


def test_every_format_of_the_table_is_tested() -> None:
    assert {known.name for known in KNOWN} == {
        "ptdaemon", "joulescope", "tegrastats", "turbostat", "ipmitool", "nvidia-smi", "pcm"
    }  # fmt: skip
    assert set(NAMES) == {known.name for known in KNOWN} | {"csv", "jls", "energy.bin"}


def test_nvidia_smi_has_a_log_per_gpu_and_skips_missing_values(tmp_path: Path) -> None:
    first, second = read(tmp_path, NVIDIA_SMI).logs
    assert (first.device, second.device) == ("GPU-a", "GPU-b")
    assert first.series.values.tolist() == [63.21, 64.21]
    assert first.series.times_s.tolist() == pytest.approx([T0, T0 + 1.5])
    assert second.series.values.tolist() == [41.0, 42.0]


def test_energies_per_row_become_a_counter_per_socket(tmp_path: Path) -> None:
    """The first row's energy is of the time before it."""
    result = read(tmp_path, PCM)
    assert [log.device for log in result.logs] == ["SKT0", "SKT1"]
    assert [log.series.values.tolist() for log in result.logs] == [[0.0, 81.5, 163.5], [0.0, 71.5, 143.5]]
    assert all(log.is_energy for log in result.logs)


def test_an_older_pcm_has_one_column_of_energy(tmp_path: Path) -> None:
    text = "System;;;\nDate;Time;EXEC;Proc Energy (Joules)\n2026-11-28;10:00:00;1;5\n2026-11-28;10:00:01;1;6\n"
    (log,) = read(tmp_path, text).logs
    assert (log.device, log.series.values.tolist()) == ("", [0.0, 6.0])


def energy_bin(folder: Path, content: bytes) -> Path:
    path = folder / "js110-energy.bin"
    path.write_bytes(content)
    return path


def test_energy_bin(tmp_path: Path) -> None:
    """0xF1, the rate, and microjoules per sample, all little-endian."""
    path = energy_bin(tmp_path, struct.pack("<Bf3f", 0xF1, 1000.0, 2.0, 0.0, 4.5))
    (log,) = read_log(path, None).logs
    assert log.series.times_s.tolist() == [0.0, 0.001, 0.002, 0.003]
    assert log.series.values.tolist() == pytest.approx([0.0, 2e-6, 2e-6, 6.5e-6])
    (joules,) = read_log(path, None, unit="J").logs
    assert joules.series.values[-1] == pytest.approx(6.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the first byte is not 0xF1"),
        (b"\xf2" + bytes(12), "the first byte is not 0xF1"),
        (b"\xf1" + bytes(4), "is not complete"),
        (struct.pack("<Bf1f", 0xF1, 1000.0, 2.0)[:-1], "is not complete"),
        (struct.pack("<Bf1f", 0xF1, 0.0, 2.0), "the rate of 0 samples per second is not valid"),
        (struct.pack("<Bf2f", 0xF1, 1.0, 2.0, float("nan")), "sample 1: nan is not an energy"),
    ],
)
def test_an_energy_bin_that_is_not_valid(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_log(energy_bin(tmp_path, content), None)


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("time,watts\n1,2\n", {}, "the format is not recognized"),
        (PTDAEMON, {"timezone": ""}, "line 1: the time '2026-11-28 10:00:00.000' has no time zone"),
        (PTDAEMON, {"unit": "J"}, "--unit J: is not the unit of a power"),
        (PTDAEMON, {"unit": "watt"}, "unknown unit 'watt'"),
        (PTDAEMON + PTDAEMON, {}, "line 3: the time .* is not later"),
        (TURBOSTAT.replace("Time_Of_Day_Seconds", "Core"), {}, "unknown column 'Time_Of_Day_Seconds'.*--Summary"),
        (TEGRASTATS.replace("11-28-2026 10:00:0", ""), {}, "fewer than two rows"),
        ("\n".join(f"RAM 1/2MB VDD_IN {i}mW/1mW" for i in (5, 6)), {}, "line 1: the reading has no time; tegrastats"),
        (IPMITOOL.replace("Sat Nov 28", "never"), {}, "is not a time"),
        (IPMITOOL.replace("Sat Nov 28 10", "Sun Oct 25 02"), {"timezone": "Europe/Zurich"}, "exists twice"),
        (PCM.replace("81.5", "-1"), {}, "line 4: the energy -1 is negative"),
        (PCM.replace(",82.0,72.0,5,6", ""), {}, "line 5: has only 4 columns"),
        (PCM.replace("82.0", "82,0"), {}, "line 5: has 9 columns, the header has 8; decimals need a point"),
        pytest.param(PCM.replace("82.0", "8" * 140_000), {}, "line 5: is not CSV: field larger than", id="long"),
    ],
)
def test_a_wrong_log_is_one_line(text: str, arguments: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, text, **arguments)
    assert "\n" not in str(caught.value)
