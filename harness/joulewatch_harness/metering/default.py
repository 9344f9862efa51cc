"""The meter of ``joulewatch.measure`` and ``joulewatch.measured``: one for each process, opened by its first window."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from joulewatch_harness.metering.meter import Meter
    from joulewatch_harness.metering.window import Measurement

_lock = threading.Lock()
_meter: Meter | None = None


def default_meter() -> Meter:
    """Return the meter of this process; a process that was forked gets its own."""
    global _meter
    with _lock:
        if _meter is None:
            from joulewatch_harness.metering.meter import Meter

            _meter = Meter()
        return _meter


def _forget() -> None:
    """Leave the meter to the parent process; its lock may be held by a thread that does not exist here."""
    global _lock, _meter
    _lock, _meter = threading.Lock(), None


os.register_at_fork(after_in_child=_forget)


def measure(name: str, inferences: int = 1, *, sync: str = "") -> Measurement:
    """Return a window of this process's own meter; use it as a context manager.

    The first window connects to the exporter that ``Meter`` describes, and creates a run in the directory ``runs``.

    Args:
        name: What runs in it; windows of one name are repeats.
        inferences: Inferences in the window; may be set later, until its end.
        sync: ``torch``, ``jax`` or ``cupy``: wait at both edges for work that it has given to a GPU.

    Raises:
        ConfigError: A name, number or option is not valid.
    """
    from joulewatch_harness.metering.window import Measurement

    return Measurement(lambda: default_meter().open(), name, inferences, sync)
