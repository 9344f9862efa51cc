"""Find the chips and channels of the hwmon class, and the powercap zones of Arm's firmware."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from joulewatch_exporter.collectors.base.sysfs import list_names, read_int, read_int_or_none, read_text_or
from joulewatch_exporter.errors import SensorAbsentError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Finding, Host

_CHANNEL: Final = re.compile(r"(?P<kind>power|energy)(?P<number>\d+)_(?P<suffix>input|average)")
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
    """One channel of a chip."""

    kind: str
    number: int
    label: str
    stem: str
    """Common prefix of the paths of the channel's files."""
    suffix: str
    """Suffix of the file that is read."""

    @property
    def path(self) -> str:
        return f"{self.stem}_{self.suffix}"

    @property
    def domain(self) -> str:
        return self.label or f"{self.kind}{self.number}"


def find_chips(root: str, *, is_needed: bool) -> list[Chip]:
    """Return the chips, ordered by the path of their device, so that the order is the same on every start."""
    try:
        entries = list_names(root)
    except SensorAbsentError as error:
        if not is_needed:
            return []
        raise SensorAbsentError(f"{error}; this kernel has no hwmon class") from error
    chips: list[Chip] = []
    for entry in entries:
        # The real path, because hwmonX may later belong to another device.
        directory = os.path.realpath(f"{root}/{entry}")
        device = os.path.realpath(f"{directory}/device")
        if not Path(directory).is_dir():
            continue
        has_device = Path(device).is_dir()
        # acpi_power_meter keeps its name in the device's directory.
        name = read_text_or(f"{directory}/name", "") or read_text_or(f"{device}/name", "") or "unknown"
        label = _device_label(device) if has_device else name
        directories = (directory, device) if has_device else (directory,)
        chips.append(
            Chip(name=name, device=label, identity=device if has_device else directory, directories=directories)
        )
    return sorted(chips, key=lambda chip: (chip.identity, chip.name))


def _device_label(device: str) -> str:
    """Return the last part of the device's path; for I2C devices with the bus."""
    bus, base = device.split("/")[-2:]
    return f"{bus}-{base}" if _I2C_DEVICE.fullmatch(base) and bus.startswith("i2c-") else base


def channels_of(chip: Chip, findings: list[Finding]) -> list[Channel]:
    """Return the chip's channels; if a channel has a momentary value and an average, use the momentary value."""
    places: dict[tuple[str, int], tuple[str, str]] = {}  # kind and number -> directory and suffix
    for directory in chip.directories:
        try:
            entries = list_names(directory)
        except SensorError:
            continue  # the device is disappearing
        here: dict[tuple[str, int], tuple[str, str]] = {}
        for entry in entries:
            # The pattern does not match a directory `power`, which belongs to runtime power management.
            if (match := _CHANNEL.fullmatch(entry)) is None:
                continue
            key = (match["kind"], int(match["number"]))
            if key not in here or match["suffix"] == "input":
                here[key] = (directory, match["suffix"])
        for key, place in here.items():
            places.setdefault(key, place)
    channels = []
    for (kind, number), (directory, suffix) in sorted(places.items()):
        stem = f"{directory}/{kind}{number}"
        if read_int_or_none(f"{stem}_enable") == 0:
            findings.append(skipped(f"{stem}_{suffix}", f"{chip.name}: disabled by {kind}{number}_enable"))
        elif read_int_or_none(f"{stem}_is_battery") == 1:
            findings.append(skipped(f"{stem}_{suffix}", f"{chip.name}: measures a battery, not the server"))
        else:
            channels.append(
                Channel(kind=kind, number=number, label=read_text_or(f"{stem}_label", ""), stem=stem, suffix=suffix)
            )
    return channels


def scmi_zones(host: Host, findings: list[Finding]) -> list[tuple[Chip, list[Channel]]]:
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
        path = f"{directory}/power_uw"
        try:
            read_int(path)
        except SensorAbsentError:
            continue
        except SensorGlitchError as error:
            findings.append(skipped(path, f"arm-scmi: not measured by the firmware: {error}"))
            continue
        except SensorError:
            pass  # denied: reported when the channel is read
        chip = Chip(name="arm-scmi", device=name, identity=directory, directories=(directory,))
        label = read_text_or(f"{directory}/name", "")
        zones.append((chip, [Channel(kind="power", number=1, label=label, stem=f"{directory}/power", suffix="uw")]))
    return zones


def skipped(subject: str, text: str) -> Finding:
    """Return a finding that something is not read."""
    return Finding(status="skipped", collector="hwmon", subject=subject, text=text)
