"""Boards with one power monitor per supply rail (Zynq, Zynq UltraScale+, Kria): INA226 and INA260 in hwmon.

A monitor is identified by its designator on the board (``u76``), which comes from the device tree: the kernel's IIO
driver has it in the chip's name (``ina226_u76``), the hwmon driver in the chip's label. No file states which rail a
monitor measures: the maps below cover boards where it is certain, ``collectors.fpga.rails`` covers the others. A board
without a map is read by the hwmon family, each rail as a part that is never summed.

Sources of the maps: designators and names from the boards' device trees in Linux, ``arch/arm64/boot/dts/xilinx/``
(``zynqmp-zcu102-revA.dts``, ``zynqmp-zcu104-revC.dts``, ``zynqmp-sck-kv-g-revA.dtso``); rails from AMD's board guides
(UG1182, ZCU102: the monitors of its PS and PL rails; UG1089, KV260: the INA260 at the module's 5 V), which agree with
programs written for the boards, and from PYNQ's ``zcu104.conf`` (the 12 V input).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic_ns
from typing import Final

from joulewatch_exporter.collectors.base.probe import Prober
from joulewatch_exporter.collectors.base.sysfs import list_names, read_int, read_int_or_none, read_text_or
from joulewatch_exporter.collectors.fpga.common import (
    MAX_POWER_WATTS,
    TOTAL,
    Number,
    checked_watts,
    denied,
    found,
    skipped,
)
from joulewatch_exporter.errors import SensorDeniedError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Finding, Host, Quantity, Reading, SensorInfo

DEVICE: Final = "board"
_MAX_RAIL_WATTS: Final = 500.0


@dataclass(frozen=True, slots=True)
class RailOption:
    """An entry of ``collectors.fpga.rails``: what a power monitor measures."""

    name: str
    """Domain of the series."""
    in_total: bool = True
    """Whether the rail is a term of the board's total; False: another rail supplies it."""

    def __post_init__(self) -> None:
        """Check the name.

        Raises:
            ValueError: The name is empty or reserved.
        """
        if not self.name or self.name == TOTAL:
            raise ValueError(f"name: {self.name!r} cannot be the name of a rail")


@dataclass(frozen=True, slots=True)
class _Board:
    compatible: str
    """Name in the device tree, without the revision."""
    rails: Mapping[str, str]
    """Maps a chip name to its rail; the board's power is the sum of all rails."""


_ZCU102_RAILS: Final = {
    "ina226_u76": "vccpsintfp",
    "ina226_u77": "vccpsintlp",
    "ina226_u78": "vccpsaux",
    "ina226_u87": "vccpspll",
    "ina226_u85": "mgtravcc",
    "ina226_u86": "mgtravtt",
    "ina226_u93": "vcco_psddr_504",
    "ina226_u88": "vccops",
    "ina226_u15": "vccops3",
    "ina226_u92": "vccpsddrpll",
    "ina226_u79": "vccint",
    "ina226_u81": "vccbram",
    "ina226_u80": "vccaux",
    "ina226_u84": "vcc1v2",
    "ina226_u16": "vcc3v3",
    "ina226_u65": "vadj_fmc",
    "ina226_u74": "mgtavcc",
    "ina226_u75": "mgtavtt",
}

_BOARDS: Final = (
    _Board("xlnx,zynqmp-zcu102", _ZCU102_RAILS),
    _Board("xlnx,zynqmp-zcu104", {"ina226": "12v"}),
    _Board("xlnx,zynqmp-sk-kv260", {"ina260_u14": "som_5v"}),
)


@dataclass(frozen=True, slots=True)
class _Monitor:
    """A power monitor whose rail is known."""

    path: str
    rail: RailOption


