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

import random
import time
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, get_args

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.names import unknown
from joulewatch_harness.network import Network, Phases

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


class ScenarioClock(Protocol):
    """What a driver needs of a clock."""

    def monotonic_ns(self) -> int: ...

    def sleep(self, duration_s: float) -> None: ...


class _RealClock:
    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def sleep(self, duration_s: float) -> None:
        time.sleep(duration_s)


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


class Driver(Protocol):
    """A network that is asked by the rules of a scenario."""

    waited_ns: int
    """How long the last query waited in line."""

    def begin(self, seed: str) -> None:
        """A span of calls begins: whatever was scheduled before is forgotten."""
        ...

    def run(self, batches: int, phases: Phases) -> None:
        """Serve exactly so many queries."""
        ...


class OfflineDriver:
    """Back to back: the network as it is."""

    def __init__(self, network: Network) -> None:
        self.waited_ns = 0
        self.run = network.run

    def begin(self, seed: str) -> None:
        """Nothing is scheduled."""


class SingleStreamDriver:
    """One query at a time, each with its own latency."""

    def __init__(self, network: Network, clock: ScenarioClock) -> None:
        self.waited_ns = 0
        self._network = network
        self._now_ns = clock.monotonic_ns

    def begin(self, seed: str) -> None:
        """Nothing is scheduled."""

    def run(self, batches: int, phases: Phases) -> None:
        """One call of the network's ``run`` for every query."""
        run, now_ns, marks = self._network.run, self._now_ns, phases.batch_ends_ns
        for _ in range(batches):
            before = len(marks)
            start_ns = now_ns()
            run(1, phases)
            end_ns = now_ns()
            # A network's own mark may come before its device has finished; its return does not.
            del marks[before:]
            marks.append(end_ns)
            phases.latencies_ns.append(end_ns - start_ns)


class ServerDriver:
    """Queries that arrive at random; latency from the scheduled arrival.

    Between queries this sleeps: the wake-up, some 0.1 ms, is part of a query's latency, as it is of any server's.
    """

    def __init__(self, network: Network, rate_per_s: float, clock: ScenarioClock) -> None:
        self.waited_ns = 0
        self._network = network
        self._clock = clock
        self._mean_ns = 1e9 / rate_per_s
        self._random = random.Random()
        self._arrival_ns: float | None = None

    def begin(self, seed: str) -> None:
        """Draw another sequence of arrivals, from now on; nobody is in line."""
        self._random = random.Random(seed)
        self._arrival_ns = None

    def run(self, batches: int, phases: Phases) -> None:
        """Serve the next ``batches`` arrivals."""
        clock, marks = self._clock, phases.batch_ends_ns
        for _ in range(batches):
            last_ns = float(clock.monotonic_ns()) if self._arrival_ns is None else self._arrival_ns
            # Arrivals are worked out from one another, never from when a query was done.
            self._arrival_ns = last_ns + self._random.expovariate(1.0) * self._mean_ns
            arrival_ns = int(self._arrival_ns)
            now_ns = clock.monotonic_ns()
            if now_ns < arrival_ns:
                clock.sleep((arrival_ns - now_ns) * 1e-9)
                start_ns = clock.monotonic_ns()
                phases.add(IDLE_PHASE, now_ns, start_ns)
            else:
                start_ns = now_ns
            self.waited_ns = max(0, start_ns - arrival_ns)
            before = len(marks)
            self._network.run(1, phases)
            end_ns = clock.monotonic_ns()
            del marks[before:]
            marks.append(end_ns)
            phases.latencies_ns.append(end_ns - arrival_ns)


def local_driver(network: Network, scenario: Scenario, clock: ScenarioClock | None = None) -> Driver:
    """The driver of a network in this process."""
    clock = clock or _RealClock()
    if scenario.name == "single_stream":
        return SingleStreamDriver(network, clock)
    if scenario.name == "server":
        return ServerDriver(network, scenario.rate_per_s, clock)
    return OfflineDriver(network)


def driver_of(network: Network, scenario: Scenario, clock: ScenarioClock | None = None) -> Driver:
    """The driver of a network, wherever it lives."""
    own: Any = getattr(network, "driver", None)
    if callable(own):
        driver: Driver = own(scenario)
        return driver
    return local_driver(network, scenario, clock)


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
