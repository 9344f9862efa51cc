"""A client of the Prometheus HTTP API, which Mimir, Thanos and VictoriaMetrics have too.

It supports authentication, TLS, a tenant's header, a base URL with a path and retries with a deadline; errors describe
the response. Secrets are read from files when the client is created and appear in no error, log or repr.
"""

from __future__ import annotations

import json
import logging
import random
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

from joulewatch_harness.clients.bounded import (
    LONGEST_QUERY_BODY,
    MIB,
    TooLongError,
    TooSlowError,
    bounded_session,
    read_body,
)
from joulewatch_harness.clients.options import QUERY_PATH, PrometheusOptions, without_secrets
from joulewatch_harness.errors import QueryError, QueryRangeError, QueryTooLargeError, QueryUnavailableError, one_line

if TYPE_CHECKING:
    import requests

logger = logging.getLogger(__name__)

RETRY_STATUS: Final = frozenset({429, 500, 502, 503, 504})
FIRST_BACKOFF_S: Final = 0.25
LONGEST_BACKOFF_S: Final = 10.0
PING_RETRY_S: Final = 3.0
LONGEST_RETRIES_S: Final = 300.0
"""How long all requests of one client retry, together."""
NO_POST_STATUS: Final = frozenset({405, 501})
TOO_LARGE_STATUS: Final = frozenset({413, 422})
LONGEST_TEXT: Final = MIB
"""Longest answer of a receiver or a Pushgateway."""


_RANGE_LIMIT: Final = re.compile(
    r"(range|length|duration|lookback|look back|period).{0,60}(exceed|limit|too (long|large)|longer than|maximum)"
    r"|(exceed|limit|maximum|at most|more than).{0,60}(range|length|duration|lookback|days|hours)",
    re.IGNORECASE,
)
"""The words of servers that refuse a query because its range is too long; the status is 400, 413, 422 or 500."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A raw HTTP response."""

    status: int
    text: str


