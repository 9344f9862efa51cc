"""Bind mappings to frozen dataclasses: plans, configuration files, runtime options, journal lines and traces.

The dataclass is the declaration: its field names are the keys, its annotations the types, and ``Annotated`` adds the
constraints ``Limits``, ``Choice`` and ``Parse``. Rules about several keys are in ``__post_init__``, whose errors may
begin with ``KEY:``. An error is one line: the source, the path of the key, what is wrong, and the value (never that of
a field with ``repr=False``) or the nearest valid name.

msgspec 0.22 and cattrs 26.2 were tried and not taken. msgspec's errors contain neither the value nor the valid
choices; it ignores unknown keys of dataclasses, accepts infinity, and its import takes longer than ``joulewatch
--help`` does (60 ms and 40 ms). cattrs converts where it should check (2.5 becomes 2, true becomes 1), so that every
type needs a hook of ours, and its import takes 100 ms.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from joulewatch_exporter.yaml_limits import check_limits
from joulewatch_harness import files
from joulewatch_harness.errors import LONGEST_VALUE, ConfigError, JoulewatchError, RecordError, cut, one_line, shown
from joulewatch_harness.names import unknown

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a number; ``ge`` and ``le`` are included, ``gt`` is not."""

    ge: float = -math.inf
    gt: float = -math.inf
    le: float = math.inf
    unit: str = ""

    def __contains__(self, value: float) -> bool:
        return self.ge <= value <= self.le and value > self.gt

    def __str__(self) -> str:
        bounds = ((">=", self.ge), (">", self.gt), ("<=", self.le))
        text = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound))
        return f"{text} ({self.unit})" if self.unit else text


@dataclass(frozen=True, slots=True)
class Choice:
    """The valid values of a string."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Parse:
    """Convert the given value to what the annotation accepts; a ValueError or ConfigError contains the reason."""

    function: Callable[[Any], Any]


def bind(cls: type[T], data: object, source: str, *, defaults: object = None, folder: Path = Path()) -> T:
    """Bind a mapping read from YAML.

    Args:
        cls: A frozen dataclass.
        data: The mapping.
        source: The beginning of error messages, such as the file.
        defaults: A dataclass whose fields replace defaults of ``cls``.
        folder: Relative paths are relative to it.

    Raises:
        ConfigError: an unknown or missing key, or a bad value.
    """
    if isinstance(data, Mapping) and dataclasses.is_dataclass(defaults):
        data = {item.name: getattr(defaults, item.name) for item in dataclasses.fields(defaults)} | dict(data)
    return typing.cast(T, _bind(cls, data, source, _Context(folder=folder), ConfigError))


def bind_options(cls: type[T], options: Mapping[str, str], source: str) -> T:
    """Bind options given as text, ``KEY=VALUE``.

    Raises:
        ConfigError: an unknown or missing option, or a bad value.
    """
    return typing.cast(T, _bind(cls, options, source, _Context(noun="option", text=True), ConfigError))


def bind_record(cls: type[T], data: object, source: str) -> T:
    """Bind a JSON object; unknown fields are ignored, because a newer joulewatch may have written them.

    Raises:
        RecordError: a field is missing or has a bad value.
    """
    return typing.cast(T, _bind(cls, data, source, _Context(noun="field", ignore_unknown=True), RecordError))


def keys(cls: Any) -> tuple[str, ...]:
    """Return the valid keys of a dataclass."""
    return tuple(_fields(cls))


def as_text(value: object) -> object:
    """Accept a number without quotes as a string (for ``Parse``)."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def as_word(value: object) -> object:
    """Accept a number or a boolean without quotes as a string (for ``Parse``)."""
    return str(value).lower() if isinstance(value, bool) else as_text(value)


def as_list(value: object) -> object:
    """Accept a single value as a list of one (for ``Parse``)."""
    if isinstance(value, (str, int, float)):
        return [value]
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"must be a value or a list of values, got {_shown(value)}")
    return value


def short_for(key: str) -> Parse:
    """Accept a string as a mapping with this one key."""
    return Parse(lambda value: {key: value} if isinstance(value, str) else value)


