"""NVIDIA's two packages, imported when a network is opened: TensorRT's bindings, and those of the CUDA runtime.

Both can be there and still not work: TensorRT's bindings come without its libraries, which lie on NVIDIA's own package
index, and CUDA needs a driver.
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
    """What was imported."""

    trt: Any
    cudart: Any
    """``cuda.bindings.runtime``: each function gives a tuple, the error first."""

    @property
    def version(self) -> str:
        """TensorRT's, ``11.4.0.106``."""
        return str(self.trt.__version__)

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])


def find() -> Libraries:
    """Import both.

    Raises:
        ConfigError: one is missing, has no libraries or is too old; the text says what to install.
    """
    trt = _imported("tensorrt", "tensorrt")
    cudart = _imported("cuda.bindings.runtime", "cuda-bindings")
    try:
        found = Libraries(trt, cudart)
        major = found.major
    except (AttributeError, ValueError) as error:
        raise ConfigError(f"the package tensorrt has no version and is none of NVIDIA's: {INSTALL}") from error
    if major < OLDEST:
        raise ConfigError(f"the runtime tensorrt needs TensorRT {OLDEST} or newer, not {found.version}: {INSTALL}")
    return found


def _imported(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise ConfigError(f"the runtime tensorrt needs the package {package}: {INSTALL}") from error
    except Exception as error:
        # The bindings are there and the shared libraries behind them are not, or are of another version.
        said = " ".join(str(error).split())[:200]
        raise ConfigError(f"the package {package} cannot be imported ({said}): {INSTALL}") from error


class Messages:
    """What TensorRT said last: its calls answer with None or False and tell the reason to a logger."""

    def __init__(self) -> None:
        self._kept: deque[tuple[bool, str]] = deque(maxlen=_KEPT_MESSAGES)

    def add(self, is_error: bool, text: str) -> None:
        """One message; TensorRT may call from threads of its own."""
        self._kept.append((is_error, " ".join(text.split())))

    def forget(self) -> None:
        """Before a call whose reasons matter."""
        self._kept.clear()

    def said(self) -> str:
        """The errors since, the first ones first; empty: none."""
        return "; ".join(dict.fromkeys(text for is_error, text in self._kept if is_error))[:600]

    def no_memory(self) -> bool:
        """Whether memory ran out: TensorRT warns of that, and then fails for another reason."""
        return any(_NO_MEMORY.search(text) for _, text in self._kept)


def made(kind: Any, messages: Messages, *args: Any) -> Any:
    """An object of TensorRT's: where the library cannot make it, the bindings complain of a type.

    Raises:
        MemoryError: memory ran out.
        NetworkError: for another reason; the text has TensorRT's own.
    """
    messages.forget()
    try:
        return kind(*args)
    except TypeError as error:
        text = f"TensorRT cannot start ({kind.__name__}): {messages.said() or error}"
        raise (MemoryError(text) if messages.no_memory() else NetworkError(text)) from error


def make_logger(trt: Any, messages: Messages) -> Any:
    """A ``tensorrt.ILogger`` that keeps warnings and errors; it must outlive everything that is made with it."""
    severity = trt.ILogger.Severity
    errors = (severity.INTERNAL_ERROR, severity.ERROR)
    kept = (*errors, severity.WARNING)

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            # Without this the bindings take it for an object that was never made.
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in kept:
                messages.add(severity in errors, msg)

    return Logger()
