"""Options of all HTTP clients, declared once: address, credentials, TLS and time-out."""

from __future__ import annotations

import argparse
import base64
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Final
from urllib.parse import urlsplit, urlunsplit

from joulewatch_harness import files
from joulewatch_harness.binder import Limits, Word, bind, read_yaml
from joulewatch_harness.errors import ConfigError, one_line

QUERY_PATH: Final = "/api/v1/query"
WRITE_PATH: Final = "/api/v1/write"
WEB: Final = ("http", "https")
_LABEL: Final = re.compile(r"(?!__name__$)[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True)
class HttpOptions:
    """How to reach an HTTP server. Secrets stay in files, which are read when a client is created.

    Raises:
        ConfigError: the URL is not valid or contains a password, or options contradict each other.
    """

    SCHEMES: ClassVar[tuple[str, ...]] = WEB
    """Valid schemes of the URL."""

    url: str = ""
    """Base URL, with a path if the server has one: ``https://metrics.example.org/prometheus``."""
    _: KW_ONLY
    username: str = ""
    """User name of basic authentication."""
    password_file: Path | None = None
    """File with the password of ``username``."""
    bearer_token_file: Path | None = None
    """File with a bearer token."""
    ca_file: Path | None = None
    """File with the certificates of trusted authorities. Default: the system's."""
    cert_file: Path | None = None
    """File with the client's certificate."""
    key_file: Path | None = None
    """File with the client's key. Default: it is in ``cert_file``."""
    insecure: bool = False
    """Do not verify the server's certificate."""
    timeout_s: Annotated[float, Limits(gt=0, le=3600, unit="seconds")] = 30.0
    """Time limit of one request."""

    def __post_init__(self) -> None:
        if self.url:
            object.__setattr__(self, "url", checked_url(self.url, "url", self.SCHEMES).rstrip("/"))
        if self.password_file is not None and not self.username:
            raise ConfigError("password_file: requires a username")
        if self.username and self.password_file is None:
            raise ConfigError("username: requires a password_file")
        if self.username and self.bearer_token_file is not None:
            raise ConfigError("username and bearer_token_file contradict each other")
        if self.key_file is not None and self.cert_file is None:
            raise ConfigError("key_file: requires a cert_file")
        if self.insecure and self.ca_file is not None:
            raise ConfigError("insecure and ca_file contradict each other")

    def authorization(self) -> str:
        """Return the value of the header Authorization; empty without credentials.

        Raises:
            ConfigError: a file with a secret cannot be read, or does not contain exactly one line.
        """
        if self.password_file is not None:
            password = read_secret(self.password_file, "password_file")
            return f"Basic {base64.b64encode(f'{self.username}:{password}'.encode()).decode()}"
        if self.bearer_token_file is not None:
            return f"Bearer {read_secret(self.bearer_token_file, 'bearer_token_file')}"
        return ""

    def check_files(self) -> None:
        """Check that the files for TLS can be read.

        Raises:
            ConfigError: one cannot.
        """
        for key in ("ca_file", "cert_file", "key_file"):
            path: Path | None = getattr(self, key)
            try:
                if path is not None:
                    path.open("rb").close()
            except OSError as error:
                raise ConfigError(f"{key}: {path} cannot be read: {_os_text(error)}") from error

    def tls(self) -> ssl.SSLContext:
        """Return the context for TLS connections.

        Raises:
            ConfigError: a certificate or key cannot be read.
        """
        self.check_files()
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(f"ca_file: {self.ca_file} does not contain a certificate") from error
        try:
            if self.cert_file is not None:
                # The password keeps OpenSSL from asking for one on the terminal.
                context.load_cert_chain(self.cert_file, self.key_file, password="")
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(f"cert_file: {self.cert_file} and its key cannot be used: {error}") from error
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


@dataclass(frozen=True)
class PrometheusOptions(HttpOptions):
    """How to reach a Prometheus, or a Pushgateway.

    Raises:
        ConfigError: An option is invalid, as for ``HttpOptions``.
    """

    _: KW_ONLY
    headers: Mapping[str, Word] = field(default_factory=dict, repr=False)
    """Sent with every request, such as a tenant's ``X-Scope-OrgID``."""
    params: Mapping[str, Word] = field(default_factory=dict, repr=False)
    """Sent with every query, such as Thanos' ``partial_response: "false"``."""
    match: Mapping[str, Word] = field(default_factory=dict)
    """Target labels and their values; only series that have them are analyzed."""
    remote_write_url: str = ""
    """Receiver of remote write; empty: ``/api/v1/write`` below ``url`` (Mimir: ``.../api/v1/push``)."""
    pushgateway: PrometheusOptions | None = None
    """Options for the Pushgateway, if they are needed; those of one server are never used for another."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.remote_write_url:
            checked_url(self.remote_write_url, "remote_write_url")
        for label in self.match:
            if not _LABEL.fullmatch(label):
                raise ConfigError(f"match: {label!r} is not a valid label name")

    @property
    def write_url(self) -> str:
        """The URL for remote write."""
        return self.remote_write_url or self.url + WRITE_PATH

    def for_pushgateway(self, url: str) -> PrometheusOptions:
        """Return the options for a Pushgateway."""
        return replace(self.pushgateway or PrometheusOptions(), url=checked_url(url, "--pushgateway"))


def checked_url(url: str, source: str, schemes: tuple[str, ...] = WEB) -> str:
    """Return a base URL after checking its scheme and host, and that it contains no credentials.

    Raises:
        ConfigError: the URL is not valid; the text never contains a password.
    """
    shown = without_secrets(url)
    try:
        parts = urlsplit(url)
        _ = parts.port
        host = parts.hostname
    except ValueError as error:
        raise ConfigError(f"{source}: {shown!r} is not a valid URL ({error})") from None
    if parts.scheme not in schemes or not host or any(ord(character) < 33 for character in url):
        forms = " or ".join(f"{scheme}://host:port" for scheme in schemes if not scheme.endswith("s"))
        raise ConfigError(f"{source}: {shown!r} is not a valid URL: write it as {forms}")
    if "@" in parts.netloc:
        place = " in the file of --prometheus.config" if source.startswith("--") else ""
        raise ConfigError(
            f"{source}: {shown} must not contain a user name or a password: use username and password_file{place}"
        )
    if parts.query or parts.fragment:
        raise ConfigError(f"{source}: {shown} must be a base URL, without '?' and '#'")
    return url


def without_secrets(url: str) -> str:
    """Return the URL without user, password, query and fragment, for logs; it may come from a server."""
    try:
        parts = urlsplit(url)
        shown = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rpartition("@")[2], "", ""))
    except ValueError:
        shown = url.rpartition("@")[2].partition("?")[0]
    return one_line(shown)


def add_prometheus_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--prometheus URL``, ``--prometheus.config FILE`` and ``--match LABEL=VALUE``."""
    group = parser.add_argument_group("Prometheus")
    group.add_argument("--prometheus", metavar="URL", help="base URL of Prometheus, Mimir, Thanos or VictoriaMetrics")
    group.add_argument(
        "--prometheus.config",
        dest="prometheus_config",
        metavar="FILE",
        type=Path,
        help="YAML file with url, username, password_file, bearer_token_file, ca_file, cert_file, key_file, insecure, "
        "headers, params, match, remote_write_url, timeout_s, pushgateway (the same keys for the Pushgateway)",
    )
    group.add_argument(
        "--match",
        metavar="LABEL=VALUE",
        action="append",
        help="use only series with this target label, such as cluster=x; repeatable",
    )


def options_from_args(args: argparse.Namespace) -> PrometheusOptions | None:
    """Return the options from the arguments; None without a server. ``load_options`` has the errors."""
    return load_options(args.prometheus, args.prometheus_config, args.match)


def load_options(url: str | None, path: Path | None, match: Sequence[str] | None = None) -> PrometheusOptions | None:
    """Return the options from a URL and a file; the URL has precedence. None if neither is given.

    Args:
        url: The server.
        path: The file.
        match: ``LABEL=VALUE`` words, which replace those of the file with the same label.

    Raises:
        ConfigError: the file cannot be read or has a bad value, there is no URL, it is not valid, or a word of
            ``match`` is not ``LABEL=VALUE``.
    """
    labels = parse_match(match or ())
    if url:
        checked_url(url, "--prometheus")
    if path is None:
        if labels and not url:
            raise ConfigError("--match restricts a Prometheus, but --prometheus is not given")
        return PrometheusOptions(url, match=labels) if url else None
    data = read_yaml(path)
    given = {"url": url} if url else {}
    data = given if data is None else data | given if isinstance(data, dict) else data
    options = bind(PrometheusOptions, data, str(path), folder=path.parent)
    if not options.url:
        raise ConfigError(f"{path}: has no url, and --prometheus is not given")
    return replace(options, match={**options.match, **labels})


def parse_match(words: Sequence[str]) -> dict[str, str]:
    """Return the labels and values of ``--match LABEL=VALUE``.

    Raises:
        ConfigError: A word is not ``LABEL=VALUE``, or a label has two values.
    """
    labels: dict[str, str] = {}
    for word in words:
        label, equals, value = word.partition("=")
        if not equals or not _LABEL.fullmatch(label) or value[:1] in ("~", '"', "'"):
            raise ConfigError(f"--match {word!r}: must be LABEL=VALUE without quotes or wildcards, such as cluster=x")
        if labels.setdefault(label, value) != value:
            raise ConfigError(f"--match: {label} has two values, {labels[label]!r} and {value!r}")
    return labels


def read_secret(path: Path, key: str) -> str:
    """Return the single line of a file.

    Raises:
        ConfigError: the file cannot be read, or does not contain exactly one line.
    """
    try:
        text = files.read_text(path).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: {path} cannot be read: {_os_text(error)}") from None
    if not text or "\n" in text:
        raise ConfigError(f"{key}: {path} must contain exactly one line")
    return text


def _os_text(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
