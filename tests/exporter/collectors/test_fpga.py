"""FPGA cards and boards: which files are read, in which units, and which values are rejected."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from joulewatch_exporter.collectors.base import probe
from joulewatch_exporter.collectors.fpga import cards, ina226, xrt
from joulewatch_exporter.collectors.fpga import collector as fpga
from joulewatch_exporter.collectors.fpga.collector import FpgaCollector, FpgaOptions
from joulewatch_exporter.collectors.fpga.common import Number
from joulewatch_exporter.collectors.fpga.ina226 import RailOption
from joulewatch_exporter.collectors.hwmon.collector import HwmonCollector, HwmonOptions
from joulewatch_exporter.config.strict import build
from joulewatch_exporter.emulator.files import Writer
from joulewatch_exporter.errors import (
    ConfigError,
    SensorAbsentError,
    SensorDeniedError,
    SensorGlitchError,
    SensorTimeoutError,
)
from joulewatch_exporter.model import Reading, Sensor, SensorInfo
from joulewatch_exporter.sampling.family import Family
from support.collectors import findings, texts
from support.fpga import CARD, U55C, VBNV, chip, device_tree, function, monitor, xmc
from support.sysfs import FakeSysfs, public_folder, unprivileged
from support.waiting import wait_until

USER, MGMT = f"{CARD}.1", f"{CARD}.0"


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path)


def collect(sysfs: FakeSysfs, **options: Any) -> FpgaCollector:
    return FpgaCollector.open(sysfs.host, FpgaOptions(**options))


def only(collector: FpgaCollector) -> Sensor:
    (sensor,) = collector.sensors
    return sensor


def watts(sensor: Sensor) -> dict[str, float | None]:
    readings = sensor.read()
    assert all(reading.energy_joules is None for reading in readings)
    return {reading.quantity.domain: reading.power_watts for reading in readings}


def infos(sensor: Sensor) -> dict[str, SensorInfo]:
    return {info.quantity.domain: info for info in sensor.infos}


# -- published readings ------------------------------------------------------------------


def test_published_readings_of_a_u55c(sysfs: FakeSysfs) -> None:
    """XRT pull request 7874: the sum of three rails equals the printed power in all digits."""
    xmc(sysfs, "0000:04:00.1", 19922944, xmc_power=21445936, **U55C)
    collector = collect(sysfs)
    sensor = only(collector)
    assert watts(sensor) == {"total": 21.445936, "12v_pex": 12.0564, "12v_aux": 5.895136, "3v3_pex": 3.4944}
    assert sensor.device == "0000:04:00"
    scopes = {info.quantity.domain: (info.quantity.scope, info.relation) for info in sensor.infos}
    assert scopes["total"][0] == "device"
    assert [scopes[rail] for rail in ("12v_pex", "12v_aux", "3v3_pex")] == [("part", "rail")] * 3
    assert {info.quantity.component for info in sensor.infos} == {"fpga"}
    assert {info.quantity.device for info in sensor.infos} == {"0000:04:00"}
    assert "= 21.445936 W, the card reports 21.445936 W" in texts(collector, "found")


def test_published_readings_of_a_card_of_2020(sysfs: FakeSysfs) -> None:
    """XRT pull request 3697: no cable at 12V AUX, no current at 3V3, VCCINT supplied by 12V PEX."""
    xmc(
        sysfs, "0000:b3:00.1", 19922944, xmc_power=17423810, xmc_12v_pex_vol=12058, xmc_12v_pex_curr=1445,
        xmc_12v_aux_vol=450, xmc_3v3_pex_vol=3295, xmc_3v3_aux_vol=3325, xmc_vccint_vol=851, xmc_vccint_curr=5618,
    )  # fmt: skip
    sensor = only(collect(sysfs))
    assert watts(sensor) == {"total": 17.42381, "12v_pex": 17.42381, "vccint": 4.780918}
    assert infos(sensor)["vccint"].relation == "inside"


def test_published_rails_of_a_u50(sysfs: FakeSysfs) -> None:
    """XRT pull request 5184: no power node, so the total is volts times amperes of the supply rails."""
    xmc(
        sysfs, USER, xmc_12v_pex_vol=12213, xmc_12v_pex_curr=1363, xmc_3v3_pex_vol=3300, xmc_3v3_pex_curr=223,
        xmc_12v_aux_vol=0, xmc_12v_aux_curr=0, xmc_vccint_vol=849, xmc_vccint_curr=4100,
        xmc_vccint_bram_vol=852, xmc_0v85_curr=2100,
    )  # fmt: skip
    sensor = only(collect(sysfs))
    assert watts(sensor) == {
        "total": 17.382219, "12v_pex": 16.646319, "3v3_pex": 0.7359, "vccint": 3.4809, "vccint_io": 1.7892,
    }  # fmt: skip
    assert "12v_pex + 12v_aux + 3v3_pex" in infos(sensor)["total"].source


def test_published_hwmon_reading_of_a_u280(sysfs: FakeSysfs) -> None:
    """A computing centre's page shows the file and its value, but not the chip's name."""
    path = chip(sysfs, "0000:01:00.1", 7, None, power1_input=58360411)
    sensor = only(collect(sysfs))
    assert watts(sensor) == {"total": 58.360411}
    assert infos(sensor)["total"].source == f"{sysfs.sys}/{path}/power1_input"


def recorded_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that collects the path of each number that is read from now on."""
    paths: list[str] = []
    original = Number.read

    def read(number: Number) -> int:
        paths.append(number.path)
        return original(number)

    monkeypatch.setattr(Number, "read", read)
    return paths


