"""Calibration files: what they hold, which sensor takes a calibration, and which does not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from joulewatch_exporter.catalog import CALIBRATION_PARAMETERS
from joulewatch_exporter.config.calibration import Calibrations, load_calibrations
from joulewatch_exporter.errors import ConfigError
from joulewatch_exporter.model import SensorInfo
from support.calibrations import calibration_entry, calibration_file, ratio_entry, ratio_file
from support.fake_family import info


def meter(model: str = "") -> SensorInfo:
    return info("power_meter", "total", scope="node", component="node", method="integrated", model=model)


def loaded(folder: Path, *entries: dict[str, Any], nodename: str = "node17") -> Calibrations:
    return load_calibrations([calibration_file(folder, *entries)], nodename)


def test_the_sensor_in_the_file_has_the_calibration(tmp_path: Path) -> None:
    calibration = loaded(tmp_path, calibration_entry()).of("hwmon", meter())
    assert calibration is not None
    assert dict(calibration.parameters).keys() == set(CALIBRATION_PARAMETERS)
    assert dict(calibration.parameters)["offset_watts"] == 6.0


@pytest.mark.parametrize(
    ("changes", "nodename"),
    [
        ({"host": "node18"}, "node17"),
        ({}, "node18"),
        ({"device": "power_meter1"}, "node17"),
        ({"domain": "input"}, "node17"),
        ({"collector": "ipmi"}, "node17"),
        ({"component": "cpu"}, "node17"),
        ({"scope": "device"}, "node17"),
        ({"model": "another meter"}, "node17"),
    ],
)
def test_another_sensor_has_none(changes: dict[str, str], nodename: str, tmp_path: Path) -> None:
    assert loaded(tmp_path, calibration_entry(sensor=changes), nodename=nodename).of("hwmon", meter()) is None


def test_a_gpu_that_was_exchanged_has_none(tmp_path: Path) -> None:
    """Its UUID is the label ``device``."""
    labels = {"scope": "device", "collector": "nvml", "component": "gpu", "device": "GPU-1", "domain": "total"}
    calibrations = loaded(tmp_path, calibration_entry(sensor=labels))
    gpus = [info(device, "total", component="gpu", scope="device", model="A100") for device in ("GPU-1", "GPU-2")]
    assert [calibrations.of("nvml", gpu) for gpu in gpus] == [None, None]
    calibrations = loaded(tmp_path, calibration_entry(sensor={**labels, "model": "A100"}))
    assert [calibrations.of("nvml", gpu) is not None for gpu in gpus] == [True, False]


def test_a_remote_bmc_belongs_to_its_own_machine(tmp_path: Path) -> None:
    remote = dataclasses.replace(meter(), is_remote=True)
    assert loaded(tmp_path, calibration_entry()).of("hwmon", remote) is None
    entry = calibration_entry(sensor={"host": "power_meter"})
    assert loaded(tmp_path, entry).of("hwmon", remote) is not None


def test_a_device_of_another_model_is_named(tmp_path: Path) -> None:
    calibrations = loaded(tmp_path, calibration_entry(sensor={"model": "old"}))
    other = calibrations.of_another_model("hwmon", meter(model="new"))
    assert other is not None
    assert other.exchanged_text("hwmon", meter(model="new")) == (
        "hwmon power_meter total: not calibrated: the calibration of 2026-11-28T10:00:00+00:00 is of the model 'old', "
        "not 'new'; calibrate this one"
    )
    assert calibrations.of_another_model("ipmi", meter(model="new")) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gain": 0}, "gain: 0 is not above 0"),
        ({"gain": float("nan")}, "gain: must be a number"),
        ({"gane": 1}, "unknown key calibrations[0].gane"),
        ({"offset_standard_uncertainty_watts": -1}, "offset_standard_uncertainty_watts: -1 is below 0"),
        ({"gain_offset_covariance_watts": 0.1}, "gain_offset_covariance_watts: 0.1 exceeds"),
        ({"lowest_watts": 420.0}, "lowest_watts: 420 is not below highest_watts"),
        ({"date": "2026-11-28"}, "date: '2026-11-28' is not a time with its zone"),
        ({"date": "yesterday"}, "date: 'yesterday' is not a time with its zone"),
        ({"reference": {"accuracy": 1.5}}, "reference.accuracy: 1.5 is not a share"),
        ({"sensor": {"serial": "1"}}, "unknown key calibrations[0].sensor.serial"),
    ],
)
def test_a_file_that_is_not_valid_names_the_key(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, calibration_entry(**changes))
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "calibration.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 2\ncalibrations: []\n", "version: 2 is not known to this exporter; it reads 1"),
        ("calibrations: []\n", "version: must be a whole number"),
        ("version: 1\ncalibrations: []\n", "calibrations: must be a list with at least one calibration"),
        ("version: 1\nworkload_ratios: []\n", "workload_ratios: must be a list with at least one ratio"),
        ("version: 1\nworkload_ratios: {cpu: 2}\n", "workload_ratios: must be a list with at least one ratio"),
        ("version: 1\n", "calibrations: must be a list with at least one calibration"),
        ("version: 1\ncalibration: []\n", "unknown key calibration; did you mean calibrations?"),
        ("version: 1\ncalibrations: [{gain: 1}]\n", "needs sensor and reference"),
    ],
)
def test_another_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "calibration.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_calibrations([path], "node17")
    assert message in str(caught.value)


def test_two_calibrations_of_one_sensor_are_refused(tmp_path: Path) -> None:
    """Even if they name different models: which of them applies would depend on their order."""
    first = calibration_file(tmp_path, calibration_entry())
    second = calibration_file(tmp_path, calibration_entry(sensor={"model": "other"}), name="second.yaml")
    with pytest.raises(ConfigError) as caught:
        load_calibrations([first, second], "node17")
    assert str(caught.value) == (
        f"{second}: calibrations[0]: hwmon power_meter total of node17 is calibrated in {first} too; keep one of them"
    )


def test_ratios_of_workloads_are_those_of_this_machine(tmp_path: Path) -> None:
    entries = [ratio_entry(), ratio_entry(component="memory", ratio=3), ratio_entry(host="node18", ratio=4)]
    paths = [ratio_file(tmp_path, *entries), calibration_file(tmp_path, calibration_entry())]
    calibrations = load_calibrations(paths, "node17")
    assert [(one.component, one.ratio) for one in calibrations.ratios] == [("cpu", 1.6), ("memory", 3.0)]
    assert calibrations.ratios[0].text == (
        "cpu: workloads differ by a factor of up to 1.6 per processor second, 2026-11-28T11:00:00+00:00"
    )
    assert calibrations.of("hwmon", meter()) is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 0.9}, "workload_ratios[0].ratio: 0.9 is below 1"),
        ({"ratio": float("inf")}, "workload_ratios[0].ratio: must be a number"),
        ({"component": "gpu"}, "workload_ratios[0].component: must be cpu or memory"),
        ({"date": "2026-11-28"}, "date: '2026-11-28' is not a time with its zone"),
        ({"ratios": 2}, "unknown key workload_ratios[0].ratios; did you mean ratio?"),
    ],
)
def test_a_ratio_that_is_not_valid_names_the_key(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_calibrations([ratio_file(tmp_path, ratio_entry(**changes))], "node17")
    assert message in str(caught.value)


def test_two_ratios_of_one_component_are_refused(tmp_path: Path) -> None:
    first = ratio_file(tmp_path, ratio_entry())
    second = ratio_file(tmp_path, ratio_entry(ratio=3), name="second.yaml")
    with pytest.raises(ConfigError) as caught:
        load_calibrations([first, second], "node17")
    assert str(caught.value) == (
        f"{second}: workload_ratios[0]: cpu of node17 is calibrated in {first} too; keep one of them"
    )
