"""A GPU of the imagination: memory, streams with a clock of their own, and a watch on how they are used.

Nothing that is put on a stream happens before somebody waits for it: what reads too early reads old bytes. Memory is
host memory, known by its address, so that copies and kernels touch exactly what they were told to.

Known from the CUDA runtime's documentation (docs.nvidia.com, CUDA Runtime API, and the docstrings of cuda-bindings
13.5): which call gives which error; that ``cudaMemcpyAsync`` has taken pageable host memory when it returns but not
pinned memory; that waiting on a stream that is being captured is an error that spoils the capture; that
``cudaEventElapsedTime`` answers ``cudaErrorNotReady`` before both have happened; that an error of a kernel shows at the
next wait, and at every call from then on. Stricter than CUDA: freeing what is still in use is ``Misuse`` here, while
``cudaFree`` may wait.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


class Misuse(BaseException):
    """The API was used as its documentation forbids; no ``except Exception`` hides it."""


class Failure(Exception):
    """A call that answers with a CUDA error; ``name`` is that of the error."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass
class Spec:
    """One GPU."""

    name: str = "NVIDIA Double H1"
    capability: tuple[int, int] = (9, 0)
    memory_bytes: int = 1 << 30
    uuid: bytes = bytes(range(16))
    pci: str = "0000:41:00.0"


class Handle:
    """A stream, event or graph as the bindings give it: an object that is a number."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __int__(self) -> int:
        return self._number


@dataclass
class Block:
    """Memory that was allocated."""

    address: int
    data: np.ndarray
    pinned: bool


@dataclass
class Operation:
    """Something on a stream; ``act`` does it, in ``ms`` of the device's time."""

    what: str
    act: Callable[[], None]
    ms: float = 0.0
    dropped: Callable[[], None] = lambda: None
    """Called where the device failed before it came to this."""


@dataclass
class Stream:
    clock_ms: float = 0.0
    queue: list[Operation] = field(default_factory=list)
    capture: list[Operation] | None = None
    spoilt: bool = False


@dataclass
class Event:
    state: str = "never recorded"
    at_ms: float = 0.0
    stream: int = 0


