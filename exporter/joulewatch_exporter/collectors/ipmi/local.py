"""IPMI in band: the BMC of this machine through the kernel's device.

pyghmi's local session waits for the kernel's answer without a limit; here it stops at a deadline. The device file is
closed after that, so a late answer is lost and cannot be mistaken for the answer to the next command.

Only `open` imports this module, because it needs the extra ``ipmi``.
"""

from __future__ import annotations

import select
import time

from pyghmi.ipmi.private import localsession

from joulewatch_exporter.collectors.ipmi.channel import device_denied
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError, SensorTimeoutError


class LocalChannel:
    """The connection to the BMC of this machine."""

    def __init__(self, path: str, *, deadline_s: float) -> None:
        """Open the device.

        Args:
            path: The device, such as ``/dev/ipmi0``.
            deadline_s: Deadline of each command.

        Raises:
            SensorAbsentError: There is no such device.
            SensorDeniedError: The device cannot be opened; the text names the fix.
        """
        self.where = path
        self._deadline_s = deadline_s
        self._end_s = 0.0
        try:
            self._session = localsession.Session(path)
        except OSError as error:
            raise self._converted(error) from None
        self._session.await_reply = self._await_reply
        self._poll = select.poll()
        self._poll.register(self._session.ipmidev, select.POLLIN)

    def send(self, netfn: int, command: int, data: bytes = b"", lun: int = 0) -> tuple[int, bytes]:
        """See `Channel.send`."""
        self._end_s = time.monotonic() + self._deadline_s
        try:
            response = self._session.raw_command(netfn=netfn, command=command, data=data, rslun=lun)
        except OSError as error:
            raise self._converted(error) from None
        return int(response["code"]), bytes(response["data"])

    def close(self) -> None:
        """Close the device; safe to call twice."""
        self._session.ipmidev.close()

    def _await_reply(self) -> None:
        if not self._poll.poll(max(self._end_s - time.monotonic(), 0.0) * 1000):
            raise SensorTimeoutError(f"{self.where}: no answer within {self._deadline_s:g} s; the BMC may hang")

    def _converted(self, error: OSError) -> SensorError:
        if isinstance(error, PermissionError):
            return SensorDeniedError(device_denied(self.where, error.strerror or "denied"))
        return SensorAbsentError(f"{self.where}: {error.strerror}; run `sudo modprobe ipmi_devintf`")
