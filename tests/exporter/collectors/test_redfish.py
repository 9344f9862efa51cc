"""Redfish services of several vendors: quirks, sessions and faults, without a network."""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import responses
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from joulewatch_exporter.collectors.base.targets import TargetList
from joulewatch_exporter.collectors.redfish import client
from joulewatch_exporter.collectors.redfish.collector import RedfishCollector, RedfishOptions, RedfishTarget
from joulewatch_exporter.collectors.redfish.device import NS_PER_S, RedfishDevice, SampleClock
from joulewatch_exporter.collectors.redfish.plan import number, seconds
from joulewatch_exporter.config.strict import build
from joulewatch_exporter.errors import (
    ConfigError,
    SensorAbsentError,
    SensorDeniedError,
    SensorError,
    SensorGlitchError,
    SensorTimeoutError,
)
from joulewatch_exporter.model import Host
from joulewatch_exporter.sampling.family import Family
from joulewatch_exporter.sampling.primary import PrimarySensors
from joulewatch_exporter.server.exposition import Exposition
from support import golden
from support.clock import FakeClock
from support.fake_family import Machine, fake_family
from support.paths import ROOT
from support.redfish import PASSWORD, SESSIONS, Direct, FakeService, a_service, a_target, by_label, collection, link

GOLDEN = ROOT / "tests" / "exporter" / "golden"
CHASSIS = "/redfish/v1/Chassis"
NODE = "bmc1/total"
PIN = "AB:" * 31 + "CD"


def dell() -> dict[str, Any]:
    """An iDRAC: ids of words, sub-totals next to the system."""
    chassis = f"{CHASSIS}/System.Embedded.1"
    return {
        CHASSIS: collection(chassis),
        chassis: {
            "Id": "System.Embedded.1",
            "ChassisType": "RackMount",
            "Manufacturer": "Dell Inc.",
            "Model": "PowerEdge R750",
            "Power": link(f"{chassis}/Power"),
        },
        f"{chassis}/Power": {
            "PowerControl": [
                {"MemberId": "PowerControl", "Name": "System Power Control", "PowerConsumedWatts": 412},
                {"MemberId": "CPU", "Name": "CPU Power", "PowerConsumedWatts": 180},
                {"MemberId": "Memory", "Name": "Memory Power", "PowerConsumedWatts": 35},
            ],
            "PowerSupplies": [
                {"MemberId": "PSU.Slot.1", "PowerInputWatts": 210, "PowerOutputWatts": 195, "LastPowerOutputWatts": 7},
                {"MemberId": "PSU.Slot.2", "PowerInputWatts": None, "PowerOutputWatts": 0},
            ],
        },
    }


def hpe() -> dict[str, Any]:
    """An iLO: links with a trailing slash, members without a name."""
    return {
        CHASSIS: collection(f"{CHASSIS}/1/"),
        f"{CHASSIS}/1": {"Id": "1", "ChassisType": "RackMount", "Power": link(f"{CHASSIS}/1/Power/")},
        f"{CHASSIS}/1/Power": {
            "PowerControl": [{"MemberId": "0", "PowerConsumedWatts": 301, "PowerCapacityWatts": 1600}],
        },
    }


def supermicro() -> dict[str, Any]:
    """An X14: EnvironmentMetrics, but no Power."""
    return {
        CHASSIS: collection(f"{CHASSIS}/1"),
        f"{CHASSIS}/1": {"Id": "1", "EnvironmentMetrics": link(f"{CHASSIS}/1/EnvironmentMetrics")},
        f"{CHASSIS}/1/EnvironmentMetrics": {
            "PowerWatts": {"DataSourceUri": f"{CHASSIS}/1/Sensors/Total", "Reading": 512.5},
            "EnergykWh": {"Reading": 1234.567},
        },
    }


def openbmc() -> dict[str, Any]:
    """Sensors only, many of them."""
    sensors = f"{CHASSIS}/chassis/Sensors"
    names = ("temperature_inlet", "power_psu0_input_power", "power_cpu0_power", "power_total_power", "energy_total")
    return {
        CHASSIS: collection(f"{CHASSIS}/chassis"),
        f"{CHASSIS}/chassis": {"Id": "chassis", "ChassisType": "RackMount", "Sensors": link(sensors)},
        sensors: collection(*(f"{sensors}/{name}" for name in names)),
        f"{sensors}/power_psu0_input_power": power_sensor("psu0 input power", 170.25),
        f"{sensors}/power_cpu0_power": power_sensor("cpu0 power", 90),
        f"{sensors}/power_total_power": power_sensor("total power", 333.5),
        f"{sensors}/energy_total": {
            "Id": "energy_total",
            "Name": "energy total",
            "ReadingType": "EnergykWh",
            "ReadingUnits": "kW.h",
            "Reading": 2.503,
        },
    }


def power_sensor(name: str, watts: float | None, **further: Any) -> dict[str, Any]:
    return {
        "Id": f"power_{name.replace(' ', '_')}",
        "Name": name,
        "ReadingType": "Power",
        "ReadingUnits": "W",
        "Reading": watts,
    } | further


def lenovo() -> dict[str, Any]:
    """An XCC: the sub-totals have "system" in their names, the node does not."""
    resources = dell()
    resources[f"{CHASSIS}/System.Embedded.1/Power"]["PowerControl"] = [
        {"MemberId": "1", "Name": "CPU Sub-system Power", "PowerConsumedWatts": 90},
        {"MemberId": "2", "Name": "Memory Sub-system Power", "PowerConsumedWatts": 20},
        {"MemberId": "0", "Name": "Server Power Control", "PowerConsumedWatts": 280},
    ]
    return resources


def chassis_with_power(identity: str, watts: float | None, **further: Any) -> dict[str, Any]:
    path = f"{CHASSIS}/{identity}"
    return {
        path: {"Id": identity, "EnvironmentMetrics": link(f"{path}/EnvironmentMetrics")} | further,
        f"{path}/EnvironmentMetrics": {"PowerWatts": {"Reading": watts}},
    }


def many(*parts: dict[str, Any]) -> dict[str, Any]:
    resources: dict[str, Any] = {}
    for part in parts:
        resources |= part
    chassis = [path for path in resources if path.count("/") == 4]
    return {CHASSIS: collection(*chassis)} | resources


