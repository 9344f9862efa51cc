"""Context managers for the runtimes of models behind servers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from joulewatch_harness.errors import ConfigError, NetworkError


@contextlib.contextmanager
def closed_on_error(close: Callable[[], None]) -> Iterator[None]:
    """Close the connections if the block fails or is interrupted."""
    try:
        yield
    except BaseException:
        close()
        raise


@contextlib.contextmanager
def as_config_errors() -> Iterator[None]:
    """Raise a NetworkError as a ConfigError: a server that does not answer correctly at the start is a wrong URL.

    Raises:
        ConfigError: instead of any ``NetworkError``.
    """
    try:
        yield
    except NetworkError as error:
        raise ConfigError(str(error)) from error
