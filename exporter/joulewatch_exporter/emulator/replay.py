"""Recorded power that a scenario replays: the CSV files are read once and written into the scenario."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, Final

from joulewatch_exporter.config.strict import read_bytes
from joulewatch_exporter.errors import ConfigError

_MOST_BYTES: Final = 1 << 28
"""Longest recording: a day of samples at 100 Hz."""


def with_points(value: Any, source: str, folder: Path, where: str = "") -> Any:
    """Return part of a scenario with the ``file`` of each replay replaced by its ``points``.

    The result needs no other file, so ``scenario.json`` can be read anywhere.

    Args:
        value: The scenario or a part of it.
        source: The scenario's file, for messages.
        folder: Base of relative paths.
        where: The key that contains ``value``, for messages.

    Raises:
        ConfigError: A file cannot be read or has no power in it.
    """
    if isinstance(value, list):
        return [with_points(member, source, folder, f"{where}[{index}]") for index, member in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if value.get("kind") == "replay" and isinstance(value.get("file"), str) and "points" not in value:
        points = _read(folder / value["file"], f"{source}: {where}.file")
        return {"points" if key == "file" else key: points if key == "file" else value[key] for key in value}
    return {
        key: with_points(member, source, folder, f"{where}.{key}" if where else str(key))
        for key, member in value.items()
    }


def _read(path: Path, where: str) -> list[list[float]]:
    """Read a CSV file with the columns time_s and watts; the time of its first row becomes 0."""
    try:
        text = read_bytes(path, _MOST_BYTES).decode()
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{where}: {path}: {getattr(error, 'strerror', None) or error}") from error
    if not rows or not {"time_s", "watts"} <= set(rows[0]):
        raise ConfigError(f"{where}: {path}: must have the columns time_s and watts, and at least one row")
    points = []
    for line, row in enumerate(rows, start=2):
        try:
            points.append([float(row["time_s"]), float(row["watts"])])
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: {path}: line {line}: {error}") from error
    start_s = points[0][0]
    return [[time_s - start_s, watts] for time_s, watts in points]
