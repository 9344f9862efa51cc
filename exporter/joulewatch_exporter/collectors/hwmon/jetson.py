"""Rails of NVIDIA's Jetson modules, by the names that their device trees give to the INA3221's channels.

The input of the module is a node sensor, all other rails are parts of it. It does not include the carrier board: on the
developer kits of TX1 and TX2, ``VDD_MUX`` is next to it. AGX Xavier and AGX Orin have no monitor at their input. On AGX
Thor, the INA238 of the carrier board is at the input.

Sources: NVIDIA, Jetson Linux Developer Guide (32.6.1, 36.3), chapters on power management: tables of the INA3221 power
monitors; Linux ``arch/arm64/boot/dts/nvidia/tegra234-p3701.dtsi`` (AGX Orin); NVIDIA, Jetson AGX Xavier Series Product
Design Guide, section 5; github rbonghi/jetson_stats, pull request 900 (AGX Thor).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from joulewatch_exporter.collectors.base.sysfs import read_text_or
from joulewatch_exporter.model import Component, Host

CHIPS: Final = frozenset({"ina3221", "ina3221x"})
"""Names in the kernel's hwmon driver and in NVIDIA's IIO driver."""

INPUTS: Final = frozenset(
    {
        "VDD_IN",  # TX1, TX2, Xavier NX, Orin NX, Orin Nano
        "POM_5V_IN",  # Nano
        "5V_IN",  # Xavier NX in the guide
    }
)

COMPONENTS: Final[Mapping[str, Component]] = {
    "VDD_CPU": "cpu",  # TX1
    "VDD_GPU": "gpu",
    "VDD_SYS_CPU": "cpu",  # TX2
    "VDD_SYS_GPU": "gpu",
    "VDD_SYS_DDR": "memory",
    "POM_5V_CPU": "cpu",  # Nano
    "POM_5V_GPU": "gpu",
    "CPU": "cpu",  # AGX Xavier
    "GPU": "gpu",
    "VDDRQ": "memory",
}
"""Rails that supply one component only; all others are ``other``."""

_THOR: Final = "nvidia,tegra264"
_THOR_CHIP: Final = "ina238"

_WITHOUT_INPUT: Final[Mapping[str, frozenset[str]]] = {
    "Jetson AGX Xavier": frozenset({"GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"}),
    "Jetson AGX Orin": frozenset({"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"}),
}


def board_without_input(rails: Collection[str]) -> str | None:
    """Return the name of the board with these rails, if none of them is its input."""
    return next((name for name, wanted in _WITHOUT_INPUT.items() if wanted.issubset(rails)), None)


def is_input(chip: str, label: str, host: Host) -> bool:
    """Return whether a channel measures the input of the board."""
    if chip in CHIPS:
        return label in INPUTS
    return chip == _THOR_CHIP and _THOR in _compatible(host)


def _compatible(host: Host) -> list[str]:
    """Return the names of the board and its processor in the device tree."""
    text = read_text_or(f"{host.procfs}/device-tree/compatible", "") or read_text_or(
        f"{host.sysfs}/firmware/devicetree/base/compatible", ""
    )
    return text.split("\0")
