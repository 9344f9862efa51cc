"""Which values an input without given arrays gets.

Values that are not valid, or that skip work, would change what is measured: indices are drawn over the whole table,
masks are ones, lengths are those of the axis that they count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from joulewatch_harness.runtimes.shared.batch_axes import Axes, is_time
from joulewatch_harness.runtimes.shared.signature import Input

if TYPE_CHECKING:
    from joulewatch_harness.runtimes.shared.uses import Use

_MASK: Final = re.compile(r"masks?(?![a-z])", re.IGNORECASE)
_LENGTH: Final = re.compile(r"(?:(?P<of>.*?)[_.]?)(?:seq_?|sequence_?)?(?:lens?|lengths?)(?:_?\d+)?", re.IGNORECASE)
_LIMIT: Final = re.compile(r"(?:^|[_.])(?:max|min|past|total|target)(?:[_.]|$)", re.IGNORECASE)
"""Lengths that are settings, not the size of an axis."""
_POSITION: Final = re.compile(r"position|(?:^|[_.])pos(?:[_.]|$)", re.IGNORECASE)

_LONGEST: Final = 400

Kind = Literal["normal", "bytes", "indices", "ones", "length", "positions", "guess"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How the values of an input are made."""

    kind: Kind
    low: NDArray[np.int64] | None = None
    high: NDArray[np.int64] | None = None
    """Limit of ``indices`` and ``positions``: one more than the largest."""
    counted: tuple[str, int] | None = None
    """Input and axis whose size is the ``length``."""

    def text(self) -> str:
        """Return the values in words."""
        if self.kind == "indices" and self.low is not None and self.high is not None:
            return f"{int(self.low.min())}..{int(self.high.max()) - 1}"
        if self.kind == "length" and self.counted is not None:
            return f"size of {self.counted[0]}.{self.counted[1]}"
        return {"ones": "1", "positions": "0,1,2,...", "guess": "0 or 1", "bytes": "any"}.get(self.kind, self.kind)

    def array(
        self, rng: np.random.Generator, item: Input, axes: Sequence[int], shapes: Mapping[str, tuple[int, ...]]
    ) -> NDArray[np.generic]:
        """Return the values.

        Args:
            rng: Source of random values.
            item: The input.
            axes: Its batch axes.
            shapes: The shapes of all inputs at this batch size.
        """
        kind, shape = np.dtype(item.dtype), shapes[item.name]
        if self.kind == "normal":
            return rng.standard_normal(shape).astype(kind)
        if self.kind == "bytes":
            limits = np.iinfo(kind)
            return rng.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)
        if self.kind == "indices" and self.low is not None and self.high is not None:
            return np.asarray(rng.integers(*_bounds(self.low, self.high, shape), shape)).astype(kind)
        if self.kind == "length" and self.counted is not None:
            size = shapes[self.counted[0]][self.counted[1]]
            return np.full(shape, size if self.high is None else min(size, int(self.high.min()) - 1), kind)
        if self.kind == "positions":
            return _positions(shape, axes, self.high).astype(kind)
        if self.kind == "ones":
            return np.ones(shape, kind)
        return np.asarray(rng.integers(0, 2, shape)).astype(kind)


def _bounds(low: NDArray[np.int64], high: NDArray[np.int64], shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Return the bounds of indices, which may differ along the last axes of the shape."""
    try:
        if np.broadcast_shapes(low.shape, high.shape, shape) == shape:
            return low, high
    except ValueError:
        pass
    return low.max(), high.min()


def _positions(shape: tuple[int, ...], axes: Sequence[int], high: NDArray[np.int64] | None) -> NDArray[np.generic]:
    """Return 0, 1, 2, ... along the last axis that is not the batch."""
    counted = next((axis for axis in reversed(range(len(shape))) if axis not in axes), None)
    if counted is None:
        return np.zeros(shape, np.int64)
    numbers = np.arange(shape[counted])
    if high is not None:
        numbers %= int(high.min())
    return np.broadcast_to(numbers.reshape([-1 if axis == counted else 1 for axis in range(len(shape))]), shape)


def find_rules(inputs: Sequence[Input], axes: Axes, uses: Mapping[str, Use]) -> dict[str, Rule]:
    """Return the rule of each input.

    Args:
        inputs: The inputs of the model.
        axes: Their batch axes.
        uses: From ``find_uses``; empty if the graph cannot be read.
    """
    return {item.name: _rule(item, inputs, axes, uses.get(item.name)) for item in inputs}


def _rule(item: Input, inputs: Sequence[Input], axes: Axes, use: Use | None) -> Rule:
    if _MASK.search(item.name):
        return Rule(kind="ones")
    kind = np.dtype(item.dtype)
    if kind.kind == "f":
        return Rule(kind="normal")
    high = use.high if use is not None else None
    counted = _counted(item, inputs, axes)
    if counted is not None:
        return Rule(kind="length", counted=counted, high=high)
    if _POSITION.search(item.name) and len(item.shape) > len(axes[item.name]):
        return Rule(kind="positions", high=high)
    if use is not None and use.low is not None and high is not None and np.all(use.low < high):
        limit = np.iinfo(kind).max if kind.kind in "iu" else 1
        return Rule(kind="indices", low=use.low, high=np.minimum(high, int(limit) + 1) if limit < high.max() else high)
    if use is not None and use.is_mask and not all(size == 1 for size in item.shape):
        return Rule(kind="ones")
    if kind.kind in "iu" and kind.itemsize == 1:
        return Rule(kind="bytes")
    return Rule(kind="guess")


def _counted(item: Input, inputs: Sequence[Input], axes: Axes) -> tuple[str, int] | None:
    """Return the input and its axis that a length counts; None: the input is not a length."""
    match = _LENGTH.fullmatch(item.name)
    own = [size for axis, size in enumerate(item.shape) if axis not in axes[item.name]]
    if match is None or _LIMIT.search(item.name) or any(size != 1 for size in own):
        return None
    others = [other for other in inputs if _open_first(other, axes) and _LENGTH.fullmatch(other.name) is None]
    of = match["of"].lower()
    named = [other for other in others if of and (other.name.lower().startswith(of) or of in other.name.lower())]
    for other in (*named, *others):
        if not _MASK.search(other.name):
            return other.name, _open_first(other, axes)[0]
    return None


def _open_first(item: Input, axes: Axes) -> list[int]:
    """Return the axes of an input except the batch: those named as time first, then the open ones."""
    own = [axis for axis in range(len(item.shape)) if axis not in axes[item.name]]
    return sorted(own, key=lambda axis: (not is_time(item.shape[axis]), isinstance(item.shape[axis], int)))


def is_setting(item: Input, axes: Axes, rule: Rule) -> bool:
    """Return whether an input is a single number that only the user can know, such as a sample rate."""
    if not item.shape:
        return rule.kind in ("normal", "guess", "bytes")
    return rule.kind == "guess" and not axes[item.name] and all(size == 1 for size in item.shape)


def describe_rules(rules: Mapping[str, Rule]) -> str:
    """Return the values of the inputs that are not simply normal: ``ids 0..29999, mask 1``."""
    return shortened([f"{name} {rule.text()}" for name, rule in rules.items() if rule.kind != "normal"])


def made_up(rules: Mapping[str, Rule]) -> str:
    """Return which values can change the work and were not inferred; empty if there are none."""
    names = shortened([name for name, rule in rules.items() if rule.kind == "guess"])
    return f"{names}: 0 or 1, because the model does not show which values are valid" if names else ""


def shortened(words: Sequence[str], separator: str = ", ") -> str:
    """Return words in one text, short enough for the details of a run."""
    text = separator.join(words)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
