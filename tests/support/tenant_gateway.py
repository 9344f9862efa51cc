"""The addresses and tenants of Mimir, Thanos and VictoriaMetrics in front of real servers, one for each tenant.

A request without the tenant's header, without the parameters that a client of Thanos must send, or with another
path is refused, so that tests notice a wrong address in the files of ``deploy/prometheus``.

Debian's Prometheus 2.42 does not send the headers of remote write, so the tenant may be a parameter of the address too.
"""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Self
from urllib.parse import parse_qs, urlencode, urlsplit

QUERIES: Final = "/api/v1/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How a storage is reached."""

    read_prefix: str
    """Path before ``/api/v1/query``."""
    write_path: str
    tenant_header: str = ""
    required: frozenset[str] = frozenset()
    """Parameters of every query."""


ENGINES: Final = {
    "mimir": Engine(read_prefix="/prometheus", write_path="/api/v1/push", tenant_header="X-Scope-OrgID"),
    "thanos": Engine(
        read_prefix="",
        write_path="/api/v1/receive",
        tenant_header="THANOS-TENANT",
        required=frozenset({"max_source_resolution", "partial_response"}),
    ),
    "victoria-metrics": Engine(read_prefix="", write_path="/api/v1/write"),
}


class TenantGateway:
    """An HTTP server for one engine; ``requests`` counts (path, tenant).

    Args:
        engine: Its addresses.
        storages: Tenant -> base URL of a Prometheus.
    """

    def __init__(self, engine: Engine, storages: Mapping[str, str]) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer(b"")

            def do_POST(self) -> None:
                self.answer(self.rfile.read(int(self.headers["Content-Length"])))

            def answer(self, body: bytes) -> None:
                status, content = self.forward(body)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def forward(self, body: bytes) -> tuple[int, bytes]:
                parts = urlsplit(self.path)
                fields = parse_qs(parts.query)
                (parameter,) = fields.pop("tenant", [""])
                tenant = self.headers.get(engine.tenant_header, parameter) if engine.tenant_header else ""
                gateway.requests[parts.path, tenant] += 1
                if tenant not in storages:
                    return 401, b"no org id"
                if parts.path == engine.write_path:
                    target = "/api/v1/write"
                elif parts.path.startswith(engine.read_prefix + QUERIES):
                    target = parts.path.removeprefix(engine.read_prefix)
                    given = fields.keys() | (parse_qs(body.decode()).keys() if body else set())
                    if target == "/api/v1/query" and not engine.required <= given:
                        return 400, b"a parameter is missing"
                else:
                    return 404, b"not found"
                kept = {name: value for name, value in self.headers.items() if name.startswith(("Content-", "X-Prom"))}
                request = urllib.request.Request(
                    f"{storages[tenant]}{target}?{urlencode(fields, doseq=True)}",
                    body or None,
                    kept,
                    method=self.command,
                )
                try:
                    with urllib.request.urlopen(request, timeout=30) as response:
                        return int(response.status), response.read()
                except urllib.error.HTTPError as error:
                    return error.code, error.read()

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
