"""What can go wrong in the exporter, as a tree: catch only where there is something to do."""

from typing import Final


class ExporterError(Exception):
    """Base of every error the exporter raises on purpose; its text is fit for a user's eyes."""


class ConfigError(ExporterError):
    """Bad flag, file or key. The text names it and the nearest valid one; exit code 2."""


class SensorError(ExporterError):
    """A sensor gave no value. ``reason`` is the label of ``joulewatch_read_errors_total``."""

    reason = "error"
    is_repeated = False
    """The device was not tried anew since this was last raised: it is the same failure, not one more."""


class SensorAbsentError(SensorError):
    """Not on this machine, or gone: skipped, said once, looked for again."""

    reason = "absent"


class SensorDeniedError(SensorError):
    """There, but we may not read it. The text holds the path and the line that cures it; said once."""

    reason = "denied"


class SensorGlitchError(SensorError):
    """This read only failed (EIO, ENODATA, EAGAIN, text that is no number)."""

    reason = "glitch"


class SensorTimeoutError(SensorError):
    """The device did not answer in time; it may yet."""

    reason = "timeout"


EXIT_DONE: Final = 0


EXIT_FAILED: Final = 1


EXIT_USAGE: Final = 2
