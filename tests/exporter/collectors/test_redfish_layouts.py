"""Where public layouts of Redfish services have the power of a server, its feeds, its supplies and its GPUs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import responses

from joulewatch_exporter.collectors.redfish.device import MISSES, NS_PER_S, RedfishDevice, Service
from joulewatch_exporter.errors import SensorAbsentError, SensorGlitchError
from joulewatch_exporter.model import Host
from joulewatch_exporter.sampling.family import Family
from joulewatch_exporter.sampling.primary import PrimarySensors
from joulewatch_exporter.server.exposition import Exposition
from support import golden
from support.clock import FakeClock
from support.fake_family import Machine, fake_family
from support.paths import ROOT
from support.redfish import Direct, FakeService, Resources, a_service, by_label, collection, link
from support.redfish_layouts import (
    CHASSIS,
    chassis_with,
    control,
    enclosure,
    fujitsu,
    hgx,
    hgx_sensors,
    only_supplies,
    power_subsystem,
    r720,
    two_feeds,
    with_power,
    with_report,
)

GOLDEN = ROOT / "tests" / "exporter" / "golden" / "redfish_layouts.prom"
NODE = "bmc1/total"
SUPPLIES = "bmc1/supply_inputs"
POWER = f"{CHASSIS}/1/Power"


@pytest.fixture
def mock() -> Any:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as active:
        yield active


def watts(device: RedfishDevice) -> dict[str, float | None]:
    return {label: power for label, (_, power) in by_label(device.read()).items()}


def opened(mock: responses.RequestsMock, resources: Resources, folder: Path, **settings: Any) -> RedfishDevice:
    FakeService(mock, resources)
    return a_service(folder, **settings).connect()


def texts(service: Service) -> Sequence[str]:
    return [f"{finding.status}: {finding.text}" for finding in service.findings]


# -- feeds and servers ----------------------------------------------------------------------------------


def test_feeds_of_a_server_are_summed(tmp_path: Path, mock: responses.RequestsMock) -> None:
    fake = FakeService(mock, two_feeds(344, 53))
    service = a_service(tmp_path)
    device = service.connect()
    assert watts(device) == {NODE: 397.0}
    assert device.infos[0].source == (
        f"https://bmc1{POWER}#/PowerControl/0/PowerConsumedWatts + #/PowerControl/1/PowerConsumedWatts"
    )
    (text,) = texts(service)
    assert "of 2 members of PowerControl, 2 are feeds of this server and summed ('System Power Control')" in text
    fake.requests.clear()
    device.read()
    assert fake.requests == [f"GET {POWER}"]


@pytest.mark.parametrize("name", ["MemberId", ""])
def test_feeds_are_distinguished_without_an_id(tmp_path: Path, mock: responses.RequestsMock, name: str) -> None:
    resources = two_feeds(344, 53)
    for member in resources[POWER]["PowerControl"]:
        member.pop("MemberId")
        member |= {name: "PowerControl"} if name else {}
    assert watts(opened(mock, resources, tmp_path)) == {NODE: 397.0}


@pytest.mark.parametrize(
    ("second", "total"), [(0, 344.0), (None, None), ("", None), (-3, None)], ids=["idle", "null", "text", "negative"]
)
def test_a_feed_without_a_value_makes_the_sum_absent(
    tmp_path: Path, mock: responses.RequestsMock, second: Any, total: float | None
) -> None:
    """The second feed may be idle, but a missing value would make the sum too small."""
    fake = FakeService(mock, two_feeds(344, 53))
    device = a_service(tmp_path).connect()
    device.read()
    fake.resources[POWER]["PowerControl"][1]["PowerConsumedWatts"] = second
    if total is None:
        with pytest.raises(SensorGlitchError, match="no value"):
            device.read()
    else:
        assert watts(device) == {NODE: total}
    del fake.resources[POWER]["PowerControl"][1]
    with pytest.raises(SensorGlitchError, match="no value"):
        device.read()


@pytest.mark.parametrize(("selected", "total"), [("2", 53.0), ("System Power Control", 397.0)])
def test_a_feed_can_be_selected_by_its_id(
    tmp_path: Path, mock: responses.RequestsMock, selected: str, total: float
) -> None:
    assert watts(opened(mock, two_feeds(), tmp_path, power_control=selected))[NODE] == total


def test_the_same_name_without_the_same_related_item_is_not_a_feed(
    tmp_path: Path, mock: responses.RequestsMock
) -> None:
    resources = with_power({"PowerControl": [control("Power", 344, MemberId="0"), control("Power", 53, MemberId="1")]})
    assert watts(opened(mock, resources, tmp_path)) == {NODE: 344.0, "bmc1/power": 53.0}


def test_members_named_after_supplies_are_feeds(tmp_path: Path, mock: responses.RequestsMock) -> None:
    resources = with_power({"PowerControl": [control("PSU1 Power", 200, CHASSIS), control("PSU2 Power", 150, CHASSIS)]})
    # Their names differ, but nothing else is the node.
    assert watts(opened(mock, resources, tmp_path)) == {NODE: 350.0}


def test_a_slash_at_the_end_of_a_link_does_not_matter(tmp_path: Path, mock: responses.RequestsMock) -> None:
    resources = two_feeds(344, 53)
    second = resources[POWER]["PowerControl"][1]
    second["RelatedItem"] = [link(f"{entry['@odata.id']}/") for entry in second["RelatedItem"]]
    module = f"{CHASSIS}/NIC"
    resources[CHASSIS] = collection(f"{CHASSIS}/1", module)
    resources[module] = {
        "Id": "NIC",
        "EnvironmentMetrics": link(f"{module}/EnvironmentMetrics"),
        "Links": {"ContainedBy": link(f"{CHASSIS}/1/")},
    }
    resources[f"{module}/EnvironmentMetrics"] = {"PowerWatts": {"Reading": 25}}
    assert watts(opened(mock, resources, tmp_path)) == {NODE: 397.0, "bmc1/nic": 25.0}


def test_only_the_inputs_of_supplies_are_feeds(tmp_path: Path, mock: responses.RequestsMock) -> None:
    names = {"PSU1_PIN": 120, "PSU1_POUT": 110, "PSU2_PIN": 130, "PSU2_POUT": 115}
    controls = [control(name, value, CHASSIS) for name, value in names.items()]
    readings = watts(opened(mock, with_power({"PowerControl": controls}), tmp_path))
    assert readings == {NODE: 250.0, "bmc1/psu1_pout": 110.0, "bmc1/psu2_pout": 115.0}


@pytest.mark.parametrize("name", ["", "Power Control"])
def test_members_of_another_physical_context_are_sub_totals(
    tmp_path: Path, mock: responses.RequestsMock, name: str
) -> None:
    """Cisco's members have no name; with the same one, they would look like feeds."""
    values = {"PowerSupply": 252, "CPU": 120, "Memory": 20}
    controls = [control(name, value, f"{CHASSIS}/1", PhysicalContext=kind) for kind, value in values.items()]
    device = opened(mock, with_power({"PowerControl": controls}), tmp_path)
    assert watts(device)[NODE] == 252.0
    parts = {info.quantity.component: info.quantity.domain for info in device.infos[1:]}
    assert parts == (
        {"cpu": "power_control", "memory": "power_control_2"}
        if name
        else {"cpu": "cpu_power", "memory": "memory_power"}
    )


