"""IPMI in band: the node's own BMC by the kernel's device.

pyghmi's local session waits for the kernel's answer for ever; here it gives up at a deadline. After that the device
file is closed, and with it the late answer is gone: it can never be taken for that of the next command.

This module is imported by `open` only: it needs the extra ``ipmi``.
"""

from __future__ import annotations

import select
import time

from pyghmi.ipmi.private import localsession

from joulewatch_exporter.collectors.ipmi.channel import device_denied
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError, SensorTimeoutError


class LocalChannel:
    """The way to the BMC of this machine."""

    def __init__(self, path: str, *, deadline_s: float) -> None:
        """Open the device.

        Args:
            path: Such as ``/dev/ipmi0``.
            deadline_s: For each command.

        Raises:
            SensorAbsentError: There is no such device.
            SensorDeniedError: It may not be opened; the text holds the cure.
        """
        self.where = path
        self._deadline_s = deadline_s
        self._end_s = 0.0
        try:
            self._session = localsession.Session(path)
        except OSError as error:
            raise self._failed(error) from None
        self._session.await_reply = self._await_reply
        self._poll = select.poll()
        self._poll.register(self._session.ipmidev, select.POLLIN)

    def send(self, netfn: int, command: int, data: bytes = b"", lun: int = 0) -> tuple[int, bytes]:
        """See `Channel.send`."""
        self._end_s = time.monotonic() + self._deadline_s
        try:
            response = self._session.raw_command(netfn=netfn, command=command, data=data, rslun=lun)
        except OSError as error:
            raise self._failed(error) from None
        return int(response["code"]), bytes(response["data"])

    def close(self) -> None:
        """Let go of the device; safe to call twice."""
        self._session.ipmidev.close()

    def _await_reply(self) -> None:
        if not self._poll.poll(max(self._end_s - time.monotonic(), 0.0) * 1000):
            raise SensorTimeoutError(f"{self.where}: no answer within {self._deadline_s:g} s; does the BMC hang?")

    def _failed(self, error: OSError) -> SensorError:
        if isinstance(error, PermissionError):
            return SensorDeniedError(device_denied(self.where, error.strerror or "denied"))
        return SensorAbsentError(f"{self.where}: {error.strerror}; run `sudo modprobe ipmi_devintf`")
