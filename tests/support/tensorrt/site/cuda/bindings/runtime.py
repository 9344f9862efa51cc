"""A double of ``cuda.bindings.runtime``: functions that answer with a tuple, the error first.

Names, parameters and numbers of errors are those of cuda-bindings 13.5.0 (``api.json``); how the calls behave stands in
``cuda.gpu``.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from cuda import gpu
from cuda.gpu import Event, Failure, Operation, Stream


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorInvalidResourceHandle = 400
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3
    cudaMemcpyDefault = 4


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


cudaStreamNonBlocking = 1
_SAFE = re.compile("Get|Free|Destroy|EndCapture")
_TEXTS = {
    "cudaErrorMemoryAllocation": b"out of memory",
    "cudaErrorInsufficientDriver": b"CUDA driver version is insufficient for CUDA runtime version",
    "cudaErrorNoDevice": b"no CUDA-capable device is detected",
    "cudaErrorIllegalAddress": b"an illegal memory access was encountered",
}


def _call(values: int = 0) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Count a call, and turn what it gives, or its failure, into a tuple of ``values`` values behind the error."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> tuple[Any, ...]:
            machine = gpu.machine
            machine.calls[function.__name__] += 1
            try:
                if machine.broken and not function.__name__.startswith("cudaGet"):
                    _give_back(function.__name__, args)
                    raise Failure(machine.broken)
                if machine.fails_at is not None and not _SAFE.search(function.__name__):
                    machine.fails_at -= 1
                    if machine.fails_at < 0:
                        machine.fails_at = None
                        raise Failure("cudaErrorInvalidValue")
                given = function(machine, *args)
            except Failure as failure:
                return (cudaError_t[failure.name], *[None] * values)
            return (cudaError_t.cudaSuccess, given) if values == 1 else (cudaError_t.cudaSuccess, *(given or ()))

        call.__name__ = function.__name__
        call.__wrapped__ = function
        return call

    return wrap


def _give_back(name: str, args: tuple[Any, ...]) -> None:
    """On a device that failed, freeing answers with the error too; the driver frees all when the process ends."""
    machine = gpu.machine
    kinds = {"cudaFree": machine.blocks, "cudaFreeHost": machine.blocks, "cudaStreamDestroy": machine.streams}
    kinds |= {"cudaEventDestroy": machine.events, "cudaGraphDestroy": machine.graphs}
    kinds |= {"cudaGraphExecDestroy": machine.executables}
    if name in kinds and kinds[name].pop(int(args[0]), None) is None:
        raise machine.misuse(f"{name} of what does not exist (any more)")


@_call(1)
def cudaGetDeviceCount(machine):
    if machine.no_gpu:
        raise Failure(machine.no_gpu)
    return len(machine.devices)


@_call(1)
def cudaDriverGetVersion(machine):
    return machine.cuda_of_driver


@_call(1)
def cudaGetDeviceProperties(machine, device):
    if not 0 <= device < len(machine.devices):
        raise Failure("cudaErrorInvalidDevice")
    spec = machine.devices[device]
    return SimpleNamespace(
        name=spec.name.encode(),
        major=spec.capability[0],
        minor=spec.capability[1],
        totalGlobalMem=spec.memory_bytes,
        uuid=SimpleNamespace(bytes=spec.uuid),
    )


@_call(1)
def cudaDeviceGetPCIBusId(machine, length, device):
    # The bindings give the whole buffer.
    return machine.devices[device].pci.encode().ljust(length, b"\0")


@_call()
def cudaSetDevice(machine, device):
    if not 0 <= device < len(machine.devices):
        raise Failure("cudaErrorInvalidDevice")
    machine.current = device


@_call(1)
def cudaMalloc(machine, size):
    return machine.allocate(size, pinned=False)


@_call(1)
def cudaMallocHost(machine, size):
    return machine.allocate(size, pinned=True)


@_call()
def cudaFree(machine, devPtr):
    machine.free(int(devPtr), pinned=False)


@_call()
def cudaFreeHost(machine, ptr):
    machine.free(int(ptr), pinned=True)


@_call()
def cudaMemcpyAsync(machine, dst, src, count, kind, stream):
    machine.copy(int(dst), int(src), count, cudaMemcpyKind(kind).name, machine.stream(stream))


@_call(1)
def cudaStreamCreateWithFlags(machine, flags):
    handle = machine.handle()
    machine.streams[int(handle)] = Stream()
    return handle


@_call()
def cudaStreamDestroy(machine, stream):
    if machine.stream(stream).queue:
        raise machine.misuse("a stream is destroyed while something is under way")
    del machine.streams[int(stream)]


@_call()
def cudaStreamSynchronize(machine, stream):
    machine.drain(machine.stream(stream))


@_call(1)
def cudaEventCreate(machine):
    handle = machine.handle()
    machine.events[int(handle)] = Event()
    return handle


def _event(machine, event) -> Event:
    found = machine.events.get(int(event))
    if found is None:
        raise machine.misuse(f"event {event} does not exist (any more)")
    return found


@_call()
def cudaEventRecord(machine, event, stream):
    found, on = _event(machine, event), machine.stream(stream)
    found.state, found.stream = "recorded", int(stream)

    def act() -> None:
        found.state, found.at_ms = "done", on.clock_ms

    machine.enqueue(on, Operation("event", act))


@_call()
def cudaEventSynchronize(machine, event):
    found = _event(machine, event)
    if found.state == "recorded":
        machine.drain(machine.stream(found.stream), lambda: found.state == "done")


@_call(1)
def cudaEventElapsedTime(machine, start, end):
    first, last = _event(machine, start), _event(machine, end)
    if "never recorded" in (first.state, last.state):
        raise Failure("cudaErrorInvalidResourceHandle")
    if "recorded" in (first.state, last.state):
        raise Failure("cudaErrorNotReady")
    return last.at_ms - first.at_ms


@_call()
def cudaEventDestroy(machine, event):
    _event(machine, event)
    del machine.events[int(event)]


@_call()
def cudaStreamBeginCapture(machine, stream, mode):
    found = machine.stream(stream)
    cudaStreamCaptureMode(mode)
    if found.capture is not None:
        raise machine.misuse("a stream is captured twice at once")
    found.capture, found.spoilt = [], False


@_call(1)
def cudaStreamEndCapture(machine, stream):
    found = machine.stream(stream)
    if found.capture is None:
        raise machine.misuse("the end of a capture that was never begun")
    operations, found.capture = found.capture, None
    if found.spoilt:
        raise Failure("cudaErrorStreamCaptureInvalidated")
    handle = machine.handle()
    machine.graphs[int(handle)] = operations
    return handle


@_call(1)
def cudaGraphInstantiate(machine, graph, flags):
    if int(graph) not in machine.graphs:
        raise machine.misuse("a graph that does not exist is instantiated")
    handle = machine.handle()
    machine.executables[int(handle)] = list(machine.graphs[int(graph)])
    return handle


@_call()
def cudaGraphLaunch(machine, graphExec, stream):
    operations = machine.executables.get(int(graphExec))
    if operations is None:
        raise machine.misuse("a graph is launched that does not exist (any more)")
    for operation in operations:
        machine.enqueue(machine.stream(stream), operation)


@_call()
def cudaGraphDestroy(machine, graph):
    if machine.graphs.pop(int(graph), None) is None:
        raise machine.misuse("a graph is destroyed twice")


@_call()
def cudaGraphExecDestroy(machine, graphExec):
    if machine.is_busy():
        raise machine.misuse("a graph is destroyed while something is under way")
    if machine.executables.pop(int(graphExec), None) is None:
        raise machine.misuse("an executable graph is destroyed twice")


@_call(1)
def cudaGetErrorName(machine, error):
    return cudaError_t(error).name.encode()


@_call(1)
def cudaGetErrorString(machine, error):
    return _TEXTS.get(cudaError_t(error).name, b"something went wrong")
