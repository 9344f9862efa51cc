"""A child of the process protocol that runs an .onnx file in ONNX Runtime; based on the reference child.

onnx_child.py FILE.onnx
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).parents[2] / "harness" / "children" / "python"))

import child  # type: ignore[import-not-found, unused-ignore]


class OnnxModel:
    """One thread; the inputs are bound once for each batch size."""

    def load(self, _request: dict[str, Any]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])

    def prepare(self, batch: int) -> None:
        self.binding = self.session.io_binding()
        (signature,) = self.session.get_inputs()
        frames = np.random.default_rng(0).standard_normal((batch, *signature.shape[1:]), dtype=np.float32)
        self.binding.bind_cpu_input(signature.name, frames)
        self.binding.bind_output(self.session.get_outputs()[0].name)

    def batch(self, stamp: Callable[..., None]) -> None:
        stamp()
        self.session.run_with_iobinding(self.binding)
        stamp("execute")


if __name__ == "__main__":
    child.Matmul = OnnxModel
    child.main()
