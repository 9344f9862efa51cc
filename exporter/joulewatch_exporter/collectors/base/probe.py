"""Probes devices one by one while a family is opened, so that a file that hangs costs its device only.

A thread whose read hangs cannot be ended. It is remembered by the path of its device, so that the device is not probed
again, at the cost of another thread, before the read has returned.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from joulewatch_exporter.collectors.base.sysfs import path_read_by
from joulewatch_exporter.errors import SensorTimeoutError
from joulewatch_exporter.model import Finding
from joulewatch_exporter.threads import DeadlineThread

T = TypeVar("T")

PROBE_S: Final = 1.5
"""Longest time to probe one device. A chip on a slow bus takes 0.1 s, an FPGA card behind a mailbox longer."""
ALL_S: Final = 5.0
"""Longest time for all devices that hang. Later ones get `LEAST_S`, so that the family is opened in time."""
LEAST_S: Final = 0.1

_HANGING: Final[dict[tuple[str, str], tuple[DeadlineThread, str, str]]] = {}
"""Family and path of a device -> the thread that hangs, the file that it reads, and the label of the device."""


class Prober:
    """Makes calls that read the files of a device; those that hang become findings."""

    def __init__(self, collector: str, findings: list[Finding]) -> None:
        self._collector = collector
        self._findings = findings
        self._thread = DeadlineThread(f"probe-{collector}")
        self._hung_s = 0.0
        self.hung: dict[str, Finding] = {}
        """Devices that hang, by their path."""

    def call(self, path: str, label: str, function: Callable[[], T]) -> T | None:
        """Return the result of ``function``; None if it hangs.

        Args:
            path: Real path of the device, or of its file.
            label: Its label; empty: not known.
            function: Reads its files. It must not change anything that others see, because it may end much later.
        """
        key = (self._collector, path)
        if key in _HANGING:
            thread, file, known_label = _HANGING[key]
            if thread.is_hanging:
                self._report(path, label or known_label, file)
                return None
            del _HANGING[key]
        started_s = time.monotonic()
        try:
            return self._thread.call(function, max(LEAST_S, min(PROBE_S, ALL_S - self._hung_s)))
        except SensorTimeoutError:
            self._hung_s += time.monotonic() - started_s
            file = path_read_by(self._thread.hung_thread) or path
            _HANGING[key] = (self._thread, file, label)
            self._thread.close()
            self._thread = DeadlineThread(f"probe-{self._collector}")
            self._report(path, label, file)
            return None

    def _report(self, path: str, label: str, file: str) -> None:
        if path not in self.hung:
            text = f"{file}: the read hangs; its device is skipped until the read returns"
            finding = Finding(status="broken", collector=self._collector, subject=path, text=text, device=label)
            self.hung[path] = finding
            self._findings.append(finding)

    def check(self) -> None:
        """Raise `SensorTimeoutError` if a device hangs, for a family that has no other."""
        if self.hung:
            texts = [finding.text for finding in self.hung.values()]
            raise SensorTimeoutError("; ".join(texts), devices=[finding.device for finding in self.hung.values()])

    def close(self) -> None:
        """End the thread."""
        self._thread.close()
