"""Power monitors of the IIO subsystem, and which rail of a Jetson board is its input."""

from __future__ import annotations

from pathlib import Path

import pytest

from joulewatch_exporter.collectors.hwmon.collector import HwmonCollector, HwmonOptions
from joulewatch_exporter.errors import SensorAbsentError, SensorGlitchError
from support.collectors import findings, infos, texts
from support.sysfs import FakeSysfs

BUS = "3160000.i2c/i2c-0"


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path)


def collect(sysfs: FakeSysfs) -> HwmonCollector:
    return HwmonCollector.open(sysfs.host, HwmonOptions())


def watts(collector: HwmonCollector) -> dict[str, float]:
    readings = [reading for sensor in collector.sensors for reading in sensor.read()]
    return {f"{r.quantity.device}/{r.quantity.domain}": r.power_watts or 0.0 for r in readings}


def scopes(collector: HwmonCollector) -> dict[str, tuple[str, str]]:
    return {i.quantity.domain: (i.quantity.scope, i.quantity.component) for i in infos(collector).values()}


def ina3221x(sysfs: FakeSysfs, index: int, address: str, rails: dict[str, int], *, power: bool = True) -> FakeSysfs:
    """Write the files of NVIDIA's driver: 5 V at each rail, and its current in mA."""
    files: dict[str, object] = {}
    for number, (rail, milliamperes) in enumerate(rails.items()):
        files |= {
            f"rail_name_{number}": rail,
            f"in_voltage{number}_input": 5000,
            f"in_current{number}_input": milliamperes,
            f"in_current{number}_trigger_input": 9999,
            f"crit_current_limit_{number}": 9999,
        }
        if power:
            files |= {f"in_power{number}_input": 5 * milliamperes, f"in_power{number}_trigger_input": 9999}
    return sysfs.iio(index, "ina3221x", device=f"{BUS}/0-{address}", **files)


@pytest.mark.parametrize("power", [True, False], ids=["power", "volts x amperes"])
def test_tx2(sysfs: FakeSysfs, power: bool) -> None:
    ina3221x(sysfs, 0, "0040", {"VDD_SYS_GPU": 200, "VDD_SYS_SOC": 100, "VDD_4V0_WIFI": 0}, power=power)
    ina3221x(sysfs, 1, "0041", {"VDD_IN": 1000, "VDD_SYS_CPU": 300, "VDD_SYS_DDR": 150}, power=power)
    collector = collect(sysfs)
    assert watts(collector) == {
        "i2c-0-0-0040/VDD_SYS_GPU": 1.0, "i2c-0-0-0040/VDD_SYS_SOC": 0.5, "i2c-0-0-0040/VDD_4V0_WIFI": 0.0,
        "i2c-0-0-0041/VDD_IN": 5.0, "i2c-0-0-0041/VDD_SYS_CPU": 1.5, "i2c-0-0-0041/VDD_SYS_DDR": 0.75,
    }  # fmt: skip
    assert scopes(collector) == {
        "VDD_SYS_GPU": ("part", "gpu"), "VDD_SYS_SOC": ("part", "other"), "VDD_4V0_WIFI": ("part", "other"),
        "VDD_IN": ("node", "node"), "VDD_SYS_CPU": ("part", "cpu"), "VDD_SYS_DDR": ("part", "memory"),
    }  # fmt: skip
    info = infos(collector)["i2c-0-0-0041/VDD_IN"]
    folder = f"{sysfs.sys}/devices/{BUS}/0-0041/iio:device1"
    files = "in_power0_input" if power else "in_voltage0_input x in_current0_input"
    assert (info.method, info.source) == ("integrated", f"{folder}/{files}")
    assert info.resolution == ("1 mW" if power else "6 mW")


def test_rails_without_names_and_without_a_connection(sysfs: FakeSysfs) -> None:
    """NVIDIA's driver pairs by number; NC is a channel that the board does not use."""
    ina3221x(sysfs, 0, "0040", {"": 200, "NC": 100}, power=False)
    assert watts(collect(sysfs)) == {"i2c-0-0-0040/power0": 1.0}
    ina3221x(sysfs, 1, "0041", {"VDD_IN": 200, "NC": 100})
    assert watts(collect(sysfs)) == {"i2c-0-0-0040/power0": 1.0, "i2c-0-0-0041/VDD_IN": 1.0}


