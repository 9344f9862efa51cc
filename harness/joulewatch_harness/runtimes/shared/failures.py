"""Exceptions of a runtime's library as errors of the network under test."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Final

from joulewatch_harness.errors import ConfigError, NetworkError

_OUT_OF_MEMORY: Final = re.compile(
    r"out of memory|can(no|')t allocate|bad_alloc|OutOfMemory|failed to allocate", re.IGNORECASE
)


@contextlib.contextmanager
def as_network_errors(prefix: str, *, last_line: bool = False) -> Iterator[None]:
    """Raise exceptions of the block as errors of one line.

    Args:
        prefix: The beginning of the text.
        last_line: The text of the exception is its last line; what precedes it is a traceback.

    Raises:
        MemoryError: memory ran out.
        NetworkError: all other exceptions; ConfigError and NetworkError pass unchanged.
    """
    try:
        yield
    except (ConfigError, NetworkError, MemoryError):
        raise
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        text = " ".join(" ".join(lines[-1:] if last_line else lines).split())[:300]
        if _OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"):
            raise MemoryError(f"{prefix}: {text}") from error
        raise NetworkError(f"{prefix}: {type(error).__name__}: {text}") from error
