"""IPMI over LAN: pyghmi implements the protocol, this module implements the waiting.

pyghmi's default session shares one I/O thread, its sockets and two locks among all BMCs of a process. In a test with
200 emulated BMCs and one thread each, two threads took the locks in opposite order as soon as three BMCs hung, and all
reading stopped permanently; without a hung BMC, one reply in a hundred was missed, which cost 0.5 to 1 s. pyghmi's
other session (``simplesession``, selected by ``select_simplesession``) has its own socket and shares nothing, but it
waits without a limit and never retransmits. This module replaces its waiting with deadlines, retransmission and a
connected socket: with three of 200 BMCs hung, each healthy BMC is read within 2 ms. Messages, login and ciphers are
pyghmi's.

Only `open` imports this module, because it needs the extra ``ipmi``.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from pyghmi.exceptions import IpmiException
from pyghmi.ipmi.private import simplesession

from joulewatch_exporter.errors import (
    SensorAbsentError,
    SensorDeniedError,
    SensorError,
    SensorGlitchError,
    SensorTimeoutError,
)

IDLE_S: Final = 25.0
"""A BMC closes a session that is idle for a minute: after this time a new session is opened."""

_PACE_SHARE: Final = 0.1
_MIN_PACE_S: Final = 0.1
"""Unanswered packets are sent again after this share of the deadline."""

_MAX_PACKET_BYTES: Final = 4096
_NO_ANSWER: Final = 0xFFFF
"""pyghmi's completion code for a missing answer."""


