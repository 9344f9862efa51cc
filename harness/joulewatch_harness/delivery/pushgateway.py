"""Delivery through a Pushgateway, for a Prometheus whose remote-write receiver cannot be enabled.

A Pushgateway accepts no timestamps and is scraped at intervals. So each window is a separate group, with its start and
end as values, and is deleted only after it was read back completely from Prometheus.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final
from urllib.parse import quote

from joulewatch_exporter import catalog
from joulewatch_exporter.text import count_of
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.clients.prometheus import PrometheusClient
from joulewatch_harness.clocktime import to_ms
from joulewatch_harness.delivery.annotations import Sample, sample
from joulewatch_harness.delivery.sinks import (
    WINDOW_NUMBER_LABEL,
    Item,
    RejectedError,
    UnavailableError,
    alternatives,
    in_pieces,
    read_back,
    same,
)
from joulewatch_harness.errors import ConfigError, QueryError, one_line
from joulewatch_harness.records import Window

logger = logging.getLogger(__name__)

JOB: Final = "joulewatch"
READ_BACK_ITEMS: Final = 50
LOOKBACK_MARGIN_MS: Final = 60_000
"""The clocks of the harness and of Prometheus may differ by this much; windows are found nevertheless."""


def group_path(run: str, window: int | None = None) -> str:
    """Return the path of the group of a window, or of the run."""
    path = f"/metrics/job/{JOB}/run/{quote(run, safe='')}"
    return path if window is None else f"{path}/{WINDOW_NUMBER_LABEL}/{window}"


def exposition(samples: Iterable[Sample]) -> str:
    """Return samples as text, without timestamps, which a Pushgateway refuses."""
    kinds = {metric.name: metric.kind for metric in catalog.METRICS}
    by_name: dict[str, dict[str, float]] = {}
    for one in samples:
        labels = ",".join(f'{key}="{_escaped(value)}"' for key, value in one.labels)
        by_name.setdefault(one.name, {})[f"{one.name}{{{labels}}}"] = one.value
    lines = []
    for name, values in sorted(by_name.items()):
        lines.append(f"# TYPE {name} {kinds[name]}")
        lines += [f"{key} {_number(value)}" for key, value in sorted(values.items())]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)


def window_group(item: Item, window: Window) -> list[Sample]:
    """Return the samples of a window for its group: its number is a label, its end a value."""
    labels = {"run": window.run, "configuration": window.configuration, "kind": window.kind, "phase": window.phase}
    ended = sample(catalog.WINDOW_END, labels, item.at_ms, window.end_s)
    number = (WINDOW_NUMBER_LABEL, str(window.index))
    return [
        Sample(name=one.name, labels=tuple(sorted((*one.labels, number))), at_ms=one.at_ms, value=one.value)
        for one in (*item.samples, ended)
    ]


class PushgatewaySink:
    """Writes to a Pushgateway and reads back from the Prometheus that scrapes it."""

    way = "pushgateway"
    # The group stays in the Pushgateway until Prometheus scrapes it.
    resend_after_s: float | None = None

    def __init__(
        self, options: PrometheusOptions, gateway: PrometheusOptions, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._client = PrometheusClient(options, retry_s=0)
        self._gateway = PrometheusClient(gateway, retry_s=0)
        self.target = options.url
        self._clock = clock
        self._leftover: dict[str, None] = {}

    def check(self) -> None:
        """Check that the servers are a Prometheus and a Pushgateway.

        Raises:
            QueryError: no Prometheus answers.
            ConfigError: no Pushgateway answers.
        """
        self._client.ping()
        now_ms = to_ms(self._clock())
        matchers = f",{WINDOW_NUMBER_LABEL}=~{alternatives([''])}"
        read_back(self._client, "", [catalog.RUN_STATUS.name], start_ms=now_ms, end_ms=now_ms, matchers=matchers)
        try:
            answer = self._gateway.send("GET", "/api/v1/status")
        except QueryError as error:
            raise ConfigError(f"--pushgateway {error}") from error
        try:
            is_pushgateway = answer.status == 200 and "build_information" in json.loads(answer.text)["data"]
        except (ValueError, KeyError, TypeError, RecursionError):
            is_pushgateway = False
        if not is_pushgateway:
            raise ConfigError(
                f"--pushgateway {self._gateway.url} does not answer like a Pushgateway (HTTP {answer.status}): "
                "give its base URL, such as http://host:9091"
            )

    def write(self, items: Sequence[Item]) -> None:
        """Replace one group per window; the start and the end of the run replace the group of the run."""
        for item in items:
            if item.window is not None:
                self._put(group_path(item.run, item.window.index), window_group(item, item.window))
            else:
                self._put(group_path(item.run), (*item.samples, *item.info))

    def present(self, items: Sequence[Item]) -> set[str]:
        """Return the items whose values were all scraped; the start counts when pushed, because it is replaced soon."""
        started = {item.name for item in items if item.name == "start"}
        return started | in_pieces([one for one in items if one.name != "start"], READ_BACK_ITEMS, self._present)

    def _present(self, items: Sequence[Item]) -> set[str]:
        groups = {
            item.name: window_group(item, item.window) if item.window is not None else list(item.samples)
            for item in items
        }
        names = {one.name for group in groups.values() for one in group}
        numbers = [str(item.window.index) for item in items if item.window is not None]
        # Windows with these numbers, and the end of the run, which has no number.
        matchers = f",{WINDOW_NUMBER_LABEL}=~{alternatives([*numbers, ''])}"
        now_ms = round(self._clock() * 1000) + LOOKBACK_MARGIN_MS
        start_ms = min(item.at_ms for item in items) - LOOKBACK_MARGIN_MS
        series = read_back(self._client, items[0].run, names, start_ms=start_ms, end_ms=now_ms, matchers=matchers)
        stored = {key: {value for _, value in values} for key, values in series.items()}
        return {
            name
            for name, group in groups.items()
            if all(any(same(value, one.value) for value in stored.get((one.name, one.labels), ())) for one in group)
        }

    def settle(self, items: Sequence[Item]) -> None:
        """Delete the groups of items; a group that cannot be deleted now is deleted with the next ones."""
        for item in items:
            if item.name != "start":
                self._leftover[group_path(item.run, None if item.window is None else item.window.index)] = None
        for path in list(self._leftover):
            try:
                answer = self._gateway.send("DELETE", path)
            except QueryError as error:
                logger.info("%s; the group is deleted later", error)
                return
            if answer.status < 300 or answer.status == 404:
                del self._leftover[path]

    def live(self, run: str, current: Sequence[Sample], standing: Sequence[Sample], ended_ms: int) -> None:
        """Replace the group of the run: series that are missing in it become stale with the next scrape."""
        self._put(group_path(run), (*standing, *current))

    def _put(self, path: str, samples: Iterable[Sample]) -> None:
        body = exposition(samples).encode()
        try:
            answer = self._gateway.send("PUT", path, body, {"Content-Type": "text/plain; version=0.0.4"})
        except QueryError as error:
            raise UnavailableError(f"--pushgateway {error}") from error
        text = one_line(answer.text)
        if answer.status < 300:
            return
        problem = f"--pushgateway {self._gateway.url}: HTTP {answer.status}: {text or 'no text'}"
        if answer.status == 400:
            raise RejectedError(problem)
        raise UnavailableError(problem)

    def close(self) -> None:
        """Close the connections."""
        if self._leftover:
            logger.warning(
                "%s in the Pushgateway %s: run 'joulewatch runs push' to delete %s",
                count_of(len(self._leftover), "group remains", "groups remain"),
                self._gateway.url,
                "it" if len(self._leftover) == 1 else "them",
            )
        self._client.close()
        self._gateway.close()
