"""Error texts about unknown names: the nearest valid name, then all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from joulewatch_exporter.arguments import suggestion
from joulewatch_harness.errors import ConfigError, cut, shown

_LONGEST_LIST: Final = 2000
"""The names may be those of a file, such as the columns of a log."""


def unknown(kind: str, given: str, valid: Iterable[str]) -> str:
    """Return a text such as ``unknown runtime 'onxruntime'; did you mean onnxruntime? (known: ...)``."""
    names = sorted(name if name.isprintable() else repr(name) for name in valid)
    known = cut(", ".join(names), _LONGEST_LIST) or "none"
    return f"unknown {kind} {shown(given)}{suggestion(given, names)} (known: {known})"


def refuse_unknown(source: str, kind: str, names: Iterable[str], valid: Iterable[str]) -> None:
    """Check that all names are valid.

    Raises:
        ConfigError: a name is not valid; the text begins with ``source`` and contains the nearest valid name.
    """
    allowed = frozenset(valid)
    for name in names:
        if name not in allowed:
            raise ConfigError(f"{source}: {unknown(kind, name, allowed)}")
