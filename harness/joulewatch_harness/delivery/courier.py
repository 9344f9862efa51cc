"""Delivers items, confirms them by reading them back, and keeps those that could not be delivered."""

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
from joulewatch_harness.delivery.sinks import Item, RejectedError, Sink
from joulewatch_harness.errors import describe

logger = logging.getLogger(__name__)


DELIVERED_NAME: Final = "delivered.jsonl"
BATCH_ITEMS: Final = 20
FUTURE_LIMIT_MS: Final = 1000
"""After a sample with a time in the future, old versions of Prometheus refuse all samples until that time."""
FIRST_WAIT_S: Final = 0.25
LONGEST_WAIT_S: Final = 10.0
FIRST_CHECK_S: Final = 0.02
LONGEST_CHECK_S: Final = 2.0
MAX_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class Parked:
    """An item that the server does not accept."""

    what: str
    """``start``, ``end`` or ``window 7``."""
    reason: str

    @property
    def is_window(self) -> bool:
        return self.what.startswith("window")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryReport:
    """The result of delivering a run's annotations."""

    windows: int
    """Windows of the run so far."""
    delivered: int
    """Windows that have been read back from Prometheus."""
    pending: int
    """Windows that are not in Prometheus yet; ``joulewatch runs push`` delivers them."""
    parked: tuple[Parked, ...] = ()
    """Items that were refused; the reason contains the fix."""
    trouble: str = ""
    """Why windows are pending."""

    @property
    def complete(self) -> bool:
        """Whether all windows, and the start and end so far, are in Prometheus."""
        return self.delivered == self.windows and not self.parked and not self.trouble

    def refusals(self) -> list[tuple[str, str]]:
        """Return what was refused for each reason: (``7 windows were``, reason)."""
        names: dict[str, list[str]] = {}
        for parked in self.parked:
            names.setdefault(parked.reason, []).append(parked.what)
        texts = []
        for reason, items in names.items():
            windows = [name for name in items if name.startswith("window")]
            if len(windows) > 1:
                texts.append((f"{len(windows)} windows were", reason))
            else:
                # The start and the end of the run are named only without windows.
                shown = windows or items
                texts.append((f"{' and '.join(shown)} {'was' if len(shown) == 1 else 'were'}", reason))
        return texts


class DeliveredLog:
    """``delivered.jsonl``: the windows that have been read back, one fsynced line each.

    It only saves queries: if it or a line is missing, the server is queried again.
    """

    def __init__(self, folder: Path, *, way: str, target: str, clock: Callable[[], float] = time.time) -> None:
        self._path = folder / DELIVERED_NAME
        self._way = way
        self._target = target
        self._clock = clock
        self._known = delivered_windows(folder, target)

    def add(self, items: Iterable[Item]) -> None:
        """Add the windows among the items that are not in the log yet."""
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
                "%s: cannot be written: %s; the next push queries the server again", self._path, error.strerror
            )


def delivered_windows(folder: Path, target: str | None = None) -> set[int]:
    """Return the numbers of the windows that were read back from ``target``, a Prometheus' base URL; None: from any."""
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
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # incomplete after a kill
    return numbers


@dataclass(slots=True)
class _Sent:
    """An item that was accepted and has not been read back yet."""

    item: Item
    at_s: float
    attempts: int


