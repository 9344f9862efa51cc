"""The built-in usage sources, in the order in which they are tried.

For each component and device, the first source that can be opened is used. Third-party sources come last; they register
under the entry point ``joulewatch.usage``.
"""

from __future__ import annotations

from typing import Final

from joulewatch_exporter.attribution.cgroups import CgroupsSource
from joulewatch_exporter.attribution.gpu_drm import DrmUsageSource
from joulewatch_exporter.attribution.gpu_nvml import NvmlUsageSource
from joulewatch_exporter.attribution.model import UsageSource
from joulewatch_exporter.attribution.processes import ProcessesSource
from joulewatch_exporter.collectors import installed_plugins

# An explicit list, so that the type checker rejects an incomplete source.
SOURCES: Final[tuple[type[UsageSource], ...]] = (CgroupsSource, ProcessesSource, NvmlUsageSource, DrmUsageSource)

ENTRY_POINT: Final = "joulewatch.usage"
_MEMBERS: Final = ("components", "Options", "findings", "open", "read", "survey", "workload", "close")


def all_sources() -> tuple[type[UsageSource], ...]:
    """Return the built-in usage sources and those of installed packages.

    Raises:
        ConfigError: A package's source is not valid; the text names the package.
    """
    taken = {source.name for source in SOURCES}
    return (*SOURCES, *installed_plugins(ENTRY_POINT, "usage source", _MEMBERS, taken))
