"""A machine with NVIDIA GPUs: an instance stands in for the module ``cuda.bindings.runtime``.

It checks how the functions are called; it does not compute. These rules are from the CUDA Runtime API's documentation:

- what is put on a stream happens when the host waits for the stream or for an event;
- to wait for a stream that is being captured is an error;
- after a failed kernel every call returns its error;
- ``cudaEventElapsedTime`` returns ``cudaErrorNotReady`` before both events have happened.

Stricter than CUDA: to free anything while the device is busy raises ``Misuse``, where ``cudaFree`` may wait.
"""

from __future__ import annotations

import ctypes
import enum
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from support.tensorrt import api

API = api.read("cuda")
COPY_MS = 0.25
_VOID = re.compile("Free|Destroy|SetDevice|Memcpy|Synchronize|Record|BeginCapture|Launch")
_NEVER_FAIL = re.compile("Get|Free|Destroy|EndCapture")


class Misuse(BaseException):
    """The API was used as its documentation forbids; ``except Exception`` does not hide it."""


class Failure(Exception):
    """A call returns this CUDA error."""


@dataclass
class Device:
    name: str = "NVIDIA Double H1"
    capability: tuple[int, int] = (9, 0)
    memory_bytes: int = 1 << 30
    uuid: bytes = bytes(range(16))


class Handle(SimpleNamespace):
    """A stream, event or graph: an object that converts to a number and is none."""

    def __int__(self) -> int:
        return id(self)


