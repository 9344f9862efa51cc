"""IPMI over LAN: pyghmi speaks the protocol, this module does the waiting.

pyghmi's usual session shares one I/O thread, its sockets and two locks among all BMCs of a process. Tried with 200
emulated BMCs and a thread for each: as soon as three of them hung, two threads took the locks in opposite order and
all reading ended for good; without a hung one, one reply in a hundred was missed and cost 0.5 to 1 s. pyghmi's other
session (``simplesession``, chosen there by ``select_simplesession``) has a socket of its own and shares nothing, but
waits for ever and repeats nothing. Here its waiting is replaced, by one with a deadline, repeats and a connected
socket: of 200 BMCs of which three hang, each healthy one is read within 2 ms. What a BMC may say, the login and the
ciphers are pyghmi's.

This module is imported by `open` only: it needs the extra ``ipmi``.
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
"""A BMC forgets a session that is silent for a minute: after so long a new one is opened."""

_PACE_SHARE: Final = 0.1
_MIN_PACE_S: Final = 0.1
"""Packets that were not answered are repeated after this share of the deadline."""

_MAX_PACKET_BYTES: Final = 4096
_NO_ANSWER: Final = 0xFFFF
"""What pyghmi calls a completion code where there was no answer."""


class LanSession(simplesession.Session):  # type: ignore[misc]
    """One login at one address, with deadlines."""

    # pyghmi makes it on first use, which two threads may do at once.
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
            family: Of the address.
            address: As the socket module has it.
            user: Bytes, as the password: pyghmi mixes up text.
            password: At most 20 bytes.
            kg: The BMC's key, where it has one.
            privilege: 2 user, 3 operator, 4 administrator.
            deadline_s: That a command has; packets are repeated ten times within it.
            end_s: Monotonic time by which the BMC must have agreed.

        Raises:
            IpmiException: It has refused.
            SensorTimeoutError: It has not answered.
            SensorAbsentError: Nothing is there, or it cannot do RMCP+.
        """
        self._family = family
        self._address = address
        self._end_s = end_s
        self._repeat_s = float("inf")
        # A BMC that is given longer is a slow one, and repeats would only add to its work.
        self._pace_s = max(deadline_s * _PACE_SHARE, _MIN_PACE_S)
        self._poll = select.poll()
        try:
            super().__init__(address[0], user, password, port=address[1], kg=kg, privlevel=privilege)
        except BaseException:
            self.drop()
            raise

    def send(self, netfn: int, command: int, data: bytes, lun: int, *, end_s: float) -> tuple[int, bytes]:
        """Run one command; the completion code and what follows it.

        Raises:
            SensorTimeoutError: No answer by ``end_s``; the session is of no use any more.
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
        """Log out without waiting for the answer, and let go of the socket; safe to call twice."""
        # A command that is still under way would be waited for.
        self.incommand = False
        self.lastpayload = None
        self._end_s = 0.0
        with contextlib.suppress(Exception):
            if self.logged:
                self.logout()
        simplesession.Session.keepalive_sessions.pop(self, None)
        if self.socket is not None:
            self.socket.close()

    # -- what pyghmi leaves open -------------------------------------------------------------------

    def _assignsocket(self, server: object = None) -> socket.socket:
        # Connected: answers of others are dropped by the kernel, and a closed port is told at once.
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
        with contextlib.suppress(BlockingIOError):  # as good as lost on its way
            self._on_wire(lambda: self.socket.send(self.netpacket))
        if retry:
            self._repeat_s = time.monotonic() + self._pace_s

    def _on_wire(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except ConnectionRefusedError:
            raise SensorAbsentError("nothing listens there (port closed)") from None
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
            self.timeout = 0.0  # pyghmi counts with it when to give up: here the deadline says so
            self._timedout()  # repeats the packet, or begins the login anew

    def awaitresponse(self, retry: bool) -> None:
        while retry and self.lastresponse is None and self.logged:
            self.wait_for_rsp()

    def process_pktqueue(self) -> None:
        while True:
            try:
                data = bytearray(self._on_wire(lambda: self.socket.recv(_MAX_PACKET_BYTES)))
            except BlockingIOError:
                return
            if len(data) < 16 or data[0] != 6 or data[2:4] != b"\xff\x07":
                continue
            try:
                self._handle_ipmi_packet(data, sockaddr=self._address)
            except (IndexError, KeyError, ValueError, TypeError, struct.error):
                continue  # damaged: as if it had been lost

    def _get_session_challenge(self) -> None:
        raise SensorAbsentError("speaks IPMI 1.5 only, whose login is not safe; IPMI 2.0 (RMCP+) is needed")


class LanChannel:
    """The way to one BMC over the network: logs in when needed, and again when the BMC has forgotten us."""

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
            host: Name or address.
            port: UDP port.
            credentials: Gives user, password and the BMC's key anew for each login.
            privilege: That the session asks for.
            user: The user's name, for messages.
            deadline_s: For the login, and for each command.

        Raises:
            SensorError: As `Channel.send`.
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
                # A BMC that was restarted knows nothing of our session and is silent: half the time is left to log in.
                return self._used(self._session.send(netfn, command, data, lun, end_s=end_s - self._deadline_s / 2))
            except SensorTimeoutError:
                self.close()
            except SensorError as error:
                raise self._told(error) from None
        self._session = self._login(end_s)
        try:
            return self._used(self._session.send(netfn, command, data, lun, end_s=end_s))
        except SensorError as error:
            raise self._told(error) from None

    def close(self) -> None:
        """Log out without waiting; safe to call twice."""
        session, self._session = self._session, None
        if session is not None:
            session.drop()

    def _used(self, answer: tuple[int, bytes]) -> tuple[int, bytes]:
        self._used_s = time.monotonic()
        return answer

    def _told(self, error: SensorError) -> SensorError:
        text = str(error)
        if isinstance(error, SensorTimeoutError):
            text = f"{text} within {self._deadline_s:g} s; look whether the BMC is up and UDP port {self._port} is open"
        elif isinstance(error, SensorAbsentError):
            text += "; look whether the address is right and IPMI over LAN is switched on in the BMC"
        return type(error)(f"{self.where}: {text}")

    def _login(self, end_s: float) -> LanSession:
        user, password, kg = self._credentials()
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_DGRAM)
        except socket.gaierror as error:
            raise SensorAbsentError(
                f"{self.where}: the name is not known ({error.strerror}); correct `address`"
            ) from None
        failure: SensorError | None = None
        for index, (family, _, _, _, address) in enumerate(found):
            # A name may have several addresses, of which the BMC answers at one.
            share_s = (end_s - time.monotonic()) / (len(found) - index)
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
                failure = self._told(error)
            except IpmiException as error:
                failure = self._refused(error)
                if isinstance(failure, SensorDeniedError):
                    break
            except OSError as error:
                failure = self._told(SensorAbsentError(f"cannot be reached: {error.strerror}"))
            else:
                self._used_s = time.monotonic()
                return session
        assert failure is not None
        raise failure

    def _refused(self, error: IpmiException) -> SensorError:
        """Turn pyghmi's words into an error; they never hold the password."""
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
            return SensorGlitchError(f"{self.where}: the BMC has no free session; it may have one later")
        if "role" in low or "privilege" in low or "privelege" in low:
            return SensorDeniedError(
                f"{self.where}: {self._user} may not have this privilege; lower `privilege`, or raise it in the BMC"
            )
        if "cipher" in low or "algorithm" in low:
            return SensorDeniedError(
                f"{self.where}: the BMC takes neither cipher suite 17 nor 3; switch one on in the BMC"
            )
        if text in ("", "None", "timeout") or "session" in low:
            return self._told(SensorTimeoutError("no answer"))
        return SensorGlitchError(f"{self.where}: login failed: {text}")
