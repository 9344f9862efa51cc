"""What names tell, and what to say about one that is not known: the nearest one, then all of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from joulewatch_harness.errors import ConfigError


def unknown(what: str, word: str, known: Iterable[str]) -> str:
    """One sentence such as ``unknown runtime 'onxruntime': did you mean 'onnxruntime'? (known: ...)``."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    guess = f": did you mean {near[0]!r}?" if near else ":"
    return f"unknown {what} {word!r}{guess} (known: {', '.join(names)})"


def refuse_unknown(where: str, what: str, words: Iterable[str], known: Iterable[str]) -> None:
    """Let only known words pass.

    Raises:
        ConfigError: one is not known; the text begins with ``where`` and names the nearest.
    """
    names = frozenset(known)
    for word in words:
        if word not in names:
            raise ConfigError(f"{where}: {unknown(what, word, names)}")
