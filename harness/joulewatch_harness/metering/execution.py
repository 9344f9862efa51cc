"""One execution of a command as a window of a meter, for ``joulewatch measure`` and ``joulewatch ci``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from joulewatch_harness.metering.child import Child, NotStartedError, Outcome
from joulewatch_harness.metering.meter import Meter
from joulewatch_harness.metering.window import Measurement


def execute(
    meter: Meter,
    child: Child,
    command: Sequence[str],
    *,
    name: str,
    inferences: int,
    folder: Path | None = None,
    stdout: int | None = None,
) -> tuple[Measurement, Outcome]:
    """Run a command in a window, and return both; ``folder`` and ``stdout`` as for ``Child.run``.

    Raises:
        NotStartedError: The command could not be started; its window is marked as interrupted.
    """
    window = meter.begin(name, inferences)
    try:
        outcome = child.run(command, folder=folder, stdout=stdout)
    except NotStartedError:
        window.end(interrupted=True)
        raise
    window.details.update(outcome.details())
    return window.end(interrupted=child.ended_by is not None), outcome
