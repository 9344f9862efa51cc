"""Board sensors: where their files are, what they measure, and which values are rejected."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from joulewatch_exporter.collectors.hwmon.collector import HwmonCollector, HwmonOptions
from joulewatch_exporter.collectors.hwmon.meanings import Override
from joulewatch_exporter.config.strict import build
from joulewatch_exporter.errors import (
    ConfigError,
    SensorAbsentError,
    SensorDeniedError,
    SensorError,
    SensorGlitchError,
)
from support.collectors import findings, infos, texts
from support.sysfs import EPYC, FakeSysfs, public_folder, unprivileged

METER = "LNXSYSTM:00/LNXSYBUS:00/ACPI000D:00"
GPU = "pci0000:c0/0000:c0:01.0/0000:c1:00.0"
I2C = "platform/axi/i2c-3/3-0040"


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path).cpuinfo(**EPYC)


def collect(sysfs: FakeSysfs, options: HwmonOptions | None = None) -> HwmonCollector:
    return HwmonCollector.open(sysfs.host, options or HwmonOptions())


def meanings(collector: HwmonCollector) -> dict[str, tuple[str, str]]:
    return {key: (info.quantity.scope, info.quantity.component) for key, info in infos(collector).items()}


def test_a_board_rail_is_a_part(sysfs: FakeSysfs) -> None:
    sysfs.hwmon(3, "ina226_u76", device=I2C, power1_input=31_250_000)
    collector = collect(sysfs)
    assert meanings(collector) == {"i2c-3-3-0040/power1": ("part", "other")}
    info = infos(collector)["i2c-3-3-0040/power1"]
    assert (info.method, info.resolution, info.model, info.wrap_joules) == ("integrated", "1 uW", "ina226_u76", None)
    (reading,) = collector.sensors[0].read()
    assert (reading.energy_joules, reading.power_watts) == (None, 31.25)
    assert collector.timing.poll_s == 1.0


def test_the_acpi_meter_has_its_files_in_the_device_directory(sysfs: FakeSysfs) -> None:
    sysfs.hwmon(
        0, "power_meter", device=METER, at_device=True, power1_average=313_000_000, power1_average_interval=1000,
        power1_accuracy="95.0%", power1_is_battery=0, power1_oem_info="",
    )  # fmt: skip
    collector = collect(sysfs)
    assert meanings(collector) == {"ACPI000D:00/power1": ("node", "node")}
    meter = infos(collector)["ACPI000D:00/power1"]
    assert (meter.accuracy, meter.period_s) == (0.05, 1.0)
    assert collector.sensors[0].read()[0].power_watts == 313.0


@pytest.mark.parametrize("text", ["", "0%", "high", "150.0%"])
def test_invalid_accuracies_are_none(sysfs: FakeSysfs, text: str) -> None:
    sysfs.hwmon(0, "power_meter", device=METER, at_device=True, power1_average=1, power1_accuracy=text)
    assert infos(collect(sysfs))["ACPI000D:00/power1"].accuracy is None


def test_a_meter_of_a_battery_is_skipped(sysfs: FakeSysfs) -> None:
    sysfs.hwmon(0, "power_meter", device=METER, at_device=True, power1_average=5_000_000, power1_is_battery=1)
    with pytest.raises(SensorAbsentError, match="battery"):
        collect(sysfs)


def test_meters_of_grace(sysfs: FakeSysfs) -> None:
    """Module contains Grace and the GPU; Grace contains CPU and SysIO: only Grace is a device."""
    for index, meter in enumerate(("Module", "Grace", "CPU", "SysIO")):
        device = f"LNXSYSTM:00/ACPI000D:0{index}"
        oem = f"{meter} Power Socket 1"
        sysfs.hwmon(index, "power_meter", device=device, at_device=True, power1_average=9_000_000, power1_oem_info=oem)
    assert meanings(collect(sysfs)) == {
        "socket1/module": ("part", "other"),
        "socket1/package": ("device", "cpu"),
        "socket1/cpu": ("part", "cpu"),
        "socket1/sysio": ("part", "other"),
    }


def test_gpus_are_devices_and_their_tiles_parts(sysfs: FakeSysfs) -> None:
    sysfs.hwmon(0, "amdgpu", device=GPU, power1_average=1_000_000, power1_input=2_000_000, power1_label="PPT")
    xe = "pci0000:00/0000:03:00.0"
    sysfs.hwmon(1, "xe", device=xe, energy1_input=5_000_000, energy1_label="card")
    sysfs.write(f"devices/{xe}/hwmon/hwmon1", energy2_input=3_000_000, energy2_label="pkg")
    i915 = "pci0000:00/0000:04:00.0"
    sysfs.hwmon(2, "i915", device=i915, energy1_input=7_000_000).hwmon(3, "i915_gt0", device=i915, energy1_input=1)
    collector = collect(sysfs)
    assert meanings(collector) == {
        "0000:c1:00.0/PPT": ("device", "gpu"),
        "0000:03:00.0/card": ("device", "gpu"),
        "0000:03:00.0/pkg": ("part", "gpu"),
        "0000:04:00.0/energy1": ("device", "gpu"),
        "0000:04:00.0/gt0-energy1": ("part", "gpu"),
    }
    by_domain = {sensor.infos[0].quantity.domain: sensor for sensor in collector.sensors}
    assert by_domain["PPT"].read()[0].power_watts == 2.0  # the momentary value is preferred to the average
    (counted,) = by_domain["card"].read()
    assert (counted.energy_joules, counted.power_watts) == (5.0, None)
    assert infos(collector)["0000:03:00.0/card"].method == "counter"


def test_the_package_is_the_device_of_xe_without_a_card_channel(sysfs: FakeSysfs) -> None:
    """The driver has energy1 for some of its GPUs only."""
    sysfs.hwmon(0, "xe", device=GPU, energy2_input=5_000_000, energy2_label="pkg")
    assert meanings(collect(sysfs)) == {"0000:c1:00.0/pkg": ("device", "gpu")}


def test_counters_alone_are_read_every_10_s(sysfs: FakeSysfs) -> None:
    sysfs.hwmon(1, "i915", device=GPU, energy1_input=5_000_000)
    assert collect(sysfs).timing.poll_s == 10.0


def test_a_gpu_in_a_processor_is_a_part(sysfs: FakeSysfs) -> None:
    sysfs.hwmon(0, "amdgpu", device=GPU, power1_input=15_000_000, power1_label="PPT", in1_label="vddnb")
    collector = collect(sysfs)
    assert meanings(collector) == {"0000:c1:00.0/PPT": ("part", "gpu")}
    assert "in a processor" in texts(collector, "skipped")


def test_the_power_of_a_rail_with_a_counter_is_its_momentary_power(sysfs: FakeSysfs) -> None:
    sysfs.hwmon(0, "ibmpowernv", device="platform/opal", power1_input=500_000_000, power1_label="System")
    sysfs.write("devices/platform/opal/hwmon/hwmon0", energy1_input=9_000_000, energy1_label="System")
    sysfs.write("devices/platform/opal/hwmon/hwmon0", power2_input=70_000_000, power2_label="GPU")
    collector = collect(sysfs)
    assert meanings(collector) == {"opal/System": ("node", "node"), "opal/GPU": ("part", "other")}
    assert infos(collector)["opal/System"].method == "counter"
    assert "opal System: energy and power of ibmpowernv (node)" in texts(collector, "found")
    (reading,) = collector.sensors[0].read()
    assert (reading.energy_joules, reading.power_watts) == (9.0, 500.0)
    # The counter does not need the power.
    sysfs.refuse("devices/platform/opal/hwmon/hwmon0/power1_input")
    (reading,) = collector.sensors[0].read()
    assert (reading.energy_joules, reading.power_watts) == (9.0, None)


def test_a_counter_that_is_denied_leaves_the_power() -> None:
    """Some drivers' energy files are readable by root only."""
    with public_folder() as folder:
        sysfs = FakeSysfs(folder)
        sysfs.hwmon(0, "chip", device=I2C, energy1_input=9_000_000, energy1_label="A")
        sysfs.hwmon(0, "chip", device=I2C, power1_input=5_000_000, power1_label="A")
        (sysfs.sys / f"devices/{I2C}/hwmon/hwmon0/energy1_input").chmod(0o400 if os.geteuid() == 0 else 0)
        with unprivileged():
            collector = collect(sysfs)
            (reading,) = collector.sensors[0].read()
        assert (reading.energy_joules, reading.power_watts) == (None, 5.0)
        assert infos(collector)["i2c-3-3-0040/A"].method == "integrated"
        (finding,) = findings(collector, "denied")
        assert finding.device == "i2c-3-3-0040"


