"""From the journal to Prometheus, in the background: sent, read back, tried again, never twice.

The journal is the truth; this is its messenger. What a dead server missed stays in the journal, and
``push_run`` (``joulewatch runs push``) delivers it later.
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from joulewatch_exporter import catalog
from joulewatch_harness.annotations import Sample, active_sample, info_sample, run_labels, sample, status_sample, to_ms
from joulewatch_harness.errors import ConfigError, QueryError
from joulewatch_harness.journal import journal_path, read_run
from joulewatch_harness.prometheus import PrometheusOptions, with_timeout
from joulewatch_harness.pushgateway import PushgatewaySink
from joulewatch_harness.records import Configuration, RunEnd, RunHeader, Window, WindowKind
from joulewatch_harness.remote_write import RemoteWriteSink
from joulewatch_harness.sinks import (
    Item,
    RejectedError,
    Sink,
    UnavailableError,
    end_item,
    run_items,
    start_item,
    window_item,
)

logger = logging.getLogger(__name__)

DELIVERED_NAME: Final = "delivered.jsonl"
REQUEST_TIMEOUT_S: Final = 10.0
BATCH_ITEMS: Final = 20
FUTURE_LIMIT_MS: Final = 1000
"""A sample in the future made an older Prometheus refuse everybody's samples until that time had come."""
FIRST_WAIT_S: Final = 0.25
LONGEST_WAIT_S: Final = 10.0
FIRST_LOOK_S: Final = 0.02
LONGEST_LOOK_S: Final = 2.0
MOST_SENDINGS: Final = 3
LIVE_PERIOD_S: Final = 15.0
CLOSE_TIMEOUT_S: Final = 30.0
PUSH_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Parked:
    """A piece of the run that the server will not take."""

    what: str
    """``start``, ``end`` or ``window 7``."""
    reason: str


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """What became of a run's annotations."""

    delivered: int
    """Windows that were read back from Prometheus."""
    pending: int
    """Windows that are not there yet: ``joulewatch runs push`` delivers them."""
    parked: tuple[Parked, ...] = ()
    """Refused for good, with the cure in the reason."""
    trouble: str = ""
    """Why there are pending ones."""

    @property
    def complete(self) -> bool:
        """Whether every window, and the start and end told so far, are in Prometheus."""
        return not self.pending and not self.parked and not self.trouble


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


class DeliveredLog:
    """``delivered.jsonl``: the windows that were read back, one fsynced line each.

    Only a note of what is known: without it, or with a torn line, the server is asked again.
    """

    def __init__(self, folder: Path, *, way: str, target: str, clock: Callable[[], float] = time.time) -> None:
        self._path = folder / DELIVERED_NAME
        self._way = way
        self._target = target
        self._clock = clock
        self._known = delivered_windows(folder, target)

    def add(self, items: Iterable[Item]) -> None:
        """Note items; windows noted before are not noted again."""
        numbers = [item.window.index for item in items if item.window is not None]
        new = [number for number in numbers if number not in self._known]
        if not new:
            return
        self._known.update(new)
        lines = [
            {"window": number, "target": self._target, "way": self._way, "confirmed_at_s": self._clock()}
            for number in new
        ]
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        try:
            with self._path.open("ab") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            logger.warning(
                "%s: cannot be written to: %s; the server is asked again next time", self._path, error.strerror
            )


def delivered_windows(folder: Path, target: str | None = None) -> set[int]:
    """Numbers of the windows that were read back from ``target`` (base URL of a Prometheus; None: from any)."""
    try:
        rows = (folder / DELIVERED_NAME).read_bytes().splitlines()
    except OSError:
        return set()
    numbers = set()
    for row in rows:
        try:
            line = json.loads(row)
            if target is None or line["target"] == target:
                numbers.add(int(line["window"]))
        except (ValueError, KeyError, TypeError):
            continue  # torn by a kill
    return numbers


@dataclass(slots=True)
class _Sent:
    """An item that was accepted and not read back yet."""

    item: Item
    at_s: float
    sendings: int


