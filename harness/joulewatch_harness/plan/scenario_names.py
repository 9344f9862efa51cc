"""The scenario that the name of a configuration ends with."""

from __future__ import annotations

import re


def scenario_in_name(name: str) -> tuple[str, float]:
    """Scenario and rate as the last part of a configuration's name tells them; ("", 0) for offline."""
    last = name.rpartition("/")[2]
    if last == "single_stream":
        return last, 0.0
    match = re.fullmatch(r"server-(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", last)
    return ("server", float(match[1])) if match else ("", 0.0)
