"""The power during each phase of a batch, from a counter that is read at its refreshes while a network runs.

Phases last from microseconds to seconds, and a counter is refreshed each millisecond. Between two refreshes, which are
some milliseconds apart, it rises by

    sum over the phases of (power of the phase) x (its time between the two refreshes) .

The times are recorded, and the powers follow by least squares. A phase of many refreshes has intervals of its own: its
power is that between its own edges. Shorter ones are mixed in each interval, with different shares, because batches and
refreshes are not in step; if they are, or a phase takes little time, its standard uncertainty shows it.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import numpy as np

from joulewatch_harness.clients.edge_socket import MISSED
from joulewatch_harness.network import TimedPhases
from joulewatch_harness.records import Edge, EdgeCounter, PhasePowers, PhaseTime
from joulewatch_harness.runner.bracket import EdgeSource

OTHER: Final = "other"
INTERVALS_PER_PHASE: Final = 10
"""With fewer intervals for each phase there is no fit."""
LARGEST_LOSS: Final = 0.01
"""Largest share of a phase's time whose spans are unknown, as in a network that reports only totals."""

LARGEST_ERROR: Final = 3.0
LARGEST_ERROR_S: Final = 3e-5
"""Refreshes whose times are less certain than this, or than the usual ones by that factor, are not used: they would mix
up the phases. A quiet machine has 2 to 20 us."""

_Key = tuple[str, str, str, str, str, str]


class _Point(NamedTuple):
    """One refresh of a counter."""

    at_s: float
    joules: float
    error_s: float
    """Largest error of the time."""


