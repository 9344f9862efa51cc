"""The answer to ``/conditions``: counters and settings of the GPUs, read on request, as JSON (see README.md)."""

from __future__ import annotations

import json
from typing import Final

from joulewatch_exporter.collectors.nvml.shared import shared_nvml

CONDITIONS_PATH: Final = "/conditions"
FORMAT: Final = 1


def render_conditions() -> bytes:
    """Read the GPUs and return the body of the answer."""
    nvml = shared_nvml()
    devices = [] if nvml is None else [one._asdict() for one in nvml.read_conditions()]
    return json.dumps({"joulewatch_conditions": FORMAT, "devices": devices}, separators=(",", ":")).encode()
