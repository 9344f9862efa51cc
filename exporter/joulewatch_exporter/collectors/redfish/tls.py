"""Which certificates of a Redfish service are trusted, and what TLS errors mean."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any

from requests.adapters import HTTPAdapter

from joulewatch_exporter.collectors.redfish.target import RedfishTarget
from joulewatch_exporter.errors import SensorDeniedError


class UntrustedError(SensorDeniedError):
    """The service's certificate is not trusted."""

    cure = ""
    """The line of the target that trusts it."""


class PinningAdapter(HTTPAdapter):
    """Pins a certificate by its fingerprint."""

    def __init__(self, pin: str) -> None:
        self._pin = pin
        super().__init__(pool_connections=1, pool_maxsize=1)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **settings: Any) -> None:
        if self._pin:
            settings["assert_fingerprint"] = self._pin
        super().init_poolmanager(connections, maxsize, block, **settings)


def leaf_fingerprint(host: str, port: int, timeout_s: float = 2.0) -> str:
    """SHA-256 of the certificate that a server shows, as people compare them; empty where it shows none."""
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
    if target.insecure or target.pin:
        return False  # a pinned certificate is compared by the adapter
    if target.ca_file is not None:
        try:
            ssl.create_default_context(cafile=target.ca_file)
        except ssl.SSLError:
            raise SensorDeniedError(f"{target.ca_file}: ca_file: holds no certificate in PEM form") from None
        except OSError as error:
            raise SensorDeniedError(f"{target.ca_file}: ca_file: {error.strerror}") from None
        return str(target.ca_file)
    # The machine's own authorities, to which a site adds its own, rather than those that come with requests.
    paths = ssl.get_default_verify_paths()
    return paths.cafile or paths.capath or True


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it was made of: requests and urllib3 wrap each other's."""
    seen: set[int] = set()
    todo: list[Any] = [error]
    while todo:
        item = todo.pop(0)
        if isinstance(item, BaseException) and id(item) not in seen:
            seen.add(id(item))
            yield item
            todo += [*item.args, getattr(item, "reason", None), item.__cause__, item.__context__]


def innermost(error: BaseException) -> BaseException:
    return list(chain(error))[-1]


def certificate_reason(error: BaseException) -> str | None:
    """Why a certificate is not trusted; None: the handshake failed for another reason."""
    for item in chain(error):
        if isinstance(item, ssl.SSLCertVerificationError):
            return item.verify_message or short(item)
        if isinstance(item, ssl.CertificateError) or "ingerprint" in str(item) or "doesn't match" in str(item):
            return "another certificate"
    return None


def short(error: BaseException) -> str:
    return f"{type(error).__name__}" if not str(error) else " ".join(str(error).split())[:120]
