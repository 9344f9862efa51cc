"""The HTTP server: /, /metrics, /conditions and /-/healthy; TLS and basic auth as in the Prometheus exporter toolkit.

Why not the server of prometheus_client: its TLS handshake runs in the accept loop, where one silent peer blocks all
scrapes; it has no time-outs, no limit of requests and no basic auth, and it answers every path with metrics.

Here each connection has its own thread, which does everything that a peer can delay (handshake, request, response),
each within a time-out. So a slow or silent peer does not delay the others.
"""

from __future__ import annotations

import dataclasses
import html
import logging
import math
import os
import socket
import ssl
import threading
import time
import urllib.parse
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Final, Protocol

from joulewatch_exporter import __version__
from joulewatch_exporter.config.config import parse_address
from joulewatch_exporter.config.strict import nearest
from joulewatch_exporter.errors import ConfigError
from joulewatch_exporter.server.access import Access, Verdict
from joulewatch_exporter.server.conditions import CONDITIONS_PATH, render_conditions
from joulewatch_exporter.server.connection import Connection, Request, Response, accepts_gzip, plain
from joulewatch_exporter.server.connections import MAX_CONNECTIONS, Connections, Peer
from joulewatch_exporter.server.edge_socket import HEADER
from joulewatch_exporter.server.sharing import NoSlotError, SharedScrapes
from joulewatch_exporter.threads import AbandonedError

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S: Final = 5.0
REQUEST_TIMEOUT_S: Final = 5.0
"""Longest time for a peer to send a request, and to receive the response."""
KEEP_ALIVE_S: Final = 120.0
"""A connection on which a request was answered may be idle for this time, which is longer than usual scrape
intervals."""
LEAST_TIMEOUT_S: Final = 0.05
"""A scrape waits at least this long for its sensors, whatever its client offers."""
SLOT_WAIT_S: Final = 1.0
"""Longest time that a scrape waits for other scrapes to end."""
GUESS_PAUSE_S: Final = 0.25
"""Pause of a connection after a wrong password, and of new ones of its address, so that guessers do not use up the
processor."""
MIN_GZIP_BYTES: Final = 1024

_BACKLOG: Final = 128


class Scrape(Protocol):
    """The callable that answers a scrape."""

    def __call__(
        self,
        *,
        accept: str | None,
        only: frozenset[str] | None,
        timeout_s: float,
        take_over: Callable[[], None] | None,
    ) -> tuple[bytes, str]:
        """Return the body and its content type; for ``take_over`` see `Sampler.fresh`."""
        ...


