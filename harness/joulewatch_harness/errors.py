"""Errors of the harness and the analysis, with their exit codes."""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path
from typing import ClassVar, Final


class JoulewatchError(Exception):
    """Base class; the text contains the file, key, URL or sensor, and the fix."""

    exit_code: ClassVar[int] = 1


class ConfigError(JoulewatchError):
    """A bad argument, plan, model file or output folder."""

    exit_code = 2


class QueryError(JoulewatchError):
    """A query of samples failed: wrong URL, unreachable, not a Prometheus, unknown run."""

    exit_code = 2


class QueryTooLargeError(QueryError):
    """The server refuses to execute the query (too many samples, too long a range); query a shorter span."""

    status: ClassVar[int] = 422


class QueryRangeError(QueryTooLargeError):
    """The server refuses ranges of this length."""


class QueryUnavailableError(QueryError):
    """No answer, or 429 or 5xx until the end of the retries; a later attempt may succeed."""


class IdentityError(QueryError):
    """Samples of different exporters would be merged; the text names the label that distinguishes them."""


class RecordError(JoulewatchError):
    """A journal or recording cannot be read or written."""

    exit_code = 2


class StorageError(RecordError):
    """A file of a run cannot be written: the disk is full or broken."""

    exit_code = 1


class NetworkError(JoulewatchError):
    """The network under test failed to load, to prepare a batch size or to run."""


class UnsupportedBatchError(NetworkError):
    """The network cannot run this batch size; the sweep continues without it."""


class WrongOutputsError(NetworkError):
    """The network computes wrong results, so its energy would be that of another network."""


class ExporterUnreachableError(JoulewatchError):
    """An exporter of the plan does not answer, or is not a joulewatch exporter."""

    exit_code = 2


class PredictionRefusedError(JoulewatchError):
    """No measurement supports a prediction; the text names the limit and the run that would allow it."""


class DeliveryError(JoulewatchError):
    """Annotations could not be delivered; they stay in the journal."""


class FindingsError(JoulewatchError):
    """The audit of a measurement has findings; the text contains them."""

    exit_code = 3


class CoverageError(JoulewatchError):
    """The samples do not cover the window, so that there is no valid result.

    ``reason`` is a stable code, the same as the audit's.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


LONGEST_TEXT: Final = 300
LONGEST_VALUE: Final = 60
"""Longest value of a file or a user in an error."""


def one_line(text: str) -> str:
    """Return text of a server or a file for one line of a terminal: without control characters, and cut."""
    words = " ".join(text[: 4 * LONGEST_TEXT].split())
    printable = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in words)
    return printable[:LONGEST_TEXT]


def shown(value: object) -> str:
    """Return a value of a user or a file for an error: without control characters, and cut."""
    return cut(repr(value), LONGEST_VALUE)


def cut(text: str, longest: int) -> str:
    """Return the beginning of a text, and ``...`` if it is longer."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


_INSTALLED: Final = tuple(
    f"{folder}{os.sep}"
    for folder in (Path(__file__).parent, *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))
)


def describe(error: BaseException) -> str:
    """Return an exception as one line: its type, its text, and the last line of the user's own code."""
    if isinstance(error, JoulewatchError):
        return str(error)
    text = " ".join(located(error).split())[:LONGEST_TEXT]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def located(error: BaseException) -> str:
    """Return the text of an exception, with ``(FILE:LINE)`` where code passed that is not of an installed package."""
    if isinstance(error, SyntaxError):
        text, places = error.msg, [(error.filename or "", error.lineno)]
    else:
        text = str(error)
        places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    for file, line in reversed(places):
        if file and not file.startswith((*_INSTALLED, "<")):
            return f"{text} ({file.removeprefix(f'{Path.cwd()}{os.sep}')}:{line})"
    return text