def test_old_amd_families(sysfs: FakeSysfs) -> None:
    sysfs.hwmon(0, "fam15h_power", device="pci0000:00/0000:00:18.4", power1_input=95_000_000)
    sysfs.hwmon(1, "zenpower", device="pci0000:00/0000:00:18.3", power1_input=20_000_000, power1_label="SVI2_P_Core")
    assert meanings(collect(sysfs)) == {
        "0000:00:18.4/package": ("device", "cpu"),
        "0000:00:18.3/SVI2_P_Core": ("part", "cpu"),
    }


def test_the_npu_of_a_processor_is_a_part_that_can_sleep(sysfs: FakeSysfs) -> None:
    """Its power is in that of the processor; amdxdna reports milliwatts of the platform's firmware."""
    sysfs.hwmon(0, "amdxdna", device=GPU, power1_input=1_300_000, power1_label="NPU_power")
    sysfs.write(f"devices/{GPU}/power", runtime_status="active")
    collector = collect(sysfs)
    assert meanings(collector) == {"0000:c1:00.0/NPU_power": ("part", "other")}
    assert collector.sensors[0].can_sleep  # type: ignore[attr-defined]


def amd_energy(sysfs: FakeSysfs, n_sockets: int, chip: str = "amd_energy") -> None:
    files: dict[str, object] = {"energy1_input": 5_000_000, "energy1_label": "Ecore000"}
    for socket in range(n_sockets):
        files |= {
            f"energy{socket + 2}_input": 1_000_000 * (socket + 1),
            f"energy{socket + 2}_label": f"Esocket{socket}",
        }
    sysfs.hwmon(0, chip, device="platform/amd_energy.0")
    sysfs.write("devices/platform/amd_energy.0/hwmon/hwmon0", **files)