@pytest.mark.parametrize("member", [{"Name": "CPU Sub-system Power"}, {"PhysicalContext": "CPU"}])
def test_a_single_sub_total_is_not_the_node(
    tmp_path: Path, mock: responses.RequestsMock, member: dict[str, str]
) -> None:
    resources = with_power({"PowerControl": [{"PowerConsumedWatts": 90} | member]})
    assert [info.quantity.scope for info in opened(mock, resources, tmp_path).infos] == ["part"]


def test_numbers_may_be_strings(tmp_path: Path, mock: responses.RequestsMock) -> None:
    """Microsoft's rack manager has the watts of its servers in quotes."""
    resources = with_power({"PowerControl": [control("HSC Power", "230.5", f"{CHASSIS}/1")]})  # type: ignore[arg-type]
    device = opened(mock, resources, tmp_path)
    assert watts(device) == {NODE: 230.5}
    assert device.infos[0].resolution == "0.1 W"


def test_the_power_of_ilo_4(tmp_path: Path, mock: responses.RequestsMock) -> None:
    resources = with_power({"PowerConsumedWatts": 143, "PowerSupplies": [{"LastPowerOutputWatts": 70}]})
    assert watts(opened(mock, resources, tmp_path)) == {NODE: 143.0, "bmc1/psu0_output": 70.0}


