"""What the ways of delivery have in common: the pieces of a run, their errors, and reading back."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from joulewatch_exporter import catalog
from joulewatch_harness.clients.prometheus import PrometheusClient
from joulewatch_harness.clocktime import to_ms
from joulewatch_harness.delivery.annotations import Labels, Sample, info_sample, status_sample, window_samples
from joulewatch_harness.errors import DeliveryError
from joulewatch_harness.records import Configuration, RunEnd, RunHeader, RunRecord, Window

WINDOW_NUMBER_LABEL: Final = "window"
"""On series that came through a Pushgateway: the window's number."""

STORED_EXACTLY: Final = 1e-12
"""Relative difference up to which a value counts as the one that was sent: Prometheus keeps every bit,
VictoriaMetrics packs values as decimals of about 13 digits."""

_LABELS: Final = {metric.name: frozenset((*metric.labels, WINDOW_NUMBER_LABEL)) for metric in catalog.METRICS}


class UnavailableError(DeliveryError):
    """The server cannot take it now: try again later."""


class RejectedError(DeliveryError):
    """The server will never take this: trying again does not help."""


@dataclass(frozen=True, slots=True)
class Item:
    """A piece of a run that is delivered as a whole, once: its start, a window, or its end."""

    run: str
    name: str
    """``start``, ``end`` or ``window 7``."""
    at_ms: int
    samples: tuple[Sample, ...]
    """Delivered when all of these were read back."""
    info: tuple[Sample, ...] = ()
    """``joulewatch_run_info`` at the same time, so that the run is found wherever one looks in it."""
    window: Window | None = None


def start_item(header: RunHeader) -> Item:
    """The run began."""
    status = status_sample(header, None)
    return Item(header.run, "start", status.at_ms, (status,))


def window_item(header: RunHeader, configuration: Configuration | None, window: Window) -> Item:
    """One window; ``configuration``: as loaded, None for a window without one."""
    at_ms = to_ms(window.end_s)
    # A phase lies inside its measure window, and is told after it: its info would come too late.
    told = configuration is not None and window.kind != "phase"
    info = (info_sample(header, configuration, at_ms),) if configuration is not None and told else ()
    return Item(header.run, f"window {window.index}", at_ms, tuple(window_samples(window)), info, window)


def end_item(header: RunHeader, configurations: Iterable[Configuration], end: RunEnd) -> Item:
    """The run ended."""
    status = status_sample(header, end)
    info = [info_sample(header, configuration, status.at_ms) for configuration in configurations]
    return Item(header.run, "end", status.at_ms, (status, *info))


def run_items(record: RunRecord) -> list[Item]:
    """A whole run, in the order in which it is delivered."""
    configurations = {configuration.name: configuration for configuration in record.configurations}
    items = [start_item(record.header)]
    items += [window_item(record.header, configurations.get(window.configuration), window) for window in record.windows]
    if record.end is not None:
        items.append(end_item(record.header, record.configurations, record.end))
    return items


class Sink(Protocol):
    """A way to Prometheus; used by one thread."""

    way: str
    """``remote_write`` or ``pushgateway``."""
    target: str
    """URL of the Prometheus in which the samples are read back."""
    resend_after_s: float | None
    """How long an accepted item may stay invisible before it is sent again; None: it is never sent again."""

    def check(self) -> None:
        """Raise ConfigError or QueryError if this way cannot work."""

    def write(self, items: Sequence[Item]) -> None:
        """Hand over; raise UnavailableError, or RejectedError when not one of them was taken."""

    def present(self, items: Sequence[Item]) -> set[str]:
        """Names of those that Prometheus has whole; raise QueryError if it cannot be asked."""

    def settle(self, items: Sequence[Item]) -> None:
        """They were read back: clean up."""

    def live(self, run: str, current: Sequence[Sample], standing: Sequence[Sample], gone_ms: int) -> None:
        """Show what is going on; nobody depends on it.

        Args:
            run: its id.
            current: the live series as they are now (open window, batch size, inferences).
            standing: the run's status and info.
            gone_ms: when a series that is no longer in ``current`` ended.

        Raises:
            UnavailableError, RejectedError: it was not taken, and is not sent again.
        """

    def close(self) -> None:
        """Close the connections."""


def read_back(
    client: PrometheusClient, run: str, names: Iterable[str], *, start_ms: int, end_ms: int, matchers: str = ""
) -> dict[tuple[str, Labels], list[tuple[int, float]]]:
    """Raw samples of a run's series between two times, both included.

    Labels that are not ours (of a scrape, of a replica) are left out of the keys.

    Raises:
        QueryError: the server cannot be asked.
    """
    selector = f'{{__name__=~"{"|".join(sorted(set(names)))}",run={quoted(run)}{matchers}}}'
    result = client.query(f"{selector}[{end_ms - start_ms + 1}ms]", end_ms / 1000, retry_s=0)
    found: dict[tuple[str, Labels], list[tuple[int, float]]] = {}
    for series in result:
        metric: dict[str, Any] = series["metric"]
        name = metric.get("__name__", "")
        ours = _LABELS.get(name, frozenset())
        labels = tuple(sorted((key, value) for key, value in metric.items() if key in ours))
        samples = found.setdefault((name, labels), [])
        samples += [(to_ms(at_s), float(value)) for at_s, value in series.get("values", ())]
    return found


def same(stored: float, sent: float) -> bool:
    """Whether a value read back is the one that was sent."""
    return math.isclose(stored, sent, rel_tol=STORED_EXACTLY)


def quoted(text: str) -> str:
    """A PromQL string."""
    return json.dumps(text, ensure_ascii=False)


def alternatives(texts: Iterable[str]) -> str:
    """A PromQL string that matches any of them as a regular expression."""
    return quoted("|".join(re.escape(text) for text in texts))


def in_pieces(items: Sequence[Item], size: int, ask: Callable[[Sequence[Item]], set[str]]) -> set[str]:
    """Ask about many items a piece at a time."""
    found: set[str] = set()
    for first in range(0, len(items), size):
        found |= ask(items[first : first + size])
    return found
