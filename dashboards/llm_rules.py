"""The recording rules of LLM servers, from the mapping of their counters.

The label ``host`` joins a server to the energy of its machine; without one, it is the host of ``instance``. Rates are
summed first and divided once. A server without tokens has no series.

All rules are in one group, because Prometheus evaluates two groups at different times: the watts and tokens of a
quotient would not belong together. So the watts are computed in this group again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from joulewatch_harness.analysis.sources.llm_servers import LLMServer, llm_servers

HEADER: Final = """\
# Recording rules for LLM servers next to joulewatch: tokens, requests, joules per token. Written by build.py from
# harness/joulewatch_harness/analysis/sources/llm_servers.yaml. They need joulewatch.rules.yaml as well; check with
#   promtool check rules joulewatch.llm.rules.yaml && promtool test rules joulewatch.llm.rules.test.yaml
# The label `host` joins a server to the energy of its machine: set it for the server's targets to the nodename of the
# machine, unless the addresses of the targets begin with the nodename. README.md of the folder above shows how.
groups:
"""
BY_TARGET: Final = "cluster, host, job, instance, model"
BY_HOST: Final = "cluster, host"
COUNTERS: Final = {
    "output": "output_tokens",
    "input": "input_tokens",
    "cached": "cached_tokens",
    "requests": "requests",
}
"""Field of a server -> the name in the recorded series."""
UNITS: Final = {"output": "output_token", "input": "input_token", "requests": "request"}
FIRST_TOKEN_BUCKETS: Final = "instance_model_le:llm_first_token_seconds_bucket:rate5m"
WATTS: Final = "host:llm_watts:rate5m"
SERVING: Final = "(host:llm_output_tokens:rate5m or host:llm_requests:rate5m)"
DEVICES: Final = f"""\
sum by ({BY_HOST}) (
  (
    instance_device_domain:joulewatch_device_energy_joules:calibrated_rate5m
    or increase(joulewatch_device_energy_joules_total[5m]) / 300
  )
  * on (cluster, job, instance, collector, component, device, domain) group_left (host)
  joulewatch_sensor_info{{scope="device"}}
)"""
MACHINE: Final = f"""\
* on (cluster, job, instance) group_left (host) (
  group by (cluster, job, instance, host) (joulewatch_sensor_info{{scope="device", read_mode!="remote"}})
  and on ({BY_HOST}) {WATTS}
)"""
"""Adds ``host`` to the series of an exporter, of machines with such servers only."""
MOST_WORKLOADS: Final = 20
"""Of one machine."""


def llm_rules() -> str:
    """Return the file."""
    lines = [
        "  - name: joulewatch.llm",
        "    # One group, so that watts and tokens of a quotient are of the same time.",
        "    rules:",
        "      # The same names for every server, by target and model. Front ends count their engines' tokens again.",
    ]
    for name, server in llm_servers().items():
        for record, expr in _of_server(server):
            lines += _rule(record, expr, server=name, front_end="1" if server.front_end else "0")
    lines += [
        "      # Joules of all devices of a machine, idle power included, per token and request of all its servers.",
    ]
    for record, expr in _energy():
        lines += _rule(record, expr)
    return HEADER + "\n".join(lines) + "\n"


def _rule(record: str, expr: str, **labels: str) -> list[str]:
    lines = [f"      - record: {record}", "        expr: >-", *(f"          {line}" for line in expr.split("\n"))]
    if labels:
        lines += ["        labels:", *(f'          {name}: "{value}"' for name, value in labels.items())]
    return lines


def _of_server(server: LLMServer) -> Iterator[tuple[str, str]]:
    """Yield the series of one server by target and model, each with its expression."""
    for field, name in COUNTERS.items():
        metrics = getattr(server, field)
        if metrics:
            yield f"instance_model:llm_{name}:rate5m", _by_target("sum", server, "rate({}[5m])", metrics)
    for metric, name, function in (
        (server.running, "requests_running", "sum"),
        (server.kv_usage, "kv_usage", "avg"),
    ):
        if metric:
            yield f"instance_model:llm_{name}:{function}", _by_target(function, server, "{}", (metric,))
    for metric, phase in ((server.prefill, "prefill"), (server.decode, "decode")):
        if metric:
            yield f"instance_model:llm_{phase}_seconds:rate5m", _by_target("sum", server, "rate({}[5m])", (metric,))
    if server.first_token:
        yield FIRST_TOKEN_BUCKETS, _buckets(server, server.first_token)
    if server.inter_token:
        yield (
            "instance_model:llm_inter_token_seconds:p99_5m",
            f"histogram_quantile(0.99,\n{_indented(_buckets(server, server.inter_token))}\n)",
        )


def _buckets(server: LLMServer, histogram: str) -> str:
    return _by_target("sum", server, "rate({}[5m])", (f"{histogram}_bucket",), more="le")


def _by_target(function: str, server: LLMServer, form: str, metrics: tuple[str, ...], more: str = "") -> str:
    """Return PromQL for an aggregate by target and model, with the labels ``host`` and ``model``."""
    parts = []
    for metric in metrics:
        without = form.format(metric + '{host=""}')
        parts += [
            f'label_replace(\n  {without},\n  "host", "$1", "instance", "(.+?)(:[0-9]+)?"\n)',
            form.format(metric + '{host!=""}'),
        ]
    values = "\nor ".join(parts)
    if server.model and server.model != "model":
        # A server without the label keeps the label model of its target, if it has one: an empty label does not match.
        values = f'label_replace(\n{_indented(values)},\n  "model", "$1", "{server.model}", "(.+)"\n)'
    by = f"{BY_TARGET}, {more}" if more else BY_TARGET
    return f"{function} by ({by}) (\n{_indented(values)}\n)"


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.split("\n"))


def _energy() -> Iterator[tuple[str, str]]:
    yield "instance_model:llm_first_token_seconds:p99_5m", f"histogram_quantile(0.99, {FIRST_TOKEN_BUCKETS})"
    for name in COUNTERS.values():
        yield f"host:llm_{name}:rate5m", _of_engines(f"instance_model:llm_{name}:rate5m", "{}")
    yield (
        "host:llm_requests_running:avg5m",
        _of_engines("instance_model:llm_requests_running:sum", "avg_over_time({}[5m])"),
    )
    yield WATTS, f"{DEVICES}\nand on ({BY_HOST}) {SERVING}"
    for field, unit in UNITS.items():
        tokens = f"host:llm_{COUNTERS[field]}:rate5m"
        yield f"host:llm_joules_per_{unit}:rate5m", f"{WATTS} / ({tokens} > 0)"
    yield (
        "host:llm_output_tokens_per_joule:rate5m",
        f"host:llm_output_tokens:rate5m / ({WATTS} > 0)",
    )
    # Several servers of one machine share its watts in proportion to their output tokens: a convention.
    series = "instance_model:llm_output_tokens:rate5m"
    engines = (
        f'{series}{{front_end="0"}}\nor ({series}{{front_end="1"}}\n  unless on ({BY_HOST}) {series}{{front_end="0"}})'
    )
    yield (
        "instance_model:llm_watts:token_share5m",
        f"(\n{_indented(engines)}\n)\n* on ({BY_HOST}) group_left () host:llm_joules_per_output_token:rate5m",
    )
    yield (
        "model:llm_joules_per_output_token:rate5m",
        "sum by (cluster, model) (instance_model:llm_watts:token_share5m)\n"
        f"/ (sum by (cluster, model) (\n  {series}\n"
        "  and on (cluster, host, job, instance, model) instance_model:llm_watts:token_share5m\n) > 0)",
    )
    # Whose energy it is, on machines with such servers, and how long their devices were throttled.
    yield (
        "host_kind_workload:llm_watts:rate5m",
        f"topk by ({BY_HOST}) ({MOST_WORKLOADS}, sum by ({BY_HOST}, kind, workload) (\n"
        f"  instance_kind_workload:joulewatch_workload_energy_joules:rate5m\n{_indented(MACHINE)}\n))",
    )
    yield (
        "host_reason:llm_unattributed_watts:rate5m",
        f"sum by ({BY_HOST}, reason) (\n"
        f"  instance_reason:joulewatch_unattributed_energy_joules:rate5m\n{_indented(MACHINE)}\n)",
    )
    yield (
        "host_reason:llm_throttled_seconds:rate5m",
        f"max by ({BY_HOST}, reason) (\n  rate(joulewatch_device_throttled_seconds_total[5m])\n{_indented(MACHINE)}\n)",
    )


def _of_engines(series: str, form: str) -> str:
    """Return PromQL for the sum by machine: of its engines, or of its front ends if it has no engines."""
    engines, front_ends = (form.format(f'{series}{{front_end="{number}"}}') for number in "01")
    return f"sum by ({BY_HOST}) ({engines})\nor sum by ({BY_HOST}) ({front_ends})"
