"""The file with the measured idle power, in the state folder of the exporter."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from joulewatch_exporter.attribution.idle import MeasuredIdle
from joulewatch_exporter.config import strict
from joulewatch_exporter.errors import ConfigError

logger = logging.getLogger(__name__)

FORMAT: Final = 1
NAME: Final = "idle.json"


@dataclasses.dataclass(frozen=True, slots=True)
class _File:
    joulewatch_idle: int
    devices: tuple[MeasuredIdle, ...] = ()


def load(folder: Path) -> tuple[MeasuredIdle, ...]:
    """Read the file; nothing if it does not exist or cannot be used, which is logged."""
    path = folder / NAME
    try:
        data = json.loads(path.read_bytes())
        if not isinstance(data, dict) or data.get("joulewatch_idle") != FORMAT:
            raise ConfigError(f"{path}: not a file of this version with idle powers")
        return strict.build(_File, data, str(path)).devices
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        logger.warning("the measured idle power is not used: %s", error)
        return ()


def store(folder: Path, devices: Sequence[MeasuredIdle]) -> None:
    """Replace the file in one step; a failure is logged."""
    path = folder / NAME
    temporary = folder / f".{NAME}.{os.getpid()}.tmp"
    try:
        try:
            text = json.dumps(dataclasses.asdict(_File(FORMAT, tuple(devices))), indent=1)
            temporary.write_text(f"{text}\n", "utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("the measured idle power cannot be kept: %s: %s", path, error.strerror or error)