class CounterTrace:
    """Reads edges one after the other on a thread while it is entered; nothing without a counter that has steps."""

    def __init__(self, edges: EdgeSource) -> None:
        self._edges = edges
        self._read: list[Edge] = []
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        first = self._edges.fetch().parse()
        # A counter without steps has no ``no_step``; one that has missed them may have them the next time.
        if any(counter.step is not None or counter.no_step.startswith(MISSED) for counter in first.counters):
            self._thread = threading.Thread(target=self._run, name="phase power", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._is_over.is_set():
            self._read.append(self._edges.fetch().parse())

    def steps(self) -> dict[_Key, list[_Point]]:
        """Return the refreshes of each device counter, without those that were not seen."""
        steps: dict[_Key, list[_Point]] = {}
        for edge in self._read:
            for counter in edge.counters:
                if counter.scope == "device" and counter.step is not None:
                    points = steps.setdefault(_key(counter), [])
                    for at_s, joules in (counter.first, (counter.read_at_s, counter.energy_joules)):
                        if not points or at_s > points[-1].at_s:
                            points.append(_Point(at_s, joules, counter.step.error_s))
        return steps


def phase_powers(
    steps: Mapping[_Key, Sequence[_Point]],
    phases: TimedPhases,
    times: Mapping[str, PhaseTime],
    *,
    start_ns: int,
    end_ns: int,
    start_s: float,
) -> tuple[PhasePowers, ...]:
    """Fit the power of each phase to each counter.

    Args:
        steps: The refreshes of each counter, in Unix seconds.
        phases: The spans of the window.
        times: Phase -> its total time, with ``other``.
        start_ns: Monotonic time of the window's start.
        end_ns: Of its end.
        start_s: Unix time of its start.
    """
    if sum(time.total_s for time in times.values()) > (1 + LARGEST_LOSS) * (end_ns - start_ns) * 1e-9:
        return ()  # batches overlap: a phase has no time of its own
    names = [name for name in times if name != OTHER]
    for name in names:
        known_s = _total_s(phases.times_ns.get(name, array("q")))
        if abs(known_s - times[name].total_s) > LARGEST_LOSS * times[name].total_s:
            return ()
    fits = []
    for key, points in steps.items():
        end_s = start_s + (end_ns - start_ns) * 1e-9
        inside = [point for point in points if start_s <= point.at_s <= end_s]
        usual_s = float(np.median([point.error_s for point in inside])) if inside else 0.0
        usual_s = min(usual_s, LARGEST_ERROR_S)
        clear = [point for point in inside if point.error_s <= min(LARGEST_ERROR * usual_s, LARGEST_ERROR_S)]
        at_ns = np.array([start_ns + (point.at_s - start_s) * 1e9 for point in clear])
        if fit := _fit(at_ns, np.array([point.joules for point in clear]), usual_s, names, phases.times_ns):
            exporter, scope, collector, component, device, domain = key
            fits.append(
                PhasePowers(
                    exporter=exporter,
                    scope=scope,
                    collector=collector,
                    component=component,
                    device=device,
                    domain=domain,
                    **fit,
                )
            )
    return tuple(fits)


def _fit(
    at_ns: np.ndarray[Any, Any],
    joules: np.ndarray[Any, Any],
    error_s: float,
    names: Sequence[str],
    times_ns: Mapping[str, array[int]],
) -> dict[str, Any]:
    """Return watts and standard uncertainty by phase, and the number of intervals; empty: there are too few."""
    count = len(at_ns) - 1
    if count < INTERVALS_PER_PHASE * (len(names) + 1):
        return {}
    spent_s = [np.diff(_time_until_ns(times_ns[name], at_ns)) * 1e-9 for name in names]
    intervals_s = np.diff(at_ns) * 1e-9
    rest_s = intervals_s - np.sum(spent_s, axis=0)
    columns = [*spent_s, rest_s]
    all_names = [*names, OTHER]
    present = [number for number, column in enumerate(columns) if column.sum() > 1e-4 * intervals_s.sum()]
    design = np.stack([columns[number] for number in present], axis=1)
    rises = np.diff(joules)
    watts, _, rank, _ = np.linalg.lstsq(design, rises, rcond=None)
    if rank < len(present):
        return {}
    residuals = rises - design @ watts
    variance = float(residuals @ residuals) / max(count - len(present), 1)
    # Neighbouring intervals share a refresh, and a load that is not steady has a memory: both widen the uncertainty.
    lag = float(residuals[1:] @ residuals[:-1]) / max(float(residuals @ residuals), 1e-300)
    memory = (1 + max(lag, 0.0)) / (1 - min(max(lag, 0.0), 0.9))
    inverse = np.diag(np.linalg.inv(design.T @ design))
    mean_watts = float(rises.sum() / intervals_s.sum())
    # An error of a refresh's time moves time from one phase to another, which pulls the powers of phases towards the
    # mean whose times hardly differ between intervals (attenuation by errors in variables).
    moved = 2 * error_s**2 / 3 * design.sum(axis=0) / intervals_s.sum()
    attenuation = np.minimum(moved * inverse * count, 1.0)
    standard = np.hypot(np.sqrt(variance * memory * inverse), attenuation * np.abs(watts - mean_watts))
    return {
        "watts": {all_names[number]: float(value) for number, value in zip(present, watts, strict=True)},
        "standard_watts": {all_names[number]: float(value) for number, value in zip(present, standard, strict=True)},
        "intervals": count,
    }


def _time_until_ns(spans_ns: array[int], at_ns: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the time that a phase has taken until each of some times."""
    spans = np.frombuffer(spans_ns, dtype=np.int64).reshape(-1, 2)
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    ends = np.cumsum(spans[:, 1] - spans[:, 0])
    starts = np.concatenate(([0], ends[:-1]))
    until: np.ndarray[Any, Any] = np.interp(at_ns, spans.ravel(), np.stack((starts, ends), axis=1).ravel())
    return until


def _total_s(spans_ns: array[int]) -> float:
    return (sum(spans_ns[1::2]) - sum(spans_ns[::2])) * 1e-9


def _key(counter: EdgeCounter) -> _Key:
    return (counter.exporter, counter.scope, counter.collector, counter.component, counter.device, counter.domain)