Text = Annotated[str, Parse(as_text)]
Word = Annotated[str, Parse(as_word)]
Texts = Annotated[tuple[Text, ...], Parse(as_list)]


def read_yaml(path: Path) -> object:
    """Read a YAML file; an empty one gives None.

    Raises:
        ConfigError: the file cannot be read, is not valid YAML, or has a key twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            """Refuse a key given twice; YAML uses the last one silently."""
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    raise yaml.MarkedYAMLError(None, None, f"the key {shown(key.value)} is given twice", key.start_mark)
                seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
            return super().construct_mapping(node, deep=deep)

        def get_single_node(self) -> Any:
            node = super().get_single_node()
            check_limits(node)
            return node

    try:
        # From a stream, because errors about a string quote it, and it may contain secrets.
        return yaml.load(io.StringIO(files.read_text(path)), Loader=Loader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text, so not a YAML file") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{place}: {cut(str(error.problem), _LONGEST_ERROR)}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: is not valid YAML: nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: is not valid YAML: {one_line(str(error))}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Context:
    noun: str = "key"
    text: bool = False
    """All values are text: convert them by their annotations."""
    ignore_unknown: bool = False
    folder: Path = Path()


_Reader = Callable[[Any, _Context], Any]
_HIDDEN: Final = object()
_LONGEST_ERROR: Final = 2000
"""The longest is a list of all networks; checks of classes may quote a value of any length."""


class _InvalidError(Exception):
    """A bad value; ``path`` grows on the way out."""

    def __init__(self, problem: str, value: object = _HIDDEN, *, path: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.value = value
        self.path = path

    def __str__(self) -> str:
        got = "" if self.value is _HIDDEN else f", got {_shown(self.value)}"
        return f"{self.path}: {self.problem}{got}" if self.path else f"{self.problem}{got}"


def _printable(key: str) -> str:
    return cut(key if key.isprintable() else repr(key), LONGEST_VALUE)


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return shown(value)


def _bind(hint: Any, data: object, source: str, context: _Context, error_class: type[JoulewatchError]) -> Any:
    try:
        return _reader(hint)(data, context)
    except _InvalidError as error:
        noun = "option " if error.path and context.noun == "option" else ""
        raise error_class(f"{source}: {noun}{cut(str(error), _LONGEST_ERROR)}") from error.__cause__


def _read_at(place: str, read: _Reader, value: Any, context: _Context, *, hide: bool = False) -> Any:
    try:
        return read(value, context)
    except _InvalidError as error:
        error.path = place + ("." if error.path and not error.path.startswith("[") else "") + error.path
        error.value = _HIDDEN if hide else error.value
        raise


@functools.cache
def _reader(hint: Any) -> _Reader:
    """Return the function that checks and converts values of a type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _annotated(*arguments)
    if hint in _SCALARS:
        return _SCALARS[hint]
    if origin in (typing.Union, types.UnionType):
        (member,) = (item for item in arguments if item is not types.NoneType)
        read = _reader(member)
        return lambda value, context: None if value is None else read(value, context)
    if origin is Literal:
        return _choice(arguments)
    if origin is tuple:
        return _list(_reader(arguments[0]))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(_reader(arguments[1]))
    assert dataclasses.is_dataclass(hint), f"no reader for {hint!r}"
    return functools.partial(_read_dataclass, hint)


@functools.cache
def _fields(cls: Any) -> Mapping[str, tuple[_Reader, dataclasses.Field[Any]]]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {item.name: (_reader(hints[item.name]), item) for item in dataclasses.fields(cls) if item.init}


def _read_dataclass(cls: Any, value: Any, context: _Context) -> Any:
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise _InvalidError("must be a mapping", value)
    fields = _fields(cls)
    for key in () if context.ignore_unknown else value:
        if key not in fields:
            raise _InvalidError(unknown(context.noun, str(key), fields))
    values = {}
    for name, (read, item) in fields.items():
        if name in value:
            values[name] = _read_at(name, read, value[name], context, hide=not item.repr)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise _InvalidError(f"missing {context.noun} {name!r}")
    try:
        return cls(**values)
    except (ValueError, JoulewatchError) as error:
        key, _, problem = str(error).partition(": ")
        raise _InvalidError(problem if key in fields else str(error), path=key if key in fields else "") from error


