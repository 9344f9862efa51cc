"""The recorded series of six machines that serve language models, consistent with the recording rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

MACHINES: Final = {
    "gpu01": (("large-70b", 900.0),),
    "gpu02": (("large-70b", 900.0),),
    "gpu03": (("medium-8b", 2400.0),),
    "gpu04": (("medium-8b", 1500.0), ("tiny-1b", 1500.0)),
    "gpu05": (("tiny-1b", 5200.0),),
    "gpu06": (("code-34b", 1100.0),),
}
"""Machine -> its models, and their output tokens per second at full load."""
WORKLOADS: Final = {
    ("pod", "prod/llm-server"): 0.85,
    ("unit", "node_exporter.service"): 0.02,
    ("slurm_job", "4711"): 0.07,
}
"""Kind and name -> share of the active power; the rest is the kernel's and that of smaller workloads."""
IDLE_WATTS, FULL_WATTS = 900.0, 3800.0

Series = list[tuple[str, list[float]]]
"""Labels in PromQL, and values."""


def load(machine: int, at_s: float) -> float:
    """Return the load between 0.15 and 0.95."""
    return 0.55 + 0.3 * math.sin(at_s / 2400 + machine) + 0.1 * math.sin(at_s / 300 + 2 * machine)


def watts(machine: int, at_s: float) -> float:
    """Return the power: batches grow with the load, so it rises less than the tokens."""
    return IDLE_WATTS + (FULL_WATTS - IDLE_WATTS) * load(machine, at_s) ** 0.6


def series(times_s: Sequence[int]) -> dict[str, Series]:
    """Return metric -> series."""
    result: dict[str, Series] = {}
    by_model: dict[str, tuple[list[float], list[float]]] = {}
    for number, (host, models) in enumerate(MACHINES.items()):
        loads = [load(number, at) for at in times_s]
        power = [watts(number, at) for at in times_s]
        output = [sum(full for _, full in models) * one for one in loads]
        labels = f'cluster="gpu",host="{host}"'

        def add(metric: str, values: list[float], labels: str = labels) -> None:
            result.setdefault(metric, []).append((labels, values))

        add("host:llm_watts:rate5m", power)
        add("host:llm_requests_running:avg5m", [64 * len(models) * one for one in loads])
        active = [w - IDLE_WATTS for w in power]
        for (kind, workload), share in WORKLOADS.items():
            name = f'{labels},kind="{kind}",workload="{workload}"'
            add("host_kind_workload:llm_watts:rate5m", [share * w for w in active], name)
        for reason, unshared in (("idle", [IDLE_WATTS] * len(times_s)), ("system", [0.03 * w for w in active])):
            add("host_reason:llm_unattributed_watts:rate5m", unshared, f'{labels},reason="{reason}"')
        for reason, start in (("power", 0.7), ("thermal", 0.85)):
            share_of_time = [max(one - start, 0.0) for one in loads]
            add("host_reason:llm_throttled_seconds:rate5m", share_of_time, f'{labels},reason="{reason}"')
        for name, per_output in (
            ("output_tokens", 1.0),
            ("input_tokens", 6.0),
            ("cached_tokens", 2.1),
            ("requests", 0.004),
        ):
            rates = [per_output * one for one in output]
            add(f"host:llm_{name}:rate5m", rates)
            if name == "output_tokens":
                add("host:llm_output_tokens_per_joule:rate5m", [one / w for one, w in zip(rates, power, strict=True)])
            if name != "cached_tokens":
                quotients = [w / one for one, w in zip(rates, power, strict=True)]
                add(f"host:llm_joules_per_{name.removesuffix('s')}:rate5m", quotients)
        for port, (model, full) in enumerate(models, start=8000):
            target = f'{labels},job="vllm",instance="{host}:{port}",model="{model}",server="vllm",front_end="0"'
            tokens = [full * one for one in loads]
            share = [w * mine / all_of for w, mine, all_of in zip(power, tokens, output, strict=True)]
            add("instance_model:llm_output_tokens:rate5m", tokens, target)
            add("instance_model:llm_watts:token_share5m", share, target)
            add("instance_model:llm_requests_running:sum", [float(round(64 * one)) for one in loads], target)
            add("instance_model:llm_kv_usage:avg", [0.9 * one for one in loads], target)
            add("instance_model:llm_first_token_seconds:p99_5m", [0.2 + 0.8 * one**3 for one in loads], target)
            for limit, share_within in (("0.25", 0.5), ("1.0", 0.95), ("+Inf", 1.0)):
                within = [
                    0.004 * one * (1 - (1 - share_within) * busy) for one, busy in zip(tokens, loads, strict=True)
                ]
                bucket = f'{target},le="{limit}"'
                add("instance_model_le:llm_first_token_seconds_bucket:rate5m", within, bucket)
            add("instance_model:llm_prefill_seconds:rate5m", [4 * one for one in loads], target)
            add("instance_model:llm_decode_seconds:rate5m", [60 * one for one in loads], target)
            add("instance_model:llm_inter_token_seconds:p99_5m", [0.02 + 0.05 * one for one in loads], target)
            sums = by_model.setdefault(model, ([0.0] * len(times_s), [0.0] * len(times_s)))
            for total, mine in zip(sums, (share, tokens), strict=True):
                total[:] = [a + b for a, b in zip(total, mine, strict=True)]
    for model, (share, tokens) in by_model.items():
        quotients = [w / one for w, one in zip(share, tokens, strict=True)]
        result.setdefault("model:llm_joules_per_output_token:rate5m", []).append(
            (f'cluster="gpu",model="{model}"', quotients)
        )
    return result
