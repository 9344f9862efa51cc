"""YAML to frozen dataclasses, strictly: an unknown key is an error that names file, key and the nearest valid one.

Used for the exporter's configuration, its web configuration and the target files of collectors.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import yaml

from joulewatch_exporter.errors import ConfigError

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """YAML in which a key given twice is an error, not a silent choice of the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else id(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> object:
    """The contents of a YAML file; an empty one is an empty mapping.

    Raises:
        ConfigError: It cannot be read or is no YAML.
    """
    try:
        with path.open("rb") as file:
            data: object = yaml.load(file, Loader=_Loader)  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: is no valid YAML: {' '.join(str(error).split())}") from error
    return {} if data is None else data


def build(cls: type[T], data: object, source: str, where: str) -> T:
    """A frozen dataclass from a mapping, strictly.

    Args:
        cls: The dataclass; its field names are the keys, its annotations the types.
        data: What came from YAML.
        source: The file, for messages.
        where: The key that holds ``data``, for messages.

    Raises:
        ConfigError: Unknown key, missing key, wrong type, or a value that the class refuses.
    """
    assert dataclasses.is_dataclass(cls)
    section = mapping(data, source, where)
    fields = {item.name: item for item in dataclasses.fields(cls) if item.init}
    check_keys(section, tuple(fields), source, where)
    missing = [
        name
        for name, item in fields.items()
        if name not in section and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{source}: {where or 'the file'}: needs {' and '.join(missing)}")
    hints = typing.get_type_hints(cls)
    values = {
        key: convert(value, hints[key], source, f"{where}.{key}" if where else str(key))
        for key, value in section.items()
    }
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{source}: {where + '.' if where else ''}{error}") from error
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def mapping(data: object, source: str, where: str) -> Mapping[str, object]:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{source}: {where or 'the file'}: must be a mapping of keys to values, not {_shown(data)}")
    for key in data:
        if not isinstance(key, str):
            raise ConfigError(f"{source}: {where or 'the file'}: the key {key!r} must be a word")
    return data


def check_keys(section: Mapping[str, object], valid: Sequence[str], source: str, where: str) -> None:
    for key in section:
        if key not in valid:
            name = f"{where}.{key}" if where else key
            raise ConfigError(f"{source}: unknown key {name}; {nearest(key, valid)}")


def nearest(word: str, valid: Sequence[str]) -> str:
    """What a person may have meant by ``word``, as the second half of a message."""
    near = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}?"
    return f"valid here: {', '.join(valid)}" if valid else "there is nothing to set here"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class _Mismatch(Exception):
    """The value is not of this type; another member of a union may fit."""


def convert(value: object, hint: Any, source: str, where: str) -> Any:
    try:
        return _fit(value, hint, source, where)
    except _Mismatch:
        raise ConfigError(f"{source}: {where}: must be {_name(hint)}, not {_shown(value)}") from None


def _fit(value: Any, hint: Any, source: str, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for member in arguments:
            try:
                return _fit(value, member, source, where)
            except _Mismatch:
                continue
        raise _Mismatch
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise _Mismatch
        return value
    if hint is type(None):
        return _require(value, value is None)
    if hint is bool:
        return _require(value, isinstance(value, bool))
    if hint is int:
        return _require(value, isinstance(value, int) and not isinstance(value, bool))
    if hint is float:
        _require(value, isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))
        return float(value)
    if hint is str:
        return _require(value, isinstance(value, str))
    if hint is Path:
        return Path(_require(value, isinstance(value, str) and value != ""))
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        items = [value] if isinstance(value, str) else value
        _require(items, isinstance(items, list))
        return tuple(convert(item, arguments[0], source, f"{where}[{i}]") for i, item in enumerate(items))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        section = mapping(value, source, where)
        return {key: convert(item, arguments[1], source, f"{where}.{key}") for key, item in section.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        _require(value, isinstance(value, Mapping))
        return build(hint, value, source, where)
    return value  # a type of the family's own: its Options check it


def _require(value: Any, condition: bool) -> Any:
    if not condition:
        raise _Mismatch
    return value


_NAMES: Final = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}


def _name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_name(member) for member in arguments)
    if origin is Literal:
        return " or ".join(str(choice) for choice in arguments)
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return f"a list, each item {_name(arguments[0])}"
    if hint is type(None):
        return "null"
    return _NAMES.get(hint, "a mapping of keys to values")
