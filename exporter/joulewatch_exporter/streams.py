"""The standard streams of both commands: closed, full and ASCII-only ones end in one line on stderr, not a traceback.

A closed descriptor is opened first: otherwise the first file that the command opens would get its number, and what a
library prints would end up in that file.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from collections.abc import Callable
from typing import Final

EXIT_FAILED: Final = 1
IN_ASCII: Final = {
    "±": "+/-", "×": "x", "−": "-", "–": "-", "—": "-", "…": "...", "µ": "u", "μ": "u", "Δ": "d", "²": "^2",
    "°": "deg ", "≤": "<=", "≥": ">=", "≈": "~", "→": "->", "·": "*", "√": "sqrt ", "σ": "sigma", "─": "-", "│": "|",
}  # fmt: skip
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
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
        return broken_pipe
    except OSError as error:
        # Of a file that the command did not expect to fail, or of stdout, which has no file name.
        _discard_stdout()
        place = error.filename if isinstance(error.filename, str) else "the output cannot be written"
        with contextlib.suppress(OSError):
            print(f"{program}: {place}: {error.strerror or error}", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED


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
