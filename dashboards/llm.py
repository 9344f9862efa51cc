"""The dashboard joulewatch / LLM serving: joules per token and request, from recording rules only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from grafana_foundation_sdk.builders import dashboard
from kit import (
    DEVICES_COLOUR,
    Panel,
    Variable,
    columns,
    data_source_variable,
    data_table,
    link,
    multi_value_variable,
    new_dashboard,
    override,
    panel,
    query,
    single_stat,
    time_series,
    transformation,
)

BY_HOST: Final = 'cluster=~"$cluster", host=~"$host"'
BY_MODEL: Final = f'{BY_HOST}, model=~"$model"'
MOST: Final = 20
"""Series of a panel that would have one per machine or target."""
OUTPUT: Final = f"host:llm_output_tokens:rate5m{{{BY_HOST}}}"
INPUT: Final = f"host:llm_input_tokens:rate5m{{{BY_HOST}}}"
CACHED: Final = f"host:llm_cached_tokens:rate5m{{{BY_HOST}}}"
REQUESTS: Final = f"host:llm_requests:rate5m{{{BY_HOST}}}"
WATTS: Final = (
    f"host:joulewatch_device_energy_joules:rate5m{{{BY_HOST}}} and on (cluster, host) host:llm_output_tokens:rate5m"
)
"""Devices of the machines that serve language models."""
SHARE: Final = f"instance_model:llm_watts:token_share5m{{{BY_MODEL}}}"
TOKENS: Final = f"instance_model:llm_output_tokens:rate5m{{{BY_MODEL}}}"
TOKEN_RATE: Final = "suffix:tok/s"
NO_RULES: Final = "No data: load joulewatch.rules.yaml and joulewatch.llm.rules.yaml into Prometheus"


def llm() -> dashboard.Dashboard:
    """Return the dashboard for servers of language models."""
    rows = {
        "Now": now_row(),
        "Energy per token and request": energy_row(),
        "Models and tokens": models_row(),
        "Load": load_row(),
        "Latency": latency_row(),
    }
    return (
        new_dashboard(
            "joulewatch / LLM serving",
            "joulewatch-llm",
            "Joules per token and request of LLM servers: all devices of their machines, idle power included. It needs "
            "the recording rules of joulewatch.",
            [*variables()],
            rows,
        )
        .link(link("Fleet", "joulewatch-fleet"))
        .link(link("Node", "joulewatch-node"))
        .refresh("1m")
        .time("now-3h", "now")
    )


def variables() -> Iterator[Variable]:
    """Yield the variables: clusters, machines, models."""
    yield data_source_variable()
    # .* and not .+, because a machine without a cluster, and a server without a model, belong to all of them.
    for name, label, series in (
        ("cluster", "Cluster", "host:llm_output_tokens:rate5m"),
        ("host", "Machine", "host:llm_output_tokens:rate5m"),
        ("model", "Model", "instance_model:llm_output_tokens:rate5m"),
    ):
        yield multi_value_variable(name, label, f"label_values({series}, {name})", all_value=".*")


def largest(values: str, by: str, labels: str) -> str:
    """Return PromQL for those ``values`` whose ``by`` is largest on average over the time range."""
    return f"{values} and on ({labels}) topk({MOST}, avg_over_time({by}[$__range] @ end()))"


def now_row() -> list[Panel]:
    def stat(title: str, description: str, unit: str, expr: str, *, decimals: int | None = None) -> Panel:
        kind = single_stat(shade=DEVICES_COLOUR, sparkline=True)
        if decimals is not None:
            kind = kind.decimals(decimals)
        return panel(title, description, unit, [query(expr, title)], size=(4, 5), no_value=NO_RULES, kind=kind)

    return [
        stat("Power", "All devices of the machines that serve language models.", "watt", f"sum({WATTS})"),
        stat("Output", "Output tokens per second of all selected machines.", TOKEN_RATE, f"sum({OUTPUT})"),
        stat(
            "J/token",
            "Power of the devices divided by the output tokens per second: idle power and the energy of input tokens "
            "are included.",
            "joule",
            f"sum({WATTS}) / (sum({OUTPUT}) > 0)",
        ),
        stat(
            "J/request",
            "Power of the devices divided by the requests per second. llama.cpp counts no requests.",
            "joule",
            f"sum(({WATTS}) and on (cluster, host) {REQUESTS}) / (sum({REQUESTS}) > 0)",
        ),
        stat("Tokens/J", "Output tokens per joule of the devices.", "none", f"sum({OUTPUT}) / (sum({WATTS}) > 0)"),
        stat(
            "Cached",
            "Share of the input tokens that the prompt cache has saved. llama.cpp counts cached tokens apart from the "
            "input tokens, other servers within them.",
            "percentunit",
            f"sum({CACHED}) / (sum({INPUT}) > 0)",
        ),
    ]


def energy_row() -> list[Panel]:
    return [
        panel(
            "Energy per output token by machine",
            f"Mean of the last 5 minutes. The {MOST} machines with the most output tokens.",
            "joule",
            [
                query(
                    largest(f"host:llm_joules_per_output_token:rate5m{{{BY_HOST}}}", OUTPUT, "cluster, host"),
                    "{{host}} {{cluster}}",
                )
            ],
            size=(12, 10),
            no_value=NO_RULES,
            kind=time_series(calcs=()).fill_opacity(0),
        ),
        panel(
            "Power by machine",
            f"All devices, idle power included. The {MOST} machines with the most output tokens.",
            "watt",
            [query(largest(f"({WATTS})", OUTPUT, "cluster, host"), "{{host}} {{cluster}}")],
            size=(12, 10),
            no_value=NO_RULES,
            kind=time_series(stacked=True, calcs=()),
        ),
        panel(
            "Energy per input token by machine",
            "Power of the devices divided by the input tokens per second. The energy of output tokens is included: "
            "joulewatch energy --per separates the two.",
            "joule",
            [
                query(
                    largest(f"host:llm_joules_per_input_token:rate5m{{{BY_HOST}}}", INPUT, "cluster, host"),
                    "{{host}} {{cluster}}",
                )
            ],
            size=(12, 8),
            no_value=NO_RULES,
            kind=time_series(calcs=()).fill_opacity(0),
        ),
        panel(
            "Energy per request by machine",
            "Power of the devices divided by the requests per second, of servers that count requests.",
            "joule",
            [
                query(
                    largest(f"host:llm_joules_per_request:rate5m{{{BY_HOST}}}", REQUESTS, "cluster, host"),
                    "{{host}} {{cluster}}",
                )
            ],
            size=(12, 8),
            no_value=NO_RULES,
            kind=time_series(calcs=()).fill_opacity(0),
        ),
    ]


def models_row() -> list[Panel]:
    return [
        panel(
            "Models",
            "Servers on one machine share its power in proportion to their output tokens. That is a convention: on a "
            "machine with several models, energy per token is the same for each. Front ends without engines are "
            "included.",
            "watt",
            [
                query(
                    f"sum by (cluster, model) ({TOKENS} and on (cluster, host, job, instance, model) {SHARE})",
                    ref="A",
                    shape="table",
                ),
                query(f"sum by (cluster, model) ({SHARE})", ref="B", shape="table"),
                query(f"sum by (cluster, model) ({SHARE}) / scalar(sum({SHARE}))", ref="C", shape="table"),
                query(
                    f"sum by (cluster, model) ({SHARE}) / (sum by (cluster, model) "
                    f"({TOKENS} and on (cluster, host, job, instance, model) {SHARE}) > 0)",
                    ref="D",
                    shape="table",
                ),
            ],
            size=(24, 8),
            no_value=NO_RULES,
            kind=data_table(
                [
                    transformation("merge"),
                    columns(
                        [
                            ("model", "Model"),
                            ("cluster", "Cluster"),
                            ("Value #A", "Output"),
                            ("Value #B", "Power"),
                            ("Value #C", "Share of power"),
                            ("Value #D", "Per token"),
                        ],
                        hidden=["Time"],
                    ),
                ],
                sort=("Power", True),
            ),
            overrides=[
                override("byName", "Output", unit=TOKEN_RATE),
                override("byName", "Share of power", unit="percentunit"),
                override("byName", "Per token", unit="joule"),
                override("byRegexp", "/./", custom__minWidth=60),
                override("byName", "Model", custom__minWidth=110),
            ],
        ),
        panel(
            "Energy per output token by model",
            "Of all machines that serve a model. Servers on one machine share its power in proportion to their output "
            "tokens: a convention, not a measurement.",
            "joule",
            [
                query(
                    f"sum by (cluster, model) ({SHARE}) / (sum by (cluster, model) "
                    f"({TOKENS} and on (cluster, host, job, instance, model) {SHARE}) > 0)",
                    "{{model}} {{cluster}}",
                )
            ],
            size=(12, 9),
            no_value=NO_RULES,
            kind=time_series(calcs=()).fill_opacity(0),
        ),
        panel(
            "Tokens",
            "Input, cached input and output tokens per second of all selected machines.",
            TOKEN_RATE,
            [
                query(f"sum({INPUT})", "input", ref="A"),
                query(f"sum({CACHED})", "cached", ref="B"),
                query(f"sum({OUTPUT})", "output", ref="C"),
            ],
            size=(12, 9),
            no_value=NO_RULES,
            kind=time_series(calcs=()).fill_opacity(0),
        ),
    ]


def load_row() -> list[Panel]:
    def by_target(title: str, description: str, unit: str, series: str, size: int) -> Panel:
        return panel(
            title,
            f"{description} The {MOST} targets with the highest mean.",
            unit,
            [
                query(
                    largest(series, series, "cluster, host, job, instance, model"),
                    "{{model}} {{instance}}",
                )
            ],
            size=(size, 8),
            no_value=NO_RULES,
            kind=time_series(calcs=()).fill_opacity(0),
        )

    return [
        by_target(
            "Requests in progress",
            "A larger batch costs less energy per token: compare with energy per output token.",
            "short",
            f"instance_model:llm_requests_running:sum{{{BY_MODEL}}}",
            12,
        ),
        by_target(
            "KV cache in use",
            "Share of the KV cache.",
            "percentunit",
            f"instance_model:llm_kv_usage:avg{{{BY_MODEL}}}",
            12,
        ),
    ]


def latency_row() -> list[Panel]:
    def percentile(title: str, description: str, series: str) -> Panel:
        return panel(
            title,
            f"{description} 99th percentile of the last 5 minutes. The {MOST} slowest targets.",
            "s",
            [
                query(
                    largest(
                        f"{series}{{{BY_MODEL}}}", f"{series}{{{BY_MODEL}}}", "cluster, host, job, instance, model"
                    ),
                    "{{model}} {{instance}}",
                )
            ],
            size=(12, 8),
            no_value="No data: the server has no such histogram, or the rules are missing",
            kind=time_series(calcs=()).fill_opacity(0),
        )

    return [
        percentile("Time to the first token", "Prefill and queue.", "instance_model:llm_first_token_seconds:p99_5m"),
        percentile("Time between tokens", "Decode.", "instance_model:llm_inter_token_seconds:p99_5m"),
    ]