def test_sub_totals_are_never_the_node(tmp_path: Path, mock: responses.RequestsMock) -> None:
    controls = [control("CPU Power", 90, MemberId="0"), control("Memory Power", 20, MemberId="1")]
    FakeService(mock, with_power({"PowerControl": controls}))
    service = a_service(tmp_path)
    assert watts(service.connect()) == {"bmc1/cpu_power": 90.0, "bmc1/memory_power": 20.0}
    (text,) = texts(service)
    assert "skipped: bmc1: the power of the server is unknown, only parts are published" in text
    assert "PowerControl/0/PowerConsumedWatts = 90 W" in text
    assert "set power_control to use a member of PowerControl" in text


def test_servers_of_an_enclosure_are_nodes(tmp_path: Path, mock: responses.RequestsMock) -> None:
    device = opened(mock, enclosure(), tmp_path)
    assert watts(device) == {
        "bmc1/NodeA/total": 300.0,
        "bmc1/NodeB/total": 120.0,
        "bmc1/NodeA/cpu_power": 130.0,
        "bmc1/chassis_power_control": 460.0,
        "bmc1/psu0_input": 470.0,
    }
    assert [(info.quantity.scope, info.host("node17")) for info in device.infos] == [
        ("node", "bmc1/NodeA"),
        ("node", "bmc1/NodeB"),
        ("part", "bmc1/NodeA"),
        ("part", "bmc1"),
        ("part", "bmc1"),
    ]


def test_names_of_servers_do_not_depend_on_the_order_of_the_members(
    tmp_path: Path, mock: responses.RequestsMock
) -> None:
    resources = enclosure()
    resources[POWER]["PowerControl"].reverse()
    readings = watts(opened(mock, resources, tmp_path))
    assert (readings["bmc1/NodeA/total"], readings["bmc1/NodeB/total"]) == (300.0, 120.0)


def test_a_server_without_a_reading_is_not_a_node(tmp_path: Path, mock: responses.RequestsMock) -> None:
    resources = enclosure()
    del resources[POWER]["PowerControl"][1]["PowerConsumedWatts"]
    readings = watts(opened(mock, resources, tmp_path))
    assert (readings["bmc1/NodeA/total"], readings["bmc1/psu0_input"]) == (300.0, 470.0)
    assert not [label for label in readings if "NodeB" in label]


def test_an_enclosure_is_not_a_server(tmp_path: Path, mock: responses.RequestsMock) -> None:
    """The BMC of a sled reports the power of its enclosure as well."""
    controls = [
        control("System Power Control", 210, "/redfish/v1/Systems/Sled", MemberId="0"),
        control("Chassis Power Control", 900, f"{CHASSIS}/Enclosure", MemberId="1"),
    ]
    readings = watts(opened(mock, with_power({"PowerControl": controls}), tmp_path))
    assert readings == {NODE: 210.0, "bmc1/chassis_power_control": 900.0}


def test_servers_may_be_chassis(tmp_path: Path, mock: responses.RequestsMock) -> None:
    controls = [control("Power", 1.0, f"{CHASSIS}/Blade 1"), control("Power", 2.0, f"{CHASSIS}/Blade 2")]
    readings = watts(opened(mock, with_power({"PowerControl": controls}), tmp_path))
    assert readings == {"bmc1/Blade_1/total": 1.0, "bmc1/Blade_2/total": 2.0}


def test_servers_are_recognised_by_their_names(tmp_path: Path, mock: responses.RequestsMock) -> None:
    """All members refer to the enclosure, so only the names state the servers."""
    names = {"Node 1 Power": 200, "Node 2 Power": 180, "Enclosure Power": 420}
    controls = [control(name, value, f"{CHASSIS}/1") for name, value in names.items()]
    readings = watts(opened(mock, with_power({"PowerControl": controls}), tmp_path))
    assert readings == {"bmc1/node1/total": 200.0, "bmc1/node2/total": 180.0, "bmc1/enclosure_power": 420.0}


# -- power supplies -------------------------------------------------------------------------------------


def test_ratings_of_supplies_are_skipped(tmp_path: Path, mock: responses.RequestsMock) -> None:
    FakeService(mock, r720())
    service = a_service(tmp_path)
    assert watts(service.connect()) == {NODE: 154.0}
    _, *skipped = texts(service)
    assert skipped == [
        "skipped: bmc1: psu_slot_1 input: 900 W is a rating, not a reading (capacity 750 W; the node draws 154 W)",
        "skipped: bmc1: psu_slot_2 input: 900 W is a rating, not a reading (the node draws 154 W)",
    ]


