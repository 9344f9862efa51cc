"""Access control: TLS and basic authentication from the web configuration file, reloaded when the file changes."""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import logging
import math
import os
import secrets
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from joulewatch_exporter.config.strict import read_file
from joulewatch_exporter.config.web import RateLimit, TlsSettings, WebConfig, is_open_on_purpose, load_web_config
from joulewatch_exporter.errors import ConfigError
from joulewatch_exporter.server.tls import server_context

logger = logging.getLogger(__name__)

MOST_WAITING: Final = 8
"""Passwords that wait to be checked. A check takes 50 ms or more, so more would wait too long."""
MOST_WAITING_OF_ADDRESS: Final = 2
"""Of these, from one address: guessers must leave room for a scraper whose password has not been checked yet."""
GUESSER_S: Final = 2.0
"""For this time after a wrong password, new connections of the address have to wait."""
CHECK_NICENESS: Final = 10
"""Added to the niceness of a thread while it checks a password, so that scrapes go first. With 19, the first scrape on
a busy node might wait for seconds."""
_CACHED: Final = 256
_GUESSERS: Final = 1024
_VERIFICATION: Final = ("NoClientCert", "RequestClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert")
"""How client certificates are verified, the strictest last."""
_PROTECTION: Final[Mapping[str, Callable[[WebConfig], int]]] = {
    "basic_auth_users": lambda web: bool(web.basic_auth_users),
    "rate_limit": lambda web: web.rate_limit is not None and web.rate_limit.interval_s > 0,
}
"""Key of the web configuration -> its strength, which may not fall while the exporter runs. Nor may TLS be lost."""
_TLS_PROTECTION: Final[Mapping[str, Callable[[TlsSettings], int]]] = {
    "client_auth_type": lambda tls: _VERIFICATION.index(tls.client_auth_type),
    "client_allowed_sans": lambda tls: bool(tls.client_allowed_sans),
    "min_version": lambda tls: tls.min_version == "TLS13",  # TLS12 is used for lower ones
}
"""The same of ``tls_server_config``."""


class Verdict(enum.Enum):
    """Result of the check of an ``Authorization`` header."""

    ALLOWED = enum.auto()
    NO_PASSWORD = enum.auto()
    """It holds no user and password."""
    WRONG = enum.auto()
    BUSY = enum.auto()
    """Too many other passwords are being checked."""


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the file says; replaced as a whole."""

    web: WebConfig
    tls: ssl.SSLContext | None


class TokenBucket:
    """Limits the rate of requests: one per interval, after a burst."""

    def __init__(self, limit: RateLimit, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._monotonic_s = monotonic_s
        self._tokens = float(limit.burst)
        self._at_s = monotonic_s()
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Return whether a request is within the limit."""
        with self._lock:
            now_s = self._monotonic_s()
            gained = (now_s - self._at_s) / self._limit.interval_s
            self._tokens, self._at_s = min(self._tokens + gained, float(self._limit.burst)), now_s
            if self._tokens < 1.0:
                return False
            self._tokens -= 1.0
            return True