@pytest.fixture
def mock() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as active:
        yield active


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace fetching a certificate, which needs a network."""
    monkeypatch.setattr(client, "leaf_fingerprint", lambda host, port: PIN)


def opened(mock: responses.RequestsMock, resources: dict[str, Any], folder: Path, **settings: Any) -> RedfishDevice:
    FakeService(mock, resources)
    return a_service(folder, **settings).connect()


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"name": "a b"}, "name: 'a b' must not be empty or contain"),
        ({"name": "a/b"}, "name: 'a/b' must not be empty or contain"),
        ({"url": "bmc1"}, "url: must be https://HOST"),
        ({"url": "https://[::1"}, "url: must be https://HOST"),
        ({"url": "https://bmc1:99999"}, "url: must be https://HOST"),
        ({"url": "https://bmc1/redfish/v1/Chassis/1"}, "url: must end after host and port"),
        ({"url": "http://bmc1"}, "url: http:// sends the password unencrypted"),
        ({"url": "https://monitor:hunter2@bmc1"}, "url: must not contain a user or password"),
        ({"password_file": None}, "password_file: required"),
        ({"user": ""}, "user: required"),
        ({"insecure": True, "fingerprint": PIN}, "set only one of them"),
        ({"fingerprint": "AB:CD"}, "fingerprint: must be a SHA-256"),
        ({"interval_seconds": 0.5}, "interval_seconds: 0.5 is not between 1 and 3600"),
    ],
)
def test_errors_of_a_target_name_the_key_but_no_secret(tmp_path: Path, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=r"^[a-z_, ]+: ") as caught:
        a_target(tmp_path, **settings)
    assert text in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"interval_seconds": 0.0}, {"deadline_seconds": 0.1}])
def test_invalid_options_name_their_key(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(settings))}: "):
        RedfishOptions(**settings)


@pytest.mark.parametrize("text", [PIN, PIN.lower(), PIN.replace(":", ""), PIN.replace(":", " ")])
def test_formats_of_a_fingerprint(tmp_path: Path, text: str) -> None:
    assert a_target(tmp_path, fingerprint=text).pin == "ab" * 31 + "cd"


def test_paths_in_a_target_file_are_relative_to_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "targets.yaml"
    file.write_text(
        "defaults: {user: monitor, password_file: password, interval_seconds: 30}\n"
        "targets:\n"
        "- {name: bmc1, url: 'https://bmc1', ca_file: ca.pem}\n"
        "- {name: bmc2, url: 'https://10.0.0.2:8443/', auth: basic, energy: false}\n"
    )
    first, second = TargetList(RedfishTarget, (), file, where="collectors.redfish").read()
    assert (first.ca_file, first.password_file) == (tmp_path / "ca.pem", tmp_path / "password")
    assert (second.base, second.auth, second.interval_seconds) == ("https://10.0.0.2:8443", "basic", 30.0)


def test_a_password_in_the_configuration_is_rejected() -> None:
    """Otherwise it would be in a file that others can read; the error does not show it."""
    data = {"name": "bmc1", "url": "https://bmc1", "password": "hunter2"}
    with pytest.raises(ConfigError, match="did you mean password_file") as caught:
        build(RedfishTarget, data, "file.yaml", "targets[0]")
    assert "hunter2" not in str(caught.value)


# -- the family ------------------------------------------------------------------------------------


def test_without_targets_the_family_is_absent() -> None:
    with pytest.raises(SensorAbsentError, match=r"set collectors\.redfish\.targets"):
        RedfishCollector.open(Host(), RedfishOptions())


def test_without_its_library_the_family_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "requests", None)
    with pytest.raises(SensorAbsentError, match=r"pip install 'joulewatch\[redfish\]'"):
        RedfishCollector.open(Host(), RedfishOptions(targets=(a_target(tmp_path),)))


def test_an_invalid_target_file_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "targets.yaml"
    file.write_text("targets: [{name: bmc1, adress: x}]\n")
    with pytest.raises(ConfigError, match="unknown key targets"):
        RedfishCollector.open(Host(), RedfishOptions(targets_file=file))


def test_the_family_reads_in_the_background(tmp_path: Path, mock: responses.RequestsMock) -> None:
    service = FakeService(mock, dell())
    collector = RedfishCollector.open(Host(), RedfishOptions(targets=(a_target(tmp_path),)))
    try:
        collector.settle(10.0)
        (sensor,) = collector.sensors
        assert (sensor.device, by_label(sensor.read())[NODE]) == ("bmc1", (None, 412.0))
        assert collector.timing.manages_devices
        assert [finding.status for finding in collector.findings] == ["found"]
    finally:
        collector.close()
    assert not service.sessions, "the session was not ended"


# -- services of vendors --------------------------------------------------------------------------------


def test_dell(tmp_path: Path, mock: responses.RequestsMock) -> None:
    device = opened(mock, dell(), tmp_path)
    assert by_label(device.read()) == {
        NODE: (None, 412.0),
        "bmc1/cpu_power": (None, 180.0),
        "bmc1/memory_power": (None, 35.0),
        "bmc1/psu_slot_1_input": (None, 210.0),
        "bmc1/psu_slot_1_output": (None, 195.0),
    }
    node = device.infos[0]
    assert (node.method, node.resolution, node.model) == ("integrated", "1 W", "Dell Inc. PowerEdge R750")
    source = "https://bmc1/redfish/v1/Chassis/System.Embedded.1/Power#/PowerControl/0/PowerConsumedWatts"
    assert node.source == source
    assert [info.quantity.scope for info in device.infos] == ["node"] + ["part"] * 6
    assert [info.quantity.component for info in device.infos][:3] == ["node", "cpu", "memory"]
    assert {info.relation for info in device.infos[1:]} == {"inside"}


def test_hpe(tmp_path: Path, mock: responses.RequestsMock) -> None:
    resources = hpe()
    resources[f"{CHASSIS}/1/Power"]["PowerSupplies"] = [{"MemberId": "0", "LastPowerOutputWatts": 150}]
    readings = by_label(opened(mock, resources, tmp_path).read())
    assert readings == {NODE: (None, 301.0), "bmc1/psu0_output": (None, 150.0)}


def test_supermicro(tmp_path: Path, mock: responses.RequestsMock) -> None:
    device = opened(mock, supermicro(), tmp_path)
    (info,) = device.infos
    assert by_label(device.read()) == {NODE: (pytest.approx(1234.567 * 3.6e6, rel=1e-15), 512.5)}
    assert (info.method, info.resolution, info.wrap_joules) == ("counter", "3600 J", None)
    assert info.source.endswith("/EnvironmentMetrics#/EnergykWh/Reading")


def test_openbmc(tmp_path: Path, mock: responses.RequestsMock) -> None:
    service = FakeService(mock, openbmc())
    device = a_service(tmp_path).connect()
    assert by_label(device.read()) == {NODE: (pytest.approx(2.503 * 3.6e6), 333.5)}
    assert f"{CHASSIS}/chassis/Sensors/temperature_inlet" not in service.gets, "each request costs a BMC seconds"


def test_lenovo(tmp_path: Path, mock: responses.RequestsMock) -> None:
    readings = by_label(opened(mock, lenovo(), tmp_path).read())
    assert (readings[NODE], readings["bmc1/cpu_sub_system_power"]) == ((None, 280.0), (None, 90.0))


def test_modules_are_parts_of_the_server_that_contains_them(tmp_path: Path, mock: responses.RequestsMock) -> None:
    """A baseboard of GPUs between them is ignored, because it reports no power."""
    resources = many(
        chassis_with_power("HGX_GPU_SXM_1", 611.0, ChassisType="Module", Links={"ContainedBy": link(f"{CHASSIS}/HGX")}),
        {f"{CHASSIS}/HGX": {"Id": "HGX", "ChassisType": "Module", "Links": {"ContainedBy": link(f"{CHASSIS}/Self")}}},
        chassis_with_power("Self", 4100.0, ChassisType="RackMount"),
        chassis_with_power("NIC_0", 25.0, ChassisType="Component"),
    )
    device = opened(mock, resources, tmp_path)
    assert by_label(device.read()) == {
        NODE: (None, 4100.0),
        "bmc1/hgx_gpu_sxm_1": (None, 611.0),
        "bmc1/nic_0": (None, 25.0),
    }
    assert [info.quantity.component for info in device.infos] == ["node", "gpu", "node"]


def test_containment_may_be_stated_only_by_the_container(tmp_path: Path, mock: responses.RequestsMock) -> None:
    resources = many(
        chassis_with_power("Enclosure", 900.0, Links={"Contains": [link(f"{CHASSIS}/Blade1")]}),
        chassis_with_power("Blade1", 400.0, ChassisType="Blade"),
    )
    assert by_label(opened(mock, resources, tmp_path).read()) == {NODE: (None, 900.0), "bmc1/blade1": (None, 400.0)}


@pytest.mark.parametrize(
    ("enclosure", "blade"),
    [({}, {"ChassisType": "Blade"}), ({"ChassisType": "Enclosure"}, {"ChassisType": "RackMount"})],
    ids=["several blades", "an enclosure by its type"],
)
def test_the_servers_of_an_enclosure_are_nodes(
    tmp_path: Path, mock: responses.RequestsMock, enclosure: dict[str, Any], blade: dict[str, Any]
) -> None:
    inside = {"ContainedBy": link(f"{CHASSIS}/Enclosure")}
    resources = many(
        chassis_with_power("Rack", 9000.0, ChassisType="Rack"),
        chassis_with_power("Enclosure", 1000.0, Links={"ContainedBy": link(f"{CHASSIS}/Rack")}, **enclosure),
        chassis_with_power("Fans", 80.0, ChassisType="Module", Links=inside),
        *(
            chassis_with_power(
                name, power, Links=inside | {"ComputerSystems": [link(f"/redfish/v1/Systems/{name}")]}, **blade
            )
            for name, power in (("Blade1", 400.0), ("Blade2", 450.0))
        ),
    )
    device = opened(mock, resources, tmp_path)
    assert by_label(device.read()) == {
        "bmc1/Blade1/total": (None, 400.0),
        "bmc1/Blade2/total": (None, 450.0),
        "bmc1/rack": (None, 9000.0),
        "bmc1/enclosure": (None, 1000.0),
        "bmc1/fans": (None, 80.0),
    }
    assert [info.quantity.scope for info in device.infos] == ["node", "node", "part", "part", "part"]


def test_a_sled_whose_service_shows_its_enclosure_is_the_node(tmp_path: Path, mock: responses.RequestsMock) -> None:
    resources = many(
        chassis_with_power("Chassis.Embedded.1", 2000.0, ChassisType="Enclosure"),
        chassis_with_power(
            "System.Embedded.1", 210.0, ChassisType="Sled", Links={"ContainedBy": link(f"{CHASSIS}/Chassis.Embedded.1")}
        ),
    )
    readings = by_label(opened(mock, resources, tmp_path).read())
    assert readings == {NODE: (None, 210.0), "bmc1/chassis_embedded_1": (None, 2000.0)}


def test_an_enclosure_without_links_is_a_part(tmp_path: Path, mock: responses.RequestsMock) -> None:
    resources = many(
        chassis_with_power("EnclosureChassis", 900.0, ChassisType="Enclosure"),
        chassis_with_power(
            "1", 300.0, ChassisType="RackMount", Links={"ComputerSystems": [link("/redfish/v1/Systems/1")]}
        ),
    )
    readings = by_label(opened(mock, resources, tmp_path).read())
    assert readings == {NODE: (None, 300.0), "bmc1/enclosurechassis": (None, 900.0)}


def test_a_chassis_without_a_system_is_no_server_next_to_one_that_has_it(
    tmp_path: Path, mock: responses.RequestsMock
) -> None:
    """A baseboard of GPUs of AMD, whose type is that of a server and which no link connects to its server."""
    resources = many(
        chassis_with_power(
            "Self", 6000.0, ChassisType="RackMount", Links={"ComputerSystems": [link("/redfish/v1/Systems/1")]}
        ),
        chassis_with_power("UBB", 5000.0, ChassisType="RackMount"),
        chassis_with_power("OAM_0", 700.0, ChassisType="Module"),
    )
    readings = by_label(opened(mock, resources, tmp_path).read())
    assert readings == {NODE: (None, 6000.0), "bmc1/ubb": (None, 5000.0), "bmc1/oam_0": (None, 700.0)}


def test_the_drives_in_a_server_are_a_part(tmp_path: Path, mock: responses.RequestsMock) -> None:
    """Dell lists the backplane of the drives as a chassis, in some versions without a link."""
    resources = many(
        chassis_with_power("System.Embedded.1", 450.5, ChassisType="RackMount"),
        chassis_with_power("Enclosure.Internal.0-1", 125.3, ChassisType="StorageEnclosure"),
    )
    readings = by_label(opened(mock, resources, tmp_path).read())
    assert readings == {NODE: (None, 450.5), "bmc1/enclosure_internal_0_1": (None, 125.3)}


def test_a_cycle_of_containers_is_tolerated(tmp_path: Path, mock: responses.RequestsMock) -> None:
    resources = many(
        chassis_with_power("A", 1.0, Links={"ContainedBy": link(f"{CHASSIS}/B")}),
        {f"{CHASSIS}/B": {"Id": "B", "Links": {"ContainedBy": link(f"{CHASSIS}/A")}}},
    )
    assert by_label(opened(mock, resources, tmp_path).read()) == {NODE: (None, 1.0)}


def test_several_servers_have_different_devices(tmp_path: Path, mock: responses.RequestsMock) -> None:
    resources = many(
        chassis_with_power("n1", 300.0),
        chassis_with_power("n2", 310.0),
        chassis_with_power("m", 5.0, ChassisType="Module"),
    )
    service = FakeService(mock, resources)
    redfish = a_service(tmp_path)
    device = redfish.connect()
    assert by_label(device.read()) == {"bmc1/n1/total": (None, 300.0), "bmc1/n2/total": (None, 310.0)}
    assert [(f.status, f.subject.rpartition("/Chassis/")[2][:2]) for f in redfish.findings][-1] == ("skipped", "m/")
    service.resources[f"{CHASSIS}/n1/EnvironmentMetrics"] = 500
    assert by_label(device.read()) == {"bmc1/n2/total": (None, 310.0)}, "a failing server does not stop the other"


def test_a_chassis_can_be_selected(tmp_path: Path, mock: responses.RequestsMock) -> None:
    resources = many(chassis_with_power("n1", 300.0), chassis_with_power("n2", 310.0))
    FakeService(mock, resources)
    assert by_label(a_service(tmp_path, chassis="n2").connect().read()) == {NODE: (None, 310.0)}
    with pytest.raises(SensorAbsentError, match="no chassis n3; available: n1, n2"):
        a_service(tmp_path, chassis="n3").connect()


def test_pages_of_a_collection_are_followed(tmp_path: Path, mock: responses.RequestsMock) -> None:
    resources = many(chassis_with_power("a", None), chassis_with_power("b", 77.0))
    resources[CHASSIS] = collection(f"{CHASSIS}/a") | {"Members@odata.nextLink": f"{CHASSIS}/more"}
    resources[f"{CHASSIS}/more"] = collection(f"{CHASSIS}/b")
    assert by_label(opened(mock, resources, tmp_path).read()) == {NODE: (None, 77.0)}


def all_three() -> dict[str, Any]:
    resources = supermicro()
    chassis = resources[f"{CHASSIS}/1"]
    chassis["Power"], chassis["Sensors"] = link(f"{CHASSIS}/1/Power"), link(f"{CHASSIS}/1/Sensors")
    power = dell()[f"{CHASSIS}/System.Embedded.1/Power"]
    return resources | {f"{CHASSIS}/1/Power": power, f"{CHASSIS}/1/Sensors": collection()}


def test_one_of_several_sources_is_read_and_the_others_are_named(tmp_path: Path, mock: responses.RequestsMock) -> None:
    FakeService(mock, all_three())
    redfish = a_service(tmp_path)
    readings = by_label(redfish.connect().read())
    assert readings[NODE] == (pytest.approx(1234.567 * 3.6e6), 512.5)
    assert "bmc1/system_power_control" not in readings, "the node must not be published as a part again"
    assert readings["bmc1/psu_slot_1_input"] == (None, 210.0)
    (finding,) = redfish.findings
    assert finding.status == "found"
    assert "energy counter with steps of 3600 J, and power; other sources, not read: Power" in finding.text


def test_a_failing_source_is_replaced_and_reported(tmp_path: Path, mock: responses.RequestsMock) -> None:
    FakeService(mock, all_three() | {f"{CHASSIS}/1/EnvironmentMetrics": 500})
    redfish = a_service(tmp_path)
    assert by_label(redfish.connect().read())[NODE] == (None, 412.0)
    assert (redfish.findings[0].status, redfish.findings[0].text) == ("broken", "HTTP 500")


def test_a_source_without_values_is_replaced(tmp_path: Path, mock: responses.RequestsMock) -> None:
    resources = all_three()
    resources[f"{CHASSIS}/1/EnvironmentMetrics"] = {"PowerWatts": {"Reading": None}, "EnergykWh": {"Reading": None}}
    assert by_label(opened(mock, resources, tmp_path).read())[NODE] == (None, 412.0)


def test_a_poll_requests_only_the_needed_resources(tmp_path: Path, mock: responses.RequestsMock) -> None:
    service = FakeService(mock, all_three())
    device = a_service(tmp_path).connect()
    device.read()
    service.requests.clear()
    device.read()
    assert service.requests == [f"GET {CHASSIS}/1/EnvironmentMetrics", f"GET {CHASSIS}/1/Power"]
    device.close()
    plain = a_service(tmp_path, parts=False).connect()
    plain.read()
    service.requests.clear()
    plain.read()
    assert service.requests == [f"GET {CHASSIS}/1/EnvironmentMetrics"]


def test_the_first_values_come_from_the_discovery(tmp_path: Path, mock: responses.RequestsMock) -> None:
    service = FakeService(mock, all_three())
    a_service(tmp_path).connect().read()
    assert len(service.gets) == len(set(service.gets)), "a resource was requested twice"


# -- counters --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metrics", "energy", "resolution"),
    [
        ({"EnergyJoules": {"Reading": 987654321}}, 987654321.0, "1 J"),
        ({"EnergyJoules": {"Reading": 7}, "EnergykWh": {"Reading": 3.25}}, 7.0, "1 J"),
        ({"EnergykWh": {"Reading": 2.0, "LifetimeReading": 500.25}}, 500.25 * 3.6e6, "36000 J"),
        ({"EnergykWh": {"Reading": 20.25, "LifetimeReading": 0}}, 20.25 * 3.6e6, "36000 J"),
        ({"EnergykWh": {"Reading": 13}, "PowerWatts": {"Reading": None}}, 13 * 3.6e6, "3.6e+06 J"),
        ({"EnergyJoules": {"Reading": 0}, "EnergykWh": {"Reading": 3.25}}, 3.25 * 3.6e6, "36000 J"),
    ],
)
def test_counters(
    tmp_path: Path, mock: responses.RequestsMock, metrics: dict[str, Any], energy: float, resolution: str
) -> None:
    """Joules are preferred to kWh, and the lifetime counter to one that can be reset; a counter at 0 is not used."""
    resources = many(chassis_with_power("1", 100.0))
    resources[f"{CHASSIS}/1/EnvironmentMetrics"] |= metrics
    device = opened(mock, resources, tmp_path)
    power = None if "PowerWatts" in metrics else 100.0
    assert by_label(device.read()) == {NODE: (pytest.approx(energy), power)}
    assert (device.infos[0].method, device.infos[0].resolution) == ("counter", resolution)


@pytest.mark.parametrize(("reading", "step"), [(325675, "3.6e+06 J"), (63.9, "360000 J")])
def test_a_counter_with_coarse_steps_is_not_used_next_to_a_power(
    tmp_path: Path, mock: responses.RequestsMock, reading: float, step: str
) -> None:
    """DMTF's mockup counts whole kWh: at 374 W, the counter would stand still for 2.7 hours."""
    resources = many(chassis_with_power("1", 374.0))
    resources[f"{CHASSIS}/1/EnvironmentMetrics"]["EnergykWh"] = {"Reading": reading}
    FakeService(mock, resources)
    redfish = a_service(tmp_path)
    assert by_label(redfish.connect().read()) == {NODE: (None, 374.0)}
    assert f"EnergykWh has steps of {step}, so the power is integrated instead" in redfish.findings[0].text


