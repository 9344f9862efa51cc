"""How far the power reading of an NVIDIA GPU is from the truth, by model.

NVIDIA stated +/- 5 % for Fermi and Kepler (nvml.h, ``nvmlDeviceGetPowerUsage``) and nothing for later chips. Yang,
Adamek and Armour compared GPUs with an external meter. At steady load the error of a board is nearly constant: it is a
bias, mostly negative, and not a scatter. The exporter does not correct it, because other boards of a model have another
bias: their two RTX 3090 were 4.8 % and 2.6 % low. The half-width is the largest absolute error that they measured.

The errors are relative to the meter, not to the reading, which differs little except for the Quadro K620: the meter is
70 % above its reading. They are for steady load only. A load that changes within a refresh period has further
errors (``window_s``). The energy counter uses the same measurement and gets the same half-width.

Source: Yang, Adamek, Armour, SC 2024, arXiv 2312.02741; github JimZeyuYang/GPU_Power_Benchmark at 4b5c944c (MIT
licence), ``Overall_Results.xlsx``, column "Steady State Error".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_STUDY: Final = "Yang, Adamek, Armour, SC 2024, arXiv 2312.02741"

_NOT_STUDIED: Final = 0.1
"""Half-width of all other models: 14 of the 16 models below are within it."""

_ERRORS_PERCENT: Final[Mapping[str, tuple[float, float]]] = {
    "A100-PCIE-40GB": (-5.5, -5.5),
    "GeForce GTX 1080": (+0.5, +1.0),
    "GeForce GTX 1080 Ti": (-0.4, -0.3),
    "GeForce GTX TITAN X": (+1.9, +2.0),
    "GeForce RTX 2060 SUPER": (+10.4, +11.4),
    "GeForce RTX 2080 Ti": (-6.4, -6.1),
    "GeForce RTX 3070 Ti": (-2.7, -2.1),
    "GeForce RTX 3090": (-4.8, -0.1),
    "GeForce RTX 4090": (-4.3, -4.0),
    "Quadro K620": (-41.1, -40.9),
    "RTX A5000": (-6.1, -4.3),
    "TITAN X (Pascal)": (+0.7, +0.7),
    "Tesla K40m": (+3.4, +3.4),
    "Tesla K80": (-8.9, -8.9),
    "Tesla M40": (-1.7, -1.5),
    "Tesla P100-PCIE-16GB": (+0.4, +0.7),
}
"""Lowest and highest error at steady load, by the name that NVML reports, without "NVIDIA "."""


def accuracy_of(name: str) -> tuple[float, str]:
    """Return the half-width of a GPU's power and energy, and its source.

    Args:
        name: The name that NVML reports. It must be equal to the name of a studied model: an A100 of 80 GB, an RTX 3070
            or an RTX 4090 in a laptop is another model.
    """
    error = _ERRORS_PERCENT.get(name.strip().removeprefix("NVIDIA "))
    if error is None:
        return _NOT_STUDIED, f"not studied: assumed, from the errors of other GPUs ({_STUDY})"
    low, high = error
    text = f"{low:+g}" if low == high else f"{low:+g} to {high:+g}"
    return round(max(abs(low), abs(high)) / 100, 4), f"error {text} % at steady load ({_STUDY})"
