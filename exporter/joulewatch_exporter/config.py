"""YAML to frozen dataclasses: an unknown key is an error that names the file, the key and the nearest valid one.

A flag beats the file, the file beats the default. ``example.yaml`` beside this package shows every setting.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import yaml

from joulewatch_exporter.catalog import DEFAULT_PORT
from joulewatch_exporter.errors import ConfigError
from joulewatch_exporter.model import Collector, Host
from joulewatch_exporter.sampler import FamilySettings

T = TypeVar("T")

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["logfmt", "json"]


@dataclass(frozen=True, slots=True)
class PathSettings:
    """Where the machine's files are: another root in a container, or an emulated machine."""

    sysfs: Path = Path("/sys")
    procfs: Path = Path("/proc")
    dev: Path = Path("/dev")

    def host(self) -> Host:
        """The host with these roots.

        Raises:
            ConfigError: One is not a folder.
        """
        for name in ("sysfs", "procfs", "dev"):
            root: Path = getattr(self, name)
            if not root.is_dir():
                raise ConfigError(f"--path.{name} (exporter.path.{name}): {root} is not a folder")
        return Host(sysfs=self.sysfs, procfs=self.procfs, dev=self.dev)


@dataclass(frozen=True, slots=True)
class ExporterSettings:
    """The section ``exporter``."""

    listen: tuple[str, ...] = (f":{DEFAULT_PORT}",)
    """``host:port``; an empty host is every address, port 0 a free one."""
    telemetry_path: str = "/metrics"
    max_requests: int = 40
    """Scrapes at the same time; more are answered 503. 0: any number."""
    read_timeout_seconds: float = 2.0
    """A family that has not answered a scrape by then is shown as down."""
    rediscover_seconds: float = 30.0
    """How often to look again for sensors that are gone or were not there; 0: never."""
    exporter_metrics: bool = True
    """Whether ``process_*`` and ``python_info`` are shown."""
    web_config_file: Path | None = None
    """TLS and basic auth, in the format of the Prometheus exporter toolkit."""
    log_level: LogLevel = "info"
    log_format: LogFormat = "logfmt"
    path: PathSettings = field(default_factory=PathSettings)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: One is out of its range; the text begins with its key.
        """
        if not self.listen:
            raise ValueError("listen: needs at least one address")
        for address in self.listen:
            parse_address(address)
        if not re.fullmatch(r"/[\w./~-]+", self.telemetry_path) or self.telemetry_path == "/-/healthy":
            raise ValueError(
                f"telemetry_path: {self.telemetry_path!r} must be a path such as /metrics, not / nor /-/healthy"
            )
        if self.max_requests < 0:
            raise ValueError(f"max_requests: {self.max_requests} is below 0")
        if self.read_timeout_seconds <= 0:
            raise ValueError(f"read_timeout_seconds: {self.read_timeout_seconds:g} is not above 0")
        if self.rediscover_seconds < 0:
            raise ValueError(f"rediscover_seconds: {self.rediscover_seconds:g} is below 0")


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that can be set."""

    exporter: ExporterSettings = field(default_factory=ExporterSettings)
    collectors: Mapping[str, FamilySettings] = field(default_factory=dict)


