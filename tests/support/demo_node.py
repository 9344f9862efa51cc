"""Programs of one node of the demo's cluster, which is emulated on this machine.

    python demo_node.py exporter NODENAME FLAG...        the exporter, under this host name
    python demo_node.py emulate LOAD SCENARIO FOLDER     the emulator; its load is the number in the file LOAD

A double of a network (``support.doubles``) writes the file, so that the emulated power follows what it does, and not
the load of the machine on which all nodes of the demo are emulated.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path


class LoadFile:
    """The load of an emulated node in a file: a share, and until when it holds (monotonic nanoseconds)."""

    LEASE_NS = 400_000_000
    """The load of a double that has ended, or waits, is 0 after this time."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT)
        self._renew_ns = 0

    def write(self, share: float) -> None:
        """Write the load, at most ten times per second."""
        now_ns = time.monotonic_ns()
        if now_ns >= self._renew_ns:
            # One write of constant length, so that a reader never gets a part of it.
            os.pwrite(self._file, f"{share:8.5f} {now_ns + self.LEASE_NS:020d}".encode(), 0)
            self._renew_ns = now_ns + self.LEASE_NS // 4

    def read(self) -> float:
        share, _, until_ns = os.pread(self._file, 29, 0).decode().strip().partition(" ")
        return float(share) if share and time.monotonic_ns() < int(until_ns) else 0.0


class _Meter:
    """Stands in for the emulator's meter of this machine's utilisation."""

    def __init__(self, load: LoadFile) -> None:
        self._load = load

    def utilisation(self, t_s: float) -> float:
        return self._load.read()


def run_exporter(nodename: str, flags: list[str]) -> int:
    from joulewatch_exporter.cli import main

    names = os.uname()
    fields = (names.sysname, nodename, names.release, names.version, names.machine)
    os.uname = lambda: os.uname_result(fields)
    return main(flags)


def run_emulator(load: Path, scenario: str, folder: Path) -> int:
    from joulewatch_exporter.emulator import main

    vars(main)["UtilisationMeter"] = lambda read_busy: _Meter(LoadFile(load))
    return main.run(scenario, folder, None)


if __name__ == "__main__":
    if sys.argv[1] == "exporter":
        sys.exit(run_exporter(sys.argv[2], sys.argv[3:]))
    sys.exit(run_emulator(Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])))
