"""How inferences are asked for: back to back, one at a time, or as they arrive.

The names and rules are those of MLPerf LoadGen; a *query* here is one batch of the batch size at hand.

* ``offline``: back to back, in calls of many batches: the most that the machine can do.
* ``single_stream``: one query at a time, the next one when it is done; latency is told for every query.
* ``server``: queries arrive at random (Poisson, from a seed) at ``server_rate_per_s``, wait in one line and are served
  one by one. Latency counts from the scheduled arrival, so waiting in line is in it; the power that the machine
  draws between queries is in its energy per inference. A machine that cannot keep up gives no result.

A driver is a Network whose ``run`` goes by the rules; it lives where the network lives, so that a query costs no
message between processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.names import unknown

ScenarioName = Literal["offline", "single_stream", "server"]
SCENARIOS: Final[tuple[ScenarioName, ...]] = get_args(ScenarioName)
OFFLINE: Final = "offline"
LEAST_RATE_PER_S: Final = 0.1
"""Below it a Ctrl-C would wait too long for the next query."""
IDLE_PHASE: Final = "idle"
"""Between queries; only ``server`` has it."""
OVERLOAD_WAIT: Final = 0.05
"""Share of a window that the last query may have waited in line."""
OVERLOAD_QUERIES: Final = 5
"""... and in any case as many queries' time."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario with what it needs to know."""

    name: ScenarioName = OFFLINE
    rate_per_s: float = 0.0
    """Queries per second; of ``server`` alone."""

    @classmethod
    def make(cls, name: str, rate_per_s: float | None, where: str) -> Scenario:
        """Check a scenario as it is typed.

        Raises:
            ConfigError: an unknown name, ``server`` without a rate; the text names ``where``.
        """
        for known in SCENARIOS:
            if name == known:
                break
        else:
            raise ConfigError(f"{where}: {unknown('scenario', name, SCENARIOS)}")
        if known != "server":
            return cls(known)
        if rate_per_s is None or rate_per_s < LEAST_RATE_PER_S:
            given = "is missing" if rate_per_s is None else f"is {rate_per_s:g}"
            raise ConfigError(
                f"{where}: server_rate_per_s {given}: the scenario server needs the number of queries per second, "
                f"at least {LEAST_RATE_PER_S:g}"
            )
        return cls(known, rate_per_s)

    @property
    def suffix(self) -> str:
        """What tells it apart in a configuration's name; empty for ``offline``."""
        if self.name == OFFLINE:
            return ""
        return f"{self.name}-{self.rate_per_s:g}" if self.name == "server" else self.name


def is_overloaded(rate_per_s: float, query_s: float, waited_s: float, duration_s: float) -> bool:
    """Whether a server could not keep up: its line grew, or a query takes longer than the time to the next.

    Args:
        rate_per_s: Asked for.
        query_s: How long one query takes, back to back.
        waited_s: How long the window's last query waited.
        duration_s: Of the window.
    """
    if rate_per_s * query_s >= 1.0:
        return True
    return waited_s > max(OVERLOAD_WAIT * duration_s, OVERLOAD_QUERIES * query_s)
