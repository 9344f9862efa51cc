"""A custom network that sleeps for a known time; it uses no CPU time, so window lengths are stable in tests."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from joulewatch_harness.network import Phases


class Sleeper:
    """Each batch sleeps 1 ms and 10 µs for each of its elements."""

    def __init__(self) -> None:
        self.pause_s = 0.0

    def describe(self) -> Mapping[str, Any]:
        return {"runtime": "sleep", "runtime_version": "1", "precision": "fp32", "device": "none"}

    def load(self) -> None:
        pass

    def prepare(self, batch: int) -> None:
        self.pause_s = 1e-3 + 1e-5 * batch

    def run(self, batches: int, phases: Phases) -> None:
        for _ in range(batches):
            with phases("execute"):
                time.sleep(self.pause_s)
            phases.batch()

    def close(self) -> None:
        pass