def _annotated(hint: Any, *constraints: Any) -> _Reader:
    read = _reader(hint)
    for constraint in reversed(constraints):
        if isinstance(constraint, Limits):
            read = _number(hint, constraint)
        elif isinstance(constraint, Choice):
            read = _choice(constraint.values)
        elif isinstance(constraint, Parse):
            read = _parse(constraint.function, read)
    return read


def _parse(function: Callable[[Any], Any], read: _Reader) -> _Reader:
    def parse(value: Any, context: _Context) -> Any:
        try:
            parsed = function(value)
        except (ValueError, ConfigError) as error:
            raise _InvalidError(str(error)) from error
        return read(parsed, context)

    return parse


def _number(kind: type[int] | type[float], limits: Limits | None = None) -> _Reader:
    problem = f"must be {'an integer' if kind is int else 'a number'} {limits or ''}".rstrip()

    def read(value: Any, context: _Context) -> Any:
        number = _number_of_text(kind, value) if context.text and isinstance(value, str) else value
        if kind is float and type(number) is int and abs(number) < 1 << 1023:
            number = float(number)
        if not isinstance(number, kind) or isinstance(number, bool) or (kind is float and not math.isfinite(number)):
            raise _InvalidError(problem, value)
        if limits is not None and number not in limits:
            raise _InvalidError(problem, value)
        return number

    return read


def _number_of_text(kind: type[int] | type[float], text: str) -> float | None:
    if kind is int and not re.fullmatch("[+-]?[0-9]{1,300}", text):
        return None
    try:
        return kind(text)
    except ValueError:
        return None


def _read_bool(value: Any, context: _Context) -> Any:
    flag = _BOOLEANS.get(value.lower()) if context.text and isinstance(value, str) else value
    if not isinstance(flag, bool):
        raise _InvalidError("must be true or false", value)
    return flag


def _read_str(value: Any, context: _Context) -> Any:
    if not isinstance(value, str):
        raise _InvalidError("must be a string", value)
    return value


def _read_path(value: Any, context: _Context) -> Any:
    if not isinstance(value, (str, Path)) or value == "":
        raise _InvalidError("must be a path", value)
    return context.folder / value


_BOOLEANS: Final = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)
_SCALARS: Final[Mapping[Any, _Reader]] = {
    Any: lambda value, context: value,
    bool: _read_bool,
    int: _number(int),
    float: _number(float),
    str: _read_str,
    Path: _read_path,
}


def _choice(values: tuple[Any, ...]) -> _Reader:
    def read(value: Any, context: _Context) -> Any:
        if not isinstance(value, str):
            # Without quotes, YAML reads the words on, off, yes and no as booleans.
            raise _InvalidError(f"must be a string, one of {', '.join(values)}", value)
        if value not in values:
            raise _InvalidError(unknown("value", value, values))
        return value

    return read


def _list(read: _Reader) -> _Reader:
    def read_list(value: Any, context: _Context) -> Any:
        items = [item.strip() for item in value.split(",")] if context.text and isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise _InvalidError("must be a list", value)
        return tuple(_read_at(f"[{number}]", read, item, context) for number, item in enumerate(items))

    return read_list


def _mapping(read: _Reader) -> _Reader:
    def read_mapping(value: Any, context: _Context) -> Any:
        pairs = value
        if context.text and isinstance(value, str):
            parts = [item.rpartition("=") for item in value.split(",")]
            pairs = {name.strip(): word.strip() for name, _, word in parts}
            if not all(pairs):
                raise _InvalidError("must be NAME=VALUE,...", value)
        if not isinstance(pairs, Mapping):
            raise _InvalidError("must be a mapping", value)
        return {str(key): _read_at(_printable(str(key)), read, item, context) for key, item in pairs.items()}

    return read_mapping
