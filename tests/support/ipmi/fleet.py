"""Many emulated BMCs in one process: ``python -m support.ipmi.fleet FOLDER COUNT [HUNG]``.

Writes the target file ``bmcs.yaml`` to the folder and runs until its standard input is closed. The first HUNG BMCs do
not answer. Each BMC has a different constant power, so that a value in the wrong series is detected.
"""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from joulewatch_exporter.emulator.bmc import Bmc, BmcSpec, write_targets
from joulewatch_exporter.emulator.faults import Fault
from joulewatch_exporter.emulator.signals import Constant

TARGETS_FILE = "bmcs.yaml"
_TICK_S = 0.1
_START_LIMIT_S = 60.0


def name_of(index: int) -> str:
    """Return the node's name."""
    return f"node{index:03}"


def power_of(index: int) -> float:
    """Return the node's power."""
    return 200.0 + index


def main() -> int:
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    hung = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    hang = (Fault(kind="hang", at_s=0.0, for_s=float("inf")),)
    bmcs = [
        Bmc(BmcSpec(name=name_of(index), signal=Constant(power_of(index)), faults=hang if index < hung else ()), folder)
        for index in range(count)
    ]
    start_s = time.monotonic()
    for bmc in bmcs:
        bmc.advance(0.0)
    write_targets(bmcs, folder / TARGETS_FILE)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not select.select([sys.stdin], [], [], _TICK_S)[0]:
        for bmc in bmcs:
            bmc.advance(time.monotonic() - start_s)
    for bmc in bmcs:
        bmc.close()
    return 0


@contextlib.contextmanager
def running(folder: Path, count: int, *, hung: int = 0) -> Iterator[Path]:
    """Run a fleet in another process; yield its target file."""
    tests = Path(__file__).parents[2]
    command = [sys.executable, "-m", "support.ipmi.fleet", str(folder), str(count), str(hung)]
    with subprocess.Popen(command, cwd=tests, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            ready, _, _ = select.select([process.stdout], [], [], _START_LIMIT_S)
            if not ready or process.stdout.readline() != b"ready\n":
                raise RuntimeError("the fleet did not start")
            yield folder / TARGETS_FILE
        finally:
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


if __name__ == "__main__":
    sys.exit(main())
