"""Measure the energy of your own code, with its uncertainty.

::

    import joulewatch

    with joulewatch.measure("decode", inferences=128) as window:
        model(batch)
    print(window.joules, window.uncertainty, window.per_device)

Everything is imported when it is first used, so that ``import joulewatch`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from joulewatch_harness import __version__

if TYPE_CHECKING:
    from joulewatch._profile import profile
    from joulewatch_harness.errors import (
        ConfigError,
        ExporterUnreachableError,
        FindingsError,
        JoulewatchError,
        QueryError,
        RecordError,
    )
    from joulewatch_harness.metering.decorator import measured
    from joulewatch_harness.metering.default import measure
    from joulewatch_harness.metering.meter import Meter
    from joulewatch_harness.metering.runs import Result, Run, load
    from joulewatch_harness.metering.values import Energy
    from joulewatch_harness.metering.window import Measurement

__all__ = [
    "ConfigError",
    "Energy",
    "ExporterUnreachableError",
    "FindingsError",
    "JoulewatchError",
    "Measurement",
    "Meter",
    "QueryError",
    "RecordError",
    "Result",
    "Run",
    "__version__",
    "load",
    "measure",
    "measured",
    "profile",
]

_ERRORS = "joulewatch_harness.errors"
_METERING = "joulewatch_harness.metering"
_MODULES = {
    "ConfigError": _ERRORS,
    "Energy": f"{_METERING}.values",
    "ExporterUnreachableError": _ERRORS,
    "FindingsError": _ERRORS,
    "JoulewatchError": _ERRORS,
    "Measurement": f"{_METERING}.window",
    "Meter": f"{_METERING}.meter",
    "QueryError": _ERRORS,
    "RecordError": _ERRORS,
    "Result": f"{_METERING}.runs",
    "Run": f"{_METERING}.runs",
    "load": f"{_METERING}.runs",
    "measure": f"{_METERING}.default",
    "measured": f"{_METERING}.decorator",
    "profile": "joulewatch._profile",
}
"""Name -> the module that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'joulewatch' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
