"""The HTTP server: paths, formats, limits, time-outs, TLS, basic auth. Loopback only."""

from __future__ import annotations

import base64
import gc
import gzip
import http.client
import json
import logging
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from joulewatch_exporter.config.web import CIPHERS
from joulewatch_exporter.errors import ConfigError
from joulewatch_exporter.server import access as access_module
from joulewatch_exporter.server.access import Access
from joulewatch_exporter.server.connection import MAX_REQUEST_BYTES, Request, Response
from joulewatch_exporter.server.server import WebServer
from joulewatch_exporter.threads import AbandonedError
from support.waiting import wait_until

BODY = b"# TYPE x gauge\n" + b"".join(b'x{n="%d"} 1\n' % i for i in range(200))

Serve = Callable[..., WebServer]


class FakeScrape:
    """Records the scrapes; can be made to wait or to fail."""

    def __init__(self) -> None:
        self.asked: list[tuple[str | None, frozenset[str] | None, float]] = []
        self.hold: threading.Event | None = None
        self.entered = threading.Semaphore(0)
        self.error: Exception | None = None
        self.body = BODY

    def __call__(
        self, *, accept: str | None, only: frozenset[str] | None, timeout_s: float, take_over: object
    ) -> tuple[bytes, str]:
        self.asked.append((accept, only, timeout_s))
        self.entered.release()
        if self.hold is not None:
            self.hold.wait(10.0)
        if self.error is not None:
            raise self.error
        return self.body, "text/plain; version=0.0.4; charset=utf-8"


@pytest.fixture
def scrape() -> FakeScrape:
    return FakeScrape()


@pytest.fixture
def serve(scrape: FakeScrape) -> Iterator[Serve]:
    servers: list[WebServer] = []

    def begin(*addresses: str, **settings: Any) -> WebServer:
        settings.setdefault("collectors", ["rapl", "hwmon"])
        web = WebServer(addresses or ("127.0.0.1:0",), settings.pop("scrape", scrape), **settings)
        servers.append(web)
        web.start()
        return web

    yield begin
    for web in servers:
        web.stop()


def port_of(web: WebServer) -> int:
    return int(web.urls[0].rsplit(":", 1)[1].partition("/")[0])


def ask(
    web: WebServer, target: str = "/metrics", method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(web), timeout=5)
    try:
        connection.request(method, target, headers=headers or {})
        response = connection.getresponse()
        return response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def talk(web: WebServer, data: bytes) -> bytes:
    """Send raw bytes, and read until the server closes."""
    with socket.create_connection(("127.0.0.1", port_of(web)), timeout=5) as peer:
        peer.sendall(data)
        received = b""
        while chunk := peer.recv(65536):
            received += chunk
        return received


# -- paths -----------------------------------------------------------------------------------------


def test_metrics(serve: Serve) -> None:
    status, headers, body = ask(serve())
    assert (status, body) == (200, BODY)
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert headers["content-length"] == str(len(BODY))
    assert headers["vary"] == "Accept, Accept-Encoding"


def test_landing_page_and_health(serve: Serve) -> None:
    web = serve(telemetry_path="/m")
    status, headers, body = ask(web, "/")
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert b'href="/m"' in body
    assert b"collect[]=rapl" in body
    assert ask(web, "/-/healthy")[0] == 200
    assert ask(web, "/m")[0] == 200


def test_conditions(serve: Serve) -> None:
    status, headers, body = ask(serve(), "/conditions")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert body == b'{"joulewatch_conditions":1,"devices":[]}'


