"""Runs a plan: warm-up, settle, timed windows with the counters read at both edges; one Run per plan.

Around a measure window, on the main thread::

    settle under load | read counters | t0  calls of run()  t1 | read counters | settle under load | write

so that power is flat across the edges and the counters are read outside the window, a few milliseconds
from it. Everything that costs time (parsing, fsync, delivery, progress) happens after. Each window's times
are monotonic, mapped to the wall clock at both its ends. Loading, and the first preparing of each batch size, have
edges too, so that building and tuning an engine has an energy of its own and is in no measured window.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from joulewatch_harness.clocktime import Clock
from joulewatch_harness.errors import (
    ConfigError,
    JoulewatchError,
    NetworkError,
    RecordError,
    UnsupportedBatchError,
)
from joulewatch_harness.gum import mean, standard_error, student_factor
from joulewatch_harness.network import MarksOnly, Network, Phases
from joulewatch_harness.plan.plan import (
    MINIMUM_BATCHES,
    PHASE_COST_PAIRS,
    PHASE_COST_S,
    PHASE_PASS_S,
    PHASES_INLINE,
    REFRESHES_PER_WINDOW,
    Plan,
    scenario_of,
)
from joulewatch_harness.plan.scenario import OFFLINE, Scenario, is_overloaded
from joulewatch_harness.plan.steps import IdleStep, LoadStep, MeasureStep, PhaseStep, Step
from joulewatch_harness.records import (
    Configuration,
    Edge,
    Latency,
    Line,
    Note,
    PhaseTime,
    RunEnd,
    RunStatus,
    Setup,
    Window,
    WindowKind,
)
from joulewatch_harness.runner.clocks import ClockMapping
from joulewatch_harness.runner.drivers import Driver, OfflineDriver, driver_of
from joulewatch_harness.runner.stopping import StopRequest, _Stopped
from joulewatch_harness.runtimes import as_loaded

logger = logging.getLogger(__name__)

CALL_S: Final = 0.075
"""Aim for one call of ``run``: Python's cost of a call vanishes in it, and Ctrl-C need not wait long."""
CALL_RANGE_S: Final = (0.05, 0.1)
WARMUP_BATCHES: Final = 3
STEADY_SPANS: Final = 3
STEADY_WITHIN: Final = 0.05
CLOCK_STEP_S: Final = 0.005
SLEEP_SLICE_S: Final = 0.1
SETUP_S: Final = 1.0
"""Loading and preparing that take less have no window: their energy would drown in the edges' own uncertainty."""
BUSY_IDLE: Final = 0.02
"""Share of one processor that the process of a network may use while another network is measured."""


class LineSink(Protocol):
    """Where lines go after the journal has them: the recording, in local mode."""

    def add_line(self, line: Line) -> None: ...


class LineWriter(Protocol):
    """The journal."""

    def append(self, line: Line) -> None: ...


class FetchedEdge(Protocol):
    """Answers of the exporters, not yet parsed."""

    def parse(self) -> Edge: ...


class EdgeSource(Protocol):
    """Reads the counters of all exporters, fast; one that is dead is told in ``Edge.missing``."""

    def fetch(self) -> FetchedEdge: ...


class Delivering(Protocol):
    """Takes the run's annotations away in the background; never blocks, never raises."""

    def configuration(self, configuration: Configuration) -> None: ...

    def window_opened(self, kind: WindowKind, configuration: str, batch_size: int, at_s: float) -> None: ...

    def window(self, window: Window) -> None: ...

    def end(self, end: RunEnd) -> None: ...


class Reporter(Protocol):
    """Tells a person how far the run is (``progress``)."""

    def begin(self, step: Step, text: str) -> None: ...

    def tick(self) -> None: ...

    def done(self, step: Step, text: str) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass(slots=True)