@pytest.mark.parametrize("chip", ["amd_energy", "zenergy"])
def test_amd_energy_of_two_sockets(sysfs: FakeSysfs, chip: str) -> None:
    sysfs.packages(0, 1)
    amd_energy(sysfs, 2, chip)
    assert meanings(collect(sysfs)) == {
        "amd_energy.0/Ecore000": ("part", "cpu"),
        "socket0/package": ("device", "cpu"),
        "socket1/package": ("device", "cpu"),
    }


def test_amd_energy_with_one_channel_per_numa_node(sysfs: FakeSysfs) -> None:
    sysfs.packages(0, 1)
    amd_energy(sysfs, 8)
    collector = collect(sysfs)
    assert set(meanings(collector)) == {"amd_energy.0/Ecore000", "socket0/package", "socket1/package"}
    assert texts(collector, "skipped").count("NUMA") == 6
    second = next(sensor for sensor in collector.sensors if sensor.device == "socket1")
    assert second.read()[0].energy_joules == 5.0  # Esocket4


def test_powercap_is_preferred_to_amd_energy(sysfs: FakeSysfs) -> None:
    amd_energy(sysfs, 1)
    sysfs.rapl_zone("0", name="package-0")
    with pytest.raises(SensorAbsentError, match="same counters as the package zones of RAPL"):
        collect(sysfs)
    # If powercap's counter cannot be read, amd_energy is used.
    sysfs.remove(f"{sysfs.zone_path('intel-rapl:0')}/energy_uj")
    assert len(collect(sysfs).sensors) == 2


