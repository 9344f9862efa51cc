"""Deliver a run to Prometheus in the background: send, read back, retry, never deliver twice.

The journal has everything first. What a server missed while it was down stays in the journal, and ``push_run``
(``joulewatch runs push``) delivers it later.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

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
    LONGEST_CHECK_S,
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
from joulewatch_harness.errors import ConfigError, describe
from joulewatch_harness.records import Configuration, RunEnd, RunHeader, Window, WindowKind
from joulewatch_harness.storage.journal import journal_path, read_run

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S: Final = 10.0
LIVE_PERIOD_S: Final = 15.0
CLOSE_TIMEOUT_S: Final = 30.0
PUSH_TIMEOUT_S: Final = 120.0


class NullDelivery:
    """The delivery of local mode, which delivers nothing."""

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
        """Return an empty report."""
        return DeliveryReport(windows=0, delivered=0, pending=0)


class BackgroundDelivery:
    """Delivers the lines of a run on a separate thread; its methods never block and never raise.

    Pass each line after the journal has it.
    """

    def __init__(self, sink: Sink, folder: Path) -> None:
        log = DeliveredLog(folder, way=sink.way, target=sink.target)
        self._sink = sink
        self._courier = Courier(sink, log.add)
        self._condition = threading.Condition()
        self._events: list[Callable[[], None]] = []
        self._windows = 0
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
        """Deliver the start of the run."""
        self._post(lambda: self._start(header))

    def configuration(self, configuration: Configuration) -> None:
        """Use this configuration, as loaded, for the windows that follow."""
        self._post(lambda: self._configurations.__setitem__(configuration.name, configuration))

    def window_opened(self, kind: WindowKind, configuration: str, batch_size: int, at_s: float) -> None:
        """Show a window that was opened at ``at_s`` (Unix seconds)."""
        self._post(lambda: self._opened(kind, configuration, batch_size, to_ms(at_s)))

    def window(self, window: Window) -> None:
        """Deliver a closed window."""
        self._windows += 1
        self._post(lambda: self._closed(window))

    def end(self, end: RunEnd) -> None:
        """Deliver the end of the run."""
        self._post(lambda: self._end(end))

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> DeliveryReport:
        """Deliver the remaining items for at most ``timeout_s`` and return a report; safe to call twice."""
        with self._condition:
            if self._deadline_s is None:
                self._deadline_s = time.monotonic() + timeout_s
                self._events.append(self._courier.hasten)
            self._condition.notify()
        self._thread.join(timeout_s + REQUEST_TIMEOUT_S)
        return self._courier.report(self._windows)

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
                # A bug in the delivery must not end the measurement, nor keep the other events from their delivery.
                for event in events:
                    self._guarded(event)
                wait_s = self._guarded(self._work_once, LONGEST_WAIT_S)
                if deadline_s is not None:
                    left_s = deadline_s - time.monotonic()
                    if self._courier.done or left_s <= 0:
                        return
                    wait_s = min(left_s, LONGEST_CHECK_S if wait_s is None else wait_s)
        finally:
            self._sink.close()

    def _guarded(self, work: Callable[[], float | None], otherwise: float | None = None) -> float | None:
        try:
            return work()
        except Exception as error:
            logger.error("delivery failed: %s", describe(error))
            logger.debug("delivery failed", exc_info=error)
            return otherwise

    def _work_once(self) -> float | None:
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
            # The previous window was abandoned.
            self._open = None
            self._show(at_ms - 2)
        self._open = active_sample(header.run, configuration, kind, batch_size, at_ms)
        loaded = self._configurations.get(configuration)
        if loaded is not None:
            self._count(header, loaded, batch_size, at_ms)
        self._show(at_ms)

    def _closed(self, window: Window) -> None:
        header = self._header
        if header is None:
            return
        configuration = self._configurations.get(window.configuration)
        self._courier.add(window_item(header, configuration, window))
        if window.kind in ("phase", "setup"):
            # Whether a setup is a window is known only after its end.
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
        """Send the live series for ``at_ms``; while the server is down they are dropped, because they soon change."""
        header = self._header
        self._live_at_s = time.monotonic() + LIVE_PERIOD_S
        if header is None or self._courier.trouble or at_ms > to_ms(time.time()) + FUTURE_LIMIT_MS:
            return
        series = [*self._counted] if self._open is None else [self._open, *self._counted]
        current = [replace(sample, at_ms=at_ms) for sample in series]
        standing = [status_sample(header, None)]
        standing += [info_sample(header, configuration, at_ms) for configuration in self._configurations.values()]
        try:
            self._sink.live(header.run, current, standing, at_ms)
        except (UnavailableError, RejectedError) as error:
            logger.info("live view: %s", error)


Delivery = BackgroundDelivery | NullDelivery


def open_sink(prometheus: PrometheusOptions, pushgateway_url: str | None = None) -> Sink:
    """Return the sink for remote write, or for the Pushgateway, after checking that the servers accept samples.

    Raises:
        ConfigError: the remote-write receiver is disabled, or no Pushgateway answers.
        QueryError: Prometheus does not answer.
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
    """Return the delivery of one run; the servers are checked before the run starts.

    Args:
        prometheus: The server that gets the run and from which it is read back; None: local mode.
        pushgateway_url: Deliver through this Pushgateway; None: remote write.
        folder: The run's folder, for ``delivered.jsonl``.

    Raises:
        ConfigError: An option is invalid, or a Pushgateway is set without the Prometheus from which to read back.
        QueryError: Prometheus does not answer.
    """
    if prometheus is None:
        if pushgateway_url:
            raise ConfigError(
                "--pushgateway requires --prometheus: a group is deleted only after it was read back from Prometheus"
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
    """Deliver the items of a run that Prometheus does not have.

    Args:
        folder: The run's folder.
        prometheus, pushgateway_url: See ``open_delivery``.
        timeout_s: When to stop; what is not delivered by then stays in the journal.
        sleep: For tests.
        progress: Called after each step.

    Raises:
        RecordError: the journal cannot be read.
        ConfigError, QueryError: See ``open_delivery``.
    """
    record = read_run(folder)
    items = run_items(record)
    sink = open_sink(prometheus, pushgateway_url)
    try:
        log = DeliveredLog(journal_path(folder).parent, way=sink.way, target=sink.target)
        courier = Courier(sink, log.add)
        present = sink.present(items)
        courier.add_delivered([item for item in items if item.name in present])
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