class WebServer:
    """Listens on all addresses; one thread per address and one per connection."""

    def __init__(
        self,
        addresses: Sequence[str],
        scrape: Scrape,
        *,
        collectors: Iterable[str] = (),
        telemetry_path: str = "/metrics",
        max_requests: int = 40,
        read_timeout_s: float = 2.0,
        access: Access | None = None,
        open_scrape: Scrape | None = None,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
        keep_alive_s: float = KEEP_ALIVE_S,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
        slot_wait_s: float = SLOT_WAIT_S,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """Bind all addresses; connections are accepted after ``start``.

        Args:
            addresses: Each ``host:port``.
            scrape: Called for each scrape, by many threads at once.
            collectors: Names that ``?collect[]=`` accepts.
            telemetry_path: Path of the metrics.
            max_requests: Number of concurrent scrapes; others wait, then are answered with 503. 0: no limit.
            read_timeout_s: Longest time that a scrape waits for its sensors.
            access: TLS and users; None: no TLS and no authentication.
            open_scrape: Called instead of ``scrape`` for clients without a password; None: the same.
            request_timeout_s: Longest time for a peer to send a request, and to receive a response.
            keep_alive_s: Longest time that a connection may be idle after a request.
            handshake_timeout_s: Longest time for the TLS handshake.
            slot_wait_s: Longest time that a scrape waits for other scrapes to end.
            max_connections: Number of connections; if there are more, the longest idle one is closed.

        Raises:
            ConfigError: An address is wrong or in use.
        """
        self._scrape = scrape
        self._open_scrape = scrape if open_scrape is None else open_scrape
        self._collectors = tuple(collectors)
        self._telemetry_path = telemetry_path
        self._read_timeout_s = read_timeout_s
        self._access = access if access is not None else Access(None)
        self._scrape_headers: tuple[tuple[str, str], ...] = (("Vary", "Accept, Accept-Encoding"),)
        self._request_timeout_s = request_timeout_s
        self._keep_alive_s = keep_alive_s
        self._handshake_timeout_s = handshake_timeout_s
        self._slot_wait_s = slot_wait_s
        self._scrapes: SharedScrapes[Response] = SharedScrapes(max_requests)
        self._refused_scrapes = 0
        self._connections = Connections(max_connections)
        self._stopping = False
        self._listeners: list[socket.socket] = []
        self._bound: list[tuple[str, int]] = []
        self._threads: list[threading.Thread] = []
        try:
            for address in addresses:
                listener = _listen(address)
                self._listeners.append(listener)
                self._bound.append(listener.getsockname()[:2])
        except ConfigError:
            self.stop()
            raise

    @property
    def urls(self) -> tuple[str, ...]:
        """URLs of the metrics, one for each address, with the ports that were bound."""
        scheme = "https" if self._access.tls is not None else "http"
        return tuple(
            f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{self._telemetry_path}"
            for host, port in self._bound
        )

    @property
    def refused(self) -> dict[str, int]:
        """Number of refusals so far because of a limit, by the name of the limit."""
        return {
            "connections": self._connections.closed,
            "scrapes": self._refused_scrapes,
            **self._access.refused,
        }

    def announce(self, edge_socket: Path) -> None:
        """Name the socket for edges in the answers to scrapes."""
        self._scrape_headers += ((HEADER, str(edge_socket)),)

    def start(self) -> None:
        for listener in self._listeners:
            thread = threading.Thread(target=self._accept, args=(listener,), name="accept", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self, grace_s: float = 0.2) -> None:
        """Stop accepting, wait ``grace_s`` for responses in progress, then close all connections."""
        self._stopping = True
        for listener in self._listeners:
            try:
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
            except OSError:
                pass
            listener.close()
        for thread in self._threads:
            thread.join(grace_s)
        # An idle connection ends at once, a busy one after its response.
        self._connections.shut_down_all(socket.SHUT_RD)
        end_ns = time.monotonic_ns() + round(grace_s * 1e9)
        while time.monotonic_ns() < end_ns:
            if not self._connections:
                return
            time.sleep(0.005)
        self._connections.shut_down_all(socket.SHUT_RDWR)

    # -- connections -------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        self._connections.accept(listener, self._serve, lambda _, name: str(name[0]), lambda: self._stopping)

    def _serve(self, peer: Peer) -> None:
        self._run(peer, lambda: self._serve_new(peer))

    def _run(self, peer: Peer, serve: Callable[[], None]) -> None:
        """Serve a peer on this thread, and close the connection when it ends."""
        try:
            serve()
        except AbandonedError:
            return  # another thread serves the peer now
        except (OSError, ssl.SSLError) as error:
            logger.debug("connection ended: %s", error)
        except Exception:
            logger.exception("a request failed")
        self._connections.forget(peer)

    def _relieve(self, peer: Peer, serve: Callable[[], None]) -> None:
        """Serve a peer on a new thread, because its thread hangs."""
        try:
            threading.Thread(target=self._run, args=(peer, serve), name="request", daemon=True).start()
        except RuntimeError:  # out of threads
            self._connections.forget(peer)

    def _serve_new(self, peer: Peer) -> None:
        connection = peer.connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._access.refresh()
        if self._access.has_guessed(peer.address):
            time.sleep(GUESS_PAUSE_S)  # otherwise a guesser would avoid the pause by connecting again
        context = self._access.tls
        if context is not None:
            connection.settimeout(self._handshake_timeout_s)
            secured = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            self._connections.secure(peer, secured)
            secured.do_handshake()
            if not self._client_allowed(secured):
                return
        Connection(
            peer.connection,
            lambda request: self._answer_peer(peer, request),
            is_stopping=lambda: self._stopping,
            request_timeout_s=self._request_timeout_s,
            keep_alive_s=self._keep_alive_s,
            extra_headers=self._access.web.http_server_config.headers,
            relieve=lambda serve: self._relieve(peer, serve),
        ).serve()

    def _answer_peer(self, peer: Peer, request: Request) -> Response:
        self._connections.begin_answer(peer)
        response = self.answer(request, peer.address)
        self._connections.end_answer(peer)
        return response

    def _client_allowed(self, connection: ssl.SSLSocket) -> bool:
        tls = self._access.web.tls_server_config
        if tls is None or not tls.client_allowed_sans:
            return True
        certificate = connection.getpeercert() or {}
        names = {str(entry[1]) for entry in certificate.get("subjectAltName", ()) if len(entry) == 2}
        return not names.isdisjoint(tls.client_allowed_sans)

    # -- requests ----------------------------------------------------------------------------------

    def answer(self, request: Request, address: str = "") -> Response:
        """Return the response to one request; HEAD is answered as GET, and its body is not sent.

        Args:
            request: The request.
            address: Address of the client.
        """
        if not request.is_handed_over and not self._access.is_within_rate():
            return plain(HTTPStatus.TOO_MANY_REQUESTS, "too many requests (rate_limit)", ("Retry-After", "1"))
        if not self._access.required:
            return self._answer(request, self._open_scrape)
        verdict = self._access.check(request.headers.get("authorization"), address)
        if verdict is Verdict.ALLOWED:
            return self._answer(request, self._scrape)
        if verdict is Verdict.BUSY:
            text = "too many passwords are being checked"
            response = plain(HTTPStatus.TOO_MANY_REQUESTS, text, ("Retry-After", "1"))
        else:
            challenge = ("WWW-Authenticate", 'Basic realm="joulewatch", charset="UTF-8"')
            response = plain(HTTPStatus.UNAUTHORIZED, "unauthorized", challenge)
        return response if verdict is Verdict.NO_PASSWORD else dataclasses.replace(response, pause_s=GUESS_PAUSE_S)

    def answer_trusted(self, request: Request) -> Response:
        """The same for a peer that needs no authentication."""
        return self._answer(request, self._scrape)

    def _answer(self, request: Request, scrape: Scrape) -> Response:
        if request.method not in ("GET", "HEAD"):
            return plain(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are allowed", ("Allow", "GET, HEAD"))
        path, _, query = request.target.partition("?")
        if path == self._telemetry_path:
            return self._answer_metrics(request, query, scrape)
        # Not for clients that get aged values only: the conditions are those of now.
        if path == CONDITIONS_PATH and scrape is self._scrape:
            return self._answer_conditions()
        if path == "/-/healthy":
            return plain(HTTPStatus.OK, "joulewatch-exporter is healthy")
        if path == "/":
            return Response(status=HTTPStatus.OK, body=self._landing_page(), content_type="text/html; charset=utf-8")
        return plain(HTTPStatus.NOT_FOUND, f"not found; the metrics are at {self._telemetry_path}")

    def _answer_metrics(self, request: Request, query: str, scrape: Scrape) -> Response:
        only: frozenset[str] | None = None
        if query:
            try:
                wanted = urllib.parse.parse_qs(query, max_num_fields=64).get("collect[]")
            except ValueError:
                return plain(HTTPStatus.BAD_REQUEST, "too many parameters")
            for name in wanted or ():
                if name not in self._collectors:
                    hint = nearest(name[:64], self._collectors)
                    return plain(HTTPStatus.BAD_REQUEST, f"unknown collector {name[:64]!r}; {hint}")
            only = None if wanted is None else frozenset(wanted)
        headers = request.headers
        accept = headers.get("accept")
        is_packed = accepts_gzip(headers.get("accept-encoding", ""))
        offered_s = _offered_s(headers)

        def left_s() -> float:
            return max(offered_s - (time.monotonic_ns() - request.arrived_ns) / 1e9, 0.0)

        def make(end: Callable[[], None]) -> Response:
            def take_over() -> None:
                end()
                if request.take_over is not None:
                    request.take_over()

            return self._make_scrape(
                is_packed,
                lambda: scrape(
                    accept=accept,
                    only=only,
                    timeout_s=self._timeout_s(left_s()),
                    take_over=None if request.take_over is None else take_over,
                ),
            )

        key = (scrape, accept, only, is_packed, self._timeout_s(offered_s), request.is_handed_over)
        try:
            return self._scrapes.run(key, make, min(self._slot_wait_s, 0.25 * left_s()))
        except NoSlotError:
            return self._refuse()

    def _timeout_s(self, left_s: float) -> float:
        """Return how long to wait for the sensors: less than Prometheus still waits for the answer."""
        return max(min(self._read_timeout_s, 0.75 * left_s), min(LEAST_TIMEOUT_S, self._read_timeout_s))

    def _answer_conditions(self) -> Response:
        def answer(end: Callable[[], None]) -> Response:
            return Response(status=HTTPStatus.OK, body=render_conditions(), content_type="application/json")

        try:
            return self._scrapes.run(CONDITIONS_PATH, answer, self._slot_wait_s)
        except NoSlotError:
            return self._refuse()

    def _refuse(self) -> Response:
        self._refused_scrapes += 1
        text = "too many concurrent scrapes (--web.max-requests)"
        return plain(HTTPStatus.SERVICE_UNAVAILABLE, text, ("Retry-After", "1"))

    def _make_scrape(self, is_packed: bool, scrape: Callable[[], tuple[bytes, str]]) -> Response:
        try:
            body, content_type = scrape()
        except Exception:
            logger.exception("a scrape failed")
            return plain(HTTPStatus.INTERNAL_SERVER_ERROR, "the scrape failed; see the exporter's log")
        extra = self._scrape_headers
        if is_packed and len(body) >= MIN_GZIP_BYTES:
            # Level 1 takes a fifth of the time of level 9 for nearly the same size.
            packer = zlib.compressobj(level=1, wbits=31)
            body = packer.compress(body) + packer.flush()
            extra += (("Content-Encoding", "gzip"),)
        return Response(status=HTTPStatus.OK, body=body, content_type=content_type, headers=extra)

    def _landing_page(self) -> bytes:
        path = html.escape(self._telemetry_path, quote=True)
        links = "".join(
            f'<li><a href="{path}?collect[]={html.escape(name, quote=True)}">only {html.escape(name)}</a></li>'
            for name in self._collectors
        )
        return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>joulewatch exporter</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:3em auto;padding:0 1em;color:#222}}
h1{{font-weight:600;margin-bottom:0}}p{{margin-top:.3em;color:#666}}a{{color:#0b5fa5}}
@media(prefers-color-scheme:dark){{body{{background:#181a1b;color:#ddd}}p{{color:#999}}a{{color:#6db3f2}}}}</style>
</head>
<body><h1>joulewatch exporter</h1>
<p>Power and energy of the sensors of this machine, for Prometheus. Version {html.escape(__version__)}.</p>
<ul><li><a href="{path}">Metrics</a><ul>{links}</ul></li><li><a href="/-/healthy">Health</a></li></ul>
</body></html>
""".encode()


def _offered_s(headers: Mapping[str, str]) -> float:
    """Return how long Prometheus waits for the answer."""
    try:
        offered_s = float(headers.get("x-prometheus-scrape-timeout-seconds", "inf"))
    except ValueError:
        return math.inf
    return offered_s if offered_s > 0 else math.inf


def _has_ipv6() -> bool:
    """Return whether ``::`` can be bound, for IPv4 too; a kernel with IPv6 may have it disabled."""
    if not socket.has_dualstack_ipv6():
        return False
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def _listen(address: str) -> socket.socket:
    """Return a listening socket.

    Raises:
        ConfigError: The address is invalid, not of this machine, not permitted or in use.
    """
    try:
        host, port = parse_address(address)
    except ValueError as error:
        raise ConfigError(f"--web.listen-address: {error}") from error
    try:
        if not host:
            if _has_ipv6():
                return socket.create_server(("::", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
            return socket.create_server(("0.0.0.0", port), backlog=_BACKLOG)
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server((str(where[0]), port), family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise ConfigError(
            f"--web.listen-address: cannot listen on {address}: {reason}"
            + ("; another exporter may be running: use another port" if "in use" in reason else "")
        ) from error