class Machine:
    """The one GPU machine of a test; what is set here changes how it behaves."""

    def __init__(self, tensorrt_version: str = "11.4.0.106") -> None:
        self.tensorrt_version = tensorrt_version
        self.devices = [Spec()]
        self.no_gpu: str | None = None
        """The error with which CUDA says so."""
        self.cuda_of_driver = 13000
        self.copy_ms = 0.25
        self.sync_error: str | None = None
        """A kernel fails: the error of the next wait, and of everything after."""
        self.fails_at: int | None = None
        """Which call fails, counted from 0 now; those that tell something or give something back do not count."""
        self.calls: Counter[str] = Counter()
        self.misuses: list[str] = []
        self.live: Counter[str] = Counter()
        """Objects of TensorRT that were made and not yet destroyed, by class."""
        self.current = 0
        self.blocks: dict[int, Block] = {}
        self.reserved_bytes = 0
        """Device memory that TensorRT took for itself."""
        self.streams: dict[int, Stream] = {}
        self.events: dict[int, Event] = {}
        self.graphs: dict[int, list[Operation]] = {}
        self.executables: dict[int, list[Operation]] = {}
        self.broken = ""
        self.tensorrt: object = None
        """What a test sets of TensorRT, put here by the double of that package."""
        self._next = 0x1000

    # Watching

    def misuse(self, text: str) -> Misuse:
        """Note it, for whoever swallows what is raised."""
        self.misuses.append(text)
        return Misuse(text)

    def left(self) -> dict[str, int]:
        """What was made and not given back; empty: nothing."""
        counts = {
            "memory": len(self.blocks),
            "streams": len(self.streams),
            "events": len(self.events),
            "graphs": len(self.graphs),
            "executable graphs": len(self.executables),
            "reserved bytes": self.reserved_bytes,
            **self.live,
        }
        return {what: count for what, count in counts.items() if count}

    def handle(self) -> Handle:
        self._next += 0x10
        return Handle(self._next)

    # Memory

    def allocate(self, size: int, *, pinned: bool) -> int:
        if any(stream.capture is not None for stream in self.streams.values()):
            raise self.misuse("memory was allocated while a stream is captured")
        if not pinned and self.used_bytes() + size > self.devices[self.current].memory_bytes:
            raise Failure("cudaErrorMemoryAllocation")
        # Filled with what is no number in any float type, so that what nobody wrote shows.
        data = np.full(size + 64, 0xFF, dtype=np.uint8)
        start = -data.ctypes.data % 64
        block = Block(data.ctypes.data + start, data[start : start + size], pinned)
        self.blocks[block.address] = block
        return block.address

    def used_bytes(self) -> int:
        return self.reserved_bytes + sum(block.data.size for block in self.blocks.values() if not block.pinned)

    def free(self, address: int, *, pinned: bool) -> None:
        if address == 0:
            return
        block = self.blocks.get(address)
        if block is None or block.pinned != pinned:
            raise self.misuse(f"{address:#x} is freed and was not allocated so, or is freed twice")
        if self.is_busy():
            raise self.misuse("memory is freed while something is under way")
        del self.blocks[address]

    def memory(self, address: int, size: int, what: str, *, pinned: bool = False) -> np.ndarray:
        """The bytes at an address, all inside of one block that is still there."""
        for block in self.blocks.values():
            start = address - block.address
            if block.pinned == pinned and start >= 0 and start + size <= block.data.size:
                return block.data[start : start + size]
        raise self.misuse(
            f"{what}: {size} bytes at {address:#x} are not memory of the {'host' if pinned else 'device'}"
        )

    def is_pinned(self, address: int) -> bool:
        return any(
            block.pinned and block.address <= address < block.address + max(block.data.size, 1)
            for block in self.blocks.values()
        )

    # Streams

    def stream(self, handle: object) -> Stream:
        found = self.streams.get(int(handle))
        if found is None:
            raise self.misuse(f"stream {handle} does not exist (any more)")
        return found

    def enqueue(self, stream: Stream, operation: Operation) -> None:
        (stream.queue if stream.capture is None else stream.capture).append(operation)

    def is_busy(self) -> bool:
        return any(stream.queue for stream in self.streams.values())

    def drain(self, stream: Stream, until: Callable[[], bool] = lambda: False) -> None:
        """Let the device do what is on a stream, in order."""
        if stream.capture is not None:
            stream.spoilt = True
            raise Failure("cudaErrorStreamCaptureUnsupported")
        while stream.queue and not until() and not self.sync_error:
            operation = stream.queue.pop(0)
            stream.clock_ms += operation.ms
            operation.act()
        if self.sync_error and not self.broken:
            self.broken = self.sync_error
        if self.broken:
            for operation in stream.queue:
                operation.dropped()
            stream.queue.clear()
            raise Failure(self.broken)

    def copy(self, dst: int, src: int, count: int, kind: str, stream: Stream) -> None:
        def take(address: int, *, device: bool, what: str) -> Callable[[], np.ndarray]:
            if device:
                return lambda: self.memory(address, count, what)
            if self.is_pinned(address):
                return lambda: self.memory(address, count, what, pinned=True)
            return lambda: np.frombuffer((ctypes.c_uint8 * count).from_address(address), dtype=np.uint8)

        to_device = kind == "cudaMemcpyHostToDevice"
        if kind not in ("cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"):
            raise self.misuse(f"copies of kind {kind} are not made here")
        source = take(src, device=not to_device, what="copy from")
        target = take(dst, device=to_device, what="copy to")
        # An address of the wrong side shows now, not when it is used.
        source(), target()
        if to_device and not self.is_pinned(src):
            taken = source().copy()
            source = lambda: taken  # noqa: E731

        def act() -> None:
            target()[:] = source()

        self.enqueue(stream, Operation("copy", act, self.copy_ms))


machine = Machine()
"""The one of now; ``fake_tensorrt`` makes a new one for each test."""
