"""One window of a meter: opened and closed around the user's code, then the result."""

from __future__ import annotations

import html
import logging
import os
import threading
import time
from collections.abc import Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from joulewatch_harness.errors import ConfigError, FindingsError, JoulewatchError
from joulewatch_harness.metering.sync import check_sync, synchronise
from joulewatch_harness.metering.values import Energy, text_of
from joulewatch_harness.runner.bracket import Bracket

if TYPE_CHECKING:
    from collections.abc import Callable

    from joulewatch_harness.analysis.results.audit.findings import Finding, Severity
    from joulewatch_harness.metering.energies import WindowEnergies
    from joulewatch_harness.metering.meter import Meter
    from joulewatch_harness.records import RunHeader, Window

logger = logging.getLogger(__name__)

LONGEST_NAME: Final = 200
_current: ContextVar[Measurement | None] = ContextVar("joulewatch window", default=None)
"""The innermost open window of a thread or asyncio task."""


class OpenWindows:
    """The open windows of all meters of this process."""

    def __init__(self) -> None:
        self._clear()
        # A forked process has none, and the lock may be held by a thread that does not exist there.
        os.register_at_fork(after_in_child=self._clear)

    def _clear(self) -> None:
        self._lock = threading.Lock()
        self._windows: dict[Measurement, None] = {}

    def add(self, window: Measurement) -> None:
        """Add a window, and mark it and the others as overlapping unless it is inside them."""
        with self._lock:
            for other in self._windows:
                if not window.is_within(other):
                    window.overlaps = other.overlaps = True
            self._windows[window] = None

    def discard(self, window: Measurement) -> None:
        """Remove a window; safe to call twice."""
        with self._lock:
            self._windows.pop(window, None)


OPEN_WINDOWS: Final = OpenWindows()


