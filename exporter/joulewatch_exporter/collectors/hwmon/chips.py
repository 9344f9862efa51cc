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

_CHANNEL: Final = re.compile(r"(?P<kind>power|energy)(?P<number>\d+)_(?P<what>input|average)")
_I2C_DEVICE: Final = re.compile(r"\d+-[0-9a-f]{4}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """One hwmon device, as found."""

    name: str
    device: str
    """Stable label: PCI address, ACPI name, I2C bus and address."""
    identity: str
    """Real path of the device, or of the hwmon directory where there is no device."""
    directories: tuple[str, ...]
    """Real paths in which channels may be, the preferred one first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    kind: str
    number: int
    label: str
    stem: str
    """The path without what the channel's files differ in."""
    what: str

    @property
    def path(self) -> str:
        return f"{self.stem}_{self.what}"

    @property
    def domain(self) -> str:
        return self.label or f"{self.kind}{self.number}"


def find_chips(root: str, *, is_needed: bool) -> list[Chip]:
    """List the chips, ordered by their device's path: the same on every start."""
    try:
        entries = list_names(root)
    except SensorAbsentError as error:
        if not is_needed:
            return []
        raise SensorAbsentError(f"{error}; this kernel has no hwmon class") from error
    chips: list[Chip] = []
    for entry in entries:
        # The real path, because hwmonX below the class may belong to another device tomorrow.
        directory = os.path.realpath(f"{root}/{entry}")
        device = os.path.realpath(f"{directory}/device")
        if not Path(directory).is_dir():
            continue
        has_device = Path(device).is_dir()
        # acpi_power_meter has its name with the device.
        name = read_text_or(f"{directory}/name", "") or read_text_or(f"{device}/name", "") or "unknown"
        label = _device_label(device) if has_device else name
        directories = (directory, device) if has_device else (directory,)
        chips.append(
            Chip(name=name, device=label, identity=device if has_device else directory, directories=directories)
        )
    return sorted(chips, key=lambda chip: (chip.identity, chip.name))


def _device_label(device: str) -> str:
    """The last part of the device's path; with its bus where that part alone says too little."""
    bus, base = device.split("/")[-2:]
    return f"{bus}-{base}" if _I2C_DEVICE.fullmatch(base) and bus.startswith("i2c-") else base


def channels_of(chip: Chip, findings: list[Finding]) -> list[Channel]:
    """List the chip's channels: one file for each, the momentary one where there is also an average."""
    chosen: dict[tuple[str, int], tuple[str, str]] = {}  # -> directory, what
    for directory in chip.directories:
        try:
            entries = list_names(directory)
        except SensorError:
            continue  # going just now
        here: dict[tuple[str, int], tuple[str, str]] = {}
        for entry in entries:
            # A plain directory called `power` is the kernel's runtime power management: the pattern passes it by.
            if (match := _CHANNEL.fullmatch(entry)) is None:
                continue
            key = (match["kind"], int(match["number"]))
            if key not in here or match["what"] == "input":
                here[key] = (directory, match["what"])
        for key, place in here.items():
            chosen.setdefault(key, place)
    channels = []
    for (kind, number), (directory, what) in sorted(chosen.items()):
        stem = f"{directory}/{kind}{number}"
        if read_int_or_none(f"{stem}_enable") == 0:
            findings.append(skipped(f"{stem}_{what}", f"{chip.name}: switched off by {kind}{number}_enable"))
        elif read_int_or_none(f"{stem}_is_battery") == 1:
            findings.append(skipped(f"{stem}_{what}", f"{chip.name}: a meter of a battery, not of the server"))
        else:
            channels.append(
                Channel(kind=kind, number=number, label=read_text_or(f"{stem}_label", ""), stem=stem, what=what)
            )
    return channels


def scmi_zones(host: Host, findings: list[Finding]) -> list[tuple[Chip, list[Channel]]]:
    """The powercap zones of Arm's firmware as chips of one channel; a zone holds those below it, so none is a sum."""
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
            findings.append(skipped(path, f"arm-scmi: the firmware does not measure it: {error}"))
            continue
        except SensorError:
            pass  # denied: said where every channel is tried
        chip = Chip(name="arm-scmi", device=name, identity=directory, directories=(directory,))
        label = read_text_or(f"{directory}/name", "")
        zones.append((chip, [Channel(kind="power", number=1, label=label, stem=f"{directory}/power", what="uw")]))
    return zones


def skipped(subject: str, text: str) -> Finding:
    return Finding(status="skipped", collector="hwmon", subject=subject, text=text)
