"""Run every query of the dashboards as Grafana does, on a real Prometheus with a recorded run."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest
import requests

from support import dashboards
from support.dashboards import Query
from support.recorded_run import PHASES, SCRAPE_S, RecordedRun
from support.waiting import wait_until

if TYPE_CHECKING:
    from integration.conftest import StartVictoriaMetrics

pytest_plugins = ["support.recorded_run_fixture"]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

BOARDS: Final = {board["title"]: board for board in map(dashboards.load, dashboards.RECORDED)}
ALL_QUERIES: Final = [query for board in BOARDS.values() for query in dashboards.queries(board)]
EXPECTED_EMPTY: Final = {
    "Warm-up windows",  # the run has none
    *(f"line{number}" for number in range(3, 7)),  # it has two configurations
}


def call_api(run: RecordedRun, path: str, **parameters: object) -> Any:
    response = requests.post(f"{run.url}/api/v1/{path}", data=parameters, timeout=30)
    body = response.json()
    assert response.status_code == 200 and body["status"] == "success", body
    assert not body.get("warnings"), body["warnings"]
    return body["data"]


def values(run: RecordedRun, title: str) -> dict[str, str]:
    """Return the values of the dashboard's variables when it opens, and of the macros for a step of one scrape."""
    rate_interval_s = max(SCRAPE_S + SCRAPE_S, 4 * SCRAPE_S)
    known = {
        "__rate_interval": f"{round(rate_interval_s * 1000)}ms",
        "__interval": f"{round(SCRAPE_S * 1000)}ms",
        "__range": f"{round((run.end_s - run.start_s) * 1000)}ms",
    } | dict(dashboards.CHOSEN.get(title, {}))
    for variable in BOARDS[title]["templating"]["list"]:
        if variable["type"] == "query" and variable["name"] not in known:
            query = dashboards.variable_query(title, variable)
            options = sorted(list_options(run, query, known), reverse=variable.get("sort") == 2)
            if variable["includeAll"]:
                known[variable["name"]] = variable.get("allValue") or "|".join(options)
            else:
                known[variable["name"]] = options[0] if options else ""
    return known


def list_options(run: RecordedRun, query: Query, known: dict[str, str]) -> set[str]:
    """Return what a variable offers, given the values of the variables before it."""
    expr = dashboards.substitute(query.expr, known)
    if query.kind == "query_result":
        return {
            series["metric"][query.label] for series in call_api(run, "query", query=expr, time=run.end_s)["result"]
        }
    return set(
        requests.get(
            f"{run.url}/api/v1/label/{query.label}/values",
            params={"match[]": expr, "start": str(run.start_s), "end": str(run.end_s)},
            timeout=30,
        ).json()["data"]
    )


def execute(run: RecordedRun, query: Query) -> list[dict[str, Any]]:
    known = values(run, query.dashboard)
    if query.kind in ("label_values", "query_result"):
        return [{"value": [0, option]} for option in list_options(run, query, known)]
    expr = dashboards.substitute(query.expr, known)
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
    assert result, dashboards.substitute(query.expr, values(recorded_run, query.dashboard))
    for series in result:
        for _, value in series.get("values") or [series["value"]]:
            if query.kind not in ("label_values", "query_result"):
                assert math.isfinite(float(value)), series


def copy_to(url: str, run: RecordedRun) -> None:
    """Copy all samples of the run to a VictoriaMetrics, and wait until it has them."""
    length_s = math.ceil(time.time() - run.start_s) + 60
    everything = f'{{__name__=~".+"}}[{length_s}s]'
    lines = []
    for series in call_api(run, "query", query=everything, time=time.time())["result"]:
        pairs = [(at_s, float(value)) for at_s, value in series["values"] if value != "NaN"]
        if pairs:
            times_ms = [round(at_s * 1000) for at_s, _ in pairs]
            lines.append(
                json.dumps({"metric": series["metric"], "timestamps": times_ms, "values": [v for _, v in pairs]})
            )
    assert requests.post(f"{url}/api/v1/import", data="\n".join(lines), timeout=30).status_code == 204
    count = f"count(last_over_time({everything}))"
    copied = replace(run, url=url)
    wait_until(
        lambda: (
            (result := call_api(copied, "query", query=count, time=run.end_s)["result"])
            and int(result[0]["value"][1])
            >= int(call_api(run, "query", query=count, time=run.end_s)["result"][0]["value"][1])
        ),
        "VictoriaMetrics has all series",
        limit_s=60,
    )


def test_victoria_metrics_answers_every_query(
    recorded_run: RecordedRun, victoria_metrics_server: StartVictoriaMetrics
) -> None:
    server = victoria_metrics_server(extra_args=["-search.latencyOffset=1s"])  # instead of 30 s
    copy_to(server.url, recorded_run)
    copied = replace(recorded_run, url=server.url)
    empty = [str(query) for query in ALL_QUERIES if not execute(copied, query)]
    assert {name.rpartition(": ")[2] for name in empty} <= EXPECTED_EMPTY, empty


