"""The base of the options of all runtimes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from joulewatch_harness import binder


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """Options of a runtime: ``--option KEY=VALUE``, or ``options`` of a configuration in a plan."""

    RUNTIME: ClassVar[str] = ""
    """Name of the runtime, for error messages."""

    any_precision: bool = False
    """Accept a model whose precision differs from the requested one; results report the actual precision."""

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """Return the names of the options."""
        return binder.keys(cls)

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> Self:
        """Convert the options.

        Raises:
            ConfigError: an unknown option, a bad value, or options that contradict each other.
        """
        return binder.bind_options(cls, options, cls.RUNTIME)