class PrometheusClient:
    """A client of one server, with one ``requests.Session``; used by one thread at a time.

    Args:
        options: The server.
        retry_s: How long to retry after 429, 5xx and connection errors; 0: never.
        sleep, monotonic, jitter: For tests.

    Raises:
        ConfigError: a file with a secret or a certificate cannot be read.
    """

    def __init__(
        self,
        options: PrometheusOptions,
        *,
        retry_s: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.options = options
        self.url = options.url
        self._retry_s = retry_s
        self._retry_left_s = LONGEST_RETRIES_S
        self._get_only = False
        self._sleep = sleep
        self._monotonic = monotonic
        self._jitter = jitter
        self._warned: set[str] = set()
        self._session = bounded_session()
        host = urlsplit(options.url).hostname or ""
        if host in ("localhost", "::1") or host.startswith("127."):
            # Compression takes Prometheus five times as long as the query, and only slow networks gain by it.
            self._session.headers["Accept-Encoding"] = "identity"
        self._session.headers.update(options.headers)
        self._session.headers["User-Agent"] = "joulewatch"
        self._session.auth = _auth(options)
        options.check_files()
        if options.cert_file is not None:
            key_file = options.key_file or options.cert_file
            self._session.cert = (str(options.cert_file), str(key_file))
        # Passed with each request, because REQUESTS_CA_BUNDLE would override that of the session.
        self._verify: bool | str = str(options.ca_file) if options.ca_file is not None else not options.insecure

    def __repr__(self) -> str:
        return f"PrometheusClient({self.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def get(self, path: str, params: Mapping[str, Any] | None = None, *, retry_s: float | None = None) -> Any:
        """Return ``data`` of a GET below the base URL, such as ``/api/v1/targets``; raise the errors of ``post``."""
        return self._data_of("GET", path, params or {}, retry_s)

    def post(self, path: str, data: Mapping[str, Any] | None = None, *, retry_s: float | None = None) -> Any:
        """Return ``data`` of a POST with form fields, for queries of any length.

        Raises:
            QueryTooLargeError: HTTP 413 or 422, an answer that is too long, or a range that is too long.
            QueryUnavailableError: no response, or 429 or 5xx until the end of the retries.
            QueryError: an error of the server, or a response that is not from a Prometheus.
        """
        return self._data_of("POST", path, data or {}, retry_s)

    def query(self, promql: str, at_s: float | None = None, *, retry_s: float | None = None) -> list[dict[str, Any]]:
        """Run an instant query; return the list of series (``metric`` and ``value`` or ``values``).

        Args:
            promql: The query; a range selector returns raw samples.
            at_s: Unix seconds, rounded to ms; None: the server's current time.
            retry_s: Overrides the client's ``retry_s``.

        Raises:
            QueryError: The query failed, as for ``post``.
        """
        data = {"query": promql} if at_s is None else {"query": promql, "time": f"{at_s:.3f}"}
        answer = self.post(QUERY_PATH, data, retry_s=retry_s)
        result = answer.get("result") if isinstance(answer, dict) else None
        if not isinstance(result, list) or not _is_result(result):
            raise QueryError(f"{self.url}{QUERY_PATH} does not answer like a Prometheus: no list of series")
        return result

    def ping(self) -> str:
        """Check that the server is a Prometheus; return its version, or "" if it does not report one.

        Raises:
            QueryError: no response within a few seconds, or the server is not a Prometheus.
        """
        try:
            info = self.get("/api/v1/status/buildinfo", retry_s=PING_RETRY_S)
            if isinstance(info, dict) and isinstance(info.get("version"), str):
                return str(info["version"])
        except QueryUnavailableError:
            raise
        except QueryError as error:
            # VictoriaMetrics, older Mimir and gateways in front of them do not have this page.
            logger.debug("no build information: %s", error)
        self.query("1", retry_s=PING_RETRY_S)
        return ""

    def send(self, method: str, url: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """Send one request without retries; return a response of any status.

        Args:
            method: ``GET``, ``POST``, ...
            url: A complete URL, or a path below the base URL.
            body, headers: Of the request.

        Raises:
            QueryUnavailableError: no response.
        """
        full = url if "://" in url else self.url + url
        argument = {"data": body, "headers": dict(headers or {})}
        response = self._request(method, full, argument, LONGEST_TEXT)
        return Answer(response.status_code, response.content.decode("utf-8", "replace"))

    def _data_of(self, method: str, path: str, fields: Mapping[str, Any], retry_s: float | None) -> Any:
        url = self.url + path
        started_s = self._monotonic()
        # All requests of a client together retry for a limited time: a command may need thousands of them.
        allowed_s = min(self._retry_s if retry_s is None else retry_s, max(self._retry_left_s, 0.0))
        for attempt, wait_s in enumerate(self._waits(), 1):
            after_s = 0.0
            method = "GET" if self._get_only else method
            argument = {"params" if method == "GET" else "data": {**self.options.params, **fields}}
            try:
                response = self._request(method, url, argument)
            except QueryUnavailableError as error:
                problem = str(error)
            else:
                if method == "POST" and response.status_code in NO_POST_STATUS:
                    # A gateway that passes only GET. The URL may become too long for it, and it then reports that.
                    logger.info("%s: %s: using GET", url, _error_text(response))
                    self._get_only = True
                    return self._data_of("GET", path, fields, retry_s)
                is_range = response.status_code == 500 and _RANGE_LIMIT.search(_error_text(response))
                if response.status_code not in RETRY_STATUS or is_range:
                    if attempt > 1:
                        self._retry_left_s -= self._monotonic() - started_s
                    return self._data(url, response)
                problem = f"{url}: {_error_text(response)}{self._via(url)}"
                after_s = _retry_after_s(response.headers.get("Retry-After"))
            wait_s = max(wait_s, after_s)
            spent_s = self._monotonic() - started_s
            if spent_s + wait_s > allowed_s:
                self._retry_left_s -= spent_s
                attempts = f" ({attempt} attempts in {spent_s:.0f} s)" if attempt > 1 else ""
                raise QueryUnavailableError(problem + attempts) from None
            logger.info("%s; retrying in %.1f s", problem, wait_s)
            self._sleep(wait_s)
        raise AssertionError("the waits never end")

    def _waits(self) -> Iterator[float]:
        """Yield doubling waits with jitter, so that many clients do not retry at the same time."""
        wait_s = FIRST_BACKOFF_S
        while True:
            yield wait_s * (0.5 + self._jitter())
            wait_s = min(2 * wait_s, LONGEST_BACKOFF_S)

    def _request(
        self, method: str, url: str, argument: Mapping[str, Any], longest: int = LONGEST_QUERY_BODY
    ) -> requests.Response:
        import requests

        timeout_s = self.options.timeout_s
        try:
            # A redirect would turn a POST into a GET, and could send the credentials to another server.
            response = self._session.request(
                method, url, timeout=timeout_s, verify=self._verify, allow_redirects=False, stream=True, **argument
            )
            # Read here, because requests itself would decompress a body of any length.
            vars(response).update(_content=read_body(response, longest, timeout_s), _content_consumed=True)
        except TooLongError as error:
            raise QueryTooLargeError(f"{url}: {error.strerror}{self._via(url)}") from None
        except (requests.RequestException, TooSlowError) as error:
            # Not chained: the errors of requests contain the whole URL, including params.
            problem = f"{url}: {_reason(error, timeout_s)}{self._via(url)}"
            if any(isinstance(cause, TooLongError) for cause in _causes(error)):
                raise QueryTooLargeError(problem) from None
            raise QueryUnavailableError(problem) from None
        if 300 <= response.status_code < 400 and "Location" in response.headers:
            raise QueryError(
                f"{url} redirects to {without_secrets(response.headers['Location'])}: "
                "give the URL that answers without a redirect"
            )
        return response

    def _via(self, url: str) -> str:
        """Return the proxy that the environment prescribes for a URL, for errors; empty without one."""
        from requests.utils import get_environ_proxies, select_proxy

        proxy = select_proxy(url, get_environ_proxies(url))
        return f" (through the proxy {without_secrets(proxy)} of the environment, see NO_PROXY)" if proxy else ""

    def _data(self, url: str, response: requests.Response) -> Any:
        answer = _json_of(response)
        if response.status_code in (401, 403):
            raise QueryError(
                f"{url}: {_error_text(response)}: check username, password_file or bearer_token_file "
                "in the file named by --prometheus.config"
            )
        if not isinstance(answer, dict) or answer.get("status") not in ("success", "error"):
            raise QueryError(
                f"{url} does not answer like a Prometheus ({_described(response)}){self._via(url)}: give its base URL, "
                "such as http://host:9090 or https://host/prometheus"
            )
        if answer["status"] == "error" or response.status_code >= 400:
            text = f"{url}: {_error_text(response)}"
            if _RANGE_LIMIT.search(text):
                raise QueryRangeError(text)
            raise QueryTooLargeError(text) if response.status_code in TOO_LARGE_STATUS else QueryError(text)
        for warning in answer.get("warnings") or ():
            if warning not in self._warned:
                self._warned.add(warning)
                logger.warning("%s warns: %s", self.url, one_line(str(warning)))
        return answer.get("data")


def _auth(options: PrometheusOptions) -> Any:
    """Return an auth object in every case: without one, requests would use ~/.netrc, which overrides headers."""
    from requests.auth import AuthBase

    authorization = options.authorization()

    class Authorization(AuthBase):
        def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
            if authorization:
                request.headers["Authorization"] = authorization
            return request

    return Authorization()


def _reason(error: BaseException, timeout_s: float) -> str:
    """Return why a request failed, from the innermost cause: the outer texts contain the URL with its parameters."""
    import requests

    if isinstance(error, requests.Timeout):
        return f"no answer within {timeout_s:g} s"
    chain = _causes(error)
    for cause in reversed(chain):
        if isinstance(cause, (TooSlowError, TooLongError)):
            return str(cause.strerror)
        if isinstance(cause, TimeoutError):
            return f"no answer within {timeout_s:g} s"
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the certificate is not valid: {cause.verify_message}; give its authority as ca_file"
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed: {cause.reason or 'error'}"
        if isinstance(cause, OSError) and cause.strerror:
            return f"cannot be reached: {cause.strerror}"
    return f"cannot be reached: {type(chain[-1]).__name__}"


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and what it was raised from, the innermost last."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        inner = getattr(current, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((item for item in current.args if isinstance(item, BaseException)), None)
        current = inner or current.__cause__ or current.__context__
    return chain


def _json_of(response: requests.Response) -> Any:
    """Return the value of a JSON body; None if it is not valid. Requests would guess the encoding of a long one."""
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return None


def _is_result(result: list[Any]) -> bool:
    """Return whether each entry of a result is a series with labels and samples."""
    try:
        for series in result:
            if not all(isinstance(label, str) for label in series["metric"].values()):
                return False
            for at_s, value in series["values"] if "values" in series else [series["value"]]:
                at_s + float(value)
    except (TypeError, ValueError, KeyError, AttributeError):
        return False
    return True


def _error_text(response: requests.Response) -> str:
    """Return the server's error: ``HTTP 422 execution: query processing would load too many samples``."""
    answer = _json_of(response)
    if isinstance(answer, dict) and answer.get("error"):
        kind = answer.get("errorType") or "error"
        return f"HTTP {response.status_code} {one_line(str(kind))}: {one_line(str(answer['error']))}"
    return _described(response)


def _described(response: requests.Response) -> str:
    kind = one_line(response.headers.get("Content-Type", "").partition(";")[0]) or "no content type"
    start = " ".join(response.content[:200].decode("utf-8", "replace").split())[:60]
    return f"HTTP {response.status_code}, {kind}" + (f", begins {json.dumps(start)}" if start else ", empty")


def _retry_after_s(value: str | None) -> float:
    """Return the seconds of a Retry-After header; a date counts as 0, because clocks differ."""
    return min(float(value), 3600.0) if value and re.fullmatch(r"\d{1,6}(\.\d+)?", value.strip()) else 0.0
