"""Text for labels, terminals and logs: counts, and the text of devices and clients made safe. Standard library only.

A driver, a BMC or a client chooses its text. Raw, it could move the cursor, hide a line, or fill the memory of a
server.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

MAX_LABEL: Final = 128
MAX_SOURCE: Final = 512
"""The label ``source`` has paths, which are longer."""
_DIGEST: Final = 8


def printable(text: str) -> str:
    """Return the text with escapes such as ``\\x1b`` for all characters that are not printable."""
    if text.isprintable():
        return text
    return "".join([char if char.isprintable() else ascii(char)[1:-1] for char in text])


def count_of(number: int, noun: str, plural: str = "") -> str:
    """Return the number with its noun: ``1 sensor``, ``2 sensors``.

    Args:
        number: How many there are.
        noun: What is counted, for one; a verb may follow it: ``window is``.
        plural: The same for any other number (default: the noun with an s).
    """
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def label_text(text: str, longest: int = MAX_LABEL) -> str:
    """Return the text as the value of a label: printable, and ``longest`` characters at most.

    A longer one ends with a digest of the whole text, so that different texts stay different.
    """
    if len(text) <= longest and text.isprintable():
        return text
    escaped = printable(text)
    if len(escaped) <= longest:
        return escaped
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    return f"{escaped[: longest - _DIGEST - 1]}~{digest}"


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON in which all characters are printable, but for the line feeds of ``indent``."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if text.replace("\n", "").isprintable():
        return text
    return "".join([char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text])
