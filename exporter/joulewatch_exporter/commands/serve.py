"""``joulewatch-exporter`` without a command: serve metrics until SIGTERM, SIGINT or SIGHUP."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from joulewatch_exporter.commands.service_manager import ServiceManager
from joulewatch_exporter.config.calibration import load_calibrations
from joulewatch_exporter.config.config import Config, ExporterSettings
from joulewatch_exporter.errors import EXIT_DONE, ConfigError
from joulewatch_exporter.model import Collector, Host

if TYPE_CHECKING:
    from joulewatch_exporter.attribution.model import UsageSource
    from joulewatch_exporter.attribution.shares import Shares
    from joulewatch_exporter.sampling.scan import FamilyScan
    from joulewatch_exporter.server.connection import Answer
    from joulewatch_exporter.server.edge_socket import EdgeSocket

logger = logging.getLogger(__name__)


MAX_FILES: Final = 16_384

SWITCH_INTERVAL_S: Final = 0.0005
"""A scrape waits for its families' threads; with Python's default of 5 ms, each would add to the latency."""


def allow_many_files() -> None:
    """Raise the limit of open files: sensor files stay open between reads, and the usual soft limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            # A service manager may forbid it. Then its own LimitNOFILE applies, and few machines need more.
            return


_M_ARENA_MAX: Final = -8
_ARENAS: Final = 2


def use_few_arenas() -> None:
    """Let all threads share two arenas of malloc.

    By default glibc has eight for each core. Threads of connections come and go, so all of them get fragmented: 10 MiB
    with 300 connections on two cores, and more from hour to hour.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc
        mallopt(_M_ARENA_MAX, _ARENAS)


class _Stopped(BaseException):
    """A signal arrived during start-up. Not an Exception, because logging and collectors catch those."""


@contextmanager
def _stop_signals() -> Iterator[tuple[int, Callable[[], None]]]:
    """Turn SIGTERM, SIGINT and SIGHUP into a file descriptor that becomes readable.

    Yields the descriptor and a function to call when start-up is complete; until then, the signals raise `_Stopped`.
    The descriptor is Python's wakeup pipe, which the signal itself writes to. A handler in Python would run only when
    the main thread next executes Python, so a signal just before ``select`` would not end it.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    started = False

    def stop(number: int, frame: FrameType | None) -> None:
        if not started:
            raise _Stopped

    def begin_waiting() -> None:
        nonlocal started
        started = True

    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        numbers.append(signal.SIGHUP)
    old = {number: signal.signal(number, stop) for number in numbers}
    old_wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader, begin_waiting
    finally:
        signal.set_wakeup_fd(old_wakeup)
        for number, handler in old.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def serve(
    families: Sequence[type[Collector]],
    host: Host,
    config: Config,
    *,
    sources: Sequence[type[UsageSource]] = (),
    exit_on_stdin_close: bool,
) -> int:
    """Serve until a signal arrives, or stdin is closed, and return the exit code."""
    from joulewatch_exporter.attribution.attributor import Attributor
    from joulewatch_exporter.attribution.state_folder import state_folder
    from joulewatch_exporter.sampling.sampler import Sampler
    from joulewatch_exporter.server.access import Access
    from joulewatch_exporter.server.edge import render_edge
    from joulewatch_exporter.server.exposition import CONTENT_TYPES, Exposition, choose_format
    from joulewatch_exporter.server.min_age import ATTRIBUTION, AgedScans, chosen
    from joulewatch_exporter.server.server import WebServer

    settings = config.exporter
    sampler = Sampler(
        families,
        host,
        config.collectors,
        rediscover_s=settings.rediscover_seconds,
        hang_s=settings.read_timeout_seconds / 2,
        primary=settings.primary_node_sensor,
    )
    is_shared = config.attribution.enabled is not False
    attributor = Attributor(
        sources if is_shared else (),
        host,
        config.attribution,
        latest=sampler.latest,
        state_folder=state_folder(os.environ),
    )
    start_s = time.time()
    exposition = Exposition(
        emulated=host.emulated,
        start_s=start_s,
        nodename=host.nodename,
        self_metrics=settings.exporter_metrics,
        calibrations=load_calibrations(settings.calibration_files, host.nodename),
        refused=lambda: {} if server is None else server.refused,
    )

    def fresh(
        timeout_s: float,
        only: frozenset[str] | None,
        *,
        is_impatient: bool = False,
        take_over: Callable[[], None] | None = None,
    ) -> tuple[tuple[FamilyScan, ...], Shares | None]:
        wants_shares = attributor.is_open and (only is None or ATTRIBUTION in only)
        started_s = time.monotonic()
        scans = sampler.fresh(timeout_s, None if wants_shares else only, is_impatient=is_impatient, take_over=take_over)
        if not wants_shares:
            return scans, None
        left_s = timeout_s - (time.monotonic() - started_s)
        return chosen(scans, attributor.look(scans, left_s), only)

    def render(answer: tuple[Sequence[FamilyScan], Shares | None], accept: str | None) -> tuple[bytes, str]:
        format_ = choose_format(accept)
        body = exposition.render(answer[0], format_, sampler.verdicts, sampler.primary, answer[1])
        return body, CONTENT_TYPES[format_]

    def scrape(
        *, accept: str | None, only: frozenset[str] | None, timeout_s: float, take_over: Callable[[], None] | None
    ) -> tuple[bytes, str]:
        is_impatient = timeout_s < settings.read_timeout_seconds
        return render(fresh(timeout_s, only, is_impatient=is_impatient, take_over=take_over), accept)

    aged = AgedScans(lambda: fresh(settings.read_timeout_seconds, None), settings.web_min_age_seconds)

    def aged_scrape(
        *, accept: str | None, only: frozenset[str] | None, timeout_s: float, take_over: Callable[[], None] | None
    ) -> tuple[bytes, str]:
        # These scans are for all such clients, so no thread of a client makes them itself.
        return render(aged.get(only), accept)

    def edge() -> bytes:
        return render_edge(sampler.edge(settings.read_timeout_seconds), start_s=start_s)

    # With --exit-on-stdin-close this is the child of another program, to which the service manager's socket belongs.
    manager = ServiceManager() if exit_on_stdin_close else ServiceManager.from_environment(os.environ)

    def prove_alive() -> None:
        if stuck := sampler.stuck(time.monotonic_ns()):
            logger.error("reading has stopped: %s; the watchdog will end the exporter", ", ".join(stuck))
        else:
            manager.send("WATCHDOG=1")

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    server: WebServer | None = None
    edge_socket: EdgeSocket | None = None
    with _stop_signals() as (stop_reader, begin_waiting):
        try:
            # Addresses first: a second exporter, started by mistake, must not touch the sensors.
            server = WebServer(
                settings.listen,
                scrape,
                collectors=[*(family.name for family in families), *((ATTRIBUTION,) if is_shared and sources else ())],
                telemetry_path=settings.telemetry_path,
                max_requests=settings.max_requests,
                read_timeout_s=settings.read_timeout_seconds,
                access=Access(settings.web_config_file),
                open_scrape=aged_scrape if settings.web_min_age_seconds else None,
            )
            edge_socket = _open_edge_socket(settings, edge, server.answer_trusted)
            if edge_socket is not None:
                server.announce(edge_socket.path)
            sampler.start()
            attributor.start()
            begin_waiting()
            server.start()
            if edge_socket is not None:
                edge_socket.start()
                logger.info("edges are read at unix:%s", edge_socket.path)
            for url in server.urls:
                logger.info("listening on %s", url)
            # Objects that live as long as the process need not be traversed by each garbage collection.
            gc.collect()
            gc.freeze()
            if manager.is_present:
                sampler.fresh(settings.read_timeout_seconds)
                manager.send("READY=1")
            _wait_for_end(stop_reader, exit_on_stdin_close, prove_alive, manager.period_s)
        except _Stopped:
            pass
        finally:
            manager.send("STOPPING=1")
            if edge_socket is not None:
                edge_socket.stop()
            if server is not None:
                server.stop()
            attributor.stop()
            sampler.stop()
    logger.info("ended")
    return EXIT_DONE