class Courier:
    """Delivers items to one sink: writes them, reads them back, retries, and parks those that are refused.

    The owner calls ``step``; a courier has no thread and never sleeps.

    Args:
        sink: The sink.
        confirmed: Called with items that have been read back.
        clock, monotonic, jitter: For tests.
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
        self._check_at_s = 0.0
        self._check_wait_s = FIRST_CHECK_S
        self._windows = 0
        self.delivered = 0
        self.parked: list[Parked] = []
        self.trouble = ""
        """Why the last attempt failed; empty after a success."""

    @property
    def done(self) -> bool:
        """Whether all items are delivered or refused."""
        return not self._pending and not self._sent

    def add(self, item: Item) -> None:
        """Add an item; items are written in the order in which they were added."""
        self._windows += item.window is not None
        self._pending.append((item, 0))

    def report(self, windows: int | None = None) -> DeliveryReport:
        """Return the current state.

        Args:
            windows: Windows of the run so far; None: those that were added. More of them count as pending.
        """
        windows = self._windows if windows is None else windows
        trouble = self.trouble
        if not trouble and self._sent:
            trouble = f"{self._sink.target} does not show the accepted samples yet"
        refused = sum(parked.is_window for parked in self.parked)
        pending = windows - self.delivered - refused
        return DeliveryReport(
            windows=windows,
            delivered=self.delivered,
            pending=pending,
            parked=tuple(self.parked),
            trouble=trouble if pending or not self.done else "",
        )

    def hasten(self) -> None:
        """Make the next attempt immediately."""
        self._write_at_s = self._check_at_s = 0.0
        self._write_wait_s = FIRST_WAIT_S
        self._check_wait_s = FIRST_CHECK_S

    def step(self) -> float | None:
        """Do what is due; return the seconds until the next step, or None if all is done."""
        if self._pending and self._monotonic() >= self._write_at_s:
            self._write()
        if self._sent and self._monotonic() >= self._check_at_s:
            self._check()
        now_s = self._monotonic()
        due_s = []
        if self._pending:
            due_s.append(self._write_at_s)
        if self._sent:
            due_s.append(self._check_at_s)
        return max(0.0, min(due_s) - now_s) if due_s else None

    def _write(self) -> None:
        now_ms = to_ms(self._clock())
        batch = [self._pending.popleft() for _ in range(min(BATCH_ITEMS, len(self._pending)))]
        due = []
        for item, attempts in batch:
            if item.at_ms > now_ms + FUTURE_LIMIT_MS:
                ahead_s = (item.at_ms - now_ms) / 1000
                self._park(
                    item,
                    f"it ends {ahead_s:.1f} s in the future, because the clock was set back; "
                    "'joulewatch runs push' delivers it after that time",
                )
            else:
                due.append((item, attempts))
        if not due:
            return
        # Except for a refusal, every error puts the items back, those of a bug too.
        try:
            self._sink.write([item for item, _ in due])
        except RejectedError as error:
            if len(due) == 1:
                self._refused(due[0][0], error)
                return
            # One bad item makes the server refuse all of them: write them one at a time.
            for position, (item, attempts) in enumerate(due):
                try:
                    self._sink.write([item])
                except RejectedError as refused:
                    self._refused(item, refused)
                except Exception as unavailable:
                    self._put_back(due[position:], unavailable)
                    return
                else:
                    self._accepted([(item, attempts)])
        except Exception as error:
            self._put_back(due, error)
            return
        else:
            self._accepted(due)
        self._write_wait_s = FIRST_WAIT_S

    def _put_back(self, items: list[tuple[Item, int]], error: Exception) -> None:
        self._pending.extendleft(reversed(items))
        self._write_at_s = self._monotonic() + self._write_wait_s * (0.5 + self._jitter())
        self._write_wait_s = min(2 * self._write_wait_s, LONGEST_WAIT_S)
        self._failed(error)

    def _accepted(self, items: list[tuple[Item, int]]) -> None:
        now_s = self._monotonic()
        for item, attempts in items:
            self._sent[item.name] = _Sent(item, now_s, attempts + 1)
        self._check_wait_s = FIRST_CHECK_S
        self._check_at_s = now_s

    def _refused(self, item: Item, error: RejectedError) -> None:
        try:
            # If the answer to an earlier attempt was lost, later samples make the repetition out of order.
            present = bool(self._sink.present([item]))
        except Exception as query_error:
            logger.info("%s", describe(query_error))
            present = False
        if present:
            self._settle([item])
        else:
            self._park(item, str(error))

    def _park(self, item: Item, reason: str) -> None:
        # One warning for each reason: a server usually refuses all windows for the same one.
        level = logging.INFO if any(parked.reason == reason for parked in self.parked) else logging.WARNING
        self.parked.append(Parked(item.name, reason))
        logger.log(level, "run %s, %s was not delivered: %s", item.run, item.name, reason)

    def _check(self) -> None:
        items = [sent.item for sent in self._sent.values()]
        try:
            present = self._sink.present(items)
        except Exception as error:
            self._failed(error)
            self._check_later()
            return
        delivered = [item for item in items if item.name in present]
        for item in delivered:
            del self._sent[item.name]
        self._settle(delivered)
        now_s = self._monotonic()
        after_s = self._sink.resend_after_s
        for sent in list(self._sent.values()):
            if after_s is None or now_s < sent.at_s + after_s:
                continue
            del self._sent[sent.item.name]
            if sent.attempts < MAX_ATTEMPTS:
                self._pending.appendleft((sent.item, sent.attempts))
            else:
                self._park(
                    sent.item,
                    f"{self._sink.target} accepted it {sent.attempts} times and does not show it: "
                    "are the query API and the receiver the same server?",
                )
        if delivered:
            self._check_wait_s = FIRST_CHECK_S
        self._check_later()

    def _check_later(self) -> None:
        self._check_at_s = self._monotonic() + self._check_wait_s
        self._check_wait_s = min(2 * self._check_wait_s, LONGEST_CHECK_S)

    def _settle(self, items: list[Item]) -> None:
        if not items:
            return
        self.delivered += sum(item.window is not None for item in items)
        try:
            self._confirmed(items)
            self._sink.settle(items)
        except Exception as error:
            # They are delivered, whatever happens afterwards.
            logger.warning("after the delivery: %s", describe(error))
        self._succeeded()

    def add_delivered(self, items: list[Item]) -> None:
        """Count items that were in Prometheus before they were sent."""
        self._windows += sum(item.window is not None for item in items)
        self._settle(items)

    def _failed(self, error: Exception) -> None:
        trouble = describe(error)
        if not self.trouble:
            logger.warning("delivery is waiting: %s", trouble)
        logger.debug("delivery failed", exc_info=error)
        self.trouble = trouble

    def _succeeded(self) -> None:
        if self.trouble:
            logger.warning("delivery continues: %s answers again", self._sink.target)
        self.trouble = ""