def test_a_counter_at_zero_is_not_used(tmp_path: Path, mock: responses.RequestsMock) -> None:
    resources = supermicro()
    resources[f"{CHASSIS}/1/EnvironmentMetrics"]["EnergykWh"]["Reading"] = 0.0
    FakeService(mock, resources)
    redfish = a_service(tmp_path)
    assert by_label(redfish.connect().read()) == {NODE: (None, 512.5)}
    assert "EnergykWh is 0 and not used" in redfish.findings[0].text


def test_a_reset_counter_is_still_used(tmp_path: Path, mock: responses.RequestsMock) -> None:
    """A known counter at 0 is used even by a new discovery; otherwise the series would change its meaning."""
    service = FakeService(mock, supermicro())
    redfish = a_service(tmp_path)
    device = redfish.connect()
    device.read()
    metrics = service.resources.pop(f"{CHASSIS}/1/EnvironmentMetrics")
    with pytest.raises(SensorAbsentError, match="probing the service again"):
        device.read()
    device.close()
    metrics["EnergykWh"]["Reading"] = 0
    service.resources[f"{CHASSIS}/1/EnvironmentMetrics"] = metrics
    device = redfish.connect()
    assert by_label(device.read()) == {NODE: (0.0, 512.5)}
    assert device.infos[0].method == "counter"


