"""Exposition of the families that read plain files: series, labels, metadata, watts.

Values that depend on when the test runs (times, and energies integrated over them) are replaced by ``#``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from joulewatch_exporter.collectors.amdgpu.collector import AmdgpuCollector, AmdgpuOptions
from joulewatch_exporter.collectors.cray.collector import CrayCollector, CrayOptions
from joulewatch_exporter.collectors.fpga.collector import FpgaCollector, FpgaOptions
from joulewatch_exporter.collectors.hwmon.collector import HwmonCollector, HwmonOptions
from joulewatch_exporter.emulator.amdgpu import AmdGpuSpec, AmdGpuTree
from joulewatch_exporter.emulator.files import Writer
from joulewatch_exporter.emulator.signals import Constant
from joulewatch_exporter.model import Collector
from joulewatch_exporter.sampling.family import Family
from joulewatch_exporter.sampling.primary import PrimarySensors
from joulewatch_exporter.server.exposition import Exposition
from support import golden
from support.fpga import U55C, VBNV, chip, xmc
from support.paths import ROOT
from support.sysfs import FakeSysfs

GOLDEN = ROOT / "tests" / "exporter" / "golden"
_TIMED = re.compile(
    r"^(joulewatch_(?:\w+_energy_joules_total|read_timestamp_seconds|read_duration_seconds|sensor_refresh_seconds)"
    r"(?:\{.*\})?) \S+$",
    re.MULTILINE,
)


def exposition(collector: Collector, root: Path) -> str:
    """Return the exposition of the second of two scans."""
    family = Family(collector)
    family.scan()
    primary = PrimarySensors("node17").choose([(family.name, family.layout)])
    text = Exposition(emulated=False, start_s=1.0, nodename="node17", self_metrics=False).render(
        [family.scan()], "text", primary=primary
    )
    family.close()
    lines = [line for line in text.decode().splitlines() if f'collector="{collector.name}"' in line]
    return _TIMED.sub(r"\1 #", "\n".join(lines)).replace(str(root), "") + "\n"


def fpga(sysfs: FakeSysfs) -> Collector:
    xmc(
        sysfs,
        "0000:d8:00.1",
        xmc_power_ins=21_445_936,
        serial_num="XFL1",
        xmc_vccint_vol=851,
        xmc_vccint_curr=5618,
        **U55C,
    )
    chip(sysfs, "0000:d8:00.1", 4, f"{VBNV}_user", power1_input=21_445_936, power1_label="POWER")
    chip(sysfs, "0000:e8:00.1", 5, f"{VBNV}_user", power1_input=58_360_411, power1_label="POWER")
    return FpgaCollector.open(sysfs.host, FpgaOptions())


def cray(sysfs: FakeSysfs) -> Collector:
    files: dict[str, object] = {"freshness": 7, "startup": 1_700_000_000_000_000, "raw_scan_hz": 10}
    for stem, energy in {"": 5_000_000, "cpu_": 1_000_000, "memory_": 200_000, "accel0_": 1_500_000}.items():
        files |= {
            f"{stem}energy": f"{energy} J 1700000000000000 us",
            f"{stem}power": f"{energy // 10_000} W 1700000000000000 us",
        }
    sysfs.write("cray/pm_counters", **files)
    return CrayCollector.open(sysfs.host, CrayOptions())


def hwmon(sysfs: FakeSysfs) -> Collector:
    sysfs.hwmon(
        0, "power_meter", device="LNXSYSTM:00/LNXSYBUS:00/ACPI000D:00", at_device=True,
        power1_average=313_000_000, power1_average_interval=1000, power1_accuracy="95.0%", power1_is_battery=0,
    )  # fmt: skip
    sysfs.hwmon(1, "xe", device="pci0000:00/0000:03:00.0", energy1_input=5_000_000, energy1_label="card")
    sysfs.hwmon(2, "amdgpu", device="pci0000:00/0000:c1:00.0", power1_average=87_000_000, power1_label="PPT")
    sysfs.hwmon(3, "scmi_sensors", device="platform/firmware:scmi", power1_input=4_500_000, power1_label="big")
    sysfs.hwmon(4, "ina226", device="platform/axi/i2c-3/3-0040", power1_input=1_250_000)
    return HwmonCollector.open(sysfs.host, HwmonOptions())


def jetson(sysfs: FakeSysfs) -> Collector:
    """A Jetson Orin NX: volts and amperes by hwmon."""
    sysfs.hwmon(
        0, "ina3221", device="platform/bus@0/c240000.i2c/i2c-1/1-0040", shunt1_resistor=20_000,
        in1_label="VDD_IN", in1_input=5000, in1_enable=1, curr1_input=1200,
        in2_label="VDD_CPU_GPU_CV", in2_input=4992, in2_enable=1, curr2_input=300,
        in3_label="VDD_SOC", in3_input=5008, in3_enable=1, curr3_input=250,
        in4_input=2400, in5_input=600, in6_input=500, in7_input=3500, curr4_input=1750,
    )  # fmt: skip
    return HwmonCollector.open(sysfs.host, HwmonOptions())


def jetson_iio(sysfs: FakeSysfs) -> Collector:
    """A Jetson TX2 with NVIDIA's driver ina3221x."""
    for index, rails in enumerate((("VDD_SYS_GPU", "VDD_SYS_SOC"), ("VDD_IN", "VDD_SYS_CPU", "VDD_SYS_DDR"))):
        files: dict[str, object] = {}
        for number, rail in enumerate(rails):
            power = {f"in_power{number}_input": 5000 - 2000 * number, f"in_power{number}_trigger_input": 1}
            files |= {f"rail_name_{number}": rail, **power}
        sysfs.iio(index, "ina3221x", device=f"3160000.i2c/i2c-0/0-004{index}", **files)
    return HwmonCollector.open(sysfs.host, HwmonOptions())


