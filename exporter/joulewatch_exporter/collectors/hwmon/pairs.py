"""Pair the voltages and currents of chips that have no power file.

A file states neither which voltage belongs to which current, nor whether a voltage is that of a supply or that of a
shunt. `_RULES` has the chips where the kernel documents it. On other chips, a voltage and a current belong together if
they have the same label, or if PMBus's labels say so: ``vout1`` and ``iout1`` are ``pout1``. Not in the table are chips
whose driver assumes a sense resistor of 1 mOhm (LTC4151, LTC4260, LTC4261), because their currents are in an unknown
unit.

Sources: Linux ``Documentation/hwmon/{ina209,ina2xx,ina3221,max20730,pmbus-core}.rst``, ``drivers/hwmon/ina3221.c``
(steps of 8 mV and, at the shunt, 40 uV).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from joulewatch_exporter.collectors.base.sysfs import read_int_or_none
from joulewatch_exporter.collectors.hwmon.chips import Attribute, Attributes, Channel, Chip, skipped
from joulewatch_exporter.collectors.hwmon.values import ValueFile
from joulewatch_exporter.model import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    chips: str
    """Pattern of chip names."""
    pairs: tuple[tuple[int, int], ...]
    """Numbers of the voltage and of the current. All other voltages and currents are shunts, sums or inputs."""
    step_volts: float | None = None
    """Step of the voltage; None: 1 mV, that of the file."""
    step_shunt_volts: float | None = None
    """Step of the voltage at the shunt; None: the current has steps of 1 mA, those of the file."""


_RULES: Final = (
    # in4 to in6 are shunt voltages in microvolts; in7 and curr4 are sums.
    _Rule(chips=r"ina3221", pairs=((1, 1), (2, 2), (3, 3)), step_volts=0.008, step_shunt_volts=40e-6),
    # in0 is the shunt voltage.
    _Rule(chips=r"ina2(?:09|19|20|26|28|30|31|32|33|34|37|38|60)|sy24655", pairs=((1, 1),)),
    # in1 is the input, in2 and curr1 are the output.
    _Rule(chips=r"max20(?:710|730|734|743)", pairs=((2, 1),)),
)

_PMBUS_LABEL: Final = re.compile(r"[vip](?P<place>in\d*|out\d+)")
NOT_CONNECTED: Final = "nc"
"""Label of a channel that the board does not use, in lower case."""


def pairs_of(chip: Chip, attributes: Attributes, findings: list[Finding]) -> list[Channel]:
    """Return the channels whose power is voltage times current, without those that have a power or energy file."""
    currents = {number: attribute for (kind, number), attribute in attributes.items() if kind == "curr"}
    voltages = {number: attribute for (kind, number), attribute in attributes.items() if kind == "in"}
    # The driver of Xilinx's kernel appends the name of the chip in the device tree: ina226_u76.
    rule = next((rule for rule in _RULES if re.fullmatch(rf"(?:{rule.chips})(?:_\w+)?", chip.name)), None)
    pairs = _same_label(voltages, currents) if rule is None else rule.pairs
    filed = {key: attribute for key, attribute in attributes.items() if key[0] in ("power", "energy")}
    labels = {attribute.label.lower() for attribute in filed.values()} - {""}
    numbers = {number for _, number in filed} if rule is not None else set()
    products = []
    for in_number, curr_number in pairs:
        if in_number not in voltages or curr_number not in currents or curr_number in numbers:
            continue
        volts, amperes = voltages[in_number], currents[curr_number]
        label = _power_label(amperes.label or volts.label)
        if label.lower() == NOT_CONNECTED or label.lower() in labels:
            continue
        disabled = next((side for side in (volts, amperes) if side.is_disabled), None)
        if disabled is not None:
            name = disabled.stem.rpartition("/")[2]
            findings.append(skipped(f"{amperes.stem}_input", f"{chip.name}: disabled by {name}_enable"))
        elif (product := _product(volts, amperes, curr_number, label, rule)) is not None:
            products.append(product)
    if voltages and currents and not products and not filed and rule is None:
        findings.append(
            skipped(chip.identity, f"{chip.name}: has voltages and currents, but it is not known which belong together")
        )
    return products


def _same_label(voltages: dict[int, Attribute], currents: dict[int, Attribute]) -> Iterator[tuple[int, int]]:
    """Return the numbers of the voltages and currents with the same label, if no other of the chip has it."""
    labels = {number: _power_label(voltage.label).lower() for number, voltage in voltages.items()}
    wanted = {number: _power_label(current.label).lower() for number, current in currents.items()}
    for curr_number, label in sorted(wanted.items()):
        same = [number for number, other in labels.items() if label and other == label]
        if len(same) == 1 and list(wanted.values()).count(label) == 1:
            yield same[0], curr_number


def _power_label(label: str) -> str:
    """Return the label of the power: as PMBus names it, else that of voltage and current."""
    match = _PMBUS_LABEL.fullmatch(label.lower())
    return label if match is None else f"p{match['place']}"


def _product(volts: Attribute, amperes: Attribute, number: int, label: str, rule: _Rule | None) -> Channel | None:
    """Return the channel; averages are used if both sides have one, None if the two have no common suffix."""
    suffix = next((name for name in ("average", "input") if name in volts.suffixes & amperes.suffixes), None)
    if suffix is None:
        return None
    step_volts = step_amperes = None
    if rule is not None:
        step_volts = rule.step_volts
        shunt_microohms = read_int_or_none(f"{amperes.stem.rpartition('/')[0]}/shunt{number}_resistor")
        if rule.step_shunt_volts is not None and shunt_microohms:
            step_amperes = rule.step_shunt_volts * 1e6 / shunt_microohms
    return Channel(
        kind="power",
        number=number,
        label=label,
        stem=amperes.stem,
        file=ValueFile(path=f"{volts.stem}_{suffix}", per_unit=1e3, step=step_volts),
        amperes=ValueFile(path=f"{amperes.stem}_{suffix}", per_unit=1e3, step=step_amperes),
        is_average=suffix == "average",
    )
