"""Run a plan, step by step: idle windows, loading, rounds of measure windows, phase passes.

The runner holds the state of the run: the loaded networks, and the cells with their failures. The work of a step is in
``setup``, ``measuring`` and ``phase_pass``, the order of the reads around a window in ``bracket``, the output in
``run_log``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from joulewatch_exporter.text import count_of
from joulewatch_harness.clocktime import Clock
from joulewatch_harness.errors import ConfigError, NetworkError, RecordError, UnsupportedBatchError, describe
from joulewatch_harness.network import Network
from joulewatch_harness.plan.plan import Plan
from joulewatch_harness.plan.steps import ConcurrentStep, IdleStep, LoadStep, MeasureStep, PhaseStep, Steps
from joulewatch_harness.plan.target import ROUNDS_ENDED
from joulewatch_harness.records import Configuration, RunEnd, RunStatus, SensorRecord
from joulewatch_harness.runner.bracket import EdgeSource
from joulewatch_harness.runner.calls import Cell, LoadedNetwork
from joulewatch_harness.runner.conditions import ConditionsSource
from joulewatch_harness.runner.context import RunContext
from joulewatch_harness.runner.edge_energy import joules_per_inference
from joulewatch_harness.runner.measuring import measure
from joulewatch_harness.runner.other_workloads import OtherWorkloads
from joulewatch_harness.runner.phase_pass import phase_pass
from joulewatch_harness.runner.processor_time import ProcessorSource
from joulewatch_harness.runner.processor_use import ProcessorUse
from joulewatch_harness.runner.run_log import Delivering, LineSink, LineWriter, Reporter, RunLog
from joulewatch_harness.runner.setup import load_network, prepare
from joulewatch_harness.runner.stopping import RunStopped, StopRequest
from joulewatch_harness.runner.together import measure_together

logger = logging.getLogger(__name__)

SLEEP_SLICE_S: Final = 0.1
"""The longest sleep: Ctrl-C takes effect after it."""
REASONS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (UnsupportedBatchError, "unsupported_batch"),
    (MemoryError, "out_of_memory"),
    (NetworkError, "network_error"),
    (ConfigError, "bad_configuration"),
)
"""Reason codes of the errors that exclude a network or a batch size; subclasses come before their base classes."""


class Runner:
    """Runs one plan once.

    Args:
        plan: The plan.
        steps: From ``plan.steps``; gets the result of each measure window, on which the number of rounds depends.
        networks: The configurations with their networks, not loaded.
        run: The run's id.
        journal: Gets every line before it is delivered.
        edges: Reads the energy counters at the edges of windows.
        delivery: Gets every line that the journal has.
        recording: The second copy of the lines, in local mode.
        reporter: Shows progress.
        stop: Checked between calls.
        refresh_s: Refresh period of the slowest sensor; windows shorter than 20 of them get the flag ``too_short``.
        processors: Reads the processor times around each window; None: they stay unknown.
        conditions: Reads the run conditions around each window; None: they stay unknown.
        others: Reads the names of other workloads; None: they stay unknown.
        sensors: The energy sensors that ``edges`` reads; the fast ones show when a warm-up is steady.
        clock: For tests.
    """

    def __init__(
        self,
        plan: Plan,
        steps: Steps,
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
        processors: ProcessorSource | None = None,
        conditions: ConditionsSource | None = None,
        others: OtherWorkloads | None = None,
        sensors: Sequence[SensorRecord] = (),
        clock: Clock = time,
    ) -> None:
        self._steps = steps
        self._networks = tuple(networks)
        self._context = RunContext(
            plan=plan,
            clock=clock,
            edges=edges,
            log=RunLog(run, journal=journal, recording=recording, delivery=delivery, reporter=reporter, clock=clock),
            reporter=reporter,
            stop=stop,
            refresh_s=refresh_s,
            processors=processors,
            conditions=conditions,
            others=others,
            sensors=sensors,
        )
        self._processor_use = ProcessorUse({configuration.name: network for configuration, network in networks})
        self._loaded: dict[str, LoadedNetwork] = {}
        self._cells: dict[tuple[str, int], Cell] = {}
        self._measured = 0

    def run(self) -> RunEnd:
        """Run all steps, then close the networks.

        Returns:
            The last line, already written: ``complete``; ``interrupted`` by the user; ``failed`` if no window could
            be measured.

        Raises:
            RecordError: a line cannot be written (full disk); the lines before it are complete.
        """
        log = self._context.log
        status: RunStatus = "complete"
        text = ""
        try:
            for step in self._steps:
                self._note_ended_rounds()
                self._context.stop.check()
                HANDLERS[type(step)](self, step)
            if self._measured == 0:
                status, text = "failed", "no configuration could be measured; see the notes"
        except RunStopped:
            status, text = "interrupted", "stopped by the user; the windows measured so far are kept"
            self._steps.rounds.stop()
            self._note_ended_rounds()
        except (RecordError, KeyboardInterrupt):
            raise
        except Exception as error:
            log.end("failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            for _, network in self._networks:
                _close(network)
        return log.end(status, text)

    def _idle(self, step: IdleStep) -> None:
        if step.duration_s == 0.0:
            return
        context = self._context
        text = "idle, networks loaded" if step.loaded else "idle, no network loaded"
        context.reporter.begin(step, text)
        self._sleep(context.plan.settle_s)
        context.stop.check()
        context.log.window_opened("idle")
        with context.bracket() as bracket:
            self._sleep(step.duration_s)
        flags: tuple[str, ...] = ("loaded",) if step.loaded else ()
        if context.stop.requested:
            flags += ("interrupted",)
        context.log.window(bracket, "idle", flags=flags)
        context.reporter.done(step, f"{text}: {step.duration_s:g} s")

    def _sleep(self, duration_s: float) -> None:
        """Sleep until the time is over or the user stops the run."""
        clock, stop = self._context.clock, self._context.stop
        until_ns = clock.monotonic_ns() + int(duration_s * 1e9)
        while not stop.requested:
            left_s = (until_ns - clock.monotonic_ns()) * 1e-9
            if left_s <= 0.0:
                return
            clock.sleep(min(left_s, SLEEP_SLICE_S))

    def _load(self, step: LoadStep) -> None:
        context = self._context
        context.reporter.begin(step, "loading the networks")
        for configuration, network in self._networks:
            name = configuration.name
            try:
                self._loaded[name] = load_network(context, configuration, network)
            except RecordError:
                raise
            except Exception as error:
                context.log.note(reason_code(error), f"{name} could not be loaded: {describe(error)}", name)
        if context.plan.concurrent and len(self._loaded) == len(self._networks):
            for together in self._together():
                context.log.configuration(together)
        context.reporter.done(step, f"{len(self._loaded)} of {count_of(len(self._networks), 'network')} loaded")

    def _measure(self, step: MeasureStep) -> None:
        text = f"{step.configuration} batch {step.batch_size} round {step.repeat + 1}"

        def work(cell: Cell) -> str:
            clock = self._context.clock
            begin_ns, is_first = clock.monotonic_ns(), not cell.prepared
            prepare(self._context, cell)
            if is_first:
                # A setup: it may build or tune an engine, and does not count towards the time limit.
                begin_ns = clock.monotonic_ns()
            window = measure(self._context, cell, step, self._processor_use)
            self._measured += 1
            if "interrupted" not in window.flags:
                self._steps.rounds.record(
                    step,
                    joules=joules_per_inference(window),
                    seconds=window.duration_s / window.inferences,
                    spent_s=(clock.monotonic_ns() - begin_ns) * 1e-9,
                )
            rate = window.inferences / window.duration_s
            p50 = f", p50 {window.latency.p50_s * 1e3:.3g} ms" if window.latency else ""
            return f"{rate:,.0f} inferences/s{p50}"

        self._with_cell(step, text, work)

    def _measure_together(self, step: ConcurrentStep) -> None:
        context = self._context
        text = f"{step.configuration} batch {step.batch_size} round {step.repeat + 1}"
        loaded = [self._loaded[name] for name in step.configurations if name in self._loaded]
        cells = [self._cell(one, step.batch_size) for one in loaded]
        if len(cells) < len(step.configurations) or any(cell.failed for cell in cells):
            self._drop(step)
            context.reporter.done(step, f"{text}: skipped")
            return
        context.reporter.begin(step, text)
        try:
            for cell in cells:
                prepare(context, cell)
            begin_ns = context.clock.monotonic_ns()
            windows = measure_together(context, cells, step)
        except (RunStopped, RecordError):
            raise
        except Exception as error:
            # Each network on its own is measured on.
            self._drop(step)
            reason = f"{step.configuration} batch {step.batch_size} excluded: {describe(error)}"
            context.log.note(reason_code(error), reason, step.configuration, step.batch_size)
            context.reporter.done(step, f"{text}: excluded")
            return
        self._measured += len(windows)
        inferences = max(sum(window.inferences for window in windows), 1)
        self._steps.rounds.record(
            step,
            joules=joules_per_inference(replace(windows[0], inferences=inferences)),
            seconds=windows[0].duration_s / inferences,
            spent_s=(context.clock.monotonic_ns() - begin_ns) * 1e-9,
        )
        rates = ", ".join(f"{window.inferences / window.duration_s:,.0f}" for window in windows)
        context.reporter.done(step, f"{text}: {rates} inferences/s")

    def _measure_phases(self, step: PhaseStep) -> None:
        text = f"{step.configuration} batch {step.batch_size} phases"
        self._with_cell(step, text, lambda cell: f"recording changes throughput by {phase_pass(self._context, cell)}")

    def _with_cell(self, step: MeasureStep | PhaseStep, text: str, work: Callable[[Cell], str]) -> None:
        """Do the work of a step and report its result; an error of the network excludes the cell from the run."""
        context = self._context
        loaded = self._loaded.get(step.configuration)
        cell = None
        if loaded is not None:
            cell = self._cell(loaded, step.batch_size)
        if cell is None or cell.failed:
            self._drop(step)
            context.reporter.done(step, f"{text}: skipped")
            return
        context.reporter.begin(step, text)
        try:
            result = work(cell)
        except (RunStopped, RecordError):
            raise
        except Exception as error:
            cell.failed = True
            self._drop(step)
            context.log.note(reason_code(error), f"{cell} excluded: {describe(error)}", cell.name, cell.batch_size)
            result = "excluded"
        context.reporter.done(step, f"{text}: {result}")

    def _cell(self, loaded: LoadedNetwork, batch_size: int) -> Cell:
        return self._cells.setdefault((loaded.name, batch_size), Cell(loaded=loaded, batch_size=batch_size))

    def _drop(self, step: MeasureStep | PhaseStep) -> None:
        if isinstance(step, MeasureStep):
            self._steps.rounds.drop(step)

    def _note_ended_rounds(self) -> None:
        for cell in self._steps.rounds.take_ended():
            names = [one.name for one in self._together()] if cell.configurations else [cell.configuration]
            for name in names:
                self._context.log.note(ROUNDS_ENDED, cell.ending, name, cell.batch_size, show=False)

    def _together(self) -> list[Configuration]:
        """Return the loaded configurations as they are called at the same time."""
        items = [one.configuration for one in self._loaded.values()]
        return [item.with_others(other.name for other in items if other is not item) for item in items]


HANDLERS: Final[Mapping[type[Any], Callable[[Runner, Any], None]]] = {
    IdleStep: Runner._idle,
    LoadStep: Runner._load,
    MeasureStep: Runner._measure,
    ConcurrentStep: Runner._measure_together,
    PhaseStep: Runner._measure_phases,
}


def reason_code(error: Exception) -> str:
    """Return the reason code of the note that reports an error of a network."""
    return next((reason for kind, reason in REASONS if isinstance(error, kind)), "runtime_error")


def _close(network: Network) -> None:
    try:
        network.close()
    except Exception as error:
        logger.warning("a network could not be closed: %s", describe(error))