def test_energy_counters_can_be_disabled(tmp_path: Path, mock: responses.RequestsMock) -> None:
    device = opened(mock, supermicro(), tmp_path, energy=False)
    assert by_label(device.read()) == {NODE: (None, 512.5)}
    assert device.infos[0].method == "integrated"


def test_power_is_read_while_the_counter_has_no_value(tmp_path: Path, mock: responses.RequestsMock) -> None:
    service = FakeService(mock, supermicro())
    device = a_service(tmp_path).connect()
    device.read()
    service.resources[f"{CHASSIS}/1/EnvironmentMetrics"]["EnergykWh"]["Reading"] = None
    assert by_label(device.read()) == {NODE: (None, 512.5)}


# -- missing values --------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, "", "312 W", "NaN", True, 0, 0.0, -5, [], {}, float("nan"), 10**400])
def test_invalid_values_are_glitches(tmp_path: Path, mock: responses.RequestsMock, value: Any) -> None:
    service = FakeService(mock, hpe())
    device = a_service(tmp_path).connect()
    device.read()
    service.resources[f"{CHASSIS}/1/Power"]["PowerControl"][0]["PowerConsumedWatts"] = value
    with pytest.raises(SensorGlitchError, match=r"https://bmc1/redfish/v1/Chassis/1/Power/?#.*no value \(null or 0\)"):
        device.read()
    service.resources[f"{CHASSIS}/1/Power"]["PowerControl"][0]["PowerConsumedWatts"] = 302
    assert by_label(device.read()) == {NODE: (None, 302.0)}