@pytest.mark.parametrize("chip", ["xilinx_u280_xdma_201920_3_user", "xilinx_u280_mgmt", "v70_hwmon_sdm_user", "Alveo"])
def test_fpga_cards_are_skipped(sysfs: FakeSysfs, chip: str) -> None:
    sysfs.hwmon(0, chip, device=GPU, power1_input=30_000_000).hwmon(1, "ina226", device=I2C, power1_input=1)
    collector = collect(sysfs)
    assert list(meanings(collector)) == ["i2c-3-3-0040/power1"]
    assert "its units and averages do not follow" in texts(collector, "skipped")


def test_a_reused_index_is_another_sensor(sysfs: FakeSysfs) -> None:
    """If hwmonX is reused for another device, the old sensor is absent and never returns the new device's value."""
    sysfs.hwmon(5, "ltc4215", device="platform/i2c-0/0-0044", power1_input=45_000_000)
    (sensor,) = collect(sysfs).sensors
    assert sensor.device == "i2c-0-0-0044"
    sysfs.remove("class/hwmon/hwmon5").remove("devices/platform/i2c-0")
    sysfs.hwmon(5, "ltc4215", device="platform/i2c-0/0-0045", power1_input=90_000_000)
    with pytest.raises(SensorAbsentError):
        sensor.read()
    assert [sensor.device for sensor in collect(sysfs).sensors] == ["i2c-0-0-0045"]


def test_sensors_are_ordered_by_device_not_by_index(sysfs: FakeSysfs) -> None:
    for index, address in ((9, 40), (1, 42), (10, 41)):
        sysfs.hwmon(index, "ina226", device=f"platform/i2c-1/1-00{address}", power1_input=1_000_000)
    devices = [sensor.device for sensor in collect(sysfs).sensors]
    assert devices == ["i2c-1-1-0040", "i2c-1-1-0041", "i2c-1-1-0042"]


def test_chips_of_one_device_have_separate_series(sysfs: FakeSysfs) -> None:
    sysfs.hwmon(0, "first", device=I2C, power1_input=1_000_000, power1_label="rail")
    sysfs.hwmon(1, "second", device=I2C, power1_input=2_000_000, power1_label="rail")
    sysfs.hwmon(2, "third", device=I2C, power1_input=3_000_000, power1_label="rail")
    collector = collect(sysfs)
    assert list(meanings(collector)) == ["i2c-3-3-0040/rail", "i2c-3-3-0040/power1", "i2c-3-3-0040/third-power1"]


def test_names_do_not_depend_on_rights() -> None:
    with public_folder() as folder:
        sysfs = FakeSysfs(folder)
        sysfs.hwmon(0, "first", device=I2C, power1_input=1_000_000, power1_label="rail")
        sysfs.hwmon(1, "second", device=I2C, power1_input=2_000_000, power1_label="rail")
        (sysfs.sys / f"devices/{I2C}/hwmon/hwmon0/power1_input").chmod(0o400 if os.geteuid() == 0 else 0)
        with unprivileged():
            assert list(meanings(collect(sysfs))) == ["i2c-3-3-0040/power1"]


def test_names_do_not_depend_on_the_number_of_hwmon(tmp_path: Path) -> None:
    """Two chips of the same name on one device clash: their labels order them."""
    watts = []
    for index, numbers in enumerate(((0, 1), (7, 3))):
        sysfs = FakeSysfs(tmp_path / str(index))
        for number, (place, power_uw) in zip(numbers, {"in": 90_000_000, "out": 80_000_000}.items(), strict=True):
            sysfs.hwmon(number, "psu", device=I2C, power1_input=power_uw, power1_label="rail", temp1_label=place)
        readings = [sensor.read()[0] for sensor in collect(sysfs).sensors]
        watts.append({reading.quantity.domain: reading.power_watts for reading in readings})
    assert watts == [{"rail": 90.0, "power1": 80.0}] * 2


