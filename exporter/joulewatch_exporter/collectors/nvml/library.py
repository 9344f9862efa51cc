"""NVML, the library of NVIDIA's driver: found, loaded, called through nvidia-ml-py, its codes made into errors.

Sources: NVIDIA ``nvml.h`` (CUDA 13.3) and the NVML API reference.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from joulewatch_exporter.collectors.base.sysfs import list_names, read_text_or
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Host

SONAME: Final = "libnvidia-ml.so.1"

# Return codes of nvml.h.
_UNINITIALIZED: Final = 1
_INVALID_ARGUMENT: Final = 2
_NOT_SUPPORTED: Final = 3
_NO_PERMISSION: Final = 4
_NOT_FOUND: Final = 6
_DRIVER_NOT_LOADED: Final = 9
_LIBRARY_NOT_FOUND: Final = 12
_FUNCTION_NOT_FOUND: Final = 13
_GPU_IS_LOST: Final = 15
_RESET_REQUIRED: Final = 16
_OPERATING_SYSTEM: Final = 17
_VERSION_MISMATCH: Final = 18
_GPU_NOT_FOUND: Final = 28

UNSUPPORTED: Final = frozenset({_INVALID_ARGUMENT, _NOT_SUPPORTED, _NOT_FOUND, _FUNCTION_NOT_FOUND})
LOST: Final = frozenset({_GPU_IS_LOST, _RESET_REQUIRED, _VERSION_MISMATCH})
_GONE: Final = LOST | {_NOT_FOUND, _GPU_NOT_FOUND}
_DENIED: Final = frozenset({_NO_PERMISSION, _OPERATING_SYSTEM})

DEVICES_CURE: Final = "sudo chmod a+rw /dev/nvidiactl /dev/nvidia[0-9]*"
_PACKAGE_CURE: Final = "pip install 'joulewatch[nvml]'"


class Nvml:
    """nvidia-ml-py's module, with its exceptions turned into the error tree."""

    def __init__(self, module: Any, dev: Path) -> None:
        self.module = module
        self.is_uninitialised = False
        """Whether a call said that NVML is not started: somebody else in this process has shut it down."""
        self._error: type[Exception] = module.NVMLError
        self._dev = dev

    def call(self, name: str, *arguments: Any, subject: str) -> Any:
        """Call a function of NVML.

        Raises:
            SensorError: What NVML's code means for ``subject``.
        """
        try:
            return getattr(self.module, name)(*arguments)
        except self._error as error:
            raise self.sensor_error(int(getattr(error, "value", 999)), subject) from error

    def attempt(self, name: str, *arguments: Any, subject: str) -> tuple[Any, int]:
        """Call a function that not every driver and GPU has: its result and 0, or None and NVML's code.

        Raises:
            SensorError: The GPU is gone, or the driver: that is no matter of this function.
        """
        try:
            return getattr(self.module, name)(*arguments), 0
        except AttributeError:
            return None, _FUNCTION_NOT_FOUND
        except self._error as error:
            code = int(getattr(error, "value", 999))
            if code in LOST:
                raise self.sensor_error(code, subject) from error
            return None, code

    def sensor_error(self, code: int, subject: str) -> SensorError:
        """Say what a return code means for the reading of ``subject``."""
        # Not str(error): for a code that nvidia-ml-py does not know it asks the library, which may hang.
        known: Mapping[int, str] = getattr(self._error, "_errcode_to_string", {})
        text = f"{subject}: {known.get(code, 'unknown code').rstrip('.')} (NVML error {code})"
        if code == _UNINITIALIZED:
            self.is_uninitialised = True
        if code in _DENIED or (code == _DRIVER_NOT_LOADED and self._is_closed_to_us()):
            return SensorDeniedError(
                f"{self._dev}/nvidiactl: {text}; run `{DEVICES_CURE}`, or give the devices to the container or the "
                "systemd unit (docker: --gpus all; systemd: DeviceAllow=/dev/nvidiactl rw)"
            )
        if code == _VERSION_MISMATCH:
            return SensorAbsentError(
                f"{text}: NVIDIA's driver was replaced and does not fit the library that is loaded. Load the new "
                "kernel modules (or reboot), then restart joulewatch-exporter: the old library stays in this process"
            )
        if code == _RESET_REQUIRED:
            return SensorAbsentError(f"{text}: stop what uses the GPU, this exporter too, and run `nvidia-smi -r`")
        if code == _DRIVER_NOT_LOADED:
            return SensorAbsentError(f"{text}: NVIDIA's kernel driver is not loaded; `nvidia-smi` loads it or says why")
        if code == _LIBRARY_NOT_FOUND:
            return SensorAbsentError(
                f"{text}: there is no {SONAME}; install the library of NVIDIA's driver (Debian: apt-get install "
                "libnvidia-ml1), or give its path in collectors.nvml.library"
            )
        if code in _GONE:
            return SensorAbsentError(text)
        return SensorGlitchError(text)

    def _is_closed_to_us(self) -> bool:
        control = self._dev / "nvidiactl"
        return control.exists() and not os.access(control, os.R_OK | os.W_OK)


