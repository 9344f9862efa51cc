"""FPGA cards and boards: Alveo with XRT, Versal cards, the V80 on request, boards with one power monitor per rail.

A card is identified by its PCI address without the function number, because its user and management function belong
to the same card. A card can have several backends; the first one that returns a value is used: the management function
before the user function, and within a function XRT's own nodes before its hwmon chip. Cards report power only; the
exporter integrates it to joules.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self

from joulewatch_exporter.collectors.base.on_demand import OnDemandCollector
from joulewatch_exporter.collectors.base.probe import Prober
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
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError
from joulewatch_exporter.model import Finding, Host, Reading, Timing

logger = logging.getLogger(__name__)

_POLL_S: Final = 1.0
"""The user function's driver queries the card this often; slower polling makes the integral less exact. The user
function's driver writes one line to the kernel log per query. To avoid that, read the management function, or set
``poll_seconds: 5``; gaps above ``SensorInfo.max_gap_s`` (10 s) are not integrated."""

_XILINX: Final = "0x10ee"
_ADDRESS: Final = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")

_AUTO_ORDER: Final[tuple[FunctionKind, ...]] = ("mgmt", "user")
"""The management function reads the card's registers. The user function returns values cached for one second and writes
a line to the kernel log at each refresh."""

_AGREEMENT: Final = 0.05
"""Largest relative difference between the sum of the rails and the card: they are not read at the same instant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FpgaOptions:
    """Settings under ``collectors.fpga``."""

    parts: bool = True
    """False: publish only the total of a card, without its rails."""
    function: Literal["auto", "user", "mgmt"] = "auto"
    """The PCI function of a card to read. auto prefers the management function, which has no cache and writes nothing
    to the kernel log; a virtual machine has only the user function."""
    v80: bool = False
    """Also read Alveo cards with the driver AMI. If a card is at its critical power limit, reading its power makes this
    driver end every program that uses the card."""
    rails: Mapping[str, RailOption] = field(default_factory=dict)
    """Boards with one power monitor per rail: maps a chip name, label or I2C device to {name, in_total}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Function:
    """A PCI function that may belong to a card."""

    address: str
    path: str
    is_xilinx: bool
    """False: the vendor is missing, which happens only in a copied sysfs tree."""
    xmc: tuple[str, ...]
    """Directories of XRT."""
    chips: tuple[str, ...]
    """Real paths of hwmon chips."""

    @property
    def card(self) -> str:
        return self.address.rpartition(".")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Backend:
    """One way to read a card."""

    kind: FunctionKind | None
    """The function of the card; None: the driver has only one."""
    path: str
    text: str
    open: Callable[[list[Finding]], CardSensor]


@dataclass(frozen=True, slots=True)
class _Selection:
    sensor: CardSensor | None
    findings: Sequence[Finding]


class FpgaCollector(OnDemandCollector):
    """All FPGA cards of the host, and the host itself if it is a board with monitored rails."""

    name: ClassVar[str] = NAME
    experimental: ClassVar[str] = "has not been run on an FPGA card or board"
    Options: ClassVar[type] = FpgaOptions

    def __init__(
        self, host: Host, sensors: Sequence[CardSensor], findings: Sequence[Finding], functions: Sequence[str]
    ) -> None:
        super().__init__(sensors, findings)
        self._host = host
        self._functions = tuple(functions)
        """Directories of the PCI functions of the cards."""
        self._fingerprint = _fingerprint(host, functions)

    @property
    def timing(self) -> Timing:
        """Read once per second, because cards report power only. More scrapes cost little: the driver caches values."""
        return Timing(poll_s=_POLL_S, read_on_scrape=True)

    @property
    def outdated(self) -> bool:
        """Whether a card appeared or was reset."""
        return _fingerprint(self._host, self._functions) != self._fingerprint

    @classmethod
    def open(cls, host: Host, options: Any) -> Self:
        """Find the cards and read each of them once.

        Args:
            host: Where sysfs and the device tree are.
            options: `FpgaOptions`.

        Raises:
            SensorAbsentError: There is no card that reports its power, and no board with known rails.
            SensorDeniedError: There is one, but it cannot be read.
            SensorTimeoutError: There is one, but its read hangs.
        """
        assert isinstance(options, FpgaOptions)
        findings: list[Finding] = []
        sensors: list[CardSensor] = []
        with contextlib.closing(Prober(NAME, findings)) as prober:
            functions = _functions(host, prober)
            by_card: dict[str, list[_Function]] = {}
            for function in functions:
                by_card.setdefault(function.card, []).append(function)
            for card, of_card in by_card.items():
                path = of_card[0].path.rpartition(".")[0]
                selection = prober.call(path, card, partial(_open_card, card, of_card, options))
                if selection is not None:
                    findings += selection.findings
                    if selection.sensor is not None:
                        sensors.append(selection.sensor)
            board = ina226.open_board(host, prober, options.rails, findings)
            if board is not None:
                sensors.append(board)
            if not sensors:
                raise _failure(host, prober, findings)
        return cls(host, sensors, findings, [function.path for function in functions])


def _failure(host: Host, prober: Prober, findings: Sequence[Finding]) -> SensorError:
    denials = [finding for finding in findings if finding.status == "denied"]
    if denials:
        return SensorDeniedError(denials[0].text, devices=[finding.device for finding in denials])
    prober.check()
    reasons = "".join(f"; {finding.subject}: {finding.text}" for finding in findings)
    return SensorAbsentError(
        f"{host.sysfs}/bus/pci/devices: no FPGA card whose driver (XRT: xocl or xclmgmt; AMI: ami) reports its power, "
        f"and no board with known rails{reasons}"
    )


# -- finding cards ---------------------------------------------------------------------------------


def _functions(host: Host, prober: Prober) -> list[_Function]:
    """Return the PCI functions that may belong to cards, ordered by address."""
    root = f"{host.sysfs}/bus/pci/devices"
    functions: list[_Function] = []
    addresses = [name for name in _names(root) if _ADDRESS.fullmatch(name)]
    # One call per bus: a card in a slot has its own, and a call per device costs too much with hundreds of devices.
    for bus, of_bus in groupby(addresses, lambda address: address.rpartition(":")[0]):
        functions += prober.call(f"{root}/{bus}", "", partial(_functions_of, root, list(of_bus))) or []
    return functions


def _functions_of(root: str, addresses: Sequence[str]) -> list[_Function]:
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


def _fingerprint(host: Host, functions: Sequence[str]) -> tuple[object, ...]:
    """Return what changes after a hot plug, a reset, or the loading of a driver; no file is read, as it might hang."""
    folders = [f"{host.sysfs}/bus/pci/devices", f"{host.sysfs}/class/hwmon"]
    for path in functions:
        folders += [path, f"{path}/hwmon"]
    return tuple(tuple(_names(folder)) for folder in folders)


def _backends(
    card: str, functions: Sequence[_Function], options: FpgaOptions, findings: list[Finding]
) -> list[_Backend]:
    """Return the backends of a card in order of preference."""
    backends: list[_Backend] = []
    heartbeats = [
        path for function in functions for xmc in function.xmc if Path(path := f"{xmc}/xmc_heartbeat_stall").exists()
    ]
    n_findings = len(findings)
    for function in functions:
        names = {chip: read_text_or(f"{chip}/name", "") for chip in function.chips}
        chip_name = next((name for name in names.values() if xrt.XRT_CHIP.fullmatch(name)), "")
        for xmc in function.xmc:
            backends += _xmc_backends(card, function, xmc, chip_name, options, heartbeats)
        for chip, name in names.items():
            backends += _chip_backends(card, function, chip, name, options, heartbeats, findings)
    order = _AUTO_ORDER if options.function == "auto" else (options.function,)
    # The sort is stable: within a function the order stays as above.
    allowed = [backend for backend in backends if backend.kind is None or backend.kind in order]
    allowed.sort(key=lambda backend: 0 if backend.kind is None else order.index(backend.kind))
    if not allowed and len(findings) == n_findings:
        text = "a Xilinx device without sensors: an Alveo card needs its driver xocl, xclmgmt or ami"
        if backends:
            text = f"excluded by collectors.fpga.function: {options.function}"
        if backends or any(function.is_xilinx for function in functions):
            findings.append(skipped(card, text))
    return allowed


def _xmc_backends(
    card: str, function: _Function, xmc: str, chip_name: str, options: FpgaOptions, heartbeats: Sequence[str]
) -> list[_Backend]:
    match = xrt.XMC.fullmatch(xmc.rpartition("/")[2])
    assert match is not None
    kind: FunctionKind = "user" if match["kind"] == "u" else "mgmt"

    def backend(node: str) -> _Backend:
        def open_sensor(findings: list[Finding]) -> CardSensor:
            model = xrt.xrt_model(function.path, xmc, chip_name)
            return xrt.open_xmc(
                card, xmc, node, parts=options.parts, model=model, heartbeats=heartbeats, findings=findings
            )

        return _Backend(kind=kind, path=xmc, text=f"{node} of XRT's {_FUNCTIONS[kind]} function", open=open_sensor)

    return [backend(node) for node in xrt.power_nodes(xmc)]


def _chip_backends(
    card: str,
    function: _Function,
    chip: str,
    name: str,
    options: FpgaOptions,
    heartbeats: Sequence[str],
    findings: list[Finding],
) -> list[_Backend]:
    if (match := cards.SDM_CHIP.fullmatch(name)) is not None:
        model = match["model"]
        kind = _kind(match["kind"])
        text = f"hwmon_sdm of XRT's {_FUNCTIONS[kind]} function"
        return [_Backend(kind=kind, path=chip, text=text, open=lambda _: cards.open_sdm(card, chip, model=model))]
    if name == cards.V80_CHIP:
        if not options.v80:
            findings.append(skipped(chip, f"{card}: {cards.V80_DANGER}", "collectors.fpga.v80: true"))
            return []
        return [_Backend(kind=None, path=chip, text="hwmon of AMI", open=lambda _: cards.open_v80(card, chip))]
    if (match := xrt.XRT_CHIP.fullmatch(name)) is not None:
        model, kind = match["model"], _kind(match["kind"])
    elif name:
        return []
    else:  # XRT's chips have a name; a chip without a name happens only in a copied sysfs tree
        model, kind = "", "mgmt" if function.address.endswith(".0") else "user"

    def open_sensor(findings: list[Finding]) -> CardSensor:
        return xrt.open_xrt_hwmon(
            card, chip, parts=options.parts, model=model, heartbeats=heartbeats, findings=findings
        )

    return [_Backend(kind=kind, path=chip, text=f"hwmon of XRT's {_FUNCTIONS[kind]} function", open=open_sensor)]


_FUNCTIONS: Final[Mapping[FunctionKind, str]] = {"user": "user", "mgmt": "management"}


def _kind(text: str) -> FunctionKind:
    return "user" if text == "user" else "mgmt"


# -- selecting a backend --------------------------------------------------------------------------------------


def _open_card(card: str, functions: Sequence[_Function], options: FpgaOptions) -> _Selection:
    """Read a card once with each of its backends, until one returns a value."""
    findings: list[Finding] = []
    backends = _backends(card, functions, options, findings)
    selection = _select(card, backends)
    return _Selection(selection.sensor, [*findings, *selection.findings])


def _select(card: str, backends: Sequence[_Backend]) -> _Selection:
    """Select the first backend that returns a value now, or else the first that can be opened."""
    findings: list[Finding] = []
    silent: tuple[CardSensor, _Backend, SensorError] | None = None
    for backend in backends:
        backend_findings: list[Finding] = []
        try:
            sensor = backend.open(backend_findings)
        except SensorDeniedError as error:
            findings.append(denied(error, card))
            continue
        except SensorError as error:
            findings.append(skipped(backend.path, f"{card}: {error}"))
            continue
        try:
            readings = sensor.read()
        except SensorDeniedError as error:
            findings.append(denied(error, card))
        except SensorError as failure:
            if silent is None:
                silent = (sensor, backend, failure)
                continue
        else:
            if silent is not None:
                silent[0].close()
                findings.append(skipped(silent[1].path, f"{card}: {silent[1].text}: {silent[2]}"))
            return _Selection(sensor, [*findings, *backend_findings, *_found(sensor, backend, readings)])
        sensor.close()
    if silent is None:
        return _Selection(None, findings)
    sensor, backend, reason = silent
    # `broken` makes the family reopen, in case another backend returns a value first.
    findings.append(
        Finding(status="broken", collector=NAME, subject=backend.path, text=f"{card} {TOTAL}: {backend.text}: {reason}")
    )
    return _Selection(sensor, findings)


def _found(sensor: CardSensor, backend: _Backend, readings: Sequence[Reading]) -> list[Finding]:
    total = sensor.infos[0]
    model = f" of {total.model}" if total.model else ""
    findings = [found(total.source, f"{sensor.device} {TOTAL}: power{model} from {backend.text}")]
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
        text = f"{sensor.device}: {names} = {sum_watts:.6f} W, the card reports {card_watts:.6f} W"
        if abs(sum_watts - card_watts) > _AGREEMENT * card_watts:
            text += ": they differ, one of them is wrong"
            logger.warning("%s: %s", NAME, text)
        findings.append(found(total.source, text))
    return findings
