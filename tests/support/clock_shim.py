"""Another machine's wall clock and host name for a process, with ``clock_shim.c``, which is loaded with LD_PRELOAD."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from support.rapl_shim import build_library

NS_PER_S = 1_000_000_000


def build_clock_shim(folder: Path) -> Path:
    """Compile the shim; skip the test if there is no compiler."""
    return build_library("clock_shim", folder)


@dataclass(kw_only=True)
class ShiftedClock:
    """A wall clock that differs from this machine's by an offset, which a test may change at any time."""

    library: Path
    file: Path
    nodename: str

    def set(self, offset_s: float) -> None:
        """Set the clock, also of processes that run."""
        with self.file.open("r+b" if self.file.exists() else "wb") as file:
            file.write(struct.pack("=q", round(offset_s * NS_PER_S)))

    def environment(self, other: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of a process with this clock, in addition to ``other`` and its shims."""
        preload = ":".join(filter(None, (str(self.library), other.get("LD_PRELOAD", ""))))
        return {**other, "LD_PRELOAD": preload, "FAKE_CLOCK": str(self.file), "FAKE_NODENAME": self.nodename}
