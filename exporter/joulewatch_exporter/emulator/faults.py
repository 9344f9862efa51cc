"""What can go wrong with an emulated device, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FaultKind = str
"""Each kind of device has kinds of its own; these are those of files and counters. reset: a counter starts again at 0;
glitch: text that is no number; garbage: a register of ones, 4294967295; denied: no rights; absent: the value is gone,
its device is there; vanish: the whole device is gone; stuck: the value no longer moves; eio: the driver refuses; hang:
no answer."""

FILE_FAULTS: Final = ("glitch", "garbage", "denied", "absent", "stuck", "eio", "hang")
"""What can befall one file of sysfs."""

MOMENTARY_FAULTS: Final = ("reset", "expired")
"""Those that are over at once."""

GARBAGE: Final = 2**32 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that goes wrong at a stated time."""

    kind: FaultKind
    at_s: float
    for_s: float
    """How long it lasts; a reset is over at once."""
    text: str
    """glitch: what the file then holds."""

    def is_on(self, t_s: float) -> bool:
        """Whether it lasts at ``t_s``."""
        return self.at_s <= t_s < self.at_s + self.for_s