# -- selecting a backend --------------------------------------------------------------------------------------


def test_xmc_power_ins_is_preferred_to_xmc_power(sysfs: FakeSysfs) -> None:
    xmc(sysfs, USER, xmc_power=1_000_000, xmc_power_ins=21_445_936, **U55C)
    sensor = only(collect(sysfs))
    assert watts(sensor)["total"] == 21.445936
    assert infos(sensor)["total"].source.endswith("/xmc.u.1024/xmc_power_ins")


def test_the_cache_is_refreshed_before_the_power_is_read(sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the user function of XRT 2.15 returns an old cache forever."""
    xmc(sysfs, USER, xmc_power=21_445_936, **U55C)
    sensor = only(collect(sysfs, parts=False))
    paths = recorded_reads(monkeypatch)
    assert watts(sensor) == {"total": 21.445936}
    assert [Path(path).name for path in paths] == ["xmc_12v_pex_vol", "xmc_power"]


def test_rails_are_used_if_the_management_function_reports_zero_power(sysfs: FakeSysfs) -> None:
    """XRT 2.15 never fills its cache: 0 means no data, and the rails give the power."""
    xmc(sysfs, MGMT, xmc_power=0, **U55C)
    collector = collect(sysfs)
    assert watts(only(collector))["total"] == 21.445936
    assert "0 W: the card has no data now" in texts(collector, "skipped")


def test_both_functions_are_one_card_and_the_management_function_is_preferred(sysfs: FakeSysfs) -> None:
    xmc(sysfs, MGMT, 2048, xmc_power=0, xmc_power_ins=21_445_936, **U55C)
    xmc(sysfs, USER, 1025, xmc_power=21_445_936, xmc_power_ins=21_445_936, **U55C)
    chip(sysfs, USER, 4, f"{VBNV}_user", power1_input=21_445_936)
    for choice, directory in (("auto", "xmc.m.2048"), ("user", "xmc.u.1025"), ("mgmt", "xmc.m.2048")):
        sensor = only(collect(sysfs, function=choice))
        assert sensor.device == CARD
        assert infos(sensor)["total"].source.split("/")[-2] == directory
        assert infos(sensor)["total"].model == (VBNV if choice == "user" else "")


def test_a_user_function_without_data_is_skipped(sysfs: FakeSysfs) -> None:
    """If the mailbox does not answer, all values are 0."""
    xmc(sysfs, USER, xmc_power_ins=0, **dict.fromkeys(U55C, 0))
    xmc(sysfs, MGMT, xmc_power_ins=21_445_936, **U55C)
    assert infos(only(collect(sysfs)))["total"].source.split("/")[-2] == "xmc.m.1024"


def test_excluding_the_only_function_leaves_no_card(sysfs: FakeSysfs) -> None:
    xmc(sysfs, MGMT, xmc_power_ins=21_445_936, **U55C)
    with pytest.raises(SensorAbsentError, match=r"excluded by collectors\.fpga\.function: user"):
        collect(sysfs, function="user")


def test_xrt_hwmon_reads_only_the_momentary_power(sysfs: FakeSysfs) -> None:
    """power1_average is the maximum, power2 the target of clock scaling."""
    path = chip(
        sysfs, USER, 4, f"{VBNV}_user", power1_input=30_000_000, power1_average=75_000_000, power1_label="POWER",
        power2_input=200_000_000, power2_label="CS_TARGET_POWER",
        in0_input=12_000, in0_label="12V PEX", curr1_input=2_000, curr1_label="12V PEX Current",
        in5_input=3_000, in5_label="3V3 PEX", curr9_input=2_000, curr9_label="3V3 PEX Current",
        in9_input=850, in9_label="VCC INT", curr3_input=10_000, curr3_label="VCC INT Current",
    )  # fmt: skip
    for name in ("power1_average", "power2_input"):
        sysfs.refuse(f"{path}/{name}")
    sensor = only(collect(sysfs))
    assert watts(sensor) == {"total": 30.0, "12v_pex": 24.0, "3v3_pex": 6.0, "vccint": 8.5}
    assert infos(sensor)["total"].model == VBNV


def test_rails_can_be_excluded(sysfs: FakeSysfs) -> None:
    xmc(sysfs, USER, xmc_power_ins=21_445_936, **U55C)
    assert watts(only(collect(sysfs, parts=False))) == {"total": 21.445936}


def test_the_sum_of_the_rails_is_compared_with_the_card(sysfs: FakeSysfs, caplog: pytest.LogCaptureFixture) -> None:
    xmc(sysfs, USER, xmc_power_ins=42_000_000, **U55C)
    collector = collect(sysfs)
    assert "= 21.445936 W, the card reports 42.000000 W: they differ" in texts(collector, "found")
    assert "they differ" in caplog.text
    assert watts(only(collector))["total"] == 42.0


@pytest.mark.parametrize(("level", "limit"), [(0, None), (1, 150.0), (2, 225.0), (9, None)])
def test_the_power_class_is_the_limit(sysfs: FakeSysfs, level: int, limit: float | None) -> None:
    xmc(sysfs, USER, xmc_power_ins=21_445_936, max_power=level)
    assert infos(only(collect(sysfs)))["total"].limit_watts == limit


@pytest.mark.parametrize("source", ["rom", "bd_name"])
def test_without_a_chip_the_model_comes_from_the_rom_or_the_board(sysfs: FakeSysfs, source: str) -> None:
    path = xmc(sysfs, USER, xmc_power_ins=21_445_936)
    if source == "rom":
        sysfs.write(f"{function(sysfs, USER)}/rom.u.7", VBNV="model")
    else:
        sysfs.write(path, bd_name="model")
    assert infos(only(collect(sysfs)))["total"].model == "model"


# -- no number is better than a wrong one ----------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, 4_294_967_295, 4_294_967_295_000, 2**64 - 1, "garbage", ""])
def test_implausible_power_is_a_glitch(sysfs: FakeSysfs, value: object) -> None:
    path = xmc(sysfs, USER, xmc_power_ins=21_445_936, **U55C)
    sensor = only(collect(sysfs))
    sysfs.write(path, xmc_power_ins=value)
    with pytest.raises(SensorGlitchError):
        sensor.read()
    sysfs.write(path, xmc_power_ins=21_445_936)
    assert watts(sensor)["total"] == 21.445936


def test_a_card_that_left_the_bus_is_a_glitch(sysfs: FakeSysfs) -> None:
    """All bits read as ones: the nodes print -1, and the driver's product looks like any other number."""
    ones = 2**32 - 1
    product = 3 * ones * ones % 2**64
    path = xmc(sysfs, USER, xmc_power_ins=21_445_936, **U55C)
    sensor = only(collect(sysfs))
    sysfs.write(path, xmc_power_ins=product - 2**64 if product >= 2**63 else product)
    with pytest.raises(SensorGlitchError):
        sensor.read()
    sysfs.write(path, xmc_power_ins=21_445_936, xmc_12v_pex_vol=-1)
    with pytest.raises(SensorGlitchError, match="all bits are ones"):
        sensor.read()


def test_an_invalid_rail_does_not_affect_the_card(sysfs: FakeSysfs) -> None:
    path = xmc(sysfs, USER, xmc_power_ins=21_445_936, **U55C)
    sensor = only(collect(sysfs))
    sysfs.write(path, xmc_12v_aux_curr=4_294_967_295)
    assert watts(sensor) == {"total": 21.445936, "12v_pex": 12.0564, "3v3_pex": 3.4944}


def test_an_incomplete_sum_of_rails_is_a_glitch(sysfs: FakeSysfs) -> None:
    path = xmc(sysfs, USER, **U55C)
    sensor = only(collect(sysfs))
    sysfs.write(path, xmc_12v_aux_curr=-1)
    with pytest.raises(SensorGlitchError, match="xmc_12v_aux_curr"):
        sensor.read()


def test_a_rail_without_current_is_0_w(sysfs: FakeSysfs) -> None:
    path = xmc(sysfs, USER, xmc_power_ins=21_445_936, **U55C)
    sensor = only(collect(sysfs))
    sysfs.write(path, xmc_12v_aux_curr=0)
    assert watts(sensor)["12v_aux"] == 0.0


@pytest.mark.parametrize("address", [USER, MGMT])
def test_a_stalled_controller_is_a_glitch(sysfs: FakeSysfs, address: str) -> None:
    """Only the management function detects it; the values that it passes to the user function are frozen too."""
    xmc(sysfs, USER, xmc_power_ins=21_445_936, xmc_heartbeat_stall=0, **U55C)
    xmc(sysfs, MGMT, xmc_power_ins=21_445_936, xmc_heartbeat_stall=0, **U55C)
    sensor = only(collect(sysfs))
    path = xmc(sysfs, address, xmc_heartbeat_stall=1)
    with pytest.raises(SensorGlitchError, match="stalled"):
        sensor.read()
    sysfs.remove(path)
    if address == USER:
        assert watts(sensor)["total"] == 21.445936  # the other function may disappear


def test_a_card_without_data_at_the_start_is_read_later(sysfs: FakeSysfs) -> None:
    path = xmc(sysfs, USER, xmc_power_ins=0, **dict.fromkeys(U55C, 0))
    collector = collect(sysfs)
    assert "no data now" in texts(collector, "broken")
    sensor = only(collector)
    assert {"12v_pex", "12v_aux", "3v3_pex"} <= set(infos(sensor))  # which rails exist is not known yet
    with pytest.raises(SensorGlitchError, match="no data now"):
        sensor.read()
    sysfs.write(path, xmc_power_ins=21_445_936)
    assert watts(sensor)["total"] == 21.445936


# -- the user function's cache ---------------------------------------------------------------------


def boot_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def test_a_cached_value_has_the_time_at_which_the_driver_received_it(sysfs: FakeSysfs) -> None:
    cache = {"cache_expire_secs": 1, "sensor_update_timestamp": boot_ms() + 1000 - 400}
    path = xmc(sysfs, USER, xmc_power_ins=21_445_936, **U55C, **cache)
    sensor = only(collect(sysfs))
    assert {info.read_mode for info in sensor.infos} == {"polled"}
    first = sensor.read()
    age_s = (time.monotonic_ns() - first[0].read_at_ns) / 1e9
    assert 0.399 <= age_s < 2.0
    assert {reading.read_at_ns for reading in first} == {first[0].read_at_ns}
    assert sensor.read()[0].read_at_ns == first[0].read_at_ns  # same value, same time
    sysfs.write(path, sensor_update_timestamp=boot_ms() + 1000)
    assert sensor.read()[0].read_at_ns > first[0].read_at_ns


@pytest.mark.parametrize("timestamp_ms", [5, 10**15])
def test_a_timestamp_of_another_clock_is_not_used(sysfs: FakeSysfs, timestamp_ms: int) -> None:
    """A time namespace has another clock."""
    xmc(sysfs, USER, xmc_power_ins=21_445_936, cache_expire_secs=1, sensor_update_timestamp=timestamp_ms)
    before_ns = time.monotonic_ns()
    sensor = only(collect(sysfs))
    assert before_ns <= sensor.read()[0].read_at_ns <= time.monotonic_ns()


def test_a_cache_that_is_no_longer_refreshed_is_a_glitch(sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    xmc(sysfs, USER, xmc_power_ins=21_445_936, cache_expire_secs=1, sensor_update_timestamp=boot_ms() + 1000)
    sensor = only(collect(sysfs))
    sensor.read()
    later_ns = time.monotonic_ns() + 3_000_000_000
    monkeypatch.setattr(xrt, "monotonic_ns", lambda: later_ns)
    with pytest.raises(SensorGlitchError, match="does not refresh"):
        sensor.read()


def test_values_of_two_refreshes_are_not_mixed(sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    path = xmc(sysfs, USER, xmc_power_ins=21_445_936, cache_expire_secs=1, sensor_update_timestamp=boot_ms(), **U55C)
    sensor = only(collect(sysfs))
    original = Number.read
    refreshes = iter(range(1, 1000))

    def refresh_in_the_middle(number: Number) -> int:
        value = original(number)
        if number.path.endswith("xmc_power_ins") and (count := next(refreshes)) in mixed:
            sysfs.write(path, sensor_update_timestamp=boot_ms() + count)
        return value

    monkeypatch.setattr(Number, "read", refresh_in_the_middle)
    mixed: range = range(1, 2)
    assert watts(sensor)["total"] == 21.445936  # the second try
    mixed = range(1, 1000)
    with pytest.raises(SensorGlitchError, match="changed during each of 3 reads"):
        sensor.read()


def test_without_a_cache_the_time_is_that_of_the_read(sysfs: FakeSysfs) -> None:
    """cache_expire_secs 0: each read goes to the card and changes the timestamp."""
    xmc(sysfs, USER, xmc_power_ins=21_445_936, cache_expire_secs=0, sensor_update_timestamp=5)
    before_ns = time.monotonic_ns()
    assert only(collect(sysfs)).read()[0].read_at_ns >= before_ns


# -- missing, denied and hanging cards ------------------------------------------------------------------------


def two_cards(sysfs: FakeSysfs) -> tuple[str, str]:
    first = xmc(sysfs, "0000:3b:00.1", 1024, xmc_power_ins=21_445_936, **U55C)
    return first, xmc(sysfs, "0000:d8:00.1", 1025, xmc_power_ins=30_000_000, **U55C)


def test_a_card_with_read_errors_does_not_stop_the_other(sysfs: FakeSysfs) -> None:
    first, _ = two_cards(sysfs)
    dead, alive = collect(sysfs).sensors
    sysfs.refuse(f"{first}/xmc_power_ins")
    for _ in range(2):
        with pytest.raises(SensorGlitchError, match="xmc_power_ins"):
            dead.read()
        assert watts(alive)["total"] == 30.0


def test_a_card_is_found_again_after_a_reset(sysfs: FakeSysfs) -> None:
    first, _ = two_cards(sysfs)
    collector = collect(sysfs)
    assert not collector.outdated
    dead, alive = collector.sensors
    sysfs.remove("bus/pci/devices/0000:3b:00.1").remove(first)
    with pytest.raises(SensorAbsentError):
        dead.read()
    assert watts(alive)["total"] == 30.0
    assert collector.outdated
    sysfs.link("bus/pci/devices/0000:3b:00.1", first.rpartition("/")[0])
    xmc(sysfs, "0000:3b:00.1", 77, xmc_power_ins=22_000_000)
    again = collect(sysfs)
    assert [sensor.device for sensor in again.sensors] == ["0000:3b:00", "0000:d8:00"]
    assert watts(again.sensors[0])["total"] == 22.0
    collector.close()


def test_a_new_card_makes_the_collector_outdated(sysfs: FakeSysfs) -> None:
    xmc(sysfs, USER, xmc_power_ins=21_445_936)
    collector = collect(sysfs)
    assert not collector.outdated
    function(sysfs, "0000:3b:00.1")
    assert collector.outdated


def test_a_denied_card_does_not_stop_the_other() -> None:
    with public_folder() as folder:
        sysfs = FakeSysfs(folder)
        for path in two_cards(sysfs):
            unreadable = 0o400 if os.geteuid() == 0 else 0
            for node in (sysfs.sys / path).iterdir():
                node.chmod(unreadable)
            with unprivileged():
                if "0000:3b" in path:
                    collector = collect(sysfs)
                    assert [sensor.device for sensor in collector.sensors] == [CARD]
                    denied = findings(collector, "denied")
                    assert f"sudo chmod a+r {sysfs.sys}" in denied[0].cure
                    assert "xmc" in denied[0].cure
                    assert {finding.device for finding in denied} == {"0000:3b:00"}
                else:
                    with pytest.raises(SensorDeniedError, match="chmod a") as caught:
                        collect(sysfs)
                    assert set(caught.value.devices) == {"0000:3b:00", CARD}


def test_another_backend_is_used_if_one_is_denied() -> None:
    with public_folder() as folder:
        sysfs = FakeSysfs(folder)
        path = xmc(sysfs, USER, xmc_power_ins=21_445_936, **U55C)
        (sysfs.sys / path / "xmc_power_ins").chmod(0o400 if os.geteuid() == 0 else 0)
        (sysfs.sys / path / "xmc_3v3_pex_curr").chmod(0o400 if os.geteuid() == 0 else 0)
        with unprivileged(), pytest.raises(SensorDeniedError):
            collect(sysfs)  # without this rail the sum is incomplete
        (sysfs.sys / path / "xmc_3v3_pex_curr").chmod(0o444)
        with unprivileged():
            collector = collect(sysfs)
            assert watts(only(collector))["total"] == 21.445936
        (denied,) = findings(collector, "denied")
        assert denied.subject.endswith("xmc_power_ins")


@pytest.mark.parametrize("file", ["xmc_power_ins", "xmc_12v_pex_vol", "../vendor", "../hwmon/hwmon7/name"])
def test_a_hanging_card_does_not_delay_the_others(sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    """Its thread is given up, no second thread is started for it, and it is found again once it answers."""
    monkeypatch.setattr(probe, "PROBE_S", 0.05)
    first, _ = two_cards(sysfs)
    chip(sysfs, "0000:3b:00.1", 7, "xilinx_u55c_user")
    path = (sysfs.sys / first / file).resolve()
    text = path.read_bytes()
    hanging = Writer(sysfs.root).put_hanging(str(path))
    family = Family(collect(sysfs))
    scan = family.scan()
    # Until its vendor is read, it is not known to be a card.
    down = {} if path.name == "vendor" else {"0000:3b:00": "error"}
    for _ in range(2):
        assert dict(zip(scan.layout.devices, scan.states, strict=True)) == {"0000:d8:00": "ok", **down}
        again = collect(sysfs)
        (finding,) = findings(again, "broken")
        named = finding.text.removesuffix(": the read hangs; its device is skipped until the read returns")
        assert Path(named).resolve() == path
        assert not again.outdated
        family.replace(again)
        scan = family.scan()
    wait_until(lambda: [thread.name for thread in threading.enumerate()].count("probe-fpga") == 1)
    path.unlink()
    path.write_bytes(text)
    hanging.release()
    hanging.close()
    wait_until(lambda: len(collect(sysfs).sensors) == 2)
    family.close()


def test_if_the_only_card_hangs_the_family_times_out_with_the_path(
    sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "PROBE_S", 0.05)
    path = sysfs.sys / xmc(sysfs, USER, xmc_power_ins=21_445_936) / "xmc_power_ins"
    hanging = Writer(sysfs.root).put_hanging(str(path))
    with pytest.raises(SensorTimeoutError, match="xmc_power_ins: the read hangs") as caught:
        collect(sysfs)
    assert caught.value.devices == (CARD,)
    path.unlink()
    hanging.release()
    hanging.close()


@pytest.mark.parametrize(("file", "rail_hangs"), [("power1_input", True), ("name", False)])
def test_a_chip_that_hangs_costs_the_board_only_if_it_is_a_rail(
    sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch, file: str, *, rail_hangs: bool
) -> None:
    monkeypatch.setattr(probe, "PROBE_S", 0.05)
    device_tree(sysfs, "xlnx,zynqmp-zcu104-revC xlnx,zynqmp-zcu104 xlnx,zynqmp", "ZynqMP ZCU104 RevC")
    paths = [monitor(sysfs, 0, "ina226", 0x40, 12_000_000), monitor(sysfs, 1, "tmp102", 0x48, 1)]
    xmc(sysfs, USER, xmc_power_ins=21_445_936)
    path = sysfs.sys / paths[0 if rail_hangs else 1] / file
    hanging = Writer(sysfs.root).put_hanging(str(path))
    for _ in range(2):
        collector = collect(sysfs)
        assert [sensor.device for sensor in collector.sensors] == [CARD] if rail_hangs else [CARD, "board"]
        (finding,) = findings(collector, "broken")
        assert finding.text.startswith(f"{path}: the read hangs")
        assert finding.device == ("board" if rail_hangs else "")
    path.unlink()
    hanging.release()
    hanging.close()


def test_a_programming_error_while_opening_is_raised(sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    xmc(sysfs, USER, xmc_power_ins=21_445_936)

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(fpga, "_select", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        collect(sysfs)


def test_without_a_card_the_searched_path_is_named(sysfs: FakeSysfs) -> None:
    with pytest.raises(SensorAbsentError, match="bus/pci/devices: no FPGA card"):
        collect(sysfs)
    sysfs.write("devices/pci0000:00/0000:00:02.0", vendor="0x8086", device="0x1")
    sysfs.link("bus/pci/devices/0000:00:02.0", "devices/pci0000:00/0000:00:02.0")
    with pytest.raises(SensorAbsentError) as caught:
        collect(sysfs)
    assert "0000:00:02" not in str(caught.value)


def test_a_card_without_a_driver_is_reported(sysfs: FakeSysfs) -> None:
    function(sysfs, USER)
    with pytest.raises(SensorAbsentError, match=rf"{CARD}: a Xilinx device without sensors.*xocl, xclmgmt or ami"):
        collect(sysfs)


def test_closing_twice_is_safe(sysfs: FakeSysfs) -> None:
    xmc(sysfs, USER, xmc_power_ins=21_445_936, **U55C)
    collector = collect(sysfs)
    collector.settle(1.0)
    open_before = open_files()
    collector.close()
    collector.close()
    assert open_files() < open_before


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_it_is_read_each_second_and_on_scrapes(sysfs: FakeSysfs) -> None:
    xmc(sysfs, USER, xmc_power_ins=21_445_936)
    collector = collect(sysfs)
    timing = collector.timing
    assert (timing.poll_s, timing.read_on_scrape, timing.manages_devices) == (1.0, True, False)


# -- Versal cards and the V80 ----------------------------------------------------------------------


def sdm(sysfs: FakeSysfs, function_kind: str = "user", **files: object) -> str:
    """Write the chip of a VCK5000; its total is not the first channel."""
    address, index = (USER, 3) if function_kind == "user" else (MGMT, 4)
    path = chip(sysfs, address, index, f"xilinx_vck5000_gen4x8_hwmon_sdm_{function_kind}")
    sysfs.write(path, power1_label="Other", power1_input=9, power1_unitm=0, power2_label="Total Power", **files)
    return path


@pytest.mark.parametrize(
    ("raw", "unit", "expected"),
    [(28, 0, 28.0), (28_123, -3, 28.123), (28_123_456, -6, 28.123456), (2812, -2, 28.12)],
)
def test_the_unit_of_a_versal_card_is_read_from_its_own_file(
    sysfs: FakeSysfs, raw: int, unit: int, expected: float
) -> None:
    sdm(sysfs, power2_input=raw, power2_unitm=unit)
    sensor = only(collect(sysfs))
    assert watts(sensor) == {"total": pytest.approx(expected, rel=1e-12)}
    assert infos(sensor)["total"].model == "xilinx_vck5000_gen4x8"
    assert infos(sensor)["total"].source.endswith("/power2_input")


@pytest.mark.parametrize(
    "files",
    [
        {"power2_input": 4_294_967_295},
        {"power2_input": 0},
        {"power2_input": 28_123_456},  # 28 MW
        {"power2_status": "Data Not Available"},
        {"power2_status": "Sensor Not Present"},
    ],
)
def test_invalid_values_of_a_versal_card(sysfs: FakeSysfs, files: Mapping[str, object]) -> None:
    path = sdm(sysfs, power2_input=28, power2_unitm=0, power2_status="Sensor Present and Valid")
    sensor = only(collect(sysfs))
    assert watts(sensor) == {"total": 28.0}
    sysfs.write(path, **files)
    with pytest.raises(SensorGlitchError):
        sensor.read()


def test_a_versal_card_without_a_known_unit_is_not_read(sysfs: FakeSysfs) -> None:
    path = sdm(sysfs, power2_input=28)
    with pytest.raises(SensorAbsentError, match="power2_unitm"):
        collect(sysfs)
    sysfs.write(path, power2_unitm=30)
    with pytest.raises(SensorAbsentError, match="30 is not a known unit of power"):
        collect(sysfs)


def test_the_management_function_of_a_versal_card_is_preferred(sysfs: FakeSysfs) -> None:
    sdm(sysfs, "mgmt", power2_input=29, power2_unitm=0)
    sdm(sysfs, power2_input=28, power2_unitm=0)
    assert watts(only(collect(sysfs)))["total"] == 29.0
    assert watts(only(collect(sysfs, function="user")))["total"] == 28.0


V80 = {"power1_label": "Total_Power", "power1_input": 60_250_000, "power1_status": "Sensor Present and Valid"}


def test_a_v80_is_read_only_on_request(sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading it can end every program that uses the card, so it is not even read once as a test."""
    path = chip(sysfs, "0000:21:00.0", 2, "Alveo", **V80)
    xmc(sysfs, USER, xmc_power_ins=21_445_936)
    sysfs.refuse(f"{path}/power1_input")
    paths = recorded_reads(monkeypatch)
    collector = collect(sysfs)
    assert [sensor.device for sensor in collector.sensors] == [CARD]
    assert not any("0000:21:00.0" in name for name in paths)
    (finding,) = findings(collector, "skipped")
    assert "SIGBUS" in finding.text
    assert finding.cure == "collectors.fpga.v80: true"


def test_a_v80_is_read_at_most_once_per_second(sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = 10_000_000_000
    monkeypatch.setattr(cards, "monotonic_ns", lambda: now_ns)
    path = chip(sysfs, "0000:21:00.0", 2, "Alveo", **V80)
    sensor = only(collect(sysfs, v80=True))
    assert sensor.device == "0000:21:00"
    assert sensor.infos[0].read_mode == "polled"  # a scrape may show an older value
    (first,) = sensor.read()
    assert (first.power_watts, first.read_at_ns) == (60.25, now_ns)
    sysfs.write(path, power1_input=70_000_000)
    now_ns += 999_999_999
    assert sensor.read() == (first,)  # the old value with its old time
    now_ns += 1
    (second,) = sensor.read()
    assert (second.power_watts, second.read_at_ns) == (70.0, now_ns)


def test_a_failed_read_of_a_v80_is_not_retried_at_once(sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = 10_000_000_000
    monkeypatch.setattr(cards, "monotonic_ns", lambda: now_ns)
    path = chip(sysfs, "0000:21:00.0", 2, "Alveo", **V80)
    sensor = only(collect(sysfs, v80=True))
    now_ns += 1_000_000_000
    sysfs.write(path, power1_status="Sensor Not Present")
    with pytest.raises(SensorGlitchError, match="Sensor Not Present") as caught:
        sensor.read()
    assert not caught.value.is_repeated
    sysfs.write(path, power1_status=V80["power1_status"])
    with pytest.raises(SensorGlitchError, match="not retried yet") as caught:
        sensor.read()
    assert caught.value.is_repeated
    now_ns += 1_000_000_000
    assert watts(sensor)["total"] == 60.25


def test_hwmon_skips_the_cards_of_this_family(sysfs: FakeSysfs) -> None:
    """This includes a chip without a name, because its file is claimed."""
    chip(sysfs, USER, 7, None, power1_input=58_360_411)
    sysfs.hwmon(9, "ina3221", device="platform/i2c-1/1-0041", power1_input=1)
    sources = {info.source for sensor in collect(sysfs).sensors for info in sensor.infos}
    host = replace(sysfs.host, claimed=frozenset(sources))
    devices = [sensor.device for sensor in HwmonCollector.open(host, HwmonOptions()).sensors]
    assert devices == ["i2c-1-1-0041"]


# -- boards -----------------------------------------------------------------------------------------


def kria(sysfs: FakeSysfs, power_uw: object = 4_809_000, **files: object) -> str:
    device_tree(sysfs, "xlnx,zynqmp-sk-kv260-revB xlnx,zynqmp-sk-kv260 xlnx,zynqmp", "ZynqMP KV260 revB")
    return monitor(sysfs, 0, "ina260_u14", 0x40, power_uw, **files)


def test_a_kria_board_has_one_monitor_for_the_module(sysfs: FakeSysfs) -> None:
    path = kria(sysfs)
    sensor = only(collect(sysfs))
    assert sensor.device == "board"
    assert watts(sensor) == {"total": 4.809, "som_5v": 4.809}
    assert infos(sensor)["som_5v"].source == f"{sysfs.sys}/{path}/power1_input"
    assert infos(sensor)["total"].model == "ZynqMP KV260 revB"


def test_a_zcu104_has_one_monitor_for_the_board(sysfs: FakeSysfs) -> None:
    device_tree(sysfs, "xlnx,zynqmp-zcu104-revC xlnx,zynqmp-zcu104 xlnx,zynqmp", "ZynqMP ZCU104 RevC")
    monitor(sysfs, 0, "ina226", 0x40, 11_250_000)
    assert watts(only(collect(sysfs))) == {"total": 11.25, "12v": 11.25}


def zcu102(sysfs: FakeSysfs, *, without: str = "") -> dict[str, str]:
    device_tree(sysfs, "xlnx,zynqmp-zcu102-rev1.0 xlnx,zynqmp-zcu102 xlnx,zynqmp", "ZynqMP ZCU102 Rev1.0")
    paths = {}
    for index, name in enumerate(ina226._ZCU102_RAILS):
        if name != without:
            paths[name] = monitor(sysfs, index, name, 0x40 + index, 100_000 * (index + 1))
    return paths


def test_the_power_of_a_zcu102_is_the_sum_of_its_rails(sysfs: FakeSysfs) -> None:
    zcu102(sysfs)
    sensor = only(collect(sysfs))
    powers = watts(sensor)
    assert len(powers) == 19
    assert powers["total"] == pytest.approx(0.1 * sum(range(1, 19)))
    assert (powers["vccpsintfp"], powers["vccint"], powers["mgtavtt"]) == (0.1, 1.1, 1.8)
    assert {info.relation for info in sensor.infos[1:]} == {"rail"}


def test_a_sum_needs_all_rails(sysfs: FakeSysfs) -> None:
    paths = zcu102(sysfs)
    sensor = only(collect(sysfs))
    for value in (-1, 4_294_967_295, 600_000_000, "garbage"):
        sysfs.write(paths["ina226_u79"], power1_input=value)
        with pytest.raises(SensorGlitchError):
            sensor.read()
    sysfs.write(paths["ina226_u79"], power1_input=0)  # a rail that is off is valid
    assert watts(sensor)["vccint"] == 0.0
    sysfs.remove(paths["ina226_u79"])
    with pytest.raises(SensorAbsentError):
        sensor.read()


def test_a_board_with_a_missing_monitor_is_left_to_hwmon(sysfs: FakeSysfs) -> None:
    zcu102(sysfs, without="ina226_u79")
    with pytest.raises(SensorAbsentError, match="no monitor of vccint"):
        collect(sysfs)
    assert len(HwmonCollector.open(sysfs.host, HwmonOptions()).sensors) == 17


def test_hwmon_does_not_publish_the_rails_again(sysfs: FakeSysfs) -> None:
    zcu102(sysfs)
    monitor(sysfs, 30, "ina3221", 0x70, 5_000_000)
    host = replace(sysfs.host, claimed=frozenset(info.source for info in only(collect(sysfs)).infos))
    (sensor,) = HwmonCollector.open(host, HwmonOptions()).sensors
    assert sensor.infos[0].model == "ina3221"


def test_a_board_without_a_map_is_left_to_hwmon(sysfs: FakeSysfs) -> None:
    device_tree(sysfs, "digilent,zynq-zybo xlnx,zynq-7000", "Zybo")
    monitor(sysfs, 0, "ina226_u1", 0x40, 1_000_000)
    with pytest.raises(SensorAbsentError):
        collect(sysfs)


def test_a_user_defined_map(sysfs: FakeSysfs) -> None:
    """Monitors named by I2C device, device tree label and chip; a rail supplied by another is not summed."""
    monitor(sysfs, 0, "ina226", 0x40, 1_000_000)
    monitor(sysfs, 1, "ina226", 0x41, 2_000_000, label="ina226-u9")
    monitor(sysfs, 2, "ina219", 0x42, 500_000)
    monitor(sysfs, 3, "ina226", 0x43, 7_000_000)
    rails = {
        "3-0040": RailOption("vccint"),
        "ina226-u9": RailOption("vccaux"),
        "ina219": RailOption("vccbram", in_total=False),
    }
    collector = collect(sysfs, rails=rails)
    sensor = only(collector)
    assert watts(sensor) == {"total": 3.0, "vccint": 1.0, "vccaux": 2.0, "vccbram": 0.5}
    assert [infos(sensor)[rail].relation for rail in ("vccint", "vccaux", "vccbram")] == ["rail", "rail", "inside"]
    assert len(collector.findings) == 3


def test_a_failing_rail_outside_the_total_is_skipped(sysfs: FakeSysfs) -> None:
    monitor(sysfs, 0, "one", 0x40, 1_000_000)
    path = monitor(sysfs, 1, "two", 0x41, 2_000_000)
    rails = {"one": RailOption("one"), "two": RailOption("two", in_total=False)}
    sensor = only(collect(sysfs, rails=rails))
    sysfs.refuse(f"{path}/power1_input")
    assert watts(sensor) == {"total": 1.0, "one": 1.0}


def test_rails_without_a_total_are_only_parts(sysfs: FakeSysfs) -> None:
    monitor(sysfs, 0, "one", 0x40, 1_000_000)
    assert watts(only(collect(sysfs, rails={"one": RailOption("one", in_total=False)}))) == {"one": 1.0}


def test_two_monitors_with_one_name_are_rejected(sysfs: FakeSysfs) -> None:
    monitor(sysfs, 0, "ina226", 0x40, 1_000_000)
    monitor(sysfs, 1, "ina226", 0x41, 2_000_000)
    with pytest.raises(SensorAbsentError, match="a second monitor of vccint"):
        collect(sysfs, rails={"ina226": RailOption("vccint")})


def test_a_board_with_zero_power_has_no_data(sysfs: FakeSysfs) -> None:
    path = kria(sysfs)
    sensor = only(collect(sysfs))
    sysfs.write(path, power1_input=0)
    with pytest.raises(SensorGlitchError, match="no data now"):
        sensor.read()


@pytest.mark.parametrize(("in1", "in2"), [(7, 848), (848, 0)])
def test_milliwatts_of_an_old_kernel_are_rejected(sysfs: FakeSysfs, in1: int, in2: int) -> None:
    """Old iio-hwmon drivers return milliwatts, which is detected by volts times amperes."""
    kria(sysfs, 1150, in1_input=in1, in2_input=in2, curr1_input=1361)
    with pytest.raises(SensorAbsentError, match="milliwatts"):
        collect(sysfs)


def test_microwatts_are_accepted(sysfs: FakeSysfs) -> None:
    kria(sysfs, 1_150_000, in1_input=7, in2_input=848, curr1_input=1361)
    assert watts(only(collect(sysfs)))["total"] == 1.15


def test_a_denied_monitor_is_an_error() -> None:
    with public_folder() as folder:
        sysfs = FakeSysfs(folder)
        path = kria(sysfs)
        (sysfs.sys / path / "power1_input").chmod(0o400 if os.geteuid() == 0 else 0)
        with unprivileged(), pytest.raises(SensorDeniedError, match="power1_input"):
            collect(sysfs)


def test_a_rail_name_must_not_be_empty_or_reserved() -> None:
    for name in ("", "total"):
        with pytest.raises(ConfigError, match=r"collectors\.fpga\.rails\.u1\.name: .* cannot be the name"):
            build(FpgaOptions, {"rails": {"u1": {"name": name}}}, "file", "collectors.fpga")


def test_options_from_a_file() -> None:
    options = build(
        FpgaOptions,
        {"v80": True, "function": "mgmt", "rails": {"ina226_u1": {"name": "vccint", "in_total": False}}},
        "file",
        "collectors.fpga",
    )
    assert options == FpgaOptions(v80=True, function="mgmt", rails={"ina226_u1": RailOption("vccint", in_total=False)})
    with pytest.raises(ConfigError, match="function"):
        build(FpgaOptions, {"function": "both"}, "file", "collectors.fpga")


def test_readings_use_the_quantity_objects_of_the_infos(sysfs: FakeSysfs) -> None:
    """The sampler compares quantities by identity, which makes a scan cheap."""
    xmc(sysfs, USER, xmc_power_ins=21_445_936, **U55C)
    kria(sysfs)
    for sensor in collect(sysfs).sensors:
        readings: list[Reading] = list(sensor.read())
        assert all(reading.quantity is info.quantity for reading, info in zip(readings, sensor.infos, strict=True))
