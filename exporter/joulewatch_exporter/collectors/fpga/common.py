"""What the ways to read an FPGA card have in common: numbers that can be trusted, rails, and the card's sensor."""

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
"""No card and no board of these draws more; 2^32 - 1 microwatts are 4295 W."""

_ALL_ONES: Final = frozenset({2**32 - 1, 2**64 - 1})
"""A register that nobody filled, or a card that is off its bus."""

FunctionKind = Literal["user", "mgmt"]
"""The two PCI functions of a card: what a virtual machine gets too, and what the host keeps."""


class CardSensor(Protocol):
    """One card or board, as one way to read it gives it."""

    @property
    def device(self) -> str: ...

    @property
    def infos(self) -> Sequence[SensorInfo]: ...

    def read(self) -> Sequence[Reading]: ...

    def close(self) -> None: ...


class Number:
    """A file with a whole number that cannot be negative, kept open."""

    __slots__ = ("_file",)

    def __init__(self, path: str) -> None:
        self._file = HeldInt(path)

    @property
    def path(self) -> str:
        return self._file.path

    def read(self) -> int:
        """Read it as it is now.

        Raises:
            SensorGlitchError: The driver refused, or the number is a register of ones. XRT prints its unsigned
                registers signed: a card that is off its bus reads -1.
            SensorAbsentError: The file or its device is gone.
            SensorDeniedError: The rights are missing.
        """
        raw = self._file.read()
        if raw < 0 or raw in _ALL_ONES:
            raise SensorGlitchError(f"{self.path}: {raw} is a register of ones, not a measurement")
        return raw

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class RailFiles:
    """Where one rail's voltage (mV) and current (mA) are."""

    domain: str
    millivolts: str
    milliamperes: str
    is_addend: bool
    """Whether it is one of the rails that the card's total is made of; the others lie behind these."""

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
        """Read voltage and current, and multiply; errors as those of `Number.read`."""
        return self._millivolts.read() * self._milliamperes.read()

    def close(self) -> None:
        self._millivolts.close()
        self._milliamperes.close()


def rail_info(device: str, files: RailFiles, model: str) -> SensorInfo:
    """Say how a rail is measured."""
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
    """Leave out the rails that this card does not have (0 V while others have some), and those that are denied."""
    millivolts: dict[str, int | None] = {}
    for rail in rails:
        try:
            millivolts[rail.domain] = read_int(rail.millivolts)
            read_int(rail.milliamperes)
        except SensorDeniedError as error:
            findings.append(denied(error))
            millivolts[rail.domain] = 0
        except SensorError:
            millivolts[rail.domain] = None  # nothing just now
    is_alive = any(millivolts.values())
    # With no data at all every rail reads 0: then nothing is known of any of them.
    return [rail for rail in rails if not (is_alive and millivolts[rail.domain] == 0)]


def checked_watts(path: str, microwatts: float) -> float:
    """Turn a card's microwatts into watts.

    Raises:
        SensorGlitchError: It is 0, which is what drivers say without data, or more than a card can draw.
    """
    if microwatts == 0:
        raise SensorGlitchError(f"{path}: 0 W means that the card gives no data now")
    watts = microwatts / 1e6
    if not 0 < watts <= MAX_POWER_WATTS:
        raise SensorGlitchError(f"{path}: {watts:g} W is no power of a card")
    return watts


def denied(error: SensorDeniedError) -> Finding:
    """Turn a denied file into a finding; such an error's text begins with the path."""
    path = str(error).partition(": ")[0]
    return Finding(status="denied", collector=NAME, subject=path, text=str(error), cure=denied_cure(path))


def found(subject: str, text: str) -> Finding:
    return Finding(status="found", collector=NAME, subject=subject, text=text)


def skipped(subject: str, text: str, cure: str = "") -> Finding:
    return Finding(status="skipped", collector=NAME, subject=subject, text=text, cure=cure)
