"""Where a chassis reports its power: EnvironmentMetrics, Power, Sensors.

Source: DMTF DSP0268, schemas EnvironmentMetrics, Power and Sensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from joulewatch_exporter.collectors.redfish.names import SHARE, WHOLE, rank_of
from joulewatch_exporter.collectors.redfish.plan import (
    BusyError,
    Field,
    ForbiddenError,
    Json,
    Member,
    MissingError,
    as_list,
    as_mapping,
    as_text,
    best_counter,
    find_member,
    link_target,
    linked_uri,
    member_of,
    number,
    seconds,
    step_of,
)
from joulewatch_exporter.collectors.redfish.target import RedfishTarget
from joulewatch_exporter.errors import SensorGlitchError
from joulewatch_exporter.model import Finding

Get: TypeAlias = Callable[[str], Json]
"""Returns a resource by its path; raises `MissingError` if there is none."""

JOULES_PER_KWH: Final = 3.6e6

_MAX_PAGES: Final = 32
_MAX_SENSORS: Final = 24
"""Each sensor costs a request, which takes up to seconds on a BMC."""

_POWER_SENSOR: Final = re.compile(r"power|pwr|watt|energy|consum", re.IGNORECASE)
_WATTS: Final[Mapping[str, float]] = {"W": 1.0, "kW": 1e3, "mW": 1e-3}
_JOULES: Final[Mapping[str, float]] = {"J": 1.0, "kJ": 1e3, "kW.h": JOULES_PER_KWH, "kWh": JOULES_PER_KWH, "W.h": 3.6e3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One place where a chassis reports its power."""

    kind: str
    power: Field | None = None
    energy: Field | None = None
    sampled: Field | None = None
    sensing_s: float | None = None
    step: str = ""
    accuracy: float | None = None
    is_live: bool = False
    """Whether it has a value now."""
    note: str = ""

    @property
    def pointer(self) -> str:
        """The address of the value, for the label ``source``."""
        field = self.energy or self.power
        assert field is not None
        return field.pointer


class Explorer:
    """Gets the resources of one service; collects the findings."""

    def __init__(self, get: Get, base: str) -> None:
        self.get = get
        self.findings: list[Finding] = []
        self.denials: list[str] = []
        """Messages about resources that the login cannot read."""
        self._base = base

    def optional(self, uri: str | None) -> Json | None:
        """Return a resource, or None if it is missing or cannot be read."""
        if uri is None:
            return None
        try:
            return self.get(uri)
        except MissingError:
            return None
        except ForbiddenError as error:
            self.denials.append(str(error))
            return None
        except BusyError:
            raise
        except SensorGlitchError as error:
            self.report("broken", uri, str(error).partition(": ")[2] or str(error))
            return None

    def members(self, uri: str, limit: int) -> Iterator[str]:
        """Yield the members of a collection, across its pages."""
        page: str | None = uri
        count = 0
        for _ in range(_MAX_PAGES):
            if page is None:
                return
            collection = self.get(page)
            for member in as_list(collection.get("Members")):
                if (link := link_target(member)) is not None and count < limit:
                    count += 1
                    yield link
            next_page = collection.get("Members@odata.nextLink")
            page = next_page if isinstance(next_page, str) and next_page else None

    def report(self, status: Any, uri: str, text: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(status=status, collector="redfish", subject=f"{self._base}{uri}", text=text))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChassisPower:
    """How a chassis reports its power."""

    source: Source | None
    """The source that is read; None: the chassis reports no power."""
    others: tuple[str, ...]
    """Kinds of sources that exist but are not read."""
    power: Json | None
    """The resource ``Power``, if it was read."""
    power_uri: str


