"""The decorator ``measured``: every call of a function is a window."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from joulewatch_harness.metering.default import measure

if TYPE_CHECKING:
    from joulewatch_harness.metering.meter import Meter
    from joulewatch_harness.metering.window import Measurement

F = TypeVar("F", bound=Callable[..., Any])


@overload
def measured(name: F, /) -> F: ...


@overload
def measured(
    name: str = "", /, *, inferences: int = 1, sync: str = "", meter: Meter | None = None
) -> Callable[[F], F]: ...


def measured(name: Any = "", /, *, inferences: int = 1, sync: str = "", meter: Meter | None = None) -> Any:
    """Measure every call of a function; usable with and without arguments.

    The window of a coroutine function ends when the coroutine has ended. That of a generator function, also an
    asynchronous one, begins with the first item and ends with the last: it contains the consumer's work in between.

    Args:
        name: Name of the windows; default: the function's qualified name.
        inferences: Inferences in each call.
        sync: As for ``measure``.
        meter: The meter; default: that of ``measure``.

    Raises:
        TypeError: It is applied to a class or to something that cannot be called.
    """
    if not isinstance(name, str):
        return _wrap(name, "", inferences, sync, meter)

    def decorate(function: F) -> F:
        return _wrap(function, name, inferences, sync, meter)

    return decorate


def _wrap(function: F, name: str, inferences: int, sync: str, meter: Meter | None) -> F:
    if isinstance(function, type) or not callable(function):
        kind = f"the class {function.__qualname__}" if isinstance(function, type) else f"{type(function).__name__!r}"
        raise TypeError(f"joulewatch.measured: must be applied to a function or a method, not to {kind}")
    name = name or getattr(function, "__qualname__", type(function).__qualname__)

    def window() -> Measurement:
        return (measure if meter is None else meter.measure)(name, inferences, sync=sync)

    wrapped: Any
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            items = function(*args, **kwargs)
            with window():
                async with contextlib.aclosing(items):
                    step = items.asend(None)
                    while True:
                        try:
                            item = await step
                        except StopAsyncIteration:
                            return
                        try:
                            sent = yield item
                        except Exception as error:
                            step = items.athrow(error)
                        else:
                            step = items.asend(sent)

    elif inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            with window():
                return await function(*args, **kwargs)

    elif inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with window():
                return (yield from function(*args, **kwargs))

    else:

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with window():
                return function(*args, **kwargs)

    return wrapped  # type: ignore[no-any-return]
