"""One mapping of a scenario file, read strictly: values are taken by name, and what nobody took is an error."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from typing import Any, Final

from joulewatch_exporter.emulator.faults import MOMENTARY_FAULTS, Fault
from joulewatch_exporter.errors import ConfigError

_KEY: Final = re.compile(r"[^\s/]+/[^\s/]+")
_MISSING: Final = object()


class Table:
    """One mapping of the file; every error names the key and, where a word is wrong, the nearest valid one."""

    def __init__(self, where: str, value: Any) -> None:
        """Take a mapping.

        Args:
            where: The file and the key that holds it, for messages.
            value: What YAML or JSON made of it.

        Raises:
            ConfigError: It is no mapping.
        """
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: must be a mapping of keys to values")
        self.where = where
        self._value: dict[Any, Any] = value
        self._known: set[str] = set()

    def take(self, key: str, default: Any = _MISSING) -> Any:
        """Return a value as it is; without a default it must be there."""
        self._known.add(key)
        value = self._value.get(key, default)
        if value is _MISSING:
            raise ConfigError(f"{self.where}.{key}: is missing")
        return value

    def has(self, key: str) -> bool:
        """Whether the file gives the key; it is then known, taken or not."""
        self._known.add(key)
        return key in self._value

    def replace(self, key: str, by: str, value: Any) -> None:
        """Put another key in a key's place."""
        del self._value[key]
        self._value[by] = value
        self._known.add(by)

    def text(self, key: str, default: Any = _MISSING) -> str:
        """Return a text."""
        value = self.take(key, default)
        if not isinstance(value, str):
            raise ConfigError(f"{self.where}.{key}: {value!r} is not text (put it in quotes)")
        return value

    def number(self, key: str, default: Any = _MISSING, *, low: float = -math.inf, high: float = math.inf) -> float:
        """Return a number within its limits."""
        return number(f"{self.where}.{key}", self.take(key, default), low, high)

    def whole(self, key: str, default: Any = _MISSING, *, low: int, high: int) -> int:
        """Return a whole number within its limits."""
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{self.where}.{key}: {value!r} is no whole number")
        return int(checked(f"{self.where}.{key}", value, low, high))

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.where}.{key}: {value!r} is neither true nor false")
        return value

    def choice(self, key: str, choices: Sequence[str], default: Any = _MISSING) -> str:
        """Return one of the given words."""
        value = self.text(key, default)
        if value not in choices:
            raise ConfigError(f"{self.where}.{key}: {value!r} is none of {', '.join(choices)}{hint(value, choices)}")
        return value

    def sequence(self, key: str) -> list[Any]:
        """Return a list; empty if it is not there."""
        value = self.take(key, [])
        if not isinstance(value, list):
            raise ConfigError(f"{self.where}.{key}: must be a list")
        return value

    def mapping(self, key: str) -> dict[Any, Any]:
        """Return a mapping; empty if it is not there."""
        value = self.take(key, {})
        if not isinstance(value, dict):
            raise ConfigError(f"{self.where}.{key}: must be a mapping of names to values")
        return value

    def table(self, key: str) -> Table:
        """Return a mapping, to be read in the same way."""
        return Table(f"{self.where}.{key}", self.mapping(key))

    def tables(self, key: str) -> list[Table]:
        """Return a list of mappings."""
        return [Table(f"{self.where}.{key}[{i}]", value) for i, value in enumerate(self.sequence(key))]

    def key(self) -> str:
        """Return the device and domain of the truth."""
        key = self.text("key")
        if _KEY.fullmatch(key) is None:
            raise ConfigError(f"{self.where}.key: {key!r} is not like socket0/package")
        return key

    def faults(self, *kinds: str) -> tuple[Fault, ...]:
        """Return the timetable of what goes wrong, of these kinds."""
        faults = []
        for entry in self.tables("faults"):
            kind = entry.choice("kind", kinds)
            at_s = entry.number("at_s", low=0.0)
            for_s = 0.0 if kind in MOMENTARY_FAULTS else entry.number("for_s", low=0.0)
            text = entry.text("text", "garbage") if kind == "glitch" else ""
            entry.done()
            faults.append(Fault(kind=kind, at_s=at_s, for_s=for_s, text=text))
        return tuple(faults)

    def done(self) -> None:
        """Refuse what nobody took."""
        for key in self._value:
            if key not in self._known:
                known = tuple(sorted(self._known))
                raise ConfigError(
                    f"{self.where}: unknown key {key!r}{hint(str(key), known)}; known: {', '.join(known)}"
                )


def number(where: str, value: Any, low: float, high: float) -> float:
    """Return a value as a number within its limits.

    Raises:
        ConfigError: It is none, or outside them.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where}: {value!r} is no number")
    return float(checked(where, value, low, high))


def checked(where: str, value: float, low: float, high: float) -> float:
    """Return the value if it is within its limits, else raise `ConfigError`."""
    if not low <= value <= high or not math.isfinite(value):
        limits = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise ConfigError(f"{where}: {value:g} must be {limits}")
    return value


def hint(word: str, words: Sequence[str]) -> str:
    """Return what a person may have meant, as the end of a message, or nothing."""
    near = difflib.get_close_matches(word, words, n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def check_unique(where: str, what: str, names: Sequence[str]) -> None:
    """Raise `ConfigError` where a name is given twice."""
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{where}: {what} {name} is there twice")
