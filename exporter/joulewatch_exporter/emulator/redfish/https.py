"""An HTTPS server with a self-signed certificate and one thread per connection."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Protocol

from joulewatch_exporter.emulator.files import write_private
from joulewatch_exporter.errors import ConfigError

logger = logging.getLogger(__name__)

_LONGEST_BODY: Final = 65536
_IDLE_S: Final = 60.0
_HANDSHAKE_S: Final = 10.0

Answer = tuple[int, Mapping[str, str], Any]
"""Status, headers, and the contents: bytes, or an object that becomes JSON."""


class Service(Protocol):
    """The service behind a server."""

    def count_connection(self) -> None:
        """Count a new connection."""
        ...

    def wait_while_hanging(self) -> bool:
        """Wait while the service hangs; return whether the request is to be answered."""
        ...

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Answer a request; the names of its headers are in lower case."""
        ...


class HttpsServer(ThreadingHTTPServer):
    """Serves each connection, handshake included, on its own thread, so one that hangs does not delay others."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, service: Service, address: tuple[str, int], context: ssl.SSLContext) -> None:
        self.service = service
        self.context = context
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(_HANDSHAKE_S)
        with self.context.wrap_socket(request, server_side=True) as connection:
            self.service.count_connection()
            with self._connections_lock:
                self._connections.add(connection)
            try:
                super().finish_request(connection, client_address)
            finally:
                with self._connections_lock:
                    self._connections.discard(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # The client does not trust the certificate, or has disconnected.
        logger.debug("redfish: a connection was aborted")

    def server_bind(self) -> None:
        # As in HTTPServer, but without resolving the name of the host.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def close_connections(self) -> None:
        """Close all connections."""
        with self._connections_lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_S
    server: HttpsServer

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        length = self.headers.get("Content-Length", "0")
        body = self.rfile.read(min(int(length), _LONGEST_BODY)) if length.isdigit() else b""
        if not self.server.service.wait_while_hanging():
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, sent, resource = self.server.service.answer(self.command, self.path, headers, body)
        content = (
            resource if isinstance(resource, bytes) else b"" if resource is None else json.dumps(resource).encode()
        )
        self.send_response(status)
        for name, value in sent.items():
            self.send_header(name, value)
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
        self.send_header("OData-Version", "4.0")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests."""


# -- the certificate -------------------------------------------------------------------------------


def make_certificate(certificate: Path, key: Path, name: str, address: str) -> None:
    """Write a self-signed certificate for one address, valid for a year, and its key.

    Raises:
        ConfigError: Neither the library cryptography nor the program openssl is installed.
    """
    try:
        import cryptography  # noqa: F401
    except ImportError:
        _certificate_by_openssl(certificate, key, name, address)
    else:
        _certificate_by_cryptography(certificate, key, name, address)


def _certificate_by_cryptography(certificate: Path, key: Path, name: str, address: str) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    now = datetime.now(UTC)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"), False
    )
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=365))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True, key_cert_sign=True, encipher_only=False, decipher_only=False, **usage
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(private.public_key()), critical=False)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    write_private(
        key,
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


def _certificate_by_openssl(certificate: Path, key: Path, name: str, address: str) -> None:
    program = shutil.which("openssl")
    if program is None:
        raise ConfigError("an emulated Redfish service needs the program openssl, or: pip install cryptography")
    write_private(key, b"")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    names = ("-subj", f"/CN={name[:64]}", "-addext", f"subjectAltName=IP:{address}")
    files = ("-keyout", str(key), "-out", str(certificate))
    try:
        subprocess.run(
            [program, "req", "-x509", *curve, *files, "-days", "365", *names],
            check=True,
            capture_output=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{program}: cannot make a certificate: {error}") from error