@pytest.mark.parametrize("target", ["/metrics/", "/favicon.ico", "/-/ready", "/metricsx"])
def test_other_paths_are_not_found(serve: Serve, target: str) -> None:
    status, _, body = ask(serve(), target)
    assert status == 404
    assert b"/metrics" in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_only_get_and_head(serve: Serve, method: str) -> None:
    status, headers, _ = ask(serve(), method=method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")


def test_head_has_the_headers_and_no_body(serve: Serve) -> None:
    status, headers, body = ask(serve(), method="HEAD")
    assert (status, body) == (200, b"")
    assert headers["content-length"] == str(len(BODY))


def test_collect_chooses_families(serve: Serve, scrape: FakeScrape) -> None:
    web = serve()
    ask(web)
    ask(web, "/metrics?collect[]=rapl&collect%5B%5D=hwmon")
    assert [only for _, only, _ in scrape.asked] == [None, frozenset({"rapl", "hwmon"})]
    status, _, body = ask(web, "/metrics?collect[]=rpl")
    assert status == 400
    assert b"'rpl'; did you mean rapl?" in body


def test_a_scrape_that_fails_is_a_500_and_is_logged(
    serve: Serve, scrape: FakeScrape, caplog: pytest.LogCaptureFixture
) -> None:
    web = serve()
    scrape.error = RuntimeError("broken")
    assert ask(web)[0] == 500
    assert "broken" in caplog.text
    scrape.error = None
    assert ask(web)[0] == 200


def test_the_timeout_of_prometheus_is_respected(serve: Serve, scrape: FakeScrape) -> None:
    web = serve(read_timeout_s=2.0)
    for value in ("2", "10", "nonsense", "-1", "1e-9"):
        ask(web, headers={"X-Prometheus-Scrape-Timeout-Seconds": value})
    first_s, *others_s = [timeout_s for _, _, timeout_s in scrape.asked]
    assert 1.0 < first_s < 1.5
    assert others_s == pytest.approx([2.0, 2.0, 2.0, 0.05])


def test_the_time_that_a_scrape_waits_for_others_counts(
    serve: Serve, scrape: FakeScrape, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may start again because the one that it waited for hung."""
    web = serve(read_timeout_s=2.0)

    def run(key: object, make: Callable[[Callable[[], None]], Response], wait_s: float) -> Response:
        time.sleep(0.3)
        return make(lambda: None)

    monkeypatch.setattr(web._scrapes, "run", run)
    ask(web, headers={"X-Prometheus-Scrape-Timeout-Seconds": "1"})
    ((_, _, timeout_s),) = scrape.asked
    assert timeout_s <= 0.75 * 0.7


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [("gzip", True), ("deflate, gzip;q=0.5", True), ("*", True), ("gzip;q=0", False), ("identity", False), ("", False)],
)
def test_gzip_is_negotiated(serve: Serve, accepted: str, packed: bool) -> None:
    _, headers, body = ask(serve(), headers={"Accept-Encoding": accepted})
    assert (headers.get("content-encoding") == "gzip") == packed
    assert (gzip.decompress(body) if packed else body) == BODY


def test_small_bodies_are_not_compressed(serve: Serve, scrape: FakeScrape) -> None:
    scrape.body = b"x 1\n"
    _, headers, body = ask(serve(), headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in headers
    assert body == b"x 1\n"


# -- connections -----------------------------------------------------------------------------------


def test_a_connection_serves_many_requests(serve: Serve) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(serve()), timeout=5)
    connection.connect()
    first = connection.sock
    for _ in range(5):
        connection.request("GET", "/metrics")
        assert connection.getresponse().read() == BODY
        assert connection.sock is first
    connection.close()


def test_requests_sent_at_once_are_answered_one_after_another(serve: Serve) -> None:
    request = b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /-/healthy HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert talk(serve(), request + request + last).count(b"HTTP/1.1 200 OK") == 3


def test_http_1_0_is_closed_after_the_answer(serve: Serve) -> None:
    assert b"Connection: close" in talk(serve(), b"GET /-/healthy HTTP/1.0\r\n\r\n")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/2.0\r\n\r\n", b"505"),
        (b"GET /metrics HTTP/1.1\r\nno colon\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nHost : x\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"a" * MAX_REQUEST_BYTES + b"\r\n\r\n", b"431"),
        (b"GET /" + b"a" * MAX_REQUEST_BYTES + b" HTTP/1.1\r\n\r\n", b"431"),
        (b"GET /metrics HTTP/1.1\r\n" + b"".join(b"X%d: 1\r\n" % i for i in range(101)) + b"\r\n", b"431"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 4\r\n\r\nGET ", b"405"),
        (b"GET http://x/metrics HTTP/1.1\r\nConnection: close\r\n\r\n", b"200"),
    ],
)
def test_invalid_requests(serve: Serve, data: bytes, status: bytes) -> None:
    """Each is answered, and then the connection is closed."""
    try:
        answer = talk(serve(), data)
    except ConnectionResetError:
        # The unread rest of an overlong request makes the kernel reset the connection.
        assert status == b"431"
        return
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_slow_peer_is_disconnected_and_delays_no_other(serve: Serve) -> None:
    web = serve(request_timeout_s=0.2)
    with socket.create_connection(("127.0.0.1", port_of(web)), timeout=5) as slow:
        slow.sendall(b"GET /metrics HT")
        assert ask(web)[0] == 200
        assert slow.recv(100) == b"", "closed without an answer"


def test_an_idle_connection_is_closed(serve: Serve) -> None:
    web = serve(keep_alive_s=0.1)
    with socket.create_connection(("127.0.0.1", port_of(web)), timeout=5) as idle:
        idle.sendall(b"GET /-/healthy HTTP/1.1\r\n\r\n")
        received = b""
        while chunk := idle.recv(100):
            received += chunk
    assert received.endswith(b"is healthy\n")


def test_a_connection_without_a_request_is_closed_sooner(serve: Serve) -> None:
    web = serve(request_timeout_s=0.1)
    with socket.create_connection(("127.0.0.1", port_of(web)), timeout=5) as silent:
        assert silent.recv(100) == b""


def test_more_scrapes_at_a_time_than_allowed_are_refused(serve: Serve, scrape: FakeScrape) -> None:
    web = serve(max_requests=2, slot_wait_s=0.0)
    scrape.hold = threading.Event()
    busy = [threading.Thread(target=ask, args=(web,)) for _ in range(2)]
    for thread in busy:
        thread.start()
    for _ in busy:
        assert scrape.entered.acquire(timeout=5)
    status, headers, body = ask(web)
    assert (status, headers["retry-after"]) == (503, "1")
    assert b"--web.max-requests" in body
    assert ask(web, "/-/healthy")[0] == 200, "the limit does not apply to the health check"
    scrape.hold.set()
    for thread in busy:
        thread.join(5)
    assert ask(web)[0] == 200


def test_stopping_ends_idle_and_busy_connections(serve: Serve, scrape: FakeScrape) -> None:
    web = serve()
    scrape.hold = threading.Event()
    address = ("127.0.0.1", port_of(web))
    with socket.create_connection(address, timeout=5) as idle, socket.create_connection(address, timeout=5) as busy:
        busy.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert scrape.entered.acquire(timeout=5)
        began = time.monotonic()
        web.stop()
        assert time.monotonic() - began < 1.0
        assert idle.recv(100) == b""
        scrape.hold.set()
    with pytest.raises(ConnectionRefusedError):
        ask(web)


# -- addresses -------------------------------------------------------------------------------------


def test_several_addresses(serve: Serve) -> None:
    web = serve("127.0.0.1:0", "127.0.0.2:0")
    assert len(web.urls) == 2
    assert web.urls[1].startswith("http://127.0.0.2:")
    assert ask(web)[0] == 200


def test_ipv6(serve: Serve) -> None:
    try:
        web = serve("[::1]:0")
    except ConfigError:
        pytest.skip("this machine has no IPv6 loopback")
    assert web.urls[0].startswith("http://[::1]:")
    connection = http.client.HTTPConnection("::1", port_of(web), timeout=5)
    connection.request("GET", "/-/healthy")
    assert connection.getresponse().read() == b"joulewatch-exporter is healthy\n"
    connection.close()


def test_every_address(serve: Serve) -> None:
    """An empty host listens on IPv4 too, with or without IPv6."""
    assert ask(serve(":0"))[0] == 200


def test_a_port_in_use_is_reported(serve: Serve) -> None:
    port = port_of(serve())
    with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use; another"):
        serve(f"127.0.0.1:{port}")


def test_an_address_of_another_machine_is_reported(serve: Serve) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:0: "):
        serve("192.0.2.1:0")


# -- TLS and basic auth ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key; it also signs for a client."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed: apt-get install openssl")
    folder = tmp_path_factory.mktemp("tls")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", "key.pem", "-out", "cert.pem", "-days", "2", "-subj", "/CN=joulewatch-test"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:client.test"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    return folder


def web_config(folder: Path, text: str) -> Access:
    path = folder / "web.yaml"
    path.write_text(text, encoding="utf-8")
    return Access(path)


TLS = "tls_server_config: {cert_file: cert.pem, key_file: key.pem"


def tls_ask(web: WebServer, folder: Path, *, with_certificate: bool = False) -> int:
    context = ssl.create_default_context(cafile=str(folder / "cert.pem"))
    if with_certificate:
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    connection = http.client.HTTPSConnection("127.0.0.1", port_of(web), timeout=5, context=context)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        assert response.read() == BODY
        return response.status
    finally:
        connection.close()


def test_tls(serve: Serve, certificates: Path) -> None:
    web = serve(access=web_config(certificates, f"{TLS}}}"))
    assert web.urls[0].startswith("https://")
    assert tls_ask(web, certificates) == 200


def test_inline_certificate_ciphers_and_curve(serve: Serve, certificates: Path, tmp_path: Path) -> None:
    """The key never lies in another file, and only the chosen suite and curve are negotiated."""
    settings = {
        "cert": (certificates / "cert.pem").read_text(encoding="utf-8"),
        "key": (certificates / "key.pem").read_text(encoding="utf-8"),
        "cipher_suites": ["TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"],
        "curve_preferences": ["CurveP384"],
    }
    web = serve(access=web_config(tmp_path, json.dumps({"tls_server_config": settings})))

    def negotiated(version: ssl.TLSVersion, curve: str | None = None) -> str | None:
        context = ssl.create_default_context(cafile=certificates / "cert.pem")
        context.maximum_version = version
        if curve is not None:
            context.set_ecdh_curve(curve)
        with socket.create_connection(("127.0.0.1", port_of(web)), timeout=5) as plain:
            try:
                with context.wrap_socket(plain, server_hostname="127.0.0.1") as secured:
                    return (secured.cipher() or ("",))[0]
            except ssl.SSLError:
                return None

    assert negotiated(ssl.TLSVersion.TLSv1_2) == "ECDHE-ECDSA-AES256-GCM-SHA384"
    assert negotiated(ssl.TLSVersion.TLSv1_3, "secp384r1") is not None
    assert negotiated(ssl.TLSVersion.TLSv1_3, "prime256v1") is None


def test_a_cipher_that_openssl_lacks_is_an_error(
    certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CIPHERS, "TLS_RSA_WITH_AES_128_CBC_SHA", "NO-SUCH-SUITE")
    files = f"cert_file: {certificates}/cert.pem, key_file: {certificates}/key.pem"
    with pytest.raises(ConfigError, match=r"cipher_suites: OpenSSL .* of this machine has no NO-SUCH-SUITE"):
        web_config(tmp_path, f"tls_server_config: {{{files}, cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA]}}")


def test_a_peer_without_a_tls_handshake_delays_no_other(serve: Serve, certificates: Path) -> None:
    web = serve(access=web_config(certificates, f"{TLS}}}"), handshake_timeout_s=0.3)
    with socket.create_connection(("127.0.0.1", port_of(web)), timeout=5) as silent:
        assert tls_ask(web, certificates) == 200
        assert silent.recv(100) == b""


def test_client_certificates(serve: Serve, certificates: Path) -> None:
    extra = "client_ca_file: cert.pem, client_auth_type: RequireAndVerifyClientCert"
    web = serve(access=web_config(certificates, f"{TLS}, {extra}}}"))
    assert tls_ask(web, certificates, with_certificate=True) == 200
    with pytest.raises((ssl.SSLError, OSError)):
        tls_ask(web, certificates)
    other = serve(access=web_config(certificates, f"{TLS}, {extra}, client_allowed_sans: [else.test]}}"))
    with pytest.raises((ssl.SSLError, OSError, http.client.HTTPException)):
        tls_ask(other, certificates, with_certificate=True)


def test_a_key_of_another_certificate_is_reported(certificates: Path, tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_bytes((certificates / "cert.pem").read_bytes())
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(ConfigError, match="are not a certificate and its key"):
        web_config(tmp_path, f"{TLS}}}")


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture
def users(tmp_path: Path) -> Path:
    bcrypt = pytest.importorskip("bcrypt")
    path = tmp_path / "web.yaml"
    stored = bcrypt.hashpw(b"open sesame", bcrypt.gensalt(rounds=4)).decode()
    path.write_text(f"basic_auth_users: {{ali: '{stored}'}}", encoding="utf-8")
    return path


def test_basic_auth(serve: Serve, users: Path) -> None:
    web = serve(access=Access(users))
    status, headers, body = ask(web)
    assert (status, body) == (401, b"unauthorized\n")
    assert headers["www-authenticate"].startswith("Basic ")
    assert ask(web, headers=basic("ali", "open sesame"))[0] == 200
    assert ask(web, "/", headers=basic("ali", "open sesame"))[0] == 200
    for headers_ in (basic("ali", "open barley"), basic("kasim", "open sesame"), {"Authorization": "Bearer x"}):
        assert ask(web, headers=headers_)[0] == 401
    assert ask(web, "/-/healthy")[0] == 401


@pytest.mark.parametrize("header", [None, "", "Basic", "Basic ???", "Basic /w==", "Digest x"])
def test_headers_without_a_valid_password(users: Path, header: str | None) -> None:
    assert not Access(users).allows(header)


def test_an_accepted_password_is_not_hashed_again(users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bcrypt takes 50 ms on purpose: once per password, not once per scrape."""
    access = Access(users)
    header = basic("ali", "open sesame")["Authorization"]
    assert access.allows(header)

    def never(path: Path | None) -> Any:
        raise AssertionError("the password was hashed again")

    monkeypatch.setattr(access_module, "_bcrypt", never)
    assert access.allows(header)


def test_a_changed_file_is_reloaded_and_an_invalid_one_is_ignored(
    users: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import os

    access = Access(users)
    users.write_text("basic_auth_users: {bob: nonsense}", encoding="utf-8")
    os.utime(users, ns=(1, 1))
    access.refresh()
    access.refresh()
    assert access.allows(basic("ali", "open sesame")["Authorization"])
    assert caplog.text.count("remain in effect") == 1
    assert "nonsense" not in caplog.text
    users.write_text("{}\n", encoding="utf-8")
    os.utime(users, ns=(2, 2))
    access.refresh()
    assert not access.required


def test_without_bcrypt_the_error_names_the_fix(users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bcrypt", None)
    with pytest.raises(ConfigError, match=r"pip install 'joulewatch\[web\]'"):
        Access(users)


def test_headers_of_the_web_configuration(serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "http_server_config: {http2: true, headers: {X-Frame-Options: deny}}"
    _, headers, _ = ask(serve(access=web_config(tmp_path, text)))
    assert headers["x-frame-options"] == "deny"
    assert "http2 is ignored" in caplog.text


# -- another thread takes over -----------------------------------------------------------------------


class HangingScrape:
    """Its first call hangs, and another thread takes over; it counts its calls and keeps their time-outs."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.ended = threading.Event()
        self.timeouts_s: list[float] = []
        self.could_be_relieved: list[bool] = []

    def __call__(
        self,
        *,
        accept: str | None,
        only: frozenset[str] | None,
        timeout_s: float,
        take_over: Callable[[], None] | None,
    ) -> tuple[bytes, str]:
        self.timeouts_s.append(timeout_s)
        self.could_be_relieved.append(take_over is not None)
        if len(self.timeouts_s) == 1:
            assert take_over is not None
            time.sleep(0.3)
            take_over()
            self.release.wait(10.0)
            self.ended.set()
            raise AbandonedError
        return b"x %d\n" % len(self.timeouts_s), "text/plain"


def test_another_thread_answers_and_serves_the_connection_from_then_on(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    hanging = HangingScrape()
    web = serve(scrape=hanging, max_requests=1)
    connection = http.client.HTTPConnection("127.0.0.1", port_of(web), timeout=10)

    def scrape() -> bytes:
        connection.request("GET", "/metrics", headers={"X-Prometheus-Scrape-Timeout-Seconds": "1"})
        return connection.getresponse().read()

    assert scrape() == b"x 2\n", "with the only slot"
    assert hanging.could_be_relieved == [True, False]
    first_s, second_s = hanging.timeouts_s
    assert 0.0 < first_s <= 0.75
    assert 0.0 < second_s <= 0.75 * 0.7, "Prometheus does not wait longer because of this"
    assert scrape() == b"x 3\n"
    hanging.release.set()
    assert hanging.ended.wait(10.0)
    assert [scrape() for _ in range(3)] == [b"x 4\n", b"x 5\n", b"x 6\n"]
    assert hanging.could_be_relieved[2:] == [True] * 4
    assert len(web._connections) == 1
    connection.close()
    wait_until(lambda: len(web._connections) == 0)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_request_that_is_handed_over_counts_once_for_the_rate_limit(serve: Serve, tmp_path: Path) -> None:
    hanging = HangingScrape()
    web = serve(scrape=hanging, access=web_config(tmp_path, "rate_limit: {interval: 1h, burst: 1}"))
    status, _, body = ask(web)
    assert (status, body) == (200, b"x 2\n")
    assert ask(web)[0] == 429
    hanging.release.set()
    assert hanging.ended.wait(10.0)


def test_a_request_leaves_nothing_for_the_garbage_collection(serve: Serve, scrape: FakeScrape) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(serve()), timeout=10)
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(kept, Request) for kept in gc.get_objects())  # connections of other tests may end late
        for _ in range(10):
            connection.request("GET", "/metrics")
            connection.getresponse().read()
        after = sum(isinstance(kept, Request) for kept in gc.get_objects())
        assert after <= before + 1, "the last one may still be in use"
    finally:
        gc.enable()
        connection.close()


def test_without_threads_a_connection_that_hangs_is_closed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = HangingScrape()
    web = serve(scrape=hanging)
    with socket.create_connection(("127.0.0.1", port_of(web)), timeout=10) as peer:
        wait_until(lambda: len(web._connections) == 1)
        monkeypatch.setattr(threading.Thread, "start", fail_to_start)
        peer.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert peer.recv(100) == b""
    monkeypatch.undo()
    hanging.release.set()
    assert hanging.ended.wait(10.0)


def fail_to_start(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")
