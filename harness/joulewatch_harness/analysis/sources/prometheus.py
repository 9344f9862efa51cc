"""Samples from the Prometheus HTTP API, which Mimir, Thanos and VictoriaMetrics offer as well.

Raw samples are fetched by instant queries with a range selector, never by ``increase()``, which extrapolates, nor by a
stepped ``query_range``. One query returns all devices, for pieces of time that the server accepts.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

import numpy as np

from joulewatch_exporter import catalog
from joulewatch_harness.analysis.sources.history import (
    COUNTER_NAMES,
    HEALTH_NAMES,
    POWER_NAMES,
    History,
    RawSeries,
    RunSummary,
    build_history,
    merge_spans,
)
from joulewatch_harness.analysis.sources.identity import address, nodename
from joulewatch_harness.analysis.sources.rebuild import RUN_NAMES, WINDOW_NAMES, rebuild_run, run_start_s
from joulewatch_harness.analysis.sources.series import default_max_gap_s
from joulewatch_harness.clients.prometheus import PrometheusClient
from joulewatch_harness.errors import QueryError, QueryRangeError, QueryTooLargeError
from joulewatch_harness.records import ExporterRecord, RunRecord

logger = logging.getLogger(__name__)

SAMPLES_PER_QUERY: Final = 1_000_000
_FIRST_PIECE_S: Final = 1800.0
_SHORTEST_PIECE_S: Final = 1.0
_SHORTEST_RANGE_S: Final = 60.0
_AROUND_S: Final = 300.0
"""The start times of the exporters are queried this far around a span, to find the scrape interval."""
_SHORTEST_MARGIN_S: Final = 5.0
_MARGIN_INTERVALS: Final = 2.5
_DAY_S: Final = 86_400.0
_OF_WORKLOADS: Final = (catalog.WORKLOAD_ENERGY, catalog.UNATTRIBUTED_ENERGY, catalog.WORKLOAD_RESERVED)
_DESCRIBING_WORKLOADS: Final = (
    catalog.EXPORTER_START,
    catalog.EXPORTER_INFO,
    catalog.WORKLOAD_INFO,
    catalog.WORKLOAD_RATIO,
    catalog.ATTRIBUTION_INFO,
)
_WHOLE_S: Final = 7200.0
"""All samples of workloads are read in a span up to this length: there may be hundreds of series."""
_SPARSE: Final = ":1m"
"""Step of a subquery: of longer spans, one sample per minute."""
_LISTED_S: Final = 90 * _DAY_S
_NOT_OF_THE_TARGET: Final = frozenset(
    f"{prefix}{name}" for prefix in ("", "exported_") for name in catalog.EXPORTER_INFO.labels
)


def matcher(label: str, values: Iterable[str]) -> str:
    """Return ``label=~"a|b"`` for exactly these values."""
    pattern = "|".join(re.sub(r"([\\.+*?()|\[\]{}^$])", r"\\\1", value) for value in values)
    return f"{label}=~{_quoted(pattern)}"


def selector(*matchers: str) -> str:
    """Return the braces of a selector; empty matchers are omitted."""
    return f"{{{', '.join(filter(None, matchers))}}}"


def run_matchers(match: Mapping[str, str]) -> str:
    """Return the matchers that restrict the annotations of runs.

    Annotations arrive by remote write and have no target labels, so a label that is missing matches as well.
    """
    return ", ".join(matcher(label, dict.fromkeys((value, ""))) for label, value in match.items())


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _series(result: Sequence[dict[str, Any]]) -> Iterator[RawSeries]:
    for series in result:
        labels = dict(series["metric"])
        name = labels.pop("__name__", "")
        pairs = series["values"] if "values" in series else [series["value"]]
        times_s = np.array([pair[0] for pair in pairs], dtype=np.float64)
        values = np.array([float(pair[1]) for pair in pairs])
        yield RawSeries(name=name, labels=labels, times_s=times_s, values=values)


class PrometheusSource:
    """A ``SampleSource`` over one Prometheus.

    Args:
        client: The server, whose option ``match`` restricts all queries; closed with the source.
        samples_per_query: Number of samples per piece to aim at.
        now: Unix seconds, for tests.
    """

    def __init__(
        self,
        client: PrometheusClient,
        *,
        samples_per_query: int = SAMPLES_PER_QUERY,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._match = ", ".join(f"{label}={_quoted(value)}" for label, value in client.options.match.items())
        self._runs_match = run_matchers(client.options.match)
        self._samples_per_query = samples_per_query
        self._now = now
        self._longest_s = math.inf
        """Longest range that the server may accept; learnt from its errors."""

    @property
    def match(self) -> str:
        """The matchers that restrict all queries."""
        return self._match

    def describe(self) -> str:
        return f"{self._client.url} ({self._match})" if self._match else self._client.url

    def close(self) -> None:
        self._client.close()

    def raw(
        self, selector: str, start_s: float, end_s: float, *, first_piece_s: float = _FIRST_PIECE_S, step: str = ""
    ) -> list[RawSeries]:
        """Return all raw samples of a selector in [start_s, end_s], fetched in pieces; with a step, one per step.

        A piece that the server rejects as too large or too long is halved; the length of the next piece follows from
        the number of samples in the last one, and grows over empty ones.

        Raises:
            QueryTooLargeError: A piece of one second is still too large.
            QueryError: The query failed, as for ``PrometheusClient.query``.
        """
        pieces: dict[tuple[str, tuple[tuple[str, str], ...]], list[RawSeries]] = {}
        piece_s = first_piece_s
        at_s = start_s
        while at_s < end_s:
            until_s = min(at_s + min(piece_s, self._longest_s), end_s)
            # One more millisecond: the ranges of Prometheus 3 are left-open, and the times are rounded.
            length_ms = math.ceil((until_s - at_s) * 1000) + 1
            try:
                result = self._client.query(f"{selector}[{length_ms}ms{step}]", math.ceil(until_s * 1000) / 1000)
            except QueryTooLargeError as error:
                if until_s - at_s <= _SHORTEST_PIECE_S:
                    raise
                piece_s = self._shorter(until_s - at_s, error)
                continue
            count = 0
            for series in _series(result):
                count += series.times_s.size
                pieces.setdefault((series.name, tuple(sorted(series.labels.items()))), []).append(series)
            piece_s = min(piece_s * 4, max(piece_s * self._samples_per_query / max(count, 1), _SHORTEST_PIECE_S))
            at_s = until_s
        return [_joined(parts) for parts in pieces.values()]

    def _shorter(self, length_s: float, error: QueryTooLargeError) -> float:
        """Return half of a length that the server rejected; do not try that length again if it is the problem."""
        half_s = max(length_s / 2, _SHORTEST_PIECE_S)
        if isinstance(error, QueryRangeError):
            self._longest_s = min(self._longest_s, half_s)
        logger.info("query too large for %s; using pieces of %.0f s", self._client.url, half_s)
        return half_s

    def runs(self, start_s: float, end_s: float) -> tuple[RunSummary, ...]:
        """Return the runs that started in a span of Unix seconds, oldest first."""
        end_s = min(end_s, self._now() + 1)
        # A run that is in progress, or was pushed late, has samples after its start.
        until_s = min(end_s + _DAY_S, self._now() + 1)
        statuses: dict[str, tuple[float, str]] = {}
        query = f"last_over_time({catalog.RUN_STATUS.name}{selector(self._runs_match)}[{{range}}])"
        for series in self._at(query, (start_s, until_s)):
            run, status = series.labels.get("run", ""), series.labels.get("status", "")
            known = statuses.get(run)
            if known is None or known[1] == "running":
                statuses[run] = (float(series.values[-1]), status)
        summaries = [
            RunSummary(run, started_s, status)
            for run, (started_s, status) in statuses.items()
            if start_s <= started_s <= end_s
        ]
        return tuple(sorted(summaries, key=lambda summary: (summary.started_at_s, summary.run)))

    def run(self, run: str) -> RunRecord:
        """Return a run, rebuilt from its annotations.

        Raises:
            QueryError: The run is unknown; the text lists the most recent ones.
        """
        now_s = self._now()
        began_s = run_start_s(run)
        start_s = (now_s - 400 * _DAY_S) if began_s is None else began_s - 3600
        if start_s >= now_s:
            raise QueryError(f"{self._client.url}: run {run!r} is in the future")
        names = matcher("__name__", (*RUN_NAMES, *WINDOW_NAMES))
        # There are few annotations, so one query covers all the time since the run's start (a run may be pushed late).
        wanted = selector(names, f"run={_quoted(run)}", self._runs_match)
        samples = self.raw(wanted, start_s, now_s + 1, first_piece_s=now_s + 1 - start_s)
        if not samples:
            raise QueryError(f"{self._client.url}: unknown run {run!r}{self._last_runs(now_s)}")
        return rebuild_run(run, samples, self._client.url)

    def _last_runs(self, now_s: float) -> str:
        known = self.runs(now_s - _LISTED_S, now_s)
        if not known:
            return ": there are no runs in the last 90 days"
        return f": the most recent ones are {', '.join(summary.run for summary in known[-3:])}"

    def history(
        self,
        spans: Sequence[tuple[float, float]],
        exporters: Sequence[ExporterRecord] | None = None,
        *,
        power: bool = False,
    ) -> History:
        """Return counters and sensors over spans of Unix seconds; see ``SampleSource``."""
        if not spans:
            return History(source=self.describe())
        whole = (min(start for start, _ in spans), max(end for _, end in spans))
        identities = self._identities(whole)
        matchers = self._match
        if exporters is not None:
            matchers = ", ".join(filter(None, (self._match, matcher("instance", _instances(identities, exporters)))))
        margin_s = self._margin_s(whole, matchers)
        merged = merge_spans(spans, margin_s)
        metadata = self._metadata((merged[0][0], merged[-1][1]), matchers)
        # A sensor that observes only part of the time needs its power values, for their scatter.
        with_power = power or any(raw.name == catalog.SENSOR_WINDOW.name for raw in metadata)
        names = [*COUNTER_NAMES, *(POWER_NAMES if with_power else ())]
        if _nodenames_change(identities):
            # Then the times of each nodename are needed as well.
            names.append(catalog.EXPORTER_INFO.name)
            identities = []
        wanted = selector(matcher("__name__", names), matchers)
        pieces: dict[tuple[str, tuple[tuple[str, str], ...]], list[RawSeries]] = {}
        for start_s, end_s in merged:
            for series in self.raw(wanted, start_s, end_s):
                pieces.setdefault((series.name, tuple(sorted(series.labels.items()))), []).append(series)
        samples = [_joined(parts) for parts in pieces.values()]
        return build_history(self.describe(), [*identities, *samples, *metadata], exporters, power=power)

    def workload_infos(self, span: tuple[float, float]) -> list[RawSeries]:
        """Return what describes the workloads in a span and around it, and the identities of their exporters."""
        found = []
        span = self._around(span)
        for metric in _DESCRIBING_WORKLOADS:
            found += self._at(f"last_over_time({metric.name}{selector(self._match)}[{{range}}])", span, metric.name)
        return found

    def workload_samples(
        self, span: tuple[float, float], instances: Sequence[str]
    ) -> tuple[list[RawSeries], list[tuple[float, float]]]:
        """Return energies and reservations of workloads, with their exporters' starts and sensors, and complete spans.

        Of a long span, all samples around its ends, and one per minute between them: these show which series came,
        went or began again, and how much they had counted.
        """
        matchers = ", ".join(filter(None, (self._match, matcher("instance", instances))))
        wanted = selector(
            matcher("__name__", [metric.name for metric in (*_OF_WORKLOADS, catalog.EXPORTER_START)]), matchers
        )
        margin_s = self._margin_s(span, matchers)
        ends = [(at_s - margin_s, at_s + margin_s) for at_s in span]
        if span[1] - span[0] <= _WHOLE_S:
            ends = [(ends[0][0], ends[1][1])]
        pieces: dict[tuple[str, tuple[tuple[str, str], ...]], list[RawSeries]] = {}
        found = []
        for metric in (catalog.SENSOR_INFO, catalog.SENSOR_REFRESH):
            found += self._at(f"last_over_time({metric.name}{selector(matchers)}[{{range}}])", span, metric.name)
        found += self.raw(wanted, *ends[0])
        if len(ends) > 1:
            found += self.raw(wanted, ends[0][1], ends[1][0], step=_SPARSE)
            found += self.raw(wanted, *ends[1])
        for series in found:
            pieces.setdefault((series.name, tuple(sorted(series.labels.items()))), []).append(series)
        return [_joined(parts) for parts in pieces.values()], ends

    def _at(self, query: str, span: tuple[float, float], name: str = "") -> list[RawSeries]:
        """Run an instant query over a whole span: ``{range}`` is replaced by the span's length.

        If the server rejects the span, it is divided, and each series has the value of its last part with samples.
        The parts overlap, so that a change between two of them is seen.
        """
        results: dict[tuple[str, tuple[tuple[str, str], ...]], RawSeries] = {}
        ends = [span[1]]
        start_s = span[0]
        while ends:
            end_s = ends[-1]
            length_s = max(math.ceil(end_s - start_s), 1)
            try:
                if length_s > self._longest_s:
                    raise QueryRangeError("known to be too long")
                result = self._client.query(query.replace("{range}", f"{length_s}s"), end_s)
            except QueryTooLargeError as error:
                if length_s <= _SHORTEST_RANGE_S:
                    raise
                known = length_s > self._longest_s
                half_s = length_s / 2 if known else self._shorter(length_s, error)
                ends.append(start_s + half_s)
                continue
            for raw in _series(result):
                series = RawSeries(name=raw.name or name, labels=raw.labels, times_s=raw.times_s, values=raw.values)
                results[series.name, tuple(sorted(series.labels.items()))] = series
            start_s = ends.pop() - min(_AROUND_S, length_s / 8)
        return list(results.values())

    def _metadata(self, span: tuple[float, float], matchers: str) -> list[RawSeries]:
        braces = selector(matchers)
        within = f"{braces}[{{range}}]"
        metadata: list[RawSeries] = []
        for metric in (
            catalog.SENSOR_INFO,
            catalog.SENSOR_REFRESH,
            catalog.SENSOR_WINDOW,
            catalog.SENSOR_CALIBRATION,
            catalog.SENSOR_CALIBRATION_INFO,
        ):
            metadata += self._at(f"last_over_time({metric.name}{within})", span, metric.name)
        # Raw samples of diagnostics only if they changed: on a healthy machine that is none.
        for name in HEALTH_NAMES:
            if self._at(f"changes({name}{within}) > 0", span):
                metadata += self.raw(f"{name}{braces}", *span)
        up = catalog.SENSOR_UP.name
        if self._at(f"min_over_time({up}{within}) < 1", span):
            metadata += self.raw(f"{up}{braces}", *span)
            asleep = selector(matchers, 'state="asleep"')
            metadata += self.raw(f"{catalog.SENSOR_STATE.name}{asleep}", *span)
        return metadata

    def _identities(self, span: tuple[float, float]) -> list[RawSeries]:
        """Return ``joulewatch_exporter_info`` of all exporters around a span."""
        name = catalog.EXPORTER_INFO.name
        return self._at(f"last_over_time({name}{selector(self._match)}[{{range}}])", self._around(span), name)

    def _around(self, span: tuple[float, float]) -> tuple[float, float]:
        return span[0] - _AROUND_S, min(span[1] + _AROUND_S, max(self._now() + 1, span[1]))

    def _margin_s(self, span: tuple[float, float], matchers: str) -> float:
        """Return a margin that brackets both ends: some scrape intervals, derived from the samples."""
        starts = f"{catalog.EXPORTER_START.name}{selector(matchers)}"
        interval_s = 0.0
        for series in self.raw(starts, span[0] - _AROUND_S, span[0] + _SHORTEST_MARGIN_S) + self.raw(
            starts, span[1] - _SHORTEST_MARGIN_S, span[1] + _AROUND_S
        ):
            if series.times_s.size > 1:
                interval_s = max(interval_s, float(np.median(np.diff(series.times_s))))
        return max(_MARGIN_INTERVALS * interval_s, default_max_gap_s(interval_s), _SHORTEST_MARGIN_S)


def _instances(identities: Sequence[RawSeries], exporters: Sequence[ExporterRecord]) -> list[str]:
    """Return each ``instance`` that may be an exporter of a run: by its address, or by the name of its machine."""
    names = {exporter.name for exporter in exporters}
    nodes = {exporter.nodename for exporter in exporters}
    nodes |= {nodename(raw) for raw in identities if address(raw.labels) in names}
    near = {
        raw.labels.get("instance", "")
        for raw in identities
        if address(raw.labels) in names or nodename(raw) in nodes - {""}
    }
    return sorted(names | near)


def _nodenames_change(identities: Sequence[RawSeries]) -> bool:
    """Return whether a target has several nodenames: its address moved to another machine, or a container is new."""
    nodes: dict[tuple[tuple[str, str], ...], set[str]] = {}
    for raw in identities:
        target = tuple(sorted((name, value) for name, value in raw.labels.items() if name not in _NOT_OF_THE_TARGET))
        nodes.setdefault(target, set()).add(nodename(raw))
    return any(len(names) > 1 for names in nodes.values())


def _joined(pieces: Sequence[RawSeries]) -> RawSeries:
    """Join pieces in order of time into one series; neighbouring pieces may share samples."""
    if len(pieces) == 1:
        return pieces[0]
    times_s = np.concatenate([piece.times_s for piece in pieces])
    values = np.concatenate([piece.values for piece in pieces])
    times_s, first = cast(tuple[Any, Any], np.unique(times_s, return_index=True))
    return RawSeries(name=pieces[0].name, labels=pieces[0].labels, times_s=times_s, values=values[first])
