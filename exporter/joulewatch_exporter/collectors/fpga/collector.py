"""FPGA cards and boards: Alveo by XRT, Versal cards, the V80 on request, boards with a monitor at each rail.

A card is known by its PCI address without the function: its user and management function are the same card twice. Of
all ways to read it the first that gives a value is taken: the management function before the user function, and of
each function XRT's own nodes before its hwmon chip. A card gives watts only; the joules are integrated.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self

from joulewatch_exporter.collectors.base.on_demand import OnDemandCollector
from joulewatch_exporter.collectors.base.sysfs import list_names, read_text_or
from joulewatch_exporter.collectors.fpga import cards, ina226, xrt
from joulewatch_exporter.collectors.fpga.common import (
    NAME,
    TOTAL,
    CardSensor,
    FunctionKind,
    denied,
    found,
    skipped,
)
from joulewatch_exporter.collectors.fpga.ina226 import RailOption
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError, SensorTimeoutError
from joulewatch_exporter.model import Finding, Host, Reading, SensorInfo, Timing

logger = logging.getLogger(__name__)

_POLL_S: Final = 1.0
"""As often as the user function's driver asks the card at all, because between two values energy is a guess. Each
time that driver writes a line to the kernel log: whoever minds has the management function read, which writes none, or
sets ``poll_seconds: 5``; beyond the 10 s of ``SensorInfo.max_gap_s`` nothing is integrated."""

_PROBE_TIMEOUT_S: Final = 1.5
"""A look at a card that takes longer is given up: a mailbox without an answer must not keep the others waiting."""

_XILINX: Final = "0x10ee"
_ADDRESS: Final = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")

_AUTO_ORDER: Final[tuple[FunctionKind, ...]] = ("mgmt", "user")
"""The management function reads the card's registers; the user function shows a cache of a second, and each of its
refreshes writes a line to the kernel's log."""

_AGREEMENT: Final = 0.05
"""Rails and card may differ by this: they are read one after the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FpgaOptions:
    """Settings under ``collectors.fpga``."""

    parts: bool = True
    """False: a card's total only, without its rails."""
    function: Literal["auto", "user", "mgmt"] = "auto"
    """Which PCI function of a card is read: auto prefers the management function, which has no cache and writes nothing
    to the kernel log; a virtual machine has the user function only."""
    v80: bool = False
    """Read Alveo cards of the driver AMI too. Reading the power of a card that is at its critical limit makes that
    driver end every program that uses the card."""
    rails: Mapping[str, RailOption] = field(default_factory=dict)
    """Boards with a power monitor at each rail: chip name, label or I2C device to {name, in_total}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Function:
    """One PCI function that may be a card's."""

    address: str
    path: str
    is_xilinx: bool
    """False: nothing says so, which can only be in a tree that somebody copied."""
    xmc: tuple[str, ...]
    """XRT's directories."""
    chips: tuple[str, ...]
    """Real paths of hwmon directories."""

    @property
    def card(self) -> str:
        return self.address.rpartition(".")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Door:
    """One way to read a card."""

    kind: FunctionKind | None
    """None: a driver with one function only."""
    path: str
    text: str
    open: Callable[[list[Finding]], CardSensor]


@dataclass(frozen=True, slots=True)
class _Chosen:
    sensor: CardSensor | None
    findings: Sequence[Finding]


class _SilentCard:
    """A card that does not answer while it is opened: shown as down, and opened again when it does."""

    infos: tuple[SensorInfo, ...] = ()

    def __init__(self, device: str) -> None:
        self.device = device
        self._is_told = False

    def __str__(self) -> str:
        return f"{self.device}: does not answer; it is looked at again when an answer has come"

    def read(self) -> Sequence[Reading]:
        """Say that there is no answer.

        Raises:
            SensorTimeoutError: Always.
        """
        error = SensorTimeoutError(str(self))
        error.is_repeated, self._is_told = self._is_told, True
        raise error

    def close(self) -> None:
        """Nothing is held."""


