"""NVIDIA's two packages, imported when a network is opened: the bindings of TensorRT and of the CUDA runtime.

They may be installed and not work: TensorRT's libraries are a separate package in NVIDIA's package index, and CUDA
needs a driver.
"""

from __future__ import annotations

import importlib
import re
from collections import deque
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from joulewatch_harness.errors import ConfigError, NetworkError

INSTALL: Final = "pip install 'joulewatch[tensorrt]' (its libraries come from NVIDIA's own package index)"
OLDEST: Final = 10
_KEPT_MESSAGES: Final = 30
_NO_MEMORY: Final = re.compile(
    r"out ?of ?memory|cudaErrorMemoryAllocation|Requested amount of GPU memory", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Libraries:
    """The imported packages."""

    trt: Any
    cudart: Any
    """``cuda.bindings.runtime``: each function returns a tuple that begins with the error."""

    @property
    def version(self) -> str:
        """Version of TensorRT, ``11.4.0.106``."""
        return str(self.trt.__version__)

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])


def find() -> Libraries:
    """Import both packages.

    Raises:
        ConfigError: one is missing, has no libraries or is too old; the text contains the command to install it.
    """
    trt = _imported("tensorrt", "tensorrt")
    cudart = _imported("cuda.bindings.runtime", "cuda-bindings")
    try:
        libraries = Libraries(trt, cudart)
        major = libraries.major
    except (AttributeError, ValueError) as error:
        raise ConfigError(f"the package tensorrt has no version, so it is not NVIDIA's: {INSTALL}") from error
    if major < OLDEST:
        raise ConfigError(f"the runtime tensorrt needs TensorRT {OLDEST} or newer, not {libraries.version}: {INSTALL}")
    return libraries


def _imported(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise ConfigError(f"the runtime tensorrt needs the package {package}: {INSTALL}") from error
    except Exception as error:
        # The bindings are installed, but their shared libraries are missing or have another version.
        reasons = " ".join(str(error).split())[:200]
        raise ConfigError(f"the package {package} cannot be imported ({reasons}): {INSTALL}") from error


class Messages:
    """The last messages of TensorRT: its calls return None or False, and log the reason."""

    def __init__(self) -> None:
        self._kept: deque[tuple[bool, str]] = deque(maxlen=_KEPT_MESSAGES)

    def add(self, is_error: bool, text: str) -> None:
        """Add a message; TensorRT may call this from its threads."""
        self._kept.append((is_error, " ".join(text.split())))

    def forget(self) -> None:
        """Discard all messages, before a call whose reasons matter."""
        self._kept.clear()

    def reasons(self) -> str:
        """Return the errors since then, in order; empty: none."""
        return "; ".join(dict.fromkeys(text for is_error, text in self._kept if is_error))[:600]

    def no_memory(self) -> bool:
        """Return whether memory ran out: TensorRT warns of that, and then fails for another reason."""
        return any(_NO_MEMORY.search(text) for _, text in self._kept)


def made(kind: Any, messages: Messages, *args: Any) -> Any:
    """Create an object of TensorRT; if that fails, the bindings raise a TypeError.

    Raises:
        MemoryError: memory ran out.
        NetworkError: another reason; the text contains TensorRT's.
    """
    messages.forget()
    try:
        return kind(*args)
    except TypeError as error:
        text = f"TensorRT cannot start ({kind.__name__}): {messages.reasons() or error}"
        raise (MemoryError(text) if messages.no_memory() else NetworkError(text)) from error


def make_logger(trt: Any, messages: Messages) -> Any:
    """Return a ``tensorrt.ILogger`` that keeps warnings and errors; it must exist as long as objects made with it."""
    severity = trt.ILogger.Severity
    errors = (severity.INTERNAL_ERROR, severity.ERROR)
    kept = (*errors, severity.WARNING)

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            # The bindings require this call.
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in kept:
                messages.add(severity in errors, msg)

    return Logger()
