"""Choose the exporter of a meter: this is the only place that makes the choice.

In this order: the given URLs; ``$JOULEWATCH_EXPORTER``; the edge socket of this host; port 10717 of this host; a child
process, as in the local mode of ``joulewatch profile``. A given exporter must answer. The others are tried in turn.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from joulewatch_exporter.catalog import DEFAULT_PORT
from joulewatch_harness.errors import ConfigError, ExporterUnreachableError
from joulewatch_harness.records import ExporterRecord, SensorRecord
from joulewatch_harness.runner.local import LocalExporter
from joulewatch_harness.runner.preflight import check_exporters

logger = logging.getLogger(__name__)

ENVIRONMENT: Final = "JOULEWATCH_EXPORTER"
"""Environment variable with the URL of an exporter, or several separated by commas."""
SOCKET: Final = Path("/run/joulewatch/edge.sock")


class Connection(NamedTuple):
    """The exporters of a meter, checked."""

    urls: tuple[str, ...]
    exporters: tuple[ExporterRecord, ...]
    sensors: tuple[SensorRecord, ...]


def environment_urls() -> tuple[str, ...]:
    """Return the URLs in ``$JOULEWATCH_EXPORTER``; empty if there are none."""
    return tuple(url.strip() for url in os.environ.get(ENVIRONMENT, "").split(",") if url.strip())


def candidates() -> tuple[str, ...]:
    """Return the addresses at which an exporter of this host is expected."""
    socket = (f"unix:{SOCKET}",) if SOCKET.exists() else ()
    return (*socket, f"http://127.0.0.1:{DEFAULT_PORT}")


def connect(
    urls: Sequence[str], folder: Path, stack: contextlib.ExitStack, *, exporter_flags: Sequence[str] = ()
) -> Connection:
    """Choose the exporters and read their sensors.

    Args:
        urls: Exporters that the user has given; empty: the environment's, else the first that answers on this host.
        folder: Folder for the log of an exporter that is started.
        stack: Stops that exporter.
        exporter_flags: Its flags; with flags it is started without trying others.

    Raises:
        ConfigError: A URL is not valid, or an exporter is given twice.
        ExporterUnreachableError: A given exporter does not answer, or no exporter has an energy sensor.
    """
    if urls:
        return _check(tuple(urls))
    if named := environment_urls():
        try:
            return _check(named)
        except ExporterUnreachableError as error:
            raise ExporterUnreachableError(f"${ENVIRONMENT}: {error}") from error
        except ConfigError as error:
            raise ConfigError(f"${ENVIRONMENT}: {error}") from error
    for url in () if exporter_flags else candidates():
        try:
            return _check((url,))
        except (ConfigError, ExporterUnreachableError) as error:
            logger.info("%s", error)
    local = stack.enter_context(LocalExporter(folder, exporter_flags))
    return _check((local.url,))


def _check(urls: tuple[str, ...]) -> Connection:
    exporters, sensors = check_exporters([(url, None) for url in urls], counters_only=True)
    return Connection(urls, exporters, sensors)