class LanSession(simplesession.Session):  # type: ignore[misc]
    """One session with one address, with deadlines."""

    # pyghmi creates it on first use, where two threads may race.
    socketchecking = threading.Lock()

    def __init__(
        self,
        family: int,
        address: Any,
        user: bytes,
        password: bytes,
        kg: bytes | None,
        privilege: int,
        *,
        deadline_s: float,
        end_s: float,
    ) -> None:
        """Log in.

        Args:
            family: Address family.
            address: Address in the form of the socket module.
            user: User name in bytes, like the password, because pyghmi encodes text inconsistently.
            password: At most 20 bytes.
            kg: The BMC's key, if it has one.
            privilege: 2 user, 3 operator, 4 administrator.
            deadline_s: Deadline of a command; packets are sent up to ten times within it.
            end_s: Monotonic time at which the login fails.

        Raises:
            IpmiException: The BMC denied the login.
            SensorTimeoutError: The BMC did not answer.
            SensorAbsentError: Nothing listens at the address, or it does not support RMCP+.
        """
        self._family = family
        self._address = address
        self._end_s = end_s
        self._repeat_s = float("inf")
        # A longer deadline means a slow BMC, which retransmissions would only load more.
        self._pace_s = max(deadline_s * _PACE_SHARE, _MIN_PACE_S)
        self._poll = select.poll()
        try:
            super().__init__(address[0], user, password, port=address[1], kg=kg, privlevel=privilege)
        except BaseException:
            self.drop()
            raise

    def send(self, netfn: int, command: int, data: bytes, lun: int, *, end_s: float) -> tuple[int, bytes]:
        """Run one command; return the completion code and the data after it.

        Raises:
            SensorTimeoutError: No answer by ``end_s``; the session cannot be used any longer.
            SensorAbsentError: The port is closed.
        """
        self._end_s = end_s
        try:
            response = self.raw_command(netfn=netfn, command=command, data=data, rslun=lun)
        except IpmiException:
            raise SensorTimeoutError("the session has ended") from None
        code = int(response["code"])
        if code == _NO_ANSWER:
            raise SensorTimeoutError("no answer")
        return code, bytes(response["data"])

    def drop(self) -> None:
        """Log out without waiting for the answer, and close the socket; safe to call twice."""
        # Otherwise pyghmi would wait for a pending command.
        self.incommand = False
        self.lastpayload = None
        self._end_s = 0.0
        with contextlib.suppress(Exception):
            if self.logged:
                self.logout()
        simplesession.Session.keepalive_sessions.pop(self, None)
        if self.socket is not None:
            self.socket.close()

    # -- overrides of pyghmi's methods ---------------------------------------------------------------

    def _assignsocket(self, server: object = None) -> socket.socket:
        # Connected, so that the kernel drops packets of other senders and reports a closed port at once.
        sock = socket.socket(self._family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.connect(self._address)
        except BaseException:
            sock.close()
            raise
        self._poll.register(sock, select.POLLIN)
        return sock

    def _xmit_packet(self, retry: bool = True, delay_xmit: float | None = None, timeout: float | None = None) -> None:
        if self.sequencenumber:
            self.sequencenumber += 1
        with contextlib.suppress(BlockingIOError):  # the same as a lost packet
            self._on_wire(lambda: self.socket.send(self.netpacket))
        if retry:
            self._repeat_s = time.monotonic() + self._pace_s

    def _on_wire(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except ConnectionRefusedError:
            raise SensorAbsentError("nothing listens at this address (port closed)") from None
        except BlockingIOError:
            raise
        except OSError as error:
            raise SensorAbsentError(f"cannot be reached: {error.strerror}") from None

    def wait_for_rsp(self, timeout: float | None = None, callout: bool = True) -> None:
        now_s = time.monotonic()
        if now_s >= self._end_s:
            raise SensorTimeoutError("no answer")
        wake_s = min(self._end_s, self._repeat_s)
        if self._poll.poll(max(wake_s - now_s, 0.0) * 1000):
            self.process_pktqueue()
        elif time.monotonic() >= self._repeat_s:
            self._repeat_s = float("inf")
            self.timeout = 0.0  # pyghmi's own limit, which the deadline replaces
            self._timedout()  # sends the packet again, or restarts the login

    def awaitresponse(self, retry: bool) -> None:
        while retry and self.lastresponse is None and self.logged:
            self.wait_for_rsp()

    def process_pktqueue(self) -> None:
        while time.monotonic() < self._end_s:  # a BMC may send without end
            try:
                data = bytearray(self._on_wire(lambda: self.socket.recv(_MAX_PACKET_BYTES)))
            except BlockingIOError:
                return
            if len(data) < 16 or data[0] != 6 or data[2:4] != b"\xff\x07":
                continue
            try:
                self._handle_ipmi_packet(data, sockaddr=self._address)
            except (IndexError, KeyError, ValueError, TypeError, struct.error):
                continue  # a damaged packet counts as lost

    def _get_session_challenge(self) -> None:
        raise SensorAbsentError("supports only IPMI 1.5, whose login is insecure; IPMI 2.0 (RMCP+) is required")


class LanChannel:
    """The connection to one BMC over the network; logs in again if the BMC dropped the session."""

    def __init__(
        self,
        where: str,
        host: str,
        port: int,
        credentials: Callable[[], tuple[bytes, bytes, bytes | None]],
        privilege: int,
        *,
        user: str,
        deadline_s: float,
    ) -> None:
        """Log in.

        Args:
            where: Name and address, for messages.
            host: Host name or address.
            port: UDP port.
            credentials: Returns user, password and the BMC's key; called for each login.
            privilege: Privilege level of the session.
            user: The user's name, for messages.
            deadline_s: Deadline of the login and of each command.

        Raises:
            SensorError: See `Channel.send`.
        """
        self.where = where
        self._host = host
        self._port = port
        self._credentials = credentials
        self._privilege = privilege
        self._user = user
        self._deadline_s = deadline_s
        self._used_s = 0.0
        self._session: LanSession | None = self._login(time.monotonic() + deadline_s)

    def send(self, netfn: int, command: int, data: bytes = b"", lun: int = 0) -> tuple[int, bytes]:
        """See `Channel.send`."""
        end_s = time.monotonic() + self._deadline_s
        if self._session is not None and time.monotonic() - self._used_s > IDLE_S:
            self.close()
        if self._session is not None:
            try:
                # A restarted BMC does not know the session and does not answer: keep half the time for a new login.
                return self._note_use(self._session.send(netfn, command, data, lun, end_s=end_s - self._deadline_s / 2))
            except SensorTimeoutError:
                self.close()
            except SensorError as error:
                raise self._with_advice(error) from None
        self._session = self._login(end_s)
        try:
            return self._note_use(self._session.send(netfn, command, data, lun, end_s=end_s))
        except SensorError as error:
            raise self._with_advice(error) from None

    def close(self) -> None:
        """Log out without waiting; safe to call twice."""
        session, self._session = self._session, None
        if session is not None:
            session.drop()

    def _note_use(self, answer: tuple[int, bytes]) -> tuple[int, bytes]:
        self._used_s = time.monotonic()
        return answer

    def _with_advice(self, error: SensorError) -> SensorError:
        text = str(error)
        if isinstance(error, SensorTimeoutError):
            text = f"{text} within {self._deadline_s:g} s; check that the BMC is up and UDP port {self._port} is open"
        elif isinstance(error, SensorAbsentError):
            text += "; check the address, and that IPMI over LAN is enabled in the BMC"
        return type(error)(f"{self.where}: {text}")

    def _login(self, end_s: float) -> LanSession:
        user, password, kg = self._credentials()
        try:
            addresses = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_DGRAM)
        except socket.gaierror as error:
            raise SensorAbsentError(
                f"{self.where}: the name cannot be resolved ({error.strerror}); correct `address`"
            ) from None
        last_error: SensorError | None = None
        for index, (family, _, _, _, address) in enumerate(addresses):
            # A name may have several addresses, and the BMC may answer at only one of them.
            share_s = (end_s - time.monotonic()) / (len(addresses) - index)
            try:
                session = LanSession(
                    family,
                    address,
                    user,
                    password,
                    kg,
                    self._privilege,
                    deadline_s=self._deadline_s,
                    end_s=time.monotonic() + share_s,
                )
            except SensorError as error:
                last_error = self._with_advice(error)
            except IpmiException as error:
                last_error = self._login_error(error)
                if isinstance(last_error, SensorDeniedError):
                    break
            except OSError as error:
                last_error = self._with_advice(SensorAbsentError(f"cannot be reached: {error.strerror}"))
            else:
                self._used_s = time.monotonic()
                return session
        assert last_error is not None
        raise last_error

    def _login_error(self, error: IpmiException) -> SensorError:
        """Convert an error of pyghmi, which never contains the password."""
        text = str(error)
        low = text.lower()
        if "password" in low:
            return SensorDeniedError(f"{self.where}: wrong password for user {self._user}; correct `password_file`")
        if "integrity check" in low or "kg" in low:
            return SensorDeniedError(
                f"{self.where}: wrong password or key of the BMC; correct `password_file`, `kg_file`"
            )
        if "name" in low:
            return SensorDeniedError(
                f"{self.where}: the BMC has no user {self._user} for IPMI over LAN; correct `user`"
            )
        if "resources" in low:
            return SensorGlitchError(f"{self.where}: the BMC has no free session now")
        if "role" in low or "privilege" in low or "privelege" in low:
            return SensorDeniedError(
                f"{self.where}: the BMC does not grant this privilege to {self._user}; "
                "lower `privilege`, or raise it in the BMC"
            )
        if "cipher" in low or "algorithm" in low:
            return SensorDeniedError(
                f"{self.where}: the BMC accepts neither cipher suite 17 nor 3; enable one in the BMC"
            )
        if text in ("", "None", "timeout") or "session" in low:
            return self._with_advice(SensorTimeoutError("no answer"))
        return SensorGlitchError(f"{self.where}: login failed: {text}")
