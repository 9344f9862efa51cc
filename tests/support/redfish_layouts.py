"""Small documents of Redfish services as vendors publish them, by path; written by hand.

Public descriptions: DMTF's mockup ``public-rackmount1`` (PowerSubsystem), SONiC (one member of PowerControl for each
power supply), issues of exporters (iDRAC 7, Fujitsu iRMC), and NVIDIA's firmware (HGX).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from support.redfish import Resources, collection, link

CHASSIS = "/redfish/v1/Chassis"


def chassis_with(identity: str, *resources: str, **further: Any) -> Resources:
    """Return a collection of one chassis with links to its resources."""
    path = f"{CHASSIS}/{identity}"
    chassis = {"Id": identity, "ChassisType": "RackMount"} | {name: link(f"{path}/{name}") for name in resources}
    return {CHASSIS: collection(path), path: chassis | further}


def with_power(power: Mapping[str, Any], identity: str = "1") -> Resources:
    """Return a chassis with the resource ``Power``."""
    return chassis_with(identity, "Power") | {f"{CHASSIS}/{identity}/Power": dict(power)}


def control(name: str, watts: float | None, *related: str, **further: Any) -> dict[str, Any]:
    """Return a member of ``PowerControl``."""
    return {"Name": name, "PowerConsumedWatts": watts, "RelatedItem": [link(path) for path in related]} | further


def two_feeds(first: float | None = 344, second: float | None = 53, **ids: Any) -> Resources:
    """A server with a member of PowerControl for each feed: 397 W."""
    related = (f"{CHASSIS}/1", "/redfish/v1/Systems/1")
    return with_power(
        {
            "PowerControl": [
                control("System Power Control", first, *related, MemberId="1"),
                control("System Power Control", second, *related, MemberId="2"),
            ]
        }
    )


def enclosure() -> Resources:
    """An enclosure of two servers, one of them with two feeds and a sub-total, and its own total."""
    a, b = "/redfish/v1/Systems/NodeA", "/redfish/v1/Systems/NodeB"
    return with_power(
        {
            "PowerControl": [
                control("Server Power Control", 210, a, MemberId="0"),
                control("Server Power Control", 120, b, MemberId="1"),
                control("Server Power Control", 90, a, MemberId="2"),
                control("CPU Power", 130, f"{a}/Processors/1", MemberId="3"),
                control("Chassis Power Control", 460, f"{CHASSIS}/1", MemberId="4"),
            ],
            "PowerSupplies": [{"MemberId": "0", "PowerInputWatts": 470, "PowerCapacityWatts": 2000}],
        }
    )


def r720() -> Resources:
    """An iDRAC 7, which reports the rating of its supplies as their input."""
    supply = {"LastPowerOutputWatts": None, "PowerInputWatts": 900, "LineInputVoltage": 224}
    return with_power(
        {
            "PowerControl": [{"MemberId": "PowerControl", "Name": "System Power Control", "PowerConsumedWatts": 154}],
            "PowerSupplies": [
                {"MemberId": "PSU.Slot.1", "Name": "PS1 Status", "PowerCapacityWatts": 750} | supply,
                {"MemberId": "PSU.Slot.2", "Name": "PS2 Status"} | supply,
            ],
        },
        "System.Embedded.1",
    )


def fujitsu() -> Resources:
    """An iRMC without PowerControl: the power is in a vendor's block, and the output in the supplies."""
    return with_power(
        {
            "Oem": {
                "ts_fujitsu": {
                    "ChassisPowerConsumption": {"CurrentPowerConsumptionW": 160, "Designation": "Total Power"},
                    "ChassisPowerSensors": [
                        {"Designation": "PSU1 Power", "CurrentPowerConsumptionW": 84},
                        {"Designation": "PSU2 Power", "CurrentPowerConsumptionW": 76},
                        {"Designation": "Total Power", "CurrentPowerConsumptionW": 160},
                    ],
                }
            },
            "PowerSupplies": [
                {"MemberId": "0", "Name": "PSU1", "LastPowerOutputWatts": 80},
                {"MemberId": "1", "Name": "PSU2", "LastPowerOutputWatts": 70},
            ],
        },
        "0",
    )


def only_supplies(*inputs: float | None, **further: Any) -> Resources:
    """A service whose only watts are the inputs of its power supplies."""
    supplies = [{"MemberId": str(index), "PowerInputWatts": watts} for index, watts in enumerate(inputs)]
    return with_power({"PowerSupplies": [supply | further for supply in supplies]})


