"""What the backends of FPGA cards share: checked numbers, rails, and the interface of a card's sensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from joulewatch_exporter.collectors.base.sysfs import HeldInt, denied_cure, read_int
from joulewatch_exporter.errors import SensorDeniedError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Finding, Quantity, Reading, Relation, SensorInfo

NAME: Final = "fpga"
TOTAL: Final = "total"

MAX_POWER_WATTS: Final = 1000.0
"""No such card or board draws more; 2^32 - 1 microwatts would be 4295 W."""

_ALL_ONES: Final = frozenset({2**32 - 1, 2**64 - 1})
"""An unset register, or a card that was removed from the bus."""

FunctionKind = Literal["user", "mgmt"]
"""The two PCI functions of a card: user can be passed to a virtual machine, mgmt stays with the host."""


class CardSensor(Protocol):
    """One card or board, read by one backend."""

    @property
    def device(self) -> str: ...

    @property
    def infos(self) -> Sequence[SensorInfo]: ...

    def read(self) -> Sequence[Reading]: ...

    def close(self) -> None: ...


class Number:
    """A file with a non-negative whole number; stays open between reads."""

    __slots__ = ("_file",)

    def __init__(self, path: str) -> None:
        self._file = HeldInt(path)

    @property
    def path(self) -> str:
        return self._file.path

    def read(self) -> int:
        """Read the number.

        Raises:
            SensorGlitchError: The read failed, or all bits of the number are ones. XRT prints unsigned registers as
                signed numbers, so a card that was removed from the bus reads -1.
            SensorAbsentError: The file or its device disappeared.
            SensorDeniedError: Permission is missing.
        """
        raw = self._file.read()
        if raw < 0 or raw in _ALL_ONES:
            raise SensorGlitchError(f"{self.path}: {raw} is not a measurement (all bits are ones)")
        return raw

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class RailFiles:
    """Paths of one rail's voltage (mV) and current (mA)."""

    domain: str
    millivolts: str
    milliamperes: str
    is_addend: bool
    """Whether the rail is a term of the card's total; the other rails are supplied by these."""

    @property
    def relation(self) -> Relation:
        return "rail" if self.is_addend else "inside"


class Rail:
    """One rail of an open card."""

    __slots__ = ("_milliamperes", "_millivolts", "files")

    def __init__(self, files: RailFiles) -> None:
        self.files = files
        self._millivolts = Number(files.millivolts)
        self._milliamperes = Number(files.milliamperes)

    def microwatts(self) -> int:
        """Return voltage times current; raises the errors of `Number.read`."""
        return self._millivolts.read() * self._milliamperes.read()

    def close(self) -> None:
        self._millivolts.close()
        self._milliamperes.close()


def rail_info(device: str, files: RailFiles, model: str) -> SensorInfo:
    """Return how a rail is measured."""
    return SensorInfo(
        quantity=Quantity(scope="part", component="fpga", device=device, domain=files.domain),
        method="integrated",
        source=f"{files.millivolts} x {files.milliamperes.rpartition('/')[2]}",
        model=model,
        resolution="1 mA",
        max_power_watts=MAX_POWER_WATTS,
        relation=files.relation,
    )


def powered_rails(rails: Sequence[RailFiles], findings: list[Finding]) -> list[RailFiles]:
    """Return the rails without those that the card does not have (0 V while others are not) or that are denied."""
    millivolts: dict[str, int | None] = {}
    for rail in rails:
        try:
            millivolts[rail.domain] = read_int(rail.millivolts)
            read_int(rail.milliamperes)
        except SensorDeniedError as error:
            findings.append(denied(error))
            millivolts[rail.domain] = 0
        except SensorError:
            millivolts[rail.domain] = None  # no value now
    is_alive = any(millivolts.values())
    # If the card has no data, all rails read 0; that does not mean that it does not have them.
    return [rail for rail in rails if not (is_alive and millivolts[rail.domain] == 0)]


def checked_watts(path: str, microwatts: float) -> float:
    """Convert a card's microwatts to watts.

    Raises:
        SensorGlitchError: The power is 0, which drivers return without data, or above what a card can draw.
    """
    if microwatts == 0:
        raise SensorGlitchError(f"{path}: 0 W: the card has no data now")
    watts = microwatts / 1e6
    if not 0 < watts <= MAX_POWER_WATTS:
        raise SensorGlitchError(f"{path}: {watts:g} W is not a plausible power of a card")
    return watts


def denied(error: SensorDeniedError, device: str = "") -> Finding:
    """Return the finding for a denied file of a device; the text of such an error begins with the path."""
    path = str(error).partition(": ")[0]
    cure = denied_cure(path)
    return Finding(status="denied", collector=NAME, subject=path, text=str(error), cure=cure, device=device)


def found(subject: str, text: str) -> Finding:
    return Finding(status="found", collector=NAME, subject=subject, text=text)


def skipped(subject: str, text: str, fix: str = "") -> Finding:
    return Finding(status="skipped", collector=NAME, subject=subject, text=text, cure=fix)
