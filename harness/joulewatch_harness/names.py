"""Error texts about unknown names: the nearest valid name, then all of them."""

from __future__ import annotations

from collections.abc import Iterable

from joulewatch_exporter.arguments import suggestion
from joulewatch_harness.errors import ConfigError


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """Return a text such as ``unknown runtime 'onxruntime'; did you mean onnxruntime? (known: ...)``."""
    names = sorted(valid)
    return f"unknown {kind} {name!r}{suggestion(name, names)} (known: {', '.join(names) or 'none'})"


def refuse_unknown(source: str, kind: str, names: Iterable[str], valid: Iterable[str]) -> None:
    """Check that all names are valid.

    Raises:
        ConfigError: a name is not valid; the text begins with ``source`` and contains the nearest valid name.
    """
    allowed = frozenset(valid)
    for name in names:
        if name not in allowed:
            raise ConfigError(f"{source}: {unknown(kind, name, allowed)}")
