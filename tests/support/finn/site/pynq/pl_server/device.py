"""Two cards."""

from __future__ import annotations


class _Meta(type):
    _all: list[Device]

    @property
    def devices(cls) -> list[Device]:
        return cls._all

    @property
    def active_device(cls) -> Device:
        if not cls._all:
            raise RuntimeError("No Devices Found")
        return cls._all[0]


class Device(metaclass=_Meta):
    """One card."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.timestamp = ""


Device._all = [Device("fake_u280_0"), Device("fake_u280_1")]