@given(st.one_of(st.none(), st.booleans(), st.text(), st.integers(), st.floats(), st.decimals()))
def test_a_number_is_finite_or_none(value: Any) -> None:
    result = number(value)
    assert result is None or abs(result) < float("inf")


def test_a_service_without_any_value_is_absent_and_probed_again(tmp_path: Path, mock: responses.RequestsMock) -> None:
    """A node that is off; once it is on, another source may be used."""
    resources = all_three()
    metrics = resources[f"{CHASSIS}/1/EnvironmentMetrics"]
    resources[f"{CHASSIS}/1/EnvironmentMetrics"] = {"PowerWatts": {"Reading": None}}
    resources[f"{CHASSIS}/1/Power"] = {"PowerControl": [{"MemberId": "0", "PowerConsumedWatts": 0}]}
    service = FakeService(mock, resources)
    redfish = a_service(tmp_path)
    with pytest.raises(SensorAbsentError, match=r"no value now \(null or 0\)"):
        redfish.connect()
    assert redfish.findings[0].status == "absent"
    service.resources[f"{CHASSIS}/1/EnvironmentMetrics"] = metrics
    assert by_label(redfish.connect().read())[NODE][1] == 512.5
    assert [finding.status for finding in redfish.findings] == ["found"]


def test_a_service_without_power_is_absent(tmp_path: Path, mock: responses.RequestsMock) -> None:
    FakeService(mock, {CHASSIS: collection(f"{CHASSIS}/1"), f"{CHASSIS}/1": {"Id": "1"}})
    with pytest.raises(SensorAbsentError, match="no chassis reports its power"):
        a_service(tmp_path).connect()


def test_the_service_is_probed_again_when_a_value_stays_missing(tmp_path: Path, mock: responses.RequestsMock) -> None:
    """A firmware update may remove the values of a resource and keep the resource."""
    service = FakeService(mock, all_three())
    redfish = a_service(tmp_path)
    device = redfish.connect()
    device.read()
    service.resources[f"{CHASSIS}/1/EnvironmentMetrics"] = {"PowerWatts": {"Reading": None}}
    for _ in range(5):
        with pytest.raises(SensorGlitchError):
            device.read()
    with pytest.raises(SensorAbsentError, match="probing the service again"):
        device.read()
    device.close()
    assert by_label(redfish.connect().read())[NODE] == (None, 412.0)


def test_failing_parts_do_not_affect_the_node(tmp_path: Path, mock: responses.RequestsMock) -> None:
    service = FakeService(mock, all_three())
    device = a_service(tmp_path).connect()
    device.read()
    for failure in (404, 500, b"no json", requests.exceptions.ReadTimeout()):
        service.resources[f"{CHASSIS}/1/Power"] = failure
        assert by_label(device.read()).keys() == {NODE}


# -- selecting the node ----------------------------------------------------------------------


@pytest.mark.parametrize(("member", "watts"), [("", 412.0), ("CPU", 180.0), ("Memory Power", 35.0)])
def test_the_member_of_the_node_can_be_selected(
    tmp_path: Path, mock: responses.RequestsMock, member: str, watts: float
) -> None:
    FakeService(mock, dell())
    redfish = a_service(tmp_path, power_control=member)
    assert by_label(redfish.connect().read())[NODE] == (None, watts)
    assert "of 3 members of PowerControl" in redfish.findings[0].text


def test_a_missing_member_is_reported(tmp_path: Path, mock: responses.RequestsMock) -> None:
    FakeService(mock, dell())
    redfish = a_service(tmp_path, power_control="Fans")
    with pytest.raises(SensorAbsentError, match="no chassis reports its power"):
        redfish.connect()


def test_a_sensor_can_be_selected(tmp_path: Path, mock: responses.RequestsMock) -> None:
    device = opened(mock, openbmc(), tmp_path, power_control="psu0 input power")
    assert by_label(device.read()) == {NODE: (None, 170.25)}


def test_members_are_identified_by_id_not_by_position(tmp_path: Path, mock: responses.RequestsMock) -> None:
    service = FakeService(mock, dell())
    device = a_service(tmp_path).connect()
    before = by_label(device.read())
    power = service.resources[f"{CHASSIS}/System.Embedded.1/Power"]
    power["PowerControl"].reverse()
    power["PowerSupplies"].reverse()
    assert by_label(device.read()) == before
    del power["PowerControl"][-1]
    with pytest.raises(SensorGlitchError):
        device.read()  # and does not return the CPUs' power


# -- timestamps -----------------------------------------------------------------------------------


def with_timestamp(watts: float, timestamp: str, **further: Any) -> dict[str, Any]:
    path = f"{CHASSIS}/1/Sensors/Total"
    resources = many(chassis_with_power("1", watts))
    resources[f"{CHASSIS}/1/EnvironmentMetrics"]["PowerWatts"]["DataSourceUri"] = path
    return resources | {path: power_sensor("Total", watts, ReadingTime=timestamp, Accuracy=2, **further)}


def test_a_sensor_with_timestamps_is_read_instead_of_its_excerpt(tmp_path: Path, mock: responses.RequestsMock) -> None:
    service = FakeService(mock, with_timestamp(200.0, "2026-01-01T00:00:10Z", SensingInterval="PT2S"))
    device = a_service(tmp_path).connect()
    (info,) = device.infos
    assert (info.source, info.accuracy) == ("https://bmc1/redfish/v1/Chassis/1/Sensors/Total#/Reading", 0.02)
    (first,) = device.read()
    service.requests.clear()
    (same,) = device.read()
    assert service.requests == [f"GET {CHASSIS}/1/Sensors/Total"]
    assert same is first, "the same sample keeps its time"
    service.resources[f"{CHASSIS}/1/Sensors/Total"] |= {"ReadingTime": "2026-01-01T00:00:10.001Z", "Reading": 201}
    (second,) = device.read()
    assert 0 < second.read_at_ns - first.read_at_ns <= 1_000_000, "a millisecond later by the sensor's clock"


def test_timestamps_can_be_disabled(tmp_path: Path, mock: responses.RequestsMock) -> None:
    device = opened(mock, with_timestamp(200.0, "2026-01-01T00:00:10Z"), tmp_path, reading_time=False)
    assert device.infos[0].source.endswith("/EnvironmentMetrics#/PowerWatts/Reading")


@pytest.mark.parametrize("timestamp", ["1970-01-01T00:00:00Z", "yesterday", "0001-01-01T00:00:00+14:00"])
def test_a_timestamp_that_does_not_change_with_the_value_is_ignored(
    tmp_path: Path, mock: responses.RequestsMock, timestamp: str
) -> None:
    service = FakeService(mock, with_timestamp(200.0, timestamp))
    device = a_service(tmp_path).connect()
    (first,) = device.read()
    service.resources[f"{CHASSIS}/1/Sensors/Total"]["Reading"] = 205
    (second,) = device.read()
    assert (second.power_watts, second.read_at_ns > first.read_at_ns) == (205.0, True)


