"""A fake of pynq's API: devices, overlays, buffers with a mirror on the card, DMA engines, counters.

``board`` sets the behaviour of the accelerator. A buffer's ``flush`` and ``invalidate`` copy to and from the mirror,
so a driver that omits one of them computes with old data, as on a board.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .pl_server.device import Device

__version__ = "3.0.1-fake"


def _top_1(frames: np.ndarray) -> np.ndarray:
    """Return one byte per frame, 1 to 24, from all its bytes; by words, to finish before the frames are due."""
    words = np.ascontiguousarray(frames).view(np.uint64)
    return (np.bitwise_xor.reduce(words, axis=1) % 24 + 1).astype(np.uint8)[:, None]


class Board:
    """Behaviour of the accelerator, set by tests."""

    def __init__(self) -> None:
        self.frame_s = float(os.environ.get("FAKE_PYNQ_FRAME_US", "0")) * 1e-6
        """Accelerator time per frame; runs of the whole program set it by the environment."""
        self.compute: Callable[[np.ndarray], np.ndarray] = _top_1
        """Maps packed input bytes, one row per frame, to packed output bytes."""
        self.hangs = False
        self.writes_nothing = False
        self.writes_zeros = False
        self.frames_written: int | None = None
        self.memory_bytes: int | None = None
        self.clock_mhz = 250.0
        """Clock of an Alveo design; a Zynq's clock is in ``ps.Clocks``."""
        self.interval_cycles = 1000
        self.latency_cycles = 5000
        self.overflows = False
        self.stalls = False
        self.launches: list[int] = []
        """Batch size of each launch."""
        self.downloads: list[str] = []


board = Board()
_buffers: dict[int, Buffer] = {}
_addresses = itertools.count(0x1_0000_0000, 0x1_0000)


class Buffer(np.ndarray):
    """Host memory with a mirror on the device."""

    mirror: np.ndarray
    device_address: int

    def flush(self) -> None:
        np.copyto(self.mirror, self)

    def invalidate(self) -> None:
        np.copyto(self, self.mirror)


def allocate(shape: Any, dtype: Any = "u4", target: Any = None, **_: Any) -> Buffer:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if board.memory_bytes is not None and size > board.memory_bytes:
        raise RuntimeError("Failed to allocate Memory!")
    allocated = np.zeros(shape, dtype=dtype).view(Buffer)
    allocated.mirror = np.zeros(shape, dtype=dtype)
    allocated.device_address = next(_addresses)
    _buffers[allocated.device_address & 0xFFFFFFFF] = allocated
    return allocated


class Pipeline:
    """The accelerator between the input and the output engine of one overlay."""

    def __init__(self) -> None:
        self.engines: list[Engine] = []
        self.source: Buffer | None = None
        self.sink: Buffer | None = None
        self.batch = 0
        self._due_ns = 0
        self._result: np.ndarray | None = None

    def launch(self) -> None:
        """Start when both engines are started."""
        if self.source is None or self.sink is None:
            return
        board.launches.append(self.batch)
        self._due_ns = time.monotonic_ns() + round(self.batch * board.frame_s * 1e9)
        self._result = board.compute(np.asarray(self.source.mirror).reshape(len(self.source), -1)[: self.batch])

    def poll(self) -> bool:
        """Return whether the pipeline is idle; the first call after the end of a batch writes its output."""
        if self._result is None or self.sink is None or board.hangs or time.monotonic_ns() < self._due_ns:
            return self.source is None and self.sink is None
        count = self.batch if board.frames_written is None else min(self.batch, board.frames_written)
        if not board.writes_nothing:
            target = self.sink.mirror.reshape(len(self.sink), -1)
            target[:count] = 0 if board.writes_zeros else self._result[:count]
        self.source = self.sink = self._result = None
        for engine in self.engines:
            engine.running, engine.done = False, True
        return True


