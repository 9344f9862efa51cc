"""Cards whose total is one channel of a hwmon chip: Versal cards with XRT (``hwmon_sdm``), the Alveo V80 with AMI.

Neither driver follows the rules of the hwmon class. ``hwmon_sdm`` (VCK5000, V70) returns the power in units of
10^``powerN_unitm`` W instead of microwatts, and 4294967295 for a missing value. If a V80 is at or above its critical
limit, reading ``power1_input`` makes the driver end every program that uses the card (SIGBUS): it is read only on
request, and at most once per second.

Sources: XRT ``src/runtime_src/core/pcie/driver/linux/xocl/subdev/hwmon_sdm.c``; AVED ``sw/AMI/driver/ami_hwmon.c``
(``read_sensor_val``), ``ami_sensor.h``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from time import monotonic_ns
from typing import Final

from joulewatch_exporter.collectors.base.sysfs import list_names, read_int, read_text, read_text_or
from joulewatch_exporter.collectors.fpga.common import MAX_POWER_WATTS, TOTAL, Number, checked_watts
from joulewatch_exporter.errors import SensorAbsentError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Quantity, Reading, SensorInfo

SDM_CHIP: Final = re.compile(r"(?P<model>.*)_hwmon_sdm_(?P<kind>user|mgmt)")
V80_CHIP: Final = "Alveo"
"""AMI uses this chip name for every card."""

V80_DANGER: Final = (
    "an Alveo card with the driver AMI is read only on request: if its power is at or above the critical limit, "
    "reading it makes the driver end every program that uses the card (SIGBUS)"
)

_VALID: Final = "Sensor Present and Valid"
_MICRO: Final = -6
_UNITS: Final = {3: "1 kW", 0: "1 W", -1: "0.1 W", -2: "10 mW", -3: "1 mW", -6: "1 uW"}
"""Resolution of a card's power by the exponent of its unit."""
_V80_SPACING_NS: Final = 1_000_000_000
"""The driver queries the card once per second; a read in between is dangerous and returns nothing new."""


class ChipSensor:
    """A card whose total is one channel."""

    def __init__(self, device: str, stem: str, *, unit_exponent: int, model: str, spacing_ns: int = 0) -> None:
        """Prepare without reading.

        Args:
            device: The card's label.
            stem: The channel's path without ``_input``.
            unit_exponent: The unit is 10 to this power, in watts.
            model: Model of the card, for display.
            spacing_ns: Shortest time between two reads; in between, return the last values with their own time.
        """
        self.device = device
        self._number = Number(f"{stem}_input")
        self._status = f"{stem}_status"
        self._unit_microwatts = 10.0 ** (unit_exponent - _MICRO)
        self._spacing_ns = spacing_ns
        self._last: tuple[Reading, ...] = ()
        self._tried_ns = -spacing_ns
        self._quantity = Quantity(scope="device", component="fpga", device=device, domain=TOTAL)
        info = SensorInfo(
            quantity=self._quantity,
            method="integrated",
            source=self._number.path,
            model=model,
            resolution=_UNITS[unit_exponent],
            max_power_watts=MAX_POWER_WATTS,
            read_mode="polled" if spacing_ns else None,
        )
        self.infos = (info,)

    def read(self) -> Sequence[Reading]:
        """Read the card once; raise the errors of `Number.read`, or `SensorGlitchError` if the status is not valid."""
        now_ns = monotonic_ns()
        if now_ns - self._tried_ns < self._spacing_ns:
            if not self._last:
                error = SensorGlitchError(f"{self._number.path}: not retried yet")
                error.is_repeated = True
                raise error
            return self._last
        self._tried_ns, self._last = now_ns, ()
        self._check_status()
        raw = self._number.read()
        now_ns = monotonic_ns()
        watts = checked_watts(self._number.path, raw * self._unit_microwatts)
        self._last = (Reading(quantity=self._quantity, read_at_ns=now_ns, energy_joules=None, power_watts=watts),)
        return self._last

    def _check_status(self) -> None:
        try:
            status = read_text(self._status)
        except SensorAbsentError:
            return  # this driver version has no status
        if status != _VALID:
            raise SensorGlitchError(f"{self._status}: {status!r} is not {_VALID!r}")

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._number.close()


def open_sdm(device: str, directory: str, *, model: str) -> ChipSensor:
    """Prepare to read a Versal card.

    Raises:
        SensorAbsentError: No channel is labelled Total Power.
        SensorError: The unit cannot be read.
    """
    stem = _channel(directory, "Total Power")
    # Without the unit the power is unknown.
    unit_exponent = read_int(f"{stem}_unitm")
    if unit_exponent not in _UNITS:
        raise SensorGlitchError(f"{stem}_unitm: {unit_exponent} is not a known unit of power")
    return ChipSensor(device, stem, unit_exponent=unit_exponent, model=model)


def open_v80(device: str, directory: str) -> ChipSensor:
    """Prepare to read a card with the driver AMI; see `V80_DANGER`.

    Raises:
        SensorAbsentError: No channel is labelled Total_Power.
    """
    stem = _channel(directory, "Total_Power")
    return ChipSensor(device, stem, unit_exponent=_MICRO, model=V80_CHIP, spacing_ns=_V80_SPACING_NS)


def _channel(directory: str, label: str) -> str:
    try:
        names = [name for name in list_names(directory) if re.fullmatch(r"power\d+_label", name)]
    except SensorError as error:
        raise SensorAbsentError(str(error)) from error
    for name in names:
        if read_text_or(f"{directory}/{name}", "").lower() == label.lower():
            return f"{directory}/{name.removesuffix('_label')}"
    raise SensorAbsentError(f"{directory}: no power channel is labelled {label}")
