"""The resources of an emulated Redfish service."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from joulewatch_exporter.emulator.faults import GARBAGE
from joulewatch_exporter.emulator.redfish.spec import RedfishSpec

ROOT: Final = "/redfish/v1"
SESSIONS: Final = f"{ROOT}/SessionService/Sessions"
_JOULES_PER_KWH: Final = 3.6e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The values that the service shows until the next refresh."""

    watts: float
    joules: float
    """Value of the counter, which restarts at 0 at a reset."""
    lifetime_joules: float
    taken_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """The resources at a given time."""

    spec: RedfishSpec
    sample: Sample
    faults: Collection[str]
    """Kinds of the faults that are on."""
    sessions: Sequence[str]
    """Ids of the active sessions."""

    def find(self, path: str) -> dict[str, Any] | None:
        """Return the resource of a path, if there is one."""
        spec = self.spec
        if path == "/redfish":
            return {"v1": f"{ROOT}/"}
        if path == ROOT:
            return head(f"{ROOT}/", "ServiceRoot.v1_15_0.ServiceRoot", "RootService", "Root Service") | {
                "RedfishVersion": "1.17.0",
                "Chassis": _link(f"{ROOT}/Chassis"),
                "SessionService": _link(f"{ROOT}/SessionService"),
                "Links": {"Sessions": _link(SESSIONS)},
            }
        if path == f"{ROOT}/SessionService":
            return head(path, "SessionService.v1_1_8.SessionService", "SessionService", "Session Service") | {
                "SessionTimeout": round(spec.session_timeout_s),
                "Sessions": _link(SESSIONS),
            }
        if path == SESSIONS:
            return _collection(path, "SessionCollection.SessionCollection", self.sessions)
        if path == f"{ROOT}/Chassis":
            return _collection(path, "ChassisCollection.ChassisCollection", spec.chassis)
        match = re.fullmatch(rf"{ROOT}/Chassis/([\w.-]+)(?:/(\w+)(?:/(\w+))?)?", path)
        if match is None or match[1] not in spec.chassis:
            return None
        return self._chassis(path, *match.groups())

    def _chassis(self, path: str, identity: str, part: str | None, member: str | None) -> dict[str, Any] | None:
        is_modern = self.spec.flavour != "classic"
        is_classic = self.spec.flavour != "modern"
        base = f"{ROOT}/Chassis/{identity}"
        match part, member:
            case None, None:
                resource = head(path, "Chassis.v1_22_0.Chassis", identity, "Computer System Chassis") | {
                    "ChassisType": "RackMount",
                    "Manufacturer": "Joulewatch",
                    "Model": "Emulated",
                }
                if is_modern:
                    resource["EnvironmentMetrics"] = _link(f"{base}/EnvironmentMetrics")
                    resource["Sensors"] = _link(f"{base}/Sensors")
                if is_classic:
                    resource["Power"] = _link(f"{base}/Power")
                return resource
            case "Power", None if is_classic:
                return self._power(path)
            case "EnvironmentMetrics", None if is_modern:
                return self._environment(path, base)
            case "Sensors", None if is_modern:
                return _collection(path, "SensorCollection.SensorCollection", ["TotalPower", *self._counters()])
            case "Sensors", "TotalPower" if is_modern:
                return self._sensor(path, "TotalPower", "Power", "W", self._watts())
            case "Sensors", str() if is_modern and member in self._counters():
                unit = "J" if member == "EnergyJoules" else "kW.h"
                return self._sensor(path, member, member, unit, self._counter(member))
        return None

    def _counters(self) -> tuple[str, ...]:
        names = {"joules": ("EnergyJoules",), "kwh": ("EnergykWh",), "both": ("EnergyJoules", "EnergykWh"), "none": ()}
        return names[self.spec.energy]

    def _watts(self, share: float = 1.0) -> float | None:
        if "glitch" in self.faults:
            return None
        if "garbage" in self.faults:
            return GARBAGE
        if "zero" in self.faults:
            return 0
        watts = round(self.sample.watts * share / len(self.spec.chassis), self.spec.power_digits)
        return watts if self.spec.power_digits else int(watts)

    def _counter(self, name: str, *, lifetime: bool = False) -> float | None:
        if "glitch" in self.faults:
            return None
        if "garbage" in self.faults:
            return GARBAGE
        joules = self.sample.lifetime_joules if lifetime else self.sample.joules
        joules /= len(self.spec.chassis)
        if name == "EnergyJoules":
            return int(joules)
        # A counter shows complete steps.
        steps = int(joules / _JOULES_PER_KWH * 10**self.spec.energy_digits)
        return steps / 10**self.spec.energy_digits if self.spec.energy_digits else steps

    def _environment(self, path: str, base: str) -> dict[str, Any]:
        resource = head(path, "EnvironmentMetrics.v1_3_0.EnvironmentMetrics", "EnvironmentMetrics", "Environment") | {
            "PowerWatts": {"DataSourceUri": f"{base}/Sensors/TotalPower", "Reading": self._watts()}
        }
        for name in self._counters():
            resource[name] = {"DataSourceUri": f"{base}/Sensors/{name}", "Reading": self._counter(name)}
            if self.spec.has_lifetime:
                resource[name]["LifetimeReading"] = self._counter(name, lifetime=True)
        return resource

    def _sensor(self, path: str, name: str, reading_type: str, unit: str, reading: float | None) -> dict[str, Any]:
        resource = head(path, "Sensor.v1_8_0.Sensor", name, name) | {
            "PhysicalContext": "Chassis",
            "ReadingType": reading_type,
            "ReadingUnits": unit,
            "Reading": reading,
            "ReadingTime": self.sample.taken_at.isoformat(timespec="milliseconds"),
            "SensingInterval": f"PT{self.spec.refresh_s:g}S",
        }
        if self.spec.has_lifetime and name != "TotalPower":
            resource["LifetimeReading"] = self._counter(name, lifetime=True)
        return resource

    def _power(self, path: str) -> dict[str, Any]:
        spec = self.spec
        related = [_link(path.removesuffix("/Power"))]
        controls: list[dict[str, Any]] = [
            {"Name": "System Power Control", "PowerConsumedWatts": self._watts(share), "RelatedItem": related}
            for share in spec.feeds or (1.0,)
        ]
        if spec.cpu_share > 0:
            controls.append({"Name": "CPU Sub-system Power", "PowerConsumedWatts": self._watts(spec.cpu_share)})
        controls = [{"MemberId": str(index)} | control for index, control in enumerate(controls)]
        supplies = [
            {
                "MemberId": str(index),
                "Name": f"Power Supply {index + 1}",
                "PowerInputWatts": self._watts(share),
                "PowerOutputWatts": self._watts(share * spec.supply_efficiency),
            }
            for index, share in enumerate(spec.supplies)
        ]
        return head(path, "Power.v1_7_1.Power", "Power", "Power") | {
            "PowerControl": controls,
            "PowerSupplies": supplies,
        }


def head(path: str, schema: str, identity: str, name: str) -> dict[str, Any]:
    """Return the properties that every resource has."""
    return {"@odata.id": path, "@odata.type": f"#{schema}", "Id": identity, "Name": name}


def _link(path: str) -> dict[str, str]:
    return {"@odata.id": path}


def _collection(path: str, schema: str, members: Any) -> dict[str, Any]:
    links = [_link(f"{path}/{member}") for member in members]
    return {
        "@odata.id": path,
        "@odata.type": f"#{schema}",
        "Name": path.rpartition("/")[2],
        "Members@odata.count": len(links),
        "Members": links,
    }