def test_ratings_are_not_summed(tmp_path: Path, mock: responses.RequestsMock) -> None:
    """The second supply has no capacity, but the same value as the rating of the first one."""
    resources = r720()
    del resources[f"{CHASSIS}/System.Embedded.1/Power"]["PowerControl"]
    with pytest.raises(SensorAbsentError) as caught:
        opened(mock, resources, tmp_path)
    assert "no chassis reports its power" in str(caught.value)
    assert "#/PowerSupplies/0/PowerInputWatts = 900 W" in str(caught.value)
    assert "psu_slot_1 input: 900 W is a rating" in str(caught.value)


@pytest.mark.parametrize(
    "capacity",
    [{"PowerCapacityWatts": 800}, {"PowerCapacityWatts": 0, "InputRanges": [{"OutputWattage": 800}]}],
    ids=["capacity", "ranges"],
)
def test_the_capacity_of_a_supply_is_not_a_reading(
    tmp_path: Path, mock: responses.RequestsMock, capacity: dict[str, Any]
) -> None:
    """Also if it is reported as the output, and also later than at the first look."""
    resources = with_power({"PowerControl": [control("System", 700)]})
    supplies = [
        {"MemberId": "0", "PowerInputWatts": 400, "LastPowerOutputWatts": 800},
        {"MemberId": "1", "PowerInputWatts": 300},
    ]
    resources[POWER]["PowerSupplies"] = [supply | capacity for supply in supplies]
    fake = FakeService(mock, resources)
    device = a_service(tmp_path).connect()
    assert watts(device) == {NODE: 700.0, "bmc1/psu0_input": 400.0, "bmc1/psu1_input": 300.0}
    fake.resources[POWER]["PowerSupplies"][0]["PowerInputWatts"] = 800
    assert watts(device) == {NODE: 700.0, "bmc1/psu1_input": 300.0}


def test_a_supply_above_its_node_is_skipped_in_each_poll(tmp_path: Path, mock: responses.RequestsMock) -> None:
    """The rating may be below the power of the node at the first look."""
    resources = with_power({"PowerControl": [control("System", 900)]})
    resources[POWER]["PowerSupplies"] = [{"MemberId": "0", "PowerInputWatts": 900}]
    fake = FakeService(mock, resources)
    device = a_service(tmp_path).connect()
    assert watts(device) == {NODE: 900.0, "bmc1/psu0_input": 900.0}
    fake.resources[POWER]["PowerControl"][0]["PowerConsumedWatts"] = 154
    assert watts(device) == {NODE: 154.0}


def test_inputs_whose_sum_is_far_above_the_node_are_ratings(tmp_path: Path, mock: responses.RequestsMock) -> None:
    resources = with_power({"PowerControl": [control("System", 950)]})
    resources[POWER]["PowerSupplies"] = [{"MemberId": str(index), "PowerInputWatts": 900} for index in range(2)]
    assert watts(opened(mock, resources, tmp_path)) == {NODE: 950.0}


def test_a_block_of_a_vendor_is_the_node(tmp_path: Path, mock: responses.RequestsMock) -> None:
    FakeService(mock, fujitsu())
    service = a_service(tmp_path)
    device = service.connect()
    assert watts(device) == {
        NODE: 160.0,
        "bmc1/psu0_input": 84.0,
        "bmc1/psu0_output": 80.0,
        "bmc1/psu1_input": 76.0,
        "bmc1/psu1_output": 70.0,
    }
    assert device.infos[0].source.endswith("#/Oem/ts_fujitsu/ChassisPowerConsumption/CurrentPowerConsumptionW")


def test_huawei_reports_its_supplies_in_a_block(tmp_path: Path, mock: responses.RequestsMock) -> None:
    resources = with_power({"PowerControl": [control("System", 300)]})
    block = {"Huawei": {"PowerInputWatts": 160, "PowerOutputWatts": 150}}
    resources[POWER]["PowerSupplies"] = [{"MemberId": "0", "PowerInputWatts": None, "Oem": block}]
    readings = watts(opened(mock, resources, tmp_path))
    assert readings == {NODE: 300.0, "bmc1/psu0_input": 160.0, "bmc1/psu0_output": 150.0}


