"""Counters of any target in a Prometheus: tokens, requests, frames. Raw samples become series that only rise.

A target may start, end or restart inside a window. What it counted then follows from its samples and those of ``up``:
a series that was missing from a successful scrape began at 0 after it. What cannot be known (counts between the last
scrape and the end of a process) is a ``Doubt`` with its largest size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.sources.history import RawSeries
from joulewatch_harness.analysis.sources.identity import REPLICA_LABELS
from joulewatch_harness.analysis.sources.prometheus import PrometheusSource, matcher, selector
from joulewatch_harness.analysis.sources.series import Floats, Series, default_max_gap_s
from joulewatch_harness.errors import ConfigError

AROUND_S: Final = 300.0
"""Samples are read so far around a window, so that scrape intervals of up to 100 s bracket it with one missing."""
_SELECTOR: Final = re.compile(r"\s*([a-zA-Z_:][a-zA-Z0-9_:]*)?\s*(?:\{(.*)\})?\s*", re.DOTALL)
_UP: Final = "up"
_START: Final = "process_start_time_seconds"
_SCRAPE: Final = "scrape_duration_seconds"
_MOST_FALLS: Final = 0.1
"""A series that falls at more of its steps is a gauge."""
_ZEROS: Final = 20
"""Zeros before the first sample of a counter, so that an edge has neighbours on both sides."""
_MOST_STEPS: Final = 1_000_000
"""Longest continuation of a series with a sample at every scrape."""
_SAME_S: Final = 0.001


_Part = tuple[Floats, Floats]
"""Times and values."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """Counts that may be missing from a counter (``more``), or may be from before the window (``less``)."""

    at_s: float
    more: float = 0.0
    less: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Counter:
    """One counter of one target, without its restarts."""

    name: str
    labels: Mapping[str, str]
    series: Series
    doubts: tuple[Doubt, ...] = ()
    delay_s: float = 0.0
    """A sample may have been read so much later than its time: the longest scrape."""
    ended: bool = False
    """Whether the target ended, so that the series is continued with its last value."""

    @property
    def target(self) -> tuple[str, str]:
        return self.labels.get("job", ""), self.labels.get("instance", "")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Target:
    """What Prometheus knows of a target, apart from its counters."""

    up_s: Floats = field(default_factory=lambda: np.array([]))
    """Times of its successful scrapes."""
    down_s: Floats = field(default_factory=lambda: np.array([]))
    starts_s: Floats = field(default_factory=lambda: np.array([]))
    """Start times of its process."""
    delay_s: float = 0.0


def read_counters(
    source: PrometheusSource, wanted: str, start_s: float, end_s: float, now: Callable[[], float]
) -> list[Counter]:
    """Return all counters that a selector selects, with samples around a window; none if there are none.

    Args:
        source: The server.
        wanted: ``NAME``, ``NAME{label="value"}`` or ``{__name__=~"a|b"}``.
        start_s, end_s: The window, in Unix seconds.
        now: Unix seconds.

    Raises:
        ConfigError: It is not a selector, or selects a gauge.
        QueryError: The query failed.
    """
    name, inside = parse_selector(wanted)
    first_s, last_s = start_s - AROUND_S, min(end_s + AROUND_S, now() + 1)
    raws = source.raw(f"{name}{selector(inside, source.match)}", first_s, last_s)
    raws = [raw for raw in raws if raw.times_s.size]
    if not raws:
        return []
    raws = _once(raws)
    targets = _targets(source, raws, first_s, last_s)
    return [rising(raw, targets.get(_target_of(raw.labels), _Target()), start_s, end_s) for raw in raws]


def _once(raws: Iterable[RawSeries]) -> list[RawSeries]:
    """Return each counter once: the longest of replicas, and one series for a target whose own labels changed."""
    copies: dict[tuple[str, tuple[tuple[str, str], ...]], list[RawSeries]] = {}
    for raw in raws:
        labels = tuple(
            sorted((name, value) for name, value in raw.labels.items() if name not in ("job", *REPLICA_LABELS))
        )
        copies.setdefault((raw.name, labels), []).append(raw)
    single = sorted((max(parts, key=lambda raw: raw.times_s.size) for parts in copies.values()), key=_first_s)
    counters: list[RawSeries] = []
    for raw in single:
        ended = [
            (len(earlier.labels.items() & raw.labels.items()), at)
            for at, earlier in enumerate(counters)
            if _continues(earlier, raw)
        ]
        alike = [at for equal, at in ended if equal == max(ended)[0]]
        if len(alike) != 1:
            counters.append(raw)
            continue
        earlier = counters[alike[0]]
        counters[alike[0]] = replace(
            raw,
            times_s=np.concatenate((earlier.times_s, raw.times_s)),
            values=np.concatenate((earlier.values, raw.values)),
        )
    return counters


def _first_s(raw: RawSeries) -> float:
    return float(raw.times_s[0])


def _continues(earlier: RawSeries, later: RawSeries) -> bool:
    """Return whether a series goes on with the value of another one of the same target, under other labels."""
    if earlier.name != later.name or _target_of(earlier.labels) != _target_of(later.labels):
        return False
    pause_s = float(later.times_s[0] - earlier.times_s[-1])
    spacing_s = float(np.median(np.diff(earlier.times_s))) if earlier.times_s.size > 1 else 0.0
    return 0 < pause_s <= default_max_gap_s(spacing_s) and 0 < earlier.values[-1] <= later.values[0]


def parse_selector(text: str) -> tuple[str, str]:
    """Return the name of a selector, which may be empty, and what is inside its braces.

    Raises:
        ConfigError: It is an expression or not PromQL.
    """
    match = _SELECTOR.fullmatch(text)
    if match is None or not (match[1] or match[2]):
        raise ConfigError(
            f"--per {text}: not the name of a counter; use a selector without functions, such as "
            "'vllm:generation_tokens_total' or 'http_requests_total{job=\"web\"}'"
        )
    return match[1] or "", (match[2] or "").strip().rstrip(",")


def similar(source: PrometheusSource, wanted: str, start_s: float, end_s: float) -> str:
    """Return a hint with counters of a similar name: those of histograms have endings, some servers write _ for :."""
    name, _ = parse_selector(wanted)
    if not name:
        return ""
    stems = {name, name.replace(":", "_"), name.replace("_", ":", 1), name.removesuffix("_total")}
    names = sorted({f"{stem}{ending}" for stem in stems for ending in ("", "_total", "_sum", "_count")} - {name})
    wanted = selector(matcher("__name__", names), source.match)
    known = sorted({raw.name for raw in source.raw(wanted, start_s, end_s)})
    return f"; did you mean {' or '.join(known)}?" if known else ""


def _target_of(labels: Mapping[str, str]) -> tuple[str, str]:
    return labels.get("job", ""), labels.get("instance", "")


def _targets(
    source: PrometheusSource, raws: Iterable[RawSeries], start_s: float, end_s: float
) -> dict[tuple[str, str], _Target]:
    """Return what is known of the targets of some series."""
    instances = sorted({raw.labels.get("instance", "") for raw in raws})
    wanted = selector(matcher("__name__", (_UP, _START, _SCRAPE)), matcher("instance", instances), source.match)
    found: dict[tuple[str, str], dict[str, list[RawSeries]]] = {}
    for raw in source.raw(wanted, start_s, end_s):
        found.setdefault(_target_of(raw.labels), {}).setdefault(raw.name, []).append(raw)
    targets = {}
    for key, by_name in found.items():
        ups = by_name.get(_UP, [])
        targets[key] = _Target(
            up_s=np.sort(np.concatenate([np.array([]), *(raw.times_s[raw.values > 0] for raw in ups)])),
            down_s=np.sort(np.concatenate([np.array([]), *(raw.times_s[raw.values <= 0] for raw in ups)])),
            starts_s=np.unique(np.concatenate([np.array([]), *(raw.values for raw in by_name.get(_START, []))])),
            delay_s=max((float(raw.values.max()) for raw in by_name.get(_SCRAPE, [])), default=0.0),
        )
    return targets


def rising(raw: RawSeries, target: _Target, start_s: float, end_s: float) -> Counter:
    """Return a counter without restarts, continued to both ends of a window where its target began or ended.

    Raises:
        ConfigError: The series is a gauge.
    """
    series = Series.from_samples(raw.times_s, raw.values, {"__name__": raw.name, **raw.labels})
    times_s, values = series.times_s, series.values
    steps, spans_s = np.diff(values), np.diff(times_s)
    falls = np.flatnonzero(steps < 0)
    if falls.size > max(_MOST_FALLS * steps.size, 3):
        raise ConfigError(
            f"--per {raw.name}: falls at {falls.size} of {count_of(steps.size, 'sample')}: it is not a counter"
        )
    rate = float((steps[steps >= 0] / spans_s[steps >= 0]).max()) if (steps >= 0).any() else 0.0
    spacing_s = series.spacing_s if len(series) > 1 else _spacing_s(target)
    gap_s = default_max_gap_s(spacing_s)
    # A restart: the new value is counted, and what the old process counted after its last scrape is lost.
    doubts = [Doubt(float(times_s[at + 1]), more=rate * min(float(spans_s[at]), gap_s)) for at in falls]
    rises = np.where(steps < 0, values[1:], steps)
    total = np.concatenate(([values[0]], values[0] + np.cumsum(rises)))
    parts: list[_Part] = [(times_s, total)]
    for at in falls:
        if spans_s[at] > gap_s:
            parts += _idle_part(float(times_s[at]), float(times_s[at + 1]), float(total[at]), target, spacing_s)
    if times_s[0] > start_s:
        before, doubt = _beginning(float(times_s[0]), float(values[0]), target, start_s, rate, spacing_s)
        parts += before
        doubts += doubt
    last_s = float(times_s[-1])
    later_s = np.concatenate((target.up_s, target.down_s))
    ended = last_s < end_s and (bool((later_s > last_s + _SAME_S).any()) or end_s - last_s > gap_s)
    if ended:
        count = int(np.ceil((end_s - last_s) / spacing_s)) + _ZEROS
        after_s = last_s + spacing_s * (1 + _steps(count))
        parts.append((after_s, np.full(after_s.shape, total[-1])))
        doubts.append(Doubt(last_s, more=rate * spacing_s))
    times_s = np.concatenate([part for part, _ in parts])
    order = np.argsort(times_s, kind="stable")
    return Counter(
        name=raw.name,
        labels=raw.labels,
        series=Series.from_samples(
            times_s[order], np.concatenate([part for _, part in parts])[order], {"__name__": raw.name, **raw.labels}
        ),
        doubts=tuple(doubt for doubt in doubts if start_s < doubt.at_s <= end_s and (doubt.more or doubt.less)),
        delay_s=target.delay_s,
        ended=ended,
    )


def _spacing_s(target: _Target) -> float:
    """Return the scrape interval of a target, for a series with one sample."""
    scrapes_s = np.sort(np.concatenate((target.up_s, target.down_s)))
    return float(np.median(np.diff(scrapes_s))) if scrapes_s.size > 1 else 15.0


def _beginning(
    first_s: float, value: float, target: _Target, start_s: float, rate: float, spacing_s: float
) -> tuple[list[_Part], list[Doubt]]:
    """Return the samples before the first one of a series that appears inside the window.

    If it is not known that the counter began inside the window, but its value may have been reached since the start,
    all of it counts, and all of it is in doubt. Else there are no samples, and the window is not bracketed.
    """
    scraped_s = target.up_s[target.up_s < first_s - _SAME_S]
    began = target.starts_s[target.starts_s <= first_s]
    known = [float(times[-1]) for times in (scraped_s, began) if times.size]
    born_s = max(known, default=-np.inf)
    doubts = []
    if born_s < start_s - default_max_gap_s(spacing_s):
        if value > rate * (first_s - start_s + spacing_s):
            return [], []
        born_s = max(start_s, first_s - spacing_s)
        doubts = [Doubt(first_s, less=value)] if value else []
    count = max(int(np.ceil((born_s - start_s) / spacing_s)), 0) + _ZEROS
    zeros_s = born_s - spacing_s * _steps(count)
    return [(zeros_s, np.zeros(zeros_s.shape))], doubts


def _steps(count: int) -> Floats:
    """Return 0 to ``count - 1``; of very many, as in a window of years, only those at the series and at the edge."""
    if count <= _MOST_STEPS:
        return np.arange(count, dtype=np.float64)
    return np.concatenate((np.arange(_ZEROS), np.arange(count - 2 * _ZEROS, count))).astype(np.float64)


def _idle_part(last_s: float, first_s: float, value: float, target: _Target, spacing_s: float) -> list[_Part]:
    """Return samples for the time in which a target was down before it restarted; none if that is not known."""
    down_s = target.down_s[(target.down_s > last_s) & (target.down_s < first_s)]
    began_s = target.starts_s[(target.starts_s > last_s) & (target.starts_s <= first_s)]
    until_s = max([*down_s[-1:], *began_s[-1:]], default=last_s)
    times_s = np.arange(last_s + spacing_s, until_s, spacing_s)
    times_s = np.append(times_s, until_s) if until_s > last_s else times_s
    return [(times_s, np.full(times_s.shape, value))]


def groups_by(counters: Sequence[Counter], label: str) -> dict[str, list[Counter]]:
    """Return the counters by the value of a label.

    Raises:
        ConfigError: None of them has the label.
    """
    if not any(label in counter.labels for counter in counters):
        known = sorted({name for counter in counters for name in counter.labels})
        raise ConfigError(f"--by {label}: {counters[0].name} has no such label; it has {', '.join(known)}")
    groups: dict[str, list[Counter]] = {}
    for counter in counters:
        groups.setdefault(counter.labels.get(label, ""), []).append(counter)
    return dict(sorted(groups.items()))
