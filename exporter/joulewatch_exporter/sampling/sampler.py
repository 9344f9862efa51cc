"""All sensor families of this host, each read by its own thread on absolute monotonic deadlines.

Prometheus' conventions require reads during the scrape. Why background threads: counters wrap, and power-only sensors
must be integrated, also without scrapes. A scrape still gets fresh values: each family is read after the request.
Concurrent scrapes share one read.

Waking another thread takes as long as reading ten sensors. So the thread that answers a scrape reads the quick families
itself, and waits for the threads of the others. If it hangs in a sensor, another thread answers the scrape, after
`RELIEF_S` + `WATCH_S` at most, and waits one time-out for that family.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from joulewatch_exporter.clock import NS_PER_S
from joulewatch_exporter.collectors.base.sysfs import path_read_by
from joulewatch_exporter.config.config import FamilySettings
from joulewatch_exporter.errors import (
    ConfigError,
    SensorAbsentError,
    SensorAsleepError,
    SensorDeniedError,
    SensorTimeoutError,
)
from joulewatch_exporter.model import Collector, Finding, Host
from joulewatch_exporter.sampling.family import Family
from joulewatch_exporter.sampling.family_thread import FamilyThread
from joulewatch_exporter.sampling.plausibility import Plausibility, Verdict
from joulewatch_exporter.sampling.primary import Key, PrimarySensors
from joulewatch_exporter.sampling.saved import SavedState
from joulewatch_exporter.sampling.scan import OK, FamilyScan, Layout, unreadable
from joulewatch_exporter.sampling.steps import FamilyEdge
from joulewatch_exporter.text import count_of
from joulewatch_exporter.threads import AbandonedError, DeadlineThread

logger = logging.getLogger(__name__)

ESTIMATE_FAMILY: Final = "estimate"
"""Family that estimates CPU energy: it runs if no CPU sensor is measured, or if it is enabled explicitly."""

OPEN_TIMEOUT_S: Final = 10.0
"""Longest time to open a family; after that the other families are opened, and this one is probed again later."""
WATCH_S: Final = 0.25
"""Period of the search for calls that hang."""
RELIEF_S: Final = 0.1
"""If the thread of a scrape reads for longer, another thread answers the scrape."""
LEAST_PATIENCE_S: Final = 0.5
"""The thread of a scrape reads only if the scrape has this much time: relief may come `WATCH_S` after `RELIEF_S`."""
CHECK_S: Final = 10.0
"""Period of the checks whether sensors agree with each other."""

_STOP_TIMEOUT_S: Final = 0.3


class Sampler:
    """Opens all families of this host, lets their threads read them, and probes again for those that are missing."""

    def __init__(
        self,
        families: Sequence[type[Collector]],
        host: Host,
        settings: Mapping[str, FamilySettings] | None = None,
        *,
        rediscover_s: float = 30.0,
        hang_s: float = 1.0,
        primary: Mapping[str, str] | None = None,
        saved: SavedState | None = None,
    ) -> None:
        """Prepare; ``start`` opens and reads.

        Args:
            families: In the order in which they are opened; if two can read the same sensor, the first one does.
            host: Where the files are.
            settings: The configuration, by name of the family.
            rediscover_s: Period of the probes for missing families and devices; 0: never.
            hang_s: If a scan takes longer, the device that is being read is quarantined until its read returns. It
                must be shorter than a scrape waits, so that even the first scrape after the hang gets the others.
            primary: The collector whose node sensor is primary, by pattern of hosts.
            saved: Counters of an earlier process to continue.
        """
        self._host = host
        self._saved = saved
        self._settings = dict(settings or {})
        self._families = tuple(families)
        self._rediscover_s = rediscover_s
        self._hang_s = hang_s
        self._openers: dict[str, DeadlineThread] = {}
        self._primary = PrimarySensors(host.nodename, primary)
        self._plausibility = Plausibility()
        self._layouts: tuple[tuple[str, Layout], ...] = ()
        self._primary_keys: frozenset[Key] = frozenset()
        self._verdicts: tuple[Verdict, ...] = ()
        self._threads: dict[str, FamilyThread] = {}
        self._reading_here: dict[Callable[[], None], int] = {}
        """For each thread that reads for its own scrape: the function that makes another thread answer it, and the
        monotonic time at which it began to read. Whoever removes an entry answers the scrape."""
        self._lock = threading.Lock()
        self._stop_event = threading.Event()
        self._logged: set[tuple[str, str]] = set()
        """Family and message of what is logged once only."""
        self._retry: set[str] = set()
        self._claimed: dict[str, frozenset[str]] = {}
        """Family -> the sources that the families before it read when it was opened."""
        self._unopened: dict[str, FamilyScan] = {}
        """Scan of each family that has devices and cannot be opened: all of them are down."""
        self._rediscovery = threading.Thread(target=self._rediscover_forever, name="rediscover", daemon=True)
        self._watcher = threading.Thread(target=self._watch_forever, name="watch", daemon=True)

    @property
    def families(self) -> tuple[str, ...]:
        """Names of the families that are open now."""
        with self._lock:
            return tuple(self._threads)

    def start(self) -> None:
        """Open the families that are present and start reading.

        Raises:
            ConfigError: A family with ``enabled: true`` cannot be opened.
        """
        try:
            for family in self._wanted_families():
                self._open(family, first=True)
            self._settle_estimate(first=True)
        except ConfigError:
            self.stop()
            raise
        if not self._threads:
            logger.warning("no sensor found; run 'joulewatch-exporter check' for the reasons")
        if self._rediscover_s > 0:
            self._rediscovery.start()
        self._watcher.start()

    def stop(self) -> None:
        """End all threads, waiting 0.3 s at most; threads that hang are abandoned."""
        self._stop_event.set()
        with self._lock:
            threads = list(self._threads.values())
        for family_thread in threads:
            family_thread.stop()
        end_ns = time.monotonic_ns() + round(_STOP_TIMEOUT_S * NS_PER_S)
        for family_thread in threads:
            family_thread.join(max((end_ns - time.monotonic_ns()) / NS_PER_S, 0.0))
        for thread in (self._rediscovery, self._watcher):
            if thread.is_alive():
                thread.join(max((end_ns - time.monotonic_ns()) / NS_PER_S, 0.0))
        for opener in self._openers.values():
            opener.close()

    def settle(self, timeout_s: float) -> None:
        """Wait until every device has answered or failed once, including those that are read in the background."""
        end_s = time.monotonic() + timeout_s
        with self._lock:
            threads = list(self._threads.values())
        for thread in threads:
            thread.family.collector.settle(max(end_s - time.monotonic(), 0.0))

    def save(self, state: SavedState) -> SavedState:
        """Return the state with what the open families have read."""
        with self._lock:
            families = [thread.family for thread in self._threads.values()]
        errors = {
            (family.name, device, reason): count
            for family in families
            for device, reason, count in family.down().errors
        }
        return state.merged([item for family in families for item in family.save()], errors)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Results of the last check whether sensors agree with each other."""
        return self._verdicts

    @property
    def primary(self) -> frozenset[Key]:
        """The primary node sensor of each host; the same object while it does not change."""
        with self._lock:
            layouts = tuple([(name, thread.family.layout) for name, thread in self._threads.items()])
            if layouts != self._layouts:
                self._layouts = layouts
                keys = self._primary.choose(layouts)
                if keys != self._primary_keys:
                    self._primary_keys = keys
            return self._primary_keys

    def latest(self) -> tuple[FamilyScan, ...]:
        """Return the last scan of each family, without reading a device."""
        with self._lock:
            threads = list(self._threads.values())
        return tuple(scan for thread in threads if (scan := thread.latest) is not None)

    def fresh(
        self,
        timeout_s: float,
        only: Collection[str] | None = None,
        *,
        is_impatient: bool = False,
        take_over: Callable[[], None] | None = None,
    ) -> tuple[FamilyScan, ...]:
        """Read all families now, slow ones at the same time.

        Args:
            timeout_s: A family that has not answered by then is shown as down.
            only: Names of the families to read; None: all.
            is_impatient: Whether the client chose a time-out shorter than the exporter's own: a family that exceeds it
                is shown without values, but has not failed; only the device that is being read is down.
            take_over: Makes another thread do all that this thread has to do, because it hangs. Then the call raises
                `AbandonedError` when it ends, and the thread must end too. None: this thread reads no sensor.

        Returns:
            One scan per family that is open or has devices that cannot be opened, in the order of the families.

        Raises:
            AbandonedError: Another thread has taken over.
        """
        with self._lock:
            threads = [thread for name, thread in self._threads.items() if only is None or name in only]
            unopened = {name: scan for name, scan in self._unopened.items() if only is None or name in only}
        deadline_ns = time.monotonic_ns() + round(timeout_s * NS_PER_S)
        quick: list[FamilyThread] = []
        done: dict[FamilyThread, FamilyScan] = {}
        if take_over is not None and timeout_s >= LEAST_PATIENCE_S:
            quick = [thread for thread in threads if thread.is_quick]
        tickets = {thread: thread.request() for thread in threads if thread not in quick}
        if take_over is not None and quick:
            done = self._read_here(quick, take_over)
        tickets |= {thread: thread.request() for thread in quick if thread not in done}
        scans = [
            done[thread]
            if thread in done
            else thread.wait(tickets[thread], deadline_ns, timeout_s, is_impatient=is_impatient)
            for thread in threads
        ]
        if unopened:
            by_name = unopened | {scan.collector: scan for scan in scans}
            scans = [by_name[family.name] for family in self._families if family.name in by_name]
        return tuple(scans)

    def _read_here(
        self, threads: Sequence[FamilyThread], take_over: Callable[[], None]
    ) -> dict[FamilyThread, FamilyScan]:
        """Read families on this thread, except those that other threads are reading; see ``fresh``."""
        done: dict[FamilyThread, FamilyScan] = {}
        self._reading_here[take_over] = time.monotonic_ns()
        try:
            for thread in threads:
                if take_over not in self._reading_here:
                    break  # another thread has taken over
                scan = thread.read_here()
                if scan is not None:
                    done[thread] = scan
        except AbandonedError:
            pass  # a device hung: the families' own threads read the others
        finally:
            if self._reading_here.pop(take_over, None) is None:
                raise AbandonedError
        return done

    def edge(self, timeout_s: float) -> tuple[FamilyEdge, ...]:
        """Read all families now, at the same time; those whose counters have steps wait for them.

        Args:
            timeout_s: A family that has not answered by then is shown as down.
        """
        with self._lock:
            threads = list(self._threads.values())
        deadline_ns = time.monotonic_ns() + round(timeout_s * NS_PER_S)
        tickets = [(thread, thread.request_edge()) for thread in threads]
        return tuple(thread.wait_edge(ticket, deadline_ns, timeout_s) for thread, ticket in tickets)

    def stuck(self, now_ns: int) -> tuple[str, ...]:
        """Return the names of the families whose scans have stopped.

        Args:
            now_ns: Monotonic time.
        """
        with self._lock:
            return tuple(name for name, thread in self._threads.items() if thread.is_stuck(now_ns))

    # -- opening -----------------------------------------------------------------------------------

    def _setting(self, name: str) -> FamilySettings:
        return self._settings.get(name, FamilySettings())

    def _wanted_families(self) -> list[type[Collector]]:
        """Return all families except disabled ones and an estimate that is ``auto``."""
        return [
            family
            for family in self._families
            if (enabled := self._setting(family.name).enabled) is not False
            and not (family.name == ESTIMATE_FAMILY and enabled == "auto")
        ]

    def _open(self, family: type[Collector], *, first: bool) -> bool:
        """Open or reopen a family; return whether it is open now."""
        setting = self._setting(family.name)
        options = setting.options if setting.options is not None else family.Options()
        claimed = self._claimed_before(family)
        try:
            collector = self._open_collector(family, options, claimed)
        except (SensorAbsentError, SensorDeniedError, SensorTimeoutError) as error:
            if first and setting.enabled is True:
                raise ConfigError(
                    f"collector {family.name} is enabled but {error.reason}: {error}. "
                    f"Fix that, or set collectors.{family.name}.enabled to auto"
                ) from error
            level = logging.INFO if isinstance(error, SensorAbsentError) else logging.WARNING
            self._log_once(level, family.name, str(error))
            self._retry.add(family.name)
            if not isinstance(error, SensorTimeoutError):
                self._end_superseded(family.name, claimed)
            with self._lock:
                self._unopened.pop(family.name, None)
                if error.devices and family.name not in self._threads:
                    self._unopened[family.name] = unreadable(family.name, error.devices, error.reason)
            return False
        except ConfigError as error:
            if first:
                raise
            self._log_once(logging.ERROR, family.name, str(error))
            self._retry.add(family.name)
            return False
        except Exception:
            if (family.name, "broken") not in self._logged:
                self._logged.add((family.name, "broken"))
                logger.exception("%s: opening failed", family.name)
            self._retry.add(family.name)
            return False
        self._note(family.name, collector.findings)
        self._claimed[family.name] = claimed
        with self._lock:
            thread = self._threads.get(family.name)
        if thread is not None:
            before = thread.sources
            thread.hand_over(collector)
            if thread.sources != before:
                self._retry.update(self._later_families(family))
            return True
        self._retry.update(self._later_families(family))
        timing = collector.timing
        poll_s = timing.poll_s if setting.poll_s is None else setting.poll_s
        if poll_s > timing.poll_s:
            self._log_once(
                logging.WARNING,
                family.name,
                f"poll_seconds {poll_s:g} is longer than the {timing.poll_s:g} s that its sensors need: if a counter "
                "wraps between two reads, or power readings are too far apart, that time counts as unmeasured",
            )
        thread = FamilyThread(
            Family(collector, poll_s=poll_s, saved=self._saved),
            poll_s=poll_s,
            read_on_scrape=timing.read_on_scrape,
        )
        sensors = count_of(len(collector.sensors), "sensor")
        logger.info("%s: %s, read every %g s", family.name, sensors, poll_s)
        with self._lock:
            self._unopened.pop(family.name, None)
            threads = {**self._threads, family.name: thread}
            self._threads = {f.name: threads[f.name] for f in self._families if f.name in threads}
        thread.start()
        return True

    def _end_superseded(self, name: str, claimed: frozenset[str]) -> None:
        """End a family that can no longer be opened, because all its sensors are read by families before it now."""
        with self._lock:
            thread = self._threads.get(name)
            if thread is None or claimed <= self._claimed[name]:
                return
            scan = thread.latest
            if scan is None or not {OK, SensorAsleepError.reason}.intersection(scan.states):
                return  # its devices are gone, which must stay visible
            self._threads = {other: kept for other, kept in self._threads.items() if kept is not thread}
        logger.info("%s: ends, because other families read its sensors now", name)
        thread.stop()

    def _open_collector(self, family: type[Collector], options: Any, claimed: frozenset[str]) -> Collector:
        """Open a family on a thread that can be abandoned, because probing for devices can hang, like reading."""
        host = dataclasses.replace(self._host, claimed=claimed)
        opener = self._openers.setdefault(family.name, DeadlineThread(f"open-{family.name}"))
        try:
            return opener.call(lambda: family.open(host, options), OPEN_TIMEOUT_S, discard=lambda late: late.close())
        except SensorTimeoutError as error:
            if path := path_read_by(opener.hung_thread):
                raise SensorTimeoutError(f"{error}: the read of {path} hangs") from error
            raise

    def _claimed_before(self, family: type[Collector]) -> frozenset[str]:
        """Return the sources that families before this one read."""
        before = {other.name for other in self._families[: self._families.index(family)]}
        with self._lock:
            threads = [thread for name, thread in self._threads.items() if name in before]
        return frozenset().union(*(thread.sources for thread in threads))

    def _later_families(self, family: type[Collector]) -> set[str]:
        """Return open families after this one: they may read its sources, so they must be reopened."""
        later = {other.name for other in self._families[self._families.index(family) + 1 :]}
        with self._lock:
            return {
                name
                for name, thread in self._threads.items()
                if name in later and not thread.family.manages_devices and name != ESTIMATE_FAMILY
            }

    def _note(self, name: str, findings: Sequence[Finding]) -> None:
        self._retry.discard(name)
        for finding in findings:
            if finding.status in ("denied", "broken"):
                # It may be fixed while the exporter runs.
                self._retry.add(name)
                fix = f"; fix: {finding.cure}" if finding.cure else ""
                self._log_once(logging.WARNING, name, f"{finding.subject}: {finding.status}: {finding.text}{fix}")

    def _log_once(self, level: int, name: str, text: str) -> None:
        if (name, text) not in self._logged:
            self._logged.add((name, text))
            logger.log(level, "%s: %s", name, text)

    def _settle_estimate(self, *, first: bool = False) -> None:
        """With ``auto``, estimate CPU energy while no sensor measures it, and stop as soon as one does."""
        family = next((family for family in self._families if family.name == ESTIMATE_FAMILY), None)
        if family is None or self._setting(ESTIMATE_FAMILY).enabled != "auto":
            return
        with self._lock:
            measured = any(
                thread.family.measures_cpu for name, thread in self._threads.items() if name != ESTIMATE_FAMILY
            )
            running = self._threads.get(ESTIMATE_FAMILY)
            if measured and running is not None:
                self._threads = {name: thread for name, thread in self._threads.items() if thread is not running}
        if not measured and running is None:
            if self._open(family, first=first):
                logger.warning("no CPU sensor is measured: CPU energy is estimated and labelled so")
        elif measured and running is not None:
            logger.info("a CPU sensor is available now: the estimate of CPU energy ends")
            running.stop()

    # -- probing again -----------------------------------------------------------------------------

    def rediscover(self) -> None:
        """Probe again for families and devices that are missing."""
        for family in self._wanted_families():
            with self._lock:
                thread = self._threads.get(family.name)
            if thread is None or (
                not thread.family.manages_devices
                and (thread.family.vanished or family.name in self._retry or thread.family.collector.outdated)
            ):
                self._open(family, first=False)
        self._settle_estimate()

    def _rediscover_forever(self) -> None:
        while not self._stop_event.wait(self._rediscover_s):
            try:
                self.rediscover()
            except Exception:
                logger.exception("probing for sensors failed")

    # -- watching ----------------------------------------------------------------------------------

    def _relieve(self, now_ns: int) -> None:
        """Let other threads answer the scrapes whose threads have been reading for too long."""
        for take_over, since_ns in tuple(self._reading_here.items()):
            if now_ns - since_ns > RELIEF_S * NS_PER_S and self._reading_here.pop(take_over, None) is not None:
                take_over()

    def _watch_forever(self) -> None:
        next_check_s = time.monotonic() + CHECK_S
        while not self._stop_event.wait(WATCH_S):
            with self._lock:
                threads = list(self._threads.values())
            try:
                self._relieve(time.monotonic_ns())
                for thread in threads:
                    thread.watch(self._hang_s)
                if time.monotonic() >= next_check_s:
                    next_check_s += CHECK_S
                    scans = [scan for thread in threads if (scan := thread.latest) is not None]
                    self._verdicts = self._plausibility.check(scans)
            except Exception:
                logger.exception("watching the sensors failed")