class FpgaCollector(OnDemandCollector):
    """All FPGA cards of the host, and the host itself where it is a board with monitored rails."""

    name: ClassVar[str] = NAME
    Options: ClassVar[type] = FpgaOptions

    def __init__(
        self, host: Host, sensors: Sequence[CardSensor], findings: Sequence[Finding], hanging: Sequence[str]
    ) -> None:
        super().__init__(sensors, findings)
        self._host = host
        self._hanging = tuple(hanging)
        self._signature = _signature(host)

    @property
    def timing(self) -> Timing:
        """Power only, so read each second. A scrape costs no more: in between the driver answers from its cache."""
        return Timing(poll_s=_POLL_S, read_on_scrape=True)

    @property
    def outdated(self) -> bool:
        """Whether a card came or was reset, or one that did not answer while opening does now."""
        return any(not _is_running(name) for name in self._hanging) or _signature(self._host) != self._signature

    @classmethod
    def open(cls, host: Host, options: Any) -> Self:
        """Find the cards and read each of them once.

        Args:
            host: Where sysfs and the device tree are.
            options: `FpgaOptions`.

        Raises:
            SensorAbsentError: No card that gives its power, and no board with a map of its rails.
            SensorDeniedError: There is one, and it may not be read.
        """
        assert isinstance(options, FpgaOptions)
        findings: list[Finding] = []
        sensors: list[CardSensor] = []
        hanging: list[str] = []
        by_card: dict[str, list[_Function]] = {}
        for function in _functions(host):
            by_card.setdefault(function.card, []).append(function)
        for card, functions in by_card.items():
            doors = _doors(card, functions, options, findings)
            if not doors:
                continue
            chosen = _probe(host, card, doors, hanging)
            findings += chosen.findings
            if chosen.sensor is not None:
                sensors.append(chosen.sensor)
        board = ina226.open_board(host, options.rails, findings)
        if board is not None:
            sensors.append(board)
        if not sensors:
            _raise_nothing(host, findings)
        return cls(host, sensors, findings, hanging)


def _raise_nothing(host: Host, findings: Sequence[Finding]) -> None:
    for finding in findings:
        if finding.status == "denied":
            raise SensorDeniedError(finding.text)
    reasons = "".join(f"; {finding.subject}: {finding.text}" for finding in findings)
    raise SensorAbsentError(
        f"{host.sysfs}/bus/pci/devices: no FPGA card whose driver (XRT: xocl or xclmgmt; AMI: ami) gives its power, "
        f"and no board whose rails are known{reasons}"
    )


# -- finding cards ---------------------------------------------------------------------------------


def _functions(host: Host) -> list[_Function]:
    """PCI functions that may be cards', ordered by address."""
    root = f"{host.sysfs}/bus/pci/devices"
    try:
        addresses = [name for name in list_names(root) if _ADDRESS.fullmatch(name)]
    except SensorError:
        return []
    functions = []
    for address in addresses:
        path = f"{root}/{address}"
        vendor = read_text_or(f"{path}/vendor", "")
        if vendor not in ("", _XILINX):
            continue
        xmc = tuple(f"{path}/{name}" for name in _names(path) if xrt.XMC.fullmatch(name))
        chips = tuple(str(Path(f"{path}/hwmon/{name}").resolve()) for name in _names(f"{path}/hwmon"))
        if vendor or xmc or chips:
            functions.append(_Function(address=address, path=path, is_xilinx=vendor == _XILINX, xmc=xmc, chips=chips))
    return functions


def _names(path: str) -> list[str]:
    try:
        return list_names(path)
    except SensorError:
        return []


def _signature(host: Host) -> tuple[object, ...]:
    """What there is to be read; another one after a hot plug, a reset or a driver's loading."""
    return (*_functions(host), tuple(_names(f"{host.sysfs}/class/hwmon")))


