"""Reason codes and texts of errors that exclude a configuration or a batch size from a run."""

from __future__ import annotations

from typing import Final

from joulewatch_harness.errors import ConfigError, JoulewatchError, NetworkError, UnsupportedBatchError

LONGEST_TEXT: Final = 300

_REASONS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (UnsupportedBatchError, "unsupported_batch"),
    (MemoryError, "out_of_memory"),
    (NetworkError, "network_error"),
    (ConfigError, "bad_configuration"),
)
"""Subclasses come before their base classes."""


def reason_code(error: Exception) -> str:
    """Return the reason code of the note that reports ``error``."""
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), "runtime_error")


def describe(error: Exception) -> str:
    """Return the error's text on one line; other than joulewatch's own errors it begins with the class name."""
    if isinstance(error, JoulewatchError):
        return str(error)
    text = " ".join(str(error).split())[:LONGEST_TEXT]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