def test_chips_without_a_device_are_ordered_by_their_labels(tmp_path: Path) -> None:
    first = []
    for index, labels in enumerate((("a", "b"), ("b", "a"))):
        sysfs = FakeSysfs(tmp_path / str(index))
        for number, label in enumerate(labels):
            folder = f"devices/virtual/hwmon/hwmon{number}"
            sysfs.write(folder, name="psu", power1_input=ord(label), power1_label="rail", temp1_label=label)
            sysfs.link(f"class/hwmon/hwmon{number}", folder)
        collector = collect(sysfs)
        assert list(meanings(collector)) == ["psu/rail", "psu/power1"]
        first.append(collector.sensors[0].read()[0].power_watts)
    assert first == [ord("a") / 1e6] * 2


def test_a_chip_without_device_is_identified_by_its_name(sysfs: FakeSysfs) -> None:
    sysfs.write("devices/virtual/hwmon/hwmon0", name="firmware_psu", power1_input=5_000_000)
    sysfs.link("class/hwmon/hwmon0", "devices/virtual/hwmon/hwmon0")
    assert list(meanings(collect(sysfs))) == ["firmware_psu/power1"]


def test_a_copied_tree_has_folders_instead_of_links(sysfs: FakeSysfs) -> None:
    sysfs.write("class/hwmon/hwmon0", name="amdgpu", power1_input=35_000_000)
    sysfs.write("class/hwmon/hwmon0/device/power", runtime_status="active")
    assert list(infos(collect(sysfs))) == ["amdgpu/power1"]


def test_the_directory_named_power_is_not_a_sensor(sysfs: FakeSysfs) -> None:
    sysfs.hwmon(0, "coretemp", device="platform/coretemp.0", temp1_input=40_000)
    sysfs.write("devices/platform/coretemp.0/hwmon/hwmon0/power", control="auto")
    with pytest.raises(SensorAbsentError, match="no power or energy channel"):
        collect(sysfs)


def test_disabled_channels_are_skipped(sysfs: FakeSysfs) -> None:
    sysfs.hwmon(0, "ina3221", device=I2C, power1_input=1, power1_enable=0, power2_input=2, power2_enable=1)
    collector = collect(sysfs)
    assert list(meanings(collector)) == ["i2c-3-3-0040/power2"]
    assert "power1_enable" in texts(collector, "skipped")


@pytest.mark.parametrize("value", [-5, 4_294_967_295, 4_294_967_295_000, "N/A", ""])
def test_implausible_values_are_glitches(sysfs: FakeSysfs, value: object) -> None:
    sysfs.hwmon(0, "ina226", device=I2C, power1_input=value)
    with pytest.raises(SensorGlitchError):
        collect(sysfs).sensors[0].read()


def test_zero_is_valid_for_a_rail_but_not_for_a_gpu_or_a_server(sysfs: FakeSysfs) -> None:
    sysfs.hwmon(0, "ina226", device=I2C, power1_input=0).hwmon(1, "amdgpu", device=GPU, power1_input=0)
    sysfs.hwmon(2, "power_meter", device=METER, at_device=True, power1_average=0)
    by_device = {sensor.device: sensor for sensor in collect(sysfs).sensors}
    assert by_device["i2c-3-3-0040"].read()[0].power_watts == 0.0
    for device in ("0000:c1:00.0", "ACPI000D:00"):
        with pytest.raises(SensorGlitchError, match="no value now"):
            by_device[device].read()


def test_a_failed_read_does_not_stop_the_others(sysfs: FakeSysfs) -> None:
    sysfs.hwmon(0, "ina226", device=I2C, power1_input=1_000_000, power2_input=2_000_000)
    first, second = collect(sysfs).sensors
    sysfs.refuse(f"devices/{I2C}/hwmon/hwmon0/power1_input")
    with pytest.raises(SensorGlitchError, match="power1_input"):
        first.read()
    assert second.read()[0].power_watts == 2.0