def test_a_copied_tree_without_links(sysfs: FakeSysfs) -> None:
    for index, rail in enumerate(("VDD_IN", "VDD_SYS_CPU")):
        folder = f"bus/iio/devices/iio:device{index}"
        sysfs.write(folder, name="ina3221x", rail_name_0=rail, in_power0_input=5000)
    assert watts(collect(sysfs)) == {"ina3221x/VDD_IN": 5.0, "ina3221x/VDD_SYS_CPU": 5.0}


def test_the_input_of_the_nano(sysfs: FakeSysfs) -> None:
    ina3221x(sysfs, 0, "0040", {"POM_5V_IN": 600, "POM_5V_GPU": 100, "POM_5V_CPU": 150})
    assert scopes(collect(sysfs))["POM_5V_IN"] == ("node", "node")


def test_orin_by_hwmon(sysfs: FakeSysfs) -> None:
    sysfs.hwmon(
        3, "ina3221", device="platform/bus@0/c240000.i2c/i2c-1/1-0040",
        in1_label="VDD_IN", in1_input=5000, curr1_input=1200, in2_label="VDD_CPU_GPU_CV", in2_input=5000,
        curr2_input=300, in3_label="VDD_SOC", in3_input=5000, curr3_input=250,
    )  # fmt: skip
    collector = collect(sysfs)
    assert scopes(collector) == {
        "VDD_IN": ("node", "node"), "VDD_CPU_GPU_CV": ("part", "other"), "VDD_SOC": ("part", "other"),
    }  # fmt: skip
    assert watts(collector)["i2c-1-1-0040/VDD_IN"] == 6.0


def test_boards_without_a_monitor_at_their_input(sysfs: FakeSysfs) -> None:
    ina3221x(sysfs, 0, "0040", {"GPU": 200, "CPU": 100, "SOC": 150})
    ina3221x(sysfs, 1, "0041", {"CV": 20, "VDDRQ": 80, "SYS5V": 400})
    collector = collect(sysfs)
    assert {scope for scope, _ in scopes(collector).values()} == {"part"}
    (finding,) = findings(collector, "absent")
    assert finding.text.startswith("Jetson AGX Xavier: no rail is the input of the board")


@pytest.mark.parametrize(("board", "scope"), [("nvidia,p3971", "node"), ("vendor,board", "part")])
def test_the_ina238_of_a_thor_is_at_its_input(sysfs: FakeSysfs, board: str, scope: str) -> None:
    tree = sysfs.proc / "device-tree"
    tree.mkdir()
    processor = "nvidia,tegra264" if board.startswith("nvidia") else "vendor,processor"
    (tree / "compatible").write_text(f"{board}\0{processor}\0")
    sysfs.hwmon(0, "ina238", device=f"{BUS}/0-0044", power1_input=45_000_000, in1_input=20_000, curr1_input=2250)
    assert {name: found for name, (found, _) in scopes(collect(sysfs)).items()} == {"power1": scope}


def test_the_name_vdd_in_of_another_chip_is_a_part(sysfs: FakeSysfs) -> None:
    sysfs.hwmon(0, "lm25066", device=f"{BUS}/0-0040", power1_input=5_000_000, power1_label="VDD_IN")
    assert scopes(collect(sysfs)) == {"VDD_IN": ("part", "other")}


def test_ina2xx_adc_has_raw_numbers_with_scales(sysfs: FakeSysfs) -> None:
    sysfs.iio(
        0, "ina226", device=f"{BUS}/0-0040", in_voltage0_raw=800, in_voltage0_scale="0.002500000",
        in_voltage1_raw=9600, in_voltage1_scale="1.250000000", in_power2_raw=480, in_power2_scale="12.500000000",
        in_current3_raw=1000, in_current3_scale="0.500000000", in_shunt_resistor="0.004000000",
    )  # fmt: skip
    collector = collect(sysfs)
    assert watts(collector) == {"i2c-0-0-0040/power2": 6.0}
    assert infos(collector)["i2c-0-0-0040/power2"].resolution == "12.5 mW"
    sysfs.remove(f"devices/{BUS}/0-0040/iio:device0/in_power2_raw")
    assert watts(collect(sysfs)) == {"i2c-0-0-0040/power3": pytest.approx(6.0)}  # 12 V x 0.5 A, never the shunt


