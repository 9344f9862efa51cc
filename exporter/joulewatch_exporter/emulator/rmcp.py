"""A server of IPMI over LAN (RMCP+): discovery, login by RAKP, signed and encrypted commands, on one UDP socket.

It supports cipher suites 3 (HMAC-SHA1, AES-128) and 17 (HMAC-SHA256, AES-128), checks users, passwords and privileges,
and answers a wrong login as BMCs do. It passes netfn, command and data of a command to a handler. Each server has one
thread: two hundred servers fit into one process and do not wait for each other.

Source: IPMI v2.0 specification, revision 1.1, chapters 13 (RMCP+ packets, RAKP), 20 and 22 (commands).
"""

from __future__ import annotations

import hmac
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from joulewatch_exporter.errors import ConfigError

logger = logging.getLogger(__name__)

PRIVILEGES: Final[Mapping[str, int]] = {"user": 2, "operator": 3, "administrator": 4}

_RMCP: Final = b"\x06\x00\xff\x07"
_MAX_SESSIONS: Final = 16
"""Real BMCs have 4 to 36; the limit reveals an exporter that does not log out."""
_IDLE_S: Final = 60.0
"""A session without requests for this long is removed."""

_IPMI, _OPEN_REQUEST, _RAKP1, _RAKP3 = 0x00, 0x10, 0x12, 0x14
_OPEN_RESPONSE, _RAKP2, _RAKP4 = 0x11, 0x13, 0x15

# RMCP+ status codes (table 13-15).
_NO_RESOURCES, _INVALID_SESSION, _BAD_ROLE = 0x01, 0x02, 0x0A
_NO_SUCH_NAME, _BAD_INTEGRITY, _NO_SUITE = 0x0D, 0x0F, 0x11

# Completion codes (table 5-2).
OK: Final = 0x00
NODE_BUSY: Final = 0xC0
INVALID_COMMAND: Final = 0xC1
BAD_LENGTH: Final = 0xC7
NO_SUCH_THING: Final = 0xCB
CANNOT_RETURN: Final = 0xCA
LOST_RESERVATION: Final = 0xC5
BAD_FIELD: Final = 0xCC
NOT_ALLOWED: Final = 0xD4
_BAD_PRIVILEGE: Final = 0x81


@dataclass(frozen=True, slots=True, kw_only=True)
class _Suite:
    """A cipher suite: the numbers of its algorithms, and their hash."""

    number: int
    authentication: int
    integrity: int
    digest: str
    check_bytes: int
    """Length of the signature of a packet."""


_SUITES: Final = (
    _Suite(number=3, authentication=1, integrity=1, digest="sha1", check_bytes=12),
    _Suite(number=17, authentication=3, integrity=4, digest="sha256", check_bytes=16),
)
_AES: Final = 1


@dataclass(frozen=True, slots=True)
class User:
    """A user who may log in."""

    password: bytes = field(repr=False)
    privilege: int


@dataclass(slots=True, kw_only=True)
class _Session:
    console_id: bytes
    own_id: bytes
    suite: _Suite
    used_s: float
    name: bytes = b""
    user: User | None = None
    role: int = 0
    console_random: bytes = b""
    own_random: bytes = b""
    sik: bytes = b""
    sign_key: bytes = b""
    aes_key: bytes = b""
    is_active: bool = False
    privilege: int = 2
    sequence: int = 0

    def mac(self, key: bytes, data: bytes) -> bytes:
        return hmac.new(key, data, self.suite.digest).digest()


Handler = Callable[[int, int, bytes, int], bytes]
"""Takes netfn, command, data and the privilege of the session; returns the completion code and the data after it."""