def test_a_run_is_found_whatever_the_time_range(recorded_run: RecordedRun) -> None:
    """The run and its figures are the same a week later, and in a time range that ended before the run."""
    title = "joulewatch / Experiment"
    figures = ("Lowest energy", "Energy per inference by batch size", "Runs")
    expected = [execute(recorded_run, query) for where in figures for query in ALL_QUERIES if query.where == where]
    for days in (-7, 7):
        shift_s = days * 86400
        other = replace(recorded_run, start_s=recorded_run.start_s + shift_s, end_s=recorded_run.end_s + shift_s)
        assert values(other, title)["run"] == recorded_run.run
        shown = [execute(other, query) for where in figures for query in ALL_QUERIES if query.where == where]
        assert [in_order(result) for result in shown] == [in_order(result) for result in expected]


def in_order(result: list[dict[str, Any]]) -> list[tuple[list[tuple[str, str]], str]]:
    """Return labels and values without their times, sorted."""
    return sorted((sorted(series["metric"].items()), series["value"][1]) for series in result)


def test_the_instances_are_those_of_the_run(recorded_run: RecordedRun) -> None:
    """Another exporter that the same Prometheus scrapes is not shown."""
    known = values(recorded_run, "joulewatch / Experiment")
    (variable,) = (one for one in BOARDS["joulewatch / Experiment"]["templating"]["list"] if one["name"] == "instance")
    query = dashboards.variable_query("joulewatch / Experiment", variable)
    assert len(list_options(recorded_run, query, known)) == 2
    assert list_options(recorded_run, query, {**known, "nodenames": "other[.]node"}) == set()


def test_a_band_lies_around_its_line(recorded_run: RecordedRun) -> None:
    for where in ("Energy per inference by batch size", "Throughput by batch size"):
        for query in (query for query in ALL_QUERIES if query.where == where):
            values_of = {
                (series["metric"]["series"], series["metric"]["batch_size"]): float(series["value"][1])
                for series in execute(recorded_run, query)
            }
            assert {name for name, _ in values_of} == {
                f"{number} {bound}" for number in (1, 2) for bound in ("mean", "lower", "upper")
            }
            for (name, batch_size), mean in values_of.items():
                if name.endswith("mean"):
                    lower, upper = (values_of[name.replace("mean", bound), batch_size] for bound in ("lower", "upper"))
                    assert lower < mean < upper
                    assert mean - lower == pytest.approx(upper - mean)


def test_ratios_are_those_of_the_results(recorded_run: RecordedRun) -> None:
    """INT8 is compared with FP32, the first configuration."""
    energies, ratios, uncertainties = (
        {
            (series["metric"]["configuration"].split("/")[-1], series["metric"]["batch_size"]): float(
                series["value"][1]
            )
            for series in execute(recorded_run, query_of(where, number))
        }
        for where, number in (("Results", 0), ("Ratio to the baseline", 0), ("Ratio to the baseline", 1))
    )
    assert set(ratios) == {("int8", size) for size in ("1", "16", "256")} == set(uncertainties)
    for (precision, size), value in ratios.items():
        assert value == pytest.approx(energies[precision, size] / energies["fp32", size])


def test_the_phases_have_their_share_of_the_windows(recorded_run: RecordedRun) -> None:
    shares = {
        series["metric"]["phase"]: series["value"][1] for series in execute(recorded_run, query_of("Time by phase"))
    }
    assert {phase: float(share) for phase, share in shares.items()} == pytest.approx(PHASES, rel=1e-6)


def query_of(where: str, number: int = 0) -> Query:
    return [query for query in ALL_QUERIES if query.where == where][number]


def single_value(run: RecordedRun, where: str) -> float:
    (query,) = [query for query in ALL_QUERIES if query.where == where and query.kind == "instant"]
    (series,) = execute(run, query)
    return float(series["value"][1])


def test_windows_and_inferences_are_counted_correctly(recorded_run: RecordedRun) -> None:
    assert single_value(recorded_run, "Windows") == recorded_run.windows
    assert single_value(recorded_run, "Inferences") == recorded_run.inferences


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


def test_power_of_the_emulated_sockets_is_plausible(recorded_run: RecordedRun) -> None:
    """Four sockets average between 90 and 280 W each over the run.

    Shorter spans are not reliable on a busy machine: the emulator's counters then pause and catch up.
    """
    span_ms = values(recorded_run, "joulewatch / Node")["__range"]
    expr = f"sum(rate(joulewatch_device_energy_joules_total[{span_ms}]) and on (instance, collector, device) "
    expr += 'joulewatch_sensor_info{model=~"AMD EPYC 7763.*"})'
    (series,) = call_api(recorded_run, "query", query=expr, time=recorded_run.end_s)["result"]
    assert 360 < float(series["value"][1]) < 1120


def test_every_result_has_its_method(recorded_run: RecordedRun) -> None:
    for query in (query for query in ALL_QUERIES if query.where == "Results"):
        for series in execute(recorded_run, query):
            assert series["metric"].get("method", "emulated") == "emulated"