class SourceFinder:
    """Finds the sources of the chassis of one service."""

    def __init__(self, explorer: Explorer, target: RedfishTarget, known_counters: Collection[Field]) -> None:
        """Prepare.

        Args:
            explorer: Gets the resources.
            target: The settings of the service.
            known_counters: Counters that have worked before; they are used even if they are at 0 now.
        """
        self._explorer = explorer
        self._target = target
        self._known_counters = known_counters

    def find(self, chassis: Json) -> ChassisPower:
        """Choose the source of a chassis: the first kind that has a value now, else the first kind."""
        explorer = self._explorer
        sources: list[Source] = []
        environment_uri = linked_uri(chassis, "EnvironmentMetrics")
        if (environment := explorer.optional(environment_uri)) is not None and environment_uri is not None:
            sources.append(self._environment(environment, environment_uri))
        power, power_uri = None, ""
        if not _any_live(sources) or self._target.parts:
            power_uri = linked_uri(chassis, "Power") or ""
            power = explorer.optional(power_uri or None)
            if power is not None:
                sources.append(self._power(power, power_uri))
        sources = [source for source in sources if source.power is not None or source.energy is not None]
        if not _any_live(sources):
            sources += self._sensors(linked_uri(chassis, "Sensors"))
        best = next((source for source in sources if source.is_live), sources[0] if sources else None)
        others = tuple(source.kind for source in sources if source is not best)
        return ChassisPower(source=best, others=others, power=power, power_uri=power_uri)

    def _environment(self, resource: Json, uri: str) -> Source:
        power = Field(uri, ("PowerWatts", "Reading")) if "PowerWatts" in resource else None
        energy, step, note = self._counter(resource, uri)
        is_live = (power is not None and power.watts(resource) is not None) or energy is not None
        source = Source(
            kind="EnvironmentMetrics",
            power=power,
            energy=energy,
            step=step or step_of(resource, power, "W"),
            is_live=is_live,
            note=note,
        )
        if is_live and (power is None) != (energy is None):
            # With a single value, the full sensor costs no more than the excerpt and may have a timestamp.
            key = str((power or energy).path[0])  # type: ignore[union-attr]
            return self._full_sensor(as_text(as_mapping(resource.get(key)).get("DataSourceUri")), source)
        return source

    def _full_sensor(self, uri: str, excerpt: Source) -> Source:
        resource = self._explorer.optional(uri or None)
        if resource is None:
            return excerpt
        full = self._sensor(resource, uri, excerpt.kind)
        is_same_kind = full is not None and (full.power is None) == (excerpt.power is None)
        return full if full is not None and is_same_kind and full.is_live and full.sampled is not None else excerpt

    def _counter(self, resource: Json, uri: str) -> tuple[Field | None, str, str]:
        """Return the energy counter of ``EnvironmentMetrics`` and its step, or a note why there is none."""
        note = ""
        if not self._target.energy:
            return None, "", note
        for key, scale in (("EnergyJoules", 1.0), ("EnergykWh", JOULES_PER_KWH)):
            counter = best_counter(resource, uri, (key,), scale)
            if counter is None:
                continue
            if counter.joules(resource) == 0.0 and counter not in self._known_counters:
                note = f"{key} is 0 and not used"
                continue
            return counter, step_of(resource, counter, "J"), ""
        return None, "", note

    def _power(self, resource: Json, uri: str) -> Source:
        controls = [as_mapping(control) for control in as_list(resource.get("PowerControl"))]
        index = node_control(controls, self._target.power_control)
        if index is None:
            if controls and self._target.power_control:
                names = ", ".join(as_text(control.get("Name")) or str(i) for i, control in enumerate(controls))
                text = f"no PowerControl {self._target.power_control}; available: {names}"
                self._explorer.report("absent", uri, text)
            return Source(kind="Power")
        power = Field(uri, ("PowerControl", member_of(controls[index], index), "PowerConsumedWatts"))
        has_key = "PowerConsumedWatts" in controls[index]
        return Source(
            kind="Power",
            power=power if has_key else None,
            step=step_of(resource, power, "W"),
            is_live=power.watts(resource) is not None,
        )

    def _sensors(self, uri: str | None) -> list[Source]:
        """Return the sensors of the whole chassis; each costs a request, so only likely names are read."""
        if uri is None:
            return []
        try:
            members = self._explorer.members(uri, 2048)
            uris = [member for member in members if _POWER_SENSOR.search(member.rpartition("/")[2])]
        except (MissingError, ForbiddenError):
            return []
        uris.sort(key=lambda member: (rank_of(member.rpartition("/")[2]), member))
        best: dict[str, tuple[int, Source]] = {}
        for member in uris[:_MAX_SENSORS]:
            resource = self._explorer.optional(member)
            source = None if resource is None else self._sensor(resource, member, "Sensors")
            if resource is None or source is None:
                continue
            rank = self._sensor_rank(resource, member)
            kind = "power" if source.power is not None else "energy"
            if rank is not None and source.is_live and (kind not in best or rank < best[kind][0]):
                best[kind] = (rank, source)
        power = best["power"][1] if "power" in best else None
        energy = best["energy"][1] if "energy" in best else None
        if power is None or energy is None:
            return [source for source in (energy, power) if source is not None]
        return [
            Source(
                kind="Sensors",
                power=power.power,
                energy=energy.energy,
                sampled=energy.sampled,
                sensing_s=energy.sensing_s,
                step=energy.step,
                is_live=True,
            )
        ]

    def _sensor_rank(self, resource: Json, uri: str) -> int | None:
        """Return how likely a sensor measures the whole chassis (smaller is better); None: it does not."""
        names = (as_text(resource.get("Id")), as_text(resource.get("Name")))
        if self._target.power_control:
            return 0 if self._target.power_control in names else None
        ranks = [rank_of(name) for name in (*names, uri.rpartition("/")[2]) if name]
        if SHARE in ranks:
            return None
        rank = min(ranks)
        if resource.get("PhysicalContext") in ("Chassis", "SystemBoard", "Room", "Rack"):
            return min(rank, WHOLE)
        return rank if rank <= WHOLE else None

    def _sensor(self, resource: Json, uri: str, kind: str) -> Source | None:
        """Return a full Sensor as a source; None if it measures neither power nor energy."""
        units = as_text(resource.get("ReadingUnits"))
        reading_type = as_text(resource.get("ReadingType"))
        percent = number(resource.get("Accuracy"))
        common: dict[str, Any] = {
            "kind": kind,
            "sensing_s": seconds(resource.get("SensingInterval")),
            "accuracy": percent / 100 if percent is not None and 0.0 < percent < 100.0 else None,
        }
        if self._target.reading_time and as_text(resource.get("ReadingTime")):
            common["sampled"] = Field(uri, ("ReadingTime",))
        if reading_type.startswith("Energy") and units in _JOULES and self._target.energy:
            counter = best_counter(resource, uri, (), _JOULES[units])
            if counter is None or (counter.joules(resource) == 0.0 and counter not in self._known_counters):
                return None
            return Source(energy=counter, step=step_of(resource, counter, "J"), is_live=True, **common)
        if reading_type in ("Power", "") and units in _WATTS:
            power = Field(uri, ("Reading",), _WATTS[units])
            is_live = power.watts(resource) is not None
            return Source(power=power, step=step_of(resource, power, "W"), is_live=is_live, **common)
        return None