def test_the_inputs_of_the_supplies_are_the_node_if_nothing_else_is(
    tmp_path: Path, mock: responses.RequestsMock
) -> None:
    fake = FakeService(mock, only_supplies(200, 150))
    service = a_service(tmp_path)
    device = service.connect()
    assert watts(device) == {SUPPLIES: 350.0, "bmc1/psu0_input": 200.0, "bmc1/psu1_input": 150.0}
    node = device.infos[0]
    assert (node.quantity.scope, node.source) == (
        "node",
        f"https://bmc1{POWER}#/PowerSupplies/0/PowerInputWatts + #/PowerSupplies/1/PowerInputWatts",
    )
    (text,) = texts(service)
    assert "sum of the inputs of the power supplies (2), because nothing else reports the power of the node" in text
    fake.resources[POWER]["PowerSupplies"][1]["PowerInputWatts"] = None
    with pytest.raises(SensorGlitchError, match="no value"):
        device.read()


def test_a_removed_supply_is_missing_until_the_service_is_probed_again(
    tmp_path: Path, mock: responses.RequestsMock
) -> None:
    fake = FakeService(mock, only_supplies(200, 150))
    service = a_service(tmp_path)
    device = service.connect()
    device.read()
    fake.resources[POWER]["PowerSupplies"][1] = {"MemberId": "1", "Status": {"State": "Absent"}}
    for _ in range(MISSES - 1):
        with pytest.raises(SensorGlitchError, match="no value"):
            device.read()
    with pytest.raises(SensorAbsentError, match="probing the service again"):
        device.read()
    device.close()
    assert watts(service.connect())[SUPPLIES] == 200.0


def test_a_supply_without_an_input_prevents_the_sum(tmp_path: Path, mock: responses.RequestsMock) -> None:
    resources = only_supplies(200, 150)
    resources[POWER]["PowerSupplies"][1] = {"MemberId": "1", "LastPowerOutputWatts": 140}
    FakeService(mock, resources)
    service = a_service(tmp_path)
    assert watts(service.connect()) == {"bmc1/psu0_input": 200.0, "bmc1/psu1_output": 140.0}
    assert any("the power of the server is unknown, only parts are published" in text for text in texts(service))


def test_outputs_of_supplies_are_only_parts(tmp_path: Path, mock: responses.RequestsMock) -> None:
    """Their sum is smaller than the power of the server."""
    resources = fujitsu()
    del resources[f"{CHASSIS}/0/Power"]["Oem"]
    FakeService(mock, resources)
    service = a_service(tmp_path)
    assert watts(service.connect()) == {"bmc1/psu0_output": 80.0, "bmc1/psu1_output": 70.0}
    (text,) = texts(service)
    assert "#/PowerSupplies/0/LastPowerOutputWatts = 80 W" in text
    assert "power_control" not in text, "there is no PowerControl"


def test_without_parts_the_sum_is_still_the_node(tmp_path: Path, mock: responses.RequestsMock) -> None:
    assert watts(opened(mock, only_supplies(200, 150), tmp_path, parts=False)) == {SUPPLIES: 350.0}


def test_a_source_without_a_value_replaces_the_sum_when_it_has_one(
    tmp_path: Path, mock: responses.RequestsMock
) -> None:
    """A BMC that has just started may show its supplies before its node."""
    resources = only_supplies(200, 150)
    resources[POWER]["PowerControl"] = [control("System Power Control", None)]
    fake = FakeService(mock, resources)
    service = a_service(tmp_path)
    device = service.connect()
    assert watts(device)[SUPPLIES] == 350.0
    fake.resources[POWER]["PowerControl"][0]["PowerConsumedWatts"] = 360
    with pytest.raises(SensorAbsentError, match="has a value now; probing the service again"):
        device.read()
    device.close()
    assert watts(service.connect()) == {NODE: 360.0, "bmc1/psu0_input": 200.0, "bmc1/psu1_input": 150.0}


def test_a_better_source_is_probed_in_each_poll(tmp_path: Path, mock: responses.RequestsMock) -> None:
    """A server that is off: its node has no value, but a supply has an output."""
    metrics = f"{CHASSIS}/1/EnvironmentMetrics"
    resources = chassis_with("1", "Power", "EnvironmentMetrics")
    resources[metrics] = {"PowerWatts": {"Reading": 0}}
    resources[POWER] = {"PowerSupplies": [{"MemberId": "0", "PowerOutputWatts": 12}]}
    fake = FakeService(mock, resources)
    service = a_service(tmp_path)
    device = service.connect()
    assert watts(device) == {"bmc1/psu0_output": 12.0}
    fake.resources[metrics]["PowerWatts"]["Reading"] = 300
    with pytest.raises(SensorAbsentError, match="EnvironmentMetrics#/PowerWatts/Reading: has a value now"):
        device.read()
    assert watts(service.connect())[NODE] == 300.0


