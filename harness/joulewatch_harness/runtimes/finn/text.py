"""Read the times that FINN's C++ driver prints in its throughput mode: a fallback without energy.

    python -m joulewatch_harness.runtimes.finn.text ./finnhpc acceleratorconfig.json 1 8 64

The program makes random inputs between the inferences, and packs and unpacks in separate loops, so its energy is not
that of inferences. To measure energy, build ``harness/children/finn_cpp`` and use the runtime ``process``. The exit
status is ignored, because some versions exit with 1 after success and with 0 after an exception: the output is valid if
it contains all figures and they agree with each other.
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
"""Largest relative difference between latency and throughput, which have six digits."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class CppTimes:
    """Mean times of one batch, in seconds."""

    batch: int
    total_s: float
    pack_s: float
    """Folding and packing, timed in a separate loop."""
    unpack_s: float
    raw_s: float
    """Total minus packing and unpacking: copies, DMA and accelerator; can be negative, as the loops are separate."""
    warnings: tuple[str, ...]

    @property
    def driver_share(self) -> float:
        """Share of packing and unpacking, 0 to 1, without the driver's copies."""
        return min(1.0, (self.pack_s + self.unpack_s) / self.total_s)


def parse(text: str, batch: int) -> CppTimes:
    """Return the figures in the output of the program.

    Args:
        text: Its stdout; there may be log lines between the figures.
        batch: The batch size of the run.

    Raises:
        NetworkError: a figure is missing or printed twice, or figures contradict each other.
    """
    figures: dict[str, float] = {}
    for line in text.splitlines():
        match = _LINE.match(line.strip())
        if match is None:
            continue
        name, value, unit = match.groups()
        if unit != _UNITS[name] or name in figures:
            raise NetworkError(f"finn: the C++ driver printed {line.strip()!r}: another unit, or twice")
        try:
            figures[name] = float(value)
        except ValueError as error:
            raise NetworkError(f"finn: the C++ driver printed {line.strip()!r}: not a valid number") from error
    missing = [name for name in _UNITS if name not in figures]
    if missing:
        raise NetworkError(f"finn: the C++ driver did not print its {missing[0]}: it failed, or is another version")
    total_s, rate = figures["end2end latency"] * 1e-6, figures["end2end throughput"]
    if not all(map(math.isfinite, figures.values())) or total_s <= 0.0 or rate <= 0.0:
        raise NetworkError(f"finn: the C++ driver's figures are not valid times: {figures}")
    if abs(rate * total_s / batch - 1.0) > AGREEMENT:
        raise NetworkError(
            f"finn: the C++ driver printed {total_s * 1e6:g} µs per batch and {rate:g} inferences/s, which contradicts "
            f"the requested batch size of {batch}"
        )
    pack_s = (figures["packing latency"] + figures["folding latency"]) * 1e-9
    unpack_s = figures["unpacking latency"] * 1e-9
    raw_s = total_s - pack_s - unpack_s
    warnings = []
    if raw_s < 0.0:
        warnings.append(
            f"packing and unpacking, timed in separate loops, took {-raw_s * 1e6:.3g} µs longer than the complete "
            "inference: the split is not valid, the total is"
        )
    return CppTimes(
        batch=batch,
        total_s=total_s,
        pack_s=pack_s,
        unpack_s=unpack_s,
        raw_s=raw_s,
        warnings=tuple(warnings),
    )


def measure(program: Path, config: Path, batch: int, *, limit_s: float = LIMIT_S) -> CppTimes:
    """Run the program's throughput mode: 5000 batches, then the loops that time its phases.

    Raises:
        ConfigError: the program or configuration does not exist.
        NetworkError: it cannot be run, takes too long, or prints no figures; the text contains its last lines.
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
        raise NetworkError(f"{error}; its last lines: {words[:300] or 'none'}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command of the module's docstring: write one JSON object per batch size to stdout.

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
            document = asdict(times) | {"driver_share": round(times.driver_share, 4), "energy": None}
            sys.stdout.write(json.dumps(document) + "\n")
            for warning in times.warnings:
                sys.stderr.write(f"warning: batch {batch}: {warning}\n")
    except JoulewatchError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
