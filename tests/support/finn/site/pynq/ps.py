"""The clocks of a Zynq: 1500 MHz divided by an integer."""

from __future__ import annotations


class _Meta(type):
    _mhz = 100.0

    @property
    def fclk0_mhz(cls) -> float:
        return cls._mhz

    @fclk0_mhz.setter
    def fclk0_mhz(cls, value: float) -> None:
        cls._mhz = 1500.0 / max(1, round(1500.0 / value))


class Clocks(metaclass=_Meta):
    """``Clocks.fclk0_mhz`` returns the frequency that the divider could reach."""