def _doors(card: str, functions: Sequence[_Function], options: FpgaOptions, findings: list[Finding]) -> list[_Door]:
    """The ways to read a card, the preferred one first."""
    doors: list[_Door] = []
    heartbeats = [
        path for function in functions for xmc in function.xmc if Path(path := f"{xmc}/xmc_heartbeat_stall").exists()
    ]
    n_skipped = len(findings)
    for function in functions:
        names = {chip: read_text_or(f"{chip}/name", "") for chip in function.chips}
        chip_name = next((name for name in names.values() if xrt.XRT_CHIP.fullmatch(name)), "")
        for xmc in function.xmc:
            doors += _xmc_doors(card, function, xmc, chip_name, options, heartbeats)
        for chip, name in names.items():
            doors += _chip_doors(card, function, chip, name, options, heartbeats, findings)
    order = _AUTO_ORDER if options.function == "auto" else (options.function,)
    # Sorting keeps the order of what is equal: within a function the order is that of the ways above.
    allowed = [door for door in doors if door.kind is None or door.kind in order]
    allowed.sort(key=lambda door: 0 if door.kind is None else order.index(door.kind))
    if not allowed and len(findings) == n_skipped:
        text = "a Xilinx device without sensors: an Alveo card needs its driver xocl, xclmgmt or ami loaded"
        if doors:
            text = f"left out by collectors.fpga.function: {options.function}"
        if doors or any(function.is_xilinx for function in functions):
            findings.append(skipped(card, text))
    return allowed


def _xmc_doors(
    card: str, function: _Function, xmc: str, chip_name: str, options: FpgaOptions, heartbeats: Sequence[str]
) -> list[_Door]:
    match = xrt.XMC.fullmatch(xmc.rpartition("/")[2])
    assert match is not None
    kind: FunctionKind = "user" if match["kind"] == "u" else "mgmt"

    def door(way: str) -> _Door:
        def open_it(findings: list[Finding]) -> CardSensor:
            model = xrt.xrt_model(function.path, xmc, chip_name)
            return xrt.open_xmc(
                card, xmc, way, parts=options.parts, model=model, heartbeats=heartbeats, findings=findings
            )

        return _Door(kind=kind, path=xmc, text=f"{way} of XRT's {_FUNCTIONS[kind]} function", open=open_it)

    return [door(way) for way in xrt.xmc_ways(xmc)]


def _chip_doors(
    card: str,
    function: _Function,
    chip: str,
    name: str,
    options: FpgaOptions,
    heartbeats: Sequence[str],
    findings: list[Finding],
) -> list[_Door]:
    if (match := cards.SDM_CHIP.fullmatch(name)) is not None:
        model = match["model"]
        kind = _kind(match["kind"])
        text = f"hwmon_sdm of XRT's {_FUNCTIONS[kind]} function"
        return [_Door(kind=kind, path=chip, text=text, open=lambda _: cards.open_sdm(card, chip, model=model))]
    if name == cards.V80_CHIP:
        if not options.v80:
            findings.append(skipped(chip, f"{card}: {cards.V80_DANGER}", "collectors.fpga.v80: true"))
            return []
        return [_Door(kind=None, path=chip, text="hwmon of AMI", open=lambda _: cards.open_v80(card, chip))]
    if (match := xrt.XRT_CHIP.fullmatch(name)) is not None:
        model, kind = match["model"], _kind(match["kind"])
    elif name:
        return []
    else:  # XRT's chips have a name; one without can only be in a tree that somebody copied
        model, kind = "", "mgmt" if function.address.endswith(".0") else "user"

    def open_it(findings: list[Finding]) -> CardSensor:
        return xrt.open_xrt_hwmon(
            card, chip, parts=options.parts, model=model, heartbeats=heartbeats, findings=findings
        )

    return [_Door(kind=kind, path=chip, text=f"hwmon of XRT's {_FUNCTIONS[kind]} function", open=open_it)]


_FUNCTIONS: Final[Mapping[FunctionKind, str]] = {"user": "user", "mgmt": "management"}


