"""The sensor families this exporter knows: one module each, in the order in which they are opened.

The order decides who publishes what two families know: the first that reads a source has it (``Host.claimed``).
Families of a user's own come last; they are found by the entry point ``joulewatch.collectors``.
"""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from typing import Any, Final

from joulewatch_exporter.collectors.cray.collector import CrayCollector
from joulewatch_exporter.collectors.estimate.collector import EstimateCollector
from joulewatch_exporter.collectors.fpga.collector import FpgaCollector
from joulewatch_exporter.collectors.hwmon.collector import HwmonCollector
from joulewatch_exporter.collectors.ipmi import IpmiCollector
from joulewatch_exporter.collectors.nvml import NvmlCollector
from joulewatch_exporter.collectors.rapl.collector import RaplCollector
from joulewatch_exporter.collectors.redfish.collector import RedfishCollector
from joulewatch_exporter.errors import ConfigError
from joulewatch_exporter.model import Collector

# An explicit list, so that a type checker rejects a family that is not whole.
FAMILIES: Final[tuple[type[Collector], ...]] = (
    RaplCollector,
    NvmlCollector,
    FpgaCollector,
    CrayCollector,
    HwmonCollector,
    IpmiCollector,
    RedfishCollector,
    EstimateCollector,
)

ENTRY_POINT: Final = "joulewatch.collectors"
_MEMBERS: Final = ("Options", "sensors", "timing", "findings", "outdated", "open", "settle", "close")


def all_families() -> tuple[type[Collector], ...]:
    """Return our own families and those that installed packages offer.

    Raises:
        ConfigError: One cannot be imported, is no collector, or has a name that is taken; the text names the package.
    """
    families = list(FAMILIES)
    names = {family.name for family in FAMILIES}
    for entry in sorted(entry_points(group=ENTRY_POINT), key=lambda entry: entry.name):
        package = entry.dist.name if entry.dist is not None else entry.value
        where = f"collector {entry.name} of the package {package} ({entry.value})"
        try:
            family: Any = entry.load()
        except Exception as error:
            raise ConfigError(f"{where}: cannot be imported: {type(error).__name__}: {error}") from error
        missing = [member for member in _MEMBERS if not hasattr(family, member)]
        if missing:
            raise ConfigError(f"{where}: is no collector: it has no {', '.join(missing)}")
        if getattr(family, "name", None) != entry.name or not re.fullmatch(r"[a-z][a-z0-9_]*", entry.name):
            raise ConfigError(f"{where}: its name must be that of its entry point, in lower case: {entry.name}")
        if entry.name in names:
            raise ConfigError(f"{where}: there is a collector of this name already")
        names.add(entry.name)
        families.append(family)
    return tuple(families)
