"""The dashboard joulewatch / Fleet: power, energy and cost of all servers, from recording rules only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import whose
from grafana_foundation_sdk.builders import dashboard
from kit import (
    DEVICES_COLOUR,
    MERGED,
    NODE_COLOUR,
    Panel,
    Variable,
    data_source_variable,
    data_table,
    link,
    multi_value_variable,
    new_dashboard,
    override,
    panel,
    query,
    single_stat,
    text_variable,
    thresholds,
    time_series,
    transformation,
)

CLUSTER: Final = 'cluster=~"$cluster"'
MOST: Final = 20
"""Series of a panel that would have one per server: a fleet has thousands."""
MOST_ROWS: Final = 50
HOST_WATTS: Final = f"host:joulewatch_host_energy_joules:rate5m{{{CLUSTER}}}"
HOST_DAY: Final = (
    f"(host:joulewatch_host_energy_kwh:increase1d{{{CLUSTER}}}"
    f" or host:joulewatch_host_energy_kwh:increase1h{{{CLUSTER}}})"
)
"""In its first hour, a server has no energy of a day, only what it has used so far."""
CLUSTER_WATTS: Final = f"cluster:joulewatch_host_energy_joules:rate5m{{{CLUSTER}}}"
CLUSTER_DAY: Final = (
    f"(cluster:joulewatch_host_energy_kwh:increase1d{{{CLUSTER}}}"
    f" or cluster:joulewatch_host_energy_kwh:increase1h{{{CLUSTER}}})"
)
CLUSTER_HOUR: Final = f"cluster:joulewatch_host_energy_kwh:increase1h{{{CLUSTER}}}"
DOWN: Final = f"instance:joulewatch_sensor_up:count_down{{{CLUSTER}}}"
IMPLAUSIBLE: Final = f"instance:joulewatch_sensor_implausible:count{{{CLUSTER}}}"
NO_RULES: Final = "No data: load rules/joulewatch.rules.yaml into Prometheus"


def fleet() -> dashboard.Dashboard:
    """Return the dashboard for all servers."""
    rows = {
        "Now, and the last 24 hours": overview_row(),
        "Power": power_row(),
        "Servers": servers_row(),
        whose.TITLE: whose.fleet_row(CLUSTER),
        "Energy and cost": energy_row(),
        "Sensors": sensors_row(),
    }
    return (
        new_dashboard(
            "joulewatch / Fleet",
            "joulewatch-fleet",
            "Power, energy, cost and CO2 of all servers. It needs the recording rules of joulewatch.",
            [*variables()],
            rows,
        )
        .link(link("Node", "joulewatch-node"))
        .refresh("1m")
        .time("now-24h", "now")
    )


def variables() -> Iterator[Variable]:
    """Yield the variables: clusters, and the numbers with which energy becomes cost and CO2."""
    yield data_source_variable()
    # .* and not .+, because servers without a label cluster belong to all clusters too.
    yield multi_value_variable(
        "cluster",
        "Cluster",
        "label_values(cluster:joulewatch_host_energy_joules:rate5m, cluster)",
        all_value=".*",
    )
    yield text_variable("pue", "PUE", "1.0")
    yield text_variable("price", "Price per kWh", "0.30")
    yield text_variable("co2", "CO2 g/kWh", "300")


def largest(values: str, by: str, count: int) -> str:
    """Return PromQL for those ``values`` whose ``by`` is largest on average over the time range.

    ``@ end()`` evaluates the average once: topk alone would select other series at each step.
    """
    selected = f"{values} and on (cluster, host) topk({count}, avg_over_time({by}[$__range] @ end()))"
    return f"max by (cluster, host) ({selected})"


def largest_clusters(values: str) -> str:
    """Return PromQL for the ``values`` of the clusters that are largest on average over the time range."""
    selected = f"{values} and on (cluster) topk({MOST}, avg_over_time({values}[$__range] @ end()))"
    return f"max by (cluster) ({selected})"


def overview_row() -> list[Panel]:
    node_sensors = f"sum(cluster:joulewatch_node_energy_joules:count{{{CLUSTER}}}) or vector(0)"
    return [
        panel(
            "Power",
            "Power of all servers: the node sensor of each, or the sum of its devices if it has none. Mean of the last "
            "5 minutes, without cooling.",
            "watt",
            [query(f"sum({CLUSTER_WATTS})", "power")],
            size=(4, 5),
            no_value=NO_RULES,
            kind=single_stat(shade=NODE_COLOUR, sparkline=True),
        ),
        panel(
            "Energy",
            "Energy of all servers in the last 24 hours, without cooling.",
            "kwatth",
            [query(f"sum({CLUSTER_DAY})", "energy", shape="instant")],
            size=(4, 5),
            no_value=NO_RULES,
            kind=single_stat(shade=DEVICES_COLOUR),
        ),
        panel(
            "Cost",
            "Energy of the last 24 hours times the variables PUE and price. Enter your own at the top of the page.",
            "none",
            [query(f"sum({CLUSTER_DAY}) * $pue * $price", "cost", shape="instant")],
            size=(4, 5),
            no_value=NO_RULES,
            kind=single_stat().decimals(2),
        ),
        panel(
            "CO2",
            "Energy of the last 24 hours times the variables PUE and CO2 per kWh. Enter your own at the top of the "
            "page.",
            "massg",
            [query(f"sum({CLUSTER_DAY}) * $pue * $co2", "CO2", shape="instant")],
            size=(4, 5),
            no_value=NO_RULES,
            kind=single_stat(),
        ),
        panel(
            "No meter",
            "Share of the servers without a node sensor. Their energy is that of their devices: fans, disks, boards "
            "and power supplies are missing.",
            "percentunit",
            [
                query(
                    f"1 - ({node_sensors}) / sum(cluster:joulewatch_host_energy_joules:count{{{CLUSTER}}})",
                    "unmetered",
                    shape="instant",
                )
            ],
            size=(4, 5),
            no_value=NO_RULES,
            kind=single_stat(levels=thresholds("green", (0.05, "orange"))),
        ),
        panel(
            "Trouble",
            "Number of sensors that cannot be read or are implausible. The list is at the bottom of the page.",
            "short",
            [
                query(
                    f"(sum({DOWN}) or vector(0)) + (sum({IMPLAUSIBLE}) or vector(0))",
                    "sensors",
                    shape="instant",
                )
            ],
            size=(4, 5),
            kind=single_stat(levels=thresholds("green", (1, "red"))),
        ),
    ]


def power_row() -> list[Panel]:
    return [
        panel(
            "Power by component",
            "CPUs, memory, GPUs, FPGAs: sum over the devices of all servers. The rest of a server is in none of them.",
            "watt",
            [
                query(
                    f"sum by (component) (cluster_component:joulewatch_device_energy_joules:rate5m{{{CLUSTER}}})",
                    "{{component}}",
                )
            ],
            size=(12, 11),
            no_value=NO_RULES,
            kind=time_series(stacked=True),
        ),
        panel(
            "Power by cluster",
            f"Power of all servers of a cluster. The {MOST} largest clusters.",
            "watt",
            [
                query(
                    f"{CLUSTER_WATTS} and on (cluster) topk({MOST}, avg_over_time({CLUSTER_WATTS}[$__range] @ end()))",
                    "cluster {{cluster}}",
                )
            ],
            size=(12, 11),
            no_value=NO_RULES,
            kind=time_series(stacked=True),
        ),
    ]


def servers_row() -> list[Panel]:
    return [
        panel(
            "Largest servers",
            f"Power of the {MOST} servers with the highest mean power in the time range.",
            "watt",
            [query(largest(HOST_WATTS, HOST_WATTS, MOST), "{{host}} {{cluster}}")],
            size=(24, 10),
            no_value=NO_RULES,
            kind=time_series(calcs=()).fill_opacity(0),
        ),
        panel(
            "Servers",
            f"The {MOST_ROWS} servers with the highest mean power in the time range. Click a server to see its "
            "devices. Cost and CO2 include the variable PUE.",
            "watt",
            [
                query(largest(HOST_WATTS, HOST_WATTS, MOST_ROWS), ref="A"),
                query(largest(HOST_WATTS, HOST_WATTS, MOST_ROWS), ref="B", shape="table"),
                query(largest(HOST_DAY, HOST_WATTS, MOST_ROWS), ref="C", shape="table"),
                query(f"{largest(HOST_DAY, HOST_WATTS, MOST_ROWS)} * $pue * $price", ref="D", shape="table"),
                query(f"{largest(HOST_DAY, HOST_WATTS, MOST_ROWS)} * $pue * $co2", ref="E", shape="table"),
            ],
            size=(24, 14),
            no_value=NO_RULES,
            kind=data_table(
                {
                    "host": "Server",
                    "cluster": "Cluster",
                    "Trend #A": "Power in the time range",
                    "Value #B": "Power",
                    "Value #C": "Energy, 24 h",
                    "Value #D": "Cost, 24 h",
                    "Value #E": "CO2, 24 h",
                },
                rows=(transformation("timeSeriesTable", A={"timeField": "Time", "stat": "lastNotNull"}), MERGED),
                sort=("Power", True),
            ),
            overrides=[
                override(
                    "byName",
                    "Server",
                    links=[
                        {
                            "title": "Show this server",
                            "url": "/d/joulewatch-node?var-host=${__data.fields.host}&${__url_time_range}",
                        }
                    ],
                ),
                override(
                    "byName",
                    "Power in the time range",
                    custom__cellOptions={"type": "sparkline", "hideValue": True},
                    custom__minWidth=300,
                ),
                override("byName", "Energy, 24 h", unit="kwatth"),
                override("byName", "Cost, 24 h", unit="none", decimals=2),
                override("byName", "CO2, 24 h", unit="massg"),
            ],
        ),
    ]


def energy_row() -> list[Panel]:
    return [
        panel(
            "Energy per hour",
            f"Energy of each hour, at its end. The {MOST} largest clusters.",
            "kwatth",
            [
                query(largest_clusters(CLUSTER_HOUR), "cluster {{cluster}}").interval("1h"),
            ],
            size=(12, 11),
            no_value="No data: no hour has ended yet, or rules/joulewatch.rules.yaml is not in Prometheus",
            kind=time_series(stacked=True, steps=True),
        ),
        panel(
            "Clusters",
            "The last 24 hours. Cost and CO2 include the variable PUE; energy does not.",
            "kwatth",
            [
                query(f"topk({MOST_ROWS}, sum by (cluster) ({CLUSTER_DAY}))", ref="A", shape="table"),
                query(f"topk({MOST_ROWS}, sum by (cluster) ({CLUSTER_DAY})) * $pue * $price", ref="B", shape="table"),
                query(f"topk({MOST_ROWS}, sum by (cluster) ({CLUSTER_DAY})) * $pue * $co2", ref="C", shape="table"),
                query(
                    f"topk({MOST_ROWS}, sum by (cluster) (cluster:joulewatch_host_energy_joules:count{{{CLUSTER}}}))",
                    ref="D",
                    shape="table",
                ),
            ],
            size=(12, 11),
            no_value=NO_RULES,
            kind=data_table(
                {
                    "cluster": "Cluster",
                    "Value #D": "Servers",
                    "Value #A": "Energy",
                    "Value #B": "Cost",
                    "Value #C": "CO2",
                },
                sort=("Energy", True),
            ),
            overrides=[
                override("byName", "Servers", unit="none", decimals=0),
                override("byName", "Cost", unit="none", decimals=2),
                override("byName", "CO2", unit="massg"),
                override("byRegexp", "/./", custom__minWidth=60),
                override("byName", "Servers", custom__width=72),
                override("byName", "Energy", custom__minWidth=90),
            ],
        ),
    ]


def sensors_row() -> list[Panel]:
    return [
        panel(
            "Sensors in trouble",
            f"Exporters with sensors that cannot be read or are implausible, at most {MOST_ROWS}. Click an exporter to "
            "see its sensors. Devices that are asleep are not in trouble.",
            "short",
            [
                query(f"topk({MOST_ROWS}, sum by (cluster, instance) ({DOWN}))", ref="A", shape="table"),
                query(f"topk({MOST_ROWS}, sum by (cluster, instance) ({IMPLAUSIBLE}))", ref="B", shape="table"),
            ],
            size=(13, 11),
            no_value="All sensors work",
            kind=data_table(
                {
                    "instance": "Exporter",
                    "cluster": "Cluster",
                    "Value #A": "Down",
                    "Value #B": "Implausible",
                },
                sort=("Down", True),
            ),
            overrides=[
                override("byRegexp", "/^(Down|Implausible)$/", noValue="0"),
                override("byName", "Cluster", custom__width=72),
                override("byName", "Down", custom__width=60),
                override("byName", "Implausible", custom__width=105),
                override(
                    "byName",
                    "Exporter",
                    custom__minWidth=135,
                    links=[
                        {
                            "title": "Show this exporter",
                            "url": "/d/joulewatch-node?var-instance=${__data.fields.instance}&${__url_time_range}",
                        }
                    ],
                ),
            ],
        ),
        panel(
            "Share of time not measured",
            f"Mean over all sensors of a cluster: their energies are too low by about this share. The {MOST} largest.",
            "percentunit",
            [
                query(
                    largest_clusters(f"cluster:joulewatch_sensor_unmeasured_seconds:rate5m{{{CLUSTER}}}"),
                    "cluster {{cluster}}",
                )
            ],
            size=(11, 11),
            no_value=NO_RULES,
            kind=time_series(soft_maximum=0.01, calcs=("mean", "max")),
        ),
    ]
