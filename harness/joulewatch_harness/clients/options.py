"""How to reach a Prometheus: address, authentication, TLS, time-out."""

from __future__ import annotations

import argparse
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

from joulewatch_harness.errors import ConfigError

if TYPE_CHECKING:
    pass


QUERY_PATH: Final = "/api/v1/query"


WRITE_PATH: Final = "/api/v1/write"


@dataclass(frozen=True, slots=True)
class PrometheusOptions:
    """Where a Prometheus is and how to speak to it.

    Raises:
        ConfigError: the URL is none, or holds a password; options that contradict each other.
    """

    url: str
    """Base URL, with a path if the server has one: ``https://metrics.example.org/prometheus``."""
    username: str = ""
    password_file: Path | None = None
    bearer_token_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    insecure: bool = False
    """Do not check the server's certificate; only when asked for."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with every request, such as a tenant's ``X-Scope-OrgID``."""
    params: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with every query, such as Thanos' ``partial_response: "false"``."""
    remote_write_url: str = ""
    """Where samples are written; empty: ``/api/v1/write`` below ``url`` (Mimir: ``.../api/v1/push``)."""
    timeout_s: float = 30.0
    """For one request."""
    pushgateway: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The same keys for the Pushgateway, where it needs its own."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", checked_url(self.url, "--prometheus").rstrip("/"))
        if self.remote_write_url:
            checked_url(self.remote_write_url, "remote_write_url")
        if self.password_file is not None and not self.username:
            raise ConfigError(f"{self.url}: password_file needs a username")
        if self.username and self.password_file is None:
            raise ConfigError(f"{self.url}: username needs a password_file")
        if self.username and self.bearer_token_file is not None:
            raise ConfigError(f"{self.url}: give username and password_file, or bearer_token_file, not both")
        if self.key_file is not None and self.cert_file is None:
            raise ConfigError(f"{self.url}: key_file needs a cert_file")
        if self.insecure and self.ca_file is not None:
            raise ConfigError(f"{self.url}: insecure and ca_file contradict each other")

    @property
    def write_url(self) -> str:
        """Where remote write sends its requests."""
        return self.remote_write_url or self.url + WRITE_PATH

    def for_pushgateway(self, url: str) -> PrometheusOptions:
        """Options for a Pushgateway: credentials of one server are never sent to another."""
        return options_from_mapping({**self.pushgateway, "url": url}, "--pushgateway")