def test_a_denied_channel_does_not_stop_the_others() -> None:
    with public_folder() as folder:
        sysfs = FakeSysfs(folder)
        sysfs.hwmon(0, "ina226", device=I2C, power1_input=1_000_000, power2_input=2_000_000)
        hwmon = sysfs.sys / f"devices/{I2C}/hwmon/hwmon0"
        unreadable = 0o400 if os.geteuid() == 0 else 0
        (hwmon / "power1_input").chmod(unreadable)
        with unprivileged():
            collector = collect(sysfs)
        assert list(meanings(collector)) == ["i2c-3-3-0040/power2"]
        (finding,) = findings(collector, "denied")
        assert finding.cure == f"sudo chmod a+r {hwmon}/power1_input"
        (hwmon / "power2_input").chmod(unreadable)
        with unprivileged(), pytest.raises(SensorDeniedError, match="1 more channel") as caught:
            collect(sysfs)
        assert caught.value.devices == ("i2c-3-3-0040",)


def test_options_skip_chips_and_override_meanings(sysfs: FakeSysfs) -> None:
    sysfs.hwmon(0, "ina226", device=I2C, power1_input=1_000_000).hwmon(1, "amdgpu", device=GPU, power1_input=1)
    options = HwmonOptions(skip_chips=["amdgpu"], overrides={"ina226": Override("fpga", "device")})
    collector = collect(sysfs, options)
    assert meanings(collector) == {"i2c-3-3-0040/power1": ("device", "fpga")}
    assert "skip_chips" in texts(collector, "skipped")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"skip_chips": 3}, "skip_chips: must be a list"),
        ({"overrides": {"ina226": {"component": "cpus", "scope": "part"}}}, "overrides.ina226.component: must be cpu"),
        ({"overrides": {"ina226": {"component": "cpu", "scope": "whole"}}}, "overrides.ina226.scope: must be node"),
        ({"overrides": {"ina226": {"component": "cpu"}}}, "overrides.ina226: needs scope"),
        ({"overrides": ["ina226"]}, "overrides: must be a mapping"),
    ],
)
def test_invalid_options_name_their_key(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(HwmonOptions, arguments, "file", "collectors.hwmon")


def test_scmi_sensors_have_the_names_of_the_firmware(sysfs: FakeSysfs) -> None:
    """The kernel scales to microwatts and microjoules; the counter is preferred to the power."""
    path = "devices/platform/scmi_dev.3"
    sysfs.hwmon(0, "scmi_sensors", device="platform/scmi_dev.3", power1_input=12_000_000, power1_label="SOC_POWER")
    sysfs.write(f"{path}/hwmon/hwmon0", power2_input=5_000_000, power2_label="DDR")
    sysfs.write(f"{path}/hwmon/hwmon0", energy1_input=900_000_000, energy1_label="SOC_POWER")
    collector = collect(sysfs)
    assert meanings(collector) == {"scmi_dev.3/SOC_POWER": ("part", "other"), "scmi_dev.3/DDR": ("part", "other")}
    assert infos(collector)["scmi_dev.3/SOC_POWER"].method == "counter"
    assert collector.timing.poll_s == 1.0  # because of the second channel, which has only power


def scmi_zone(sysfs: FakeSysfs, zone: str, name: str, power_uw: object) -> str:
    sysfs.rapl_zone(zone, name=name, energy_uj=0, range_uj=None, power_uw=power_uw, max_power_range_uw=2**32 - 1)
    path = sysfs.zone_path(zone)
    sysfs.remove(f"{path}/energy_uj")
    return path


def test_scmi_powercap_zones_have_power_only(sysfs: FakeSysfs) -> None:
    """A zone contains the zones below it, so all are parts, which are never summed."""
    scmi_zone(sysfs, "arm-scmi:0", "soc", 30_000_000)
    path = scmi_zone(sysfs, "arm-scmi:0:1", "big", 12_500_000)
    collector = collect(sysfs)
    assert meanings(collector) == {"arm-scmi:0/soc": ("part", "other"), "arm-scmi:0:1/big": ("part", "other")}
    info = infos(collector)["arm-scmi:0:1/big"]
    assert (info.method, info.source) == ("integrated", f"{sysfs.sys}/{path}/power_uw")
    assert collector.sensors[1].read()[0].power_watts == 12.5
    sysfs.hwmon(0, "ina226", device=I2C, power1_input=1)
    assert len(collect(sysfs).sensors) == 3


def test_scmi_zones_without_measurement_are_skipped(sysfs: FakeSysfs) -> None:
    """The driver always answers EINVAL for a zone that the firmware does not measure."""
    sysfs.refuse(f"{scmi_zone(sysfs, 'arm-scmi:0', 'soc', 0)}/power_uw")
    sysfs.rapl_zone("dtpm:0", name="soc", energy_uj=1, power_uw=5)
    with pytest.raises(SensorAbsentError, match="class/hwmon"):
        collect(sysfs)
    scmi_zone(sysfs, "arm-scmi:1", "big", 1_000_000)
    collector = collect(sysfs)
    assert list(meanings(collector)) == ["arm-scmi:1/big"]
    assert "not measured by the firmware" in texts(collector, "skipped")


def test_channels_of_occ(sysfs: FakeSysfs) -> None:
    """The average since the controller's start is not used; the cap channel repeats the system's power and label."""
    sysfs.hwmon(0, "occ", device="platform/fsi0/occ-hwmon.1", power1_average=400_000_000, power1_label="system")
    folder = "devices/platform/fsi0/occ-hwmon.1/hwmon/hwmon0"
    sysfs.write(folder, power1_input=500_000_000, power1_average_interval=5_000_000, power2_input=90_000_000)
    sysfs.write(folder, power2_label="proc", power2_average=80_000_000, power5_label="system", power5_cap=900_000_000)
    sysfs.write(folder, power5_input=501_000_000)
    collector = collect(sysfs)
    assert meanings(collector) == {
        "occ-hwmon.1/system": ("node", "node"),
        "occ-hwmon.1/proc": ("part", "other"),
    }
    assert "repeats the power of the whole system" in texts(collector, "skipped")
    assert collector.sensors[0].read()[0].power_watts == 500.0


@pytest.mark.parametrize("overridden", [False, True])
def test_channels_of_another_family_are_skipped(sysfs: FakeSysfs, overridden: bool) -> None:
    """Each physical quantity has one series, even if the chip is overridden."""
    sysfs.hwmon(0, "ina226", device=I2C, power1_input=1_000_000, power2_input=2_000_000)
    source = f"{sysfs.sys}/devices/{I2C}/hwmon/hwmon0/power1_input"
    overrides = {"ina226": Override("fpga", "device")} if overridden else {}
    options = HwmonOptions(overrides=overrides)
    host = replace(sysfs.host, claimed=frozenset({source}))
    collector = HwmonCollector.open(host, options)
    assert list(meanings(collector)) == ["i2c-3-3-0040/power2"]
    assert "read by another family" in texts(collector, "skipped")
    skipped = [finding.device for finding in collector.findings if finding.status == "skipped"]
    assert skipped == ["i2c-3-3-0040"], "so that the device does not seem to be lost"
    both = frozenset({source, source.replace("power1", "power2")})
    with pytest.raises(SensorAbsentError, match="read by another family"):
        HwmonCollector.open(replace(sysfs.host, claimed=both), options)


def test_added_and_removed_chips_make_the_collector_outdated(sysfs: FakeSysfs) -> None:
    sysfs.hwmon(0, "ina226", device=I2C, power1_input=1)
    collector = collect(sysfs)
    assert not collector.outdated
    sysfs.hwmon(1, "amdgpu", device=GPU, power1_input=1)
    assert collector.outdated
    collector = collect(sysfs)
    assert not collector.outdated
    # Another device with the same number is another chip.
    sysfs.remove("class/hwmon/hwmon1").link("class/hwmon/hwmon1", f"devices/{I2C}")
    assert collector.outdated
    sysfs.remove("class/hwmon/hwmon1")
    assert collector.outdated


def test_a_missing_hwmon_class_is_absent(sysfs: FakeSysfs) -> None:
    with pytest.raises(SensorError, match="class/hwmon"):
        collect(sysfs)


def test_closing_twice_is_safe(sysfs: FakeSysfs) -> None:
    collector = collect(sysfs.hwmon(0, "ina226", device=I2C, power1_input=1))
    collector.close()
    collector.close()
