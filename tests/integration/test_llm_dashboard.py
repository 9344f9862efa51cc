"""The dashboard LLM serving on a Prometheus with the recorded series of six machines."""

from __future__ import annotations

from typing import Any, Final

import pytest

from support import dashboards, simulated_llm
from support.dashboards import Query
from support.simulated_fleet import Fleet

pytest_plugins = ["support.simulated_fleet_fixture"]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

BOARD: Final = dashboards.load("llm")
QUERIES: Final = [query for query in dashboards.queries(BOARD) if query.kind in ("range", "instant")]
STEPS: Final = 100
MOST_SERIES: Final = 20


def execute(fleet: Fleet, query: Query, **variables: str) -> list[dict[str, Any]]:
    """Run a query as Grafana does when the dashboard opens; ``variables`` replace values of its variables."""
    return fleet.execute(query, steps=STEPS, **{"host": ".*", "model": ".*", "first_token": "1.0", **variables})


@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_every_query_returns_data_and_few_series(simulated_fleet: Fleet, query: Query) -> None:
    assert 0 < len(execute(simulated_fleet, query)) <= MOST_SERIES


def test_only_recorded_series_are_read() -> None:
    for query in dashboards.queries(BOARD):
        assert all(":" in metric for metric in dashboards.metrics(query.expr)), query


def last(fleet: Fleet, where: str, **variables: str) -> float:
    (query,) = [query for query in QUERIES if query.where == where]
    (series,) = execute(fleet, query, **variables)
    return float(series["values"][-1][1])


@pytest.mark.parametrize("host", [".*", "gpu03"])
def test_energy_per_token_is_that_of_the_selected_machines(simulated_fleet: Fleet, host: str) -> None:
    """Sums first, one division: machines with many tokens count more. Servers of the fleet without a model do not."""
    machines = {
        number: models for number, (name, models) in enumerate(simulated_llm.MACHINES.items()) if host in (".*", name)
    }
    end_s = simulated_fleet.end_s
    watts = sum(simulated_llm.watts(number, end_s) for number in machines)
    tokens = sum(
        simulated_llm.load(number, end_s) * sum(full for _, full in models) for number, models in machines.items()
    )
    assert last(simulated_fleet, "Power", host=host) == pytest.approx(watts, rel=1e-4)
    assert last(simulated_fleet, "J/token", host=host) == pytest.approx(watts / tokens, rel=1e-4)
    assert last(simulated_fleet, "Tokens/J", host=host) == pytest.approx(tokens / watts, rel=1e-4)


def test_the_shares_of_the_models_are_the_whole(simulated_fleet: Fleet) -> None:
    queries = [query for query in QUERIES if query.where == "Models"]
    shares = execute(simulated_fleet, queries[2])
    assert sum(float(series["value"][1]) for series in shares) == pytest.approx(1)
    assert {series["metric"]["model"] for series in shares} == {
        model for models in simulated_llm.MACHINES.values() for model, _ in models
    }
