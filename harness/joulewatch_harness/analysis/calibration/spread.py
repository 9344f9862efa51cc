"""How much the watts per core of different loads differ on one machine. Pure.

The energy of a workload is its share of the CPU time, times the energy. How wrong that may be depends on the ratio of
the watts per core of two workloads (``energy.shares``). The loads of ``metering.loads`` stand for all workloads: one
that is still more frugal, or more demanding, is not covered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from joulewatch_harness.analysis.reports.table import DEFAULT_WIDTH, Column, Table, json_text, paragraphs
from joulewatch_harness.analysis.results.numbers import warning_line
from joulewatch_harness.gum import student_factor

IDLE: Final = "idle"
LARGEST_RATIO: Final = 100.0
"""A larger one says the same: nearly any share is possible."""
FORMAT_VERSION: Final = 1
_COMMENT: Final = """\
# The largest ratio of the watts per core of two workloads on {host}, by joulewatch calibrate --workloads.
# To use it, name this file under exporter.calibration_files in the configuration of joulewatch-exporter.
"""
_EMULATED: Final = "# EMULATED: measured with emulated sensors; not a calibration of this machine.\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadWindow:
    """One window: the machine's mean power while a load ran, or nothing did."""

    load: str
    round: int
    watts: dict[str, float]
    """Component -> power of its devices."""
    cores: float
    """Mean number of cores that the load used; 0 when idle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WattsPerCore:
    """The active power of one load per core, for one component."""

    load: str
    cores: float
    watts: float
    expanded_watts: float
    """At 95 % coverage, from the scatter of the rounds."""

    @property
    def lowest(self) -> float:
        return self.watts - self.expanded_watts

    @property
    def highest(self) -> float:
        return self.watts + self.expanded_watts


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The loads of one component, and the ratio between the most and the least demanding one."""

    component: str
    loads: tuple[WattsPerCore, ...]

    @property
    def most(self) -> WattsPerCore:
        return max(self.loads, key=lambda load: load.watts)

    @property
    def least(self) -> WattsPerCore:
        return min(self.loads, key=lambda load: load.watts)

    @property
    def unresolved(self) -> list[str]:
        """The loads whose power does not differ from idle power."""
        return [load.load for load in self.loads if load.lowest <= 0]

    @property
    def is_resolved(self) -> bool:
        return not self.unresolved

    @property
    def ratio(self) -> float:
        return self.most.watts / self.least.watts if self.least.watts > 0 else math.inf

    @property
    def lower(self) -> float:
        """Smallest ratio within the uncertainties of both loads."""
        return max(self.most.lowest / self.least.highest, 1.0) if self.least.highest > 0 else math.inf

    @property
    def upper(self) -> float:
        """Largest ratio within the uncertainties of both loads: the one that is used."""
        least = min(load.lowest for load in self.loads)
        highest = max(load.highest for load in self.loads)
        return min(highest / least, LARGEST_RATIO) if least > 0 else LARGEST_RATIO


def spreads(windows: Sequence[LoadWindow]) -> list[Spread]:
    """Return the spread of each component.

    Idle power is subtracted round by round, so that slow changes of the machine do not widen the result.
    """
    idle = {window.round: window for window in windows if window.load == IDLE}
    loads = list(dict.fromkeys(window.load for window in windows if window.load != IDLE))
    components = list(dict.fromkeys(name for window in windows for name in window.watts))
    result = []
    for component in components:
        each = []
        for load in loads:
            own = [window for window in windows if window.load == load and window.cores > 0]
            values = [(one.watts[component] - idle[one.round].watts[component]) / one.cores for one in own]
            each.append(_mean(load, values, [one.cores for one in own]))
        result.append(Spread(component=component, loads=tuple(each)))
    return result


def _mean(load: str, values: Sequence[float], cores: Sequence[float]) -> WattsPerCore:
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return WattsPerCore(
        load=load,
        cores=math.fsum(cores) / len(cores),
        watts=mean,
        expanded_watts=student_factor(len(values) - 1) * math.sqrt(variance / len(values)),
    )


def spread_text(found: Sequence[Spread], methods: Sequence[str], *, host: str, run: str, date: str) -> str:
    """Return the file as YAML: of each component the largest ratio within the uncertainty."""
    import yaml

    ratios = [
        {
            "host": host,
            "component": one.component,
            "ratio": math.ceil(100 * one.upper) / 100,
            "date": date,
            "run": run,
        }
        for one in found
    ]
    comment = _COMMENT.format(host=host) + (_EMULATED if "emulated" in methods else "")
    return comment + yaml.safe_dump({"version": FORMAT_VERSION, "workload_ratios": ratios}, sort_keys=False)


def render_table(found: Sequence[Spread], methods: Sequence[str], width: int = DEFAULT_WIDTH) -> str:
    """Return the text: one row per component and load, and the ratios."""
    columns: list[Column[tuple[Spread, WattsPerCore]]] = [
        Column("load", lambda row: row[1].load, text=True),
        Column("cores", lambda row: f"{row[1].cores:.2f}"),
        Column("W per core", lambda row: f"{row[1].watts:.3g}"),
        Column("± 95 %", lambda row: f"{row[1].expanded_watts:.2g}"),
    ]
    rows = [(one, load) for one in found for load in one.loads]
    texts = []
    for one in found:
        if one.is_resolved:
            texts.append(
                f"{one.component}: {one.most.load} draws {one.ratio:.3g} times as much per core as {one.least.load} "
                f"({one.lower:.3g} to {one.upper:.3g})"
            )
        else:
            texts.append(
                f"{one.component}: the power of {', '.join(one.unresolved)} does not differ from idle power, so "
                f"{one.upper:g} is used: nearly any share is possible"
            )
    if warning := warning_line(methods):
        texts.insert(0, warning)
    lines = Table(columns, rows, lambda row: row[0].component).lines(width)
    return "\n".join([*lines, "", *paragraphs(texts, width)]) + "\n"


def render_csv(found: Sequence[Spread]) -> str:
    """Return one line per component and load."""
    columns: list[Column[tuple[Spread, WattsPerCore]]] = [
        Column("component", lambda row: row[0].component),
        Column("load", lambda row: row[1].load),
        Column("cores", lambda row: f"{row[1].cores:.9g}"),
        Column("watts_per_core", lambda row: f"{row[1].watts:.9g}"),
        Column("uncertainty_watts", lambda row: f"{row[1].expanded_watts:.4g}"),
    ]
    return Table(columns, [(one, load) for one in found for load in one.loads]).csv()


def render_json(found: Sequence[Spread], methods: Sequence[str], run: str) -> str:
    """Return the JSON."""
    document: dict[str, Any] = {
        "schema_version": FORMAT_VERSION,
        "run": run,
        "coverage": 0.95,
        "emulated": "emulated" in methods,
        "components": [
            {
                "component": one.component,
                "resolved": one.is_resolved,
                "ratio": one.ratio if one.is_resolved else None,
                "lower_ratio": one.lower if one.is_resolved else None,
                "upper_ratio": one.upper,
                "loads": [
                    {
                        "load": load.load,
                        "cores": load.cores,
                        "watts_per_core": load.watts,
                        "expanded_uncertainty": load.expanded_watts,
                    }
                    for load in one.loads
                ],
            }
            for one in found
        ],
    }
    return json_text(document)