class Access:
    """TLS and users of the web configuration, reloaded when one of its files changes.

    Certificates can be renewed and users added without a restart. If a file becomes invalid, or would remove users, TLS
    or the verification of clients, the error is logged once and the earlier settings remain in effect.
    """

    def __init__(self, path: Path | None) -> None:
        """Read the file.

        Raises:
            ConfigError: The file or one that it names is invalid, or the package for basic auth is missing.
        """
        self._path = path
        self._reload_lock = threading.Lock()
        self._bcrypt_lock = threading.Lock()
        self._guessed_s: dict[str, float] = {}
        """Address -> monotonic time of its last wrong password."""
        self._waiting: Counter[str] = Counter()
        self._waiting_lock = threading.Lock()
        self._salt = secrets.token_bytes(16)
        self._passed: dict[bytes, None] = {}
        """Hashes of accepted passwords. It is read without a lock, because a look-up is atomic."""
        self._stamps: tuple[int, ...] = ()
        self._refused = {"passwords": 0, "rate": 0}
        self._bucket: TokenBucket | None = None
        self._settings = _Settings(WebConfig(), None)
        if path is not None:
            data = read_file(path)
            self._adopt(path, self._parse(path, data))
            if not self.required and self.tls is None and not is_open_on_purpose(data):
                logger.warning("%s: has neither users nor TLS: everyone can read the metrics", path)

    @property
    def web(self) -> WebConfig:
        """The settings in effect."""
        return self._settings.web

    @property
    def tls(self) -> ssl.SSLContext | None:
        """The settings of TLS; None: no TLS."""
        return self._settings.tls

    @property
    def refused(self) -> dict[str, int]:
        """Number of requests that were refused because of a limit, by the name of the limit."""
        return dict(self._refused)

    @staticmethod
    def _parse(path: Path, data: bytes) -> _Settings:
        web = load_web_config(path, data)
        tls = None if web.tls_server_config is None else server_context(web.tls_server_config, path)
        if web.basic_auth_users:
            _bcrypt(path)
        return _Settings(web, tls)

    def _adopt(self, path: Path, settings: _Settings) -> None:
        before = self._settings.web
        self._settings = settings
        self._passed = {}
        limit = settings.web.rate_limit
        if limit != before.rate_limit:
            self._bucket = TokenBucket(limit) if limit is not None and limit.interval_s else None
        for warning in settings.web.warnings:
            if warning not in before.warnings:
                logger.warning("%s: %s", path, warning)
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
        # Another thread that reloads them need not be waited for.
        if self._path is None or not self._reload_lock.acquire(blocking=False):
            return
        try:
            stamps = self._read_stamps()
            if stamps != self._stamps:
                self._stamps = stamps
                self._reload(self._path)
        finally:
            self._reload_lock.release()

    def _reload(self, path: Path) -> None:
        try:
            if path.exists() and not path.is_file():  # a FIFO would hold the lock until somebody writes into it
                raise ConfigError(f"{path}: is not a file any longer")
            data = read_file(path)
            settings = self._parse(path, data)
            lost = [] if is_open_on_purpose(data) else _lost(self.web, settings.web)
            if lost:
                raise ConfigError(
                    f"{path}: no longer has {' and '.join(lost)}; to remove them, write only {{}} into it, or restart"
                )
        except ConfigError as error:
            logger.error("%s; the earlier settings remain in effect", error)
            return
        had_tls = self.tls is not None
        self._adopt(path, settings)
        logger.info("%s: reloaded", path)
        if had_tls != (self.tls is not None):
            logger.warning("%s: TLS was switched %s", path, "off" if had_tls else "on")

    @property
    def required(self) -> bool:
        """Whether a user and a password are required."""
        return bool(self.web.basic_auth_users)

    def is_within_rate(self) -> bool:
        """Return whether ``rate_limit`` allows a request now."""
        bucket = self._bucket
        if bucket is None or bucket.take():
            return True
        self._refused["rate"] += 1
        return False

    def check(self, authorization: str | None, address: str = "") -> Verdict:
        """Check an ``Authorization`` header.

        An accepted password is found in the cache without waiting. For any other, bcrypt takes 50 ms or more on
        purpose, so one is checked at a time, at a low priority, and only a few wait.

        Args:
            authorization: Value of the header.
            address: Address of the client.
        """
        scheme, _, encoded = (authorization or "").partition(" ")
        if scheme.lower() != "basic":
            return Verdict.NO_PASSWORD
        try:
            user, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return Verdict.NO_PASSWORD
        users = self.web.basic_auth_users
        expected = users.get(user)
        key = hashlib.sha256(
            b"\0".join((self._salt, user.encode(), password.encode(), (expected or "").encode()))
        ).digest()
        if key in self._passed:
            return Verdict.ALLOWED
        with self._queued(address) as is_queued:
            if not is_queued:
                self._note_guess(address)
                return Verdict.BUSY
            with self._bcrypt_lock:
                matches = _at_low_priority(lambda: self._matches(key, password, expected))
        if matches:
            return Verdict.ALLOWED
        self._note_guess(address)
        return Verdict.WRONG

    def _note_guess(self, address: str) -> None:
        with self._waiting_lock:
            self._guessed_s.pop(address, None)
            while len(self._guessed_s) >= _GUESSERS:
                self._guessed_s.pop(next(iter(self._guessed_s)))
            self._guessed_s[address] = time.monotonic()

    def has_guessed(self, address: str) -> bool:
        """Return whether this address has sent a wrong password within the last `GUESSER_S`."""
        return time.monotonic() - self._guessed_s.get(address, -math.inf) < GUESSER_S

    @contextmanager
    def _queued(self, address: str) -> Iterator[bool]:
        """Yield whether there is room for a password of this address; hold the place meanwhile."""
        with self._waiting_lock:
            has_room = self._waiting.total() < MOST_WAITING and self._waiting[address] < MOST_WAITING_OF_ADDRESS
            if has_room:
                self._waiting[address] += 1
            else:
                self._refused["passwords"] += 1
        try:
            yield has_room
        finally:
            if has_room:
                with self._waiting_lock:
                    self._waiting[address] -= 1
                    if not self._waiting[address]:
                        del self._waiting[address]

    def _matches(self, key: bytes, password: str, expected: str | None) -> bool:
        if key in self._passed:
            return True  # another connection with the same password came first
        # A wrong user takes as long as a wrong password, so that the time does not reveal which users exist.
        stored = expected if expected is not None else next(iter(self.web.basic_auth_users.values()), "")
        try:
            # bcrypt uses only the first 72 bytes of a password; newer versions of the package reject longer ones.
            matches: bool = _bcrypt(self._path).checkpw(password.encode()[:72], stored.encode())
        except ValueError:
            matches = False
        if not matches or expected is None:
            return False
        while len(self._passed) >= _CACHED:
            self._passed.pop(next(iter(self._passed)))
        self._passed[key] = None
        return True

    def allows(self, authorization: str | None) -> bool:
        """Return whether an ``Authorization`` header holds a user and the user's password."""
        return self.check(authorization) is Verdict.ALLOWED


def _at_low_priority(check: Callable[[], bool]) -> bool:
    """Run a check in a new thread and return its result: only root could raise the priority of this thread again."""
    results: list[bool] = []

    def run() -> None:
        with suppress(OSError):  # the unit of systemd forbids it
            os.nice(CHECK_NICENESS)  # on Linux, of the calling thread only
        results.append(check())

    thread = threading.Thread(target=run, name="password", daemon=True)
    thread.start()
    thread.join()
    return results == [True]


def _lost(before: WebConfig, after: WebConfig) -> list[str]:
    """Return what protects the exporter now and would not do so any longer."""
    lost = [name for name, strength in _PROTECTION.items() if strength(after) < strength(before)]
    old, new = before.tls_server_config, after.tls_server_config
    if old is None:
        return lost
    if new is None:
        return [*lost, "tls_server_config"]
    for name, strength_of_tls in _TLS_PROTECTION.items():
        if strength_of_tls(new) < strength_of_tls(old):
            value = getattr(old, name)
            lost.append(f"{name} {value}" if isinstance(value, str) else name)
    return lost


def _bcrypt(path: Path | None) -> Any:
    try:
        import bcrypt
    except ImportError as error:
        raise ConfigError(
            f"{path}: basic_auth_users needs the package bcrypt: pip install 'joulewatch[web]'"
        ) from error
    return bcrypt
