"""A child of the process protocol with one fault, named on its command line; without a name it has no fault.

The tests run it as a program: ``faulty_child.py [FAULT [BATCH]]``. Faults of ``run`` occur only at batch size
BATCH (0: at every size).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FAULT = sys.argv[1] if len(sys.argv) > 1 else ""
BATCH = int(sys.argv[2]) if len(sys.argv) > 2 else 0

DESCRIPTION: dict[str, Any] = {
    "protocol": 1,
    "runtime": "fake",
    "runtime_version": "2.1",
    "precision": "int8",
    "provider": "Simulator",
    "device": "u280",
    "model_sha256": "ab" * 32,
    "threads": 3,
    "offers": ["check"],
    "details": {"clock_mhz": 250, "exact": True, "tuned": "no"},
}


def send(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def log(text: str) -> None:
    os.write(2, f"{text}\n".encode())


def describe() -> dict[str, Any]:
    description = dict(DESCRIPTION)
    if FAULT == "version":
        description["protocol"] = 2
    elif FAULT == "no_precision":
        del description["precision"]
    elif FAULT == "native":
        description["precision"] = "native"
    elif FAULT == "no_threads":
        del description["threads"]
    elif FAULT == "bad_details":
        description["details"] = {"nested": {}}
    elif FAULT == "bad_offers":
        description["offers"] = "check"
    elif FAULT == "no_check":
        description["offers"] = []
    elif FAULT == "changes" and Path("started").exists():
        description["device"] = "u250"
    elif FAULT == "environment":
        description["details"] = {
            "value": os.environ.get("JOULEWATCH_TEST", ""),
            "cwd": Path.cwd().name,
            "pid": os.getpid(),
        }
    return description


def check() -> dict[str, Any]:
    value: dict[str, Any] = {"value": 1.5, "reference": 1.5}
    if FAULT == "zeros":
        value = {"value": 0.0}
    elif FAULT == "zero_reference":
        value = {"value": 0, "reference": 0}
    elif FAULT == "wrong_value":
        value = {"value": 0.0, "reference": 1.5}
    elif FAULT == "no_number":
        value = {"value": float("nan")}
    elif FAULT == "bad_reference":
        value = {"value": 1.5, "reference": "one and a half"}
    elif FAULT == "no_values":
        return {}
    return {"values": {"first": value, "second": {"value": 0.0 if "zero" in FAULT else -2.0}}}


def with_fault(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to run with the fault applied."""
    duration_ns = answer["t1_ns"] - answer["t0_ns"]
    if FAULT == "fewer":
        answer["batches"] -= 1
    elif FAULT == "wall_clock":
        shift_ns = time.time_ns() - time.monotonic_ns()
        answer["t0_ns"] += shift_ns
        answer["t1_ns"] += shift_ns
    elif FAULT == "early":
        answer["t0_ns"] -= 1_000_000_000
    elif FAULT == "backwards":
        answer["t0_ns"], answer["t1_ns"] = answer["t1_ns"] + 1, answer["t0_ns"]
    elif FAULT == "seconds":
        answer["t0_ns"] *= 1e-9
    elif FAULT == "no_times":
        del answer["t0_ns"]
    elif FAULT == "overlap":
        answer["phases"] = {name: {"count": 1, "ns": duration_ns} for name in ("copy_in", "execute")}
    elif FAULT == "bad_phase":
        answer["phases"] = {"Copy In": {"count": 1, "ns": 1}}
    elif FAULT == "negative_phase":
        answer["phases"] = {"execute": {"count": 1, "ns": -1}}
    elif FAULT == "listed_phases":
        answer["phases"] = ["execute"]
    elif FAULT == "falling_ends":
        answer["batch_ends_ns"] = [*reversed(range(answer["batches"]))]
    elif FAULT == "late_ends":
        answer["batch_ends_ns"][-1] = duration_ns + 1
    elif FAULT == "few_ends":
        answer["batch_ends_ns"].pop()
    elif FAULT == "float_ends":
        answer["batch_ends_ns"][0] = 0.5
    elif FAULT == "no_phases":
        del answer["phases"], answer["batch_ends_ns"]
    return answer


