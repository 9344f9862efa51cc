"""Find the chips of the hwmon class and their channels, and the powercap zones of Arm's firmware."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

from joulewatch_exporter.collectors.base.probe import Prober
from joulewatch_exporter.collectors.base.sysfs import list_names, read_int, read_int_or_none, read_text_or
from joulewatch_exporter.collectors.hwmon.values import ValueFile
from joulewatch_exporter.errors import SensorAbsentError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Finding, Host

_FILE: Final = re.compile(r"(?P<kind>power|energy|in|curr)(?P<number>\d+)_(?P<suffix>input|average)")
_I2C_DEVICE: Final = re.compile(r"\d+-[0-9a-f]{4}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """One hwmon chip."""

    name: str
    device: str
    """Stable label: PCI address, ACPI name, or I2C bus and address."""
    identity: str
    """Real path of the device, or of the hwmon directory if there is no device."""
    directories: tuple[str, ...]
    """Real paths that may contain channels, in order of preference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """One channel of a chip: power or energy from a file, or power as the product of a voltage and a current."""

    kind: Literal["power", "energy"]
    number: int
    label: str
    stem: str
    """Common prefix of the paths of the channel's files; for a product, of those of the current."""
    file: ValueFile
    """The power or the energy; for a product the voltage."""
    amperes: ValueFile | None = None
    """The current of a product."""
    is_average: bool = False
    power: Channel | None = None
    """The momentary power of the same rail, if this is an energy."""

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.file.path,) if self.amperes is None else (self.file.path, self.amperes.path)

    @property
    def source(self) -> str:
        """The file or files, as the label ``source`` shows them."""
        first, *others = self.paths
        return " x ".join([first, *(path.rpartition("/")[2] for path in others)])

    @property
    def domain(self) -> str:
        return self.label or f"{self.kind}{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """A measured value of a chip, such as ``curr1``, before it is known what it belongs to."""

    stem: str
    suffixes: frozenset[str]
    """``input``, ``average`` or both."""

    @property
    def label(self) -> str:
        return read_text_or(f"{self.stem}_label", "")

    @property
    def is_disabled(self) -> bool:
        return read_int_or_none(f"{self.stem}_enable") == 0


Attributes = Mapping[tuple[str, int], Attribute]
"""By kind (``power``, ``energy``, ``in``, ``curr``) and number."""


def find_chips(root: str, prober: Prober, *, is_needed: bool) -> list[Chip]:
    """Return the chips in the same order on every start: by the path of their device, never by the X of hwmonX."""
    try:
        entries = list_names(root)
    except SensorAbsentError as error:
        if not is_needed:
            return []
        raise SensorAbsentError(f"{error}; this kernel has no hwmon class") from error
    chips: list[tuple[tuple[str, ...], Chip]] = []
    for entry in entries:
        # The real path, because hwmonX may later belong to another device.
        directory = os.path.realpath(f"{root}/{entry}")
        if Path(directory).is_dir():
            ordered = prober.call(directory, "", partial(_ordered, directory))
            if ordered is not None:
                chips.append(ordered)
    return [chip for _, chip in sorted(chips, key=lambda ordered: ordered[0])]


def _ordered(directory: str) -> tuple[tuple[str, ...], Chip] | None:
    """Return the chip of a directory, after its sort key."""
    device = os.path.realpath(f"{directory}/device")
    has_device = Path(device).is_dir()
    # acpi_power_meter keeps its name in the device's directory.
    name = read_text_or(f"{directory}/name", "") or read_text_or(f"{device}/name", "") or "unknown"
    # In a copied tree, the link to the device is a folder, whose path does not name the device.
    is_linked = has_device and device != f"{directory}/device"
    label = device_label(device) if is_linked else name
    directories = (directory, device) if has_device else (directory,)
    chip = Chip(name=name, device=label, identity=device if has_device else directory, directories=directories)
    return _order(chip), chip


def _order(chip: Chip) -> tuple[str, ...]:
    """Return the sort key of a chip; chips of the same name on the same device, or without one, by their labels."""
    directory = chip.directories[0]
    path = directory.rpartition("/")[0] if chip.identity == directory else chip.identity
    try:
        labels = [name for name in list_names(directory) if name.endswith("_label")]
    except SensorError:
        labels = []
    return (path, chip.name, *(f"{name} {read_text_or(f'{directory}/{name}', '')}" for name in labels))


def device_label(device: str) -> str:
    """Return the last part of the device's path; for I2C devices with the bus."""
    bus, base = device.split("/")[-2:]
    return f"{bus}-{base}" if _I2C_DEVICE.fullmatch(base) and bus.startswith("i2c-") else base