class Measurement:
    """Context manager around the code to measure; after it, the result.

    Energies are those of the whole machine in the time of the window, whatever ran then. They are computed when the
    first of them is read. An exception inside the ``with`` ends the window and passes through; the window has the flag
    ``interrupted`` and is not part of the summary of its name.
    """

    def __init__(self, meter_of: Callable[[], Meter], name: str, inferences: int, sync: str) -> None:
        if not isinstance(name, str) or not name or len(name) > LONGEST_NAME or not name.isprintable():
            raise ConfigError(f"name {name!r}: must be a printable text of 1 to {LONGEST_NAME} characters")
        check_sync(sync)
        self.name = name
        self.inferences = inferences
        self.details: dict[str, str] = {}
        """Facts for the journal; may be set until the end."""
        self.overlaps = False
        """Whether windows of other threads, tasks or meters were open at the same time, outside this one."""
        self._meter_of = meter_of
        self._sync = sync
        self._meter: Meter | None = None
        self._bracket: Bracket | None = None
        self._parent: Measurement | None = None
        self.interrupted = False
        self._stored: tuple[RunHeader, tuple[Window, ...]] | None = None
        self._energies: WindowEnergies | None = None
        self._lost = ""

    @property
    def inferences(self) -> int:
        """Inferences in the window; may be set until its end."""
        return self._inferences

    @inferences.setter
    def inferences(self, count: int) -> None:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ConfigError(f"window {self.name!r}: inferences is {count!r}; must be a whole number of at least 1")
        self._inferences = count

    # The window

    def __enter__(self) -> Self:
        return self.begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        at_ns = time.monotonic_ns()
        try:
            self.end_at(at_ns, interrupted=error is not None)
        except JoulewatchError as own_error:
            if error is None:
                raise
            # The exception of the user's code matters more.
            logger.error("window %r: %s", self.name, own_error)

    def begin(self) -> Self:
        """Open the window.

        Raises:
            ConfigError: The window was opened before, the meter has too many names, or an option is not valid.
            ExporterUnreachableError: No exporter answers, or it has no energy sensor (the first window only).
            StorageError: An earlier window could not be written.
        """
        if self._bracket is not None or self._stored is not None:
            raise ConfigError(f"window {self.name!r}: was opened before; call measure() for each window")
        meter = self._meter_of()
        synchronise(self._sync)
        self._parent = current()
        bracket = meter.open_window(self)
        self._bracket, self._meter = bracket, meter
        _current.set(self)
        try:
            bracket.__enter__()
        except BaseException:
            self._bracket = None
            _current.set(self._parent)
            meter.drop_window(self)
            raise
        bracket.start()
        return self  # nothing is between the start and the user's code

    def end(self, *, interrupted: bool = False) -> Self:
        """Close the window; ``interrupted`` marks it, and excludes it from the summary of its name.

        Raises:
            ConfigError: The window is not open.
            StorageError: The journal cannot be written, because the disk is full.
        """
        return self.end_at(time.monotonic_ns(), interrupted=interrupted)

    def end_at(self, at_ns: int, *, interrupted: bool = False) -> Self:
        """Close the window, whose work ended at a monotonic time, or ends with its synchronisation; as ``end``."""
        bracket, meter = self._bracket, self._meter
        if bracket is None or meter is None:
            raise ConfigError(f"window {self.name!r}: is not open")
        self._bracket = None
        if _current.get() is self:
            _current.set(self._parent)
        if meter.pid != os.getpid():
            self._lost = f"process {os.getpid()} was forked inside the window, which ends in process {meter.pid}"
            return self
        if not meter.is_open:
            self._lost = "the meter was closed inside the window"
            return self
        try:
            synchronise(self._sync)
        except BaseException:
            interrupted = True
            raise
        finally:
            bracket.stop(None if self._sync else at_ns)
            bracket.__exit__(None)
            self.interrupted = interrupted
            self._stored = meter.close_window(self, bracket)
        return self

    @property
    def flags(self) -> tuple[str, ...]:
        """``interrupted``: an exception ended the window; ``overlapping``: see ``overlaps``."""
        flags = {"interrupted": self.interrupted, "overlapping": self.overlaps}
        return tuple(name for name, is_set in flags.items() if is_set)

    @property
    def is_open(self) -> bool:
        """Whether the window was opened and not yet closed."""
        return self._bracket is not None

    def is_within(self, other: Measurement) -> bool:
        """Return whether this window was opened inside another one, in the same thread or task."""
        parent = self._parent
        while parent is not None and parent is not other:
            parent = parent._parent
        return parent is other

    # The result

    @property
    def window(self) -> Window:
        """The window as the journal has it.

        Raises:
            ConfigError: The window is still open.
        """
        return self._result()[1][-1]

    def _result(self) -> tuple[RunHeader, tuple[Window, ...]]:
        if self._stored is None:
            raise ConfigError(f"window {self.name!r}: {self._lost or 'has no result before its end'}")
        if self._meter is not None:
            self._meter.settle()
        return self._stored

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return self.window.duration_s

    @property
    def energies(self) -> WindowEnergies:
        """All energies of the window; computed once."""
        if self._energies is None:
            try:
                from joulewatch_harness.metering.energies import energies_of
            except ModuleNotFoundError as error:
                raise ConfigError(
                    f"energies need the package {error.name}: pip install 'joulewatch[analysis]'"
                ) from error
            self._energies = energies_of(*self._result())
        return self._energies

    @property
    def energy(self) -> Energy:
        """The energy of all devices; on a machine without device sensors, of the whole node."""
        return self.energies.total

    @property
    def joules(self) -> float | None:
        """Energy of all devices in joules; None if a sensor has no number (see ``missing``), never 0 instead."""
        return self.energy.joules

    @property
    def uncertainty(self) -> float | None:
        """Expanded uncertainty of ``joules`` at 95 %, for what it ``covers``."""
        return self.energy.uncertainty

    @property
    def covers(self) -> tuple[str, ...]:
        """What the uncertainty includes: ``sampling``, and ``accuracy`` if every sensor has a published one."""
        return self.energy.covers

    @property
    def missing(self) -> str:
        """Why ``joules`` is None; empty if there is a number."""
        return self.energy.missing

    @property
    def watts(self) -> float | None:
        """Mean power."""
        return self.energy.watts

    @property
    def joules_per_inference(self) -> float | None:
        """``joules`` divided by ``inferences``."""
        return None if self.joules is None else self.joules / self.window.inferences

    @property
    def net(self) -> Energy | None:
        """The energy net of idle power; None: idle power is not known (``Meter(idle="measured")``)."""
        return self.energies.net

    @property
    def per_component(self) -> Mapping[str, Energy]:
        """Component (``cpu``, ``memory``, ``gpu``, ``fpga``) -> its energy."""
        return self.energies.per_component

    @property
    def per_device(self) -> Mapping[str, Energy]:
        """``component/device/domain`` -> energy; with several exporters, ``exporter/component/device/domain``."""
        return self.energies.per_device

    @property
    def per_node(self) -> Mapping[str, Energy]:
        """The same for whole servers, whose energy includes that of their devices."""
        return self.energies.per_node

    @property
    def per_part(self) -> Mapping[str, Energy]:
        """The same for parts of devices, whose energy is included in that of the devices."""
        return self.energies.per_part

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the audit found about the window, and about the sensors."""
        return self.energies.findings

    def raise_for_findings(self, severity: Severity = "error") -> Self:
        """Raise FindingsError if a finding has at least this severity: ``error``, ``warning`` or ``info``."""
        order: tuple[Severity, ...] = ("info", "warning", "error")
        if severity not in order:
            raise ConfigError(f"severity {severity!r}: must be one of {', '.join(order)}")
        grave = [one for one in self.findings if order.index(one.severity) >= order.index(severity)]
        if grave:
            raise FindingsError("; ".join(f"{one.text} [{one.reason}]" for one in grave))
        return self

    def to_mapping(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        window, energies = self.window, self.energies
        return {
            "name": self.name,
            "run": window.run,
            "window": window.index,
            "start_s": window.start_s,
            "seconds": window.duration_s,
            "inferences": window.inferences,
            "flags": list(window.flags),
            "details": dict(window.details),
            "energy": self.energy.to_mapping(),
            "net": None if energies.net is None else energies.net.to_mapping(),
            **{
                key: {name: energy.to_mapping() for name, energy in getattr(energies, key).items()}
                for key in ("per_component", "per_device", "per_node", "per_part")
            },
            "findings": [
                {"severity": one.severity, "reason": one.reason, "text": one.text, "evidence": dict(one.evidence)}
                for one in energies.findings
            ],
        }

    def __repr__(self) -> str:
        if self._stored is None:
            state = self._lost or ("open" if self.is_open else "not opened")
            return f"<joulewatch {self.name!r}: {state}>"
        return f"<joulewatch {self.name!r}: {self.energy}, {self.seconds:.4g} s>"

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        if self._stored is None:
            return f"<pre>{html.escape(repr(self))}</pre>"
        energies = self.energies
        rows = [*energies.per_component.values(), *energies.per_node.values(), self.energy]
        if energies.net is not None:
            rows.append(energies.net)
        body = "".join(map(_html_row, rows))
        if self.inferences > 1 and self.energy.estimate is not None:
            each = self.energy.estimate.divided_by(self.inferences)
            body += f"<tr><td>per inference</td><td>{html.escape(text_of(each, 'J'))}</td><td></td></tr>"
        notes = "".join(
            f"<li>{html.escape(f'{one.severity}: {one.text} [{one.reason}]')}</li>" for one in self.findings
        )
        return (
            f"<table><caption>{html.escape(self.name)}: {self.seconds:.4g} s</caption>"
            f"<tr><th></th><th>energy ± (95 %)</th><th>mean power</th></tr>{body}</table>"
            + (f"<ul>{notes}</ul>" if notes else "")
        )


def _html_row(energy: Energy) -> str:
    watts = "" if energy.watts is None else f"{energy.watts:.4g} W"
    return f"<tr><td>{html.escape(energy.name)}</td><td>{html.escape(str(energy))}</td><td>{watts}</td></tr>"


def current() -> Measurement | None:
    """Return the innermost open window of this thread or task."""
    window = _current.get()
    while window is not None and not window.is_open:
        window = window._parent
    return window