def grace(sysfs: FakeSysfs) -> Collector:
    """A GH200: the GPU inside the module is a device of the family nvml."""
    for index, (meter, watts) in enumerate((("Module", 520), ("Grace", 180), ("CPU", 130), ("SysIO", 50))):
        sysfs.hwmon(
            index, "power_meter", device=f"LNXSYSTM:00/LNXSYBUS:00/ACPI000D:0{index}", at_device=True,
            power1_average=watts * 1_000_000, power1_average_interval=50, power1_is_battery=0,
            power1_oem_info=f"{meter} Power Socket 0",
        )  # fmt: skip
    return HwmonCollector.open(sysfs.host, HwmonOptions())


def amdgpu(sysfs: FakeSysfs) -> Collector:
    """Return an MI300X in two partitions, an MI250X with its two dies, an MI300A and a Ryzen AI."""
    specs = (
        AmdGpuSpec(address="0000:83:00.0", signal=Constant(400.0), partitions=2),
        AmdGpuSpec(
            address="0000:93:00.0",
            signal=Constant(300.0),
            revision="1.3",
            device_id="0x7408",
            second_die="0000:94:00.0",
        ),
        AmdGpuSpec(address="0000:a3:00.0", signal=Constant(500.0), revision="1.8", device_id="0x74a0"),
        AmdGpuSpec(
            address="0000:c5:00.0", signal=Constant(28.0), npu=Constant(2.5), revision="3.0", device_id="0x150e"
        ),
    )
    (sysfs.root / "scratch").mkdir()
    AmdGpuTree(specs, sysfs.sys, Writer(sysfs.root / "scratch"), sysfs.root / "scratch").advance(0.0)
    return AmdgpuCollector.open(sysfs.host, AmdgpuOptions())


@pytest.mark.parametrize(
    "family", [fpga, cray, amdgpu, hwmon, jetson, jetson_iio, grace], ids=lambda family: family.__name__
)
def test_exposition_of_a_family(family: Callable[[FakeSysfs], Collector], tmp_path: Path, update_golden: bool) -> None:
    sysfs = FakeSysfs(tmp_path)
    golden.check(exposition(family(sysfs), tmp_path), GOLDEN / f"{family.__name__}.prom", update=update_golden)