class _Tally:
    """What happened in a span of calls."""

    batches: int = 0
    start_ns: int = 0
    end_ns: int = 0
    calls: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Start, end, batches, and the number of batch marks after it."""

    @property
    def duration_s(self) -> float:
        return (self.end_ns - self.start_ns) * 1e-9


@dataclass(frozen=True, slots=True)
class _SetUp:
    """One span of loading or preparing, not yet written."""

    before: ClockMapping
    start_edge: FetchedEdge
    start_ns: int
    end_ns: int
    end_edge: FetchedEdge
    after: ClockMapping


@dataclass(slots=True)
class _Cell:
    """What is known of one configuration at one batch size."""

    batch_s: float = 0.0
    prepared: bool = False
    steady: bool = True
    failed: bool = False
    overloaded: bool = False
    """It was said already."""
    at_once: int = 1
    """Batches that the network keeps in flight: a call with fewer would leave some of its lanes empty."""


class Runner:
    """Runs one plan once."""

    def __init__(
        self,
        plan: Plan,
        steps: Sequence[Step],
        networks: Sequence[tuple[Configuration, Network]],
        *,
        run: str,
        journal: LineWriter,
        edges: EdgeSource,
        delivery: Delivering,
        recording: LineSink | None = None,
        reporter: Reporter,
        stop: StopRequest,
        refresh_s: float | None = None,
        clock: Clock = time,
    ) -> None:
        """Everything the run needs, made and checked before.

        Args:
            plan: What to run.
            steps: From ``plan.steps``.
            networks: The configurations with their networks, not loaded.
            run: The run's id.
            journal: Written first, before anything is delivered.
            edges: Reads the counters at the edges of windows.
            delivery: Told of every line after the journal has it.
            recording: The local mode's second copy of the lines.
            reporter: Progress.
            stop: Asked between calls.
            refresh_s: Of the slowest sensor; windows that miss 20 of them are flagged ``too_short``.
            clock: For tests.
        """
        self._plan = plan
        self._steps = steps
        self._networks = {configuration.name: (configuration, network) for configuration, network in networks}
        self._run = run
        self._journal = journal
        self._edges = edges
        self._delivery = delivery
        self._recording = recording
        self._reporter = reporter
        self._stop = stop
        self._refresh_s = refresh_s
        self._clock = clock
        self._index = 0
        self._cells: dict[tuple[str, int], _Cell] = {}
        self._drivers: dict[str, Driver] = {}
        self._scenarios: dict[str, Scenario] = {}
        self._restless: set[str] = set()
        self._unloaded: set[str] = set(self._networks)
        self._lost: set[str] = set()

    def run(self) -> RunEnd:
        """Go through the steps; closes the networks.

        Returns:
            The run's last line, already written: ``complete``, or ``interrupted`` by Ctrl-C, or ``failed`` when not
            one window was measured.

        Raises:
            RecordError: a line cannot be written any more (full disk); what was written before is whole.
        """
        measured = 0
        status: RunStatus = "complete"
        text = ""
        try:
            for step in self._steps:
                if self._stop.requested:
                    raise _Stopped
                measured += self._step(step)
            if measured == 0:
                status, text = "failed", "no configuration could be measured; the notes say why"
        except _Stopped:
            status, text = "interrupted", "stopped by the user; what was measured is kept"
        except (RecordError, KeyboardInterrupt):
            raise
        except Exception as error:
            self._finish("failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            for _, network in self._networks.values():
                self._close(network)
        return self._finish(status, text)

    def _finish(self, status: RunStatus, text: str) -> RunEnd:
        end = RunEnd(self._now_s(), status, text)
        self._write(end)
        self._delivery.end(end)
        return end

    def _step(self, step: Step) -> int:
        if isinstance(step, IdleStep):
            if step.duration_s > 0.0:
                self._idle(step)
            return 0
        if isinstance(step, LoadStep):
            self._load(step)
            return 0
        if isinstance(step, PhaseStep):
            self._measure_phases(step)
            return 0
        return int(self._measure(step))

    # Idle

    def _idle(self, step: IdleStep) -> None:
        what = "idle, networks loaded" if step.loaded else "idle, nothing loaded"
        self._reporter.begin(step, what)
        self._sleep(self._plan.settle_s)
        if self._stop.requested:
            raise _Stopped
        self._delivery.window_opened("idle", "", 0, self._now_s())
        before = ClockMapping.read(self._clock)
        start_edge = self._edges.fetch()
        start_ns = self._clock.monotonic_ns()
        self._sleep(step.duration_s)
        end_ns = self._clock.monotonic_ns()
        end_edge = self._edges.fetch()
        after = ClockMapping.read(self._clock)
        flags = ["loaded"] if step.loaded else []
        if self._stop.requested:
            flags.append("interrupted")
        self._window(
            "idle",
            before,
            after,
            start_ns,
            end_ns,
            start_edge=start_edge.parse(),
            end_edge=end_edge.parse(),
            flags=flags,
        )
        self._reporter.done(step, f"{what}: {step.duration_s:g} s")

    def _sleep(self, duration_s: float) -> None:
        """Sleep in slices, so that Ctrl-C is heard."""
        until_ns = self._clock.monotonic_ns() + int(duration_s * 1e9)
        while not self._stop.requested:
            left_s = (until_ns - self._clock.monotonic_ns()) * 1e-9
            if left_s <= 0.0:
                return
            self._clock.sleep(min(left_s, SLEEP_SLICE_S))

    # Loading

    def _load(self, step: LoadStep) -> None:
        self._reporter.begin(step, "loading the networks")
        for name, (configuration, network) in tuple(self._networks.items()):
            try:
                span = self._timed(network.load)
                loaded = as_loaded(configuration, network.describe())
                scenario = scenario_of(configuration)
                self._scenarios[name] = scenario
                self._drivers[name] = driver_of(network, scenario, self._clock)
            except Exception as error:
                self._note(_reason(error), f"{name} could not be loaded: {_said(error)}", name)
                continue
            self._unloaded.discard(name)
            self._networks[name] = (loaded, network)
            self._write(loaded)
            self._delivery.configuration(loaded)
            self._setup(span, name, "load")
        self._reporter.done(step, f"{len(self._networks) - len(self._unloaded)} of {len(self._networks)} loaded")

    def _timed(self, work: Callable[[], None]) -> _SetUp:
        """Do what has to be done before a network can run, with the counters read before and after."""
        before = ClockMapping.read(self._clock)
        start_edge = self._edges.fetch()
        start_ns = self._clock.monotonic_ns()
        work()
        end_ns = self._clock.monotonic_ns()
        return _SetUp(before, start_edge, start_ns, end_ns, self._edges.fetch(), ClockMapping.read(self._clock))

    def _setup(
        self,
        span: _SetUp,
        configuration: str,
        phase: str,
        batch_size: int = 0,
        details: Mapping[str, str] | None = None,
    ) -> None:
        """Write a span: as a window, or its seconds only."""
        duration_s = (span.end_ns - span.start_ns) * 1e-9
        if duration_s < SETUP_S:
            self._write(Setup(configuration, phase, duration_s, batch_size, details or {}))
            return
        self._window(
            "setup",
            span.before,
            span.after,
            span.start_ns,
            span.end_ns,
            start_edge=span.start_edge.parse(),
            end_edge=span.end_edge.parse(),
            configuration=configuration,
            phase=phase,
            batch_size=batch_size,
            details=details,
        )

    def _prepare(self, network: Network, name: str, batch_size: int, cell: _Cell) -> None:
        """Prepare a batch size; the first time may build or tune an engine, and is told apart.

        Raises:
            ConfigError: prepared for this size it computes in another precision than asked for.
        """
        if cell.prepared:
            network.prepare(batch_size)
            return
        span = self._timed(lambda: network.prepare(batch_size))
        cell.prepared = True
        loaded = self._networks[name][0]
        now = as_loaded(loaded, network.describe()).details
        changed = {key: value for key, value in now.items() if loaded.details.get(key) != value}
        self._setup(span, name, "prepare", batch_size, changed)

    def _close(self, network: Network) -> None:
        try:
            network.close()
        except Exception as error:
            logger.warning("a network could not be closed: %s", _said(error))

    # Measuring

    def _measure(self, step: MeasureStep) -> bool:
        """Whether a window was measured."""
        name = step.configuration
        text = f"{name} batch {step.batch_size} round {step.repeat + 1}"
        cell = self._cells.setdefault((name, step.batch_size), _Cell(at_once=self._at_once(name)))
        if cell.failed or name in self._unloaded:
            self._reporter.done(step, f"{text}: left out")
            return False
        self._reporter.begin(step, text)
        try:
            window = self._measured_window(step, cell)
        except (_Stopped, RecordError):
            raise
        except Exception as error:
            self._failed(step, cell, error)
            return False
        rate = window.inferences / window.duration_s
        p50 = f", p50 {_milliseconds(window.latency.p50_s)}" if window.latency else ""
        steady = "" if cell.steady else ", not steady"
        self._reporter.done(step, f"{text}: {rate:,.0f} inferences/s{p50}{steady}")
        return True

    def _failed(self, step: MeasureStep | PhaseStep, cell: _Cell, error: Exception) -> None:
        cell.failed = True
        name = step.configuration
        self._note(_reason(error), f"{name} batch {step.batch_size} left out: {_said(error)}", name, step.batch_size)
        self._reporter.done(step, f"{name} batch {step.batch_size}: left out")

    def _measured_window(self, step: MeasureStep, cell: _Cell) -> Window:
        name = step.configuration
        _, network = self._networks[name]
        driver, scenario = self._drivers[name], self._scenarios[name]
        self._prepare(network, name, step.batch_size, cell)
        if step.repeat == 0 or cell.batch_s == 0.0:
            self._warm_up(step, network, cell)
        else:
            self._settle(driver, scenario, cell)
        self._delivery.window_opened("measure", name, step.batch_size, self._now_s())
        phases = Phases() if self._plan.phases == PHASES_INLINE else MarksOnly()
        busy_s = self._busy_s(name)
        before = ClockMapping.read(self._clock)
        # Each window has arrivals of its own, the same ones whenever the plan is run again.
        driver.begin(f"{self._plan.seed}/{name}/{step.batch_size}/{step.repeat}")
        start_edge = self._edges.fetch()
        tally = self._calls(
            driver,
            scenario,
            cell,
            phases,
            lambda so_far, elapsed_s: (
                (elapsed_s >= step.window_s and so_far >= MINIMUM_BATCHES) or elapsed_s >= self._plan.max_window_s
            ),
        )
        end_edge = self._edges.fetch()
        after = ClockMapping.read(self._clock)
        interrupted = self._stop.requested
        if interrupted and tally.batches == 0:
            raise _Stopped
        self._note_restless(name, busy_s, tally.duration_s)
        waited_s = driver.waited_ns * 1e-9
        if not interrupted:
            self._settle_after(driver, scenario, cell)
        flags = [] if cell.steady else ["not_steady"]
        if interrupted:
            flags.append("interrupted")
        if tally.batches < MINIMUM_BATCHES or tally.duration_s < REFRESHES_PER_WINDOW * (self._refresh_s or 0.0):
            flags.append("too_short")
        if scenario.name == "server" and is_overloaded(scenario.rate_per_s, cell.batch_s, waited_s, tally.duration_s):
            flags.append("overloaded")
            self._note_overload(step, cell, scenario, tally, waited_s)
        return self._window(
            "measure",
            before,
            after,
            tally.start_ns,
            tally.end_ns,
            start_edge=start_edge.parse(),
            end_edge=end_edge.parse(),
            flags=flags,
            configuration=step.configuration,
            batch_size=step.batch_size,
            repeat=step.repeat,
            batches=tally.batches,
            latency=latency(tally.calls, phases.batch_ends_ns, phases.latencies_ns),
            phases=phase_times(phases, tally.end_ns - tally.start_ns, tally.batches),
            counts=phases.counts,
        )

    def _warm_up(self, step: MeasureStep, network: Network, cell: _Cell) -> None:
        """Load until three spans in a row agree; tells how long a batch takes."""
        plan = self._plan
        self._delivery.window_opened("warmup", step.configuration, step.batch_size, self._now_s())
        span_s = plan.warmup_s / STEADY_SPANS
        rates: list[float] = []
        before = ClockMapping.read(self._clock)
        start_ns = self._clock.monotonic_ns()
        batches = 0
        # The first batch alone: it allocates, tunes and may take ten times as long as the next.
        plain, offline = OfflineDriver(network), Scenario()
        first = self._calls(plain, offline, cell, Phases(), lambda _batches, _elapsed_s: True)
        batches += first.batches
        cell.batch_s = 0.0
        while True:
            tally = self._calls(
                plain, offline, cell, Phases(), lambda so_far, elapsed_s: so_far >= 1 and elapsed_s >= span_s
            )
            batches += tally.batches
            if self._stop.requested:
                raise _Stopped
            rates.append(tally.batches / tally.duration_s)
            elapsed_s = (self._clock.monotonic_ns() - start_ns) * 1e-9
            cell.steady = is_steady(rates)
            if batches >= WARMUP_BATCHES and elapsed_s >= plan.warmup_s and cell.steady:
                break
            if elapsed_s >= plan.max_warmup_s and batches >= WARMUP_BATCHES:
                break
        self._window(
            "warmup",
            before,
            ClockMapping.read(self._clock),
            start_ns,
            self._clock.monotonic_ns(),
            configuration=step.configuration,
            batch_size=step.batch_size,
            repeat=step.repeat,
            batches=batches,
            flags=[] if cell.steady else ["not_steady"],
        )

    def _settle(self, driver: Driver, scenario: Scenario, cell: _Cell) -> None:
        """Load before a window: the settle time, and three batches."""
        driver.begin("settle")
        self._calls(
            driver,
            scenario,
            cell,
            Phases(),
            lambda so_far, elapsed_s: so_far >= WARMUP_BATCHES and elapsed_s >= self._plan.settle_s,
        )
        if self._stop.requested:
            raise _Stopped

    def _settle_after(self, driver: Driver, scenario: Scenario, cell: _Cell) -> None:
        """Load after a window, so that power is flat across its end for whoever reads it from history."""
        if self._plan.settle_s > 0.0:
            self._calls(driver, scenario, cell, Phases(), lambda _batches, elapsed_s: elapsed_s >= self._plan.settle_s)

    def _calls(
        self,
        driver: Driver,
        scenario: Scenario,
        cell: _Cell,
        phases: Phases,
        enough: Callable[[int, float], bool],
    ) -> _Tally:
        """Call ``run`` until ``enough(batches, elapsed_s)`` or Ctrl-C, each call sized to last 50 to 100 ms."""
        clock, tick, stop = self._clock.monotonic_ns, self._reporter.tick, self._stop
        marks = phases.batch_ends_ns
        tally = _Tally(start_ns=clock())
        tally.end_ns = tally.start_ns
        # A server waits for its queries: the time to the next one, not the time that one takes.
        batch_s = max(cell.batch_s, 1 / scenario.rate_per_s) if scenario.rate_per_s else cell.batch_s
        least = cell.at_once if scenario.name == OFFLINE else 1
        count = max(least, round(CALL_S / batch_s)) if batch_s > 0.0 else least
        while not stop.requested:
            start_ns = clock()
            driver.run(count, phases)
            end_ns = clock()
            tally.batches += count
            tally.end_ns = end_ns
            # A network in another process says when it ran; the message to it is no latency of a batch.
            tally.calls.append((*(phases.call_ns or (start_ns, end_ns)), count, len(marks)))
            if enough(tally.batches, (end_ns - tally.start_ns) * 1e-9):
                break
            call_s = (end_ns - start_ns) * 1e-9
            if not CALL_RANGE_S[0] <= call_s <= CALL_RANGE_S[1]:
                # At most fourfold at once: a first short call may have been a lucky one.
                count = max(least, min(4 * count, round(count * CALL_S / max(call_s, 1e-9))))
            tick()
        if tally.batches and not scenario.rate_per_s:
            cell.batch_s = max(tally.duration_s / tally.batches, 1e-9)
        return tally

    def _at_once(self, name: str) -> int:
        told = self._networks[name][0].details.get("concurrency", "1")
        return int(told) if told.isdecimal() else 1

    def _busy_s(self, but: str) -> dict[str, float]:
        """Processor time so far of the networks' own processes, without the one that is measured."""
        found = {}
        for name, (_, network) in self._networks.items():
            cpu_time_s = getattr(network, "cpu_time_s", None)
            if name != but and callable(cpu_time_s) and (used := cpu_time_s()) is not None:
                found[name] = used
        return found

    def _note_restless(self, name: str, before: Mapping[str, float], duration_s: float) -> None:
        """One note for each network whose threads went on while another one was measured."""
        for other, used_s in self._busy_s(name).items():
            share = (used_s - before.get(other, used_s)) / duration_s if duration_s > 0.0 else 0.0
            # The kernel counts in steps of 10 ms.
            if share > BUSY_IDLE and used_s - before.get(other, used_s) > 0.03 and other not in self._restless:
                self._restless.add(other)
                self._note(
                    "not_idle",
                    f"{other} used {100 * share:.0f} % of a processor while {name} was measured: its threads do not "
                    "rest between runs, and their energy is in the others' results",
                    other,
                )

    def _note_overload(
        self, step: MeasureStep, cell: _Cell, scenario: Scenario, tally: _Tally, waited_s: float
    ) -> None:
        if cell.overloaded:
            return
        cell.overloaded = True
        achieved = tally.batches / tally.duration_s
        self._note(
            "overloaded",
            f"{step.configuration} batch {step.batch_size} is invalid: {scenario.rate_per_s:g} queries/s were asked "
            f"for, {achieved:.4g} served, the last one after {_milliseconds(waited_s)} in line; one takes "
            f"{_milliseconds(cell.batch_s)} back to back",
            step.configuration,
            step.batch_size,
        )

    # Phases

    def _measure_phases(self, step: PhaseStep) -> None:
        """Phases of one configuration at one batch size, and what their recording costs."""
        name = step.configuration
        text = f"{name} batch {step.batch_size} phases"
        cell = self._cells.get((name, step.batch_size))
        if cell is None or cell.failed or name in self._unloaded:
            self._reporter.done(step, f"{text}: left out")
            return
        self._reporter.begin(step, text)
        try:
            cost = self._phase_pass(step, cell)
        except (_Stopped, RecordError):
            raise
        except Exception as error:
            self._failed(step, cell, error)
            return
        self._reporter.done(step, f"{text}: throughput {cost} by recording")

    def _phase_pass(self, step: PhaseStep, cell: _Cell) -> str:
        """A window with phases, then what recording them costs. Returns the cost, for people."""
        name = step.configuration
        _, network = self._networks[name]
        driver, scenario = self._drivers[name], self._scenarios[name]
        network.prepare(step.batch_size)
        self._settle(driver, scenario, cell)
        self._delivery.window_opened("phase", name, step.batch_size, self._now_s())
        phases = Phases()
        before = ClockMapping.read(self._clock)
        driver.begin(f"{self._plan.seed}/{name}/{step.batch_size}/phases")
        tally = self._calls(
            driver, scenario, cell, phases, lambda so_far, elapsed_s: so_far >= 1 and elapsed_s >= PHASE_PASS_S
        )
        after = ClockMapping.read(self._clock)
        if self._stop.requested:
            raise _Stopped
        self._window(
            "phase",
            before,
            after,
            tally.start_ns,
            tally.end_ns,
            configuration=name,
            batch_size=step.batch_size,
            batches=tally.batches,
            latency=latency(tally.calls, phases.batch_ends_ns, phases.latencies_ns),
            phases=phase_times(phases, tally.end_ns - tally.start_ns, tally.batches),
            counts=phases.counts,
        )
        change, expanded = self._phase_cost(network, cell)
        text = f"{100 * change:+.1f} ± {100 * expanded:.1f} %"
        self._note(
            "phase_cost",
            f"{name} batch {step.batch_size}: recording phases changes throughput by {text}; energies were measured "
            "without it",
            name,
            step.batch_size,
        )
        return text

    def _phase_cost(self, network: Network, cell: _Cell) -> tuple[float, float]:
        """Change of throughput by recording phases, back to back, with its half-width of 95 % coverage.

        Short spans without and with, in pairs that lie side by side: what the machine does otherwise is in both.
        """
        plain, offline = OfflineDriver(network), Scenario()
        changes: list[float] = []
        for pair in range(PHASE_COST_PAIRS):
            rates: dict[bool, float] = {}
            for recorded in (False, True) if pair % 2 == 0 else (True, False):
                tally = self._calls(
                    plain,
                    offline,
                    cell,
                    Phases() if recorded else MarksOnly(),
                    lambda so_far, elapsed_s: so_far >= 1 and elapsed_s >= PHASE_COST_S,
                )
                if self._stop.requested:
                    raise _Stopped
                rates[recorded] = tally.batches / tally.duration_s
            changes.append(rates[True] / rates[False] - 1.0)
        return mean(changes), student_factor(PHASE_COST_PAIRS - 1) * standard_error(changes)

    # Writing

    def _window(
        self,
        kind: WindowKind,
        before: ClockMapping,
        after: ClockMapping,
        start_ns: int,
        end_ns: int,
        *,
        start_edge: Edge | None = None,
        end_edge: Edge | None = None,
        flags: Sequence[str] = (),
        configuration: str = "",
        phase: str = "",
        batch_size: int = 0,
        repeat: int = 0,
        batches: int = 0,
        latency: Latency | None = None,
        phases: Mapping[str, PhaseTime] | None = None,
        counts: Mapping[str, float] | None = None,
        details: Mapping[str, str] | None = None,
    ) -> Window:
        window = Window(
            run=self._run,
            index=self._index,
            kind=kind,
            start_s=before.unix_s(start_ns),
            end_s=after.unix_s(end_ns),
            duration_s=(end_ns - start_ns) * 1e-9,
            clock_error_s=max(before.error_s, after.error_s),
            configuration=configuration,
            phase=phase,
            batch_size=batch_size,
            repeat=repeat,
            batches=batches,
            inferences=batches * batch_size,
            latency=latency,
            phases=phases or {},
            start_edge=start_edge,
            end_edge=end_edge,
            flags=tuple(flags),
            counts=counts or {},
            details=details or {},
        )
        self._index += 1
        self._write(window)
        self._delivery.window(window)
        step_s = (after.offset_ns - before.offset_ns) * 1e-9
        if abs(step_s) > CLOCK_STEP_S + window.duration_s * 1e-3:
            self._note("clock_stepped", f"the wall clock was set by {step_s:+.3f} s during window {window.index}")
        self._note_lost(start_edge, end_edge)
        return window

    def _note_lost(self, *edges: Edge | None) -> None:
        """One note when an exporter goes away, one when it is back."""
        for edge in edges:
            if edge is None:
                continue
            for exporter, why in edge.missing.items():
                if exporter not in self._lost:
                    self._lost.add(exporter)
                    self._note("exporter_lost", f"exporter {exporter} does not answer: {why}")
            for exporter in sorted(self._lost - set(edge.missing)):
                self._lost.discard(exporter)
                self._note("exporter_back", f"exporter {exporter} answers again")

    def _note(self, reason: str, text: str, configuration: str = "", batch_size: int = 0) -> None:
        self._write(Note(self._now_s(), reason, text, configuration, batch_size))
        self._reporter.note(text)

    def _write(self, line: Line) -> None:
        self._journal.append(line)
        if self._recording is not None:
            self._recording.add_line(line)

    def _now_s(self) -> float:
        return self._clock.time_ns() * 1e-9


