"""The recording rules of LLM servers, from the mapping of their counters.

The label ``host`` joins a server to the energy of its machine; without one, it is the host of ``instance``. Rates are
summed first and divided once. A server without tokens has no series.
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
WATTS: Final = "host:joulewatch_device_energy_joules:rate5m"


def llm_rules() -> str:
    """Return the file."""
    lines = [
        "  - name: joulewatch.llm.servers",
        "    # The same names for every server, by target and model. Front ends count their engines' tokens again.",
        "    rules:",
    ]
    for name, server in llm_servers().items():
        for record, expr in _of_server(server):
            lines += _rule(record, expr, server=name, front_end="1" if server.front_end else "0")
    lines += [
        "",
        "  - name: joulewatch.llm.energy",
        "    # Joules of all devices of a machine, idle power included, per token and request of all its servers.",
        "    rules:",
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
    for metric, name in ((server.first_token, "first_token_seconds"), (server.inter_token, "inter_token_seconds")):
        if metric:
            buckets = _by_target("sum", server, "rate({}[5m])", (f"{metric}_bucket",), more="le")
            yield f"instance_model:llm_{name}:p99_5m", f"histogram_quantile(0.99,\n{_indented(buckets)}\n)"


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
    for name in COUNTERS.values():
        series = f"instance_model:llm_{name}:rate5m"
        yield (
            f"host:llm_{name}:rate5m",
            f'sum by ({BY_HOST}) ({series}{{front_end="0"}})\nor sum by ({BY_HOST}) ({series}{{front_end="1"}})',
        )
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
