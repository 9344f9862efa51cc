"""Power as voltage times current: which files belong together, and which readings are rejected."""

from __future__ import annotations

from pathlib import Path

import pytest

from joulewatch_exporter.collectors.base.sysfs import HeldFile
from joulewatch_exporter.collectors.hwmon.collector import HwmonCollector, HwmonOptions
from joulewatch_exporter.collectors.hwmon.values import ProductMeter, ValueFile
from joulewatch_exporter.errors import SensorAbsentError, SensorGlitchError
from support.collectors import infos, texts
from support.sysfs import FakeSysfs

I2C = "platform/3180000.i2c/i2c-1/1-0040"
LABEL = "i2c-1-1-0040"
FOLDER = f"devices/{I2C}/hwmon/hwmon0"


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path)


def collect(sysfs: FakeSysfs) -> HwmonCollector:
    return HwmonCollector.open(sysfs.host, HwmonOptions())


def watts(collector: HwmonCollector) -> dict[str, float]:
    readings = [reading for sensor in collector.sensors for reading in sensor.read()]
    return {reading.quantity.domain: reading.power_watts or 0.0 for reading in readings}


def ina3221(sysfs: FakeSysfs, **files: object) -> FakeSysfs:
    channels: dict[str, object] = {
        "in1_label": "VDD_A", "in1_input": 12000, "in1_enable": 1, "curr1_input": 1000,
        "in2_label": "VDD_B", "in2_input": 5000, "in2_enable": 1, "curr2_input": 500,
        "in3_label": "VDD_C", "in3_input": 3300, "in3_enable": 1, "curr3_input": 200,
        "in4_input": 5000, "in5_input": 2500, "in6_input": 1000, "in7_input": 8500,
        "in7_label": "sum of shunt voltages", "curr4_input": 1700, "curr4_crit": 9000,
    }  # fmt: skip
    return sysfs.hwmon(0, "ina3221", device=I2C, **channels | files)


def test_the_three_channels_of_an_ina3221(sysfs: FakeSysfs) -> None:
    """Shunt voltages (in4 to in7) and the sum of the currents belong to no channel."""
    collector = collect(ina3221(sysfs))
    assert watts(collector) == pytest.approx({"VDD_A": 12.0, "VDD_B": 2.5, "VDD_C": 0.66})
    info = infos(collector)[f"{LABEL}/VDD_A"]
    assert info.method == "integrated"
    assert info.source == f"{sysfs.sys}/{FOLDER}/in1_input x curr1_input"
    assert (info.quantity.scope, info.quantity.component, info.model) == ("part", "other", "ina3221")
    assert "VDD_A: volts x amperes of ina3221" in texts(collector, "found")
    assert collector.timing.poll_s == 1.0


def test_the_resolution_comes_from_both_steps(sysfs: FakeSysfs) -> None:
    """12 V x 20 mA (40 uV at 2 mOhm) + 1 A x 8 mV."""
    collector = collect(ina3221(sysfs, shunt1_resistor=2000))
    assert infos(collector)[f"{LABEL}/VDD_A"].resolution == "248 mW"
    assert infos(collector)[f"{LABEL}/VDD_B"].resolution == "9 mW"  # without the resistor: 5 V x 1 mA + 0.5 A x 8 mV


def test_a_disabled_channel_is_absent(sysfs: FakeSysfs) -> None:
    collector = collect(ina3221(sysfs, in2_enable=0))
    assert set(watts(collector)) == {"VDD_A", "VDD_C"}
    assert "disabled by in2_enable" in texts(collector, "skipped")


def test_a_channel_that_is_not_connected_is_absent(sysfs: FakeSysfs) -> None:
    assert set(watts(collect(ina3221(sysfs, in3_label="NC")))) == {"VDD_A", "VDD_B"}


@pytest.mark.parametrize(
    ("chip", "files", "power"),
    [
        ("ina226", {"in0_input": 2, "in1_input": 12000, "curr1_input": 5000}, {"power1": 60.0}),
        ("ina226_u76", {"in0_input": 2, "in1_input": 12000, "curr1_input": 5000}, {"power1": 60.0}),
        ("max20730", {"in1_input": 12000, "in2_input": 1200, "curr1_input": 100_000}, {"power1": 120.0}),
        (
            "max20730",
            {
                "in1_input": 12000, "in1_label": "vin", "in2_input": 1200, "in2_label": "vout1",
                "curr1_input": 100_000, "curr1_label": "iout1",
            },
            {"pout1": 120.0},
        ),
        (
            "pli1209bc",
            {
                "in1_input": 48000, "in1_label": "vin", "in2_input": 12000, "in2_label": "vout1",
                "in3_input": 5000, "in3_label": "vout2", "curr1_input": 2000, "curr1_label": "iin",
                "curr2_input": 7500, "curr2_label": "iout1", "curr3_input": 1000, "curr3_label": "iout1.1",
            },
            {"pin": 96.0, "pout1": 90.0},
        ),
        (
            "unknown",
            {
                "in1_label": "VDD_CPU", "in1_input": 12000, "in1_average": 11800, "in7_label": "VDD_GPU",
                "in7_input": 900, "curr1_label": "VDD_CPU", "curr1_input": 5000, "curr1_average": 4900,
                "curr2_label": "VDD_GPU", "curr2_input": 10_000, "curr2_average": 1,
            },
            {"VDD_CPU": 57.82, "VDD_GPU": 9.0},
        ),
    ],
)  # fmt: skip
def test_pairs_of_other_chips(sysfs: FakeSysfs, chip: str, files: dict[str, object], power: dict[str, float]) -> None:
    """Averages are used if both sides have one; a phase (iout1.1) is no output."""
    sysfs.hwmon(0, chip, device=I2C, **files)
    assert watts(collect(sysfs)) == pytest.approx(power)