def find_library(host: Host, wanted: Path | None) -> Path | None:
    """The library that is to be loaded; None: the system's.

    Raises:
        SensorAbsentError: It is not there. An emulated machine has its own or none: never the real GPUs.
    """
    if wanted is not None:
        if not wanted.is_file():
            raise SensorAbsentError(f"{wanted}: no such file; collectors.nvml.library names it")
        return wanted
    if not host.emulated:
        return None
    emulated = host.sysfs.absolute().parent / "lib" / SONAME
    if not emulated.is_file():
        raise SensorAbsentError("this emulated machine has no NVIDIA GPU")
    return emulated


def find_trace(host: Host) -> str:
    """What shows that there is an NVIDIA GPU, so that machines without one never load anything.

    Raises:
        SensorAbsentError: Nothing does.
    """
    for path in (host.procfs / "driver/nvidia", host.dev / "nvidiactl", host.dev / "dxg"):
        if path.exists():
            return str(path)
    root = f"{host.sysfs}/bus/pci/devices"
    with contextlib.suppress(SensorError):
        for address in list_names(root):
            device = f"{root}/{address}"
            is_display = read_text_or(f"{device}/class", "").startswith("0x03")
            if is_display and read_text_or(f"{device}/vendor", "") == "0x10de":
                return device
    raise SensorAbsentError(f"no NVIDIA GPU: none in {root}, and no {host.procfs}/driver/nvidia")


def import_nvml(trace: str) -> Any:
    """NVIDIA's own package nvidia-ml-py, which is imported as pynvml.

    Raises:
        SensorAbsentError: It is missing, too old, or hidden behind another package of that name.
    """
    try:
        module = importlib.import_module("pynvml")
    except ImportError as error:
        raise SensorAbsentError(f"{trace}: is there, but the package nvidia-ml-py is not: {_PACKAGE_CURE}") from error
    if hasattr(module, "NVML_POWER_SCOPE_MEMORY"):
        return module
    if hasattr(module, "__path__"):
        raise SensorAbsentError(
            f"{module.__file__}: the old package pynvml hides NVIDIA's nvidia-ml-py, which is needed: "
            "pip uninstall -y pynvml && pip install --force-reinstall nvidia-ml-py"
        )
    raise SensorAbsentError(f"{module.__file__}: too old to know all fields: pip install --upgrade nvidia-ml-py")


def load_library(library: Path, nvml: Nvml) -> None:
    """Load a library before nvidia-ml-py asks for one by name: the loader then gives it this one."""
    import ctypes  # only where a library is named: it costs memory on every machine

    try:
        loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        used = ctypes.CDLL(SONAME)
    except OSError as error:
        raise SensorAbsentError(f"{library}: cannot be loaded as {SONAME}: {error}") from error
    used = getattr(nvml.module, "nvmlLib", None) or used
    if loaded._handle != used._handle:
        raise SensorAbsentError(
            f"{library}: this process uses another {SONAME}; restart joulewatch-exporter, and see that this file's "
            f"SONAME is {SONAME} (readelf -d)"
        )
