"""Interpret ``gpu_metrics``, a binary snapshot of the sensors that the driver amdgpu shows for a GPU.

The file begins with its size (16 bits), the revision of its format and the revision of its content (8 bits each). The
place of a field depends on both revisions. The driver sets all bits of a field that it does not know.

=============  ===================  ====================================  ====================================
revisions      GPUs                 energy counter                        power
=============  ===================  ====================================  ====================================
1.1 to 1.3     MI200 and others     24; zero in the second die of a card  22, mean
1.4            MI300                24                                    10, momentary
1.5            MI300                88                                    10, momentary
1.6            MI300                16; 88 in an early layout             10, momentary
1.7, 1.8       MI300, MI350         24                                    10, momentary
1.9            MI300, MI350         a list of fields with their numbers   as the energy counter
3.0            Ryzen AI             none                                  116, of the NPU only, mean, milliwatts
=============  ===================  ====================================  ====================================

The counter has steps of 2^-16 J (15.259 uJ) on MI200, MI300 and MI350. On other GPUs of format 1 its unit is not
documented, and newer drivers mark it as invalid (SMU 13.0.0, 13.0.7, 14.0.2), so it is not used there.

Source: Linux ``drivers/gpu/drm/amd/include/kgd_pp_interface.h`` (layouts),
``drivers/gpu/drm/amd/pm/swsmu/smu13/{aldebaran_ppt.c,smu_v13_0_6_ppt.c}``, ``smu14/smu_v14_0_0_ppt.c``,
``pm/swsmu/smu_cmn.h`` (1.9: a packed list of a 64-bit description and the values of each field).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from joulewatch_exporter.text import count_of

JOULES_PER_STEP: Final = 2.0**-16

_HEADER: Final = struct.Struct("<HBB")
_U16: Final = struct.Struct("<H")
_I32: Final = struct.Struct("<i")
_U64: Final = struct.Struct("<Q")

_MEAN_POWER: Final = 22
_POWER: Final = 10
_ENERGY: Final[Mapping[tuple[int, int], int]] = {
    (1, 1): 24, (1, 2): 24, (1, 3): 24, (1, 4): 24, (1, 5): 88, (1, 6): 16, (1, 7): 24, (1, 8): 24,
}  # fmt: skip
_EARLY_1_6: Final = 384
"""Size of the first layout of 1.6, with the counter in the place of 1.5; the later layout has 1664 bytes."""
_FIRST_MI300: Final = 4
"""Content revisions of format 1 from here on are of MI300 and newer only."""
_LIST: Final = (1, 9)
_RYZEN_AI: Final = (3, 0)
_NPU_POWER: Final = 116

# 1.9: a 64-bit description of each field, with the number of values, the number of the field and its type.
_FIELD_POWER: Final = 3
_FIELD_ENERGY: Final = 7
_TYPE_BYTES: Final = (1, 1, 2, 2, 4, 4, 8, 8)
_MOST_FIELDS: Final = 1024

_NO_ENERGY: Final = frozenset({0, 2**32 - 1, 2**64 - 1})
_NO_POWER: Final = 2**16 - 1


class MetricsError(ValueError):
    """The contents are not valid; the text states why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """The energy and power of one snapshot; None: the driver has no value."""

    revision: tuple[int, int]
    """Revisions of format and content."""
    energy_joules: float | None = None
    power_watts: float | None = None
    """Power of the card or, on MI300A, of the processor."""
    npu_watts: float | None = None

    @property
    def text(self) -> str:
        """The revisions, for display."""
        return ".".join(map(str, self.revision))

    @property
    def is_mi300(self) -> bool:
        """Whether only MI300 and newer have these revisions."""
        return self.revision[0] == 1 and self.revision[1] >= _FIRST_MI300

    @property
    def is_mean_power(self) -> bool:
        """Whether the power is a mean; else it is momentary."""
        return not self.is_mi300


def size_of(data: bytes) -> int:
    """Return the size that the header states.

    Raises:
        MetricsError: The header is missing.
    """
    if len(data) < _HEADER.size:
        raise MetricsError(f"{len(data)} bytes are less than the header")
    size: int = _HEADER.unpack_from(data)[0]
    return size


def parse(data: bytes) -> Metrics:
    """Interpret the contents of the file.

    Raises:
        MetricsError: The contents are shorter than the header states, or shorter than their revision.
    """
    size = size_of(data)
    _, *revisions = _HEADER.unpack_from(data)
    revision = (revisions[0], revisions[1])
    if len(data) < size:
        raise MetricsError(f"{len(data)} of {size} bytes")
    data = data[:size]
    try:
        if revision == _LIST:
            return _parse_list(data, revision)
        if revision == _RYZEN_AI:
            return Metrics(revision=revision, npu_watts=_watts(_U16.unpack_from(data, _NPU_POWER)[0], per_watt=1000))
        if (place := _ENERGY.get(revision)) is None:
            return Metrics(revision=revision)
        is_mi300 = revision[1] >= _FIRST_MI300
        if revision == (1, 6) and size == _EARLY_1_6:
            place = _ENERGY[1, 5]
        return Metrics(
            revision=revision,
            energy_joules=_joules(_U64.unpack_from(data, place)[0]),
            power_watts=_watts(_U16.unpack_from(data, _POWER if is_mi300 else _MEAN_POWER)[0]),
        )
    except struct.error as error:
        raise MetricsError(f"{size} bytes are too short for revision {revision[0]}.{revision[1]}") from error


def _parse_list(data: bytes, revision: tuple[int, int]) -> Metrics:
    """Interpret a list of fields, each with the number and type of its values."""
    count: int = _I32.unpack_from(data, _HEADER.size)[0]
    if not 0 <= count <= _MOST_FIELDS:
        raise MetricsError(f"{count} is not a number of fields")
    place = _HEADER.size + _I32.size
    numbers: dict[int, int] = {}
    for _ in range(count):
        description: int = _U64.unpack_from(data, place)[0]
        values, field, kind = description & 0x3FF, description >> 10 & 0x3FF, description >> 20 & 0xF
        if kind >= len(_TYPE_BYTES):
            raise MetricsError(f"{kind} is not a type of a field")
        place += _U64.size
        width = _TYPE_BYTES[kind]
        if field in (_FIELD_ENERGY, _FIELD_POWER) and values == 1:
            number = int.from_bytes(data[place : place + width], "little")
            numbers[field] = number if number < 256**width - 1 else -1
        place += values * width
    if place > len(data):
        raise MetricsError(
            f"its {count_of(count, 'field has', 'fields have')} {place} bytes, but there are {len(data)}"
        )
    return Metrics(
        revision=revision,
        energy_joules=_joules(max(numbers.get(_FIELD_ENERGY, 0), 0)),
        power_watts=_watts(numbers.get(_FIELD_POWER, -1)),
    )


def _joules(steps: int) -> float | None:
    return None if steps in _NO_ENERGY else steps * JOULES_PER_STEP


def _watts(number: int, *, per_watt: int = 1) -> float | None:
    return None if number in (-1, _NO_POWER) else number / per_watt
