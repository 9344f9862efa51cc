#!/usr/bin/env python3
"""Reference child of joulewatch's process protocol (../../PROTOCOL.md), in Python: replace Matmul with your network.

    joulewatch profile --runtime process --network matmul --option command="python3 harness/children/python/child.py"

It multiplies a batch of vectors of 256 numbers by 256 x 256 weights. Inputs are small multiples of 1/8, weights of
1/16, so float32 sums are exact: every correct child computes the same check, in any language and order of sums.
"""

import json
import os
import sys
import time

import numpy as np

WIDTH = 256
LARGEST_BATCH = 1 << 16
CHECK_BATCH = 8
REFERENCE = 3049.8203125  # sum of relu(x w)[b, j] * (j % 7 + 1) at batch 8, computed in integers


class Failure(Exception):
    """Answer with an error; codes: unsupported_batch, out_of_memory, bad_configuration, unknown_op, failed."""

    def __init__(self, code: str, text: str):
        super().__init__(text)
        self.code = code


class Matmul:
    def load(self, request: dict) -> None:
        if request["precision"] not in ("native", "fp32"):
            raise Failure("bad_configuration", f"this child computes in fp32, not in {request['precision']}")
        i, j = np.ogrid[:WIDTH, :WIDTH]
        self.weights = (((i * 13 + j * 5) % 19 - 9) / 16).astype(np.float32)

    def prepare(self, batch: int) -> None:
        if batch > LARGEST_BATCH:
            raise Failure("unsupported_batch", f"at most {LARGEST_BATCH}")
        b, i = np.ogrid[:batch, :WIDTH]
        self.host_in = (((b * 31 + i * 7) % 17 - 8) / 8).astype(np.float32)
        self.input, self.output, self.host_out = (np.zeros((batch, WIDTH), np.float32) for _ in range(3))

    def batch(self, stamp) -> None:
        """Run one batch; call stamp() at its start and stamp(phase) at the end of each phase."""
        stamp()
        np.copyto(self.input, self.host_in)
        stamp("copy_in")
        np.matmul(self.input, self.weights, out=self.output)
        np.maximum(self.output, 0, out=self.output)
        stamp("execute")
        np.copyto(self.host_out, self.output)
        stamp("copy_out")


def untimed(phase: str = "") -> None:
    """Replace stamp when phases are not wanted."""


def run(network: Matmul, request: dict) -> dict:
    phases: dict[str, dict[str, int]] = {}
    ends: list[int] = []
    last_ns = 0

    def stamp(phase: str = "") -> None:
        nonlocal last_ns
        now_ns = time.monotonic_ns()
        if phase:
            span = phases.setdefault(phase, {"count": 0, "ns": 0})
            span["count"] += 1
            span["ns"] += now_ns - last_ns
        last_ns = now_ns

    if not request["phases"]:
        stamp = untimed
    t0_ns = time.monotonic_ns()  # CLOCK_MONOTONIC: the clock of the harness
    for _ in range(request["batches"]):
        network.batch(stamp)
        if request["batch_ends"]:
            ends.append(time.monotonic_ns() - t0_ns)
    answer = {"batches": request["batches"], "t0_ns": t0_ns, "t1_ns": time.monotonic_ns(), "batch_ends_ns": ends}
    return {**answer, "phases": phases} if request["phases"] else answer


def answer_to(network: Matmul, request: dict) -> dict:
    op = request["op"]
    if op == "describe":
        return {
            "protocol": 1, "runtime": "numpy", "runtime_version": np.__version__, "precision": "fp32", "device": "cpu",
            "offers": ["check"], "details": {"width": WIDTH, "child": "python"},
        }  # fmt: skip
    if op == "load":
        network.load(request)
    elif op == "prepare":
        network.prepare(request["batch"])
    elif op == "run":
        return run(network, request)
    elif op == "check":
        network.prepare(CHECK_BATCH)
        network.batch(untimed)
        value = float(np.sum(network.host_out.astype(np.float64) * (np.arange(WIDTH) % 7 + 1)))
        return {"values": {"weighted_sum": {"value": value, "reference": REFERENCE, "tolerance": 1e-6}}}
    elif op not in ("ping", "close"):
        raise Failure("unknown_op", f"no operation {op}")
    return {}


def main() -> None:
    # Libraries may print to stdout: keep it for messages, and redirect everything else to stderr.
    messages = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    network = Matmul()
    for line in sys.stdin:  # ends when joulewatch does
        request = json.loads(line)
        try:
            answer = {"id": request["id"], "ok": True, **answer_to(network, request)}
        except MemoryError as error:
            answer = {"id": request["id"], "ok": False, "error": {"code": "out_of_memory", "text": str(error)}}
        except Failure as error:
            answer = {"id": request["id"], "ok": False, "error": {"code": error.code, "text": str(error)}}
        messages.write(json.dumps(answer, separators=(",", ":")) + "\n")
        messages.flush()
        if request["op"] == "close":
            return


if __name__ == "__main__":
    main()
