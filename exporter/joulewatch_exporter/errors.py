"""The exporter's errors and exit codes. Catch an error only where there is something to do about it."""

from collections.abc import Iterable
from typing import Final

from joulewatch_exporter.text import label_text


class ExporterError(Exception):
    """Base of all errors that the exporter raises on purpose; the text is written for users."""


class ConfigError(ExporterError):
    """A flag, file or key is wrong. The text names it and the nearest valid one; exit code 2."""


class SensorError(ExporterError):
    """A sensor returned no value.

    ``reason`` is the state of its device (``joulewatch_sensor_state``), and a label value of
    ``joulewatch_read_errors_total``.
    """

    reason = "error"
    is_repeated = False
    """The device has not been read since this failure was last raised: do not count it again."""

    def __init__(self, text: str = "", *, devices: Iterable[str] = ()) -> None:
        """Describe the failure.

        Args:
            text: For users.
            devices: Labels of the devices of a family that cannot be opened (empty ones are ignored): each one has a
                state although nothing is read.
        """
        super().__init__(text)
        self.devices = tuple(dict.fromkeys(label_text(device) for device in devices if device))


class SensorAbsentError(SensorError):
    """The device is missing: skipped, logged once, probed again later."""

    reason = "absent"


class SensorAsleepError(SensorError):
    """The device is in runtime suspend, and a read would wake it. Not a failure: it is read again in each scan.

    The sensor reads ``power/runtime_status`` first, which does not wake the device.
    """

    reason = "asleep"


class SensorDeniedError(SensorError):
    """The device exists but may not be read. Logged once, with the path and the command that fixes it."""

    reason = "denied"


class SensorGlitchError(SensorError):
    """This read failed, the next may succeed (EIO, ENODATA, EAGAIN, text that is not a number)."""

    reason = "glitch"


class SensorTimeoutError(SensorError):
    """The device did not answer in time; it may answer later."""

    reason = "timeout"


EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