def test_an_old_sample_is_a_glitch(
    tmp_path: Path, mock: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeService(mock, with_timestamp(200.0, "2026-01-01T00:00:10Z"))
    device = a_service(tmp_path).connect()
    device.read()
    now_ns = time.monotonic_ns()
    monkeypatch.setattr(time, "monotonic_ns", lambda: now_ns + 90 * NS_PER_S)
    with pytest.raises(SensorGlitchError, match=r"sample that is 90 s old.*reading_time: false"):
        device.read()


def test_an_old_position_of_a_counter_is_valid(
    tmp_path: Path, mock: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{CHASSIS}/1/Sensors/Energy"
    resources = many(chassis_with_power("1", 200.0))
    resources[f"{CHASSIS}/1/EnvironmentMetrics"] = {"EnergykWh": {"DataSourceUri": path, "Reading": 5.5}}
    sensor = power_sensor("Energy", 5.5, ReadingTime="2026-01-01T00:00:10Z")
    resources[path] = sensor | {"ReadingType": "EnergykWh", "ReadingUnits": "kW.h"}
    device = opened(mock, resources, tmp_path)
    (first,) = device.read()
    assert first.energy_joules == 5.5 * 3.6e6
    now_ns = time.monotonic_ns()
    monkeypatch.setattr(time, "monotonic_ns", lambda: now_ns + 900 * NS_PER_S)
    assert device.read() == [first]


@given(st.lists(st.tuples(st.floats(0.1, 60), st.floats(0, 5)), min_size=1, max_size=20), st.floats(-1e9, 1e9))
def test_samples_are_never_placed_after_their_read(delays: list[tuple[float, float]], offset_s: float) -> None:
    """Their distances are exact once the least delay has been observed."""
    clock = SampleClock()
    sampled_ns, places = round(1e18), []
    for step_s, delay_s in [(1.0, 0.0), *delays]:
        sampled_ns += round(step_s * 1e9)
        read_at_ns = sampled_ns + round(offset_s * 1e9) + round(delay_s * 1e9)
        places.append((sampled_ns, clock.place(sampled_ns, read_at_ns), read_at_ns))
    for (sampled, placed, read), (later, placed_later, _) in itertools.pairwise(places):
        assert placed <= read
        assert placed_later - placed == later - sampled


def test_the_offset_is_estimated_again_when_the_clock_is_set_back() -> None:
    clock = SampleClock()
    clock.place(1000 * NS_PER_S, 5 * NS_PER_S)
    assert clock.place(10 * NS_PER_S, 15 * NS_PER_S) == 15 * NS_PER_S


@pytest.mark.parametrize(
    ("text", "value"),
    [("PT1S", 1.0), ("PT0.5S", 0.5), ("P1DT2H3M4S", 93784.0), ("PT0S", None), ("", None), ("1 s", None), (None, None)],
)
def test_durations(text: Any, value: float | None) -> None:
    assert seconds(text) == value


# -- sessions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 204])
@pytest.mark.parametrize("location", ["{path}", "https://10.1.1.1{path}", "http://bmc1{path}"])
def test_a_session_is_opened_reused_and_closed(
    tmp_path: Path, mock: responses.RequestsMock, status: int, location: str
) -> None:
    """Its address may contain another host; only its path is used."""
    service = FakeService(mock, hpe())
    service.login_status, service.location = status, location
    device = a_service(tmp_path).connect()
    for _ in range(3):
        device.read()
    assert service.logins == 1
    device.close()
    device.close()
    assert not service.sessions
    assert service.requests[-1] == f"DELETE {SESSIONS}/1"


def test_the_address_of_a_session_may_be_in_the_body(tmp_path: Path, mock: responses.RequestsMock) -> None:
    service = FakeService(mock, hpe())
    service.location, service.login_body = "", {"@odata.id": f"{SESSIONS}/1"}
    a_service(tmp_path).connect().close()
    assert not service.sessions


def test_a_login_without_a_token_is_an_error(tmp_path: Path, mock: responses.RequestsMock) -> None:
    service = FakeService(mock, hpe())
    service.token = ""
    with pytest.raises(SensorAbsentError, match="login answered HTTP 201 without a token; try auth: basic"):
        a_service(tmp_path).connect()


@pytest.mark.parametrize("is_open", [True, False])
def test_sessions_are_found_through_the_session_service(
    tmp_path: Path, mock: responses.RequestsMock, is_open: bool
) -> None:
    """If it can be read without a login; otherwise each request sends the password."""
    service_path = "/redfish/v1/SessionService"
    resources = hpe() | {
        "/redfish/v1": {"Links": {}, "SessionService": link(service_path)},
        service_path: {"Sessions": link(SESSIONS)},
    }
    service = FakeService(mock, resources)
    if is_open:
        service.open_paths.add(service_path)
    redfish = a_service(tmp_path)
    assert by_label(redfish.connect().read()) == {NODE: (None, 301.0)}
    assert service.logins == int(is_open)
    assert ("has no sessions" in redfish.findings[-1].text) is not is_open


@pytest.mark.parametrize("settings", [{"auth": "basic"}, {}])
def test_basic_auth(tmp_path: Path, mock: responses.RequestsMock, settings: dict[str, Any]) -> None:
    """Set in the configuration, or because the service has no sessions; the password is sent as UTF-8."""
    resources = hpe()
    if not settings:
        resources["/redfish/v1"] = {"Links": {}}
    service = FakeService(mock, resources)
    device = a_service(tmp_path, **settings).connect()
    assert by_label(device.read()) == {NODE: (None, 301.0)}
    device.close()
    assert service.logins == 0


def test_basic_auth_is_used_if_the_root_needs_a_login(tmp_path: Path, mock: responses.RequestsMock) -> None:
    service = FakeService(mock, hpe())
    service.open_paths.clear()
    assert by_label(a_service(tmp_path).connect().read()) == {NODE: (None, 301.0)}


def test_an_expired_session_is_renewed_once(tmp_path: Path, mock: responses.RequestsMock) -> None:
    service = FakeService(mock, hpe())
    device = a_service(tmp_path).connect()
    device.read()
    service.sessions.clear()
    assert by_label(device.read()) == {NODE: (None, 301.0)}
    assert service.logins == 2
    service.resources[f"{CHASSIS}/1/Power"] = 401
    with pytest.raises(SensorDeniedError, match=r"login of user monitor denied \(HTTP 401\)"):
        device.read()
    assert service.logins == 3
    device.close()
    assert not service.sessions


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_wrong_password_is_denied(tmp_path: Path, mock: responses.RequestsMock, status: int) -> None:
    service = FakeService(mock, hpe())
    service.login_status = status
    with pytest.raises(SensorDeniedError, match=rf"login of user monitor denied \(HTTP {status}\).*password"):
        a_service(tmp_path).connect()


def test_a_missing_login_is_denied(tmp_path: Path, mock: responses.RequestsMock) -> None:
    FakeService(mock, hpe())
    with pytest.raises(SensorDeniedError, match=r"a login is required.*set user and password_file"):
        a_service(tmp_path, user="", password_file=None).connect()


def test_a_missing_permission_is_denied(tmp_path: Path, mock: responses.RequestsMock) -> None:
    resources = hpe() | {f"{CHASSIS}/1/Power": 403}
    service = FakeService(mock, resources)
    with pytest.raises(SensorDeniedError, match="user monitor lacks permission; grant the role ReadOnly"):
        a_service(tmp_path).connect()
    assert not service.sessions


def test_a_service_without_free_sessions_is_retried(tmp_path: Path, mock: responses.RequestsMock) -> None:
    service = FakeService(mock, hpe())
    service.login_status = 503
    service.login_body = {"error": {"@Message.ExtendedInfo": [{"MessageId": "Base.1.8.SessionLimitExceeded"}]}}
    with pytest.raises(SensorTimeoutError, match=r"all sessions of the service are in use.*auth: basic"):
        a_service(tmp_path).connect()


def test_a_session_is_ended_when_connecting_fails(tmp_path: Path, mock: responses.RequestsMock) -> None:
    service = FakeService(mock, hpe())
    redfish = a_service(tmp_path)
    for failure in (503, 500, 404, b"[", requests.exceptions.ReadTimeout(), requests.exceptions.ConnectionError()):
        service.resources[CHASSIS] = failure
        with pytest.raises(SensorError):
            redfish.connect()
        assert not service.sessions, failure


def test_a_session_that_could_not_be_ended_is_ended_later(tmp_path: Path, mock: responses.RequestsMock) -> None:
    """A hanging service keeps its sessions, of which there are few."""
    service = FakeService(mock, hpe())
    redfish = a_service(tmp_path)
    for failure in (requests.exceptions.ReadTimeout(), 503):
        device = redfish.connect()
        device.read()
        path = f"DELETE {next(iter(service.sessions.values()))}"
        sessions = dict(service.sessions)
        service.resources[path] = failure
        device.close()
        service.sessions = sessions
        del service.resources[path]
        again = redfish.connect()
        again.read()
        again.close()
        assert not service.sessions, failure


def test_ending_a_session_is_retried_only_once(tmp_path: Path, mock: responses.RequestsMock) -> None:
    service = FakeService(mock, hpe())
    redfish = a_service(tmp_path)
    for count in range(1, 4):
        service.resources[f"DELETE {SESSIONS}/{count}"] = 500
        device = redfish.connect()
        device.read()
        device.close()
    deletes = [entry for entry in service.requests if entry.startswith("DELETE")]
    assert deletes == [f"DELETE {SESSIONS}/{count}" for count in (1, 1, 2, 2, 3)]


def test_the_password_is_read_at_each_login(tmp_path: Path, mock: responses.RequestsMock) -> None:
    FakeService(mock, hpe())
    redfish = a_service(tmp_path)
    password_file = redfish.target.password_file
    assert password_file is not None
    password_file.write_text("old\n")
    with pytest.raises(SensorDeniedError):
        redfish.connect()
    password_file.write_text(f"{PASSWORD}\n")
    redfish.connect().read()
    password_file.unlink()
    with pytest.raises(SensorDeniedError, match="password file: No such file"):
        redfish.connect().read()


def test_secrets_are_not_shown(
    tmp_path: Path, mock: responses.RequestsMock, caplog: pytest.LogCaptureFixture, no_network: None
) -> None:
    caplog.set_level(logging.DEBUG)
    service = FakeService(mock, hpe())
    redfish = a_service(tmp_path)
    outputs = [repr(redfish.target), repr(redfish)]
    device = redfish.connect()
    device.read()
    outputs += [repr(device), repr(vars(device)), repr(vars(redfish))]
    failures = (401, 500, b"x", requests.exceptions.SSLError("certificate verify failed"), requests.ConnectionError())
    for failure in failures:
        service.resources[f"{CHASSIS}/1/Power"] = failure
        with pytest.raises(SensorError) as caught:
            device.read()
        outputs += [repr(caught.value), str(caught.value), *(repr(finding) for finding in redfish.findings)]
    service.login_status = 401
    with pytest.raises(SensorError) as caught:
        redfish.connect().read()
    outputs += [repr(caught.value), caplog.text]
    assert not [text for text in outputs if PASSWORD in text or "t0ken" in text]


# -- exposition ---------------------------------------------------------------------------


def test_golden(
    tmp_path: Path, mock: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch, update_golden: bool
) -> None:
    """A BMC with a counter and one without, after 30 s; reviewed as text."""
    clock = FakeClock()
    monkeypatch.setattr(time, "monotonic_ns", clock.monotonic_ns)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now_ns / NS_PER_S)
    services = {
        "x14": FakeService(mock, supermicro(), url="https://x14"),
        "idrac": FakeService(mock, dell(), url="https://idrac"),
    }
    devices = {name: a_service(tmp_path, name=name, url=f"https://{name}").connect() for name in services}
    sensors: list[Any] = [Direct(name, device) for name, device in devices.items()]
    family = Family(fake_family("redfish", Machine(sensors=sensors)).open(Host(), None), clock=clock)
    scan = family.scan()
    for _ in range(3):
        clock.advance(10.0)
        services["x14"].resources[f"{CHASSIS}/1/EnvironmentMetrics"]["EnergykWh"]["Reading"] += 0.001
        services["idrac"].resources[f"{CHASSIS}/System.Embedded.1/Power"]["PowerControl"][0]["PowerConsumedWatts"] += 2
        scan = family.scan()
    primary = PrimarySensors("node17").choose([("redfish", scan.layout)])
    exposition = Exposition(emulated=False, start_s=1.0, nodename="node17", self_metrics=False)
    text = exposition.render([scan], "text", primary=primary).decode()
    lines = [line for line in text.splitlines(keepends=True) if 'collector="redfish"' in line]
    golden.check("".join(lines), GOLDEN / "redfish.prom", update=update_golden)


@pytest.mark.parametrize(("this_machine", "host"), [(False, "bmc1"), (True, "node17")])
def test_a_service_is_read_over_the_network_whoever_it_belongs_to(
    mock: responses.RequestsMock, tmp_path: Path, this_machine: bool, host: str
) -> None:
    (info,) = opened(mock, hpe(), tmp_path, this_machine=this_machine).infos
    assert (info.read_mode, info.period_s, info.host("node17")) == ("remote", 10.0, host)


def test_each_server_of_an_enclosure_is_a_host(mock: responses.RequestsMock, tmp_path: Path) -> None:
    resources = many(chassis_with_power("a", 100.0), chassis_with_power("b", 200.0))
    infos = opened(mock, resources, tmp_path).infos
    assert [info.host("node17") for info in infos] == ["bmc1/a", "bmc1/b"]


# -- invalid answers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"<html>", "the answer is not valid JSON"),
        (b"[1]", "the answer is not a JSON object"),
        (b"[" * 9_000, "the answer is not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "the answer is not valid JSON"),
        (b" " * (client.MAX_BODY_BYTES + 1), "answer longer than 256 KiB"),
        (b'{"a": [' + b",".join([b"{}"] * 5_000) + b"]}", "answer with more than 10000 JSON values"),
        (500, "HTTP 500"),
        (503, "HTTP 503"),
        (418, "HTTP 418"),
        ((302, {"Location": "/redfish/v1/Chassis/1/Power"}, ""), "redirected more than 3 times"),
        ((302, {"Location": "https://evil.example/x"}, ""), "link to another host"),
    ],
)
def test_invalid_answers_are_glitches_that_name_the_url(
    tmp_path: Path, mock: responses.RequestsMock, answer: Any, text: str
) -> None:
    service = FakeService(mock, hpe())
    device = a_service(tmp_path).connect()
    device.read()
    service.resources[f"{CHASSIS}/1/Power"] = answer
    with pytest.raises(SensorGlitchError, match=f"^https://bmc1.*{text}"):
        device.read()
    assert service.sessions, "the session was ended"


