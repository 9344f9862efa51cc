"""A login to a Redfish service: requests with a deadline, verified TLS, and a session that is always ended.

BMCs allow few sessions (often four) and keep an abandoned one for up to a day. Therefore `Client.close` ends the
session also after errors, and a session that could not be ended because the service did not answer is ended before the
next login. Requests go only to the service's own host; links and redirects to other hosts are rejected, because they
would receive the token.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, NoReturn
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from joulewatch_exporter import __version__
from joulewatch_exporter.collectors.base.targets import read_secret
from joulewatch_exporter.collectors.redfish.exchange import (
    MAX_HEADER_BYTES,
    BoundedSession,
    Deadline,
    DeadlineAdapter,
    TooLongError,
)
from joulewatch_exporter.collectors.redfish.plan import ROOT, BusyError, ForbiddenError, Json, MissingError
from joulewatch_exporter.collectors.redfish.target import RedfishTarget
from joulewatch_exporter.collectors.redfish.tls import (
    UntrustedError,
    certificate_reason,
    chain,
    innermost,
    leaf_fingerprint,
    short,
    verify_setting,
)
from joulewatch_exporter.errors import (
    SensorAbsentError,
    SensorDeniedError,
    SensorError,
    SensorGlitchError,
    SensorTimeoutError,
)

MAX_BODY_BYTES: Final = 256 << 10
"""The largest resource of the services that the tests emulate, a metric report of eight GPUs, has 3 KiB."""
MAX_VALUES: Final = 10_000
"""JSON values in one body; that report has 150. Values need far more memory than their text."""
MAX_ALL_VALUES: Final = 50_000
"""JSON values in one series of requests, which are kept together: a hundred chassis have 23,000."""
MAX_HOPS: Final = 3
LOGOUT_S: Final = 2.0
"""Deadline for ending a session."""
MAX_PENDING_SESSIONS: Final = 8

_PIECE_BYTES: Final = 1 << 16
_REDIRECTIONS: Final = frozenset({301, 302, 303, 307, 308})
_BUSY: Final = frozenset({429, 502, 503, 504})


class _ExpiredError(SensorError):
    """The service has ended the session (401)."""


@dataclass(frozen=True, slots=True)
class Session:
    """An open session of the service."""

    path: str
    token: str = field(repr=False)


@dataclass(slots=True)
class Memory:
    """State that a client passes to the next client of the same service."""

    sessions_path: str | None = None
    """The path at which sessions are opened."""
    pending: list[Session] = field(default_factory=list)
    """Sessions that could not be ended yet."""


class Client:
    """A connection to one service; logs in when needed. Used by one thread."""

    def __init__(self, target: RedfishTarget, memory: Memory) -> None:
        """Prepare without sending a request.

        Args:
            target: The service.
            memory: State from earlier clients of this service.

        Raises:
            SensorDeniedError: ``ca_file`` cannot be read or contains no certificate.
        """
        self._target = target
        self._memory = memory
        self._root: tuple[Json, int] | None = None
        self._deadline = Deadline()
        self._span_s = 0.0
        self.values = 0
        """Number of JSON values that were received in this series of requests."""
        self._session: Session | None = None
        self._http = BoundedSession()
        # REQUESTS_CA_BUNDLE would override verify; proxies and .netrc would send the password elsewhere.
        self._http.trust_env = False
        self._http.headers.update(
            {
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                "OData-Version": "4.0",
                "User-Agent": f"joulewatch-exporter/{__version__}",
            }
        )
        self._http.verify = verify_setting(target)
        if target.insecure:
            # `check` reports it; urllib3 would warn in each request.
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        self._http.mount("https://", DeadlineAdapter(self._deadline, target.pin))
        self._http.mount("http://", DeadlineAdapter(self._deadline))
        self.notes: list[str] = []

    def begin(self, span_s: float, *, values: int = 0) -> None:
        """Start a series of requests with a common deadline in ``span_s``; ``values`` were received before."""
        self._span_s = span_s
        self._deadline.end_s = time.monotonic() + span_s
        self.values = values

    # -- reading -----------------------------------------------------------------------------------

    def get(self, path: str) -> tuple[Json, int]:
        """Get one resource.

        Returns:
            The resource, with fractions as Decimal, and the monotonic time in the middle of the request.

        Raises:
            MissingError: The resource does not exist (404).
            ForbiddenError: The login must not read it (403).
            SensorDeniedError: The login or the certificate is not accepted.
            BusyError: The service is starting or overloaded.
            SensorGlitchError: The answer is not a valid resource.
            SensorTimeoutError: No answer in time.
            SensorAbsentError: The service cannot be reached.
        """
        if path == ROOT:
            return self._serviceinnermost()
        self._log_in()
        try:
            return self._get(path)
        except _ExpiredError:
            if self._session is None:
                self._raise_wrong_login(path)
        # The service dropped the session because it was idle or the service restarted: log in again, but only once.
        old, self._session = self._session, None
        self._log_in()
        if old is not None and self._session is not None:
            # If it still exists (the 401 was a mistake), the new session may end it.
            self._end(Session(old.path, self._session.token))
        try:
            return self._get(path)
        except _ExpiredError:
            self._raise_wrong_login(path)

    def _serviceinnermost(self) -> tuple[Json, int]:
        if self._root is None:
            try:
                self._root = self._get(ROOT)
            except _ExpiredError:
                # The root should need no login; without the root, the path of the sessions is unknown.
                if not self._target.user or self._http.auth is not None:
                    self._raise_wrong_login(ROOT)
                self._use_basic()
                return self._serviceinnermost()
        return self._root

    def _get(self, path: str) -> tuple[Json, int]:
        for _ in range(MAX_HOPS):
            url = self._url(path)
            sent_ns = time.monotonic_ns()
            response = self._send("GET", url)
            read_at_ns = (sent_ns + time.monotonic_ns()) // 2
            # Always read the whole body, so that the connection can be reused.
            body = self._body(response, url)
            if response.status_code in _REDIRECTIONS:
                path = _joined(url, response.headers.get("Location", ""))
                continue
            self._check(response.status_code, url)
            self._count_values(body, url)
            return _resource(body, url), read_at_ns
        raise SensorGlitchError(f"{self._url(path)}: redirected more than {MAX_HOPS} times")

    def _url(self, path: str) -> str:
        """Return the absolute URL of a link; raise `SensorGlitchError` if it leads to another host."""
        base = self._target.base
        url = _joined(f"{base}/", path)
        if _origin(url) != _origin(base):
            raise SensorGlitchError(f"{base}: link to another host ({_origin(url)[1]}) is not followed")
        return url

    # -- login -------------------------------------------------------------------------------------

    def _log_in(self) -> None:
        if self._session is not None or self._http.auth is not None or not self._target.user:
            return
        path = None
        if self._target.auth == "session":
            path = self._memory.sessions_path or self._sessions_path()
        if self._http.auth is not None:
            return  # the root required it
        if path is None:
            self._use_basic()
            return
        self._end_pending()
        self._memory.sessions_path = None  # look it up again if the login fails
        self._open_session(path)
        self._memory.sessions_path = path

    def _use_basic(self) -> None:
        if self._target.auth == "session":
            self.notes.append("the service has no sessions, so each request sends the password (auth: basic)")
        # Bytes: requests would encode text as Latin-1.
        self._http.auth = (self._target.user.encode(), self._secret().encode())  # type: ignore[assignment]

    def _secret(self) -> str:
        assert self._target.password_file is not None
        return read_secret(self._target.password_file)

    def _sessions_path(self) -> str | None:
        root, _ = self._serviceinnermost()
        links = root.get("Links")
        link = links.get("Sessions") if isinstance(links, Mapping) else None
        if isinstance(link, Mapping) and isinstance(path := link.get("@odata.id"), str):
            return path
        service = root.get("SessionService")
        if not isinstance(service, Mapping) or not isinstance(path := service.get("@odata.id"), str):
            return None
        try:
            sessions = self._get(path)[0].get("Sessions")
        except (MissingError, _ExpiredError):
            return None
        path = sessions.get("@odata.id") if isinstance(sessions, Mapping) else None
        return path if isinstance(path, str) else None

    def _open_session(self, path: str) -> None:
        url = self._url(path)
        login = {"UserName": self._target.user, "Password": self._secret()}
        response = self._send("POST", url, login)
        status = response.status_code
        is_good = status in (200, 201, 204)
        token = response.headers.get("X-Auth-Token", "")
        if is_good and token:
            # Only the path is used, because the host may be another address of the BMC.
            session_path = _path_of(response.headers.get("Location", ""))
            # From here on there is a session to end, even if reading the rest of the answer fails.
            self._session = Session(session_path, token)
            body = self._body(response, url)
            self._session = Session(session_path or _own_path(body), token)
            return
        body = self._body(response, url)
        if is_good:
            raise SensorAbsentError(f"{url}: login answered HTTP {status} without a token; try auth: basic")
        if b"SessionLimitExceeded" in body:
            raise SensorTimeoutError(
                f"{url}: all sessions of the service are in use; end some of them, or set auth: basic"
            )
        if status in (400, 401, 403):
            raise self._wrong_login(url, status)
        self._check(status, url)
        raise SensorGlitchError(f"{url}: login answered HTTP {status}")

    def _wrong_login(self, url: str, status: int) -> SensorDeniedError:
        target = self._target
        if not target.user:
            return SensorDeniedError(f"{url}: a login is required (HTTP {status}); set user and password_file")
        return SensorDeniedError(
            f"{url}: login of user {target.user} denied (HTTP {status}); check the user and {target.password_file}"
        )

    def _raise_wrong_login(self, path: str) -> NoReturn:
        raise self._wrong_login(self._url(path), 401)

    # -- logout -----------------------------------------------------------------------------------

    def close(self) -> None:
        """End the session and close the connection; safe to call twice."""
        session, self._session = self._session, None
        try:
            if session is not None:
                self.begin(LOGOUT_S)
                self._end(session)
        finally:
            self._http.auth = None
            self._http.close()

    def _end(self, session: Session, *, is_retry: bool = False) -> None:
        """End a session; if that fails, keep it for the next client.

        Args:
            session: The session.
            is_retry: Whether this was tried before: then any answer counts as success.
        """
        if not session.path:
            return
        try:
            response = self._send("DELETE", self._url(session.path), token=session.token)
            self._body(response, session.path)
            is_ended = is_retry or response.status_code not in _BUSY | {500}
        except SensorError:
            is_ended = False
        if not is_ended and len(self._memory.pending) < MAX_PENDING_SESSIONS:
            self._memory.pending.append(session)

    def _end_pending(self) -> None:
        pending, self._memory.pending = self._memory.pending, []
        for session in pending:
            self._end(session, is_retry=True)

    # -- one request -------------------------------------------------------------------------------

    def _send(
        self, method: str, url: str, body: Mapping[str, str] | None = None, *, token: str = ""
    ) -> requests.Response:
        if self._session is not None and not token and method == "GET":
            token = self._session.token
        for is_last in (method != "GET", True):
            left_s = self._left_s(url)
            connect_s = max(left_s / 2, 0.1)
            try:
                return self._http.request(
                    method,
                    url,
                    json=body,
                    headers={"X-Auth-Token": token} if token else {},
                    timeout=(connect_s, left_s),
                    allow_redirects=False,
                    stream=True,
                )
            except requests.exceptions.SSLError as error:
                raise self._not_trusted(error) from None
            except requests.exceptions.ConnectTimeout:
                raise SensorTimeoutError(f"{url}: no connection within {connect_s:.1f} s") from None
            except (requests.exceptions.Timeout, TimeoutError):
                raise self._timeout(url) from None
            except requests.exceptions.ConnectionError as error:
                if any(isinstance(inner, TooLongError) for inner in chain(error)):
                    text = f"the headers of the answer are longer than {MAX_HEADER_BYTES >> 10} KiB"
                    raise SensorGlitchError(f"{url}: {text}") from None
                # The service closed the idle connection: try once more on a new one.
                if is_last or not _was_cut(error):
                    raise _no_connection(url, error) from None
            except requests.exceptions.RequestException as error:
                raise SensorGlitchError(f"{url}: {type(error).__name__}") from None
            except OSError as error:
                raise SensorGlitchError(f"{url}: {short(error)}") from None
        raise AssertionError("unreachable")

    def _left_s(self, url: str) -> float:
        try:
            return self._deadline.left_s()
        except TimeoutError:
            raise self._timeout(url) from None

    def _timeout(self, url: str) -> SensorTimeoutError:
        return SensorTimeoutError(f"{url}: no answer within {self._span_s:g} s")

    def _body(self, response: requests.Response, url: str) -> bytes:
        """Read the whole body in pieces, so that its length and duration are limited."""
        try:
            return b"".join(self._pieces(response.raw, url))
        except (urllib3.exceptions.ReadTimeoutError, TimeoutError):
            response.close()
            raise self._timeout(url) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            response.close()
            raise SensorGlitchError(f"{url}: the answer was interrupted: {short(error)}") from None
        except SensorError:
            response.close()
            raise

    def _pieces(self, raw: Any, url: str) -> Iterator[bytes]:
        read = getattr(raw, "read1", raw.read)  # `read` would wait until a piece is full
        size = 0
        while piece := read(_PIECE_BYTES):
            size += len(piece)
            if size > MAX_BODY_BYTES:
                raise SensorGlitchError(f"{url}: answer longer than {MAX_BODY_BYTES >> 10} KiB")
            self._left_s(url)
            yield piece

    def _count_values(self, body: bytes, url: str) -> None:
        # Before they are parsed. Each value but the first follows one of these characters.
        values = sum(map(body.count, (b",", b"[", b"{"))) + 1
        self.values += values
        if values > MAX_VALUES:
            raise SensorGlitchError(f"{url}: answer with more than {MAX_VALUES} JSON values")
        if self.values > MAX_ALL_VALUES:
            raise SensorGlitchError(f"{url}: all answers together have more than {MAX_ALL_VALUES} JSON values")

    def _check(self, status: int, url: str) -> None:
        if status == 200:
            return
        if status == 401:
            raise _ExpiredError(f"{url}: HTTP 401")
        if status == 403:
            raise ForbiddenError(f"{url}: HTTP 403: user {self._target.user} lacks permission; grant the role ReadOnly")
        if status in (404, 410):
            raise MissingError(f"{url}: HTTP {status}")
        if status in _BUSY:
            raise BusyError(f"{url}: HTTP {status}")
        raise SensorGlitchError(f"{url}: HTTP {status}")

    def _not_trusted(self, error: Exception) -> SensorError:
        parts = urlsplit(self._target.base)
        host = parts.netloc
        reason = certificate_reason(error)
        if reason is None:
            return SensorAbsentError(f"{host}: TLS: {short(innermost(error))}")
        fingerprint = leaf_fingerprint(parts.hostname or "", parts.port or 443)
        text = f"; fingerprint of its present certificate: {fingerprint}" if fingerprint else ""
        if self._target.pin:
            untrusted = UntrustedError(f"{host}: its certificate is not the pinned one{text}")
        else:
            untrusted = UntrustedError(
                f"{host}: its certificate is not trusted ({reason}): set ca_file to the certificate of its issuer, or "
                f"fingerprint to its own fingerprint (verify it first), or insecure: true{text}"
            )
        untrusted.fix = f"fingerprint: {fingerprint}" if fingerprint else ""
        return untrusted


def _resource(body: bytes, url: str) -> Json:
    try:
        data = json.loads(body, parse_float=Decimal, parse_constant=_no_number)
    except (ValueError, RecursionError, ArithmeticError):
        raise SensorGlitchError(f"{url}: the answer is not valid JSON") from None
    if not isinstance(data, dict):
        raise SensorGlitchError(f"{url}: the answer is not a JSON object")
    return data


def _no_number(_: str) -> None:
    return None


def _own_path(body: bytes) -> str:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    path = data.get("@odata.id") if isinstance(data, dict) else None
    return path if isinstance(path, str) else ""


def _joined(base: str, link: str) -> str:
    try:
        return urljoin(base, link)
    except ValueError:
        raise SensorGlitchError(f"{base}: the link {link[:80]!r} is not a valid URL") from None


def _path_of(url: str) -> str:
    """Return the path of a URL; empty if the URL is not valid."""
    try:
        return urlsplit(url).path
    except ValueError:
        return ""


def _origin(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    except ValueError:
        return "", "an invalid URL"
    return parts.scheme, f"{parts.hostname}:{port}"


def _was_cut(error: BaseException) -> bool:
    return any(isinstance(inner, urllib3.exceptions.ProtocolError) for inner in chain(error))


def _no_connection(url: str, error: BaseException) -> SensorError:
    for inner in chain(error):
        if isinstance(inner, socket.gaierror):
            return SensorAbsentError(f"{url}: unknown host")
        if isinstance(inner, OSError) and inner.errno is not None and inner.strerror:
            return SensorAbsentError(f"{url}: {inner.strerror}")
    if _was_cut(error):
        return SensorTimeoutError(f"{url}: the service closed the connection without answering")
    return SensorAbsentError(f"{url}: no connection")
