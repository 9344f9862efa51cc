"""The standard streams of both commands: closed, full and ASCII-only ones end in one line on stderr, not a traceback.

Names in a journal, a recording or a label may come from other machines. On stdout their control characters are escaped,
so that they cannot move the cursor or hide a line. (stderr has the progress bar, which moves the cursor itself.)

A closed descriptor is opened first: otherwise the first file that the command opens would get its number, and what a
library prints would end up in that file.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final, TextIO, cast

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
IN_ASCII: Final = {
    "±": "+/-", "×": "x", "−": "-", "–": "-", "—": "-", "…": "...", "µ": "u", "μ": "u", "Δ": "d", "²": "^2",
    "°": "deg ", "≤": "<=", "≥": ">=", "≈": "~", "→": "->", "·": "*", "√": "sqrt ", "σ": "sigma", "─": "-", "│": "|",
}  # fmt: skip
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")
"""Also those that change the direction of the text."""
_ERRORS: Final = "joulewatch.ascii"
_STDOUT: Final = 1


def guard(program: str, command: Callable[[], int], *, broken_pipe: int = EXIT_FAILED) -> int:
    """Run a command; return its exit code.

    Args:
        program: Its name, for the message.
        command: Returns the exit code, or raises SystemExit as argparse does.
        broken_pipe: The exit code if the reader of stdout is gone, as in ``joulewatch runs | head``.
    """
    _open_closed()
    codecs.register_error(_ERRORS, _replaced)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ERRORS)
    stdout = sys.stdout
    sys.stdout = cast(TextIO, _Escaped(stdout))
    try:
        try:
            return command()
        finally:
            sys.stdout = stdout
            stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
        return broken_pipe
    except OSError as error:
        # Of a file that the command did not expect to fail, or of stdout, which has no file name.
        _discard_stdout()
        place = error.filename if isinstance(error.filename, str) else "the output cannot be written"
        with contextlib.suppress(OSError):
            print(f"{program}: {place}: {error.strerror or error}", file=sys.stderr)  # noqa: T201
        # A name that is too long is a wrong argument; pathlib does not treat it as a file that is missing.
        return EXIT_USAGE if error.errno == errno.ENAMETOOLONG else EXIT_FAILED


class _Escaped:
    """A stream whose ``write`` escapes control characters, in the form that JSON has, too."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(_CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _open_closed() -> None:
    # Writing to a descriptor that is open for reading only fails as writing to a closed one does.
    for descriptor, mode in ((0, os.O_RDONLY), (_STDOUT, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
    if sys.stdout is None:
        sys.stdout = open(_STDOUT, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _discard_stdout() -> None:
    """Make what is still buffered disappear, instead of failing once more when the process ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(IN_ASCII.get(character, ascii(character)[1:-1]) for character in text), error.end
