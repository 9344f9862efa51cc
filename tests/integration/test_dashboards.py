"""Every query of the dashboards, run as Grafana runs it on a real Prometheus that has a real run in it."""

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
EMPTY_WHERE_ALL_IS_WELL: Final = {
    "Warm-up windows": "the run has no warm-up windows",
}


def ask(run: RecordedRun, path: str, **parameters: object) -> Any:
    answer = requests.post(f"{run.url}/api/v1/{path}", data=parameters, timeout=30)
    body = answer.json()
    assert answer.status_code == 200 and body["status"] == "success", body
    assert not body.get("warnings"), body["warnings"]
    return body["data"]


def values(run: RecordedRun) -> dict[str, str]:
    """Grafana's macros over the time range of the run, at a step of one scrape."""
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
    found: list[dict[str, Any]]
    if query.kind == "variable":
        labels = requests.get(
            f"{run.url}/api/v1/label/{query.label}/values",
            params={"match[]": expr, "start": str(run.start_s), "end": str(run.end_s)},
            timeout=30,
        ).json()["data"]
        found = [{"value": [0, label]} for label in labels]
    elif query.kind == "instant":
        found = ask(run, "query", query=expr, time=run.end_s)["result"]
    else:
        step_s = 1.0 if query.kind == "annotation" else SCRAPE_S
        found = ask(run, "query_range", query=expr, start=run.start_s, end=run.end_s, step=step_s)["result"]
    return found


@pytest.mark.parametrize("query", ALL_QUERIES, ids=str)
def test_every_query_gives_data(recorded_run: RecordedRun, query: Query) -> None:
    result = execute(recorded_run, query)
    if query.where in EMPTY_WHERE_ALL_IS_WELL:
        assert result == []
        return
    assert result, dashboards.substitute(query.expr, values(recorded_run))
    for series in result:
        for _, value in series.get("values") or [series["value"]]:
            if query.kind != "variable":
                assert math.isfinite(float(value)), series


def query_of(where: str, number: int = 0) -> Query:
    return [query for query in ALL_QUERIES if query.where == where][number]


def single(run: RecordedRun, where: str) -> float:
    (query,) = [query for query in ALL_QUERIES if query.where == where and query.kind == "instant"]
    (series,) = execute(run, query)
    return float(series["value"][1])


def test_windows_and_inferences_are_counted_right(recorded_run: RecordedRun) -> None:
    assert single(recorded_run, "Measure windows") == recorded_run.windows
    assert single(recorded_run, "Inferences in measure windows") == recorded_run.inferences


def test_windows_become_regions(recorded_run: RecordedRun) -> None:
    """As Grafana merges them: consecutive steps above 0 are one region, and none goes on after its window."""
    for name, wanted in (("Measure windows", recorded_run.windows), ("Idle windows", recorded_run.idle_windows)):
        query = next(query for query in ALL_QUERIES if query.kind == "annotation" and query.where == name)
        regions = 0
        for series in execute(recorded_run, query):
            times = [at for at, value in series["values"] if float(value) > 0]
            regions += sum(1 for before, after in zip([-math.inf, *times], times, strict=False) if after - before > 1)
        assert regions == wanted, name


def test_whole_servers_are_devices_and_the_rest(recorded_run: RecordedRun) -> None:
    """The three curves of the panel agree wherever all three are drawn."""
    title = "Whole servers and the sum of their devices"
    node, devices, other = (
        {
            (series["metric"]["instance"], at): float(value)
            for series in execute(recorded_run, query_of(title, number))
            for at, value in series["values"]
        }
        for number in range(3)
    )
    assert other
    for key, watts in other.items():
        assert watts == pytest.approx(node[key] - devices[key], abs=1e-6)


def test_power_of_the_emulated_node_is_plausible(recorded_run: RecordedRun) -> None:
    """Two sockets between 90 and 280 W each, on average over the run.

    Over shorter spans the emulator cannot be relied on where the machine is busy: its counters then stand
    still for a moment, and catch up.
    """
    span_ms = values(recorded_run)["__range"]
    expr = f"sum(rate(joulewatch_device_energy_joules_total[{span_ms}]) and on (instance) "
    expr += 'joulewatch_sensor_info{model=~"AMD EPYC 7763.*"})'
    (series,) = ask(recorded_run, "query", query=expr, time=recorded_run.end_s)["result"]
    assert 180 < float(series["value"][1]) < 560


def test_every_result_names_its_method(recorded_run: RecordedRun) -> None:
    for query in (query for query in ALL_QUERIES if query.where == "Results"):
        for series in execute(recorded_run, query):
            assert series["metric"].get("method", "emulated") == "emulated"
