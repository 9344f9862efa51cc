"""The web configuration file: TLS, users, headers and rate limit, in the format of the Prometheus exporter toolkit.

Every key of that format is known. A setting that cannot be enforced is an error with the reason; one that is enforced
more strictly than written is a warning.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from joulewatch_exporter.config.strict import build, mapping, nearest, parse_yaml, read_file
from joulewatch_exporter.errors import ConfigError

_TLS_VERSIONS = Literal["TLS10", "TLS11", "TLS12", "TLS13"]
_CURVES = Literal["CurveP256", "CurveP384", "CurveP521", "X25519"]
_CLIENT_AUTH = Literal[
    "NoClientCert",
    "RequestClientCert",
    "RequireAnyClientCert",
    "RequireClientCert",
    "VerifyClientCertIfGiven",
    "RequireAndVerifyClientCert",
]
_VERIFYING: Final = ("VerifyClientCertIfGiven", "RequireAndVerifyClientCert")
_BCRYPT: Final = re.compile(r"\$2[abxy]\$\d\d\$[./A-Za-z0-9]{53}")
_DURATION: Final = re.compile(r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h)")
_UNITS_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

CIPHERS: Final[dict[str, str]] = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_RSA_WITH_AES_128_GCM_SHA256": "AES128-GCM-SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384": "AES256-GCM-SHA384",
    "TLS_RSA_WITH_AES_128_CBC_SHA": "AES128-SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA": "AES256-SHA",
}
"""Suites of TLS 1.2 that the toolkit accepts -> their name in OpenSSL."""
_CIPHERS_TLS13: Final = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
"""Always on, in the toolkit, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """``tls_server_config``, with the names of the toolkit. Relative paths start at the folder of the file."""

    cert: str = ""
    key: str = field(default="", repr=False)
    cert_file: Path | None = None
    key_file: Path | None = None
    client_ca: str = ""
    client_ca_file: Path | None = None
    client_auth_type: _CLIENT_AUTH = "NoClientCert"
    client_allowed_sans: tuple[str, ...] = ()
    min_version: _TLS_VERSIONS = "TLS12"
    max_version: _TLS_VERSIONS = "TLS13"
    cipher_suites: tuple[str, ...] = ()
    prefer_server_cipher_suites: bool = True
    curve_preferences: tuple[_CURVES, ...] = ()

    def __post_init__(self) -> None:
        """Check combinations of values.

        Raises:
            ValueError: A combination is invalid; the text begins with a key.
        """
        for name in ("cert", "key", "client_ca"):
            if getattr(self, name) and getattr(self, f"{name}_file") is not None:
                raise ValueError(f"{name}: excludes {name}_file")
        for name in ("cert", "key"):
            if not getattr(self, name) and getattr(self, f"{name}_file") is None:
                raise ValueError(f"{name}_file: is required, or {name}")
        self._check_clients()
        if self.max_version < "TLS12":
            raise ValueError(f"max_version: {self.max_version} is not supported; the lowest version is TLS12")
        if self.min_version > self.max_version:
            raise ValueError(f"min_version: {self.min_version} is above max_version {self.max_version}")
        for suite in self.cipher_suites:
            if suite not in CIPHERS and suite not in _CIPHERS_TLS13:
                raise ValueError(f"cipher_suites: unknown {suite}; {nearest(suite, (*CIPHERS, *_CIPHERS_TLS13))}")
        if self.cipher_suites and not self.ciphers and self.min_version != "TLS13":
            raise ValueError("cipher_suites: has no suite of TLS 1.2; add one, or set min_version TLS13")

    def _check_clients(self) -> None:
        has_authority = bool(self.client_ca) or self.client_ca_file is not None
        kind = self.client_auth_type
        if kind in ("RequireAnyClientCert", "RequireClientCert"):
            raise ValueError(
                f"client_auth_type: {kind} cannot be enforced: Python cannot require a certificate without verifying "
                "it; set RequireAndVerifyClientCert and client_ca_file"
            )
        if kind in _VERIFYING and not has_authority:
            raise ValueError(f"client_ca_file: is required by client_auth_type {kind}")
        if kind == "NoClientCert" and has_authority:
            raise ValueError(
                "client_auth_type: without it client_ca_file has no effect; set RequireAndVerifyClientCert"
            )
        if self.client_allowed_sans and kind != "RequireAndVerifyClientCert":
            raise ValueError("client_allowed_sans: requires client_auth_type RequireAndVerifyClientCert")

    @property
    def ciphers(self) -> tuple[str, ...]:
        """The chosen suites of TLS 1.2, by their names in OpenSSL."""
        return tuple(CIPHERS[suite] for suite in self.cipher_suites if suite in CIPHERS)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is done otherwise than written."""
        texts = []
        if self.min_version < "TLS12":
            texts.append(f"min_version {self.min_version}: TLS12 is used, because older versions are not secure")
        if self.client_auth_type == "RequestClientCert":
            texts.append("client_auth_type RequestClientCert: no certificate is requested, because none is verified")
        if len(self.curve_preferences) > 1:
            texts.append(f"curve_preferences: only the first is used, {self.curve_preferences[0]}")
        return tuple(f"tls_server_config.{text}" for text in texts)


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """``http_server_config``."""

    http2: bool | None = None
    """Accepted but ignored: the server supports HTTP/1.1 only."""
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check names and values of the headers.

        Raises:
            ValueError: A header is invalid and would break the response.
        """
        for name, value in self.headers.items():
            if not re.fullmatch(r"[A-Za-z0-9-]+", name) or not value.isprintable():
                raise ValueError(f"headers.{name}: is not a valid header")


