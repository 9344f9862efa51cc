"""Client of an exporter's page ``/conditions`` (exporter/README.md): counters and settings of its GPUs."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Final, NamedTuple

from joulewatch_harness.clients.exporter import ExporterClient
from joulewatch_harness.errors import ExporterUnreachableError

logger = logging.getLogger(__name__)

PATH: Final = "/conditions"
FORMAT: Final = 1


class DeviceConditions(NamedTuple):
    """Conditions under which a device runs."""

    counters: Mapping[str, float]
    settings: Mapping[str, float]


class ConditionsClient:
    """Reads the conditions of the devices of one exporter; without an answer they stay unknown.

    Args:
        exporter: Its client; no other thread uses it.
    """

    def __init__(self, exporter: ExporterClient) -> None:
        self._exporter = exporter
        self._was_reported = False

    def read(self) -> dict[str, DeviceConditions]:
        """Return the devices and their conditions now."""
        try:
            return _parse(self._exporter.fetch(PATH).body)
        except (ExporterUnreachableError, ValueError) as error:
            # An exporter of an earlier version answers with 404.
            if not self._was_reported:
                logger.info("run conditions of GPUs are not known: %s", error)
            self._was_reported = True
            return {}

    def close(self) -> None:
        """Close the connection; safe to call twice."""
        self._exporter.close()


def _parse(body: bytes) -> dict[str, DeviceConditions]:
    """Parse the body of an answer.

    Raises:
        ValueError: It is not one of a known format.
    """
    try:
        data = json.loads(body)
        if data["joulewatch_conditions"] != FORMAT:
            raise ValueError(f"conditions of format {data['joulewatch_conditions']!r} are not known")
        return {
            str(one["device"]): DeviceConditions(_numbers(one["counters"]), _numbers(one["settings"]))
            for one in data["devices"]
        }
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError) as error:
        raise ValueError(f"not an answer with conditions: {error!r}") from error


def _numbers(values: Mapping[str, float]) -> dict[str, float]:
    numbers = {str(name): float(value) for name, value in values.items()}
    if not all(map(math.isfinite, numbers.values())):
        raise ValueError("not finite")  # a journal with such a number cannot be read
    return numbers