def test_a_redirect_on_the_same_host_is_followed(tmp_path: Path, mock: responses.RequestsMock) -> None:
    service = FakeService(mock, hpe())
    device = a_service(tmp_path).connect()
    device.read()
    service.resources["/new"] = service.resources[f"{CHASSIS}/1/Power"]
    service.resources[f"{CHASSIS}/1/Power"] = (308, {"Location": "https://bmc1/new"}, "")
    assert by_label(device.read()) == {NODE: (None, 301.0)}


def test_links_to_other_hosts_are_not_followed(tmp_path: Path, mock: responses.RequestsMock) -> None:
    """Other hosts would receive the token; ``responses`` fails for any request to another host."""
    resources = hpe()
    resources[f"{CHASSIS}/1"]["Power"] = link("https://evil.example/redfish/v1/Power")
    service = FakeService(mock, resources)
    redfish = a_service(tmp_path)
    with pytest.raises(SensorAbsentError, match="no chassis reports its power"):
        redfish.connect()
    resources[f"{CHASSIS}/1"]["Power"] = link("//evil.example/x")
    with pytest.raises(SensorAbsentError):
        redfish.connect()
    assert not service.sessions


def test_a_starting_service_is_retried(tmp_path: Path, mock: responses.RequestsMock) -> None:
    FakeService(mock, hpe() | {CHASSIS: 503})
    with pytest.raises(SensorTimeoutError, match="HTTP 503"):
        a_service(tmp_path).connect()


