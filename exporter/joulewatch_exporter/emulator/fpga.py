"""Alveo cards as XRT shows them: the nodes of ``xmc``, the hwmon chip, two PCI functions, a cache that ages.

The card's rails are whole millivolts and milliamperes whose products sum up to the power, to a few milliwatts; XRT
knows the power as that sum and nothing else.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from joulewatch_exporter.emulator.faults import Fault
from joulewatch_exporter.emulator.files import MovingFile, Writer
from joulewatch_exporter.emulator.signals import Signal, Sum

FunctionKind = Literal["user", "mgmt"]

_FUNCTION_NUMBERS: Final[Mapping[FunctionKind, int]] = {"user": 1, "mgmt": 0}
_FIRST_CHIP: Final = 100
"""hwmon chips of cards are numbered from here, out of the way of the scenario's own."""

_MILLIVOLTS: Final = {"12v_pex": 12_100, "12v_aux": 12_150, "3v3_pex": 3_310}
_VCCINT_MILLIVOLTS: Final = 850
_VOLTAGE_NODES: Final = {"12v_pex": "xmc_12v_pex_vol", "12v_aux": "xmc_12v_aux_vol", "3v3_pex": "xmc_3v3_pex_vol"}
_CURRENT_NODES: Final = {"12v_pex": "xmc_12v_pex_curr", "12v_aux": "xmc_12v_aux_curr", "3v3_pex": "xmc_3v3_pex_curr"}

