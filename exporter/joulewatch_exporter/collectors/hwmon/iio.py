"""Power monitors of the kernel's IIO subsystem, as chips with channels like those of hwmon.

IIO counts in milliwatts, millivolts and milliamperes. A driver shows either processed numbers (``in_power0_input``) or
raw numbers with a scale and perhaps an offset, of the channel (``in_power2_scale``) or of all channels of its kind
(``in_power_scale``). NVIDIA's driver ``ina3221x`` of older Jetson boards names its channels in ``rail_name_N``.

A chip that hwmon shows, too, is not read here: either its device has both, or the driver ``iio-hwmon`` passes its
channels on. The device tree's ``io-channels`` of that driver names the IIO devices.

Sources: Linux ``Documentation/ABI/testing/sysfs-bus-iio``, ``drivers/iio/adc/ina2xx-adc.c`` (shunt, supply, power and
current are the channels 0 to 3), ``drivers/hwmon/iio_hwmon.c``; NVIDIA's L4T kernel, ``drivers/staging/iio/meter/
ina3221.c`` (its ``in_powerN_trigger_input`` are not readings).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

from joulewatch_exporter.collectors.base.probe import Prober
from joulewatch_exporter.collectors.base.sysfs import list_names, read_text_or
from joulewatch_exporter.collectors.hwmon import jetson
from joulewatch_exporter.collectors.hwmon.chips import Channel, Chip, device_label, skipped
from joulewatch_exporter.collectors.hwmon.pairs import NOT_CONNECTED
from joulewatch_exporter.collectors.hwmon.values import ValueFile
from joulewatch_exporter.errors import SensorError
from joulewatch_exporter.model import Finding, Host

_FILE: Final = re.compile(r"in_(?P<kind>power|voltage|current)(?P<number>\d*)_(?P<suffix>input|raw)")
_PER_UNIT: Final = 1e3

_INA2XX: Final = ("ina219", "ina220", "ina226", "ina230", "ina231", "ina236")
_PAIRS: Final[Mapping[str, tuple[str, str]]] = dict.fromkeys(_INA2XX, ("1", "3"))
"""Numbers of the voltage and the current of chips where they differ."""

_Kind = Literal["power", "voltage", "current"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """The files of an IIO device."""

    directory: str
    suffixes: Mapping[tuple[str, str], str]
    """By kind and number: ``input`` or ``raw``."""

    def numbers(self, kind: _Kind) -> list[str]:
        return sorted((number for other, number in self.suffixes if other == kind), key=lambda text: int(text or 0))

    def label(self, kind: _Kind, number: str) -> str:
        return read_text_or(f"{self.directory}/rail_name_{number}", "") or read_text_or(
            f"{self.directory}/in_{kind}{number}_label", ""
        )

    def value(self, kind: _Kind, number: str) -> ValueFile | None:
        """Return how a value is read; None if its scale is unknown."""
        stem = f"{self.directory}/in_{kind}{number}"
        suffix = self.suffixes[kind, number]
        if suffix == "input":
            return ValueFile(path=f"{stem}_input", per_unit=_PER_UNIT)
        shared = f"{self.directory}/in_{kind}"
        scale = _number(f"{stem}_scale", f"{shared}_scale")
        if scale is None:
            return None
        offset = _number(f"{stem}_offset", f"{shared}_offset") or 0.0
        return ValueFile(path=f"{stem}_raw", per_unit=_PER_UNIT, scale=scale, offset=offset)


def iio_root(host: Host) -> str:
    return f"{host.sysfs}/bus/iio/devices"


def iio_chips(
    host: Host, prober: Prober, shown: Iterable[Chip], findings: list[Finding]
) -> list[tuple[Chip, list[Channel]]]:
    """Return the IIO devices with power channels, ordered by the path of their device.

    Args:
        host: Where the files are.
        prober: Reads the files of each device.
        shown: The hwmon chips that have channels.
        findings: Receives what is skipped.
    """
    root = os.path.realpath(iio_root(host))
    try:
        names = [name for name in list_names(root) if name.startswith("iio:device")]
    except SensorError:
        return []
    directories = [os.path.realpath(f"{root}/{name}") for name in names]
    shown = tuple(shown)
    identities = {chip.identity for chip in shown}
    passed_on = _passed_on(directories, shown)
    chips = []
    for directory in directories:
        if (opened := prober.call(directory, "", partial(_open_chip, root, directory))) is None:
            continue
        chip, channels, more = opened
        findings += more
        if channels and (chip.identity in identities or directory in passed_on):
            findings.append(skipped(directory, f"{chip.name}: hwmon shows the same chip"))
        elif channels:
            chips.append((chip, channels))
    return sorted(chips, key=lambda entry: (entry[0].identity, entry[0].name))


def _open_chip(root: str, directory: str) -> tuple[Chip, list[Channel], list[Finding]]:
    findings: list[Finding] = []
    device = directory.rpartition("/")[0]
    name = read_text_or(f"{directory}/name", "") or "unknown"
    label = device_label(device)
    if device == root:  # a copied tree has no links to devices
        device, label = directory, name
    chip = Chip(name=name, device=label, identity=device, directories=(directory,))
    return chip, _channels(chip, _files(directory), findings), findings


def _files(directory: str) -> _Files:
    suffixes: dict[tuple[str, str], str] = {}
    try:
        names = list_names(directory)
    except SensorError:
        names = []
    for name in names:
        # In this order, so that a processed number is preferred to a raw one.
        if (match := _FILE.fullmatch(name)) is not None:
            suffixes.setdefault((match["kind"], match["number"]), match["suffix"])
    return _Files(directory=directory, suffixes=suffixes)


def _channels(chip: Chip, files: _Files, findings: list[Finding]) -> list[Channel]:
    """Return the power channels, and the products of voltages and currents that have none."""
    channels: list[Channel] = []
    for number in files.numbers("power"):
        if files.label("power", number).lower() == NOT_CONNECTED:
            continue
        value = files.value("power", number)
        if value is None:
            findings.append(skipped(f"{files.directory}/in_power{number}_raw", f"{chip.name}: has no scale"))
            continue
        channels.append(_channel(files, "power", number, value, None))
    labels = {channel.label for channel in channels} - {""}
    for volts, amperes in _pairs(chip, files):
        label = files.label("current", amperes)
        if label in labels or label.lower() == NOT_CONNECTED or amperes in files.numbers("power"):
            continue
        voltage, current = files.value("voltage", volts), files.value("current", amperes)
        if voltage is not None and current is not None:
            channels.append(_channel(files, "current", amperes, voltage, current))
    return channels


def _channel(files: _Files, kind: _Kind, number: str, file: ValueFile, amperes: ValueFile | None) -> Channel:
    return Channel(
        kind="power",
        number=int(number or 0),
        label=files.label(kind, number),
        stem=f"{files.directory}/in_{kind}{number}",
        file=file,
        amperes=amperes,
    )


def _pairs(chip: Chip, files: _Files) -> list[tuple[str, str]]:
    """Return the numbers of voltages and currents that belong together: of known chips, else those of one label."""
    voltages, currents = files.numbers("voltage"), files.numbers("current")
    if chip.name in _PAIRS:
        volts, amperes = _PAIRS[chip.name]
        return [(volts, amperes)] if volts in voltages and amperes in currents and not files.numbers("power") else []
    return [
        (number, number)
        for number in currents
        if number in voltages
        and (chip.name in jetson.CHIPS or files.label("current", number) != "")
        and files.label("current", number) == files.label("voltage", number)
    ]


def _number(*paths: str) -> float | None:
    """Return the number in the first of these files that has one."""
    for path in paths:
        try:
            return float(read_text_or(path, ""))
        except ValueError:
            continue
    return None


def _passed_on(directories: Iterable[str], shown: Iterable[Chip]) -> set[str]:
    """Return the directories of the IIO devices whose channels a hwmon chip passes on."""
    by_handle = {handle: path for path in directories for handle in _words(f"{path}/of_node/phandle")}
    passed_on = set()
    for chip in shown:
        words = list(_words(f"{chip.identity}/of_node/io-channels"))
        while words:
            directory = by_handle.get(words.pop(0), "")
            passed_on.add(directory)
            # After each device follows which of its channels is meant, in this many numbers.
            cells = _words(f"{directory}/of_node/#io-channel-cells")
            del words[: cells[0] if cells else 1]
    return passed_on


def _words(path: str) -> tuple[int, ...]:
    """Return the numbers of a property of the device tree: 32 bits each, the highest byte first."""
    try:
        data = Path(path).read_bytes()
    except OSError:
        return ()
    return tuple(int.from_bytes(data[start : start + 4]) for start in range(0, len(data) - len(data) % 4, 4))