@dataclass(frozen=True, slots=True)
class RateLimit:
    """``rate_limit``: requests of all clients together, as a token bucket."""

    interval: str | float = 0.0
    """Time between two requests, as in Go: ``100ms``, ``1m30s``; 0: no limit."""
    burst: int = 0
    """Number of requests that may follow each other without that time."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is invalid; the text begins with its key.
        """
        if self.interval_s and self.burst < 1:
            raise ValueError(f"burst: {self.burst} allows no request; the least is 1")

    @property
    def interval_s(self) -> float:
        """The interval in seconds.

        Raises:
            ValueError: It is not a duration.
        """
        text = str(self.interval)
        if text in ("0", "0.0"):
            return 0.0
        if not re.fullmatch(f"({_DURATION.pattern})+", text):
            raise ValueError(f"interval: {self.interval!r} is not a duration such as 1s or 100ms")
        return sum(float(number) * _UNITS_S[unit] for number, unit in _DURATION.findall(text))


@dataclass(frozen=True, slots=True)
class WebConfig:
    """``--web.config.file``: TLS, users, headers and rate limit."""

    tls_server_config: TlsSettings | None = None
    http_server_config: HttpSettings = field(default_factory=HttpSettings)
    basic_auth_users: Mapping[str, str] = field(default_factory=dict, repr=False)
    """bcrypt hash by user name."""
    rate_limit: RateLimit | None = None

    def __post_init__(self) -> None:
        """Check the hashes; the error does not show them.

        Raises:
            ValueError: A hash is not a bcrypt hash.
        """
        for user, bcrypt_hash in self.basic_auth_users.items():
            if not _BCRYPT.fullmatch(bcrypt_hash):
                raise ValueError(
                    f"basic_auth_users.{user}: is not a bcrypt hash; create one: htpasswd -nBC 10 '' | tr -d ':\\n'"
                )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is done otherwise than written."""
        texts = () if self.tls_server_config is None else self.tls_server_config.warnings
        if self.http_server_config.http2:
            texts += ("http_server_config.http2 is ignored: this server supports HTTP/1.1 only",)
        return texts


def is_open_on_purpose(data: bytes) -> bool:
    """Return whether a file has nothing but ``{}``: an empty one may have been truncated."""
    lines = [line.partition(b"#")[0].strip() for line in data.splitlines()]
    return b"".join(lines).replace(b" ", b"").removeprefix(b"---") == b"{}"


def load_web_config(path: Path, data: bytes | None = None) -> WebConfig:
    """Read a web configuration file.

    Args:
        path: The file.
        data: Its contents; None: read them.

    Raises:
        ConfigError: The file, a key, a value or a file that it names is invalid.
    """
    contents = parse_yaml(read_file(path) if data is None else data, str(path))
    sections = dict(mapping(contents, str(path), ""))
    for name in ("tls_server_config", "http_server_config", "basic_auth_users", "rate_limit"):
        if name in sections and sections[name] is None:
            del sections[name]
    tls_section = sections.get("tls_server_config")
    if isinstance(tls_section, Mapping):
        # The toolkit takes an empty text as a key that is not set.
        sections["tls_server_config"] = {key: value for key, value in tls_section.items() if value not in (None, "")}
    _check_secrets(path, sections)
    web = build(WebConfig, sections, str(path), "")
    tls = web.tls_server_config
    if tls is None:
        return web
    files: dict[str, Path] = {}
    for name in ("cert_file", "key_file", "client_ca_file"):
        file: Path | None = getattr(tls, name)
        if file is not None:
            files[name] = path.parent / file
            if not files[name].is_file():
                raise ConfigError(f"{path}: tls_server_config.{name}: {files[name]} is not a file")
    return dataclasses.replace(web, tls_server_config=dataclasses.replace(tls, **files))  # type: ignore[arg-type]


def _check_secrets(path: Path, sections: Mapping[str, object]) -> None:
    """Raise `ConfigError` for a secret of the wrong type, because the binder's error would show it."""
    users = sections.get("basic_auth_users", {})
    if not isinstance(users, Mapping) or not all(isinstance(text, str) for pair in users.items() for text in pair):
        raise ConfigError(f"{path}: basic_auth_users: must map user names to bcrypt hashes")
    tls = sections.get("tls_server_config")
    if isinstance(tls, Mapping) and not isinstance(tls.get("key", ""), str):
        raise ConfigError(f"{path}: tls_server_config.key: must be a string")
