"""The interface to a BMC: a command in, a completion code and data out."""

from __future__ import annotations

from typing import Protocol

from joulewatch_exporter.collectors.base.sysfs import denied_cure
from joulewatch_exporter.errors import SensorDeniedError, SensorError, SensorGlitchError

_UNKNOWN = frozenset({0xC1, 0xC2})
_GLITCHES = {
    0xC0: "the BMC is busy",
    0xC3: "timeout inside the BMC",
    0xC4: "the BMC is out of memory",
    0xC5: "the reservation was lost",
    0xCB: "no value now",
    0xCE: "the BMC cannot produce an answer",
    0xCF: "the BMC considers the request a duplicate",
    0xD0: "the BMC is updating its sensor records",
    0xD1: "the BMC is updating its firmware",
    0xD2: "the BMC is starting",
    0xD3: "the destination is unreachable",
    0xD5: "not supported in the present state",
    0xD6: "disabled",
    0xFF: "unspecified error",
}


def chmod_command(path: str) -> str:
    """Return the command that makes the kernel's device accessible until the next boot; empty if it would not help."""
    return denied_cure(path, "rw")


def device_denied(path: str, reason: str) -> str:
    """Return the message that the kernel's device cannot be opened, with the fix if there is one."""
    cure = chmod_command(path)
    if not cure:
        return f"{path}: {reason}; its file mode allows access, so something else denies it (a container's settings?)"
    return (
        f"{path}: {reason}; run `{cure}` (until the next boot); permanently: give the exporter's user "
        "access with a udev rule, or run the exporter as root"
    )


class UnknownCommandError(SensorError):
    """The BMC does not support this command."""

    reason = "absent"


class Channel(Protocol):
    """A connection to one BMC; used by one thread at a time."""

    @property
    def where(self) -> str:
        """Name and address of the BMC, for messages."""
        ...

    def send(self, netfn: int, command: int, data: bytes = b"", lun: int = 0) -> tuple[int, bytes]:
        """Run one command.

        Returns:
            The completion code and the data after it.

        Raises:
            SensorTimeoutError: No answer within the deadline.
            SensorAbsentError: There is no BMC, or it disappeared.
            SensorDeniedError: The login was denied.
            SensorGlitchError: Only this request failed.
        """
        ...

    def close(self) -> None:
        """Log out without waiting for the answer; safe to call twice."""
        ...


def request(
    channel: Channel, name: str, netfn: int, command: int, data: bytes = b"", *, lun: int = 0, privilege_fix: str = ""
) -> bytes:
    """Run one command and return its data.

    Args:
        channel: The connection to the BMC.
        name: Name of the command, for messages.
        netfn: Network function of the command.
        command: Number of the command.
        data: Data of the request.
        lun: Logical unit number.
        privilege_fix: How to fix a missing privilege.

    Returns:
        The data after the completion code.

    Raises:
        UnknownCommandError: The BMC does not support the command.
        SensorDeniedError: The user's privilege is insufficient.
        SensorGlitchError: Any other completion code.
        SensorError: See `Channel.send`.
    """
    code, answer = channel.send(netfn, command, data, lun)
    if code == 0:
        return answer
    place = f"{channel.where}: {name}"
    if code in _UNKNOWN:
        raise UnknownCommandError(f"{place}: not supported by the BMC ({code:02X}h)")
    if code == 0xD4:
        raise SensorDeniedError(
            f"{place}: the user's privilege is insufficient (D4h){privilege_fix and '; '}{privilege_fix}"
        )
    raise SensorGlitchError(f"{place}: {_GLITCHES.get(code, 'failed')} (completion code {code:02X}h)")
