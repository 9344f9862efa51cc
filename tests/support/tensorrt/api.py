"""The names and parameters of NVIDIA's bindings, as ``record.py`` read them from the real ones."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parent / "recorded"


def read(name: str) -> dict[str, dict[str, Any]]:
    """Return section -> member -> its overloads, its number, or None for a property.

    A line in brackets opens a section. ``f(a,b=|c)`` has two overloads; a parameter that ends in ``=`` is optional.
    """
    sections: dict[str, dict[str, Any]] = {}
    for line in (RECORDED / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            members = sections.setdefault(line.strip("[]"), {})
            continue
        for member, brackets, number in re.findall(r"(\w+)(\([^)]*\))?(?:=(\d+))?(?: |$)", line):
            overloads = [[word for word in item.split(",") if word] for item in brackets[1:-1].split("|")]
            members[member] = overloads if brackets else int(number) if number else None
    return sections


def check(name: str, member: Any, recorded: Mapping[str, Any]) -> None:
    """Compare a function or property of the double with the recorded ones; it may lack optional parameters at the end.

    Raises:
        AttributeError: The real bindings do not have it.
        TypeError: The real function has other parameters.
    """
    if name not in recorded:
        raise AttributeError(f"the real bindings have no {name}")
    if inspect.isfunction(member):
        given = list(inspect.signature(member).parameters)[1:]
        for names in recorded[name] or ():
            plain = [word.rstrip("=") for word in names]
            if given == plain[: len(given)] and all(word.endswith("=") for word in names[len(given) :]):
                return
        raise TypeError(f"the real {name} takes {recorded[name]}, not {given}")
    if recorded[name] is not None:
        raise AttributeError(f"the real {name} is not a property")