def test_the_sum_is_used_again_after_a_failure(tmp_path: Path, mock: responses.RequestsMock) -> None:
    """The source without a value stays in the service, and must not replace the sum."""
    resources = only_supplies(200, 150)
    resources[POWER]["PowerControl"] = [control("System Power Control", None)]
    fake = FakeService(mock, resources)
    service = a_service(tmp_path)
    device = service.connect()
    power = fake.resources.pop(POWER)
    device.read()  # of the discovery
    with pytest.raises(SensorAbsentError, match="probing the service again"):
        device.read()
    device.close()
    fake.resources[POWER] = power
    assert watts(service.connect())[SUPPLIES] == 350.0


def test_power_subsystem(tmp_path: Path, mock: responses.RequestsMock) -> None:
    """Each supply costs a request, so they are only read if ``Power`` has none."""
    fake = FakeService(mock, power_subsystem(210.5, 180.0))
    device = a_service(tmp_path).connect()
    expected = {SUPPLIES: 390.5, "bmc1/bay1_input": 210.5, "bmc1/bay2_input": 180.0}
    assert watts(device) == expected
    fake.requests.clear()
    assert watts(device) == expected
    base = f"{CHASSIS}/1/PowerSubsystem/PowerSupplies"
    assert fake.requests == [f"GET {base}/Bay1/Metrics", f"GET {base}/Bay2/Metrics"]


def test_power_subsystem_is_read_if_power_has_no_values(tmp_path: Path, mock: responses.RequestsMock) -> None:
    """The only supply is the node, and not published as a part again."""
    resources = power_subsystem(210.5)
    resources[f"{CHASSIS}/1"]["Power"] = link(POWER)
    resources[POWER] = {"PowerSupplies": [{"MemberId": "0", "PowerInputWatts": None}]}
    assert watts(opened(mock, resources, tmp_path)) == {SUPPLIES: 210.5}


def input_sensors(**sensors: float | None) -> Resources:
    """OpenBMC without a sensor of the whole chassis."""
    base = f"{CHASSIS}/1/Sensors"
    resources = chassis_with("1", "Sensors") | {base: collection(*(f"{base}/{name}" for name in sensors))}
    for name, reading in sensors.items():
        resources[f"{base}/{name}"] = {"Id": name, "ReadingType": "Power", "ReadingUnits": "W", "Reading": reading}
    return resources


def test_sensors_of_the_inputs_of_supplies_are_summed(tmp_path: Path, mock: responses.RequestsMock) -> None:
    names = {"power_psu0_input_power": 170.25, "power_psu1_input_power": 160.0, "power_psu0_output_power": 150.0}
    device = opened(mock, input_sensors(**names, power_cpu0_power=90.0), tmp_path)
    assert watts(device) == {SUPPLIES: 330.25, "bmc1/psu0_input": 170.25, "bmc1/psu1_input": 160.0}


def test_an_input_sensor_without_a_value_prevents_the_sum(tmp_path: Path, mock: responses.RequestsMock) -> None:
    layout = input_sensors(power_psu0_input_power=170.25, power_psu1_input_power=None)
    assert watts(opened(mock, layout, tmp_path)) == {"bmc1/psu0_input": 170.25}
    layout[f"{CHASSIS}/1/Sensors/power_psu1_input_power"]["Status"] = {"State": "Absent"}
    assert watts(opened(mock, layout, tmp_path)) == {SUPPLIES: 170.25}


def test_two_input_sensors_of_one_supply_are_not_summed(tmp_path: Path, mock: responses.RequestsMock) -> None:
    with pytest.raises(SensorAbsentError, match="no chassis reports its power"):
        opened(mock, input_sensors(PS1_Input_Power=170.0, PS1_Input_Power_2=165.0), tmp_path)
    readings = watts(opened(mock, input_sensors(PS1_Input_Power=170.0, PS1_Input_Power_Max=900.0), tmp_path))
    assert readings == {SUPPLIES: 170.0}


def test_inputs_may_have_the_short_name_of_pmbus(tmp_path: Path, mock: responses.RequestsMock) -> None:
    readings = watts(opened(mock, input_sensors(PSU1_PIN=240.0, PSU2_PIN=238.0, PSU1_POUT=220.0), tmp_path))
    assert readings[SUPPLIES] == 478.0