def connection_cut() -> requests.exceptions.ConnectionError:
    return requests.exceptions.ConnectionError(urllib3.exceptions.ProtocolError("aborted", ConnectionResetError()))


def test_a_closed_connection_is_renewed_once(tmp_path: Path, mock: responses.RequestsMock) -> None:
    """Services close idle connections, sometimes just as the next request is sent."""
    service = FakeService(mock, hpe())
    device = a_service(tmp_path).connect()
    device.read()
    answers: list[Any] = [connection_cut(), service.resources[f"{CHASSIS}/1/Power"]]

    class Once(dict[str, Any]):
        def get(self, path: str, default: Any = None) -> Any:
            return answers.pop(0) if path.endswith("/Power") else super().get(path, default)

    service.resources = Once(service.resources)
    assert by_label(device.read()) == {NODE: (None, 301.0)}
    answers += [connection_cut(), connection_cut()]
    with pytest.raises(SensorTimeoutError, match="closed the connection without answering"):
        device.read()


@pytest.mark.parametrize(
    ("failure", "kind", "text"),
    [
        (requests.exceptions.ConnectTimeout(), SensorTimeoutError, "no connection within"),
        (requests.exceptions.ReadTimeout(), SensorTimeoutError, "no answer within 10 s"),
        (requests.exceptions.ConnectionError(OSError(111, "Connection refused")), SensorAbsentError, "refused"),
        (requests.exceptions.ConnectionError(), SensorAbsentError, "no connection"),
        (requests.exceptions.SSLError("wrong version number"), SensorAbsentError, "bmc1: TLS: wrong version number"),
        (requests.exceptions.InvalidURL(), SensorGlitchError, "InvalidURL"),
    ],
)
def test_network_errors(
    tmp_path: Path, mock: responses.RequestsMock, failure: Exception, kind: type[SensorError], text: str
) -> None:
    service = FakeService(mock, hpe())
    device = a_service(tmp_path).connect()
    device.read()
    service.resources[f"{CHASSIS}/1/Power"] = failure
    with pytest.raises(kind, match=text):
        device.read()


def test_all_requests_of_a_connect_share_a_deadline(
    tmp_path: Path, mock: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A discovery that takes too long is continued by the next one: large services have a hundred chassis."""
    resources = many(*(chassis_with_power(f"n{i}", 100.0 + i) for i in range(12)))
    service = FakeService(mock, resources)
    redfish = a_service(tmp_path, deadline_s=5.0)
    now_s = [1000.0]
    real_get = client.Client.get

    def slow_get(self: client.Client, path: str) -> Any:
        now_s[0] += 1.0
        return real_get(self, path)

    monkeypatch.setattr(client.Client, "get", slow_get)
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    attempts = 0
    while redfish.plan is None:
        attempts += 1
        try:
            redfish.connect().close()
        except SensorTimeoutError as error:
            assert "no answer within 5 s" in str(error)
        assert attempts < 20
    assert attempts > 2
    chassis_gets = [path for path in service.gets if path.startswith(f"{CHASSIS}/")]
    assert len(redfish.plan.series) == 12
    assert len(chassis_gets) == len(set(chassis_gets)), "a resource was requested twice"
    assert not service.sessions


# -- certificates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, f"^bmc1: its certificate is not trusted .*ca_file.*insecure: true.*{PIN}"),
        ({"fingerprint": "00" * 32}, f"^bmc1: its certificate is not the pinned one.*{PIN}"),
    ],
)
def test_an_untrusted_certificate_names_host_and_fix(
    tmp_path: Path, mock: responses.RequestsMock, no_network: None, settings: dict[str, Any], text: str
) -> None:
    mock.add(
        responses.GET,
        "https://bmc1/redfish/v1/",
        body=requests.exceptions.SSLError("certificate verify failed: Fingerprints did not match"),
    )
    redfish = a_service(tmp_path, **settings)
    with pytest.raises(SensorDeniedError, match=text):
        redfish.connect()
    (finding,) = redfish.findings
    assert (finding.status, finding.subject, finding.cure) == ("denied", "bmc1", f"fingerprint: {PIN}")


@pytest.mark.parametrize(
    ("content", "text"), [(None, "No such file"), ("not a certificate", "contains no certificate in PEM format")]
)
def test_an_invalid_ca_file_is_denied(tmp_path: Path, content: str | None, text: str) -> None:
    ca_file = tmp_path / "ca.pem"
    if content is not None:
        ca_file.write_text(content)
    with pytest.raises(SensorDeniedError, match=f"{ca_file}: ca_file: {text}"):
        a_service(tmp_path, ca_file=ca_file).connect()


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"insecure": True}, "TLS is not verified"), ({"insecure": True, "url": "http://bmc1"}, "not encrypted")],
)
def test_insecure_settings_are_reported(
    tmp_path: Path, mock: responses.RequestsMock, settings: dict[str, Any], text: str
) -> None:
    FakeService(mock, hpe(), url=settings.get("url", "https://bmc1"))
    redfish = a_service(tmp_path, **settings)
    redfish.connect().read()
    assert [text in finding.text for finding in redfish.findings] == [False, True]


def test_environment_variables_of_requests_are_ignored(
    tmp_path: Path, mock: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxies would get the password, and REQUESTS_CA_BUNDLE would replace the trusted certificates."""
    for name in ("HTTPS_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, "http://evil.example")
    FakeService(mock, hpe())
    redfish = a_service(tmp_path)
    redfish.connect().read()
    sent = mock.calls[0].request
    assert isinstance(sent.req_kwargs, dict)  # type: ignore[attr-defined]
    assert not sent.req_kwargs["proxies"]  # type: ignore[attr-defined]
    assert "evil" not in str(sent.req_kwargs["verify"])  # type: ignore[attr-defined]