# Node of xmc, file of the chip, its label.
_CHIP_FILES: Final = (
    ("xmc_12v_pex_vol", "in0", "12V PEX"),
    ("xmc_12v_aux_vol", "in1", "12V AUX"),
    ("xmc_3v3_pex_vol", "in2", "3V3 PEX"),
    ("xmc_3v3_aux_vol", "in3", "3V3 AUX"),
    ("xmc_vccint_vol", "in9", "VCC INT"),
    ("xmc_vccint_bram_vol", "in18", "VCC INT BRAM"),
    ("xmc_12v_pex_curr", "curr1", "12V PEX Current"),
    ("xmc_12v_aux_curr", "curr2", "12V AUX Current"),
    ("xmc_vccint_curr", "curr3", "VCC INT Current"),
    ("xmc_3v3_pex_curr", "curr4", "3V3 PEX Current"),
    ("xmc_0v85_curr", "curr5", "VCC 0V85 Current"),
    ("xmc_3v3_aux_cur", "curr6", "3V3 AUX Current"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CardSpec:
    """One Alveo card."""

    card: str
    """PCI address without the function, such as ``0000:d8:00``: the label of its series."""
    signal: Signal
    """The card's power."""
    vbnv: str = "xilinx_u280_xdma_201920_3"
    """Name of its platform, which is the model that the exporter shows."""
    serial: str = "21760394R01A"
    """Serial number, as XRT prints it."""
    xrt: Literal["2.14", "2.15"] = "2.15"
    """2.14: ``xmc_power`` is the power. 2.15, and all later ones: ``xmc_power_ins`` is; ``xmc_power`` is what the user
    function's cache holds, and 0 at the management function."""
    functions: tuple[FunctionKind, ...] = ("user", "mgmt")
    """Which PCI functions this machine has: a virtual machine has the user function only."""
    has_xmc: bool = True
    """Whether XRT's own nodes are there."""
    has_hwmon: bool = True
    """Whether there is a hwmon chip."""
    rails: Mapping[str, float] = field(default_factory=lambda: {"12v_pex": 0.55, "12v_aux": 0.35, "3v3_pex": 0.1})
    """Share of the power that each supply rail carries; 12v_aux may be left out, as for a card without the cable."""
    vccint_share: float = 0.6
    """Share that the rail ``vccint`` takes, behind the supply rails."""
    update_s: float = 0.1
    """How often the card's controller makes new values, which the management function shows at once."""
    cache_s: int = 1
    """How old the user function's values get before the driver asks for new ones."""
    number: int = 1024
    """Of the ``xmc`` directory; after a vanishing it is another."""
    faults: tuple[Fault, ...] = ()
    """Faults of files befall all moving ones of the card at once; a glitch with the text 0 is a card without data.
    vanish: a hot reset, after which the card has other numbers."""

    def __post_init__(self) -> None:
        """Check the rails.

        Raises:
            ValueError: An unknown rail, or shares that are not the whole; the text begins with the field's name.
        """
        if unknown := sorted(set(self.rails) - set(_MILLIVOLTS)):
            raise ValueError(f"rails: {unknown[0]} is none of {', '.join(_MILLIVOLTS)}")
        if "12v_pex" not in self.rails or abs(sum(self.rails.values()) - 1.0) > 1e-9:
            raise ValueError("rails: 12v_pex must be there, and all shares together must be 1")
        if not self.functions:
            raise ValueError("functions: a card has one at least")

    @property
    def truth(self) -> Mapping[str, Signal]:
        """The signals behind the exporter's series, by ``device/domain``."""
        shares = {**self.rails, "vccint": self.vccint_share}
        parts = {f"{self.card}/{rail}": Sum((self.signal,), (share,)) for rail, share in shares.items() if share > 0}
        return {f"{self.card}/total": self.signal, **parts}


class FpgaTree:
    """The cards of one machine."""

    def __init__(self, specs: Sequence[CardSpec], sysfs: Path, writer: Writer, scratch: Path) -> None:
        """Write everything that does not move; `advance` then writes the rest.

        Args:
            specs: The cards.
            sysfs: Root of an existing tree.
            writer: Of the thread that calls `advance`.
            scratch: An existing directory on the tree's file system, outside the tree.

        Raises:
            OSError: The file system refuses.
        """
        self._cards = [_Card(spec, index, sysfs, writer, scratch) for index, spec in enumerate(specs)]

    def advance(self, t_s: float) -> None:
        """Bring every card to ``t_s`` seconds after the start."""
        for card in self._cards:
            card.advance(t_s)

    def close(self) -> None:
        """Let go of what waits in files that hang; safe to call twice."""
        for card in self._cards:
            card.close()


class _Card:
    def __init__(self, spec: CardSpec, index: int, sysfs: Path, writer: Writer, scratch: Path) -> None:
        self._spec = spec
        self._index = index
        self._sysfs = sysfs
        self._writer = writer
        self._gone = scratch / f"gone-{spec.card}"
        self._vanishings = tuple(fault for fault in spec.faults if fault.kind == "vanish")
        self._resets = 0
        self._functions: list[_Function] = []
        self._plug(0.0)

    def advance(self, t_s: float) -> None:
        is_gone = any(fault.is_on(t_s) for fault in self._vanishings)
        if is_gone and self._functions:
            self._unplug()
        elif not is_gone and not self._functions:
            self._resets += 1
            self._plug(t_s)
        for function in self._functions:
            function.advance(t_s)

    def close(self) -> None:
        for function in self._functions:
            function.close()

    def _plug(self, t_s: float) -> None:
        spec = self._spec
        # Each card's functions are numbered on, and all numbers are new after a reset.
        for offset, kind in enumerate(spec.functions):
            number = spec.number + 2 * self._resets + offset
            chip = _FIRST_CHIP + 20 * self._index + 2 * self._resets + offset
            self._functions.append(_Function(spec, kind, number, chip, self._sysfs, self._writer))
        for function in self._functions:
            function.advance(t_s)

    def _unplug(self) -> None:
        for function in self._functions:
            function.close()
            function.remove(self._gone)
        self._functions.clear()


class _Function:
    """One PCI function of a card that is there."""

    def __init__(self, spec: CardSpec, kind: FunctionKind, number: int, chip: int, sysfs: Path, writer: Writer) -> None:
        self._spec = spec
        self._kind = kind
        self._writer = writer
        self._period_s = float(spec.cache_s) if kind == "user" else spec.update_s
        self._next = -1
        self._values: dict[str, int] = {}
        self._highest_microwatts = 0
        address = f"{spec.card}.{_FUNCTION_NUMBERS[kind]}"
        domain = spec.card.partition(":")[0]
        self._directory = sysfs / f"devices/pci{domain}:00/{domain}:00:01.0" / address
        self._links: list[Path] = []
        self._xmc: Path | None = None
        self._files: dict[str, list[MovingFile]] = {}
        self._directory.mkdir(parents=True)
        self._put(self._directory / "vendor", "0x10ee")
        self._put(self._directory / "device", "0x500d" if kind == "user" else "0x500c")
        letter = kind[0]
        self._put(self._directory / f"rom.{letter}.{number}" / "VBNV", spec.vbnv)
        values = self._measure(0.0)
        if spec.has_xmc:
            self._xmc = self._directory / f"xmc.{letter}.{number}"
            self._write_xmc(self._xmc, values)
        if spec.has_hwmon:
            self._write_chip(self._directory / "hwmon" / f"hwmon{chip}", sysfs)
        self._link(sysfs / "bus/pci/devices" / address, self._directory)

    def advance(self, t_s: float) -> None:
        is_due = t_s >= self._next * self._period_s
        if not is_due and not self._spec.faults:
            return
        if is_due:
            self._values = self._measure(t_s)
            self._next = int(t_s / self._period_s) + 1
        for name, value in self._values.items():
            for file in self._files.get(name, ()):
                file.show(value, t_s)
        if is_due and self._kind == "user" and self._xmc is not None:
            # Last, so that values without a new stamp are those of before at the worst.
            good_until_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000 + 1000 * self._spec.cache_s
            self._put(self._xmc / "sensor_update_timestamp", good_until_ms)

    def close(self) -> None:
        for files in self._files.values():
            for file in files:
                file.close()

    def remove(self, gone: Path) -> None:
        """Take the whole function out of the tree at once; files that are held have no link then."""
        for link in self._links:
            link.unlink()
        self._directory.rename(gone)
        shutil.rmtree(gone)

    def _measure(self, t_s: float) -> dict[str, int]:
        spec = self._spec
        microwatts = spec.signal.power_watts(t_s) * 1e6
        values = {node: 0 for _, node in (*_VOLTAGE_NODES.items(), *_CURRENT_NODES.items())}
        shown_microwatts = 0
        names = list(spec.rails)
        for rail in names:
            # The last one carries what rounding has left of the others.
            wanted = microwatts - shown_microwatts if rail == names[-1] else microwatts * spec.rails[rail]
            millivolts = _MILLIVOLTS[rail]
            milliamperes = max(0, round(wanted / millivolts))
            values[_VOLTAGE_NODES[rail]], values[_CURRENT_NODES[rail]] = millivolts, milliamperes
            shown_microwatts += millivolts * milliamperes
        values["xmc_vccint_vol"] = _VCCINT_MILLIVOLTS
        values["xmc_vccint_curr"] = round(microwatts * spec.vccint_share / _VCCINT_MILLIVOLTS)
        values.update({"xmc_3v3_aux_vol": 0, "xmc_3v3_aux_cur": 0, "xmc_vccint_bram_vol": 0, "xmc_0v85_curr": 0})
        is_cached = spec.xrt == "2.15"
        values["xmc_power"] = 0 if is_cached and self._kind == "mgmt" else shown_microwatts
        if is_cached:
            values["xmc_power_ins"] = shown_microwatts
        self._highest_microwatts = max(self._highest_microwatts, shown_microwatts)
        values["power1_input"], values["power1_average"] = shown_microwatts, self._highest_microwatts
        return values

    def _write_xmc(self, directory: Path, values: Mapping[str, int]) -> None:
        static = {
            "serial_num": self._spec.serial,
            "bd_name": "ALVEO U280 PQ",
            "bmc_ver": "4.3.28",
            "max_power": 2,
            "xmc_heartbeat_stall": 0,
            "xmc_hbm_1v2_vol": 1200,
            "cache_expire_secs": self._spec.cache_s if self._kind == "user" else 0,
            "sensor_update_timestamp": 0,
        }
        for name, value in static.items():
            self._put(directory / name, value)
        for name in values:
            if name.startswith("xmc_"):
                self._move(name, directory / name)

    def _write_chip(self, directory: Path, sysfs: Path) -> None:
        static = {
            "name": f"{self._spec.vbnv}_{self._kind}",
            "power1_label": "POWER",
            "power2_label": "CS_TARGET_POWER",
            "power2_input": 200_000_000,
            "power2_max": 215_000_000,
        }
        for name, value in static.items():
            self._put(directory / name, value)
        self._link(directory / "device", self._directory)
        for name in ("power1_input", "power1_average"):
            self._move(name, directory / name)
        for node, stem, label in _CHIP_FILES:
            self._put(directory / f"{stem}_label", label)
            self._move(node, directory / f"{stem}_input")
        self._link(sysfs / "class/hwmon" / directory.name, directory)

    def _move(self, name: str, path: Path) -> None:
        self._files.setdefault(name, []).append(MovingFile(self._writer, str(path), self._spec.faults))

    def _put(self, path: Path, value: object) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer.put(str(path), f"{value}\n".encode())

    def _link(self, link: Path, target: Path) -> None:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(target, link.parent))
        if not link.is_relative_to(self._directory):
            self._links.append(link)
