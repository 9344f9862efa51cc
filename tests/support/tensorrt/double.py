"""``tensorrt`` and ``cuda`` are the doubles of ``site``, for as long as a test wants them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SITE = HERE / "site"
VERSIONS = ("10.13.3.9", "11.4.0.106")


@contextmanager
def fake_tensorrt(version: str = VERSIONS[-1]) -> Iterator[Any]:
    """A machine with one GPU and this TensorRT; gives ``cuda.gpu.machine``. What was imported is forgotten after."""
    before = _forget()
    sys.path.insert(0, str(SITE))
    importlib.invalidate_caches()
    try:
        gpu = importlib.import_module("cuda.gpu")
        gpu.machine = gpu.Machine(version)
        importlib.import_module("tensorrt")
        yield gpu.machine
    finally:
        sys.path.remove(str(SITE))
        _forget()
        sys.modules.update(before)


def _forget() -> dict[str, Any]:
    names = [name for name in sys.modules if name.partition(".")[0] in ("cuda", "tensorrt")]
    return {name: sys.modules.pop(name) for name in names}
