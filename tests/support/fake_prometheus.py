"""A small fake Prometheus behind ``responses``: raw samples and the functions that the analysis uses."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs

import requests
import responses

from joulewatch_harness.analysis.sources.history import RawSeries

_LOOKBACK_S = 300.0
URL = "http://prometheus.test/base"


class FakePrometheus:
    """Holds series; ``install`` answers queries for them below ``URL``."""

    def __init__(
        self, samples: Sequence[RawSeries], *, most_samples: int = 50_000_000, longest_range_s: float = math.inf
    ) -> None:
        self.samples = list(samples)
        self.longest_range_s = longest_range_s
        self.most_samples = most_samples
        self.queries: list[str] = []

    def install(self, mocked: responses.RequestsMock) -> None:
        mocked.add_callback(responses.POST, f"{URL}/api/v1/query", callback=self._answer)
        version = {"status": "success", "data": {"version": "2.42.0"}}
        mocked.add(responses.GET, f"{URL}/api/v1/status/buildinfo", json=version)

    def _answer(self, request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        body = request.body
        form = parse_qs(body.decode() if isinstance(body, bytes) else str(body))
        query, at_s = form["query"][0], float(form["time"][0])
        self.queries.append(query)
        length, unit = next(iter(re.findall(r"\[(\d+)(ms|s)\]", query)), ("0", "s"))
        if int(length) / (1000 if unit == "ms" else 1) > self.longest_range_s:
            text = f"the query time range exceeds the limit (query length: {length}{unit}, limit: 768h0m0s)"
            return 422, {}, json.dumps({"status": "error", "errorType": "execution", "error": text})
        raw = re.fullmatch(r"([A-Za-z_:]*)(\{.*\})?\[(\d+)ms(:1m)?\]", query)
        if raw is not None:
            start_s = at_s - int(raw[3]) / 1000
            selected = self._between(raw[1], raw[2] or "", start_s - (_LOOKBACK_S if raw[4] else 0), at_s)
            if raw[4]:
                selected = [(metric, pairs) for metric, all_pairs in selected if (pairs := _steps(all_pairs, start_s))]
            if sum(len(values) for _, values in selected) > self.most_samples:
                error = {"status": "error", "errorType": "execution", "error": "too many samples"}
                return 422, {}, json.dumps(error)
            result: list[dict[str, Any]] = [
                {"metric": metric, "values": [[t, repr(value)] for t, value in values]} for metric, values in selected
            ]
            return _success("matrix", result)
        function = re.search(r"(\w+_over_time|changes)\(([a-z_]+)(\{.*?\})?\[(\d+)s\]\)", query)
        assert function is not None, query
        selected = self._between(function[2], function[3] or "", at_s - int(function[4]), at_s)
        result = []
        for metric, pairs in selected:
            values = [value for _, value in pairs]
            changes = float(sum(a != b for a, b in itertools.pairwise(values)))
            value = {
                "last_over_time": values[-1],
                "min_over_time": min(values),
                "changes": changes,
            }[function[1]]
            if ("> 0" in query and not value > 0) or ("< 1" in query and not value < 1):
                continue
            labels = metric
            if function[1] != "last_over_time":
                labels = {key: text for key, text in metric.items() if key != "__name__"}
            result.append({"metric": labels, "value": [at_s, repr(value)]})
        return _success("vector", result)

    def _between(
        self, name: str, matchers: str, start_s: float, end_s: float
    ) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        conditions = [
            (label, re.compile(re.sub(r"\\\\", r"\\", pattern)) if kind == "=~" else pattern)
            for label, kind, pattern in re.findall(r'(\w+)(=~|=)"((?:[^"\\]|\\.)*)"', matchers)
        ]
        selected = []
        for series in self.samples:
            labels = {"__name__": series.name, **series.labels}
            if name and series.name != name:
                continue
            if not all(
                labels.get(label, "") == pattern
                if isinstance(pattern, str)
                else pattern.fullmatch(labels.get(label, ""))
                for label, pattern in conditions
            ):
                continue
            inside = (series.times_s > start_s) & (series.times_s <= end_s)  # left-open, as in Prometheus 3
            pairs = list(zip(series.times_s[inside].tolist(), series.values[inside].tolist(), strict=True))
            if pairs:
                selected.append((labels, pairs))
        return selected


def _steps(pairs: list[tuple[float, float]], start_s: float) -> list[tuple[float, float]]:
    """Return the values of a subquery at each full minute: the last sample, unless the series has ended."""
    stepped = []
    last_s = pairs[-1][0]
    for minute in range(math.ceil(start_s / 60), math.floor(last_s / 60) + 1):
        before = [pair for pair in pairs if minute * 60 - _LOOKBACK_S < pair[0] <= minute * 60]
        if before:
            stepped.append((minute * 60.0, before[-1][1]))
    return stepped


def _success(kind: str, result: list[dict[str, Any]]) -> tuple[int, dict[str, str], str]:
    return 200, {}, json.dumps({"status": "success", "data": {"resultType": kind, "result": result}})
