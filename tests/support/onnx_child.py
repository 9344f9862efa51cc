"""A child of the process protocol that runs an .onnx file: ``onnx_child.py MODEL.onnx INPUTS.npz PRECISION``.

Its check returns every number of the first output, ``b,j`` -> value, for a batch of all rows of INPUTS.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


class Child:
    """One session, one batch."""

    def __init__(self, model: Path, inputs: Path, precision: str) -> None:
        self.model, self.precision = model, precision
        with np.load(inputs) as file:
            self.rows = {name: file[name] for name in file.files}
        self.session: Any = None
        self.feeds: dict[str, np.ndarray] = {}
        self.outputs: list[np.ndarray] = []

    def op_describe(self, _: dict[str, Any]) -> dict[str, Any]:
        description: dict[str, Any] = {
            "protocol": 1,
            "runtime": "onnxruntime-child",
            "runtime_version": onnxruntime.__version__,
            "precision": self.precision,
            "device": "cpu",
            "offers": ["check"],
        }
        if self.session is not None:
            description["model_sha256"] = hashlib.sha256(self.model.read_bytes()).hexdigest()
        return description

    def op_load(self, _: dict[str, Any]) -> dict[str, Any]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(self.model), options, providers=["CPUExecutionProvider"])
        return {}

    def op_prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        self.feeds = {name: np.resize(rows, (request["batch"], *rows.shape[1:])) for name, rows in self.rows.items()}
        return {}

    def op_run(self, request: dict[str, Any]) -> dict[str, Any]:
        t0_ns = time.monotonic_ns()
        ends_ns = []
        for _ in range(request["batches"]):
            self.outputs = self.session.run(None, self.feeds)
            ends_ns.append(time.monotonic_ns() - t0_ns)
        answer = {"batches": request["batches"], "t0_ns": t0_ns, "t1_ns": time.monotonic_ns()}
        return {**answer, "batch_ends_ns": ends_ns if request["batch_ends"] else []}

    def op_check(self, _: dict[str, Any]) -> dict[str, Any]:
        self.op_prepare({"batch": len(next(iter(self.rows.values())))})
        self.op_run({"batches": 1, "batch_ends": False})
        return {"values": {f"{b},{j}": {"value": float(value)} for (b, j), value in np.ndenumerate(self.outputs[0])}}

    def op_ping(self, _: dict[str, Any]) -> dict[str, Any]:
        return {}

    op_close = op_ping


def main() -> None:
    messages = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    child = Child(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(child, f"op_{request['op']}")(request)
        messages.write(json.dumps({"id": request["id"], "ok": True, **answer}) + "\n")
        messages.flush()
        if request["op"] == "close":
            return


if __name__ == "__main__":
    main()
