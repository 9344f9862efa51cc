"""``joulewatch.measured``: every call of a function is a window."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from joulewatch_harness.metering.decorator import measured
from joulewatch_harness.metering.meter import Meter
from joulewatch_harness.storage.journal import read_run


def names(meter: Meter) -> list[tuple[str, int, tuple[str, ...]]]:
    return [(one.configuration, one.inferences, one.flags) for one in read_run(meter.folder).windows]


def test_a_function(meter: Meter) -> None:
    @measured("add", inferences=3, meter=meter)
    def add(a: int, b: int = 2) -> int:
        """Add."""
        return a + b

    assert [add(1), add(1, b=4)] == [3, 5]
    assert (add.__name__, add.__doc__) == ("add", "Add.")
    assert names(meter) == [("add", 3, ()), ("add", 3, ())]


def test_without_arguments_the_name_is_the_functions(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joulewatch_harness.metering.decorator.measure", meter.measure)

    @measured
    def one() -> None: ...

    @measured()
    def two() -> None: ...

    one()
    two()
    qualified = f"{test_without_arguments_the_name_is_the_functions.__name__}.<locals>"
    assert [name for name, _, _ in names(meter)] == [f"{qualified}.one", f"{qualified}.two"]


def test_an_exception_passes(meter: Meter) -> None:
    @measured("bad", meter=meter)
    def bad() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        bad()
    assert names(meter) == [("bad", 1, ("interrupted",))]


def test_a_generator(meter: Meter) -> None:
    """The window begins with the first item, and ends with the last."""

    @measured("items", meter=meter)
    def items() -> Iterator[int]:
        got = yield 1
        yield got

    assert inspect.isgeneratorfunction(items)
    iterator = items()
    assert names(meter) == []
    assert next(iterator) == 1
    assert names(meter) == []
    assert iterator.send(5) == 5  # type: ignore[attr-defined]
    assert list(iterator) == []
    assert names(meter) == [("items", 1, ())]


def test_a_generator_that_is_not_read_to_its_end(meter: Meter) -> None:
    @measured("items", meter=meter)
    def items() -> Iterator[int]:
        yield from range(5)

    for _ in (iterator := items()):
        break
    iterator.close()  # type: ignore[attr-defined]
    assert names(meter) == [("items", 1, ("interrupted",))]


def test_a_coroutine_function(meter: Meter) -> None:
    @measured("answer", meter=meter)
    async def answer() -> int:
        await asyncio.sleep(0)
        return 42

    assert inspect.iscoroutinefunction(answer)
    assert asyncio.run(answer()) == 42
    assert names(meter) == [("answer", 1, ())]


def test_an_asynchronous_generator(meter: Meter) -> None:
    seen: list[object] = []

    @measured("tokens", inferences=2, meter=meter)
    async def tokens() -> AsyncIterator[int]:
        try:
            seen.append((yield 1))
        except KeyError as error:
            seen.append(error.args[0])
        yield 2

    async def read() -> list[int]:
        plain = [token async for token in tokens()]
        iterator = tokens()
        first = await anext(iterator)
        second = await iterator.athrow(KeyError("thrown"))  # type: ignore[attr-defined]
        await iterator.aclose()  # type: ignore[attr-defined]
        return [*plain, first, second]

    assert inspect.isasyncgenfunction(tokens)
    assert asyncio.run(read()) == [1, 2, 1, 2]
    assert seen == [None, "thrown"]
    assert names(meter) == [("tokens", 2, ()), ("tokens", 2, ("interrupted",))]


class Model:
    def __call__(self) -> int:
        return 1


def test_an_object_that_can_be_called_has_the_name_of_its_class(meter: Meter) -> None:
    assert measured("", meter=meter)(Model())() == 1
    assert names(meter) == [("Model", 1, ())]


@pytest.mark.parametrize(
    ("target", "text"),
    [(Model, "the class Model"), (5, "'int'"), (None, "'NoneType'"), (classmethod(len), "'classmethod'")],
    ids=["class", "number", "none", "classmethod"],
)
def test_only_functions_are_measured(target: Any, text: str) -> None:
    message = f"joulewatch.measured: must be applied to a function or a method, not to {text}"
    for decorate in (measured, measured("name")):
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            decorate(target)
