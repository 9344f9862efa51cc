"""Text in which only numbers change from one scrape to the next: everything between them is joined once.

Building each line in each scrape would take several times as long, as the text is a hundred times longer than the
numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Piece: TypeAlias = "str | int"
"""Text, or a slot for a number: its index in the values of the section."""


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """The lines of one part of the exposition, such as one sensor family. Replaced when a line comes, goes or changes.

    Sections are compared by identity.
    """

    key: object
    """What the lines depend on."""
    lines: Mapping[str, Sequence[Piece]]
    """Name of the metric -> its lines."""


def samples(prefixes: Iterable[str], slots: Iterable[int]) -> list[Piece]:
    """Return a line for each prefix, with a slot for its value."""
    pieces: list[Piece] = []
    for prefix, slot in zip(prefixes, slots, strict=True):
        pieces += (prefix, slot, "\n")
    return pieces


class Template:
    """Text with slots for the values of several sections."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        """Join all text between two slots."""
        # Text and slots in turns, so that the values can be put into every other place. As bytes: to encode the whole
        # text would take as long as all else, because of the page faults of another large buffer.
        self._parts: list[bytes] = []
        self._slots: list[int] = []
        texts: list[str] = []
        for piece in pieces:
            if isinstance(piece, str):
                texts.append(piece)
            else:
                self._parts += ("".join(texts).encode(), b"")
                self._slots.append(piece)
                texts.clear()
        self._parts.append("".join(texts).encode())

    def fill(self, values: Sequence[float | None]) -> bytes:
        """Return the text with these values in its slots."""
        parts = self._parts.copy()
        parts[1::2] = [repr(values[slot]).encode() for slot in self._slots]
        return b"".join(parts)
