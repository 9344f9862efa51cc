"""Tests of the description of an emulated Redfish service; the integration tests read the service."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from joulewatch_exporter.emulator.faults import MOMENTARY_FAULTS, Fault
from joulewatch_exporter.emulator.redfish.service import RedfishService
from joulewatch_exporter.emulator.redfish.spec import REDFISH_FAULTS, RedfishSpec
from joulewatch_exporter.emulator.signals import Constant
from joulewatch_exporter.errors import ConfigError


def test_the_key_is_the_device_and_domain_of_the_exporter() -> None:
    assert "bmc1/total" in RedfishSpec(name="bmc1", signal=Constant(1.0)).truth


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"name": "a b"}, "name"),
        ({"user": "a:b"}, "user"),
        ({"password": ""}, "password"),
        ({"address": "localhost"}, "address"),
        ({"port": 70000}, "port"),
        ({"chassis": ()}, "chassis"),
        ({"chassis": ("1", "1")}, "chassis"),
        ({"chassis": ("a/b",)}, "chassis"),
        ({"refresh_s": 0.0}, "refresh_s"),
        ({"energy_digits": 7}, "energy_digits"),
        ({"power_digits": -1}, "power_digits"),
        ({"energy_start_joules": -1.0}, "energy_start_joules"),
        ({"supplies": (-0.5,)}, "supplies"),
        ({"feeds": (0.5, 0.4)}, "feeds"),
        ({"feeds": (1.5, -0.5)}, "feeds"),
        ({"supply_efficiency": 1.5}, "supply_efficiency"),
        ({"max_sessions": 0}, "max_sessions"),
        ({"session_timeout_s": 0.0}, "session_timeout_s"),
        ({"faults": (Fault(kind="melt", at_s=0.0, for_s=1.0),)}, r"faults\[0\].kind"),
    ],
)
def test_an_invalid_value_is_named_by_its_key(fields: dict[str, Any], key: str) -> None:
    values: dict[str, Any] = {"name": "bmc1", "signal": Constant(1.0)} | fields
    with pytest.raises(ValueError, match=f"^{key}: "):
        RedfishSpec(**values)


def test_all_kinds_of_faults_are_accepted() -> None:
    faults = tuple(
        Fault(kind=kind, at_s=1.0, for_s=0.0 if kind in MOMENTARY_FAULTS else 1.0) for kind in REDFISH_FAULTS
    )
    assert RedfishSpec(name="bmc1", signal=Constant(1.0), faults=faults).faults == faults


def test_without_openssl_and_cryptography_the_error_names_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(ConfigError, match="openssl, or: pip install cryptography"):
        RedfishService(RedfishSpec(name="bmc1", signal=Constant(1.0)), tmp_path)


def test_the_password_is_not_shown() -> None:
    assert "hunter2" not in repr(RedfishSpec(name="bmc1", signal=Constant(1.0), password="hunter2"))
