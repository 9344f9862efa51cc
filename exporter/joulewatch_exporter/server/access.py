"""Access control: TLS and basic authentication from the web configuration file, reloaded when the file changes."""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import secrets
import ssl
import threading
from pathlib import Path
from typing import Any, Final

from joulewatch_exporter.config.config import WebConfig, load_web_config
from joulewatch_exporter.errors import ConfigError

logger = logging.getLogger(__name__)


_TLS_VERSIONS: Final = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}


_CLIENT_AUTH: Final = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}


class Access:
    """TLS and users of the web configuration, reloaded when one of its files changes.

    Certificates can be renewed and users added without a restart. If a file becomes invalid, the error is logged once
    and the earlier settings remain in effect.
    """

    _CACHED: Final = 256

    def __init__(self, path: Path | None) -> None:
        """Read the file.

        Raises:
            ConfigError: The file or one that it names is invalid, or the package for basic auth is missing.
        """
        self._path = path
        self._lock = threading.Lock()
        self._salt = secrets.token_bytes(16)
        self._passed: dict[bytes, None] = {}
        self._stamps: tuple[int, ...] = ()
        self.web = WebConfig()
        self.tls: ssl.SSLContext | None = None
        if path is not None:
            self._load(path)
            if self.web.http_server_config.http2:
                logger.warning("%s: http_server_config.http2 is ignored: this server supports HTTP/1.1 only", path)

    def _load(self, path: Path) -> None:
        web = load_web_config(path)
        tls = None if web.tls_server_config is None else _tls_context(web, path)
        if web.basic_auth_users:
            _bcrypt(path)
        self.web, self.tls = web, tls
        self._passed = {}
        self._stamps = self._read_stamps()

    def _read_stamps(self) -> tuple[int, ...]:
        tls = self.web.tls_server_config
        files = [self._path]
        if tls is not None:
            files += [tls.cert_file, tls.key_file, tls.client_ca_file]
        stamps: list[int] = []
        for file in files:
            if file is not None:
                try:
                    stamps.append(file.stat().st_mtime_ns)
                except OSError:
                    stamps.append(0)
        return tuple(stamps)

    def refresh(self) -> None:
        """Reload the files if one has changed; called once per connection."""
        if self._path is None:
            return
        with self._lock:
            stamps = self._read_stamps()
            if stamps == self._stamps:
                return
            had_tls = self.tls is not None
            try:
                self._load(self._path)
                logger.info("%s: reloaded", self._path)
            except ConfigError as error:
                self._stamps = stamps
                logger.error("%s; the earlier settings remain in effect", error)
                return
            if had_tls != (self.tls is not None):
                logger.warning("%s: TLS was switched %s", self._path, "off" if had_tls else "on")

    @property
    def required(self) -> bool:
        """Whether a user and a password are required."""
        return bool(self.web.basic_auth_users)

    def allows(self, authorization: str | None) -> bool:
        """Return whether an ``Authorization`` header holds a user and the user's password."""
        scheme, _, encoded = (authorization or "").partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            user, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return False
        users = self.web.basic_auth_users
        expected = users.get(user)
        key = hashlib.sha256(
            b"\0".join((self._salt, user.encode(), password.encode(), (expected or "").encode()))
        ).digest()
        # One check at a time: bcrypt is slow on purpose, and a flood of guesses must not load the machine.
        with self._lock:
            if key in self._passed:
                return True
            # A wrong user takes as long as a wrong password, so that the time does not reveal which users exist.
            stored = expected if expected is not None else next(iter(users.values()))
            try:
                # bcrypt uses only the first 72 bytes of a password; newer versions of the package reject longer ones.
                matches: bool = _bcrypt(self._path).checkpw(password.encode()[:72], stored.encode())
            except ValueError:
                matches = False
            allowed = matches and expected is not None
            if allowed:
                while len(self._passed) >= self._CACHED:
                    self._passed.pop(next(iter(self._passed)))
                self._passed[key] = None
            return allowed


def _bcrypt(path: Path | None) -> Any:
    try:
        import bcrypt
    except ImportError as error:
        raise ConfigError(
            f"{path}: basic_auth_users needs the package bcrypt: pip install 'joulewatch[web]'"
        ) from error
    return bcrypt


def _tls_context(web: WebConfig, path: Path) -> ssl.SSLContext:
    tls = web.tls_server_config
    assert tls is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _TLS_VERSIONS[tls.min_version]
    context.maximum_version = _TLS_VERSIONS[tls.max_version]
    try:
        context.load_cert_chain(tls.cert_file, tls.key_file, password=_no_password)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: tls_server_config: {tls.cert_file} and {tls.key_file} are not a certificate and its key: {error}"
        ) from error
    if tls.client_ca_file is not None:
        try:
            context.load_verify_locations(tls.client_ca_file)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path}: tls_server_config.client_ca_file: {tls.client_ca_file} has no valid certificate: {error}"
            ) from error
    context.verify_mode = _CLIENT_AUTH[tls.client_auth_type]
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted, and a daemon cannot ask for its password")
