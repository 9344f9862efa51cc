"""The base of the options of all runtimes, and their description for ``joulewatch runtimes``."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from joulewatch_harness import binder
from joulewatch_harness.errors import NetworkError

ANY_PRECISION: typing.Final = "any_precision"


@dataclass(frozen=True, slots=True)
class Description:
    """One option as a user reads it."""

    default: str | None
    """None: the option has no default, or one that depends on what ``meaning`` names."""
    values: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """Options of a runtime: ``--option KEY=VALUE``, or ``options`` of a configuration in a plan.

    The docstring of a field is what ``joulewatch runtimes`` shows; it must state what an omitted option means where
    the field's default does not.
    """

    RUNTIME: ClassVar[str] = ""
    """Name of the runtime, for error messages."""

    any_precision: bool = False
    """Accept a model whose precision differs from the requested one; results report the actual precision."""

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """Return the names of the options."""
        return binder.keys(cls)

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> Self:
        """Convert the options.

        Raises:
            ConfigError: an unknown option, a bad value, or options that contradict each other.
        """
        return binder.bind_options(cls, options, cls.RUNTIME)

    def check_same_precision(self, name: str, batch: int, precision: str, before: str) -> None:
        """Check that a network computes in the same precision at every batch size.

        Raises:
            NetworkError: it does not, and the option ``any_precision`` is not set.
        """
        if precision != before and not self.any_precision:
            raise NetworkError(
                f"{name}: computes in {precision or 'an unknown precision'} at batch {batch}, but in {before} at other "
                f"batch sizes; set {ANY_PRECISION}=true to accept that"
            )

    @classmethod
    def descriptions(cls) -> dict[str, Description]:
        """Return the descriptions of the options; a runtime's own options precede those that it shares."""
        hints = typing.get_type_hints(cls, include_extras=True)
        meanings: dict[str, str] = {}
        for base in reversed(cls.__mro__):
            meanings |= _field_docstrings(base)
        defaults = {item.name: item.default for item in dataclasses.fields(cls) if item.init}
        own_first = sorted(defaults, key=lambda name: name not in cls.__annotations__)
        return {
            name: Description(_text(defaults[name]), _values(hints[name]), meanings.get(name, "")) for name in own_first
        }


def _field_docstrings(cls: type) -> Iterator[tuple[str, str]]:
    """Yield the fields of a dataclass with their docstrings, read from the source because Python does not keep them."""
    if not dataclasses.is_dataclass(cls):
        return
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    body = typing.cast(ast.ClassDef, tree).body
    for statement, following in itertools.pairwise(body):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, " ".join(text.replace("``", "").split())


def _text(default: Any) -> str | None:
    if default in (None, "", ()) or default is dataclasses.MISSING:
        return None
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def _values(hint: Any) -> str:
    """Return the valid values of an option in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        for constraint in arguments[1:]:
            if isinstance(constraint, binder.Limits):
                return f"{_values(arguments[0])} {constraint}"
            if isinstance(constraint, binder.Choice):
                return f"{', '.join(constraint.values[:-1])} or {constraint.values[-1]}"
        return _values(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return _values(arguments[0])
    if origin is tuple and arguments[0] in _WORDS:
        return f"{_WORDS[arguments[0]]}, or several separated by commas"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "NAME=VALUE, or several separated by commas"
    return _WORDS.get(hint, "text")


_WORDS: typing.Final[Mapping[Any, str]] = {bool: "true or false", int: "an integer", float: "a number", Path: "a path"}
