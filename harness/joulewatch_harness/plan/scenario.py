"""Scenarios: how inferences are requested. The names and rules are those of MLPerf LoadGen.

A *query* is one batch of the current batch size.

* ``offline``: back to back, in calls of many batches: the highest throughput of the machine.
* ``single_stream``: one query at a time, each after the previous one has finished; latency is measured per query.
* ``server``: queries arrive at random times (Poisson, seeded) at ``server_rate_per_s``, wait in one queue and are
  served one by one. Latency counts from the scheduled arrival, so it includes the waiting; energy per inference
  includes the power drawn between queries. A machine that cannot keep up gives no result.

A driver is a Network whose ``run`` follows these rules; it runs in the network's process, so that a query needs no
message between processes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.names import unknown

ScenarioName = Literal["offline", "single_stream", "server"]
SCENARIOS: Final[tuple[ScenarioName, ...]] = get_args(ScenarioName)
OFFLINE: Final = "offline"
LEAST_RATE_PER_S: Final = 0.1
"""Lower rates would delay Ctrl-C until the next query."""
IDLE_PHASE: Final = "idle"
"""The time between queries; only ``server`` has this phase."""
OVERLOAD_WAIT: Final = 0.05
"""Part of a window that its last query may have waited in the queue."""
OVERLOAD_QUERIES: Final = 5
"""The last query may in any case have waited as long as this number of queries takes."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario and its rate."""

    name: ScenarioName = OFFLINE
    rate_per_s: float = 0.0
    """Queries per second; only for ``server``."""

    @classmethod
    def make(cls, name: str, rate_per_s: float | None, where: str) -> Scenario:
        """Check a scenario.

        Raises:
            ConfigError: an unknown name, or ``server`` without a rate; the error begins with ``where``.
        """
        for scenario in SCENARIOS:
            if name == scenario:
                break
        else:
            raise ConfigError(f"{where}: {unknown('scenario', name, SCENARIOS)}")
        if scenario != "server":
            return cls(scenario)
        if rate_per_s is None or rate_per_s < LEAST_RATE_PER_S:
            given = "is missing" if rate_per_s is None else f"is {rate_per_s:g}"
            raise ConfigError(
                f"{where}: server_rate_per_s {given}: the scenario server requires a rate of at least "
                f"{LEAST_RATE_PER_S:g} queries per second"
            )
        return cls(scenario, rate_per_s)

    @property
    def suffix(self) -> str:
        """The last part of the names of its configurations; empty for ``offline``."""
        if self.name == OFFLINE:
            return ""
        return f"{self.name}-{self.rate_per_s:g}" if self.name == "server" else self.name


def scenario_in_name(name: str) -> tuple[str, float]:
    """Return scenario and rate from the last part of a configuration's name; ("", 0) for ``offline``."""
    last = name.rpartition("/")[2]
    if last == "single_stream":
        return last, 0.0
    match = re.fullmatch(r"server-(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", last)
    return ("server", float(match[1])) if match else ("", 0.0)


def is_overloaded(rate_per_s: float, query_s: float, waited_s: float, duration_s: float) -> bool:
    """Return whether a server could not keep up: its queue grew, or a query takes longer than the mean interval.

    Args:
        rate_per_s: The requested rate.
        query_s: Duration of one query, back to back.
        waited_s: Time that the window's last query waited.
        duration_s: Duration of the window.
    """
    if rate_per_s * query_s >= 1.0:
        return True
    return waited_s > max(OVERLOAD_WAIT * duration_s, OVERLOAD_QUERIES * query_s)
