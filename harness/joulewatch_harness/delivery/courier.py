"""Delivers items in the background, confirms them by reading back, and keeps what could not be delivered."""

from __future__ import annotations

import json
import logging
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from joulewatch_harness.clocktime import to_ms
from joulewatch_harness.delivery.sinks import Item, RejectedError, Sink, UnavailableError
from joulewatch_harness.errors import QueryError

logger = logging.getLogger(__name__)


DELIVERED_NAME: Final = "delivered.jsonl"


BATCH_ITEMS: Final = 20


FUTURE_LIMIT_MS: Final = 1000
"""A sample in the future made an older Prometheus refuse everybody's samples until that time had come."""


FIRST_WAIT_S: Final = 0.25


LONGEST_WAIT_S: Final = 10.0


FIRST_LOOK_S: Final = 0.02


LONGEST_LOOK_S: Final = 2.0


MOST_SENDINGS: Final = 3


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
