"""The power of power supplies, from the resource ``Power``, vendors' blocks in it, and ``PowerSubsystem``.

Some firmware reports the rating of a supply instead of its power: iDRAC 7 shows 900 W for a supply of 750 W in a server
that draws 154 W. Such values are recognised and skipped.

Sources: DMTF DSP0268, schemas Power, PowerSupply and PowerSupplyMetrics; the blocks of Fujitsu (``ts_fujitsu``) and
Huawei as published in issues of public exporters.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from joulewatch_exporter.collectors.redfish.names import is_supply, slug, supply_name
from joulewatch_exporter.collectors.redfish.plan import (
    Field,
    Json,
    Member,
    as_list,
    as_mapping,
    as_text,
    member_of,
    number,
)

ABOVE_NODE: Final = 1.25
"""A supply cannot draw more than its server. The slack is for the age of the values, and for a node measured behind the
supplies."""

_INPUT_KEYS: Final = ("PowerInputWatts",)
_OUTPUT_KEYS: Final = ("PowerOutputWatts",)
_AVERAGE_KEY: Final = "LastPowerOutputWatts"
"""The average output; it is used if the momentary power is missing. Many services have the key but never a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Supply:
    """A power supply and where its power is."""

    name: str
    model: str = ""
    input: Field | None = None
    output: Field | None = None

    @property
    def fields(self) -> Iterator[tuple[str, Field]]:
        """The sides that the supply reports."""
        for side, field in (("input", self.input), ("output", self.output)):
            if field is not None:
                yield side, field


def supplies_of(power: Json, uri: str) -> list[Supply]:
    """Return the supplies of the resource ``Power``; empty bays have none."""
    supplies: list[Supply] = []
    sensors = dict(_oem_sensors(power, uri))
    entries = as_list(power.get("PowerSupplies"))
    for index, entry in enumerate(entries):
        supply = as_mapping(entry)
        base = ("PowerSupplies", member_of(entries, index))
        sensor = _matching(sensors, as_text(supply.get("Name")))
        if is_absent(supply):
            continue
        rating = _capacity(supply)
        inputs = [Field(uri, (*base, *path), rating_watts=rating) for path in _paths(supply, _INPUT_KEYS)]
        if sensor is not None:
            inputs.append(dataclasses.replace(sensors.pop(sensor), rating_watts=rating))
        keys = _OUTPUT_KEYS if number(supply.get(_AVERAGE_KEY)) is None else (*_OUTPUT_KEYS, _AVERAGE_KEY)
        outputs = [Field(uri, (*base, *path), rating_watts=rating) for path in _paths(supply, keys)]
        supplies.append(
            Supply(
                name=supply_name(supply, index),
                model=as_text(supply.get("Model")),
                input=_with_number(inputs, power),
                output=_with_number(outputs, power),
            )
        )
    supplies += [Supply(name=slug(name), input=field) for name, field in sensors.items()]
    return supplies


def subsystem_supply(supply: Json, metrics: Json, uri: str, index: int) -> Supply:
    """Return a supply of ``PowerSubsystem``, whose power is in the resource ``Metrics`` at ``uri``."""
    rating = _capacity(supply)
    sides = {
        side: Field(uri, (key, "Reading"), rating_watts=rating) if key in metrics else None
        for side, key in (("input", "InputPowerWatts"), ("output", "OutputPowerWatts"))
    }
    return Supply(name=supply_name(supply, index), model=as_text(supply.get("Model")), **sides)