class Engine:
    """One DMA engine, with the registers of a Zynq's engine and the ``start`` of an Alveo's."""

    def __init__(self, pipeline: Pipeline, *, is_output: bool) -> None:
        self.running = False
        self.done = False
        self._pipeline = pipeline
        self._is_output = is_output
        self._registers: dict[int, int] = {}
        pipeline.engines.append(self)

    def write(self, offset: int, value: int) -> None:
        self._registers[offset] = value
        if offset == 0x00 and value & 1:
            self._begin(_buffers[self._registers[0x10] & 0xFFFFFFFF], self._registers[0x1C])

    def read(self, offset: int) -> int:
        """Return the control register of an HLS core: a read clears done (bit 1), but not idle (bit 2)."""
        self._pipeline.poll()
        control = (0 if self.running else 0x4) | (0x2 if self.done else 0)
        self.done = False
        return control

    def start(self, buffer: Buffer, batch: int) -> Engine:
        self._begin(buffer, batch)
        return self

    def wait(self) -> None:
        while not self._pipeline.poll():
            pass

    def _begin(self, buffer: Buffer, batch: int) -> None:
        self.running, self.done = True, False
        if self._is_output:
            self._pipeline.sink = buffer
        else:
            self._pipeline.source = buffer
        self._pipeline.batch = batch
        self._pipeline.launch()


class Instrumentation:
    """The core that generates frames on the chip and counts them."""

    registers = (
        "cfg", "status", "checksum", "min_latency", "latency", "interval", "seed", "avg_n", "mux_interval", "avg_fill",
        "lat_sum_lo", "lat_sum_hi", "int_sum_lo", "int_sum_hi", "run_cycles_lo", "run_cycles_hi", "run_frames",
    )  # fmt: skip

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._began_ns: int | None = None

    def write(self, offset: int, value: int) -> None:
        if self.registers[offset] == "cfg":
            self._began_ns = time.monotonic_ns() if value & 1 else None

    def read(self, offset: int) -> int:
        cycles = 0
        feeds = self._began_ns is not None and self._overlay.mode == 1
        if self._began_ns is not None and feeds and not board.hangs:
            cycles = round((time.monotonic_ns() - self._began_ns) * 1e-3 * self._overlay.clock_mhz)
        if board.stalls:
            cycles = min(cycles, round(0.2e6 * self._overlay.clock_mhz))
        frames = cycles // board.interval_cycles
        runs = 1 if frames else 0
        registers = {
            "status": int(board.overflows),
            "min_latency": board.latency_cycles * runs,
            "latency": board.latency_cycles * runs,
            "interval": board.interval_cycles * runs,
            "avg_fill": 64 * runs,
            "lat_sum_lo": 64 * board.latency_cycles * runs,
            "int_sum_lo": 64 * board.interval_cycles * runs,
            "run_cycles_lo": cycles & 0xFFFFFFFF,
            "run_cycles_hi": cycles >> 32,
            "run_frames": frames & 0xFFFFFFFF,
        }
        return registers.get(self.registers[offset], 0)


class Gpio:
    """Offset 0 resets the accelerator, offset 8 switches between DMA (0) and instrumentation (1)."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay

    def write(self, offset: int, value: int) -> None:
        if offset == 0:
            self._overlay.instrumentation_wrap_0.write(0, 0)
        else:
            self._overlay.mode = value

    def read(self, offset: int) -> int:
        return self._overlay.mode if offset == 8 else 0


class Bitstream:
    """Drivers only import this class, for partial reconfiguration."""


class Overlay:
    """A design on a device."""

    def __init__(
        self, bitfile_name: str, dtbo: Any = None, download: bool = True, device: Device | None = None
    ) -> None:
        self.device = Device.active_device if device is None else device
        self.bitfile_name = bitfile_name
        pipeline = Pipeline()
        self.idma0, self.odma0 = Engine(pipeline, is_output=False), Engine(pipeline, is_output=True)
        self.clock_dict = {"clock0": {"frequency": board.clock_mhz}}
        self.mode = 0
        self.instrumentation_wrap_0 = Instrumentation(self)
        self.axi_gpio_0 = Gpio(self)
        offsets = {name: {"address_offset": number} for number, name in enumerate(Instrumentation.registers)}
        self.ip_dict = {
            "instrumentation_wrap_0": {"registers": offsets},
            "axi_gpio_0": {"registers": {"GPIO_DATA": {"address_offset": 0}, "GPIO2_DATA": {"address_offset": 8}}},
        }
        if download:
            board.downloads.append(bitfile_name)
            self.timestamp = self.device.timestamp = f"{bitfile_name} {len(board.downloads)}"

    @property
    def clock_mhz(self) -> float:
        return float(getattr(self, "fclk_mhz_actual", board.clock_mhz))

    def is_loaded(self) -> bool:
        return self.timestamp == self.device.timestamp

    def free(self) -> None:
        self.device.timestamp = ""
