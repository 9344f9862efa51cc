"""The sensor families this exporter knows: one module each, in the order in which they are opened."""

from __future__ import annotations

from typing import Final

from joulewatch_exporter.collectors.estimate import EstimateCollector
from joulewatch_exporter.collectors.hwmon import HwmonCollector
from joulewatch_exporter.collectors.rapl import RaplCollector
from joulewatch_exporter.model import Collector

# An explicit list, so that a type checker rejects a family that is not whole.
FAMILIES: Final[tuple[type[Collector], ...]] = (RaplCollector, HwmonCollector, EstimateCollector)