def _any_live(sources: Sequence[Source]) -> bool:
    return any(source.is_live for source in sources)


def node_control(controls: Sequence[Json], name: str) -> int | None:
    """Return the index of the member of ``PowerControl`` that is the node; the others are its sub-totals.

    Args:
        controls: The members.
        name: MemberId or Name of the member; empty: detect it by its name.
    """
    if name:
        for key in ("MemberId", "Name"):
            for index, control in enumerate(controls):
                if as_text(control.get(key)) == name:
                    return index
        return None
    names = [as_text(control.get("Name")) for control in controls]
    wholes = [index for index, candidate in enumerate(names) if rank_of(candidate) != SHARE]
    for index in wholes:
        if "system" in names[index].lower():
            return index
    return wholes[0] if wholes else (0 if controls else None)


def control_text(source: Source, power: Json) -> str:
    """Return which member of ``PowerControl`` is used, for the finding; empty if there is only one."""
    controls = as_list(power.get("PowerControl"))
    member = next((step for step in (source.power.path if source.power else ()) if isinstance(step, Member)), None)
    if member is None or len(controls) < 2:
        return ""
    name = as_text(as_mapping(find_member(controls, member)).get("Name")) or member.value or str(member.index)
    return f"; of {len(controls)} members of PowerControl, {name!r} is the node (set power_control to use another)"
