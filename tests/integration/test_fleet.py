"""The dashboard Fleet on a Prometheus with the recorded series of 1,000 servers: its numbers, and what it costs."""

from __future__ import annotations

import time
from typing import Any, Final

import pytest

from support import dashboards
from support.dashboards import Query
from support.simulated_fleet import Fleet

pytest_plugins = ["support.simulated_fleet_fixture"]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

BOARD: Final = dashboards.load("fleet")
QUERIES: Final = [query for query in dashboards.queries(BOARD) if query.kind in ("range", "instant")]
MOST_SERIES: Final = 60
STEPS: Final = 300
LIMIT_S: Final = 10.0
"""For all queries together, with a wide margin: on two idle cores they take less than 2 s."""


def execute(fleet: Fleet, query: Query, **variables: str) -> list[dict[str, Any]]:
    """Run a query as Grafana does when the dashboard opens; ``variables`` replace values of its variables."""
    texts = {item["name"]: item["query"] for item in BOARD["templating"]["list"] if item["type"] == "textbox"}
    return fleet.execute(query, steps=STEPS, **{**texts, **variables})


@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_every_query_returns_data_and_few_series(simulated_fleet: Fleet, query: Query) -> None:
    assert 0 < len(execute(simulated_fleet, query)) <= MOST_SERIES


def test_a_panel_has_few_series(simulated_fleet: Fleet) -> None:
    """A table has a row per server, so its queries do not add up."""
    for panel in dashboards.panels(BOARD):
        if panel["type"] != "table":
            own = [query for query in QUERIES if query.where == panel["title"]]
            assert sum(len(execute(simulated_fleet, query)) for query in own) <= MOST_SERIES, panel["title"]


def test_only_recorded_series_are_read() -> None:
    for query in dashboards.queries(BOARD):
        assert all(":" in metric for metric in dashboards.metrics(query.expr)), query


def test_the_whole_dashboard_is_cheap(simulated_fleet: Fleet) -> None:
    start_s = time.monotonic()
    for query in QUERIES:
        execute(simulated_fleet, query)
    assert time.monotonic() - start_s < LIMIT_S


def single_value(fleet: Fleet, where: str, **variables: str) -> float:
    (query,) = [query for query in QUERIES if query.where == where]
    (series,) = execute(fleet, query, **variables)
    return float(series["value"][1] if "value" in series else series["values"][-1][1])


def test_the_total_is_the_sum_of_the_servers(simulated_fleet: Fleet) -> None:
    assert single_value(simulated_fleet, "Power") == pytest.approx(simulated_fleet.watts, rel=1e-3)
    clusters = [single_value(simulated_fleet, "Power", cluster=name) for name in ("cpu", "gpu", "storage", "test")]
    assert sum(clusters) == pytest.approx(simulated_fleet.watts, rel=1e-3)


def test_cost_and_co2_follow_the_variables(simulated_fleet: Fleet) -> None:
    kwh = single_value(simulated_fleet, "Energy")
    chosen = {"pue": "1.5", "price": "0.2", "co2": "400"}
    assert single_value(simulated_fleet, "Cost", **chosen) == pytest.approx(kwh * 1.5 * 0.2)
    assert single_value(simulated_fleet, "CO2", **chosen) == pytest.approx(kwh * 1.5 * 400)


def test_the_largest_servers_are_listed(simulated_fleet: Fleet) -> None:
    """``topk`` of a range query would select other servers at each step."""
    (query,) = [query for query in QUERIES if query.where == "Largest servers"]
    hosts = {series["metric"]["host"] for series in execute(simulated_fleet, query)}
    assert len(hosts) == 20 and all(int(host.removeprefix("node")) > 900 for host in hosts)


def test_unmetered_servers_and_sensors_in_trouble_are_counted(simulated_fleet: Fleet) -> None:
    assert single_value(simulated_fleet, "No meter") == pytest.approx(0.1)
    assert single_value(simulated_fleet, "Trouble") > 70
