"""NVML, the library of NVIDIA's driver: find it, load it, call it through nvidia-ml-py, convert its error codes.

Sources: NVIDIA ``nvml.h`` (CUDA 13.3) and the NVML API reference.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from joulewatch_exporter.collectors.base.sysfs import denied_cure, list_names, read_text_or
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Host

SONAME: Final = "libnvidia-ml.so.1"

# Return codes of nvml.h.
_UNINITIALIZED: Final = 1
_INVALID_ARGUMENT: Final = 2
_NOT_SUPPORTED: Final = 3
_NO_PERMISSION: Final = 4
NOT_FOUND: Final = 6
_DRIVER_NOT_LOADED: Final = 9
_LIBRARY_NOT_FOUND: Final = 12
FUNCTION_NOT_FOUND: Final = 13
_GPU_IS_LOST: Final = 15
_RESET_REQUIRED: Final = 16
_OPERATING_SYSTEM: Final = 17
_VERSION_MISMATCH: Final = 18
_GPU_NOT_FOUND: Final = 28

UNSUPPORTED: Final = frozenset({_INVALID_ARGUMENT, _NOT_SUPPORTED, NOT_FOUND, FUNCTION_NOT_FOUND})
LOST: Final = frozenset({_GPU_IS_LOST, _RESET_REQUIRED, _VERSION_MISMATCH})
_GONE: Final = LOST | {NOT_FOUND, _GPU_NOT_FOUND}
_DENIED: Final = frozenset({_NO_PERMISSION, _OPERATING_SYSTEM})

DEVICES_FIX: Final = "sudo chmod a+rw /dev/nvidiactl /dev/nvidia[0-9]*"
_INSTALL_COMMAND: Final = "pip install 'joulewatch[nvml]'"


class Nvml:
    """nvidia-ml-py's module, with its exceptions converted to sensor errors."""

    def __init__(self, module: Any, dev: Path) -> None:
        self.module = module
        self.is_uninitialised = False
        """Whether a call reported that NVML is not initialised, because other code in this process shut it down."""
        self._error: type[Exception] = module.NVMLError
        self._dev = dev

    def call(self, name: str, *arguments: Any, subject: str) -> Any:
        """Call a function of NVML.

        Raises:
            SensorError: See `sensor_error`.
        """
        try:
            return getattr(self.module, name)(*arguments)
        except self._error as error:
            raise self.sensor_error(int(getattr(error, "value", 999)), subject) from error

    def attempt(self, name: str, *arguments: Any, subject: str) -> tuple[Any, int]:
        """Call a function that not all drivers and GPUs support; return its result and 0, or None and NVML's code.

        Raises:
            SensorError: The GPU is lost, or the driver was replaced.
        """
        try:
            return getattr(self.module, name)(*arguments), 0
        except AttributeError:
            return None, FUNCTION_NOT_FOUND
        except self._error as error:
            code = int(getattr(error, "value", 999))
            if code in LOST:
                raise self.sensor_error(code, subject) from error
            return None, code

    @property
    def devices_fix(self) -> str:
        """Return the command that makes the driver's devices accessible; empty if it would not help."""
        return DEVICES_FIX if denied_cure(f"{self._dev}/nvidiactl", "rw") else ""

    def sensor_error(self, code: int, subject: str) -> SensorError:
        """Return the error for a return code that concerns ``subject``."""
        # Not str(error): for unknown codes nvidia-ml-py calls the library, which may hang.
        texts: Mapping[int, str] = getattr(self._error, "_errcode_to_string", {})
        text = f"{subject}: {texts.get(code, 'unknown code').rstrip('.')} (NVML error {code})"
        if code == _UNINITIALIZED:
            self.is_uninitialised = True
        if code in _DENIED or (code == _DRIVER_NOT_LOADED and self._is_denied()):
            chmod = f"run `{cure}`, or " if (cure := self.devices_fix) else ""
            return SensorDeniedError(
                f"{self._dev}/nvidiactl: {text}; {chmod}pass the devices to the container or the "
                "systemd unit (docker: --gpus all; systemd: DeviceAllow=/dev/nvidiactl rw)"
            )
        if code == _VERSION_MISMATCH:
            return SensorAbsentError(
                f"{text}: NVIDIA's driver was replaced and does not match the loaded library. Load the new kernel "
                "modules (or reboot), then restart joulewatch-exporter, because this process keeps the old library"
            )
        if code == _RESET_REQUIRED:
            return SensorAbsentError(
                f"{text}: stop all programs that use the GPU, including this exporter, and run `nvidia-smi -r`"
            )
        if code == _DRIVER_NOT_LOADED:
            return SensorAbsentError(
                f"{text}: NVIDIA's kernel driver is not loaded; `nvidia-smi` loads it or reports why it cannot"
            )
        if code == _LIBRARY_NOT_FOUND:
            return SensorAbsentError(
                f"{text}: {SONAME} is missing; install the library of NVIDIA's driver (Debian: apt-get install "
                "libnvidia-ml1), or set its path in collectors.nvml.library"
            )
        if code in _GONE:
            return SensorAbsentError(text)
        return SensorGlitchError(text)

    def _is_denied(self) -> bool:
        control = self._dev / "nvidiactl"
        return control.exists() and not os.access(control, os.R_OK | os.W_OK)


