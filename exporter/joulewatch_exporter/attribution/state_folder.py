"""The folder in which the exporter keeps the idle power and the key of digests."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

DEFAULT_FOLDER: Final = "/var/lib/joulewatch"


def state_path(environment: Mapping[str, str]) -> Path:
    """Return the state folder that systemd made (``STATE_DIRECTORY``), or ``/var/lib/joulewatch``."""
    return Path(environment.get("STATE_DIRECTORY", "").partition(":")[0] or DEFAULT_FOLDER)


def state_folder(environment: Mapping[str, str]) -> Path | None:
    """Return the state folder; None if it does not exist or may not be written."""
    folder = state_path(environment)
    return folder if folder.is_dir() and os.access(folder, os.W_OK) else None
