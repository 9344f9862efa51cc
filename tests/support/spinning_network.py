"""A network that keeps one processor busy, for tests of the processor time of runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any


class Spin:
    """Computes for 2 ms of processor time per batch."""

    def describe(self) -> Mapping[str, Any]:
        return {"precision": "fp32", "device": "cpu"}

    def load(self) -> None: ...

    def prepare(self, batch: int) -> None: ...

    def run(self, batches: int, phases: Any) -> None:
        for _ in range(batches):
            until_s = time.process_time() + 0.002
            while time.process_time() < until_s:
                pass
            phases.batch()

    def close(self) -> None: ...