def find_library(host: Host, path: Path | None) -> Path | None:
    """Return the library to load; None: the system's.

    Args:
        host: An emulated machine has its own library or none, so the real GPUs are never read for it.
        path: The library set in the configuration.

    Raises:
        SensorAbsentError: The library does not exist.
    """
    if path is not None:
        if not path.is_file():
            raise SensorAbsentError(f"{path}: no such file, set in collectors.nvml.library")
        return path
    if not host.emulated:
        return None
    emulated = host.sysfs.absolute().parent / "lib" / SONAME
    if not emulated.is_file():
        raise SensorAbsentError("this emulated machine has no NVIDIA GPU")
    return emulated


def find_evidence(host: Host) -> str:
    """Return a path that exists only with an NVIDIA GPU; other machines then never load NVML.

    Raises:
        SensorAbsentError: There is no such path.
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


def import_nvml(evidence: str) -> Any:
    """Import NVIDIA's package nvidia-ml-py, whose module is pynvml.

    Args:
        evidence: The result of `find_evidence`, for messages.

    Raises:
        SensorAbsentError: The package is missing, too old, or shadowed by another package with this module.
    """
    try:
        module = importlib.import_module("pynvml")
    except ImportError as error:
        raise SensorAbsentError(
            f"{evidence}: exists, but the package nvidia-ml-py is not installed: {_INSTALL_COMMAND}"
        ) from error
    if hasattr(module, "NVML_POWER_SCOPE_MEMORY"):
        return module
    if hasattr(module, "__path__"):
        raise SensorAbsentError(
            f"{module.__file__}: the old package pynvml shadows NVIDIA's nvidia-ml-py, which is required: "
            "pip uninstall -y pynvml && pip install --force-reinstall nvidia-ml-py"
        )
    raise SensorAbsentError(f"{module.__file__}: too old, some fields are missing: pip install --upgrade nvidia-ml-py")


def load_library(library: Path, nvml: Nvml) -> None:
    """Load a library before nvidia-ml-py requests one by name, so that the loader returns this one."""
    import ctypes  # imported late, because it costs memory

    try:
        loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        used = ctypes.CDLL(SONAME)
    except OSError as error:
        raise SensorAbsentError(f"{library}: cannot be loaded as {SONAME}: {error}") from error
    used = getattr(nvml.module, "nvmlLib", None) or used
    if loaded._handle != used._handle:
        raise SensorAbsentError(
            f"{library}: this process uses another {SONAME}; restart joulewatch-exporter, and check that the SONAME "
            f"of this file is {SONAME} (readelf -d)"
        )
