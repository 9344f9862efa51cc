"""A meter: one run whose windows are opened and closed by the user's own code."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from joulewatch_exporter.text import count_of
from joulewatch_harness.clients.exporter import ExporterClient
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.clocktime import to_ms
from joulewatch_harness.delivery.delivery import Delivery, open_delivery
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.metering.background_sync import BackgroundSync
from joulewatch_harness.metering.exporters import Connection, connect
from joulewatch_harness.metering.shared_conditions import SharedConditions
from joulewatch_harness.metering.shared_edges import SharedEdges
from joulewatch_harness.metering.sync import check_sync
from joulewatch_harness.metering.window import OPEN_WINDOWS, Measurement, current
from joulewatch_harness.plan.refresh import slowest_refresh_s
from joulewatch_harness.records import METER, SCHEMA_VERSION, Configuration, RunHeader, Window
from joulewatch_harness.runner.bracket import Bracket
from joulewatch_harness.runner.conditions import RunConditions
from joulewatch_harness.runner.edges import EdgeReader
from joulewatch_harness.runner.gpu_conditions import conditions_clients
from joulewatch_harness.runner.preflight import run_folder
from joulewatch_harness.runner.processor_time import ProcessorClock
from joulewatch_harness.runner.provenance import collect
from joulewatch_harness.runner.run_log import RunLog
from joulewatch_harness.storage.journal import Journal, new_run_id

if TYPE_CHECKING:
    from joulewatch_harness.metering.runs import Run
    from joulewatch_harness.plan.steps import Step

logger = logging.getLogger(__name__)

MOST_NAMES: Final = 100
"""Each name is a configuration, and each configuration has its own series in Prometheus."""
RECENT_WINDOWS: Final = 20
"""Windows before a window that show the smallest and largest power of each device."""
IDLE_S: Final = 2.0
LONGEST_IDLE_S: Final = 20.0
IDLE_REFRESHES: Final = 20
"""An idle window has this many refresh periods of the slowest sensor, within its two limits."""
DELIVERY_WAIT_S: Final = 10.0
Runtime = Literal["python", "command"]


class Meter:
    """One run, whose windows are measured with ``measure`` or with ``begin`` and ``end``.

    Use it as a context manager, or call ``close`` at the end; a meter that is still open is closed when the program
    ends. The windows of several threads and asyncio tasks may be open at the same time. A forked process needs its own
    meter.

    Args:
        exporters: URL of an exporter, or several. Default: those of ``$JOULEWATCH_EXPORTER``, else the exporter of this
            host, else one is started.
        prometheus: URL of a Prometheus that gets the windows, or its options.
        idle: ``"measured"``: measure idle power when the meter is opened, which takes 2 to 20 s, so that results have
            net energy. Default: gross energy only.
        name: Name of the run.
        sync: ``torch``, ``jax`` or ``cupy``: wait at both edges of each window for work that it has given to a GPU.
        output: Directory of all runs.
        exporter_flags: Flags of the exporter that is started; with flags, no other is used.
        runtime: ``python``, or ``command`` if the windows contain commands.
    """

    def __init__(
        self,
        exporters: str | Sequence[str] = (),
        *,
        prometheus: str | PrometheusOptions | None = None,
        idle: Literal["measured"] | None = None,
        name: str = "",
        sync: str = "",
        output: str | Path = "runs",
        exporter_flags: Sequence[str] = (),
        runtime: Runtime = "python",
    ) -> None:
        if idle not in (None, "measured"):
            raise ConfigError(f'idle is {idle!r}; must be "measured" or None')
        check_sync(sync)
        self._urls = (exporters,) if isinstance(exporters, str) else tuple(exporters)
        self._prometheus = PrometheusOptions(prometheus) if isinstance(prometheus, str) else prometheus
        self._idle = idle
        self._name = name
        self._sync = sync
        self._output = Path(output)
        self._exporter_flags = tuple(exporter_flags)
        self._runtime: Runtime = runtime
        self._lock = threading.RLock()
        self._header: RunHeader | None = None
        self._running: _Running | None = None
        self._closed = False
        self._open: dict[Measurement, None] = {}
        self._repeats: dict[str, int] = {}
        self._ends: set[tuple[str, int]] = set()
        self._next_index = 0
        self._recent: deque[Window] = deque(maxlen=RECENT_WINDOWS)
        self._idle_windows: tuple[Window, ...] = ()
        self.pid = os.getpid()
        """The process that may open windows."""

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What a user calls

    def open(self) -> Self:
        """Connect to the exporters, create the run and, if wanted, measure idle power; safe to call twice.

        Raises:
            ConfigError: An option is not valid, the output directory cannot be written, the meter was closed, or this
                is a forked process.
            ExporterUnreachableError: No exporter answers, or it has no energy sensor.
            QueryError: Prometheus does not answer.
        """
        self._check_process()
        with self._lock:
            if self._closed:
                raise ConfigError("the meter was closed; create another one")
            if self._running is None:
                with contextlib.ExitStack() as stack:
                    self._start(stack)
                atexit.register(self.close)
                if self._idle:
                    self._measure_idle()
        return self

    def close(self) -> None:
        """End the run; safe to call twice. Windows that are still open are lost."""
        if os.getpid() != self.pid:
            return
        with self._lock:
            running, self._running, self._closed = self._running, None, True
            if running is None:
                return
            atexit.unregister(self.close)
            with running.stack:
                for window in self._open:
                    OPEN_WINDOWS.discard(window)
                    running.log.note("interrupted", f"window {window.name!r} was still open at the end of the run")
                running.log.end("complete", "")
                running.sync.close()
                report = running.delivery.close(DELIVERY_WAIT_S)
                if not report.complete:
                    missing = count_of(report.windows - report.delivered, "window is", "windows are")
                    logger.warning("%s not delivered: joulewatch runs push %s", missing, self.folder)

    def measure(self, name: str, inferences: int = 1, *, sync: str = "") -> Measurement:
        """Return a window; use it as a context manager.

        Args:
            name: What runs in it; windows of one name are repeats.
            inferences: Inferences in the window; may be set later, until its end.
            sync: As for the meter; default: as the meter.

        Raises:
            ConfigError: A name, number or option is not valid.
        """
        return Measurement(self._opened, name, inferences, sync or self._sync)

    def begin(self, name: str, inferences: int = 1, *, sync: str = "") -> Measurement:
        """Open a window and return it; arguments and errors are those of ``measure`` and of the ``with``."""
        return self.measure(name, inferences, sync=sync).begin()

    def end(self, window: Measurement | None = None) -> Measurement:
        """Close a window and return it; by default the one that this thread or task opened last.

        Raises:
            ConfigError: No window is open.
        """
        at_ns = time.monotonic_ns()
        window = window or current()
        if window is None:
            raise ConfigError("end() without begin(): no window is open in this thread or task")
        return window.end_at(at_ns)

    def results(self) -> Run:
        """Return the results so far: one for each name, with the windows of that name as repeats."""
        from joulewatch_harness.metering.runs import load

        return load(self.folder, prometheus=self._prometheus)

    @property
    def header(self) -> RunHeader:
        """The run as its journal describes it: id, exporters, sensors.

        Raises:
            ConfigError: The meter was never opened.
        """
        if self._header is None:
            raise ConfigError("the meter is not open")
        return self._header

    @property
    def run(self) -> str:
        """Id of the run."""
        return self.header.run

    @property
    def folder(self) -> Path:
        """Directory of the run, with its journal."""
        return self._output / self.run

    @property
    def is_open(self) -> bool:
        """Whether windows can be opened and closed."""
        return self._running is not None

    # What a window calls

    def open_window(self, window: Measurement) -> Bracket:
        """Register a window, and return the bracket that reads its edges."""
        with self._lock:
            self.open()
            running = self._running
            assert running is not None
            if window.name not in self._repeats:
                self._add_name(window.name)
            if not self._open:
                running.log.window_opened("measure", window.name, 1)
            self._open[window] = None
        OPEN_WINDOWS.add(window)
        return running.bracket(settle=running.sync.settle)

    def settle(self) -> None:
        """Wait until all windows are on the disk.

        Raises:
            StorageError: They could not be written.
        """
        if (running := self._running) is not None:
            running.sync.settle()

    def drop_window(self, window: Measurement) -> None:
        """Forget a window that could not be opened."""
        OPEN_WINDOWS.discard(window)
        with self._lock:
            self._open.pop(window, None)

    def close_window(self, window: Measurement, bracket: Bracket) -> tuple[RunHeader, tuple[Window, ...]]:
        """Write a window; return what its energies are computed from: the run and some windows, itself the last.

        Raises:
            ConfigError: The meter was closed meanwhile.
            RecordError: The journal cannot be written.
        """
        OPEN_WINDOWS.discard(window)
        with self._lock:
            self._open.pop(window, None)
            running = self._running
            if running is None:
                raise ConfigError(f"window {window.name!r}: the meter was closed while it ended")
            record = bracket.window(
                run=self.run,
                index=self._next_index,
                kind="measure",
                configuration=window.name,
                batch_size=1,
                repeat=self._repeats[window.name],
                batches=window.inferences,
                flags=window.flags,
                details=window.details,
            )
            context = (*self._idle_windows, *self._recent, record)
            end = (window.name, to_ms(record.end_s))
            if end in self._ends:
                running.log.note(
                    "not_stored",
                    f"a window {window.name!r} ends in the same millisecond as another one: it is not in the journal",
                )
                return self.header, context
            running.log.add(record)
            self._ends.add(end)
            self._recent.append(record)
            self._repeats[window.name] += 1
            self._next_index += 1
            return self.header, context

    # Internals

    def _opened(self) -> Meter:
        return self.open()

    def _check_process(self) -> None:
        if os.getpid() != self.pid:
            raise ConfigError(
                f"this meter belongs to process {self.pid}: a forked process ({os.getpid()}) needs its own Meter"
            )

    def _start(self, stack: contextlib.ExitStack) -> None:
        """Create the run; ``stack`` gets what has to be closed."""
        if self._prometheus is not None:
            from joulewatch_harness.clients.prometheus import PrometheusClient

            with PrometheusClient(self._prometheus) as client:
                client.ping()
        run = new_run_id(time.time())
        folder = self._output / run
        stack.enter_context(run_folder(folder))
        found = connect(self._urls, folder, stack, exporter_flags=self._exporter_flags)
        conditions = RunConditions(conditions_clients(found.urls, found.exporters, found.sensors))
        stack.callback(conditions.close)
        header = self._make_header(run, found, conditions.provenance)
        delivery = open_delivery(self._prometheus, folder=folder)
        journal = stack.enter_context(Journal.create(self._output, header))
        reader = stack.enter_context(EdgeReader([ExporterClient(url) for url in found.urls]))
        sync = BackgroundSync(journal, delivery)
        log = RunLog(run, journal=sync, recording=None, delivery=sync, reporter=_Notes(), clock=time)
        delivery.start(header)
        self._header = header
        self._running = _Running(
            log=log,
            sync=sync,
            delivery=delivery,
            edges=SharedEdges(reader),
            processors=ProcessorClock(),
            conditions=SharedConditions(conditions),
            stack=stack.pop_all(),
        )

    def _make_header(self, run: str, found: Connection, gpus: Mapping[str, Any]) -> RunHeader:
        plan = {
            METER: "library" if self._runtime == "python" else "command",
            "name": self._name,
            "settle_s": 0.0,
            "idle": self._idle or "",
            "sync": self._sync,
            "exporters": [exporter.url for exporter in found.exporters],
            "prometheus": self._prometheus.url if self._prometheus is not None else "",
        }
        text = json.dumps(plan, sort_keys=True, separators=(",", ":"))
        program = Path(sys.argv[0]).name if sys.argv else ""
        return RunHeader(
            run=run,
            started_at_s=time.time(),
            schema=SCHEMA_VERSION,
            command=("python", program) if self._runtime == "python" else ("joulewatch", *sys.argv[1:]),
            plan=plan,
            plan_sha256=hashlib.sha256(text.encode()).hexdigest(),
            configurations=(),
            exporters=found.exporters,
            sensors=found.sensors,
            provenance={**collect(), **gpus},
        )

    def _measure_idle(self) -> None:
        running = self._running
        assert running is not None
        refresh_s = slowest_refresh_s(self.header.sensors) or 0.0
        running.log.window_opened("idle")
        with running.bracket() as bracket:
            time.sleep(min(max(IDLE_S, IDLE_REFRESHES * refresh_s), LONGEST_IDLE_S))
        window = bracket.window(run=self.run, index=self._next_index, kind="idle")
        running.log.add(window)
        self._next_index += 1
        self._idle_windows = (window,)

    def _add_name(self, name: str) -> None:
        if len(self._repeats) >= MOST_NAMES:
            raise ConfigError(
                f"window {name!r}: the run has {MOST_NAMES} names already; a name is for windows that do the same "
                "work, so leave numbers of steps and requests out of it, or use another Meter"
            )
        assert self._running is not None
        self._repeats[name] = 0
        self._running.log.configuration(
            Configuration(name=name, network=name, runtime=self._runtime, precision="", path=name)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """What an open meter writes with."""

    log: RunLog
    sync: BackgroundSync
    delivery: Delivery
    edges: SharedEdges
    processors: ProcessorClock
    conditions: SharedConditions
    stack: contextlib.ExitStack

    def bracket(self, settle: Callable[[], None] | None = None) -> Bracket:
        """Return the bracket of a window."""
        return Bracket(time, self.edges, self.processors, settle=settle, conditions=self.conditions)


class _Notes:
    """Reports the notes of a run in the log of the program; a meter has no progress to show."""

    def begin(self, step: Step, text: str) -> None: ...

    def tick(self) -> None: ...

    def done(self, step: Step, text: str) -> None: ...

    def note(self, text: str) -> None:
        logger.warning("%s", text)
