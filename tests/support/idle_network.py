"""A network that does nothing, for tests of the process that runs it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any


class Idle:
    """Sleeps 1 ms per batch."""

    def describe(self) -> Mapping[str, Any]:
        return {"precision": "fp32"}

    def load(self) -> None: ...

    def prepare(self, batch: int) -> None: ...

    def run(self, batches: int, phases: Any) -> None:
        for _ in range(batches):
            time.sleep(0.001)
            phases.batch()

    def close(self) -> None: ...
