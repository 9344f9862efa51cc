"""Drive a network in one scenario: back to back, one query at a time, or with Poisson arrivals."""

from __future__ import annotations

import random
import time
from typing import Any, Protocol

from joulewatch_harness.clocktime import Clock
from joulewatch_harness.network import Network, Phases
from joulewatch_harness.plan.scenario import IDLE_PHASE, Scenario


class Driver(Protocol):
    """Runs a network by the rules of a scenario; a query is one batch."""

    waited_ns: int
    """How long the last query waited in the queue."""

    def begin(self, seed: str) -> None:
        """Begin a span of calls: discard the schedule and draw a new one from ``seed``."""
        ...

    def run(self, batches: int, phases: Phases) -> None:
        """Serve exactly ``batches`` queries."""
        ...


class OfflineDriver:
    """Back to back: calls the network's own ``run``."""

    def __init__(self, network: Network) -> None:
        self.waited_ns = 0
        self.run = network.run

    def begin(self, seed: str) -> None:
        """Do nothing: there is no schedule."""


class SingleStreamDriver:
    """One query at a time, each with its own latency."""

    def __init__(self, network: Network, clock: Clock) -> None:
        self.waited_ns = 0
        self._network = network
        self._now_ns = clock.monotonic_ns

    def begin(self, seed: str) -> None:
        """Do nothing: there is no schedule."""

    def run(self, batches: int, phases: Phases) -> None:
        """Call the network's ``run`` once for every query."""
        run, now_ns, marks = self._network.run, self._now_ns, phases.batch_ends_ns
        for _ in range(batches):
            before = len(marks)
            start_ns = now_ns()
            run(1, phases)
            end_ns = now_ns()
            # The network's own mark may be earlier than the end of the work on the device; its return is not.
            del marks[before:]
            marks.append(end_ns)
            phases.latencies_ns.append(end_ns - start_ns)


class ServerDriver:
    """Queries with random arrivals; the latency counts from the scheduled arrival.

    Between queries the driver sleeps. Waking up takes about 0.1 ms and is part of the latency, as in any server.
    """

    def __init__(self, network: Network, rate_per_s: float, clock: Clock) -> None:
        self.waited_ns = 0
        self._network = network
        self._clock = clock
        self._mean_ns = 1e9 / rate_per_s
        self._random = random.Random()
        self._arrival_ns: float | None = None

    def begin(self, seed: str) -> None:
        """Draw a new sequence of arrivals that begins now, with an empty queue."""
        self._random = random.Random(seed)
        self._arrival_ns = None

    def run(self, batches: int, phases: Phases) -> None:
        """Serve the next ``batches`` arrivals."""
        clock, marks = self._clock, phases.batch_ends_ns
        for _ in range(batches):
            last_ns = float(clock.monotonic_ns()) if self._arrival_ns is None else self._arrival_ns
            # Each arrival is computed from the one before, never from the end of a query.
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


def local_driver(network: Network, scenario: Scenario, clock: Clock = time) -> Driver:
    """Return the driver of a network in this process."""
    if scenario.name == "single_stream":
        return SingleStreamDriver(network, clock)
    if scenario.name == "server":
        return ServerDriver(network, scenario.rate_per_s, clock)
    return OfflineDriver(network)


def driver_of(network: Network, scenario: Scenario, clock: Clock = time) -> Driver:
    """Return the driver of a network; one in another process has its driver there, next to the network."""
    remote_driver: Any = getattr(network, "driver", None)
    if callable(remote_driver):
        driver: Driver = remote_driver(scenario)
        return driver
    return local_driver(network, scenario, clock)
