"""From the journal to Prometheus, in the background: sent, read back, tried again, never twice.

The journal is the truth; this is its messenger. What a dead server missed stays in the journal, and
``push_run`` (``joulewatch runs push``) delivers it later.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

from joulewatch_exporter import catalog
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.clocktime import to_ms
from joulewatch_harness.delivery.annotations import (
    Sample,
    active_sample,
    info_sample,
    run_labels,
    sample,
    status_sample,
)
from joulewatch_harness.delivery.courier import (
    FUTURE_LIMIT_MS,
    LONGEST_LOOK_S,
    LONGEST_WAIT_S,
    Courier,
    DeliveredLog,
    DeliveryReport,
)
from joulewatch_harness.delivery.pushgateway import PushgatewaySink
from joulewatch_harness.delivery.remote_write import RemoteWriteSink
from joulewatch_harness.delivery.sinks import (
    RejectedError,
    Sink,
    UnavailableError,
    end_item,
    run_items,
    start_item,
    window_item,
)
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.records import Configuration, RunEnd, RunHeader, Window, WindowKind
from joulewatch_harness.storage.journal import journal_path, read_run

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S: Final = 10.0
LIVE_PERIOD_S: Final = 15.0
CLOSE_TIMEOUT_S: Final = 30.0
PUSH_TIMEOUT_S: Final = 120.0


class Delivery(Protocol):
    """Takes the lines of a running run, each after the journal has it; never blocks and never raises."""

    def start(self, header: RunHeader) -> None: ...

    def configuration(self, configuration: Configuration) -> None: ...

    def window_opened(self, kind: WindowKind, configuration: str, batch_size: int, at_s: float) -> None: ...

    def window(self, window: Window) -> None: ...

    def end(self, end: RunEnd) -> None: ...

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> DeliveryReport: ...


class NullDelivery:
    """Local mode: nothing is delivered."""

    def start(self, header: RunHeader) -> None:
        """Do nothing."""

    def configuration(self, configuration: Configuration) -> None:
        """Do nothing."""

    def window_opened(self, kind: WindowKind, configuration: str, batch_size: int, at_s: float) -> None:
        """Do nothing."""

    def window(self, window: Window) -> None:
        """Do nothing."""

    def end(self, end: RunEnd) -> None:
        """Do nothing."""

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> DeliveryReport:
        """Nothing was to be delivered."""
        return DeliveryReport(0, 0)


class BackgroundDelivery:
    """Delivers on a thread of its own while the run goes on."""

    def __init__(self, sink: Sink, folder: Path) -> None:
        log = DeliveredLog(folder, way=sink.way, target=sink.target)
        self._sink = sink
        self._courier = Courier(sink, log.add)
        self._condition = threading.Condition()
        self._events: list[Callable[[], None]] = []
        self._deadline_s: float | None = None
        self._header: RunHeader | None = None
        self._configurations: dict[str, Configuration] = {}
        self._inferences: dict[str, int] = {}
        self._open: Sample | None = None
        self._counted: tuple[Sample, ...] = ()
        self._live_at_s: float | None = None
        self._thread = threading.Thread(target=self._work, name="delivery", daemon=True)
        self._thread.start()

    def start(self, header: RunHeader) -> None:
        """The run began."""
        self._post(lambda: self._start(header))

    def configuration(self, configuration: Configuration) -> None:
        """A configuration was loaded."""
        self._post(lambda: self._configurations.__setitem__(configuration.name, configuration))

    def window_opened(self, kind: WindowKind, configuration: str, batch_size: int, at_s: float) -> None:
        """A window opened at ``at_s`` (Unix seconds)."""
        self._post(lambda: self._opened(kind, configuration, batch_size, to_ms(at_s)))

    def window(self, window: Window) -> None:
        """A window closed, and is in the journal."""
        self._post(lambda: self._closed(window))

    def end(self, end: RunEnd) -> None:
        """The run ended."""
        self._post(lambda: self._end(end))

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> DeliveryReport:
        """Deliver what is left for at most ``timeout_s`` and say how it went; safe to call twice."""
        with self._condition:
            if self._deadline_s is None:
                self._deadline_s = time.monotonic() + timeout_s
                self._events.append(self._courier.hasten)
            self._condition.notify()
        self._thread.join(timeout_s + REQUEST_TIMEOUT_S)
        return self._courier.report()

    def _post(self, event: Callable[[], None]) -> None:
        with self._condition:
            if self._deadline_s is None:
                self._events.append(event)
                self._condition.notify()

    def _work(self) -> None:
        wait_s: float | None = None
        try:
            while True:
                with self._condition:
                    if not self._events:
                        self._condition.wait(wait_s)
                    events, self._events = self._events, []
                    deadline_s = self._deadline_s
                try:
                    wait_s = self._work_once(events)
                except Exception:
                    # A fault of ours must not reach the measurement; the journal has everything.
                    logger.exception("delivery failed")
                    wait_s = LONGEST_WAIT_S
                if deadline_s is not None:
                    left_s = deadline_s - time.monotonic()
                    if self._courier.done or left_s <= 0:
                        return
                    wait_s = min(left_s, LONGEST_LOOK_S if wait_s is None else wait_s)
        finally:
            self._sink.close()

    def _work_once(self, events: list[Callable[[], None]]) -> float | None:
        for event in events:
            event()
        wait_s = self._courier.step()
        if self._live_at_s is not None:
            if time.monotonic() >= self._live_at_s:
                self._show(to_ms(time.time()))
            live_wait_s = max(0.0, self._live_at_s - time.monotonic())
            wait_s = live_wait_s if wait_s is None else min(wait_s, live_wait_s)
        return wait_s

    def _start(self, header: RunHeader) -> None:
        self._header = header
        self._courier.add(start_item(header))

    def _opened(self, kind: WindowKind, configuration: str, batch_size: int, at_ms: int) -> None:
        header = self._header
        if header is None:
            return
        if self._open is not None:
            # The window before this one was given up.
            self._open = None
            self._show(at_ms - 2)
        self._open = active_sample(header.run, configuration, kind, batch_size, at_ms)
        found = self._configurations.get(configuration)
        if found is not None:
            self._count(header, found, batch_size, at_ms)
        self._show(at_ms)

    def _closed(self, window: Window) -> None:
        header = self._header
        if header is None:
            return
        configuration = self._configurations.get(window.configuration)
        self._courier.add(window_item(header, configuration, window))
        if window.kind in ("phase", "setup"):
            # A setup is known to be a window only when it is over.
            return
        at_ms = to_ms(window.end_s)
        self._open = None
        if configuration is not None:
            if window.kind == "measure":
                so_far = self._inferences.get(configuration.name, 0)
                self._inferences[configuration.name] = so_far + window.inferences
            self._count(header, configuration, window.batch_size, at_ms)
        self._show(at_ms)

    def _count(self, header: RunHeader, configuration: Configuration, batch_size: int, at_ms: int) -> None:
        labels = run_labels(header, configuration)
        inferences = self._inferences.get(configuration.name, 0)
        self._counted = (
            sample(catalog.RUN_BATCH_SIZE, labels, at_ms, batch_size),
            sample(catalog.RUN_INFERENCES, labels, at_ms, inferences),
        )

    def _end(self, end: RunEnd) -> None:
        header = self._header
        if header is None:
            return
        self._open = None
        self._counted = ()
        self._show(to_ms(end.ended_at_s))
        self._live_at_s = None
        self._courier.add(end_item(header, self._configurations.values(), end))

    def _show(self, at_ms: int) -> None:
        """Show the live series as of ``at_ms``; lost when the server is away, for they are of the moment."""
        header = self._header
        self._live_at_s = time.monotonic() + LIVE_PERIOD_S
        if header is None or self._courier.trouble or at_ms > to_ms(time.time()) + FUTURE_LIMIT_MS:
            return
        current = [*self._counted] if self._open is None else [self._open, *self._counted]
        moved = [Sample(one.name, one.labels, at_ms, one.value) for one in current]
        standing = [status_sample(header, None)]
        standing += [info_sample(header, item, at_ms) for item in self._configurations.values()]
        try:
            self._sink.live(header.run, moved, standing, at_ms)
        except (UnavailableError, RejectedError) as error:
            logger.info("live view: %s", error)


def open_sink(prometheus: PrometheusOptions, pushgateway_url: str | None = None) -> Sink:
    """The way that is asked for, checked: both servers answer and take samples.

    Raises:
        ConfigError: the receiver is off, or the Pushgateway is none.
        QueryError: no Prometheus answers.
    """
    options = replace(prometheus, timeout_s=min(prometheus.timeout_s, REQUEST_TIMEOUT_S))
    sink: Sink
    if pushgateway_url:
        gateway = replace(prometheus.for_pushgateway(pushgateway_url), timeout_s=options.timeout_s)
        sink = PushgatewaySink(options, gateway)
    else:
        sink = RemoteWriteSink(options)
    try:
        sink.check()
    except BaseException:
        sink.close()
        raise
    return sink


def open_delivery(
    prometheus: PrometheusOptions | None, *, pushgateway_url: str | None = None, folder: Path
) -> Delivery:
    """Delivery of one run, checked before the run begins.

    Args:
        prometheus: where the run goes, and is read back from; None: nowhere (local mode).
        pushgateway_url: the way through a Pushgateway; None: remote write.
        folder: the run's, for ``delivered.jsonl``.

    Raises:
        ConfigError: the receiver is off, the Pushgateway is none, or there is no Prometheus to read back from.
        QueryError: no Prometheus answers.
    """
    if prometheus is None:
        if pushgateway_url:
            raise ConfigError(
                "--pushgateway needs --prometheus: a group is deleted only after Prometheus was seen to have it"
            )
        return NullDelivery()
    return BackgroundDelivery(open_sink(prometheus, pushgateway_url), folder)


def push_run(
    folder: Path,
    prometheus: PrometheusOptions,
    *,
    pushgateway_url: str | None = None,
    timeout_s: float = PUSH_TIMEOUT_S,
    sleep: Callable[[float], None] = time.sleep,
    progress: Callable[[DeliveryReport], None] | None = None,
) -> DeliveryReport:
    """Deliver what is missing of a run; what Prometheus has already is not sent again.

    Args:
        folder: the run's.
        prometheus, pushgateway_url: as of ``open_delivery``.
        timeout_s: for how long; what is not there by then stays in the journal.
        sleep: for tests.
        progress: told after each step.

    Raises:
        RecordError: the journal cannot be read.
        ConfigError, QueryError: as of ``open_delivery``.
    """
    record = read_run(folder)
    items = run_items(record)
    sink = open_sink(prometheus, pushgateway_url)
    try:
        log = DeliveredLog(journal_path(folder).parent, way=sink.way, target=sink.target)
        courier = Courier(sink, log.add)
        present = sink.present(items)
        courier.found([item for item in items if item.name in present])
        for item in items:
            if item.name not in present:
                courier.add(item)
        deadline_s = time.monotonic() + timeout_s
        while (wait_s := courier.step()) is not None and time.monotonic() < deadline_s:
            if progress is not None:
                progress(courier.report())
            sleep(min(wait_s, max(0.0, deadline_s - time.monotonic())))
        return courier.report()
    finally:
        sink.close()
