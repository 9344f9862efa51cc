"""What all kinds of delivery share: the items of a run, their errors, and reading back."""

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
from joulewatch_harness.errors import DeliveryError, QueryTooLargeError
from joulewatch_harness.records import Configuration, RunEnd, RunHeader, RunRecord, Window

WINDOW_NUMBER_LABEL: Final = "window"
"""Label of series that came through a Pushgateway: the number of the window."""

SHORTEST_RANGE_MS: Final = 60_000

STORED_EXACTLY: Final = 1e-12
"""Relative difference up to which a value counts as the one that was sent: Prometheus stores values exactly,
VictoriaMetrics stores decimals of about 13 digits."""

_LABELS: Final = {metric.name: frozenset((*metric.labels, WINDOW_NUMBER_LABEL)) for metric in catalog.METRICS}


class UnavailableError(DeliveryError):
    """The server cannot accept it now; retry later."""


class RejectedError(DeliveryError):
    """The server will never accept it; retrying does not help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A part of a run that is delivered as a whole, once: its start, a window, or its end."""

    run: str
    name: str
    """``start``, ``end`` or ``window 7``."""
    at_ms: int
    samples: tuple[Sample, ...]
    """The item is delivered when all of these have been read back."""
    info: tuple[Sample, ...] = ()
    """``joulewatch_run_info`` at the same time, so that a query at any time of the run finds it."""
    window: Window | None = None


def start_item(header: RunHeader) -> Item:
    """Return the item of the run's start."""
    status = status_sample(header, None)
    return Item(run=header.run, name="start", at_ms=status.at_ms, samples=(status,))


def window_item(header: RunHeader, configuration: Configuration | None, window: Window) -> Item:
    """Return the item of a window; ``configuration`` is as loaded, None for a window without one."""
    at_ms = to_ms(window.end_s)
    # A phase is within its measure window, but delivered after it: its info would be out of order.
    has_info = configuration is not None and window.kind != "phase"
    info = (info_sample(header, configuration, at_ms),) if configuration is not None and has_info else ()
    return Item(
        run=header.run,
        name=f"window {window.index}",
        at_ms=at_ms,
        samples=tuple(window_samples(window)),
        info=info,
        window=window,
    )


def end_item(header: RunHeader, configurations: Iterable[Configuration], end: RunEnd) -> Item:
    """Return the item of the run's end."""
    status = status_sample(header, end)
    info = [info_sample(header, configuration, status.at_ms) for configuration in configurations]
    return Item(run=header.run, name="end", at_ms=status.at_ms, samples=(status, *info))


def run_items(record: RunRecord) -> list[Item]:
    """Return all items of a run, in the order of delivery."""
    configurations = {configuration.name: configuration for configuration in record.configurations}
    items = [start_item(record.header)]
    items += [window_item(record.header, configurations.get(window.configuration), window) for window in record.windows]
    if record.end is not None:
        items.append(end_item(record.header, record.configurations, record.end))
    return items


class Sink(Protocol):
    """A kind of delivery to Prometheus; used by one thread."""

    way: str
    """``remote_write`` or ``pushgateway``."""
    target: str
    """URL of the Prometheus from which the samples are read back."""
    resend_after_s: float | None
    """How long an accepted item may be missing before it is sent again; None: it is never sent again."""

    def check(self) -> None:
        """Check that the servers respond and accept samples; raise ConfigError or QueryError otherwise."""

    def write(self, items: Sequence[Item]) -> None:
        """Send items; raise UnavailableError, or RejectedError if none of them was accepted."""

    def present(self, items: Sequence[Item]) -> set[str]:
        """Return the names of the items that Prometheus has completely; raise QueryError if the query fails."""

    def settle(self, items: Sequence[Item]) -> None:
        """Clean up after items that have been read back."""

    def live(self, run: str, current: Sequence[Sample], standing: Sequence[Sample], ended_ms: int) -> None:
        """Send the live view; nothing depends on it.

        Args:
            run: The run's id.
            current: The current values of the live series (open window, batch size, inferences).
            standing: The status and info of the run.
            ended_ms: The end of earlier series that are missing in ``current``.

        Raises:
            UnavailableError, RejectedError: it was not accepted, and is not sent again.
        """

    def close(self) -> None:
        """Close the connections."""


def read_back(
    client: PrometheusClient, run: str, names: Iterable[str], *, start_ms: int, end_ms: int, matchers: str = ""
) -> dict[tuple[str, Labels], list[tuple[int, float]]]:
    """Query the raw samples of a run's series; see ``stored_samples``."""
    return stored_samples(client, names, f"run={quoted(run)}{matchers}", start_ms=start_ms, end_ms=end_ms)


def stored_samples(
    client: PrometheusClient, names: Iterable[str], matchers: str, *, start_ms: int, end_ms: int
) -> dict[tuple[str, Labels], list[tuple[int, float]]]:
    """Query the raw samples of series between two times, both included.

    A range selector, because VictoriaMetrics hides the newest 30 s from all other queries. Keys do not contain labels
    that joulewatch did not send (of a scrape, of a replica).

    Raises:
        QueryError: the query fails.
    """
    selector = f'{{__name__=~"{"|".join(sorted(set(names)))}",{matchers}}}'
    samples_by_key: dict[tuple[str, Labels], list[tuple[int, float]]] = {}
    for series in _in_range(client, selector, start_ms, end_ms):
        metric: dict[str, Any] = series["metric"]
        name = metric.get("__name__", "")
        sent = _LABELS.get(name, frozenset())
        labels = tuple(sorted((key, value) for key, value in metric.items() if key in sent))
        samples = samples_by_key.setdefault((name, labels), [])
        samples += [(to_ms(at_s), float(value)) for at_s, value in series.get("values", ())]
    return samples_by_key


def _in_range(client: PrometheusClient, selector: str, start_ms: int, end_ms: int) -> list[dict[str, Any]]:
    try:
        return client.query(f"{selector}[{end_ms - start_ms + 1}ms]", end_ms / 1000, retry_s=0)
    except QueryTooLargeError:
        if end_ms - start_ms < SHORTEST_RANGE_MS:
            raise
    # A run that is pushed late may be older than the longest range that the server accepts.
    middle_ms = (start_ms + end_ms) // 2
    return _in_range(client, selector, start_ms, middle_ms) + _in_range(client, selector, middle_ms + 1, end_ms)


def same(stored: float, sent: float) -> bool:
    """Return whether a value that was read back is the one that was sent."""
    return math.isclose(stored, sent, rel_tol=STORED_EXACTLY)


def quoted(text: str) -> str:
    """Return a PromQL string."""
    return json.dumps(text, ensure_ascii=False)


def alternatives(texts: Iterable[str]) -> str:
    """Return a PromQL string with a regular expression that matches any of the texts."""
    return quoted("|".join(re.escape(text) for text in texts))


def in_pieces(items: Sequence[Item], size: int, ask: Callable[[Sequence[Item]], set[str]]) -> set[str]:
    """Query many items, ``size`` at a time."""
    names: set[str] = set()
    for first in range(0, len(items), size):
        names |= ask(items[first : first + size])
    return names
