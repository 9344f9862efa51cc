"""Lists of processors as text, such as ``0-3,8``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from joulewatch_harness.errors import ConfigError

LARGEST_CPU: Final = 1 << 16


def parse_cpus(text: str, where: str = "") -> tuple[int, ...]:
    """Convert a list such as ``"0-3,8"``, the format of taskset and the kernel, to numbers.

    Returns:
        The processors, ascending, without duplicates; none for an empty text.

    Raises:
        ConfigError: the text is not valid; the error begins with ``where``.
    """
    source = f"{where}: " if where else ""
    cpus: set[int] = set()
    for item in text.split(",") if text.strip() else ():
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", item)
        if match is None:
            raise ConfigError(f"{source}must be a list of processors such as 0-3 or 0,2,4-7, got {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last > LARGEST_CPU:
            raise ConfigError(f"{source}{item.strip()!r} is not a valid range of processors")
        cpus.update(range(first, last + 1))
    return tuple(sorted(cpus))


def cpus_text(cpus: Iterable[int]) -> str:
    """Convert numbers to a list such as ``0-3,8``."""
    ranges: list[list[int]] = []
    for number in sorted(set(cpus)):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