def _open_edge_socket(settings: ExporterSettings, edge: Callable[[], bytes], answer: Answer) -> EdgeSocket | None:
    """Open the socket for edges; None if there is none.

    Raises:
        ConfigError: The path or the group of the configuration cannot be used.
    """
    from joulewatch_exporter.server.edge_socket import EdgeSocket, default_path

    path = settings.edge_socket
    if path is not None:
        is_off = str(path) == "none"
        return None if is_off else EdgeSocket(path, edge, answer, group=settings.edge_socket_group)
    path = default_path(os.environ)
    if path is None:
        return None
    try:
        return EdgeSocket(path, edge, answer, group=settings.edge_socket_group)
    except ConfigError as error:
        # Another exporter of this machine, with another port, may have it.
        logger.warning("%s; edges are read over HTTP", error)
        return None


def _wait_for_end(
    stop_reader: int, exit_on_stdin_close: bool, prove_alive: Callable[[], None], period_s: float | None
) -> None:
    """Wait for a signal or the end of stdin; call ``prove_alive`` every ``period_s`` (None: never)."""
    watched: list[Any] = [stop_reader]
    if exit_on_stdin_close:
        watched.append(0)
    while True:
        readable, _, _ = select.select(watched, [], [], period_s)
        if period_s is not None:
            prove_alive()
        if stop_reader in readable:
            return
        if 0 in readable:
            try:
                if not os.read(0, 4096):
                    return
            except OSError:
                return
