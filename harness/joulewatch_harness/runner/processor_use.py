"""Check that networks in their own processes are idle while another network is measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from joulewatch_harness.network import Network

LARGEST_IDLE_SHARE: Final = 0.02
"""Share of one processor that an idle process may use."""
LEAST_USE_S: Final = 0.03
"""Less processor time is not significant: a waiting process wakes up now and then."""


class ProcessorUse:
    """Processor time of the processes of all networks."""

    def __init__(self, networks: Mapping[str, Network]) -> None:
        self._networks = networks
        self._reported: set[str] = set()

    def read_s(self, *, except_for: str) -> dict[str, float]:
        """Return the processor time so far of every process but that of the measured network."""
        used_s = {}
        for name, network in self._networks.items():
            cpu_time_s = getattr(network, "cpu_time_s", None)
            if name != except_for and callable(cpu_time_s) and (seconds := cpu_time_s()) is not None:
                used_s[name] = seconds
        return used_s

    def newly_busy(
        self, before_s: Mapping[str, float], duration_s: float, *, except_for: str
    ) -> Iterator[tuple[str, float]]:
        """Yield each network that was busy since ``before_s``, once per run, with its share of a processor."""
        for name, now_s in self.read_s(except_for=except_for).items():
            used_s = now_s - before_s.get(name, now_s)
            if used_s > max(LEAST_USE_S, LARGEST_IDLE_SHARE * duration_s) and name not in self._reported:
                self._reported.add(name)
                yield name, used_s / duration_s
