"""Bind YAML to frozen dataclasses, strictly: an unknown key is an error that names file, key and the nearest valid key.

Serves the configuration, the web configuration, target files and the emulator's scenarios. Why not a library: msgspec
and cattrs were tried (0.22, 26.2). msgspec ignores unknown keys of a dataclass and accepts NaN; cattrs converts "5"
to 5.0 without a word. Neither suggests the nearest key, and each adds 25 to 45 ms to every start of an exporter that is
to depend on two packages only.
"""

from __future__ import annotations

import dataclasses
import datetime
import errno
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar

from joulewatch_exporter.arguments import suggestion
from joulewatch_exporter.errors import ConfigError
from joulewatch_exporter.text import printable
from joulewatch_exporter.yaml_limits import check_limits

T = TypeVar("T")

Converter: TypeAlias = Callable[[Any, str, str], Any]
"""Takes value, source and key; returns what a field gets, or raises `ConfigError`."""

Converters: TypeAlias = Mapping[Any, Converter]
"""Annotation -> converter, for types that are not built in, such as a signal of the emulator."""

MOST_BYTES: Final = 16 << 20
"""Longest configuration file: the targets of ten thousand BMCs have 1 MiB. A device such as /dev/zero has no end."""

_LONGEST_ERROR: Final = 1000
"""Checks of classes may quote a value of any length."""
_NO_CONVERTERS: Final[Converters] = {}


@cache
def _loader() -> type[Any]:
    import yaml  # not at the top: starting without a configuration file must not wait for it

    class Loader(yaml.SafeLoader):
        """Rejects a key that is given twice; YAML itself takes the last one silently."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[object] = set()
            for key_node, _ in node.value:
                key = key_node.value if isinstance(key_node, yaml.ScalarNode) else id(key_node)
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {_shown(key)} is given twice", key_node.start_mark
                    )
                seen.add(key)
            return super().construct_mapping(node, deep=deep)

        def get_single_node(self) -> yaml.Node | None:
            node = super().get_single_node()
            check_limits(node)
            return node

    return Loader


def read_yaml(path: Path) -> object:
    """Return the contents of a YAML file; an empty file is an empty mapping.

    Raises:
        ConfigError: The file cannot be read or is not valid YAML.
    """
    return parse_yaml(read_file(path), str(path))


def read_file(path: Path) -> bytes:
    """Return the contents of a configuration file.

    Raises:
        ConfigError: The file cannot be read, or is longer than `MOST_BYTES`.
    """
    try:
        return read_bytes(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the contents of a file.

    Raises:
        OSError: The file cannot be read, or is longer than ``most`` bytes.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"longer than {most >> 20} MiB")
    return data


def parse_yaml(text: str | bytes, source: str) -> object:
    """Return the contents of a YAML text; an empty text is an empty mapping.

    Raises:
        ConfigError: The text is not valid YAML, or a key is given twice.
    """
    import yaml

    try:
        data: object = yaml.load(text, Loader=_loader())  # a SafeLoader
    except RecursionError as error:
        raise ConfigError(f"{source}: is not valid YAML: nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        text = _cut(" ".join(str(error).split()), _LONGEST_ERROR)
        raise ConfigError(f"{source}: is not valid YAML: {text}") from error
    return {} if data is None else data


def build(cls: type[T], data: object, source: str, where: str = "", converters: Converters = _NO_CONVERTERS) -> T:
    """Build a frozen dataclass from a mapping, strictly.

    Args:
        cls: The dataclass; its field names are the keys, its annotations the types.
        data: What came from YAML.
        source: The file, for messages.
        where: The key that holds ``data``, for messages; empty for the whole file.
        converters: For fields of other types than the built-in ones.

    Raises:
        ConfigError: Unknown key, missing key, wrong type, or a value that the class refuses.
    """
    assert dataclasses.is_dataclass(cls)
    section = mapping(data, source, where)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    check_keys(section, tuple(fields), source, where)
    missing = [
        name
        for name, field in fields.items()
        if name not in section and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{_place(source, where)}: needs {' and '.join(missing)}")
    hints = typing.get_type_hints(cls)
    values = {key: convert(value, hints[key], source, _below(where, key), converters) for key, value in section.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{source}: {_below(where, str(error))}") from error
    except ConfigError as error:
        raise ConfigError(f"{source}: {_cut(str(error), _LONGEST_ERROR)}") from error


def mapping(data: object, source: str, where: str) -> Mapping[str, object]:
    """Return ``data`` if it is a mapping whose keys are strings, else raise `ConfigError`."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{_place(source, where)}: must be a mapping of keys to values, not {_shown(data)}")
    for key in data:
        if not isinstance(key, str):
            raise ConfigError(f"{_place(source, where)}: the key {_shown(key)} must be a string")
    return data