@pytest.mark.parametrize("names", [("HSC_Input_Power", "MB_Power"), ("Node1_Power", "Node2_Power")])
def test_sensors_that_may_or_may_not_be_the_node_are_listed(
    tmp_path: Path, mock: responses.RequestsMock, names: tuple[str, str]
) -> None:
    """The power of one of two servers is not that of both."""
    resources = input_sensors(**dict(zip(names, (300.0, 280.0), strict=True)))
    with pytest.raises(SensorAbsentError) as caught:
        opened(mock, resources, tmp_path)
    base = f"{CHASSIS}/1/Sensors"
    seen = f"seen: {base}/{names[0]}#/Reading = 300 W, {base}/{names[1]}#/Reading = 280 W"
    assert f"{seen}; set power_control to the Id of a sensor to use it as the node" in str(caught.value)
    assert watts(opened(mock, resources, tmp_path, power_control=names[0]))[NODE] == 300.0


def test_a_service_without_watts_lists_what_was_seen(tmp_path: Path, mock: responses.RequestsMock) -> None:
    resources = with_power({"PowerControl": [{"MemberId": "0", "PowerCapacityWatts": 800, "PowerConsumedWatt": 5}]})
    resources[POWER]["Oem"] = {"Acme": {"InputW": 120, "Sensors": [{"RailWatts": None}]}}
    with pytest.raises(SensorAbsentError) as caught:
        opened(mock, resources, tmp_path)
    seen = f"seen: {POWER}#/Oem/Acme/InputW = 120 W, {POWER}#/Oem/Acme/Sensors/0/RailWatts = null"
    assert str(caught.value).endswith(seen)
    with pytest.raises(SensorAbsentError, match=r"no property in watts was seen$"):
        opened(mock, chassis_with("1"), tmp_path)


# -- exposition -----------------------------------------------------------------------------------------


def test_golden(
    tmp_path: Path, mock: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch, update_golden: bool
) -> None:
    """Two feeds, an enclosure, a sum of supplies, and an HGX baseboard in its server, after 10 s."""
    clock = FakeClock()
    monkeypatch.setattr(time, "monotonic_ns", clock.monotonic_ns)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now_ns / NS_PER_S)
    layouts = {
        "feeds": two_feeds(344, 53),
        "enclosure": enclosure(),
        "supplies": power_subsystem(210.5, 180.0),
        "dgx01": hgx([611.0], server_watts=4100.0),
    }
    sensors: list[Any] = []
    for name, resources in layouts.items():
        FakeService(mock, resources, url=f"https://{name}")
        sensors.append(Direct(name, a_service(tmp_path, name=name, url=f"https://{name}").connect()))
    family = Family(fake_family("redfish", Machine(sensors=sensors)).open(Host(), None), clock=clock)
    family.scan()
    clock.advance(10.0)
    scan = family.scan()
    primary = PrimarySensors("node17").choose([("redfish", scan.layout)])
    exposition = Exposition(emulated=False, start_s=1.0, nodename="node17", self_metrics=False)
    text = exposition.render([scan], "text", primary=primary).decode()
    kept = ("energy_joules_total", "power_watts", "sensor_info")
    lines = [line for line in text.splitlines(keepends=True) if line.partition("{")[0].endswith(kept)]
    golden.check("".join(lines), GOLDEN, update=update_golden)


# -- HGX ------------------------------------------------------------------------------------------------


def test_gpus_of_a_baseboard_are_parts_of_their_server(tmp_path: Path, mock: responses.RequestsMock) -> None:
    """NVML on the server publishes them as devices, so they must not be devices here."""
    fake = FakeService(mock, hgx([611.0, 598.5], server_watts=4100.0))
    device = a_service(tmp_path, name="dgx01").connect()
    readings = by_label(device.read())
    assert readings == {
        "dgx01/total": (None, 4100.0),
        "dgx01/hgx_chassis_0": (None, 1709.5),
        "dgx01/hgx_gpu_sxm_1": (1000.0, 611.0),
        "dgx01/hgx_gpu_sxm_2": (2000.0, 598.5),
    }
    labels = [(info.quantity.scope, info.quantity.component, info.method) for info in device.infos]
    assert sorted(labels[1:]) == [("part", "gpu", "counter")] * 2 + [("part", "other", "integrated")]
    assert labels[0] == ("node", "node", "integrated")
    assert {info.host("node17") for info in device.infos} == {"dgx01"}
    fake.requests.clear()
    device.read()
    assert len(fake.requests) == 4, "one request for each chassis"


