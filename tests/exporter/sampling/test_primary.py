"""The choice of the primary node sensor of each host."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulewatch_exporter.model import Quantity, SensorInfo
from joulewatch_exporter.sampling.primary import Key, PrimarySensors
from joulewatch_exporter.sampling.scan import Layout

NODENAME = "node17"


def meter(device: str = "bmc", **fields: object) -> SensorInfo:
    """Return a polled power meter of this machine with a new value every 5 s."""
    base = SensorInfo(
        quantity=Quantity(scope="node", component="node", device=device, domain="total"),
        method="integrated",
        source="fake",
        read_mode="polled",
        period_s=5.0,
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def layout(*infos: SensorInfo) -> Layout:
    return Layout(infos, tuple(dict.fromkeys(info.quantity.device for info in infos)))


def chosen(**families: Layout) -> list[tuple[str, str]]:
    """Return collector and device of the primary sensors."""
    return names(PrimarySensors(NODENAME).choose(families.items()))


def names(keys: frozenset[Key]) -> list[tuple[str, str]]:
    return sorted((collector, quantity.device) for collector, quantity in keys)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"method": "counter", "read_mode": "remote", "period_s": None}, {"period_s": 0.1}),
        ({"read_mode": "polled", "period_s": None}, {"read_mode": "remote", "period_s": 1.0}),
        ({"read_mode": "on_request", "period_s": 10.0}, {"read_mode": "remote", "period_s": 1.0}),
        ({"period_s": 1.0}, {"period_s": 5.0}),
        ({"read_mode": "polled", "period_s": 1.0}, {"read_mode": "on_request", "period_s": 5.0}),
        ({"period_s": 60.0}, {"period_s": None}),
    ],
)
def test_a_counter_then_a_sensor_in_band_then_a_faster_one(better: dict[str, object], worse: dict[str, object]) -> None:
    """Each rule decides before the next, whatever the names."""
    assert chosen(a=layout(meter(**better)), b=layout(meter(**worse))) == [("a", "bmc")]
    assert chosen(a=layout(meter(**worse)), b=layout(meter(**better))) == [("b", "bmc")]


def test_names_decide_between_equal_sensors() -> None:
    assert chosen(redfish=layout(meter()), ipmi=layout(meter())) == [("ipmi", "bmc")]
    assert chosen(ipmi=layout(meter("bmc2"), meter("bmc1"))) == [("ipmi", "bmc1")]


def test_each_remote_bmc_is_a_host_and_sensors_of_one_name_are_one_host() -> None:
    """A target that is read by IPMI and by Redfish is one server, if both targets have its name."""
    remote = {"read_mode": "remote", "is_remote": True}
    assert chosen(
        hwmon=layout(meter("acpi")),
        ipmi=layout(meter("node1", **remote), meter("node2", **remote)),
        redfish=layout(meter("node2", method="counter", **remote), meter("rack/blade3", **remote)),
    ) == [("hwmon", "acpi"), ("ipmi", "node1"), ("redfish", "node2"), ("redfish", "rack/blade3")]


def test_a_remote_target_with_the_name_of_this_machine_is_its_bmc() -> None:
    bmc = meter(NODENAME, read_mode="remote", is_remote=True)
    assert chosen(hwmon=layout(meter("acpi")), ipmi=layout(bmc)) == [("hwmon", "acpi")]


def test_only_node_sensors_are_chosen() -> None:
    part = replace(meter(), quantity=Quantity(scope="part", component="node", device="bmc", domain="psu1"))
    socket = replace(meter(), quantity=Quantity(scope="device", component="cpu", device="socket0", domain="package"))
    assert chosen(ipmi=layout(part), rapl=layout(socket)) == []


def test_the_choice_outlives_the_sensor() -> None:
    """A device that is gone stays primary, because it is still in the layout as down; its return changes nothing."""
    sensors = PrimarySensors(NODENAME)
    ipmi = ("ipmi", layout(meter()))
    acpi = layout(meter("acpi", read_mode="on_request", period_s=1.0))
    assert names(sensors.choose([("hwmon", acpi), ipmi])) == [("hwmon", "acpi")]
    assert names(sensors.choose([("hwmon", Layout((), ("acpi",))), ipmi])) == [("hwmon", "acpi")]
    assert names(sensors.choose([("hwmon", acpi), ipmi])) == [("hwmon", "acpi")]


def test_the_next_sensor_takes_over_from_one_that_was_removed() -> None:
    sensors = PrimarySensors(NODENAME)
    assert names(sensors.choose([("ipmi", layout(meter("bmc1"), meter("bmc2")))])) == [("ipmi", "bmc1")]
    assert names(sensors.choose([("ipmi", layout(meter("bmc2")))])) == [("ipmi", "bmc2")]


def test_a_better_sensor_takes_over_when_it_answers_for_the_first_time() -> None:
    sensors = PrimarySensors(NODENAME)
    ipmi, silent = ("ipmi", layout(meter())), ("redfish", Layout((), ("x14",)))
    assert names(sensors.choose([ipmi, silent])) == [("ipmi", "bmc")]
    counter = layout(meter("x14", method="counter", read_mode="remote"))
    assert names(sensors.choose([ipmi, ("redfish", counter)])) == [("redfish", "x14")]


@pytest.mark.parametrize(
    ("wanted", "primary", "unmet"),
    [
        ({NODENAME: "redfish"}, "redfish", {}),
        ({"node1*": "redfish", NODENAME: "ipmi"}, "redfish", {NODENAME: "ipmi"}),
        ({"rack3-*": "redfish"}, "hwmon", {"rack3-*": "redfish"}),
        ({"*": "cray"}, "hwmon", {"*": "cray"}),
        ({"": "redfish"}, "hwmon", {"": "redfish"}),
    ],
)
def test_the_configuration_names_a_collector(wanted: dict[str, str], primary: str, unmet: dict[str, str]) -> None:
    """The first pattern that matches; if the collector has no node sensor of the host, the rules decide."""
    sensors = PrimarySensors(NODENAME, wanted)
    families = [
        ("hwmon", layout(meter("acpi", period_s=1.0))),
        ("ipmi", layout(meter("bmc"))),
        ("redfish", layout(meter("x14", read_mode="remote", period_s=10.0))),
    ]
    assert [collector for collector, _ in sensors.choose(families)] == [primary]
    assert sensors.unmet == unmet


def test_the_rules_decide_between_sensors_of_the_named_collector() -> None:
    sensors = PrimarySensors(NODENAME, {"*": "ipmi"})
    ipmi = layout(meter("bmc1"), meter("bmc2", period_s=1.0))
    assert names(sensors.choose([("cray", layout(meter("node", method="counter"))), ("ipmi", ipmi)])) == [
        ("ipmi", "bmc2")
    ]


def test_a_change_is_logged_and_the_first_choice_is_not(caplog: pytest.LogCaptureFixture) -> None:
    sensors = PrimarySensors(NODENAME)
    ipmi = ("ipmi", layout(meter()))
    with caplog.at_level("INFO"):
        for _ in range(2):
            sensors.choose([ipmi])
        assert caplog.messages == []
        for _ in range(2):
            sensors.choose([ipmi, ("redfish", layout(meter("x14", method="counter")))])
    assert caplog.messages == ["node17: the primary node sensor is now redfish x14"]


METERS = st.builds(
    meter,
    device=st.sampled_from(["a", "b", "c"]),
    method=st.sampled_from(["counter", "integrated"]),
    read_mode=st.sampled_from(["on_request", "polled", "remote"]),
    period_s=st.sampled_from([None, 0.1, 1.0, 5.0]),
    is_remote=st.booleans(),
)


@given(families=st.dictionaries(st.sampled_from(["hwmon", "ipmi", "redfish"]), st.lists(METERS, max_size=3)))
def test_each_host_with_node_sensors_has_exactly_one(families: dict[str, list[SensorInfo]]) -> None:
    """Whatever the sensors, and in whatever order the families were opened."""
    layouts = {name: layout(*{info.quantity: info for info in infos}.values()) for name, infos in families.items()}
    infos = {(name, info.quantity): info for name, built in layouts.items() for info in built.infos}
    keys = PrimarySensors(NODENAME).choose(layouts.items())
    assert sorted(infos[key].host(NODENAME) for key in keys) == sorted({i.host(NODENAME) for i in infos.values()})
    assert PrimarySensors(NODENAME).choose(reversed(layouts.items())) == keys