def is_absent(supply: Json) -> bool:
    """Return whether a supply is an empty bay."""
    return as_text(as_mapping(supply.get("Status")).get("State")) == "Absent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """Supplies whose values are readings, and the texts about the others."""

    supplies: tuple[Supply, ...]
    ratings: tuple[str, ...]


def without_ratings(supplies: Sequence[Supply], resources: Mapping[str, Json], node_watts: float | None) -> Checked:
    """Remove the values that are ratings.

    A value is a rating if it is the capacity of the supply or above it, above the power of the node, or equal to a
    value of another supply that is a rating. The inputs are also ratings if their sum is above the power of the node.

    Args:
        supplies: The supplies.
        resources: The resources with their values.
        node_watts: Power of the server, if it is known.
    """
    limit_watts = math.inf if node_watts is None else ABOVE_NODE * node_watts
    watts = {field: number(field.value(resources[field.uri])) or 0.0 for s in supplies for _, field in s.fields}
    ratings = {field for field, value in watts.items() if value >= field.rating_watts or value > limit_watts}
    known = {watts[field] for field in ratings}
    ratings |= {field for field, value in watts.items() if value in known}
    inputs = [supply.input for supply in supplies if supply.input is not None and supply.input not in ratings]
    if sum(watts[field] for field in inputs) > limit_watts:
        ratings |= set(inputs)
    texts = []
    kept = []
    for supply in supplies:
        removed = {side: field for side, field in supply.fields if field in ratings}
        for side, field in removed.items():
            texts.append(f"{supply.name} {side}: {watts[field]:g} W {_reason(field, node_watts)}")
        kept.append(
            dataclasses.replace(
                supply,
                input=None if "input" in removed else supply.input,
                output=None if "output" in removed else supply.output,
            )
        )
    return Checked(supplies=tuple(kept), ratings=tuple(texts))


def _reason(field: Field, node_watts: float | None) -> str:
    facts = []
    if field.rating_watts < math.inf:
        facts.append(f"capacity {field.rating_watts:g} W")
    if node_watts is not None:
        facts.append(f"the node draws {node_watts:g} W")
    return f"is a rating, not a reading ({'; '.join(facts) or 'another supply reports it as well'})"


def _capacity(supply: Json) -> float:
    """Return the rated power; infinite if it is unknown."""
    capacity = number(supply.get("PowerCapacityWatts"))
    if not capacity:
        ranges = [as_mapping(entry) for entry in as_list(supply.get("InputRanges"))]
        values = [number(entry.get(key)) for entry in ranges for key in ("OutputWattage", "CapacityWatts")]
        capacity = max((value for value in values if value), default=None)
    return capacity if capacity and capacity > 0.0 else math.inf


def _paths(supply: Json, keys: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the paths of those keys that a supply has, also in vendors' blocks."""
    oem = as_mapping(supply.get("Oem"))
    for key in keys:
        if key in supply:
            yield (key,)
        yield from (("Oem", vendor, key) for vendor, block in oem.items() if key in as_mapping(block))


def _with_number(fields: Sequence[Field], resource: Json) -> Field | None:
    """Return the first field with a number, else the first: its supply may be off now."""
    live = (field for field in fields if number(field.value(resource)) is not None)
    return next(live, fields[0] if fields else None)


# -- blocks of vendors ---------------------------------------------------------------------------------


def oem_total(power: Json, uri: str) -> Field | None:
    """Return the power of the whole chassis in a vendor's block of ``Power``, or where iLO 4 has it."""
    old = Field(uri, ("PowerConsumedWatts",))
    if number(old.value(power)) is not None and "PowerControl" not in power:
        return old
    for vendor, block in as_mapping(power.get("Oem")).items():
        for path in (("ChassisPowerConsumption", "CurrentPowerConsumptionW"), ("TotalPower",)):
            field = Field(uri, ("Oem", vendor, *path))
            if number(field.value(power)) is not None and isinstance(block, Mapping):
                return field
    return None


def _oem_sensors(power: Json, uri: str) -> Iterator[tuple[str, Field]]:
    """Yield the sensors of supplies in a block of Fujitsu, with their names."""
    for vendor, block in as_mapping(power.get("Oem")).items():
        for index, entry in enumerate(as_list(as_mapping(block).get("ChassisPowerSensors"))):
            name = as_text(as_mapping(entry).get("Designation"))
            if is_supply(name):
                member = Member("Designation", name, index)
                yield name, Field(uri, ("Oem", vendor, "ChassisPowerSensors", member, "CurrentPowerConsumptionW"))


def _matching(sensors: Mapping[str, Field], supply: str) -> str | None:
    """Return the sensor of a supply: ``PSU1 Power`` belongs to ``PSU1``, but not to ``PSU10``."""
    pattern = re.compile(rf"{re.escape(supply)}(?!\d)", re.IGNORECASE)
    return next((name for name in sensors if supply and pattern.match(name)), None)
