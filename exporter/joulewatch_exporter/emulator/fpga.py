"""Alveo cards as XRT shows them: the nodes of ``xmc``, the hwmon chip, two PCI functions, and a cache.

The rails of the card are in whole millivolts and milliamperes. XRT computes the power as the sum of their products,
which differs from the signal by a few milliwatts.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from joulewatch_exporter.emulator.checks import check_range
from joulewatch_exporter.emulator.faults import FILE_FAULTS, Fault, check_faults
from joulewatch_exporter.emulator.files import MovingFile, Writer, link
from joulewatch_exporter.emulator.signals import Signal, Sum

FunctionKind = Literal["user", "mgmt"]

_FUNCTION_NUMBERS: Final[Mapping[FunctionKind, int]] = {"user": 1, "mgmt": 0}
_FIRST_CHIP: Final = 100
"""First number of the hwmon chips of cards, above those of the scenario."""

_MILLIVOLTS: Final = {"12v_pex": 12_100, "12v_aux": 12_150, "3v3_pex": 3_310}
_VCCINT_MILLIVOLTS: Final = 850
_VOLTAGE_NODES: Final = {"12v_pex": "xmc_12v_pex_vol", "12v_aux": "xmc_12v_aux_vol", "3v3_pex": "xmc_3v3_pex_vol"}
_CURRENT_NODES: Final = {"12v_pex": "xmc_12v_pex_curr", "12v_aux": "xmc_12v_aux_curr", "3v3_pex": "xmc_3v3_pex_curr"}

# Node of xmc, file of the chip, label.
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
    """An Alveo card."""

    card: str
    """PCI address without the function, such as ``0000:d8:00``: the label of its series."""
    signal: Signal
    """Power of the card."""
    vbnv: str = "xilinx_u280_xdma_201920_3"
    """Name of its platform, which the exporter shows as the model."""
    serial: str = "21760394R01A"
    """Serial number, as XRT prints it."""
    xrt: Literal["2.14", "2.15"] = "2.15"
    """2.14: ``xmc_power`` is the power. 2.15 and newer: ``xmc_power_ins`` is the power; ``xmc_power`` is the cached
    value at the user function and 0 at the management function."""
    functions: tuple[FunctionKind, ...] = ("user", "mgmt")
    """PCI functions of the machine; a virtual machine has only the user function."""
    has_xmc: bool = True
    """Whether there are XRT's nodes."""
    has_hwmon: bool = True
    """Whether there is a hwmon chip."""
    rails: Mapping[str, float] = field(default_factory=lambda: {"12v_pex": 0.55, "12v_aux": 0.35, "3v3_pex": 0.1})
    """Share of the power by supply rail; a card without the auxiliary cable has no 12v_aux."""
    vccint_share: float = 0.6
    """Share of the rail ``vccint``, which the supply rails feed."""
    update_s: float = 0.1
    """Interval at which the card's controller makes new values, which the management function shows immediately."""
    cache_s: int = 1
    """Age at which the driver replaces the values of the user function."""
    number: int = 1024
    """Number of the ``xmc`` directory; it changes when the card vanishes and returns."""
    faults: tuple[Fault, ...] = ()
    """Faults of files affect all changing files of the card at once; a glitch with the text 0 is a card without data.
    vanish: a hot reset, after which the card has new numbers."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is invalid; the text begins with its key.
        """
        if unknown := sorted(set(self.rails) - set(_MILLIVOLTS)):
            raise ValueError(f"rails: {unknown[0]!r} is not one of {', '.join(_MILLIVOLTS)}")
        if "12v_pex" not in self.rails or abs(sum(self.rails.values()) - 1.0) > 1e-9:
            raise ValueError("rails: needs 12v_pex, and the shares must add up to 1")
        if not self.functions:
            raise ValueError("functions: needs at least one function")
        check_range("update_s", self.update_s, 0.001)
        check_range("cache_s", self.cache_s, 1)
        check_faults(self.faults, (*FILE_FAULTS, "vanish"))

    @property
    def truth(self) -> Mapping[str, Signal]:
        """The signals behind the series of the exporter, by ``device/domain``."""
        shares = {**self.rails, "vccint": self.vccint_share}
        parts = {f"{self.card}/{rail}": Sum((self.signal,), (share,)) for rail, share in shares.items() if share > 0}
        return {f"{self.card}/total": self.signal, **parts}


class FpgaTree:
    """The cards of a machine."""

    def __init__(self, specs: Sequence[CardSpec], sysfs: Path, writer: Writer, scratch: Path) -> None:
        """Write the files that never change; `advance` writes the others.

        Args:
            specs: The cards.
            sysfs: Root of an existing tree.
            writer: The writer of the thread that calls `advance`.
            scratch: An existing directory outside the tree, on the same file system.

        Raises:
            OSError: A file cannot be written.
        """
        self._cards = [_Card(spec, index, sysfs, writer, scratch) for index, spec in enumerate(specs)]

    def advance(self, t_s: float) -> None:
        """Move every card to ``t_s`` seconds after the start."""
        for card in self._cards:
            card.advance(t_s)

    def close(self) -> None:
        """Release the readers of files that hang; safe to call twice."""
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
        # The functions of a card have consecutive numbers, which are new after a reset.
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
    """A PCI function of a card that is present."""

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
        self._writer.put_line(self._directory / "vendor", "0x10ee")
        self._writer.put_line(self._directory / "device", "0x500d" if kind == "user" else "0x500c")
        letter = kind[0]
        self._writer.put_line(self._directory / f"rom.{letter}.{number}" / "VBNV", spec.vbnv)
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
            # Last: a reader that sees the old timestamp takes new values for old ones, never the reverse.
            valid_until_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000 + 1000 * self._spec.cache_s
            self._writer.put_line(self._xmc / "sensor_update_timestamp", valid_until_ms)

    def close(self) -> None:
        for files in self._files.values():
            for file in files:
                file.close()

    def remove(self, gone: Path) -> None:
        """Remove the whole function from the tree at once; open files then have no link."""
        for path in self._links:
            path.unlink()
        self._directory.rename(gone)
        shutil.rmtree(gone)

    def _measure(self, t_s: float) -> dict[str, int]:
        spec = self._spec
        microwatts = spec.signal.power_watts(t_s) * 1e6
        values = {node: 0 for _, node in (*_VOLTAGE_NODES.items(), *_CURRENT_NODES.items())}
        shown_microwatts = 0
        last_rail = list(spec.rails)[-1]
        for rail, share in spec.rails.items():
            # The last rail also carries the rounding errors of the others.
            rail_microwatts = microwatts - shown_microwatts if rail == last_rail else microwatts * share
            millivolts = _MILLIVOLTS[rail]
            milliamperes = max(0, round(rail_microwatts / millivolts))
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
            self._writer.put_line(directory / name, value)
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
            self._writer.put_line(directory / name, value)
        link(directory / "device", self._directory)
        for name in ("power1_input", "power1_average"):
            self._move(name, directory / name)
        for node, stem, label in _CHIP_FILES:
            self._writer.put_line(directory / f"{stem}_label", label)
            self._move(node, directory / f"{stem}_input")
        self._link(sysfs / "class/hwmon" / directory.name, directory)

    def _move(self, name: str, path: Path) -> None:
        self._files.setdefault(name, []).append(MovingFile(self._writer, str(path), self._spec.faults))

    def _link(self, path: Path, target: Path) -> None:
        """Create a link from outside of the directory, which vanishes with it."""
        link(path, target)
        self._links.append(path)