class BoardSensor:
    """All mapped rails of the board, read in one pass."""

    def __init__(self, monitors: Sequence[_Monitor], model: str) -> None:
        """Prepare without reading.

        Args:
            monitors: At least one.
            model: Model of the board, for display.
        """
        self.device = DEVICE
        self._quantity = Quantity(scope="device", component="fpga", device=DEVICE, domain=TOTAL)
        addends = [monitor.rail.name for monitor in monitors if monitor.rail.in_total]
        self._source = f"sum of {' + '.join(addends)}"
        total = SensorInfo(
            quantity=self._quantity,
            method="integrated",
            source=self._source,
            model=model,
            max_power_watts=MAX_POWER_WATTS,
        )
        rails = [
            SensorInfo(
                quantity=Quantity(scope="part", component="fpga", device=DEVICE, domain=monitor.rail.name),
                method="integrated",
                source=monitor.path,
                model=model,
                resolution="1 uW",
                max_power_watts=_MAX_RAIL_WATTS,
                relation="rail" if monitor.rail.in_total else "inside",
            )
            for monitor in monitors
        ]
        self._has_total = bool(addends)
        self.infos = (total, *rails) if self._has_total else tuple(rails)
        self._rails = [
            (Number(monitor.path), monitor.rail.in_total, info.quantity)
            for monitor, info in zip(monitors, rails, strict=True)
        ]

    def read(self) -> Sequence[Reading]:
        """Read all rails.

        Returns:
            The total and all readable rails.

        Raises:
            SensorGlitchError: A rail of the total has no value; an incomplete sum is not published.
            SensorAbsentError: A monitor disappeared.
            SensorDeniedError: Permission was lost.
        """
        readings = []
        sum_microwatts = 0
        for number, in_total, quantity in self._rails:
            try:
                microwatts = number.read()
            except SensorGlitchError:
                if in_total:
                    raise
                continue
            if microwatts > _MAX_RAIL_WATTS * 1e6:
                raise SensorGlitchError(f"{number.path}: {microwatts / 1e6:g} W is not a plausible power of a rail")
            sum_microwatts += microwatts if in_total else 0
            readings.append(
                Reading(quantity=quantity, read_at_ns=monotonic_ns(), energy_joules=None, power_watts=microwatts / 1e6)
            )
        if not self._has_total:
            return readings
        middle_ns = (readings[0].read_at_ns + readings[-1].read_at_ns) // 2
        return [
            Reading(
                quantity=self._quantity,
                read_at_ns=middle_ns,
                energy_joules=None,
                power_watts=checked_watts(self._source, sum_microwatts),
            ),
            *readings,
        ]

    def close(self) -> None:
        """Close all files; safe to call twice."""
        for number, _, _ in self._rails:
            number.close()


def board_model(host: Host) -> str:
    """Return the board's name from the device tree; empty without a device tree."""
    return _device_tree(host, "model").strip("\0")


def open_board(
    host: Host, prober: Prober, rails: Mapping[str, RailOption], findings: list[Finding]
) -> BoardSensor | None:
    """Open the monitors of this board.

    Args:
        host: Where the device tree and the chips are.
        prober: Reads the files of the board and of each chip.
        rails: The user's map from chip, label or I2C device to rail; replaces the built-in map.
        findings: Receives the findings.

    Returns:
        The board, or None: no map, no monitor, or a rail of the total that cannot be read.
    """
    board = prober.call(f"{host.procfs}/device-tree", "", partial(_known_board, host))
    known = {_normal(name): rail for name, rail in rails.items()}
    if not known and board is not None:
        known = {name: RailOption(rail) for name, rail in board.rails.items()}
    if not known:
        return None
    model = prober.call(f"{host.procfs}/device-tree", "", partial(board_model, host)) or ""
    monitors: dict[str, _Monitor] = {}
    for directory, names in _chips(host, prober):
        rail = next((known[name] for name in names if name in known), None)
        if rail is None:
            continue
        monitor, more = prober.call(directory, DEVICE, partial(_monitor, directory, rail)) or (None, [])
        findings += more
        if monitor is None:
            if rail.in_total:
                findings.append(
                    skipped(directory, f"without {rail.name} the sum is incomplete; the rails are left to hwmon")
                )
                return None
        elif rail.name in monitors:
            findings.append(
                skipped(
                    directory,
                    f"a second monitor of {rail.name}, in addition to {monitors[rail.name].path}: distinguish them in "
                    "collectors.fpga.rails by the chip's label or I2C device; the rails are left to hwmon",
                )
            )
            return None
        else:
            monitors[rail.name] = monitor
    missing = sorted({rail.name for rail in known.values() if rail.in_total} - set(monitors))
    if not monitors:
        return None
    if missing:
        findings.append(
            skipped(
                "device tree", f"{model}: no monitor of {', '.join(missing)}, so the sum is incomplete; left to hwmon"
            )
        )
        return None
    sensor = BoardSensor(list(monitors.values()), model)
    findings += [
        found(monitor.path, f"{DEVICE} {name}: a rail of {model or 'the board'}") for name, monitor in monitors.items()
    ]
    return sensor


