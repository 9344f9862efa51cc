"""What the program of FINN's C++ driver prints in its throughput mode: a fallback, for times only.

    python -m joulewatch_harness.runtimes.finn.text ./finnhpc acceleratorconfig.json 1 8 64

There is no energy in it. The program makes random inputs between the inferences, and then packs and unpacks in loops
of their own: a meter around it would measure those. For joules build ``harness/children/finn_cpp`` and use the runtime
``process``. Its exit status is told by nothing here, for versions exist that exit with 1 on success and with 0
on an exception: what counts is whether all figures were printed and agree with each other.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from joulewatch_harness.errors import ConfigError, JoulewatchError, NetworkError

AGREEMENT: Final = 0.02
"""Latency and throughput are printed with six digits, of the same sum."""
LIMIT_S: Final = 600.0
_LINE: Final = re.compile(
    r"^Avg\. (end2end latency|end2end throughput|(?:packing|folding|unpacking|raw inference) latency)"
    r":\s*([-+0-9.eE]+|-?nan|-?inf)\s*(us|ns|inferences/s)\s*$"
)
_UNITS: Final = {
    "end2end latency": "us",
    "end2end throughput": "inferences/s",
    "packing latency": "ns",
    "folding latency": "ns",
    "unpacking latency": "ns",
    "raw inference latency": "ns",
}


@dataclass(frozen=True, slots=True)
class CppTimes:
    """Mean times of one batch, in seconds."""

    batch: int
    total_s: float
    pack_s: float
    """Folding and packing, timed in a loop of their own."""
    unpack_s: float
    raw_s: float
    """Total less the two: copies, DMA and accelerator. A difference of separate loops, which can be negative."""
    inferences_per_s: float
    warnings: tuple[str, ...]

    @property
    def driver_share(self) -> float:
        """Share of the time that packing and unpacking take, 0 to 1; the driver's copies come on top."""
        return min(1.0, (self.pack_s + self.unpack_s) / self.total_s)


def parse(text: str, batch: int) -> CppTimes:
    """Read the figures out of what the program printed.

    Args:
        text: Its stdout; log lines may stand between the figures.
        batch: The batch size that it was run with.

    Raises:
        NetworkError: a figure is missing or stands there twice, or they contradict each other.
    """
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = _LINE.match(line.strip())
        if match is None:
            continue
        name, value, unit = match.groups()
        if unit != _UNITS[name] or name in found:
            raise NetworkError(f"finn: the C++ driver printed {line.strip()!r}: another unit, or a second time")
        try:
            found[name] = float(value)
        except ValueError as error:
            raise NetworkError(f"finn: the C++ driver printed {line.strip()!r}: that is no number") from error
    missing = [name for name in _UNITS if name not in found]
    if missing:
        raise NetworkError(f"finn: the C++ driver did not print its {missing[0]}: it failed, or is of another version")
    total_s, rate = found["end2end latency"] * 1e-6, found["end2end throughput"]
    if not all(map(math.isfinite, found.values())) or total_s <= 0.0 or rate <= 0.0:
        raise NetworkError(f"finn: the C++ driver's figures are no times: {found}")
    if abs(rate * total_s / batch - 1.0) > AGREEMENT:
        raise NetworkError(
            f"finn: the C++ driver says {total_s * 1e6:g} µs a batch and {rate:g} inferences/s: "
            f"that is no batch of {batch}, the size it was asked for"
        )
    pack_s = (found["packing latency"] + found["folding latency"]) * 1e-9
    unpack_s = found["unpacking latency"] * 1e-9
    raw_s = total_s - pack_s - unpack_s
    warnings = []
    if raw_s < 0.0:
        warnings.append(
            f"packing and unpacking, timed in loops of their own, took {-raw_s * 1e6:.3g} µs longer than the whole "
            "inference: the split is not to be believed, the total is"
        )
    return CppTimes(batch, total_s, pack_s, unpack_s, raw_s, rate, tuple(warnings))


def measure(program: Path, config: Path, batch: int, *, limit_s: float = LIMIT_S) -> CppTimes:
    """Run the program's throughput mode: 5000 batches, then the loops that time its phases.

    Raises:
        ConfigError: no such program or configuration.
        NetworkError: it cannot be run, takes too long, or prints no figures; the text has its last words.
    """
    if not config.is_file():
        raise ConfigError(f"no configuration {config} of the C++ driver")
    command = [str(program.resolve()), "-e", "throughput", "-c", str(config), "-b", str(batch)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=limit_s, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise ConfigError(f"no program {program}: build finn-cpp-driver for this accelerator") from error
    except OSError as error:
        raise ConfigError(f"{program} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise NetworkError(f"finn: {program.name} took longer than {limit_s:g} s for a batch of {batch}") from error
    try:
        return parse(done.stdout, batch)
    except NetworkError as error:
        words = " | ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-3:])
        raise NetworkError(f"{error}; its last words: {words[:300] or 'none'}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of the module's docstring: one JSON object per batch size on stdout.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad arguments.
    """
    parser = argparse.ArgumentParser(prog="python -m joulewatch_harness.runtimes.finn.text")
    parser.add_argument("program", type=Path, help="the C++ driver's program")
    parser.add_argument("config", type=Path, help="its acceleratorconfig.json")
    parser.add_argument("batch_sizes", type=int, nargs="+")
    parsed = parser.parse_args(arguments)
    try:
        for batch in parsed.batch_sizes:
            times = measure(parsed.program, parsed.config, batch)
            told = asdict(times) | {"driver_share": round(times.driver_share, 4), "energy": None}
            sys.stdout.write(json.dumps(told) + "\n")
            for warning in times.warnings:
                sys.stderr.write(f"warning: batch {batch}: {warning}\n")
    except JoulewatchError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
