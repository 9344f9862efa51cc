"""Makes the description of an emulated device of a scenario's mapping: the fields of its dataclass are the keys.

So a family of devices is described once, by its dataclass, and its keys, defaults and limits in a scenario cannot
differ from it.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from joulewatch_exporter.emulator.builder import SignalBuilder
from joulewatch_exporter.emulator.faults import Fault
from joulewatch_exporter.emulator.signals import Signal
from joulewatch_exporter.emulator.table import Table, hint, number
from joulewatch_exporter.errors import ConfigError

T = TypeVar("T")


def build(cls: type[T], table: Table, signals: SignalBuilder, fault_kinds: Sequence[str]) -> T:
    """Make a device's description.

    Args:
        cls: A dataclass. Its fields are texts, numbers, flags, `Literal` choices, `Signal`, tuples and mappings of
            these, tuples of `Fault`, or dataclasses of such fields.
        table: The scenario's mapping; it must hold nothing else.
        signals: Knows the signals that have names.
        fault_kinds: What can go wrong with the device.

    Raises:
        ConfigError: A key is unknown or missing, or a value is not what the field or the class asks for.
    """
    values: dict[str, Any] = {}
    hints = _hints(cls)
    assert dataclasses.is_dataclass(cls)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        is_needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if not table.has(field.name) and not is_needed:
            continue
        annotation = hints[field.name]
        if annotation == tuple[Fault, ...]:
            values[field.name] = table.faults(*fault_kinds)
        else:
            where = f"{table.where}.{field.name}"
            values[field.name] = _fit(where, table.take(field.name), annotation, signals, fault_kinds)
    table.done()
    try:
        return cls(**values)
    except (ValueError, ConfigError) as error:  # the class begins its text with the key
        raise ConfigError(f"{table.where}.{error}") from error


def _hints(cls: type[Any]) -> dict[str, Any]:
    # The modules of devices import `Fault` for the type checker only.
    return typing.get_type_hints(cls, localns={"Fault": Fault, "Signal": Signal, "Mapping": Mapping})


def _fit(where: str, value: Any, annotation: Any, signals: SignalBuilder, fault_kinds: Sequence[str]) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Signal:
        return signals.build(where, value)
    if annotation is str:
        if not isinstance(value, str):
            raise ConfigError(f"{where}: {value!r} is not text (put it in quotes)")
        return value
    if annotation is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{where}: {value!r} is neither true nor false")
        return value
    if annotation is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{where}: {value!r} is no whole number")
        return value
    if annotation is float:
        return number(where, value, -math.inf, math.inf)
    if origin is Literal:
        if value not in arguments:
            choices = [str(choice) for choice in arguments]
            raise ConfigError(f"{where}: {value!r} is none of {', '.join(choices)}{hint(str(value), choices)}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (member,) = (member for member in arguments if member is not type(None))
        return _fit(where, value, member, signals, fault_kinds)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: must be a list")
        if arguments[1:] != (...,) and len(value) != len(arguments):
            raise ConfigError(f"{where}: must be a list of {len(arguments)}")
        kinds = [arguments[0]] * len(value) if arguments[1:] == (...,) else arguments
        return tuple(
            _fit(f"{where}[{i}]", item, kind, signals, fault_kinds)
            for i, (item, kind) in enumerate(zip(value, kinds, strict=True))
        )
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: must be a mapping of names to values")
        return {str(key): _fit(f"{where}.{key}", v, arguments[1], signals, fault_kinds) for key, v in value.items()}
    assert dataclasses.is_dataclass(annotation) and isinstance(annotation, type), annotation
    return build(annotation, Table(where, value), signals, fault_kinds)
