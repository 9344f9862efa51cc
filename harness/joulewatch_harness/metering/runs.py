"""Stored runs as objects: ``joulewatch.load``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.reports import to_json, to_text
from joulewatch_harness.analysis.results.audit.findings import Finding
from joulewatch_harness.analysis.results.model import EnergyResult, Estimate, GroupResult, RunResult
from joulewatch_harness.analysis.results.summary import analyze_run
from joulewatch_harness.analysis.sources.stored import find
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.metering.values import text_of
from joulewatch_harness.names import unknown

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """One configuration at one batch size: the mean over its rounds, or over the windows of a name."""

    group: GroupResult
    """All details: parts, latency, phases, idle power, budgets."""

    @property
    def name(self) -> str:
        """The configuration; of ``measure``, the name of the windows."""
        return self.group.configuration.name

    @property
    def batch_size(self) -> int:
        """Inferences in a batch; of ``measure``, 1."""
        return self.group.batch_size

    @property
    def repeats(self) -> int:
        """Number of rounds or windows in the mean energy; without an energy, in the mean time."""
        return self.group.rounds if self.energy.gross is None else len(self.energy.gross.rounds)

    @property
    def energy(self) -> EnergyResult:
        """The energy per inference of all devices, gross and net; without device sensors, of the first node."""
        nodes = self.group.nodes
        return nodes[0] if nodes and not self.group.total.sensors else self.group.total

    @property
    def joules_per_inference(self) -> float | None:
        """Gross energy per inference; None if it is not known (see ``missing``)."""
        return _value(self.energy.gross)

    @property
    def uncertainty(self) -> float | None:
        """Expanded uncertainty at 95 %; None also with a single repeat, which shows no repeatability."""
        return None if self.energy.gross is None else self.energy.gross.expanded

    @property
    def covers(self) -> tuple[str, ...]:
        """What the uncertainty includes: ``sampling``, ``repeats``, ``accuracy``."""
        return () if self.energy.gross is None else self.energy.gross.covers

    @property
    def net_joules_per_inference(self) -> float | None:
        """The same net of idle power; None: idle power is not known."""
        return _value(self.energy.net)

    @property
    def inferences_per_second(self) -> float | None:
        """Mean over the repeats."""
        return _value(self.group.throughput)

    @property
    def seconds_per_inference(self) -> float | None:
        """Inverse of ``inferences_per_second``."""
        rate = self.inferences_per_second
        return 1 / rate if rate else None

    @property
    def missing(self) -> str:
        """Why the energy is not known; empty if it is."""
        return self.energy.missing

    @property
    def per_component(self) -> dict[str, EnergyResult]:
        """Component -> energy per inference."""
        return {energy.name: energy for energy in self.group.components}

    def __repr__(self) -> str:
        gross = self.energy.gross
        text = "no number" if gross is None else f"{text_of(gross, 'J')} per inference"
        return f"<joulewatch result {self.name!r}, batch size {self.batch_size}: {text}, repeats: {self.repeats}>"


@dataclass(frozen=True, slots=True)
class Run:
    """An analyzed run; iterates over its results, and ``run[name]`` is the result of a name."""

    analysis: RunResult
    """The analysis with all details, as ``joulewatch analyze`` shows it."""

    @property
    def id(self) -> str:
        """The run's id."""
        return self.analysis.record.header.run

    @property
    def results(self) -> tuple[Result, ...]:
        """One result for each configuration and batch size."""
        return tuple(map(Result, self.analysis.groups))

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the audit found."""
        return self.analysis.findings

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.analysis.groups)

    def __getitem__(self, key: str | tuple[str, int]) -> Result:
        """Return the result of a configuration, or of a configuration and a batch size.

        Raises:
            KeyError: There is none, or the configuration has several batch sizes.
        """
        name, batch_size = key if isinstance(key, tuple) else (key, None)
        named = [result for result in self.results if result.name == name]
        chosen = [result for result in named if batch_size in (None, result.batch_size)]
        if len(chosen) == 1:
            return chosen[0]
        if not named:
            raise KeyError(unknown("configuration", name, {result.name for result in self.results}))
        sizes = ", ".join(str(result.batch_size) for result in named)
        raise KeyError(f"{name!r} has the batch sizes {sizes}: write run[{name!r}, {named[0].batch_size}]")

    def to_pandas(self) -> pandas.DataFrame:
        """Return one row for each configuration and batch size; energies are in joules per inference.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ConfigError("to_pandas needs the package pandas: pip install 'joulewatch[pandas]'") from error
        return pandas.DataFrame([_row(result) for result in self.results])

    def to_json(self) -> str:
        """Return what ``joulewatch analyze --format json`` writes."""
        return to_json.render_json(self.analysis)

    def __str__(self) -> str:
        return to_text.render_table(self.analysis)

    def __repr__(self) -> str:
        return f"<joulewatch run {self.id}: {count_of(len(self), 'result')}>"

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        import html

        return f"<pre>{html.escape(str(self))}</pre>"


def load(run: str | Path, *, prometheus: str | PrometheusOptions | None = None, output: str | Path = "runs") -> Run:
    """Read a stored run and analyze it.

    Args:
        run: Its directory, journal or recording, its id, or the beginning of its id.
        prometheus: URL of the Prometheus that has its samples, or the whole run.
        output: Directory in which an id is searched.

    Raises:
        QueryError: The run is neither on this machine nor in Prometheus, or Prometheus does not answer.
        RecordError: The run cannot be read.
    """
    options = PrometheusOptions(prometheus) if isinstance(prometheus, str) else prometheus
    record, source = find(str(run), Path(output), options, fix='use prometheus="URL"')
    with contextlib.ExitStack() as stack:
        if source is not None:
            stack.callback(source.close)
        return Run(analyze_run(record, source))


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


def _row(result: Result) -> dict[str, Any]:
    group, energy = result.group, result.energy
    row: dict[str, Any] = {
        "configuration": result.name,
        "network": group.configuration.network,
        "runtime": group.configuration.runtime,
        "precision": group.configuration.precision,
        "batch_size": result.batch_size,
        "repeats": result.repeats,
        "inferences": group.inferences,
        "joules": result.joules_per_inference,
        "uncertainty_joules": result.uncertainty,
        "net_joules": result.net_joules_per_inference,
        "net_uncertainty_joules": None if energy.net is None else energy.net.expanded,
        "inferences_per_second": result.inferences_per_second,
        "covers": ",".join(result.covers),
        "methods": ",".join(energy.methods),
        "missing": result.missing,
    }
    for part in (*group.components, *group.nodes):
        row[f"{part.name}_joules"] = _value(part.gross)
    return row