def run(request: dict[str, Any]) -> dict[str, Any]:
    batches = request["batches"]
    t0_ns = time.monotonic_ns()
    ends = []
    for _ in range(batches):
        time.sleep(0.0001)
        ends.append(time.monotonic_ns() - t0_ns)
    answer: dict[str, Any] = {"batches": batches, "t0_ns": t0_ns, "t1_ns": time.monotonic_ns()}
    if request["batch_ends"]:
        answer["batch_ends_ns"] = ends
    if request["phases"]:
        span_ns = ends[-1] // 4
        answer["phases"] = {"copy_in": {"count": batches, "ns": span_ns}, "execute": {"count": batches, "ns": span_ns}}
    return with_fault(answer)


def misbehave(request: dict[str, Any]) -> None:
    """Apply a fault before the answer to run; the faults in ``ANSWERED`` replace the answer."""
    if FAULT == "crash":
        log("allocating 3 GiB")
        log("\x1b[31mfatal: device lost\x1b[0m")
        os.kill(os.getpid(), signal.SIGSEGV)
    elif FAULT == "oom_killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif FAULT == "exit":
        log("giving up")
        sys.exit(3)
    elif FAULT == "exit_zero":
        sys.exit(0)
    elif FAULT == "hang":
        Path("grandchild").write_text(str(subprocess.Popen(["sleep", "600"]).pid))
        log("waiting for the card")
        time.sleep(600)
    elif FAULT == "half_line":
        os.write(1, b'{"id":')
        time.sleep(600)
    elif FAULT == "garbage":
        send("INFO: loading model")
    elif FAULT == "list":
        send("[1, 2]")
    elif FAULT == "deep":
        send("[" * 200_000)
    elif FAULT == "bytes":
        os.write(1, b"\xff\xfe\x00\n")
    elif FAULT == "long_line":
        os.write(1, b"x" * (5 << 20))
    elif FAULT == "close_stdout":
        os.close(1)
        time.sleep(600)
    elif FAULT == "other_id":
        send(json.dumps({"id": request["id"] + 1, "ok": True}))
    elif FAULT == "no_ok":
        send(json.dumps({"id": request["id"]}))
    elif FAULT == "two_lines":
        os.write(1, (json.dumps({"id": request["id"], "ok": True, **run(request)}) + '\n{"more":1}\n').encode())


ANSWERED = ("garbage", "list", "deep", "bytes", "other_id", "no_ok", "two_lines")
ERRORS = {
    "refuses": ("unsupported_batch", "at most 256"),
    "no_memory": ("out_of_memory", "3 GiB wanted"),
    "fails": ("failed", "the card says no"),
    "unknown_code": ("whatever", ""),
    "bad_configuration": ("bad_configuration", "no int8 on this card"),
}


def start() -> None:
    """Misbehave before the first request."""
    if FAULT == "crash_at_start":
        log("no such device: u280")
        sys.exit(7)
    if FAULT == "never_starts":
        time.sleep(600)
    if FAULT == "slow_start":
        time.sleep(0.3)
    if FAULT == "talkative":
        for number in range(60_000):
            log(f"debug line {number} of very many that nobody reads")


def main() -> int:
    size = 0
    start()
    for line in sys.stdin:
        request = json.loads(line)
        op = request["op"]
        answer: dict[str, Any] = {"id": request["id"], "ok": True}
        has_fault = BATCH in (0, size)
        if op == "describe":
            answer |= describe()
        elif op == "load":
            if FAULT == "slow_load":
                time.sleep(600)
            if FAULT == "bad_configuration":
                code, text = ERRORS[FAULT]
                answer = {"id": request["id"], "ok": False, "error": {"code": code, "text": text}}
        elif op == "prepare":
            size = request["batch"]
            if FAULT in ERRORS and BATCH in (0, size):
                code, text = ERRORS[FAULT]
                answer = {"id": request["id"], "ok": False, "error": {"code": code, "text": text}}
            if FAULT == "changes":
                Path("started").touch()
        elif op == "run":
            if has_fault and FAULT == "changes":
                return 0
            if has_fault:
                misbehave(request)
                if FAULT in ANSWERED:
                    continue
            answer |= run(request)
        elif op == "check":
            answer |= check()
        elif op == "ping":
            answer = {"id": request["id"], "ok": False, "error": {"code": "unknown_op", "text": ""}}
        elif op == "close" and FAULT == "never_closes":
            time.sleep(600)
        send(json.dumps(answer))
        if op == "close":
            break
    # The exit status means nothing: some programs exit with 1 after success.
    return 1 if FAULT == "status_one" else 0


if __name__ == "__main__":
    sys.exit(main())
