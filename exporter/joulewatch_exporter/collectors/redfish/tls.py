"""Trusted certificates of a Redfish service, and the meaning of TLS errors."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any

from joulewatch_exporter.collectors.redfish.target import RedfishTarget
from joulewatch_exporter.errors import SensorDeniedError


class UntrustedError(SensorDeniedError):
    """The service's certificate is not trusted."""

    fix = ""
    """The setting of the target that makes it trusted; empty: unknown."""


def leaf_fingerprint(host: str, port: int, timeout_s: float = 2.0) -> str:
    """Return the SHA-256 of a server's certificate, colon-separated; empty if there is none."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            certificate = connection.getpeercert(binary_form=True)
    except (OSError, ValueError):
        return ""
    if not certificate:
        return ""
    digest = hashlib.sha256(certificate).hexdigest().upper()
    return ":".join(digest[index : index + 2] for index in range(0, len(digest), 2))


def verify_setting(target: RedfishTarget) -> bool | str:
    """Return the setting ``verify`` of requests for a target.

    Raises:
        SensorDeniedError: ``ca_file`` cannot be read or contains no certificate.
    """
    if target.insecure or target.pin:
        return False  # the adapter compares a pinned certificate
    if target.ca_file is not None:
        try:
            ssl.create_default_context(cafile=target.ca_file)
        except ssl.SSLError:
            raise SensorDeniedError(f"{target.ca_file}: ca_file: contains no certificate in PEM format") from None
        except OSError as error:
            raise SensorDeniedError(f"{target.ca_file}: ca_file: {error.strerror}") from None
        return str(target.ca_file)
    # The system's authorities, to which sites add their own, instead of those bundled with requests.
    paths = ssl.get_default_verify_paths()
    return paths.cafile or paths.capath or True


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all errors inside it: requests and urllib3 wrap each other's errors."""
    visited: set[int] = set()
    pending: list[Any] = [error]
    while pending:
        inner = pending.pop(0)
        if isinstance(inner, BaseException) and id(inner) not in visited:
            visited.add(id(inner))
            yield inner
            pending += [*inner.args, getattr(inner, "reason", None), inner.__cause__, inner.__context__]


def innermost(error: BaseException) -> BaseException:
    """Return the error at the end of the chain."""
    return list(chain(error))[-1]


def certificate_reason(error: BaseException) -> str | None:
    """Return why a certificate is not trusted; None if the handshake failed for another reason."""
    for inner in chain(error):
        if isinstance(inner, ssl.SSLCertVerificationError):
            return inner.verify_message or short(inner)
        if isinstance(inner, ssl.CertificateError) or "ingerprint" in str(inner) or "doesn't match" in str(inner):
            return "another certificate"
    return None


def short(error: BaseException) -> str:
    """Return the text of an error on one line, or its type."""
    return f"{type(error).__name__}" if not str(error) else " ".join(str(error).split())[:120]