@pytest.mark.parametrize(
    ("chip", "files"),
    [
        ("ina226", {"power1_input": 59_000_000, "in0_input": 2, "in1_input": 12000, "curr1_input": 5000}),
        (
            "adm1275",
            {
                "power1_input": 59_000_000, "power1_label": "pin", "in1_input": 12000, "in1_label": "vin",
                "curr1_input": 5000, "curr1_label": "iin",
            },
        ),
        (
            "unknown",
            {
                "power2_average": 59_000_000, "power2_label": "VDD_CPU", "in1_input": 12000, "in1_label": "vdd_cpu",
                "curr1_input": 5000, "curr1_label": "VDD_CPU",
            },
        ),
    ],
)  # fmt: skip
def test_a_power_file_is_not_computed_again(sysfs: FakeSysfs, chip: str, files: dict[str, object]) -> None:
    sysfs.hwmon(0, chip, device=I2C, **files)
    assert list(watts(collect(sysfs)).values()) == [59.0]


def test_a_disabled_power_file_is_not_computed_either(sysfs: FakeSysfs) -> None:
    sysfs.hwmon(0, "ina226", device=I2C, power1_input=1, power1_enable=0, in1_input=12000, curr1_input=5000)
    with pytest.raises(SensorAbsentError, match="power1_enable"):
        collect(sysfs)


@pytest.mark.parametrize(
    "files",
    [
        {"in1_input": 12000, "curr1_input": 5000},
        {"in1_input": 12000, "in1_label": "A", "curr1_input": 5000, "curr1_label": "B"},
        {
            "in1_input": 12000, "in1_label": "A", "in2_input": 5000, "in2_label": "A", "curr1_input": 5000,
            "curr1_label": "A",
        },
    ],
)  # fmt: skip
def test_numbers_alone_are_no_pair(sysfs: FakeSysfs, files: dict[str, object]) -> None:
    sysfs.hwmon(0, "unknown", device=I2C, **files)
    with pytest.raises(SensorAbsentError, match="not known which belong together"):
        collect(sysfs)


def test_a_rail_without_load_reads_zero_and_a_backward_current_is_rejected(sysfs: FakeSysfs) -> None:
    """The offset of a shunt amplifier may be negative."""
    collector = collect(ina3221(sysfs, curr1_input=-16, curr2_input=-700, curr3_input=0))
    first, second, third = collector.sensors
    assert first.read()[0].power_watts == third.read()[0].power_watts == 0.0
    with pytest.raises(SensorGlitchError, match="backwards"):
        second.read()


def slow_meter(
    monkeypatch: pytest.MonkeyPatch, read_ms: float, millivolts: list[int]
) -> tuple[ProductMeter, list[str]]:
    """Return a meter whose reads take some time, with 2 A and these voltages one after the other, and its reads."""
    clock_ns = 0
    reads: list[str] = []

    def read_bytes(file: HeldFile) -> bytes:
        nonlocal clock_ns
        clock_ns += round(read_ms * 1e6)
        reads.append(file.path)
        return b"2000" if file.path == "curr1_input" else b"%d" % millivolts.pop(0)

    monkeypatch.setattr(HeldFile, "read_bytes", read_bytes)
    monkeypatch.setattr("joulewatch_exporter.collectors.hwmon.values.monotonic_ns", lambda: clock_ns)
    volts, amperes = (ValueFile(path=name, per_unit=1e3) for name in ("in1_input", "curr1_input"))
    return ProductMeter(volts, amperes, zero_is_no_data=False), reads


@pytest.mark.parametrize(
    ("read_ms", "millivolts", "n_reads", "power"),
    [(0.9, [12000], 2, 24.0), (5.0, [12000, 12060], 3, 24.06)],
    ids=["fast", "slow"],
)
def test_a_late_current_is_between_two_voltages(
    monkeypatch: pytest.MonkeyPatch, read_ms: float, millivolts: list[int], n_reads: int, power: float
) -> None:
    meter, reads = slow_meter(monkeypatch, read_ms, millivolts)
    at_ns, watts = meter.read()
    assert watts == pytest.approx(power)
    assert len(reads) == n_reads
    assert at_ns == round(2 * read_ms * 1e6)  # the time of the current


def test_a_late_current_of_an_unsteady_supply_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    meter, _ = slow_meter(monkeypatch, 5.0, [12000, 12200])
    with pytest.raises(SensorGlitchError, match=r"12 V and 12.2 V around a current that took 5.0 ms"):
        meter.read()