def parse_address(text: str) -> tuple[str, int]:
    """``host:port``, ``:port`` or ``[ipv6]:port`` to host (empty: every address) and port.

    Raises:
        ValueError: It is none of these.
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^:\[\]/\s]*)):(\d{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise ValueError(f"listen: {text!r} is no address such as :{DEFAULT_PORT}, 127.0.0.1:9101 or [::1]:9101")
    return match[1] or match[2] or "", int(match[3])


def load_config(path: Path | None, families: Iterable[type[Collector]]) -> Config:
    """Read the configuration file; all defaults for None.

    Args:
        path: The YAML file.
        families: The sensor families, whose ``Options`` are the keys below ``collectors.<name>``.

    Raises:
        ConfigError: The file cannot be read, is no YAML, or has a key or value that is wrong.
    """
    by_name = {family.name: family for family in families}
    data: object = {} if path is None else read_yaml(path)
    source = "the defaults" if path is None else str(path)
    sections = _mapping(data, source, "")
    _check_keys(sections, ("exporter", "collectors"), source, "")
    exporter = build(ExporterSettings, sections.get("exporter") or {}, source, "exporter")
    collectors = _mapping(sections.get("collectors") or {}, source, "collectors")
    _check_keys(collectors, tuple(by_name), source, "collectors")
    return Config(
        exporter=exporter,
        collectors={
            name: _family_settings(family, collectors.get(name) or {}, source) for name, family in by_name.items()
        },
    )


def _family_settings(family: type[Collector], data: object, source: str) -> FamilySettings:
    where = f"collectors.{family.name}"
    section = dict(_mapping(data, source, where))
    option_names = [item.name for item in dataclasses.fields(family.Options)]
    _check_keys(section, ("enabled", "poll_seconds", *option_names), source, where)
    enabled = _convert(section.pop("enabled", "auto"), bool | Literal["auto"], source, f"{where}.enabled")
    poll_s = _convert(section.pop("poll_seconds", None), float | None, source, f"{where}.poll_seconds")
    if poll_s is not None and not 0.01 <= poll_s <= 3600:
        raise ConfigError(f"{source}: {where}.poll_seconds: {poll_s:g} is not between 0.01 and 3600")
    return FamilySettings(enabled=enabled, poll_s=poll_s, options=build(family.Options, section, source, where))


# -- the strict loader -----------------------------------------------------------------------------


class _StrictLoader(yaml.SafeLoader):
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
            data: object = yaml.load(file, Loader=_StrictLoader)  # a SafeLoader
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
    section = _mapping(data, source, where)
    fields = {item.name: item for item in dataclasses.fields(cls) if item.init}
    _check_keys(section, tuple(fields), source, where)
    missing = [
        name
        for name, item in fields.items()
        if name not in section and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{source}: {where or 'the file'}: needs {' and '.join(missing)}")
    hints = typing.get_type_hints(cls)
    values = {
        key: _convert(value, hints[key], source, f"{where}.{key}" if where else str(key))
        for key, value in section.items()
    }
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{source}: {where + '.' if where else ''}{error}") from error
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _mapping(data: object, source: str, where: str) -> Mapping[str, object]:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{source}: {where or 'the file'}: must be a mapping of keys to values, not {_shown(data)}")
    for key in data:
        if not isinstance(key, str):
            raise ConfigError(f"{source}: {where or 'the file'}: the key {key!r} must be a word")
    return data


def _check_keys(section: Mapping[str, object], valid: Sequence[str], source: str, where: str) -> None:
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


def _convert(value: object, hint: Any, source: str, where: str) -> Any:
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
        return tuple(_convert(item, arguments[0], source, f"{where}[{i}]") for i, item in enumerate(items))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        section = _mapping(value, source, where)
        return {key: _convert(item, arguments[1], source, f"{where}.{key}") for key, item in section.items()}
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


# -- the web configuration of the Prometheus exporter toolkit --------------------------------------

_TLS_VERSIONS = Literal["TLS12", "TLS13"]
_CLIENT_AUTH = Literal["NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"]
_BCRYPT: Final = re.compile(r"\$2[abxy]\$\d\d\$[./A-Za-z0-9]{53}")


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """``tls_server_config``; the names are the toolkit's. Relative paths are below the file's folder."""

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None
    client_auth_type: _CLIENT_AUTH = "NoClientCert"
    client_allowed_sans: tuple[str, ...] = ()
    min_version: _TLS_VERSIONS = "TLS12"
    max_version: _TLS_VERSIONS = "TLS13"

    def __post_init__(self) -> None:
        """Check what only makes sense together.

        Raises:
            ValueError: It does not.
        """
        if self.client_auth_type != "NoClientCert" and self.client_ca_file is None:
            raise ValueError(f"client_ca_file: is needed by client_auth_type {self.client_auth_type}")
        if self.client_auth_type == "NoClientCert" and self.client_ca_file is not None:
            raise ValueError(
                "client_auth_type: a client_ca_file without it checks nobody; set RequireAndVerifyClientCert"
            )
        if self.client_allowed_sans and self.client_auth_type != "RequireAndVerifyClientCert":
            raise ValueError("client_allowed_sans: needs client_auth_type RequireAndVerifyClientCert")
        if self.min_version > self.max_version:
            raise ValueError(f"min_version: {self.min_version} is above max_version {self.max_version}")


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """``http_server_config``."""

    http2: bool | None = None
    """Accepted and not honoured: the server speaks HTTP/1.1."""
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that headers are headers.

        Raises:
            ValueError: One would break the response.
        """
        for name, value in self.headers.items():
            if not re.fullmatch(r"[A-Za-z0-9-]+", name) or not value.isprintable():
                raise ValueError(f"headers.{name}: is no valid header")


@dataclass(frozen=True, slots=True)
class WebConfig:
    """``--web.config.file``: who may scrape, and over what."""

    tls_server_config: TlsSettings | None = None
    http_server_config: HttpSettings = field(default_factory=HttpSettings)
    basic_auth_users: Mapping[str, str] = field(default_factory=dict, repr=False)
    """User to bcrypt hash."""

    def __post_init__(self) -> None:
        """Check the hashes, without showing them.

        Raises:
            ValueError: One is no bcrypt hash.
        """
        for user, bcrypt_hash in self.basic_auth_users.items():
            if not _BCRYPT.fullmatch(bcrypt_hash):
                raise ValueError(
                    f"basic_auth_users.{user}: is no bcrypt hash; make one with: htpasswd -nBC 10 '' | tr -d ':\\n'"
                )


def load_web_config(path: Path) -> WebConfig:
    """Read a web configuration file.

    Raises:
        ConfigError: The file, a key, a value or a file it names is wrong.
    """
    data = dict(_mapping(read_yaml(path), str(path), ""))
    for key in ("tls_server_config", "http_server_config", "basic_auth_users"):
        if key in data and data[key] is None:
            del data[key]
    users = data.get("basic_auth_users", {})
    if not isinstance(users, Mapping) or not all(isinstance(item, str) for pair in users.items() for item in pair):
        raise ConfigError(f"{path}: basic_auth_users: must map user names to bcrypt hashes")  # never shown
    web = build(WebConfig, data, str(path), "")
    tls = web.tls_server_config
    if tls is None:
        return web
    folder = path.parent
    tls = dataclasses.replace(
        tls,
        cert_file=folder / tls.cert_file,
        key_file=folder / tls.key_file,
        client_ca_file=None if tls.client_ca_file is None else folder / tls.client_ca_file,
    )
    for name in ("cert_file", "key_file", "client_ca_file"):
        file: Path | None = getattr(tls, name)
        if file is not None and not file.is_file():
            raise ConfigError(f"{path}: tls_server_config.{name}: {file} is not a file")
    return dataclasses.replace(web, tls_server_config=tls)