def test_a_metric_report_replaces_the_requests_for_each_gpu(tmp_path: Path, mock: responses.RequestsMock) -> None:
    layout = hgx([611.0, 598.5], server_watts=4100.0)
    fake = FakeService(mock, with_report(layout, without="SXM_2_Energy"))
    device = a_service(tmp_path).connect()
    expected = {NODE: 4100.0, "bmc1/hgx_chassis_0": 1709.5, "bmc1/hgx_gpu_sxm_1": 611.0, "bmc1/hgx_gpu_sxm_2": 598.5}
    assert watts(device) == expected
    assert by_label(device.read())["bmc1/hgx_gpu_sxm_1"] == (1000.0, 611.0)
    report = "/redfish/v1/TelemetryService/MetricReports/HGX_PlatformEnvironmentMetrics_0"
    sources = {info.quantity.domain: info.source for info in device.infos}
    assert sources["hgx_gpu_sxm_1"] == f"https://bmc1{report}#/MetricValues/HGX_GPU_SXM_1_Energy_0/MetricValue"
    fake.requests.clear()
    device.read()
    assert fake.requests == [
        f"GET {CHASSIS}/DGX/EnvironmentMetrics",
        f"GET {report}",
        f"GET {CHASSIS}/HGX_GPU_SXM_2/EnvironmentMetrics",  # the report lacks its energy
    ]


@pytest.mark.parametrize("value", ["nan", "", "n/a", None])
def test_a_metric_without_a_number_is_no_value(tmp_path: Path, mock: responses.RequestsMock, value: str | None) -> None:
    fake = FakeService(mock, with_report(hgx([611.0, 598.5])))
    device = a_service(tmp_path).connect()
    assert len(device.read()) == 3
    metrics = fake.resources["/redfish/v1/TelemetryService/MetricReports/HGX_PlatformEnvironmentMetrics_0"]
    for metric in metrics["MetricValues"]:
        if "GPU_SXM_1" in metric["MetricProperty"]:
            metric["MetricValue"] = value
    assert watts(device).keys() == {"bmc1/hgx_chassis_0", "bmc1/hgx_gpu_sxm_2"}


def test_metrics_are_identified_by_their_sensor(tmp_path: Path, mock: responses.RequestsMock) -> None:
    fake = FakeService(mock, with_report(hgx([611.0, 598.5])))
    device = a_service(tmp_path).connect()
    before = watts(device)
    metrics = fake.resources["/redfish/v1/TelemetryService/MetricReports/HGX_PlatformEnvironmentMetrics_0"]
    metrics["MetricValues"].reverse()
    assert watts(device) == before


def test_a_baseboard_is_not_a_server(tmp_path: Path, mock: responses.RequestsMock) -> None:
    """A service of the baseboard alone has no node, unless its chassis is selected."""
    FakeService(mock, hgx([611.0]))
    service = a_service(tmp_path)
    device = service.connect()
    assert watts(device) == {"bmc1/hgx_chassis_0": 1111.0, "bmc1/hgx_gpu_sxm_1": 611.0}
    assert {info.quantity.scope for info in device.infos} == {"part"}
    assert texts(service) == [
        "found: bmc1: 2 chassis of an HGX baseboard are parts; the baseboard is not the server, set chassis to make it "
        "the node; experimental: never run on an HGX baseboard"
    ]
    assert watts(a_service(tmp_path, chassis="HGX_Chassis_0").connect()) == {NODE: 1111.0}


def test_a_gpu_with_sensors_only(tmp_path: Path, mock: responses.RequestsMock) -> None:
    """The power of its memory is a share of it."""
    fake = FakeService(mock, hgx_sensors(611.0, 90.0))
    device = a_service(tmp_path).connect()
    assert watts(device) == {"bmc1/hgx_gpu_sxm_1": 611.0}
    fake.requests.clear()
    device.read()
    assert fake.requests == [f"GET {CHASSIS}/HGX_GPU_SXM_1/Sensors/HGX_GPU_SXM_1_Power_0"]


def test_without_a_node_a_failing_resource_is_an_error(tmp_path: Path, mock: responses.RequestsMock) -> None:
    fake = FakeService(mock, hgx_sensors(611.0, 90.0))
    device = a_service(tmp_path).connect()
    device.read()
    fake.resources[f"{CHASSIS}/HGX_GPU_SXM_1/Sensors/HGX_GPU_SXM_1_Power_0"] = 500
    with pytest.raises(SensorGlitchError, match="HTTP 500"):
        device.read()
