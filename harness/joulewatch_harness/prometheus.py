"""A client of the Prometheus HTTP API, good for Mimir, Thanos and VictoriaMetrics too.

Authentication, TLS, a tenant's header, a base URL with a path, retries with a deadline, and errors that
say what answered. Secrets are read from files when the client is made; they are in no error, log or repr.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit, urlunsplit

from joulewatch_harness.errors import ConfigError, QueryError, QueryTooLargeError, QueryUnavailableError

if TYPE_CHECKING:
    import requests

logger = logging.getLogger(__name__)

RETRY_STATUS: Final = frozenset({429, 500, 502, 503, 504})
FIRST_BACKOFF_S: Final = 0.25
LONGEST_BACKOFF_S: Final = 10.0
PING_RETRY_S: Final = 3.0
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


@dataclass(frozen=True, slots=True)
class Answer:
    """A raw HTTP answer."""

    status: int
    text: str


class PrometheusClient:
    """Asks one server; one ``requests.Session``, used by one thread at a time.

    Args:
        options: the server.
        retry_s: how long 429, 5xx and connection errors are tried again; 0: never.
        sleep, monotonic, jitter: for tests.

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
        import requests

        self.options = options
        self.url = options.url
        self._retry_s = retry_s
        self._sleep = sleep
        self._monotonic = monotonic
        self._jitter = jitter
        self._warned: set[str] = set()
        self._session = requests.Session()
        self._session.headers.update(options.headers)
        self._session.headers["User-Agent"] = "joulewatch"
        self._session.auth = _auth(options)
        if options.cert_file is not None:
            _readable(options.cert_file, "cert_file")
            self._session.cert = str(options.cert_file)
            if options.key_file is not None:
                _readable(options.key_file, "key_file")
                self._session.cert = (str(options.cert_file), str(options.key_file))
        if options.ca_file is not None:
            _readable(options.ca_file, "ca_file")
        # Given with each request: one in the session alone gives way to REQUESTS_CA_BUNDLE of the environment.
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
        """``data`` of a GET below the base URL, such as ``/api/v1/targets``; errors as of ``post``."""
        return self._ask("GET", path, params or {}, retry_s)

    def post(self, path: str, data: Mapping[str, Any] | None = None, *, retry_s: float | None = None) -> Any:
        """``data`` of a POST with form fields, for queries of any length.

        Raises:
            QueryTooLargeError: HTTP 422.
            QueryUnavailableError: nothing answers, or 429 or 5xx until the time for retries was over.
            QueryError: the server's own error text, or an answer that is not a Prometheus'.
        """
        return self._ask("POST", path, data or {}, retry_s)

    def query(self, promql: str, at_s: float | None = None, *, retry_s: float | None = None) -> list[dict[str, Any]]:
        """Run an instant query; the list of series (``metric`` and ``value`` or ``values``).

        Args:
            promql: the query; with a range selector the answer holds raw samples.
            at_s: Unix seconds, rounded to ms; None: the server's now.
            retry_s: instead of the client's own.

        Raises:
            QueryError: as of ``post``.
        """
        data = {"query": promql} if at_s is None else {"query": promql, "time": f"{at_s:.3f}"}
        answer = self.post(QUERY_PATH, data, retry_s=retry_s)
        result = answer.get("result") if isinstance(answer, dict) else None
        if not isinstance(result, list):
            raise QueryError(f"{self.url}{QUERY_PATH} does not answer like a Prometheus: no list of results")
        return result

    def ping(self) -> str:
        """Check that a Prometheus answers; its version, or "" where the server does not tell one.

        Raises:
            QueryError: nothing answers within a few seconds, or what answers is no Prometheus.
        """
        try:
            info = self.get("/api/v1/status/buildinfo", retry_s=PING_RETRY_S)
            if isinstance(info, dict) and isinstance(info.get("version"), str):
                return str(info["version"])
        except QueryUnavailableError:
            raise
        except QueryError as error:
            # VictoriaMetrics, older Mimir and gateways before them do not have this page.
            logger.debug("no build information: %s", error)
        self.query("1", retry_s=PING_RETRY_S)
        return ""

    def send(self, method: str, url: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """One raw request without retries, any status returned; ``url`` is whole or a path below the base URL.

        Raises:
            QueryUnavailableError: nothing answers.
        """
        full = url if "://" in url else self.url + url
        response = self._request(method, full, {"data": body, "headers": dict(headers or {})})
        return Answer(response.status_code, response.text)

    def _ask(self, method: str, path: str, fields_: Mapping[str, Any], retry_s: float | None) -> Any:
        url = self.url + path
        values = {**self.options.params, **fields_}
        argument = {"params" if method == "GET" else "data": values}
        deadline_s = self._monotonic() + (self._retry_s if retry_s is None else retry_s)
        for wait_s in self._waits():
            after_s = 0.0
            try:
                response = self._request(method, url, argument)
            except QueryUnavailableError as error:
                problem = error
            else:
                if response.status_code not in RETRY_STATUS:
                    return self._data(url, response)
                problem = QueryUnavailableError(f"{url}: {_error_text(response)}")
                after_s = _retry_after_s(response.headers.get("Retry-After"))
            wait_s = max(wait_s, after_s)
            if self._monotonic() + wait_s > deadline_s:
                raise problem
            logger.info("%s; next try in %.1f s", problem, wait_s)
            self._sleep(wait_s)
        raise AssertionError("the waits never end")

    def _waits(self) -> Iterator[float]:
        """Doubling waits, each with jitter, so that many clients do not come back at once."""
        wait_s = FIRST_BACKOFF_S
        while True:
            yield wait_s * (0.5 + self._jitter())
            wait_s = min(2 * wait_s, LONGEST_BACKOFF_S)

    def _request(self, method: str, url: str, argument: Mapping[str, Any]) -> requests.Response:
        import requests

        try:
            # A redirect would turn a POST into a GET, and could carry the credentials elsewhere.
            response = self._session.request(
                method, url, timeout=self.options.timeout_s, verify=self._verify, allow_redirects=False, **argument
            )
        except requests.RequestException as error:
            # Not chained: the text of requests' own errors holds the whole URL, and with it params.
            raise QueryUnavailableError(f"{url}: {_reason(error, self.options.timeout_s)}") from None
        if 300 <= response.status_code < 400 and "Location" in response.headers:
            raise QueryError(
                f"{url} redirects to {without_secrets(response.headers['Location'])}: give the URL that answers itself"
            )
        return response

    def _data(self, url: str, response: requests.Response) -> Any:
        try:
            answer = response.json()
        except (ValueError, RecursionError):
            answer = None
        if response.status_code in (401, 403):
            raise QueryError(
                f"{url}: {_error_text(response)}: check username, password_file or bearer_token_file "
                "in the file named by --prometheus.config"
            )
        if not isinstance(answer, dict) or answer.get("status") not in ("success", "error"):
            raise QueryError(
                f"{url} does not answer like a Prometheus ({_described(response)}): give its base URL, "
                "such as http://host:9090 or https://host/prometheus"
            )
        if answer["status"] == "error" or response.status_code >= 400:
            text = f"{url}: {_error_text(response)}"
            raise QueryTooLargeError(text) if response.status_code == 422 else QueryError(text)
        for warning in answer.get("warnings") or ():
            if warning not in self._warned:
                self._warned.add(warning)
                logger.warning("%s warns: %s", self.url, warning)
        return answer.get("data")


def _auth(options: PrometheusOptions) -> Any:
    """An auth object in every case: without one, requests would look into ~/.netrc, which beats a header."""
    from requests.auth import AuthBase, HTTPBasicAuth

    if options.username and options.password_file is not None:
        return HTTPBasicAuth(options.username.encode(), _secret(options.password_file, "password_file").encode())
    token = "" if options.bearer_token_file is None else _secret(options.bearer_token_file, "bearer_token_file")

    class Bearer(AuthBase):
        def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
            if token:
                request.headers["Authorization"] = f"Bearer {token}"
            return request

    return Bearer()


def _secret(path: Path, key: str) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key} {path}: cannot be read: {_os_text(error)}") from None
    if not text or "\n" in text:
        raise ConfigError(f"{key} {path}: wants exactly one line")
    return text


def _readable(path: Path, key: str) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"{key} {path}: cannot be read: {_os_text(error)}") from error


def _os_text(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def _reason(error: BaseException, timeout_s: float) -> str:
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


def _error_text(response: requests.Response) -> str:
    """The server's own words: ``HTTP 422 execution: query processing would load too many samples``."""
    try:
        answer = response.json()
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict) and answer.get("error"):
        kind = answer.get("errorType") or "error"
        return f"HTTP {response.status_code} {kind}: {answer['error']}"
    return _described(response)


def _described(response: requests.Response) -> str:
    kind = response.headers.get("Content-Type", "").partition(";")[0] or "no content type"
    start = " ".join(response.text[:200].split())[:60]
    return f"HTTP {response.status_code}, {kind}" + (f", begins {json.dumps(start)}" if start else ", empty")


def _retry_after_s(value: str | None) -> float:
    """Seconds of a Retry-After header; its other form, a date, counts as none: clocks differ."""
    return min(float(value), 3600.0) if value and re.fullmatch(r"\d{1,6}(\.\d+)?", value.strip()) else 0.0


def with_timeout(options: PrometheusOptions, timeout_s: float) -> PrometheusOptions:
    """The same server with another time-out."""
    return replace(options, timeout_s=timeout_s)