class RmcpServer:
    """The LAN interface of a BMC."""

    def __init__(
        self, users: Mapping[str, User], handler: Handler, *, address: str, port: int, suites: tuple[int, ...]
    ) -> None:
        """Prepare; ``open`` starts to answer.

        Args:
            users: Users by name.
            handler: Called for each command of a session, on the thread of the server.
            address: IP address to listen on.
            port: UDP port; 0: any free one, kept from the first ``open`` on.
            suites: Accepted cipher suites.

        Raises:
            ConfigError: The library for AES is missing.
        """
        try:
            from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
        except ImportError as error:
            raise ConfigError("an emulated BMC needs encryption: run `pip install 'joulewatch[ipmi]'`") from error

        def cipher(key: bytes, iv: bytes) -> Cipher[modes.CBC]:
            return Cipher(algorithms.AES(key), modes.CBC(iv))

        self._cipher = cipher
        self._users = {name.encode(): user for name, user in users.items()}
        self._handler = handler
        self._address = address
        self._family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.port = port
        self._suites = tuple(suite for suite in _SUITES if suite.number in suites)
        self._guid = os.urandom(16)
        self._sessions: dict[bytes, _Session] = {}
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self.is_hanging = False
        """Whether it does not answer, like a BMC whose firmware hangs."""

    @property
    def session_count(self) -> int:
        """Number of active sessions."""
        with self._lock:
            return sum(session.is_active for session in self._sessions.values())

    def open(self) -> None:
        """Bind the port and start to answer.

        Raises:
            OSError: The port is in use.
        """
        if self._socket is not None:
            return
        sock = socket.socket(self._family, socket.SOCK_DGRAM)
        try:
            sock.bind((self._address, self.port))
        except OSError:
            sock.close()
            raise
        self.port = sock.getsockname()[1]
        self._socket = sock
        self._thread = threading.Thread(target=self._run, args=(sock,), name=f"bmc-{self.port}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the port; ``open`` opens it again. Safe to call twice."""
        sock, self._socket = self._socket, None
        if sock is None:
            return
        # A datagram to its own port wakes the thread; closing the socket does not.
        with socket.socket(self._family, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", (self._address, self.port))
        if self._thread is not None:
            self._thread.join(5.0)
        self.forget_sessions()

    def forget_sessions(self) -> None:
        """End all sessions, as a restart does."""
        with self._lock:
            self._sessions.clear()

    # -- the thread --------------------------------------------------------------------------------

    def _run(self, sock: socket.socket) -> None:
        with sock:
            while True:
                packet, client = sock.recvfrom(4096)
                if self._socket is not sock:
                    return
                if self.is_hanging:
                    continue
                try:
                    with self._lock:
                        answer = self._answer(packet)
                    if answer is not None:
                        sock.sendto(answer, client)
                except Exception:
                    logger.exception("port %d: a packet of %d bytes cannot be answered", self.port, len(packet))

    def _answer(self, packet: bytes) -> bytes | None:
        if packet[:4] != _RMCP or len(packet) < 6:
            return None
        if packet[4] == 0:  # IPMI 1.5, no authentication: discovery only
            if len(packet) < 14 or packet[5:13] != bytes(8):
                return None
            payload = self._sessionless(packet[14 : 14 + packet[13]])
            return None if payload is None else _RMCP + bytes(9) + bytes([len(payload)]) + payload
        if packet[4] != 6 or len(packet) < 16:
            return None
        kind = packet[5] & 0x3F
        length = int.from_bytes(packet[14:16], "little")
        body = packet[16 : 16 + length]
        if kind == _OPEN_REQUEST:
            return _plain(_OPEN_RESPONSE, self._open_session(body))
        if kind == _RAKP1:
            return _plain(_RAKP2, self._rakp1(body))
        if kind == _RAKP3:
            answer = self._rakp3(body)
            return None if answer is None else _plain(_RAKP4, answer)
        if kind == _IPMI and packet[6:10] == bytes(4):
            payload = self._sessionless(body)
            return None if payload is None else _plain(_IPMI, payload)
        if kind == _IPMI:
            return self._command(packet)
        return None

    def _sessionless(self, message: bytes) -> bytes | None:
        parsed = _parse(message)
        if parsed is None:
            return None
        netfn, command, data = parsed
        if (netfn, command) == (0x06, 0x38):
            # Channel 1; RMCP+ only; a login requires a name; IPMI 2.0.
            return _reply(message, bytes((OK, 1, 0x80, 0x04, 0x02, 0, 0, 0, 0)))
        if (netfn, command) == (0x06, 0x54):
            index = data[2] & 0x3F if len(data) > 2 else 0
            records = b"".join(
                bytes((0xC0, s.number, s.authentication, 0x40 | s.integrity, 0x80 | _AES)) for s in self._suites
            )
            return _reply(message, bytes((OK, 1)) + records[16 * index : 16 * index + 16])
        if (netfn, command) == (0x06, 0x37):
            return _reply(message, bytes((OK,)) + self._guid)
        return _reply(message, bytes((NOT_ALLOWED,)))

    # -- the login (chapter 13.17 to 13.24) ----------------------------------------------------------

    def _open_session(self, body: bytes) -> bytes:
        if len(body) < 32:
            return b""
        tag, console_id = body[0], body[4:8]
        algorithms = (body[12], body[20], body[28])
        now_s = time.monotonic()
        for own_id in [key for key, session in self._sessions.items() if now_s - session.used_s > _IDLE_S]:
            del self._sessions[own_id]
        suite = next((s for s in self._suites if (s.authentication, s.integrity, _AES) == algorithms), None)
        if suite is None:
            return bytes((tag, _NO_SUITE, 0, 0)) + console_id
        # Unfinished logins do not fill the table.
        unfinished = [key for key, session in self._sessions.items() if not session.is_active]
        for own_id in unfinished[:-_MAX_SESSIONS]:
            del self._sessions[own_id]
        if sum(session.is_active for session in self._sessions.values()) >= _MAX_SESSIONS:
            return bytes((tag, _NO_RESOURCES, 0, 0)) + console_id
        own_id = os.urandom(4)
        self._sessions[own_id] = _Session(console_id=console_id, own_id=own_id, suite=suite, used_s=now_s)
        accepted = b"".join(bytes((kind, 0, 0, 8, algorithms[kind], 0, 0, 0)) for kind in range(3))
        return bytes((tag, OK, PRIVILEGES["administrator"], 0)) + console_id + own_id + accepted

    def _rakp1(self, body: bytes) -> bytes:
        tag = body[0] if body else 0
        session = self._sessions.get(body[4:8])
        if session is None or len(body) < 28 or session.is_active:
            return bytes((tag, _INVALID_SESSION, 0, 0)) + bytes(4)
        session.console_random = body[8:24]
        session.role = body[24]
        session.name = body[28 : 28 + body[27]]
        session.user = self._users.get(session.name)
        if session.user is None:
            return bytes((tag, _NO_SUCH_NAME, 0, 0)) + session.console_id
        if session.role & 0x0F > session.user.privilege:
            return bytes((tag, _BAD_ROLE, 0, 0)) + session.console_id
        session.own_random = os.urandom(16)
        signed = session.console_id + session.own_id + session.console_random + session.own_random + self._guid
        code = session.mac(session.user.password, signed + self._role_and_name(session))
        return bytes((tag, OK, 0, 0)) + session.console_id + session.own_random + self._guid + code

    @staticmethod
    def _role_and_name(session: _Session) -> bytes:
        return bytes((session.role, len(session.name))) + session.name

    def _rakp3(self, body: bytes) -> bytes | None:
        tag = body[0] if body else 0
        session = self._sessions.get(body[4:8])
        if session is None or session.user is None or session.is_active:
            return bytes((tag, _INVALID_SESSION, 0, 0)) + bytes(4)
        if body[1] != OK:
            # The console rejected RAKP 2: the login ends without an answer.
            del self._sessions[session.own_id]
            return None
        role_and_name = self._role_and_name(session)
        key = session.user.password
        expected = session.mac(key, session.own_random + session.console_id + role_and_name)
        if not hmac.compare_digest(expected, body[8:]):
            del self._sessions[session.own_id]
            return bytes((tag, _BAD_INTEGRITY, 0, 0)) + session.console_id
        session.sik = session.mac(key, session.console_random + session.own_random + role_and_name)
        session.sign_key = session.mac(session.sik, b"\x01" * 20)
        session.aes_key = session.mac(session.sik, b"\x02" * 20)[:16]
        session.is_active = True
        session.privilege = min(PRIVILEGES["user"], session.user.privilege)
        check = session.mac(session.sik, session.console_random + session.own_id + self._guid)
        return bytes((tag, OK, 0, 0)) + session.console_id + check[: session.suite.check_bytes]

    # -- commands ------------------------------------------------------------------------------------

    def _command(self, packet: bytes) -> bytes | None:
        session = self._sessions.get(packet[6:10])
        if session is None or not session.is_active:
            return None
        size = session.suite.check_bytes
        if packet[5] & 0xC0 != 0xC0 or not hmac.compare_digest(
            session.mac(session.sign_key, packet[4:-size])[:size], packet[-size:]
        ):
            return None
        length = int.from_bytes(packet[14:16], "little")
        body = packet[16 : 16 + length]
        decryptor = self._cipher(session.aes_key, body[:16]).decryptor()
        clear = decryptor.update(body[16:]) + decryptor.finalize()
        message = clear[: len(clear) - clear[-1] - 1]
        parsed = _parse(message)
        if parsed is None:
            return None
        session.used_s = time.monotonic()
        netfn, command, data = parsed
        if (netfn, command) == (0x06, 0x3B):
            answer = self._set_privilege(session, data)
        elif (netfn, command) == (0x06, 0x3C):
            answer = bytes((OK,))
            del self._sessions[session.own_id]
        else:
            answer = self._handler(netfn, command, data, session.privilege)
        return self._sealed(session, _reply(message, answer))

    @staticmethod
    def _set_privilege(session: _Session, data: bytes) -> bytes:
        assert session.user is not None
        level = data[0] & 0x0F if data else 0
        if level > min(session.user.privilege, session.role & 0x0F or 15):
            return bytes((_BAD_PRIVILEGE,))
        if level:
            session.privilege = level
        return bytes((OK, session.privilege))

    def _sealed(self, session: _Session, message: bytes) -> bytes:
        session.sequence += 1
        iv = os.urandom(16)
        pad = -(len(message) + 1) % 16
        encryptor = self._cipher(session.aes_key, iv).encryptor()
        clear = message + bytes(range(1, pad + 1)) + bytes((pad,))
        body = iv + encryptor.update(clear) + encryptor.finalize()
        packet = bytes((6, 0xC0 | _IPMI)) + session.console_id + struct.pack("<IH", session.sequence, len(body)) + body
        fill = -(len(packet) + 2) % 4
        packet += b"\xff" * fill + bytes((fill, 7))
        return _RMCP + packet + session.mac(session.sign_key, packet)[: session.suite.check_bytes]


def _plain(kind: int, body: bytes) -> bytes | None:
    """Return a packet outside of a session; None for an empty body."""
    return _RMCP + bytes((6, kind)) + bytes(8) + struct.pack("<H", len(body)) + body if body else None


def _checksum(data: bytes) -> int:
    return -sum(data) & 0xFF


def _parse(message: bytes) -> tuple[int, int, bytes] | None:
    """Return netfn, command and data of a request; None if it is damaged."""
    if len(message) < 7 or _checksum(message[:2]) != message[2] or _checksum(message[3:-1]) != message[-1]:
        return None
    return message[1] >> 2, message[5], message[6:-1]


def _reply(message: bytes, answer: bytes) -> bytes:
    """Return the response to a request: addresses swapped, the netfn one higher, the same sequence."""
    netfn_lun = (message[1] >> 2 | 1) << 2 | message[4] & 0x03
    head = bytes((message[3], netfn_lun))
    body = bytes((message[0], message[4] & 0xFC | message[1] & 0x03, message[5])) + answer
    return head + bytes((_checksum(head),)) + body + bytes((_checksum(body),))