def checked_url(url: str, what: str) -> str:
    """Check that ``url`` is http(s) with a host and without a password in it.

    Raises:
        ConfigError: it is not; the text never repeats a password.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
        host = parts.hostname
    except ValueError as error:
        raise ConfigError(f"{what}: {without_secrets(url)!r} is no URL ({error})") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"{what}: {without_secrets(url)!r} is no URL: write it as http://host:port")
    if "@" in parts.netloc:
        raise ConfigError(
            f"{what}: {without_secrets(url)} must not hold a user name or a password: "
            "put username and password_file into the file named by --prometheus.config"
        )
    if parts.query or parts.fragment:
        raise ConfigError(f"{what}: {without_secrets(url)} must be a base URL, without '?' and '#'")
    return url


def without_secrets(url: str) -> str:
    """The URL without user, password, query and fragment, fit for a log."""
    try:
        parts = urlsplit(url)
        netloc = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, netloc, parts.path.rpartition("@")[2], "", ""))
    except ValueError:
        return url.rpartition("@")[2].partition("?")[0]


_FILE_KEYS: Final = ("password_file", "bearer_token_file", "ca_file", "cert_file", "key_file")


_TEXT_KEYS: Final = ("url", "username", "remote_write_url")


_KEYS: Final = tuple(item.name for item in fields(PrometheusOptions))


def options_from_mapping(data: Mapping[str, Any], where: str, folder: Path | None = None) -> PrometheusOptions:
    """Turn parsed YAML into options; relative file names are relative to ``folder``.

    Raises:
        ConfigError: an unknown key, a value of another kind; the text names the key and ``where``.
    """
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in _KEYS:
            import difflib

            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(_KEYS)}"
            raise ConfigError(f"{where}: unknown key {key!r}{hint}")
        if key in _FILE_KEYS:
            if not isinstance(value, (str, Path)):
                raise ConfigError(f"{where}: {key} wants the name of a file")
            values[key] = (folder or Path()) / value
        elif key in _TEXT_KEYS:
            if not isinstance(value, str):
                raise ConfigError(f"{where}: {key} wants a text")
            values[key] = value
        elif key == "insecure":
            if not isinstance(value, bool):
                raise ConfigError(f"{where}: insecure wants true or false")
            values[key] = value
        elif key == "timeout_s":
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 3600:
                raise ConfigError(f"{where}: timeout_s wants seconds above 0")
            values[key] = float(value)
        else:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: {key} wants a mapping")
            values[key] = dict(value) if key == "pushgateway" else {str(k): str(v) for k, v in value.items()}
    return PrometheusOptions(**values)


def add_prometheus_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--prometheus URL`` and ``--prometheus.config FILE``."""
    group = parser.add_argument_group("Prometheus")
    group.add_argument("--prometheus", metavar="URL", help="base URL of Prometheus, Mimir, Thanos or VictoriaMetrics")
    group.add_argument(
        "--prometheus.config",
        dest="prometheus_config",
        metavar="FILE",
        type=Path,
        help="YAML with url, username, password_file, bearer_token_file, ca_file, cert_file, key_file, insecure, "
        "headers, params, remote_write_url, timeout_s, pushgateway (the same keys for the Pushgateway)",
    )


def options_from_args(args: argparse.Namespace) -> PrometheusOptions | None:
    """Options from the two arguments, a flag beating the file; None when neither names a server.

    Raises:
        ConfigError: the file cannot be read, or holds no options; the URL is none.
    """
    return load_options(args.prometheus, args.prometheus_config)


def load_options(url: str | None, path: Path | None) -> PrometheusOptions | None:
    """The same from plain values (a plan's ``prometheus`` key, for one)."""
    if path is None:
        return PrometheusOptions(url) if url else None
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is no YAML: {error}") from error
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: wants a mapping of options")
    if url:
        data["url"] = url
    if not data.get("url"):
        raise ConfigError(f"{path}: names no url, and --prometheus is not given")
    return options_from_mapping(data, str(path), path.parent)


def read_secret(path: Path, key: str) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key} {path}: cannot be read: {_os_text(error)}") from None
    if not text or "\n" in text:
        raise ConfigError(f"{key} {path}: wants exactly one line")
    return text


def check_readable(path: Path, key: str) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"{key} {path}: cannot be read: {_os_text(error)}") from error


def _os_text(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def reason_of(error: BaseException, timeout_s: float) -> str:
    """Why a request failed, from the innermost cause: the outer texts hold the URL with its parameters."""
    import requests

    if isinstance(error, requests.Timeout):
        return f"no answer within {timeout_s:g} s"
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        inner = getattr(current, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((item for item in current.args if isinstance(item, BaseException)), None)
        current = inner or current.__cause__ or current.__context__
    for item in reversed(seen):
        if isinstance(item, ssl.SSLCertVerificationError):
            return f"the certificate does not hold: {item.verify_message}; name its authority with ca_file"
        if isinstance(item, ssl.SSLError):
            return f"TLS failed: {item.reason or 'error'}"
        if isinstance(item, OSError) and item.strerror:
            return f"cannot be reached: {item.strerror}"
    return f"cannot be reached: {type(seen[-1]).__name__}"


def with_timeout(options: PrometheusOptions, timeout_s: float) -> PrometheusOptions:
    """The same server with another time-out."""
    return replace(options, timeout_s=timeout_s)