class Machine:
    """What a test sets, and what the code under test did."""

    def __init__(self, version: str) -> None:
        self.version = version  # of TensorRT
        self.devices = [Device()]
        self.errors: dict[str, str] = {}  # CUDA function -> the error that it returns
        self.fails_at: int | None = None  # number of the call that fails, from now on; not of those that read or free
        self.broken = ""  # the error of a kernel that failed
        self.answers: dict[str, tuple[Any, Mapping[str, str], int]] = {}  # method of TensorRT -> see ``answer``
        self.parser_errors: list[str] = []
        self.layers: list[Mapping[str, Any]] = []  # of the next engine, as its inspector shows them
        self.layer_ms: dict[str, float] = {}
        self.compute: Callable[[dict[str, np.ndarray]], Sequence[np.ndarray]] = lambda inputs: []

        self.current = 0
        self.calls: list[tuple[Any, ...]] = []  # name and arguments of CUDA functions and of methods of TensorRT
        self.model: Any = None  # the last one that was parsed
        self.misuses: list[str] = []
        self.held: dict[int, tuple[str, Any]] = {}  # what was made with CUDA and not freed
        self.objects: Counter[str] = Counter()  # living objects of TensorRT, by class
        self.logger: Any = None
        for name in ("cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode"):
            setattr(self, name, enum.IntEnum(name, API[name]))
        self.cudaStreamNonBlocking = API["constants"]["cudaStreamNonBlocking"]

    def answer(self, method: str, value: Any, *, after: int = 0, **messages: str) -> None:
        """Make a call of a method of TensorRT log messages (``ERROR="out of memory"``) and return ``value``.

        Only the call after the next ``after`` calls does so. A value that is an exception class is raised.
        """
        self.answers[method] = (value, messages, after)

    def misuse(self, text: str) -> Misuse:
        """Keep the text, in case something swallows the exception."""
        self.misuses.append(text)
        return Misuse(text)

    def left(self) -> dict[str, int]:
        """Count what was made and not freed."""
        return dict(Counter(kind for kind, _ in self.held.values()) + self.objects)

    def streams(self) -> list[Handle]:
        return [value for kind, value in self.held.values() if kind == "stream"]

    def is_busy(self) -> bool:
        return any(stream.queue for stream in self.streams())

    def get(self, kind: str, handle: Any) -> Any:
        held, value = self.held.get(int(handle), ("", None))
        if held != kind:
            raise self.misuse(f"{handle} is not a living {kind}")
        return value

    def memory(self, address: int, size: int) -> np.ndarray:
        """Return ``size`` bytes of the device's memory."""
        for start, (kind, data) in self.held.items():
            if kind == "memory" and start <= address and address + size <= start + data.size:
                return data[address - start :][:size]
        raise self.misuse(f"{size} bytes at {address:#x} are not memory of the device")

    def put(self, stream: Any, ms: float, act: Callable[[], object]) -> None:
        """Have the device do something later."""
        on = self.get("stream", stream)
        (on.queue if on.captured is None else on.captured).append((ms, act))

    def wait(self, stream: Handle, event: Handle | None = None) -> None:
        if stream.captured is not None:
            raise Failure("cudaErrorStreamCaptureUnsupported")
        while stream.queue and (event is None or event.at_ms is None):
            ms, act = stream.queue.pop(0)
            stream.clock_ms += ms
            act()

    def make(self, kind: str, **values: Any) -> Handle:
        handle = Handle(**values)
        self.held[int(handle)] = (kind, handle)
        return handle

    def free(self, kind: str, handle: Any) -> None:
        self.get(kind, handle)
        if self.is_busy():
            raise self.misuse(f"a {kind} is freed while the device is busy")
        del self.held[int(handle)]

    def allocate(self, kind: str, size: int) -> int:
        if any(stream.captured is not None for stream in self.streams()):
            raise self.misuse("memory is allocated while a stream is captured")
        used = sum(data.size for kind, data in self.held.values() if kind == "memory")
        if kind == "memory" and used + size > self.devices[self.current].memory_bytes:
            raise Failure("cudaErrorMemoryAllocation")
        data = np.full(size, 0xFF, np.uint8)  # not a number in any float type
        self.held[data.ctypes.data] = (kind, data)
        return data.ctypes.data

    def _properties(self, device: int) -> SimpleNamespace:
        gpu = self.devices[device]
        values = (gpu.name.encode(), *gpu.capability, gpu.memory_bytes, SimpleNamespace(bytes=gpu.uuid))
        return SimpleNamespace(**dict(zip(API["cudaDeviceProp"], values, strict=True)))

    def _set_device(self, device: int) -> None:
        self.current = device

    def _copy(self, dst: int, src: int, count: int, kind: enum.IntEnum, stream: Any) -> None:
        to_device = {"cudaMemcpyHostToDevice": True, "cudaMemcpyDeviceToHost": False}[kind.name]
        device = self.memory(dst if to_device else src, count)
        host = np.frombuffer((ctypes.c_uint8 * count).from_address(src if to_device else dst), np.uint8)
        self.put(stream, COPY_MS, lambda: np.copyto(*((device, host) if to_device else (host, device))))

    def _record(self, event: Any, stream: Any) -> None:
        event, stream = self.get("event", event), self.get("stream", stream)
        event.stream, event.at_ms = stream, None
        self.put(stream, 0.0, lambda: setattr(event, "at_ms", stream.clock_ms))

    def _elapsed(self, start: Any, end: Any) -> float:
        first, last = self.get("event", start).at_ms, self.get("event", end).at_ms
        if first is None or last is None:
            raise Failure("cudaErrorNotReady")
        return float(last - first)

    def _begin_capture(self, stream: Any, mode: enum.IntEnum) -> None:
        if mode.name != "cudaStreamCaptureModeThreadLocal":
            raise self.misuse(f"{mode.name}: calls of other threads count, or forbidden calls pass")
        self.get("stream", stream).captured = []

    def _end_capture(self, stream: Any) -> Handle:
        stream = self.get("stream", stream)
        captured, stream.captured = stream.captured, None
        return self.make("graph", work=captured)

    def _launch(self, graphExec: Any, stream: Any) -> None:
        for ms, act in self.get("executable graph", graphExec).work:
            self.put(stream, ms, act)


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "cudaGetDeviceCount": lambda self: len(self.devices),
    "cudaGetDeviceProperties": Machine._properties,
    # The bindings return the whole buffer.
    "cudaDeviceGetPCIBusId": lambda self, length, device: b"0000:41:00.0".ljust(length, b"\0"),
    "cudaDriverGetVersion": lambda self: 13010,
    "cudaSetDevice": Machine._set_device,
    "cudaMalloc": lambda self, size: self.allocate("memory", size),
    "cudaFree": lambda self, devPtr: self.free("memory", devPtr),
    "cudaMallocHost": lambda self, size: self.allocate("pinned memory", size),
    "cudaFreeHost": lambda self, ptr: self.free("pinned memory", ptr),
    "cudaMemcpyAsync": Machine._copy,
    "cudaStreamCreateWithFlags": lambda self, flags: self.make("stream", clock_ms=0.0, queue=[], captured=None),
    "cudaStreamSynchronize": lambda self, stream: self.wait(self.get("stream", stream)),
    "cudaStreamDestroy": lambda self, stream: self.free("stream", stream),
    "cudaStreamBeginCapture": Machine._begin_capture,
    "cudaStreamEndCapture": Machine._end_capture,
    "cudaEventCreate": lambda self: self.make("event", at_ms=None),
    "cudaEventRecord": Machine._record,
    "cudaEventSynchronize": lambda self, event: self.wait(event.stream, event),
    "cudaEventElapsedTime": Machine._elapsed,
    "cudaEventDestroy": lambda self, event: self.free("event", event),
    "cudaGraphInstantiate": lambda self, graph, flags: self.make("executable graph", work=graph.work),
    "cudaGraphLaunch": Machine._launch,
    "cudaGraphDestroy": lambda self, graph: self.free("graph", graph),
    "cudaGraphExecDestroy": lambda self, graphExec: self.free("executable graph", graphExec),
    "cudaGetErrorName": lambda self, error: error.name.encode(),
    "cudaGetErrorString": lambda self, error: f"what {error.name} means".encode(),
}


def _function(name: str, plain: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """Return the error first, and then the value of a function that has one."""

    def call(self: Machine, *args: Any) -> tuple[Any, ...]:
        self.calls.append((name, *args))
        error, value = self.errors.get(name, "cudaSuccess"), None
        if self.fails_at is not None and not _NEVER_FAIL.search(name):
            self.fails_at = self.fails_at - 1 if self.fails_at else None
            error = "cudaErrorInvalidValue" if self.fails_at is None else error
        if self.broken and "Get" not in name:
            error = self.broken
        if error == "cudaSuccess" or re.search("Free|Destroy", name):
            try:
                value = plain(self, *args)
            except Failure as failure:
                error = str(failure)
        return (self.cudaError_t[error],) if _VOID.search(name) else (self.cudaError_t[error], value)

    return call


for _name, _plain in _FUNCTIONS.items():
    api.check(_name, _plain, API["functions"])
    setattr(Machine, _name, _function(_name, _plain))
