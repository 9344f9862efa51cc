"""The built-in sensor families, one folder each, in the order in which they are opened.

If two families can read the same source, the first one publishes it (``Host.claimed``). Third-party families come
last; they register under the entry point ``joulewatch.collectors``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from importlib.metadata import entry_points
from typing import Any, Final

from joulewatch_exporter.collectors.amdgpu.collector import AmdgpuCollector
from joulewatch_exporter.collectors.cray.collector import CrayCollector
from joulewatch_exporter.collectors.estimate.collector import EstimateCollector
from joulewatch_exporter.collectors.fpga.collector import FpgaCollector
from joulewatch_exporter.collectors.hwmon.collector import HwmonCollector
from joulewatch_exporter.collectors.ipmi.collector import IpmiCollector
from joulewatch_exporter.collectors.nvml.collector import NvmlCollector
from joulewatch_exporter.collectors.rapl.collector import RaplCollector
from joulewatch_exporter.collectors.redfish.collector import RedfishCollector
from joulewatch_exporter.errors import ConfigError
from joulewatch_exporter.model import Collector

# An explicit list, so that the type checker rejects an incomplete family.
FAMILIES: Final[tuple[type[Collector], ...]] = (
    RaplCollector,
    NvmlCollector,
    FpgaCollector,
    CrayCollector,
    AmdgpuCollector,
    HwmonCollector,
    IpmiCollector,
    RedfishCollector,
    EstimateCollector,
)

ENTRY_POINT: Final = "joulewatch.collectors"
_MEMBERS: Final = ("Options", "sensors", "timing", "findings", "outdated", "open", "settle", "close")


def experimental_note(family: type[Collector]) -> str:
    """Return on which hardware the code of a family has never run; empty if it has run on its hardware.

    Families set the class attribute ``experimental``; it is optional.
    """
    return str(getattr(family, "experimental", ""))


def all_families() -> tuple[type[Collector], ...]:
    """Return the built-in families and those of installed packages.

    Raises:
        ConfigError: A package's family cannot be imported, is not a valid collector, or has a name that is already
            used; the text names the package.
    """
    return (*FAMILIES, *installed_plugins(ENTRY_POINT, "collector", _MEMBERS, {family.name for family in FAMILIES}))


def installed_plugins(group: str, noun: str, members: Sequence[str], taken: Collection[str]) -> Iterator[Any]:
    """Yield the classes that installed packages register under an entry point, in the order of their names.

    Args:
        group: The entry point.
        noun: What the classes are, for messages.
        members: What each class must have.
        taken: Names of the built-in classes.

    Raises:
        ConfigError: A class cannot be imported, lacks a member, or has a name that is already used; the text names its
            package.
    """
    names = set(taken)
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        package = entry.dist.name if entry.dist is not None else entry.value
        where = f"{noun} {entry.name} of the package {package} ({entry.value})"
        try:
            plugin: Any = entry.load()
        except Exception as error:
            raise ConfigError(f"{where}: cannot be imported: {type(error).__name__}: {error}") from error
        missing = [member for member in members if not hasattr(plugin, member)]
        if missing:
            raise ConfigError(f"{where}: is not a valid {noun}: missing {', '.join(missing)}")
        if getattr(plugin, "name", None) != entry.name or not re.fullmatch(r"[a-z][a-z0-9_]*", entry.name):
            raise ConfigError(f"{where}: its name must be the lower-case name of its entry point: {entry.name}")
        if entry.name in names:
            raise ConfigError(f"{where}: a {noun} of this name already exists")
        names.add(entry.name)
        yield plugin
