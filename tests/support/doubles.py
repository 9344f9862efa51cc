"""Doubles of the paper's network under TVM, TensorRT and FINN: they take time and emulated power, and compute nothing.

The times are made up. They have the shape that the paper describes: the FPGA between the CPU and the GPU, and most of
its time in the driver.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from joulewatch_harness.network import Phases
from support.demo_node import LoadFile


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a phase: a part per batch, and a part per inference."""

    batch_s: float
    inference_s: float

    def seconds(self, batch_size: int) -> float:
        return self.batch_s + self.inference_s * batch_size


@dataclass(frozen=True, slots=True)
class Model:
    """What one runtime with one precision costs."""

    load: float
    """Share of the power between idle and full."""
    phases: Mapping[str, Cost]


MODELS: Final[Mapping[tuple[str, str], Model]] = {
    ("tvm", "fp32"): Model(0.95, {"execute": Cost(0.6e-3, 120e-6)}),
    ("tvm", "int8"): Model(0.85, {"execute": Cost(0.5e-3, 45e-6)}),
    ("tensorrt", "fp32"): Model(
        0.9, {"copy_in": Cost(20e-6, 0.3e-6), "execute": Cost(120e-6, 1.8e-6), "copy_out": Cost(10e-6, 0.0)}
    ),
    ("tensorrt", "fp16"): Model(
        0.75, {"copy_in": Cost(20e-6, 0.3e-6), "execute": Cost(100e-6, 0.8e-6), "copy_out": Cost(10e-6, 0.0)}
    ),
    ("tensorrt", "int8"): Model(
        0.65, {"copy_in": Cost(20e-6, 0.3e-6), "execute": Cost(90e-6, 0.4e-6), "copy_out": Cost(10e-6, 0.0)}
    ),
    ("finn", "int5"): Model(
        0.8,
        {
            "pack": Cost(0.9e-3, 12e-6),
            "copy_in": Cost(80e-6, 0.5e-6),
            "execute": Cost(110e-6, 4.3e-6),
            "copy_out": Cost(60e-6, 0.0),
            "unpack": Cost(0.5e-3, 2e-6),
        },
    ),
}
DEVICES: Final = {"tvm": "cpu", "tensorrt": "cuda:0", "finn": "fpga"}


class VGG10:
    """The double of one configuration.

    Args:
        precision: As in the plan.
        runtime: Whose double it is.
        load: The file with the load of the emulated node.
    """

    def __init__(self, precision: str, runtime: str, load: str) -> None:
        self._precision, self._runtime = precision, runtime
        self._model = MODELS[runtime, precision]
        self._load = LoadFile(Path(load))
        self._batch_size = 0

    def describe(self) -> dict[str, Any]:
        return {
            "runtime": f"{self._runtime}-double",
            "runtime_version": "1",
            "precision": self._precision,
            "device": DEVICES[self._runtime],
        }

    def load(self) -> None:
        pass

    def prepare(self, batch: int) -> None:
        self._batch_size = batch

    def run(self, batches: int, phases: Phases) -> None:
        for _ in range(batches):
            self._load.write(self._model.load)
            seconds = {name: cost.seconds(self._batch_size) for name, cost in self._model.phases.items()}
            start_ns = time.monotonic_ns()
            time.sleep(sum(seconds.values()))
            # A sleep is too long, by up to 0.1 ms; each phase gets its share.
            scale = (time.monotonic_ns() - start_ns) / sum(seconds.values())
            for name, phase_s in seconds.items():
                end_ns = start_ns + round(scale * phase_s)
                phases.add(name, start_ns, end_ns)
                start_ns = end_ns
            phases.batch()

    def close(self) -> None:
        pass
