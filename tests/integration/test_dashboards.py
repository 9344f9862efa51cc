"""Run every query of the dashboards as Grafana does, on a real Prometheus with a recorded run."""

from __future__ import annotations

import math
from typing import Any, Final

import pytest
import requests

from support import dashboards
from support.dashboards import Query
from support.recorded_run import SCRAPE_S, RecordedRun

pytest_plugins = ["support.recorded_run_fixture"]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

ALL_QUERIES: Final = [query for name in dashboards.NAMES for query in dashboards.queries(dashboards.load(name))]
EXPECTED_EMPTY: Final = {"Warm-up windows"}  # the run has none


def call_api(run: RecordedRun, path: str, **parameters: object) -> Any:
    response = requests.post(f"{run.url}/api/v1/{path}", data=parameters, timeout=30)
    body = response.json()
    assert response.status_code == 200 and body["status"] == "success", body
    assert not body.get("warnings"), body["warnings"]
    return body["data"]


def values(run: RecordedRun) -> dict[str, str]:
    """Return the values of Grafana's macros for the time range of the run and a step of one scrape."""
    rate_interval_s = max(SCRAPE_S + SCRAPE_S, 4 * SCRAPE_S)
    return {
        **dashboards.MACROS,
        "__rate_interval": f"{round(rate_interval_s * 1000)}ms",
        "__interval": f"{round(SCRAPE_S * 1000)}ms",
        "__range": f"{round((run.end_s - run.start_s) * 1000)}ms",
        "run": run.run,
    }


def execute(run: RecordedRun, query: Query) -> list[dict[str, Any]]:
    expr = dashboards.substitute(query.expr, values(run))
    if query.kind == "variable":
        labels = requests.get(
            f"{run.url}/api/v1/label/{query.label}/values",
            params={"match[]": expr, "start": str(run.start_s), "end": str(run.end_s)},
            timeout=30,
        ).json()["data"]
        return [{"value": [0, label]} for label in labels]
    if query.kind == "instant":
        return list(call_api(run, "query", query=expr, time=run.end_s)["result"])
    step_s = 1.0 if query.kind == "annotation" else SCRAPE_S
    return list(call_api(run, "query_range", query=expr, start=run.start_s, end=run.end_s, step=step_s)["result"])


@pytest.mark.parametrize("query", ALL_QUERIES, ids=str)
def test_every_query_returns_data(recorded_run: RecordedRun, query: Query) -> None:
    result = execute(recorded_run, query)
    if query.where in EXPECTED_EMPTY:
        assert result == []
        return
    assert result, dashboards.substitute(query.expr, values(recorded_run))
    for series in result:
        for _, value in series.get("values") or [series["value"]]:
            if query.kind != "variable":
                assert math.isfinite(float(value)), series


def query_of(where: str, number: int = 0) -> Query:
    return [query for query in ALL_QUERIES if query.where == where][number]


def single_value(run: RecordedRun, where: str) -> float:
    (query,) = [query for query in ALL_QUERIES if query.where == where and query.kind == "instant"]
    (series,) = execute(run, query)
    return float(series["value"][1])


def test_windows_and_inferences_are_counted_correctly(recorded_run: RecordedRun) -> None:
    assert single_value(recorded_run, "Measure windows") == recorded_run.windows
    assert single_value(recorded_run, "Inferences in measure windows") == recorded_run.inferences


def test_windows_become_regions(recorded_run: RecordedRun) -> None:
    """Grafana merges consecutive steps above 0 into one region, so there is one region per window."""
    for name, expected in (("Measure windows", recorded_run.windows), ("Idle windows", recorded_run.idle_windows)):
        query = next(query for query in ALL_QUERIES if query.kind == "annotation" and query.where == name)
        regions = 0
        for series in execute(recorded_run, query):
            times = [at for at, value in series["values"] if float(value) > 0]
            regions += sum(1 for before, after in zip([-math.inf, *times], times, strict=False) if after - before > 1)
        assert regions == expected, name


def test_whole_servers_are_devices_and_other(recorded_run: RecordedRun) -> None:
    """Node minus devices equals other wherever the panel shows other."""
    title = "Whole servers and the sum of their devices"
    node, devices, other = (
        {
            (series["metric"]["host"], at): float(value)
            for series in execute(recorded_run, query_of(title, number))
            for at, value in series["values"]
        }
        for number in range(3)
    )
    assert other
    for key, watts in other.items():
        assert watts == pytest.approx(node[key] - devices[key], abs=1e-6)


def test_power_of_the_emulated_node_is_plausible(recorded_run: RecordedRun) -> None:
    """Two sockets average between 90 and 280 W each over the run.

    Shorter spans are not reliable on a busy machine: the emulator's counters then pause and catch up.
    """
    span_ms = values(recorded_run)["__range"]
    expr = f"sum(rate(joulewatch_device_energy_joules_total[{span_ms}]) and on (instance) "
    expr += 'joulewatch_sensor_info{model=~"AMD EPYC 7763.*"})'
    (series,) = call_api(recorded_run, "query", query=expr, time=recorded_run.end_s)["result"]
    assert 180 < float(series["value"][1]) < 560


def test_every_result_has_its_method(recorded_run: RecordedRun) -> None:
    for query in (query for query in ALL_QUERIES if query.where == "Results"):
        for series in execute(recorded_run, query):
            assert series["metric"].get("method", "emulated") == "emulated"
