"""Which axis of an input is the batch.

An axis named batch, batch_size, B, N or similar is the batch, wherever it stands. Without such names it is the first
axis. The option ``batch_axis`` overrides both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.names import refuse_unknown
from joulewatch_harness.runtimes.shared.signature import Input

Axes = Mapping[str, tuple[int, ...]]
"""Name of each input -> its batch axes: one, several with the same symbol, or none."""

_NAMES: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?:[\w.]*[._])?(?:mini|n)?(?:batch|bsz?)(?:_?(?:size|dim|dimension|axis|num|count|n|\d+))*",
        "b",
        "n",
    )
)
"""Names of a batch axis, the surest first; a model's batch axes match only one of these."""
_TIME: Final = re.compile(r"t|l|s|.*(?:seq|time|token|frame|step|len).*", re.IGNORECASE)
NONE: Final = "none"


@dataclass(frozen=True, slots=True)
class BatchAxis:
    """The batch axis of one input, from the option ``batch_axis``."""

    name: str
    axis: int | None
    """None: the input has no batch axis."""


def parse_batch_axes(text: str) -> tuple[BatchAxis, ...]:
    """Convert ``state:1,table:none``.

    Raises:
        ConfigError: the text is not valid.
    """
    batch_axes = []
    for word in text.split(","):
        name, _, axis = word.strip().rpartition(":")
        if not name or not (axis == NONE or axis.isdecimal()):
            raise ConfigError(f"must be INPUT:AXIS,... or INPUT:{NONE}, got {text!r}")
        batch_axes.append(BatchAxis(name, None if axis == NONE else int(axis)))
    return tuple(batch_axes)


def find_batch_axes(model: str, inputs: Sequence[Input], given: Sequence[BatchAxis]) -> Axes:
    """Return the batch axes of all inputs.

    Args:
        model: Name of the model in errors.
        inputs: Its inputs.
        given: From the option ``batch_axis``.

    Raises:
        ConfigError: an input or axis of ``given`` does not exist.
    """
    chosen = {item.name: item.axis for item in given}
    refuse_unknown(f"{model}: option batch_axis", "input", chosen, (item.name for item in inputs))
    for item in inputs:
        axis = chosen.get(item.name)
        if axis is not None and axis >= len(item.shape):
            raise ConfigError(f"{model}: option batch_axis: {item.text()} has no axis {axis}")
    symbols = _symbols(inputs, chosen)
    axes: dict[str, tuple[int, ...]] = {}
    for item in inputs:
        if item.name in chosen:
            axis = chosen[item.name]
            axes[item.name] = () if axis is None else (axis,)
        elif symbols:
            named = tuple(number for number, size in enumerate(item.shape) if size in symbols)
            axes[item.name] = named or ((0,) if item.shape and item.shape[0] is None else ())
    if not symbols:
        axes |= _first_axes([item for item in inputs if item.name not in chosen and item.shape], bool(chosen))
    return {item.name: axes.get(item.name, ()) for item in inputs}


def _symbols(inputs: Sequence[Input], chosen: Mapping[str, int | None]) -> set[str]:
    """Return the names of the batch axis: of the chosen axes, and those that match the surest pattern."""
    used = {size for item in inputs for size in item.shape if isinstance(size, str)}
    named = next(
        (matching for pattern in _NAMES if (matching := {name for name in used if pattern.fullmatch(name)})), set()
    )
    for item in inputs:
        if item.name in chosen:
            named -= set(item.shape)
    return named | {
        size
        for item in inputs
        for axis, size in enumerate(item.shape)
        if isinstance(size, str) and axis == chosen.get(item.name, -1)
    }


def _first_axes(inputs: Sequence[Input], chosen: bool) -> dict[str, tuple[int, ...]]:
    """Return the first axes of inputs without batch names: the open ones, or if all are fixed, those of one size."""
    firsts = {item.name: item.shape[0] for item in inputs}
    if chosen or not all(isinstance(size, int) for size in firsts.values()):
        # A symbol of a first axis is the batch on other axes too.
        symbols = {size for size in firsts.values() if isinstance(size, str)}
        return {
            item.name: tuple(n for n, size in enumerate(item.shape) if size in symbols or (not n and size is None))
            for item in inputs
        }
    size = next(iter(firsts.values()), None)
    return {name: (0,) if firsts[name] == size else () for name in firsts}


def describe_axes(inputs: Sequence[Input], axes: Axes) -> list[str]:
    """Return the batch axes that are not simply the first axis: ``x:1``, ``table:none``."""
    words = []
    for item in inputs:
        numbers = axes.get(item.name, ())
        if item.shape and (numbers != (0,) or is_time(item.shape[0])):
            words.append(
                f"{item.name}:{','.join(map(str, numbers)) or NONE}" + f"({item.shape[0]})" * (numbers == (0,))
            )
    return words


def is_time(size: int | str | None) -> bool:
    """Return whether the name of a dimension means time or sequence."""
    return isinstance(size, str) and _TIME.fullmatch(size) is not None


def doubtful(inputs: Sequence[Input], axes: Axes) -> list[Input]:
    """Return the inputs whose first axis is the batch only because no axis is named so, but is named after time."""
    return [item for item in inputs if axes.get(item.name) == (0,) and is_time(item.shape[0])]
