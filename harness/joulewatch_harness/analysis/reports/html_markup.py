"""HTML elements as text. All text and every attribute is escaped, so that no name from a run can become markup."""

from __future__ import annotations

import html
import re
from typing import Final

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
"""Characters that HTML forbids, and those that change the direction of the text around them."""
_CODE: Final = re.compile(r"`([^`]+)`")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """Return a text as HTML; markup stays as it is."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(_CONTROL.sub("\ufffd", str(text))))


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """Return an element.

    Args:
        name: Of the element.
        children: Markup, or texts, which are escaped; None is skipped.
        attributes: ``class_`` is ``class``, ``stroke_width`` is ``stroke-width``. None is omitted; True has no value.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is not None:
            key = key.rstrip("_").replace("_", "-")
            parts.append(key if value is True else f'{key}="{escape(value)}"')
    return Markup(f"<{' '.join(parts)}>{join(*children)}</{name}>")


def join(*children: object) -> Markup:
    """Return several children as one."""
    return Markup("".join(escape(child) for child in children if child is not None))


def with_code(text: str) -> Markup:
    """Return a text in which backticks enclose code."""
    return Markup(_CODE.sub(r"<code>\1</code>", escape(text)))


def with_breaks(text: str) -> Markup:
    """Return a name that may break after its slashes."""
    return Markup(escape(text).replace("/", "/<wbr>"))
