"""What to say about a name that is not known: the nearest one, then all of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(what: str, word: str, known: Iterable[str]) -> str:
    """One sentence such as ``unknown runtime 'onxruntime': did you mean 'onnxruntime'? (known: ...)``."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    guess = f": did you mean {near[0]!r}?" if near else ":"
    return f"unknown {what} {word!r}{guess} (known: {', '.join(names)})"
