"""Wait for what another thread or process does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], what: str = "the condition", *, limit_s: float = 20.0) -> None:
    """Wait until a condition is true.

    Raises:
        AssertionError: It was not within ``limit_s``.
    """
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {limit_s:g} s: {what}"
        threading.Event().wait(0.005)