def test_scales_and_offsets_of_a_kind(sysfs: FakeSysfs) -> None:
    sysfs.iio(0, "adc", device="spi0.0", in_power0_raw=90, in_power_scale="100", in_power_offset=10, in_power1_raw=5)
    sysfs.remove("devices/spi0.0/iio:device0/in_power_scale")
    with pytest.raises(SensorAbsentError, match="in_power0_raw: adc: has no scale"):
        collect(sysfs)
    sysfs.write("devices/spi0.0/iio:device0", in_power_scale="100", in_power0_label="rail")
    assert watts(collect(sysfs)) == {"spi0.0/rail": 10.0, "spi0.0/power1": 1.5}


def test_voltages_of_a_converter_without_labels_are_no_power(sysfs: FakeSysfs) -> None:
    sysfs.iio(0, "adc", device="spi0.0", in_voltage0_raw=9, in_voltage0_scale=1, in_current0_raw=9, in_current0_scale=1)
    with pytest.raises(SensorAbsentError):
        collect(sysfs)
    sysfs.write("devices/spi0.0/iio:device0", in_voltage0_label="12v", in_current0_label="12v")
    assert list(watts(collect(sysfs))) == ["spi0.0/12v"]


@pytest.mark.parametrize(("text", "power"), [("1234.500000", 1.2345), ("0", 0.0)])
def test_processed_numbers_may_have_decimals(sysfs: FakeSysfs, text: str, power: float) -> None:
    sysfs.iio(0, "meter", device="spi0.0", in_power_input=text)
    assert watts(collect(sysfs)) == {"spi0.0/power0": pytest.approx(power)}


@pytest.mark.parametrize("text", ["nan", "inf", "1,5", "", "-5"])
def test_text_that_is_not_a_power_is_a_glitch(sysfs: FakeSysfs, text: str) -> None:
    sysfs.iio(0, "meter", device="spi0.0", in_power0_input=text)
    with pytest.raises(SensorGlitchError, match="in_power0_input"):
        collect(sysfs).sensors[0].read()


def test_a_chip_that_hwmon_shows_is_not_read_twice(sysfs: FakeSysfs) -> None:
    ina3221x(sysfs, 0, "0040", {"VDD_IN": 1000})
    sysfs.hwmon(0, "ina3221", device=f"{BUS}/0-0040", in1_label="VDD_IN", in1_input=5000, curr1_input=1000)
    collector = collect(sysfs)
    assert list(watts(collector)) == ["i2c-0-0-0040/VDD_IN"]
    assert "in1_input x curr1_input" in collector.sensors[0].infos[0].source
    assert "hwmon shows the same chip" in texts(collector, "skipped")


def test_channels_that_iio_hwmon_passes_on_are_not_read_twice(sysfs: FakeSysfs) -> None:
    """The device tree states whose channels: here 2 of the device 9, of which the first is also a number of 1."""
    for index, handle in enumerate((1, 9)):
        device = f"{BUS}/0-004{index}"
        sysfs.iio(index, "ina226", device=device, in_power2_raw=100, in_power2_scale=10)
        node = sysfs.sys / f"devices/{device}/iio:device{index}/of_node"
        node.mkdir()
        (node / "phandle").write_bytes(handle.to_bytes(4))
        (node / "#io-channel-cells").write_bytes((1).to_bytes(4))
    sysfs.hwmon(0, "ina226_u76", device="platform/ina226-u76", power1_input=1_000_000)
    node = sysfs.sys / "devices/platform/ina226-u76/of_node"
    node.mkdir()
    (node / "io-channels").write_bytes(b"".join(word.to_bytes(4) for word in (9, 1, 9, 2)))
    collector = collect(sysfs)
    assert list(watts(collector)) == ["ina226-u76/power1", "i2c-0-0-0040/power2"]


def test_a_new_iio_device_makes_the_collector_outdated(sysfs: FakeSysfs) -> None:
    ina3221x(sysfs, 0, "0040", {"VDD_IN": 1000})
    collector = collect(sysfs)
    assert not collector.outdated
    ina3221x(sysfs, 1, "0041", {"VDD_SYS_CPU": 1000})
    assert collector.outdated
