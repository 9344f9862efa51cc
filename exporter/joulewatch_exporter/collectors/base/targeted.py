"""A polled family whose devices come from the configuration and from a target file that may change while we run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar, Final

from joulewatch_exporter.collectors.base.targets import TargetList
from joulewatch_exporter.collectors.base.workers import PolledCollector, Poller
from joulewatch_exporter.errors import ConfigError
from joulewatch_exporter.model import Finding

logger = logging.getLogger(__name__)

LOOK_S: Final = 2.0
"""A target file is looked at no more often than this: scans and scrapes may be many."""


class TargetedCollector(PolledCollector):
    """One poller for each target of a `TargetList`; follows the target file.

    A target is a frozen, hashable dataclass with a field ``name``, which is the label of its device. A target that has
    changed in any field is connected anew, the others are left in peace. A target file that has become wrong is said
    once, and shown as a finding until it is right again; the targets stay as they were.
    """

    name: ClassVar[str]

    def __init__(
        self,
        targets: TargetList[Any],
        make: Callable[[Any], Poller],
        *,
        look_s: float = LOOK_S,
    ) -> None:
        """Read the targets and start their pollers.

        Args:
            targets: Where the targets come from.
            make: Makes the poller of one target. It must not wait for the device: the poller connects.
            look_s: From one look at the target file to the next.

        Raises:
            ConfigError: The target file is wrong. At the start that is an error; later it is a finding.
        """
        self._targets = targets
        self._make = make
        self._look_ns = round(look_s * 1e9)
        self._looked_at_ns = time.monotonic_ns()
        self._looking = threading.Lock()
        self._file_finding: tuple[Finding, ...] = ()
        super().__init__(self._wanted())

    def refresh(self) -> None:
        """Follow the target file, if it is time to look at it."""
        now_ns = time.monotonic_ns()
        if now_ns - self._looked_at_ns < self._look_ns or self._is_closed or not self._looking.acquire(blocking=False):
            return
        try:
            self._looked_at_ns = now_ns
            if self._targets.has_changed():
                self._reload()
        finally:
            self._looking.release()

    @property
    def findings(self) -> Sequence[Finding]:
        """A target file that is wrong; families add what they know of their devices."""
        return self._file_finding

    def _reload(self) -> None:
        try:
            wanted = self._wanted()
        except ConfigError as error:
            logger.error("%s: %s; going on with the targets as they were", self.name, error)
            path, _, text = str(error).partition(": ")
            self._file_finding = (
                Finding("broken", self.name, path, f"{text or error}; the targets are those from before"),
            )
            return
        before = len(self._pollers)
        self._file_finding = ()
        self.follow(wanted)
        logger.info("%s: the target file has changed: %d targets, before %d", self.name, len(self._pollers), before)

    def _wanted(self) -> Mapping[str, tuple[Hashable, Callable[[], Poller]]]:
        return {target.name: (target, self._maker(target)) for target in self._targets.read()}

    def _maker(self, target: Any) -> Callable[[], Poller]:
        # A function of its own, so that each factory keeps its own target.
        return lambda: self._make(target)