class Courier:
    """Brings items to one sink: writes, reads back, tries again, gives up on what is refused.

    Steps are taken by whoever owns it; it has no thread and never sleeps.

    Args:
        sink: the way.
        confirmed: told of items that were read back.
        clock, monotonic, jitter: for tests.
    """

    def __init__(
        self,
        sink: Sink,
        confirmed: Callable[[list[Item]], None],
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._sink = sink
        self._confirmed = confirmed
        self._clock = clock
        self._monotonic = monotonic
        self._jitter = jitter
        self._pending: deque[tuple[Item, int]] = deque()
        self._sent: dict[str, _Sent] = {}
        self._write_at_s = 0.0
        self._write_wait_s = FIRST_WAIT_S
        self._look_at_s = 0.0
        self._look_wait_s = FIRST_LOOK_S
        self.delivered = 0
        self.parked: list[Parked] = []
        self.trouble = ""
        """Why the last attempt failed; empty: it did not."""

    @property
    def open_windows(self) -> int:
        """Windows that are not delivered and not refused."""
        waiting = [item for item, _ in self._pending] + [sent.item for sent in self._sent.values()]
        return sum(item.window is not None for item in waiting)

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return not self._pending and not self._sent

    def add(self, item: Item) -> None:
        """Take an item; items are written in the order in which they come."""
        self._pending.append((item, 0))

    def report(self) -> DeliveryReport:
        """How things stand."""
        trouble = self.trouble
        if not trouble and self._sent:
            trouble = f"{self._sink.target} does not show yet what was handed over"
        return DeliveryReport(self.delivered, self.open_windows, tuple(self.parked), trouble if not self.done else "")

    def hasten(self) -> None:
        """Try at once whatever waits for its next attempt."""
        self._write_at_s = self._look_at_s = 0.0
        self._write_wait_s = FIRST_WAIT_S
        self._look_wait_s = FIRST_LOOK_S

    def step(self) -> float | None:
        """Do what is due; seconds until the next step is due, None when nothing is left."""
        if self._pending and self._monotonic() >= self._write_at_s:
            self._write()
        if self._sent and self._monotonic() >= self._look_at_s:
            self._look()
        now_s = self._monotonic()
        due_s = []
        if self._pending:
            due_s.append(self._write_at_s)
        if self._sent:
            due_s.append(self._look_at_s)
        return max(0.0, min(due_s) - now_s) if due_s else None

    def _write(self) -> None:
        now_ms = to_ms(self._clock())
        batch = [self._pending.popleft() for _ in range(min(BATCH_ITEMS, len(self._pending)))]
        good = []
        for item, sendings in batch:
            if item.at_ms > now_ms + FUTURE_LIMIT_MS:
                ahead_s = (item.at_ms - now_ms) / 1000
                self._park(
                    item,
                    f"it ends {ahead_s:.1f} s in the future: the clock was set back; "
                    "'joulewatch runs push' delivers it when that time has come",
                )
            else:
                good.append((item, sendings))
        if not good:
            return
        try:
            self._sink.write([item for item, _ in good])
        except UnavailableError as error:
            self._put_back(good, error)
            return
        except RejectedError as error:
            if len(good) == 1:
                self._refused(good[0][0], error)
                return
            # One bad one has all of them refused: one at a time.
            for position, (item, sendings) in enumerate(good):
                try:
                    self._sink.write([item])
                except UnavailableError as unavailable:
                    self._put_back(good[position:], unavailable)
                    return
                except RejectedError as refused:
                    self._refused(item, refused)
                else:
                    self._handed_over([(item, sendings)])
        else:
            self._handed_over(good)
        self._write_wait_s = FIRST_WAIT_S

    def _put_back(self, items: list[tuple[Item, int]], error: UnavailableError) -> None:
        self._pending.extendleft(reversed(items))
        self._write_at_s = self._monotonic() + self._write_wait_s * (0.5 + self._jitter())
        self._write_wait_s = min(2 * self._write_wait_s, LONGEST_WAIT_S)
        self._worse(str(error))

    def _handed_over(self, items: list[tuple[Item, int]]) -> None:
        now_s = self._monotonic()
        for item, sendings in items:
            self._sent[item.name] = _Sent(item, now_s, sendings + 1)
        self._look_wait_s = FIRST_LOOK_S
        self._look_at_s = now_s

    def _refused(self, item: Item, error: RejectedError) -> None:
        try:
            # An answer may have been lost, and what came after it makes the repetition out of order.
            there = bool(self._sink.present([item]))
        except QueryError as query_error:
            logger.info("%s", query_error)
            there = False
        if there:
            self._settle([item])
        else:
            self._park(item, str(error))

    def _park(self, item: Item, reason: str) -> None:
        self.parked.append(Parked(item.name, reason))
        logger.warning("run %s, %s is not delivered: %s", item.run, item.name, reason)

    def _look(self) -> None:
        items = [sent.item for sent in self._sent.values()]
        try:
            present = self._sink.present(items)
        except QueryError as error:
            self._worse(str(error))
            self._look_later()
            return
        there = [item for item in items if item.name in present]
        for item in there:
            del self._sent[item.name]
        self._settle(there)
        now_s = self._monotonic()
        after_s = self._sink.resend_after_s
        for sent in list(self._sent.values()):
            if after_s is None or now_s < sent.at_s + after_s:
                continue
            del self._sent[sent.item.name]
            if sent.sendings < MOST_SENDINGS:
                self._pending.appendleft((sent.item, sent.sendings))
            else:
                self._park(
                    sent.item,
                    f"{self._sink.target} took it {sent.sendings} times and does not show it: "
                    "does the query API belong to the server that is written to?",
                )
        if there:
            self._look_wait_s = FIRST_LOOK_S
        self._look_later()

    def _look_later(self) -> None:
        self._look_at_s = self._monotonic() + self._look_wait_s
        self._look_wait_s = min(2 * self._look_wait_s, LONGEST_LOOK_S)

    def _settle(self, items: list[Item]) -> None:
        if items:
            self.delivered += sum(item.window is not None for item in items)
            self._confirmed(items)
            self._sink.settle(items)
            self._better()

    def found(self, items: list[Item]) -> None:
        """Count items that were there before they were sent."""
        self._settle(items)

    def _worse(self, trouble: str) -> None:
        if not self.trouble:
            logger.warning("delivery waits: %s", trouble)
        self.trouble = trouble

    def _better(self) -> None:
        if self.trouble:
            logger.warning("delivery goes on: %s answers again", self._sink.target)
        self.trouble = ""


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
        self._gone_ms = 0
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
    options = with_timeout(prometheus, min(prometheus.timeout_s, REQUEST_TIMEOUT_S))
    sink: Sink
    if pushgateway_url:
        gateway = with_timeout(prometheus.for_pushgateway(pushgateway_url), options.timeout_s)
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
