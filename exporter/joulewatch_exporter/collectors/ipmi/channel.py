"""What a BMC is to those who read it: commands in, completion code and data out."""

from __future__ import annotations

from typing import Protocol

from joulewatch_exporter.errors import SensorDeniedError, SensorError, SensorGlitchError

_UNKNOWN = frozenset({0xC1, 0xC2})
_GLITCHES = {
    0xC0: "the BMC is busy",
    0xC3: "timed out inside the BMC",
    0xC4: "the BMC is out of memory",
    0xC5: "the reservation was lost",
    0xCB: "no value now",
    0xCE: "no answer could be made",
    0xCF: "taken for a duplicate",
    0xD0: "the BMC is updating its sensor records",
    0xD1: "the BMC is updating its firmware",
    0xD2: "the BMC is starting",
    0xD3: "what was asked for is unreachable",
    0xD5: "not possible in the present state",
    0xD6: "switched off",
    0xFF: "unspecified error",
}


def device_cure(path: str) -> str:
    """Return the line that lets this exporter use the kernel's device until the next boot."""
    return f"sudo chmod a+rw {path}"


def device_denied(path: str, reason: str) -> str:
    """Say that the kernel's device may not be opened, and what to do."""
    return (
        f"{path}: {reason}; run `{device_cure(path)}` (until the next boot), or for good give the exporter's user this "
        "device by a udev rule, or run the exporter as root"
    )


class UnknownCommandError(SensorError):
    """The BMC does not know this command, and will not."""

    reason = "absent"


class Channel(Protocol):
    """A way to one BMC; used by one thread at a time."""

    @property
    def where(self) -> str:
        """The BMC's name and address, for messages."""
        ...

    def send(self, netfn: int, command: int, data: bytes = b"", lun: int = 0) -> tuple[int, bytes]:
        """Run one command.

        Returns:
            The completion code and what follows it.

        Raises:
            SensorTimeoutError: No answer within the deadline.
            SensorAbsentError: There is no BMC (any more).
            SensorDeniedError: A login was refused.
            SensorGlitchError: This try only failed.
        """
        ...

    def close(self) -> None:
        """Log out, if that needs no waiting; safe to call twice."""
        ...


def ask(
    channel: Channel, what: str, netfn: int, command: int, data: bytes = b"", *, lun: int = 0, denied: str = ""
) -> bytes:
    """Run one command that must succeed.

    Args:
        channel: To the BMC.
        what: The command in words.
        netfn: Its network function.
        command: Its number.
        data: What goes with it.
        lun: The logical unit that is asked.
        denied: The cure of a missing privilege.

    Returns:
        The answer behind its completion code.

    Raises:
        UnknownCommandError: The BMC does not know the command.
        SensorDeniedError: The user's privilege does not suffice.
        SensorGlitchError: Any other completion code.
        SensorError: As from `Channel.send`.
    """
    code, answer = channel.send(netfn, command, data, lun)
    if code == 0:
        return answer
    place = f"{channel.where}: {what}"
    if code in _UNKNOWN:
        raise UnknownCommandError(f"{place}: the BMC does not know it ({code:02X}h)")
    if code == 0xD4:
        raise SensorDeniedError(f"{place}: the user's privilege does not suffice (D4h){denied and '; '}{denied}")
    raise SensorGlitchError(f"{place}: {_GLITCHES.get(code, 'failed')} (completion code {code:02X}h)")
