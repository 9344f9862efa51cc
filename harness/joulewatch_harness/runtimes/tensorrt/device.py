"""The GPU through the CUDA runtime: its properties, memory, streams and events."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from joulewatch_harness.errors import ConfigError, NetworkError
from joulewatch_harness.names import unknown

logger = logging.getLogger(__name__)

DRIVER_FILE: Final = Path("/proc/driver/nvidia/version")
"""File with the version of the driver; CUDA reports only the CUDA version that the driver supports."""
_PCI_ID_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """Properties of one GPU."""

    index: int
    name: str
    capability: str
    """Compute capability, ``9.0``."""
    memory_bytes: int
    uuid: str
    """In the form of NVML and the exporter: ``GPU-`` and five groups."""
    pci: str
    driver: str
    """Version of the kernel module, ``580.65.06``; empty: unknown, as on Jetson boards."""
    cuda: str
    """The newest CUDA that the driver supports, ``13.0``."""

    @property
    def has_tf32(self) -> bool:
        return int(self.capability.partition(".")[0]) >= 8


class Cuda:
    """Functions of ``cuda.bindings.runtime`` that raise errors; ``Held`` frees what they create."""

    def __init__(self, cudart: Any) -> None:
        self.cudart = cudart
        self._no_memory = int(cudart.cudaError_t.cudaErrorMemoryAllocation)

    def __call__(self, name: str, *args: Any) -> Any:
        """Call a function by its name.

        Returns:
            Its values without the error: None, one value or a tuple.

        Raises:
            MemoryError: the device has no memory.
            NetworkError: any other error; the text contains its name.
        """
        error, *values = getattr(self.cudart, name)(*args)
        if int(error):
            raise self._raised(name, error)
        return values[0] if len(values) == 1 else tuple(values)

    def text(self, error: Any) -> str:
        """Return name and description of an error."""
        names = (self.cudart.cudaGetErrorName(error)[1], self.cudart.cudaGetErrorString(error)[1])
        name, meaning = (item.decode() if isinstance(item, bytes) else str(item) for item in names)
        return f"{name}, {meaning}"

    def _raised(self, name: str, error: Any) -> Exception:
        text = f"CUDA: {name}: {self.text(error)}"
        return MemoryError(text) if int(error) == self._no_memory else NetworkError(text)

    def find_gpu(self, device: str) -> Gpu:
        """Return the GPU of an option ``cuda:N``.

        Raises:
            ConfigError: there is no driver or no such GPU; the text contains the fix.
        """
        match = re.fullmatch(r"cuda(?::(\d+))?", device)
        if match is None:
            raise ConfigError(f"tensorrt: {unknown('device', device, ('cuda', 'cuda:0', 'cuda:1'))}")
        error, *values = self.cudart.cudaGetDeviceCount()
        if int(error) or not values[0]:
            why = f" ({self.text(error)})" if int(error) else ""
            raise ConfigError(
                f"tensorrt: device {device} was requested, but CUDA finds no GPU{why}: nvidia-smi must list one, with "
                "a driver new enough for this CUDA, and CUDA_VISIBLE_DEVICES must not hide it"
            )
        index = int(match[1] or 0)
        if index >= values[0]:
            raise ConfigError(f"tensorrt: the device cuda:{index} does not exist: the last one is cuda:{values[0] - 1}")
        properties = self("cudaGetDeviceProperties", index)
        newest = int(self("cudaDriverGetVersion"))
        raw = bytes(properties.uuid.bytes).hex()
        return Gpu(
            index=index,
            name=_text(properties.name),
            capability=f"{properties.major}.{properties.minor}",
            memory_bytes=int(properties.totalGlobalMem),
            uuid=f"GPU-{raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:]}",
            pci=_text(self("cudaDeviceGetPCIBusId", _PCI_ID_BYTES, index)),
            driver=driver_version(),
            cuda=f"{newest // 1000}.{newest % 1000 // 10}",
        )

    def upload(self, address: int, array: NDArray[Any], stream: Any) -> None:
        """Copy an array to the device and wait."""
        kind = self.cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, stream)
        self("cudaStreamSynchronize", stream)

    def download(self, array: NDArray[Any], address: int, stream: Any) -> None:
        """Copy an array from the device and wait."""
        kind = self.cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, stream)
        self("cudaStreamSynchronize", stream)


class Held:
    """Objects of CUDA, which are freed once, in the opposite order."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._stack = contextlib.ExitStack()
        self._is_logged = False

    def memory(self, size_bytes: int) -> int:
        """Allocate memory of the device; return its address."""
        address = int(self._cuda("cudaMalloc", max(size_bytes, 1)))
        self._later("cudaFree", address)
        return address

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return an array in pinned memory of the host."""
        kind = np.dtype(dtype)
        size_bytes = max(int(np.prod(shape, dtype=np.int64)) * kind.itemsize, 1)
        address = int(self._cuda("cudaMallocHost", size_bytes))
        self._later("cudaFreeHost", address)
        raw = (ctypes.c_uint8 * size_bytes).from_address(address)
        return np.frombuffer(memoryview(raw), dtype=kind, count=int(np.prod(shape, dtype=np.int64))).reshape(shape)

    def stream(self) -> Any:
        """Create a stream; on the default stream TensorRT waits for the whole device."""
        made = self._cuda("cudaStreamCreateWithFlags", self._cuda.cudart.cudaStreamNonBlocking)
        self._later("cudaStreamDestroy", made)
        return made

    def event(self) -> Any:
        """Create an event with times."""
        made = self._cuda("cudaEventCreate")
        self._later("cudaEventDestroy", made)
        return made

    def graph(self, stream: Any, launch: Callable[[], None]) -> Any:
        """Capture what ``launch`` puts on the stream as a graph that can be launched repeatedly.

        Raises:
            NetworkError: it cannot be captured.
        """
        cuda = self._cuda
        cuda("cudaStreamBeginCapture", stream, cuda.cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            launch()
        except BaseException:
            # End the capture, otherwise the stream cannot be used.
            error, graph = cuda.cudart.cudaStreamEndCapture(stream)
            if not int(error) and graph is not None:
                cuda.cudart.cudaGraphDestroy(graph)
            raise
        graph = cuda("cudaStreamEndCapture", stream)
        self._later("cudaGraphDestroy", graph)
        made = cuda("cudaGraphInstantiate", graph, 0)
        self._later("cudaGraphExecDestroy", made)
        return made

    def close(self) -> None:
        """Free everything; safe to call twice."""
        self._stack.close()

    def _later(self, name: str, *args: Any) -> None:
        self._stack.callback(self._quietly, name, *args)

    def _quietly(self, name: str, *args: Any) -> None:
        """Free one object; after an error of the device every call returns it, and the others must still be freed."""
        error, *_ = getattr(self._cuda.cudart, name)(*args)
        if int(error) and not self._is_logged:
            self._is_logged = True
            logger.warning("CUDA: %s: %s", name, self._cuda.text(error))


class Event:
    """An event on a stream (``timeline.Event``)."""

    def __init__(self, cuda: Cuda, event: Any, stream: Any) -> None:
        self._cuda = cuda
        self._event = event
        self._stream = stream

    def record(self) -> None:
        """Put the event on the stream."""
        self._cuda("cudaEventRecord", self._event, self._stream)

    def synchronize(self) -> None:
        """Wait until the device has reached the event."""
        self._cuda("cudaEventSynchronize", self._event)

    def elapsed_time(self, end_event: Event) -> float:
        """Return the milliseconds from this event to a later one."""
        return float(self._cuda("cudaEventElapsedTime", self._event, end_event._event))


def driver_version() -> str:
    """Return the version of the kernel module; empty: unknown."""
    try:
        text = DRIVER_FILE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    match = re.search(r"\b\d{2,}\.\d+(\.\d+)*\b", text)
    return match[0] if match else ""


def _text(raw: Any) -> str:
    """Convert a C string of the bindings, which is bytes or, in some versions, text."""
    return (raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)).rstrip("\0")
