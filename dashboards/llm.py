"""The dashboard joulewatch / LLM serving: joules per token and request, from recording rules only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from grafana_foundation_sdk.builders import dashboard, timeseries
from grafana_foundation_sdk.models import dashboard as models
from kit import (
    DEVICES_COLOUR,
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
    query_variable,
    single_stat,
    time_series,
)
from trends import scatter
from whose import NO_WORKLOADS, REASONS, reason_colours

BY_HOST: Final = 'cluster=~"$cluster", host=~"$host"'
BY_MODEL: Final = f'{BY_HOST}, model=~"$model"'
MOST: Final = 20
"""Series of a panel that would have one per machine or target."""
MOST_ROWS: Final = 50
BY_MACHINE: Final = "cluster, host"
BY_TARGET: Final = "cluster, host, job, instance, model"
ALL_WATTS: Final = f"host:llm_watts:rate5m{{{BY_HOST}}}"
OUTPUT: Final = f"host:llm_output_tokens:rate5m{{{BY_HOST}}}"
INPUT: Final = f"host:llm_input_tokens:rate5m{{{BY_HOST}}}"
CACHED: Final = f"host:llm_cached_tokens:rate5m{{{BY_HOST}}}"
REQUESTS: Final = f"host:llm_requests:rate5m{{{BY_HOST}}}"
PER_OUTPUT: Final = f"host:llm_joules_per_output_token:rate5m{{{BY_HOST}}}"
MEASURED: Final = "and on (cluster, host) host:llm_watts:rate5m"
WATTS: Final = f"{ALL_WATTS} and on (cluster, host) host:llm_output_tokens:rate5m"
"""Devices of the machines that serve language models: Triton, which counts requests only, may serve other networks."""
SHARE: Final = f"instance_model:llm_watts:token_share5m{{{BY_MODEL}}}"
TOKENS: Final = f"instance_model:llm_output_tokens:rate5m{{{BY_MODEL}}}"
FIRST_TOKENS: Final = "instance_model_le:llm_first_token_seconds_bucket:rate5m"
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
        "Whose energy": whose_row(),
        "Run conditions": conditions_row(),
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
    limit = "1.0"
    yield (
        query_variable("first_token", "First token within s", f'label_values({FIRST_TOKENS}{{le!="+Inf"}}, le)')
        .sort(models.VariableSort.NUMERICAL_ASC)
        .current(models.VariableOption(selected=True, text=limit, value=limit))
    )


def largest(values: str, by: str, labels: str, most: int = MOST) -> str:
    """Return PromQL for those ``values`` whose ``by`` is largest on average over the time range."""
    return f"{values} and on ({labels}) topk({most}, avg_over_time({by}[$__range] @ end()))"


def lines(
    title: str,
    description: str,
    unit: str,
    values: str,
    legend: str,
    *,
    size: tuple[int, int] = (12, 8),
    no_value: str = NO_RULES,
) -> timeseries.Panel:
    """Return a panel with a line for each series, without statistics and filling: they are many."""
    kind = time_series(calcs=()).fill_opacity(0)
    return panel(title, description, unit, [query(values, legend)], size=size, no_value=no_value, kind=kind)


def by_target(title: str, description: str, unit: str, series: str, no_value: str = NO_RULES) -> timeseries.Panel:
    """Return a panel with a line for each of the targets whose ``series`` are largest."""
    return lines(
        title, description, unit, largest(series, series, BY_TARGET), "{{model}} {{instance}}", no_value=no_value
    )


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
            f"sum({WATTS}) / (sum({OUTPUT} {MEASURED}) > 0)",
        ),
        stat(
            "J/request",
            "Power of the devices divided by the requests per second. llama.cpp counts no requests.",
            "joule",
            f"sum({ALL_WATTS} and on (cluster, host) {REQUESTS}) / (sum({REQUESTS} {MEASURED}) > 0)",
        ),
        stat(
            "Tokens/J",
            "Output tokens per joule of the devices.",
            "none",
            f"sum({OUTPUT} {MEASURED}) / (sum({WATTS}) > 0)",
        ),
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
        lines(
            "Energy per output token by machine",
            f"Mean of the last 5 minutes. The {MOST} machines with the most output tokens.",
            "joule",
            largest(PER_OUTPUT, OUTPUT, BY_MACHINE),
            "{{host}} {{cluster}}",
            size=(12, 10),
        ),
        panel(
            "Power by machine",
            f"All devices, idle power included. The {MOST} machines with the most output tokens.",
            "watt",
            [query(largest(f"({WATTS})", OUTPUT, BY_MACHINE), "{{host}} {{cluster}}")],
            size=(12, 10),
            no_value=NO_RULES,
            kind=time_series(stacked=True, calcs=()),
        ),
        lines(
            "Energy per input token by machine",
            "Power of the devices divided by the input tokens per second. The energy of output tokens is included: "
            "joulewatch energy --per separates the two.",
            "joule",
            largest(f"host:llm_joules_per_input_token:rate5m{{{BY_HOST}}}", INPUT, BY_MACHINE),
            "{{host}} {{cluster}}",
        ),
        lines(
            "Energy per request by machine",
            "Power of the devices divided by the requests per second, of servers that count requests.",
            "joule",
            largest(f"host:llm_joules_per_request:rate5m{{{BY_HOST}}}", REQUESTS, BY_MACHINE),
            "{{host}} {{cluster}}",
        ),
    ]


def models_row() -> list[Panel]:
    shares = f"sum by (cluster, model) ({SHARE})"
    tokens = f"sum by (cluster, model) ({TOKENS} and on ({BY_TARGET}) {SHARE})"
    return [
        panel(
            "Models",
            "Servers on one machine share its power in proportion to their output tokens. That is a convention: on a "
            "machine with several models, energy per token is the same for each. Front ends without engines are "
            "included.",
            "watt",
            [
                query(tokens, ref="A", shape="table"),
                query(shares, ref="B", shape="table"),
                query(f"{shares} / scalar(sum({SHARE}))", ref="C", shape="table"),
                query(f"{shares} / ({tokens} > 0)", ref="D", shape="table"),
            ],
            size=(24, 8),
            no_value=NO_RULES,
            kind=data_table(
                {
                    "model": "Model",
                    "cluster": "Cluster",
                    "Value #A": "Output",
                    "Value #B": "Power",
                    "Value #C": "Share of power",
                    "Value #D": "Per token",
                },
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
        lines(
            "Energy per output token by model",
            "Of all machines that serve a model. Servers on one machine share its power in proportion to their output "
            "tokens: a convention, not a measurement.",
            "joule",
            f"{shares} / ({tokens} > 0)",
            "{{model}} {{cluster}}",
            size=(12, 9),
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
    running = f"host:llm_requests_running:avg5m{{{BY_HOST}}}"
    points, axis = scatter("host", "requests in progress")
    return [
        panel(
            "Energy per token over batch",
            "How much a larger batch saves: one point per machine and time, both means of 5 minutes. The 10 machines "
            "with the most output tokens.",
            "joule",
            [
                query(f"max by ({BY_MACHINE}) ({largest(values, OUTPUT, BY_MACHINE, 10)})", ref=ref, shape="rows")
                for ref, values in (("A", PER_OUTPUT), ("B", running))
            ],
            size=(12, 10),
            no_value="No data: the servers have no such gauge, or the rules are missing",
            kind=points,
            overrides=axis,
        ),
        panel(
            "Requests in prefill and decode",
            "Mean number of requests in each phase, of servers that count the time of both (vLLM, llama.cpp). It is "
            "not the share of the energy, because requests in decode share each step: joulewatch energy --per "
            "separates the energy of both.",
            "short",
            [
                query(f"sum(instance_model:llm_prefill_seconds:rate5m{{{BY_MODEL}}})", "prefill", ref="A"),
                query(f"sum(instance_model:llm_decode_seconds:rate5m{{{BY_MODEL}}})", "decode", ref="B"),
            ],
            size=(12, 10),
            no_value="No data: the servers count no time of the phases, or the rules are missing",
            kind=time_series(stacked=True, calcs=()),
        ),
        by_target(
            "Requests in progress",
            f"Requests that the server works on. The {MOST} targets with the highest mean.",
            "short",
            f"instance_model:llm_requests_running:sum{{{BY_MODEL}}}",
        ),
        by_target(
            "KV cache in use",
            f"Share of the KV cache. The {MOST} targets with the highest mean.",
            "percentunit",
            f"instance_model:llm_kv_usage:avg{{{BY_MODEL}}}",
        ),
    ]


def latency_row() -> list[Panel]:
    def within(by: str, matchers: str, le: str, at: str = "") -> str:
        return f'sum by ({by}) ({FIRST_TOKENS}{{{matchers}, le="{le}"}}{at})'

    by_model = "cluster, model"
    limit = "$first_token"
    good = " or ".join(within(BY_MACHINE, f'{BY_HOST}, front_end="{number}"', limit) for number in "01")
    no_limit = "No data: no server has a bucket with this limit, or the rules are missing"
    return [
        *(
            by_target(
                title,
                f"{phase}. 99th percentile of the last 5 minutes. The {MOST} slowest targets.",
                "s",
                f"instance_model:llm_{name}_seconds:p99_5m{{{BY_MODEL}}}",
                "No data: the server has no such histogram, or the rules are missing",
            )
            for title, phase, name in (
                ("Time to the first token", "Prefill and queue", "first_token"),
                ("Time between tokens", "Decode", "inter_token"),
            )
        ),
        lines(
            "Requests within the limit",
            "Share of the requests of the last 5 minutes whose first token came within the limit at the top of the "
            f"page. The limits are the buckets of the servers' histograms. The {MOST} models with the most requests.",
            "percentunit",
            f"{within(by_model, BY_MODEL, limit)} / ({within(by_model, BY_MODEL, '+Inf')} > 0) "
            f"and on ({by_model}) topk({MOST}, {within(by_model, BY_MODEL, '+Inf', ' @ end()')})",
            "{{model}} {{cluster}}",
            no_value=no_limit,
        ).max(1),
        lines(
            "Energy per request within the limit",
            "Power of the devices divided by the requests per second whose first token came within the limit (the "
            f"inverse of goodput per watt). The {MOST} machines with the most output tokens.",
            "joule",
            largest(f"{ALL_WATTS} / (({good}) > 0)", OUTPUT, BY_MACHINE),
            "{{host}} {{cluster}}",
            no_value=no_limit,
        ),
    ]


def whose_row() -> list[Panel]:
    workloads = f"host_kind_workload:llm_watts:rate5m{{{BY_HOST}}}"
    unattributed = f"host_reason:llm_unattributed_watts:rate5m{{{BY_HOST}}}"
    by_name = "kind, workload"
    shown = (
        f"sum by ({by_name}) ({workloads}) and on ({by_name}) "
        f"topk({MOST}, sum by ({by_name}) (avg_over_time({workloads}[$__range] @ end())))"
    )
    of_machine = f"topk({MOST_ROWS}, {workloads})"
    return [
        panel(
            "Power by workload",
            f"Active power of the {MOST} workloads with the highest mean power on the selected machines, and of what "
            f"belongs to none, stacked: the top is the power of the devices. {REASONS}",
            "watt",
            [
                query(shown, "{{kind}} {{workload}}"),
                query(
                    f"clamp_min(sum({ALL_WATTS} and on (cluster, host) {unattributed}) - sum({shown}) "
                    f"- sum({unattributed}), 0)",
                    "smaller workloads",
                    ref="B",
                ),
                query(f"sum by (reason) ({unattributed})", "{{reason}}", ref="C"),
            ],
            size=(12, 11),
            no_value=NO_WORKLOADS,
            kind=time_series(stacked=True, calcs=()),
            overrides=reason_colours(),
        ),
        panel(
            "Workloads of the machines",
            f"The {MOST_ROWS} workloads with the highest active power now, and their share of the power of the "
            "machine's devices. Idle power is not included.",
            "watt",
            [
                query(of_machine, ref="A", shape="table"),
                query(f"{of_machine} / on (cluster, host) group_left () {ALL_WATTS}", ref="B", shape="table"),
            ],
            size=(12, 11),
            no_value=NO_WORKLOADS,
            kind=data_table(
                {
                    "host": "Machine",
                    "kind": "Kind",
                    "workload": "Workload",
                    "Value #A": "Power",
                    "Value #B": "Share",
                },
                hidden=["__name__", "cluster"],
                sort=("Power", True),
            ),
            overrides=[
                override("byName", "Share", unit="percentunit", custom__width=90),
                override("byName", "Power", custom__width=90),
                override("byName", "Kind", custom__width=90),
                # The name of a job is a number to Grafana.
                override("byName", "Workload", unit="string"),
            ],
        ),
    ]


def conditions_row() -> list[Panel]:
    throttled = f"host_reason:llm_throttled_seconds:rate5m{{{BY_HOST}}}"
    return [
        panel(
            "Throttled",
            "Share of the time in which the clocks of a device were reduced, by reason, of the machine's device with "
            "the largest share. Joules per token of such times are not comparable with others. Reasons overlap. "
            f"The {MOST} largest.",
            "percentunit",
            [query(largest(throttled, throttled, "cluster, host, reason"), "{{host}} {{reason}} {{cluster}}")],
            size=(24, 9),
            no_value="No data: the devices do not count it, or the rules are missing",
            kind=time_series(calcs=(), soft_maximum=0.1).fill_opacity(0),
        ),
    ]