def check_keys(section: Mapping[str, object], valid: Sequence[str], source: str, where: str) -> None:
    """Raise `ConfigError` for the first key that is not valid; the message names the nearest valid key."""
    for key in section:
        if key not in valid:
            raise ConfigError(f"{source}: unknown key {_below(where, _cut(key))}; {nearest(key, valid)}")


def nearest(word: str, valid: Sequence[str]) -> str:
    """Return what ``word`` was probably meant to be, as the second half of a message."""
    if hint := suggestion(word, valid):
        return hint.removeprefix("; ")
    return f"valid: {', '.join(valid)}" if valid else "nothing is valid here"


def _place(source: str, where: str) -> str:
    return f"{source}: {where}" if where else source


def _below(where: str, key: str) -> str:
    key = _cut(printable(key), _LONGEST_ERROR)
    return f"{where}.{key}" if where else key


def _shown(value: object) -> str:
    if isinstance(value, datetime.date):
        return f"{value} without quotes"  # YAML has made a date of it
    return _cut(repr(value))


def _cut(text: str, longest: int = 60) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


class _MismatchError(Exception):
    """The value is not of this type; another member of a union may fit."""


def convert(value: object, hint: Any, source: str, where: str, converters: Converters = _NO_CONVERTERS) -> Any:
    """Convert a YAML value to the type of an annotation.

    Raises:
        ConfigError: The value has another type; the message names both.
    """
    try:
        return _fit(value, hint, source, where, converters)
    except _MismatchError:
        raise ConfigError(f"{source}: {where}: must be {_name(hint)}, not {_shown(value)}") from None


def _fit(value: Any, hint: Any, source: str, where: str, converters: Converters) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in converters:
        return converters[hint](value, source, where)
    if origin in (typing.Union, types.UnionType):
        return _fit_union(value, arguments, source, where, converters)
    if origin is Literal:
        return _require(value, any(value == choice and type(value) is type(choice) for choice in arguments))
    if isinstance(origin, type) and issubclass(origin, Sequence):  # a tuple, too
        return _fit_sequence(value, arguments, source, where, converters)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        section = mapping(value, source, where)
        return {k: convert(v, arguments[1], source, _below(where, k), converters) for k, v in section.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, _require(value, isinstance(value, Mapping)), source, where, converters)
    if hint in _PLAIN:
        _, fits, make = _PLAIN[hint]
        return make(_require(value, fits(value)))
    return value  # another type: the class checks it


def _fit_union(value: Any, members: Sequence[Any], source: str, where: str, converters: Converters) -> Any:
    if value is None and type(None) in members:
        return None
    for member in members:
        try:
            return _fit(value, member, source, where, converters)
        except _MismatchError:
            continue
    raise _MismatchError


def _fit_sequence(value: Any, kinds: Sequence[Any], source: str, where: str, converters: Converters) -> tuple[Any, ...]:
    is_fixed = len(kinds) > 1 and kinds[-1] is not ...
    values = [value] if isinstance(value, str) and not is_fixed else value
    _require(values, isinstance(values, list) and (len(values) == len(kinds) or not is_fixed))
    kinds = kinds if is_fixed else [kinds[0]] * len(values)
    return tuple(
        convert(member, kind, source, f"{where}[{index}]", converters)
        for index, (member, kind) in enumerate(zip(values, kinds, strict=True))
    )


def _require(value: Any, condition: bool) -> Any:
    if not condition:
        raise _MismatchError
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_PLAIN: Final[Mapping[Any, tuple[str, Callable[[Any], bool], Callable[[Any], Any]]]] = {
    type(None): ("null", lambda value: value is None, lambda value: value),
    bool: ("true or false", lambda value: isinstance(value, bool), bool),
    int: ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool), int),
    float: ("a number", _is_number, float),
    str: ("a string", lambda value: isinstance(value, str), str),
    Path: ("a path", lambda value: isinstance(value, str) and value != "", Path),
}
"""Type -> its name in messages, the check of a YAML value, and the conversion of the value."""


def _name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_name(member) for member in arguments)
    if origin is Literal:
        return " or ".join(str(choice) for choice in arguments)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        if len(arguments) > 1 and arguments[-1] is not ...:
            return f"a list of {len(arguments)}: {', '.join(map(_name, arguments))}"
        return f"a list, each element {_name(arguments[0])}"
    return _PLAIN[hint][0] if hint in _PLAIN else "a mapping of keys to values"