def _kind(text: str) -> FunctionKind:
    return "user" if text == "user" else "mgmt"


# -- choosing --------------------------------------------------------------------------------------


def _probe(host: Host, card: str, doors: Sequence[_Door], hanging: list[str]) -> _Chosen:
    """Choose a card's door on a thread that may be left behind: a sick card must not keep the others waiting."""
    name = f"fpga-open-{host.sysfs}-{card}"
    chosen: list[_Chosen | Exception] = []
    gave_up = threading.Event()

    def choose() -> None:
        try:
            outcome = _choose(card, doors)
        except Exception as error:  # for the thread that waits
            chosen.append(error)
            return
        chosen.append(outcome)
        if gave_up.is_set() and outcome.sensor is not None:
            outcome.sensor.close()

    # One left behind by an earlier opening is not joined by another: a thread for each look would be a leak.
    if not _is_running(name):
        thread = threading.Thread(target=choose, name=name, daemon=True)
        thread.start()
        thread.join(_PROBE_TIMEOUT_S)
        if not thread.is_alive():
            (outcome,) = chosen
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        gave_up.set()
    hanging.append(name)
    silent = _SilentCard(card)
    return _Chosen(silent, (skipped(doors[0].path, str(silent)),))


def _is_running(thread_name: str) -> bool:
    return any(thread.name == thread_name for thread in threading.enumerate())


def _choose(card: str, doors: Sequence[_Door]) -> _Chosen:
    """The first door that gives a value now; failing that, the first that is there at all."""
    findings: list[Finding] = []
    silent: tuple[CardSensor, _Door, SensorError] | None = None
    for door in doors:
        own: list[Finding] = []
        try:
            sensor = door.open(own)
        except SensorDeniedError as error:
            findings.append(denied(error))
            continue
        except SensorError as error:
            findings.append(skipped(door.path, f"{card}: {error}"))
            continue
        try:
            readings = sensor.read()
        except SensorDeniedError as error:
            findings.append(denied(error))
        except SensorError as failure:
            if silent is None:
                silent = (sensor, door, failure)
                continue
        else:
            if silent is not None:
                silent[0].close()
                findings.append(skipped(silent[1].path, f"{card}: {silent[1].text}: {silent[2]}"))
            return _Chosen(sensor, [*findings, *own, *_found(sensor, door, readings)])
        sensor.close()
    if silent is None:
        return _Chosen(None, findings)
    sensor, door, reason = silent
    # Broken: so that the choice is made anew, in case another door gives a value first.
    findings.append(
        Finding(status="broken", collector=NAME, subject=door.path, text=f"{card} {TOTAL}: {door.text}: {reason}")
    )
    return _Chosen(sensor, findings)


def _found(sensor: CardSensor, door: _Door, readings: Sequence[Reading]) -> list[Finding]:
    total = sensor.infos[0]
    model = f" of {total.model}" if total.model else ""
    findings = [found(total.source, f"{sensor.device} {TOTAL}: power{model} by {door.text}")]
    watts = {reading.quantity: reading.power_watts or 0.0 for reading in readings}
    rails = [info for info in sensor.infos[1:] if info.quantity in watts]
    findings += [
        found(info.source, f"{sensor.device} {info.quantity.domain}: {watts[info.quantity]:.6g} W ({info.relation})")
        for info in rails
    ]
    addends = [info for info in rails if info.relation == "rail"]
    if addends:
        sum_watts = sum(watts[info.quantity] for info in addends)
        card_watts = watts[total.quantity]
        names = " + ".join(info.quantity.domain for info in addends)
        text = f"{sensor.device}: {names} are {sum_watts:.6f} W, the card says {card_watts:.6f} W"
        if abs(sum_watts - card_watts) > _AGREEMENT * card_watts:
            text += ": they do not agree, one of them is wrong"
            logger.warning("%s: %s", NAME, text)
        findings.append(found(total.source, text))
    return findings