def power_subsystem(*inputs: float | None) -> Resources:
    """A chassis with PowerSubsystem instead of Power; its last bay is empty."""
    base = f"{CHASSIS}/1/PowerSubsystem"
    bays = [f"{base}/PowerSupplies/Bay{number}" for number in range(1, len(inputs) + 2)]
    resources = chassis_with("1", "PowerSubsystem") | {
        base: {"CapacityWatts": 2000, "PowerSupplies": link(f"{base}/PowerSupplies")},
        f"{base}/PowerSupplies": collection(*bays),
        bays[-1]: {"Id": bays[-1].rpartition("/")[2], "Status": {"State": "Absent"}},
    }
    for bay, watts in zip(bays, inputs, strict=False):
        name = bay.rpartition("/")[2]
        resources[bay] = {"Id": name, "Model": "RKS", "PowerCapacityWatts": 800, "Metrics": link(f"{bay}/Metrics")}
        resources[f"{bay}/Metrics"] = {"InputPowerWatts": {"Reading": watts}}
    return resources


def _module(identity: str, watts: float, joules: float | None = None, *, inside: str, **further: Any) -> Resources:
    path = f"{CHASSIS}/{identity}"
    metrics: dict[str, Any] = {
        "PowerWatts": {"DataSourceUri": f"{path}/Sensors/{identity}_Power_0", "Reading": watts},
    }
    if joules is not None:
        metrics["EnergyJoules"] = {"DataSourceUri": f"{path}/Sensors/{identity}_Energy_0", "Reading": joules}
    return {
        path: {
            "Id": identity,
            "ChassisType": "Module",
            "EnvironmentMetrics": link(f"{path}/EnvironmentMetrics"),
            "Links": {"ContainedBy": link(f"{CHASSIS}/{inside}")},
        }
        | further,
        f"{path}/EnvironmentMetrics": metrics,
    }


def hgx(gpus: Sequence[float], *, server_watts: float | None = None) -> Resources:
    """An HGX baseboard with GPUs; with ``server_watts`` behind the BMC of its server, which contains no link to it."""
    resources = _module("HGX_Chassis_0", sum(gpus) + 500, inside="", ChassisType="RackMount", Links={})
    for number, watts in enumerate(gpus, start=1):
        resources |= _module(f"HGX_GPU_SXM_{number}", watts, 1000.0 * number, inside="HGX_Chassis_0")
    if server_watts is not None:
        path = f"{CHASSIS}/DGX"
        resources[path] = {"Id": "DGX", "ChassisType": "RackMount"}
        resources[path]["EnvironmentMetrics"] = link(f"{path}/EnvironmentMetrics")
        resources[f"{path}/EnvironmentMetrics"] = {"PowerWatts": {"Reading": server_watts}}
    paths = [path for path in resources if path.count("/") == 4]
    return {CHASSIS: collection(*paths)} | resources


def with_report(resources: Resources, *, without: str = "nothing") -> Resources:
    """Add NVIDIA's metric report with the sensors of all modules, except those whose names contain a text."""
    service, report = "/redfish/v1/TelemetryService", "HGX_PlatformEnvironmentMetrics_0"
    values: list[dict[str, Any]] = []
    for path, resource in resources.items():
        for excerpt in resource.values() if path.endswith("/EnvironmentMetrics") else ():
            sensor = excerpt.get("DataSourceUri", "")
            if sensor and without not in sensor:
                values.append(
                    {
                        "MetricProperty": sensor,
                        "MetricValue": f"{excerpt['Reading']:.6f}",
                        "Timestamp": "2026-01-01T00:00:10.347+00:00",
                    }
                )
    reports = f"{service}/MetricReports"
    return resources | {
        "/redfish/v1": {"TelemetryService": link(service)},
        service: {"MetricReports": link(reports)},
        reports: collection(f"{reports}/HGX_MemoryMetrics_0", f"{reports}/{report}"),
        f"{reports}/{report}": {"MetricValues": values},
    }


def hgx_sensors(watts: float, dram_watts: float) -> Resources:
    """A GPU of a baseboard that reports only sensors, next to one of its memory."""
    identity = "HGX_GPU_SXM_1"
    resources = chassis_with(identity, "Sensors", ChassisType="Module")
    base = f"{CHASSIS}/{identity}/Sensors"
    names = {f"{identity}_DRAM_0_Power_0": dram_watts, f"{identity}_Power_0": watts, f"{identity}_TEMP_0": 40.0}
    resources[base] = collection(*(f"{base}/{name}" for name in names))
    for name, reading in names.items():
        sensor = {"Id": name, "Name": name.replace("_", " "), "ReadingType": "Power", "ReadingUnits": "W"}
        resources[f"{base}/{name}"] = sensor | {"Reading": reading, "PhysicalContext": "GPU"}
    return resources