def _monitor(directory: str, rail: RailOption) -> tuple[_Monitor | None, list[Finding]]:
    """Return the monitor of a chip, or None and the reason."""
    path = f"{directory}/power1_input"
    try:
        microwatts = read_int(path)
    except SensorDeniedError as error:
        return None, [denied(error, DEVICE)]
    except SensorError:
        return (_Monitor(path, rail) if Path(path).exists() else None), []
    if _is_in_milliwatts(directory, microwatts):
        text = "value in milliwatts: this iio-hwmon driver does not convert to microwatts yet"
        return None, [skipped(path, text)]
    return _Monitor(path, rail), []


def _is_in_milliwatts(directory: str, power: int) -> bool:
    """Return whether voltage times current shows that the power is in milliwatts instead of microwatts."""
    try:
        names = list_names(directory)
    except SensorError:
        return False
    # The bus voltage is in1 or in2; the shunt voltage, a few millivolts, is in0 or in1.
    volts = [read_int_or_none(f"{directory}/{name}") or 0 for name in names if re.fullmatch(r"in\d+_input", name)]
    microwatts = max(volts, default=0) * (read_int_or_none(f"{directory}/curr1_input") or 0)
    return power > 0 and 300 < microwatts / power < 3000


def _chips(host: Host, prober: Prober) -> list[tuple[str, list[str]]]:
    """Return the real path of each hwmon chip and all names by which a map can refer to it."""
    root = f"{host.sysfs}/class/hwmon"
    try:
        entries = list_names(root)
    except SensorError:
        return []
    directories = sorted(str(Path(f"{root}/{entry}").resolve()) for entry in entries)
    return [(directory, prober.call(directory, "", partial(_chip_names, directory)) or []) for directory in directories]


def _chip_names(directory: str) -> list[str]:
    device = str(Path(f"{directory}/device").resolve())
    labels = [
        read_text_or(f"{directory}/label", ""),
        read_text_or(f"{device}/of_node/label", ""),
        read_text_or(f"{directory}/name", ""),
        device.rpartition("/")[2],
    ]
    return [_normal(label.strip("\0")) for label in labels if label]


def _normal(name: str) -> str:
    """Return a name as hwmon spells it: ``ina226-u76`` is ``ina226_u76``; an I2C device keeps its dash."""
    name = name.lower()
    return name if re.fullmatch(r"\d+-[0-9a-f]{4}", name) else name.replace("-", "_")


def _known_board(host: Host) -> _Board | None:
    names = _device_tree(host, "compatible").split("\0")
    return next(
        (board for board in _BOARDS if any(f"{name}-".startswith(f"{board.compatible}-") for name in names)), None
    )


def _device_tree(host: Host, name: str) -> str:
    path = f"{host.procfs}/device-tree/{name}"
    return read_text_or(path, "") or read_text_or(f"{host.sysfs}/firmware/devicetree/base/{name}", "")
