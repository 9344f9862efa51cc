"""What can go wrong with an emulated device, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from joulewatch_exporter.arguments import suggestion
from joulewatch_exporter.emulator.checks import check_range

FILE_FAULTS: Final = ("glitch", "garbage", "denied", "absent", "stuck", "eio", "hang")
"""Faults of a single file of sysfs. glitch: text that is not a number; garbage: a register of ones, 4294967295; denied:
no permission; absent: the value is gone, its device is there; stuck: the value stops changing; eio: the driver
reports an input/output error; hang: opening the file blocks."""

MOMENTARY_FAULTS: Final = ("reset", "expired")
"""Faults without a duration."""

GARBAGE: Final = 2**32 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault at a given time; each kind of device defines its own kinds of faults."""

    kind: str
    at_s: float
    """Start, in seconds since the start of the scenario."""
    for_s: float = 0.0
    """Duration; momentary faults have none."""
    text: str | None = None
    """Content of the file during a glitch; None: ``garbage``."""

    def is_on(self, t_s: float) -> bool:
        """Return whether the fault lasts at ``t_s``."""
        return self.at_s <= t_s < self.at_s + self.for_s


def check_faults(faults: Sequence[Fault], kinds: Sequence[str]) -> None:
    """Check the faults of a device.

    Args:
        faults: As the scenario gives them.
        kinds: Those that the device can have.

    Raises:
        ValueError: A fault is invalid; the text begins with its key.
    """
    for index, fault in enumerate(faults):
        where = f"faults[{index}]"
        if fault.kind not in kinds:
            hint = suggestion(fault.kind, kinds)
            raise ValueError(f"{where}.kind: {fault.kind!r} is not one of {', '.join(kinds)}{hint}")
        check_range(f"{where}.at_s", fault.at_s, 0.0)
        if fault.kind in MOMENTARY_FAULTS and fault.for_s:
            raise ValueError(f"{where}.for_s: the fault {fault.kind} has no duration")
        if fault.kind not in MOMENTARY_FAULTS and not fault.for_s > 0:
            raise ValueError(f"{where}.for_s: must be above 0")
        if fault.text is not None and fault.kind != "glitch":
            raise ValueError(f"{where}.text: only a glitch has a text")
