"""A polled family whose devices are listed in the configuration and in a target file, which may change any time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar, Final

from joulewatch_exporter.clock import NS_PER_S
from joulewatch_exporter.collectors.base.targets import TargetList
from joulewatch_exporter.collectors.base.workers import PolledCollector, Poller
from joulewatch_exporter.errors import ConfigError
from joulewatch_exporter.model import Finding
from joulewatch_exporter.text import count_of

logger = logging.getLogger(__name__)

CHECK_S: Final = 2.0
"""Shortest time between two checks of a target file, because scans and scrapes may be frequent."""


class TargetedCollector(PolledCollector):
    """One poller for each target of a `TargetList`; follows changes of the target file.

    A target is a frozen, hashable dataclass with a field ``name``, which is the label of its device. A target is
    reconnected if any of its fields changes; the others are not affected. If the target file becomes invalid, the
    targets stay as they were, the error is logged once, and it is a finding until the file is valid again.
    """

    name: ClassVar[str]

    def __init__(
        self,
        targets: TargetList[Any],
        make: Callable[[Any], Poller],
        *,
        check_s: float = CHECK_S,
    ) -> None:
        """Read the targets and start their pollers.

        Args:
            targets: The list of targets.
            make: Creates the poller of one target. It must not wait for the device; the poller connects later.
            check_s: Shortest time between two checks of the target file.

        Raises:
            ConfigError: The target file is invalid. At the start that is an error; later it is a finding.
        """
        self._targets = targets
        self._make = make
        self._check_ns = round(check_s * NS_PER_S)
        self._checked_at_ns = time.monotonic_ns()
        self._check_lock = threading.Lock()
        self._file_finding: tuple[Finding, ...] = ()
        super().__init__(self._wanted())

    def refresh(self) -> None:
        """Check whether the target file has changed, unless it was checked recently."""
        now_ns = time.monotonic_ns()
        if now_ns - self._checked_at_ns < self._check_ns or self._is_closed:
            return
        if not self._check_lock.acquire(blocking=False):
            return
        try:
            self._checked_at_ns = now_ns
            if self._targets.has_changed():
                self._reload()
        finally:
            self._check_lock.release()

    @property
    def findings(self) -> Sequence[Finding]:
        """An invalid target file; families add findings about their devices."""
        return self._file_finding

    def _reload(self) -> None:
        try:
            wanted = self._wanted()
        except ConfigError as error:
            logger.error("%s: %s; the targets stay as they were", self.name, error)
            path, _, text = str(error).partition(": ")
            text = f"{text or error}; the targets stay as they were"
            self._file_finding = (Finding(status="broken", collector=self.name, subject=path, text=text),)
            return
        before = len(self._pollers)
        self._file_finding = ()
        self.follow(wanted)
        after = count_of(len(self._pollers), "target")
        logger.info("%s: the target file has changed: %s, %d before", self.name, after, before)

    def _wanted(self) -> Mapping[str, tuple[Hashable, Callable[[], Poller]]]:
        return {target.name: (target, self._maker(target)) for target in self._targets.read()}

    def _maker(self, target: Any) -> Callable[[], Poller]:
        # A separate function, so that each lambda binds its own target.
        return lambda: self._make(target)