def is_steady(rates: Sequence[float]) -> bool:
    """Whether the last three rates lie within 5 % of their mean."""
    last = rates[-STEADY_SPANS:]
    mean = sum(last) / len(last)
    return len(last) == STEADY_SPANS and all(abs(rate - mean) <= STEADY_WITHIN * mean for rate in last)


def latency(
    calls: Sequence[tuple[int, int, int, int]], batch_ends_ns: array[int], latencies_ns: array[int] | None = None
) -> Latency | None:
    """Latency per batch from the marks of a window; a call without a mark for each batch counts its mean.

    Args:
        calls: Start and end (monotonic ns), batches, and number of marks after each call of ``run``.
        batch_ends_ns: All marks.
        latencies_ns: Of every query, where the scenario told them: they are taken instead.

    Returns:
        Percentiles by nearest rank (a latency that really occurred), in seconds; None without a batch.
    """
    if not calls:
        return None
    ends = np.frombuffer(batch_ends_ns, dtype=np.int64) if batch_ends_ns else np.empty(0, dtype=np.int64)
    parts = []
    first = 0
    for start_ns, end_ns, batches, last in calls:
        if last - first == batches:
            parts.append(np.diff(ends[first:last], prepend=start_ns))
        else:
            parts.append(np.full(batches, (end_ns - start_ns) / batches))
        first = last
    if latencies_ns:
        parts = [np.frombuffer(latencies_ns, dtype=np.int64)]
    spans_s = np.concatenate(parts) * 1e-9
    p50, p90, p99 = np.percentile(spans_s, (50, 90, 99), method="inverted_cdf")
    return Latency(
        count=len(spans_s),
        mean_s=float(np.mean(spans_s)),
        min_s=float(np.min(spans_s)),
        max_s=float(np.max(spans_s)),
        p50_s=float(p50),
        p90_s=float(p90),
        p99_s=float(p99),
    )


def phase_times(phases: Phases, duration_ns: int, batches: int) -> dict[str, PhaseTime]:
    """Time per phase; what no phase covers is ``other``, never dropped. Without any phase there is none."""
    if not phases.spans:
        return {}
    times = {name: PhaseTime(count, total_ns * 1e-9) for name, (count, total_ns) in phases.spans.items()}
    covered_ns = sum(total_ns for _, total_ns in phases.spans.values())
    told = times.get("other", PhaseTime(0, 0.0))
    left_s = max(0.0, (duration_ns - covered_ns) * 1e-9)
    times["other"] = PhaseTime(told.count or batches, told.total_s + left_s)
    return times


def _reason(error: Exception) -> str:
    if isinstance(error, UnsupportedBatchError):
        return "unsupported_batch"
    if isinstance(error, MemoryError):
        return "out_of_memory"
    if isinstance(error, NetworkError):
        return "network_error"
    return "bad_configuration" if isinstance(error, ConfigError) else "runtime_error"


def _said(error: Exception) -> str:
    if isinstance(error, JoulewatchError):
        return str(error)
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
