"""Wait for work that was handed to a GPU: it continues after the call that started it has returned.

A library is used only if the program has loaded it: otherwise there is no work to wait for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from joulewatch_harness.names import refuse_unknown


def _torch(torch: Any) -> None:
    cuda = torch.cuda
    if cuda.is_available() and cuda.is_initialized():
        # Synchronising a device that this program does not use would create a context on it.
        for device in range(cuda.device_count()):
            if device == cuda.current_device() or cuda.memory_reserved(device) > 0:
                cuda.synchronize(device)
    if (xpu := getattr(torch, "xpu", None)) is not None and xpu.is_available() and xpu.is_initialized():
        xpu.synchronize()
    if (mps := getattr(torch, "mps", None)) is not None and torch.backends.mps.is_available():
        mps.synchronize()


def _jax(jax: Any) -> None:
    # Each device runs its computations in order, so the last one ends after all others.
    for device in jax.local_devices():
        (jax.device_put(0.0, device) + 0).block_until_ready()


def _cupy(cupy: Any) -> None:
    cupy.cuda.runtime.deviceSynchronize()


SYNCHRONISERS: Final[Mapping[str, Callable[[Any], None]]] = {"torch": _torch, "jax": _jax, "cupy": _cupy}


def check_sync(name: str) -> None:
    """Raise ConfigError if ``name`` is not a library that can be synchronised; empty: none."""
    if name:
        refuse_unknown("sync", "library", [name], SYNCHRONISERS)


def synchronise(name: str) -> None:
    """Wait until the devices that a library uses have ended their work; do nothing without a name."""
    module = sys.modules.get(name) if name else None
    if module is not None:
        SYNCHRONISERS[name](module)
