"""Check everything that a user may have got wrong before the first window: networks, output, exporters, Prometheus."""

from __future__ import annotations

import contextlib
import errno
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from joulewatch_harness.errors import ConfigError, ExporterUnreachableError, StorageError
from joulewatch_harness.plan.plan import Plan
from joulewatch_harness.plan.refresh import has_refresh
from joulewatch_harness.runner.network_checks import check_networks
from joulewatch_harness.runner.other_exporters import check_sources

if TYPE_CHECKING:
    from joulewatch_harness.clients.options import PrometheusOptions
    from joulewatch_harness.network import Network
    from joulewatch_harness.records import Configuration, ExporterRecord, SensorRecord


REFRESH_WAIT_S: Final = 4.0
"""Time for an exporter that has just started to measure the refresh periods of its sensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a run needs, checked."""

    plan: Plan
    run: str
    folder: Path
    prometheus: PrometheusOptions | None
    networks: tuple[tuple[Configuration, Network], ...]
    remarks: tuple[str, ...]
    """What a user should know about the networks before the run."""
    targets: tuple[tuple[str, str | None], ...]
    """URL and name of each exporter."""
    exporters: tuple[ExporterRecord, ...]
    sensors: tuple[SensorRecord, ...]
    local_exporter: int | None = None
    """Process id of the exporter that the run started."""


def prepare(plan: Plan, prometheus: PrometheusOptions | None, stack: contextlib.ExitStack) -> Prepared:
    from joulewatch_harness.analysis.sources.mapping import OWN
    from joulewatch_harness.runner.local import LocalExporter
    from joulewatch_harness.storage.journal import new_run_id

    _check_plan_sources(plan, prometheus)
    if prometheus is not None:
        from joulewatch_exporter.catalog import RUN_STATUS
        from joulewatch_harness.clients.prometheus import PING_RETRY_S, PrometheusClient

        with PrometheusClient(prometheus) as client:
            client.ping()
            # The kind of query that the run and its analysis will need: a gateway may pass the other one only.
            client.query(f"{RUN_STATUS.name}[1s]", time.time(), retry_s=PING_RETRY_S)
    plan, networks, remarks = check_networks(plan, stack)
    run_id = new_run_id(time.time())
    folder = Path(plan.output) / run_id
    stack.enter_context(run_folder(folder))
    targets: list[tuple[str, str | None]] = [(item.url, item.name or None) for item in plan.exporters]
    local = None
    if not targets and prometheus is None:
        local = LocalExporter(folder, plan.exporter_flags)
        stack.enter_context(local)
        targets = [(local.url, None)]
    elif not targets and (not plan.sources or OWN in plan.sources):
        from joulewatch_exporter.catalog import DEFAULT_PORT

        targets = [(f"http://127.0.0.1:{DEFAULT_PORT}", None)]
    exporters, sensors = check_exporters(targets)
    if others := [name for name in plan.sources if name != OWN]:
        assert prometheus is not None
        found, more = check_sources(others, prometheus)
        # The machines of the run are those of its own exporters, if it has any.
        exporters, sensors = exporters or found, (*sensors, *more)
    return Prepared(
        plan=plan,
        run=run_id,
        folder=folder,
        prometheus=prometheus,
        networks=networks,
        remarks=remarks,
        targets=tuple(targets),
        exporters=exporters,
        sensors=sensors,
        local_exporter=None if local is None else local.pid,
    )


def _check_plan_sources(plan: Plan, prometheus: PrometheusOptions | None) -> None:
    from joulewatch_harness.analysis.sources.mapping import OWN

    if plan.sources and prometheus is None:
        raise ConfigError("--source needs --prometheus URL")
    if plan.sources and plan.exporters and OWN not in plan.sources:
        raise ConfigError(f"--exporter reads joulewatch's exporter: add --source {OWN}, or leave it out")


@contextlib.contextmanager
def run_folder(folder: Path) -> Iterator[None]:
    """Create the run's directory, and remove it again if it holds no journal at the end."""
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"{folder}: {error.strerror}: free some space, or choose another --output") from error
        raise ConfigError(
            f"output folder {folder.parent}: {error.strerror or error}; choose one with --output"
        ) from error
    try:
        yield
    finally:
        if not (folder / "journal.jsonl").exists():
            shutil.rmtree(folder, ignore_errors=True)


def check_exporters(
    targets: Sequence[tuple[str, str | None]], *, counters_only: bool = False
) -> tuple[tuple[ExporterRecord, ...], tuple[SensorRecord, ...]]:
    """Ask every exporter for its sensors until their refresh periods are known, at most ``REFRESH_WAIT_S``.

    Args:
        targets: URL and name of each exporter.
        counters_only: Wait for the refresh periods of energy counters only; those of gauges take longer.

    Raises:
        ConfigError: An exporter is given twice.
        ExporterUnreachableError: An exporter does not answer, or has no energy sensor.
    """
    from joulewatch_harness.clients.exporter import ExporterClient

    exporters: list[ExporterRecord] = []
    sensors: list[SensorRecord] = []
    deadline_s = time.monotonic() + REFRESH_WAIT_S
    for url, name in targets:
        with ExporterClient(url, name=name) as client:
            record, found = client.describe()
            while any(_is_refresh_pending(sensor, counters_only) for sensor in found) and time.monotonic() < deadline_s:
                time.sleep(0.2)
                record, found = client.describe()
        if not found and client.asleep:
            raise ExporterUnreachableError(
                f"exporter {url} measures no energy now: {', '.join(client.asleep)} asleep (runtime suspend). Keep the "
                "device awake: write 'on' to its power/control in sysfs"
            )
        if not found:
            raise ExporterUnreachableError(
                f"exporter {url} measures no energy: run 'joulewatch-exporter check' on that machine to list its "
                "sensors and what each one needs"
            )
        exporters.append(record)
        sensors += found
    check_distinct(exporters)
    return tuple(exporters), tuple(sensors)


def check_distinct(exporters: Sequence[ExporterRecord]) -> None:
    """Check that no exporter is given twice, under one name or two addresses: its energy would count twice.

    Raises:
        ConfigError: Two exporters have one name, or one identity.
    """
    for number, exporter in enumerate(exporters):
        for other in exporters[:number]:
            if exporter.url == other.url:
                raise ConfigError(f"exporter {exporter.url} is given twice")
            if exporter.name == other.name:
                raise ConfigError(f"two exporters are named {exporter.name!r}: give each one a name in the plan")
            identity = (exporter.nodename, exporter.started_at_s)
            if exporter.started_at_s is not None and identity == (other.nodename, other.started_at_s):
                raise ConfigError(
                    f"{other.url} and {exporter.url} are one exporter (nodename {exporter.nodename}): give it once"
                )


def _is_refresh_pending(sensor: SensorRecord, counters_only: bool) -> bool:
    if counters_only and sensor.reads == "power":
        return False
    return sensor.refresh_s is None and has_refresh(sensor)