def attributes_of(chip: Chip) -> Attributes:
    """Return the measured values of a chip, from all of its directories."""
    attributes: dict[tuple[str, int], Attribute] = {}
    for directory in chip.directories:
        try:
            entries = list_names(directory)
        except SensorError:
            continue  # the device is disappearing
        suffixes: dict[tuple[str, int], set[str]] = {}
        for entry in entries:
            # The pattern does not match a directory `power`, which belongs to runtime power management.
            if (match := _FILE.fullmatch(entry)) is not None:
                suffixes.setdefault((match["kind"], int(match["number"])), set()).add(match["suffix"])
        for (kind, number), names in suffixes.items():
            attribute = Attribute(stem=f"{directory}/{kind}{number}", suffixes=frozenset(names))
            attributes.setdefault((kind, number), attribute)
    return attributes


def channels_of(chip: Chip, attributes: Attributes, findings: list[Finding]) -> list[Channel]:
    """Return the channels with a power or energy file; the momentary value is preferred to an average."""
    channels = []
    for kind in ("energy", "power"):
        for number in sorted(number for other, number in attributes if other == kind):
            attribute = attributes[kind, number]
            suffix = "input" if "input" in attribute.suffixes else "average"
            path = f"{attribute.stem}_{suffix}"
            if attribute.is_disabled:
                findings.append(skipped(path, f"{chip.name}: disabled by {kind}{number}_enable"))
            elif read_int_or_none(f"{attribute.stem}_is_battery") == 1:
                findings.append(skipped(path, f"{chip.name}: measures a battery, not the server"))
            else:
                channels.append(
                    Channel(
                        kind=kind,
                        number=number,
                        label=attribute.label,
                        stem=attribute.stem,
                        file=ValueFile(path=path, per_unit=1e6),
                        is_average=suffix == "average",
                    )
                )
    return channels


def scmi_zones(host: Host, prober: Prober, findings: list[Finding]) -> list[tuple[Chip, list[Channel]]]:
    """Return the powercap zones of Arm's firmware as chips with one channel.

    A zone contains the zones below it, so they are never summed.
    """
    root = f"{host.sysfs}/class/powercap"
    try:
        names = [name for name in list_names(root) if name.startswith("arm-scmi:")]
    except SensorError:
        return []
    zones = []
    for name in names:
        directory = os.path.realpath(f"{root}/{name}")
        zone = prober.call(directory, name, partial(_scmi_zone, name, directory))
        if isinstance(zone, Finding):
            findings.append(zone)
        elif zone is not None:
            zones.append(zone)
    return zones


def _scmi_zone(name: str, directory: str) -> tuple[Chip, list[Channel]] | Finding | None:
    """Return a zone, or why it is not read; None: it has no power."""
    path = f"{directory}/power_uw"
    try:
        read_int(path)
    except SensorAbsentError:
        return None
    except SensorGlitchError as error:
        return skipped(path, f"arm-scmi: not measured by the firmware: {error}")
    except SensorError:
        pass  # denied: reported when the channel is read
    chip = Chip(name="arm-scmi", device=name, identity=directory, directories=(directory,))
    label = read_text_or(f"{directory}/name", "")
    file = ValueFile(path=path, per_unit=1e6)
    return chip, [Channel(kind="power", number=1, label=label, stem=f"{directory}/power", file=file)]


def skipped(subject: str, text: str, *, device: str = "") -> Finding:
    """Return a finding that something is not read."""
    return Finding(status="skipped", collector="hwmon", subject=subject, text=text, device=device)
