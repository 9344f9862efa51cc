"""Lists of CPUs as text, such as ``0-3,8``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from joulewatch_harness.errors import ConfigError

LARGEST_CPU: Final = 1 << 16


def parse_cpus(text: str, where: str) -> tuple[int, ...]:
    """Processors from ``"0-3,8"``, as taskset and the kernel write them.

    Returns:
        Their numbers, ascending, each once; none for an empty text.

    Raises:
        ConfigError: the text is no such list; it names ``where``.
    """
    found: set[int] = set()
    for item in text.split(",") if text.strip() else ():
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", item)
        if match is None:
            raise ConfigError(f"{where}: processors are given as 0-3 or 0,2,4-7, not {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last > LARGEST_CPU:
            raise ConfigError(f"{where}: {item.strip()!r} is no range of processors")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def cpus_text(cpus: Iterable[int]) -> str:
    """The opposite of ``parse_cpus``: ``0-3,8``."""
    parts: list[list[int]] = []
    for number in sorted(set(cpus)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
