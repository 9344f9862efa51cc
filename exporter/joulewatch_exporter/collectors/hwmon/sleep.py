"""Devices in runtime suspend, which a read of most drivers would wake.

``power/runtime_status`` is read before each read of such a device: it does not wake the device. A read that fails may
have failed because the device was being suspended, so the state is then read again. amdgpu refuses reads with EPERM
while its device sleeps (since Linux 6.15; older kernels wake it) and during a reset.

Sources: Linux ``Documentation/ABI/testing/sysfs-devices-power``, ``drivers/gpu/drm/amd/pm/amdgpu_pm.c``
(`amdgpu_pm_get_access_if_active`), ``drivers/gpu/drm/{xe/xe_hwmon.c,i915/i915_hwmon.c}`` (reads resume the device).
"""

from __future__ import annotations

import errno

from joulewatch_exporter.collectors.base.sysfs import HeldFile, read_text_or
from joulewatch_exporter.collectors.hwmon.values import Meter
from joulewatch_exporter.errors import SensorAsleepError, SensorDeniedError, SensorError, SensorGlitchError

_STATES = frozenset({"active", "suspended", "suspending", "resuming"})
"""A device without runtime power management is ``unsupported``."""


def status_path(device: str) -> str:
    """Return the file with the state of a device; empty if the device cannot be suspended.

    Args:
        device: Path of the device.
    """
    path = f"{device}/power/runtime_status"
    return path if read_text_or(path, "") in _STATES else ""


class SleepyMeter:
    """A meter of a device that may be in runtime suspend; it never wakes the device."""

    __slots__ = ("_meter", "_status")

    def __init__(self, meter: Meter, path: str) -> None:
        """Prepare without reading.

        Args:
            meter: Reads the device.
            path: The file with the state of the device, from `status_path`.
        """
        self._meter = meter
        self._status = HeldFile(path)

    def read(self) -> tuple[int, float]:
        """Read the device, unless it sleeps.

        Raises:
            SensorAsleepError: The device is in runtime suspend.
            SensorGlitchError: As of the meter; or the driver refuses the read although the device is awake.
            SensorAbsentError, SensorDeniedError: As of the meter.
        """
        self._check()
        try:
            return self._meter.read()
        except (SensorDeniedError, SensorGlitchError) as error:
            self._check(error)
            if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EPERM:
                # Missing rights would be EACCES, when the file is opened.
                path = str(error).partition(": ")[0]
                raise SensorGlitchError(
                    f"{path}: the driver refuses reads now; the device may be in a reset"
                ) from error
            raise

    def _check(self, cause: SensorError | None = None) -> None:
        try:
            status = self._status.read_bytes()
        except SensorError:
            return  # the device is disappearing, which the read of its value shows
        if status.startswith(b"suspend"):
            state = status.decode().strip()
            raise SensorAsleepError(f"{self._status.path}: {state}; a read may wake the device") from cause

    def close(self) -> None:
        self._meter.close()
        self._status.close()
