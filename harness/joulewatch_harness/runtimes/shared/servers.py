"""What the runtimes of models behind servers share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from joulewatch_harness.errors import ConfigError, NetworkError


@contextlib.contextmanager
def closed_on_error(close: Callable[[], None]) -> Iterator[None]:
    """A server that cannot be used leaves no connection behind, also where a person loses patience with it."""
    try:
        yield
    except BaseException:
        close()
        raise


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """While a server is asked what it is: one that does not answer rightly is a wrong URL, so a wrong plan.

    Raises:
        ConfigError: instead of any ``NetworkError``.
    """
    try:
        yield
    except NetworkError as error:
        raise ConfigError(str(error)) from error
