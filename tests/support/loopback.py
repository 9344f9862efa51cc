"""HTTP servers in the process of the test, on a free port of loopback."""

from __future__ import annotations

import http.server
import ssl
import threading
from collections.abc import Callable
from typing import Any, Self


class LoopbackServer(http.server.ThreadingHTTPServer):
    """Starts when it is created; a context manager."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self, handler: Callable[..., http.server.BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect, because some tests do so on purpose."""


class QuietHandler(http.server.BaseHTTPRequestHandler):
    """One connection, without a log."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def page_server(text: str) -> LoopbackServer:
    """Return a server that answers every GET and POST with the text."""
    body = text.encode()

    class Page(QuietHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

    return LoopbackServer(Page)
