"""The TLS context of the server, from ``tls_server_config`` of the web configuration."""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from joulewatch_exporter.config.web import TlsSettings
from joulewatch_exporter.errors import ConfigError

_VERSIONS: Final = {
    "TLS10": ssl.TLSVersion.TLSv1_2,
    "TLS11": ssl.TLSVersion.TLSv1_2,
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}
_CURVES: Final = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}
_CLIENT_AUTH: Final = {
    "NoClientCert": ssl.CERT_NONE,
    "RequestClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}


def server_context(tls: TlsSettings, path: Path) -> ssl.SSLContext:
    """Return the context.

    Args:
        tls: The settings.
        path: The web configuration file, for messages.

    Raises:
        ConfigError: A certificate or key is invalid, or a setting cannot be enforced here.
    """
    where = f"{path}: tls_server_config"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[tls.min_version]
    context.maximum_version = _VERSIONS[tls.max_version]
    cert, key = tls.cert_file or "cert", tls.key_file or "key"
    try:
        with _file(tls.cert_file, tls.cert) as cert_file, _file(tls.key_file, tls.key) as key_file:
            context.load_cert_chain(cert_file, key_file, password=_no_password)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: {cert} and {key} are not a certificate and its key: {error}") from error
    if tls.client_ca_file is not None or tls.client_ca:
        name = "client_ca_file" if tls.client_ca_file is not None else "client_ca"
        try:
            context.load_verify_locations(cafile=tls.client_ca_file, cadata=tls.client_ca or None)
        except (OSError, ValueError) as error:
            shown = f" {tls.client_ca_file}" if tls.client_ca_file is not None else ""
            raise ConfigError(f"{where}.{name}:{shown} has no valid certificate: {error}") from error
    context.verify_mode = _CLIENT_AUTH[tls.client_auth_type]
    if tls.ciphers:
        _set_ciphers(context, tls.ciphers, where)
    if tls.curve_preferences:
        context.set_ecdh_curve(_CURVES[tls.curve_preferences[0]])
    if not tls.prefer_server_cipher_suites:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    return context


def _set_ciphers(context: ssl.SSLContext, ciphers: tuple[str, ...], where: str) -> None:
    with contextlib.suppress(ssl.SSLError):  # none of them is available: see below
        context.set_ciphers(":".join(ciphers))
    available = {str(cipher["name"]) for cipher in context.get_ciphers()}
    missing = [cipher for cipher in ciphers if cipher not in available]
    if missing:
        raise ConfigError(f"{where}.cipher_suites: {ssl.OPENSSL_VERSION} of this machine has no {', '.join(missing)}")


@contextlib.contextmanager
def _file(file: Path | None, text: str) -> Iterator[str]:
    """Yield the path of a file with this text; OpenSSL reads only files, and a key must not be stored on a disk."""
    if file is not None:
        yield str(file)
        return
    descriptor = os.memfd_create("joulewatch-tls")
    try:
        os.write(descriptor, text.encode())
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _no_password() -> str:
    raise ValueError("the key is encrypted, and a daemon cannot ask for its password")
