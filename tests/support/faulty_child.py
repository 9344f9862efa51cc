"""A child of the process protocol that does one thing wrong, named on its command line; alone it does all right.

Run as a program by the tests: ``faulty_child.py [FAULT [BATCH]]``. The faults of ``run`` come at batch size
BATCH only (0: at any).
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


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def moan(text: str) -> None:
    os.write(2, f"{text}\n".encode())


def describe() -> dict[str, Any]:
    told = dict(DESCRIPTION)
    if FAULT == "version":
        told["protocol"] = 2
    elif FAULT == "no_precision":
        del told["precision"]
    elif FAULT == "native":
        told["precision"] = "native"
    elif FAULT == "no_threads":
        del told["threads"]
    elif FAULT == "bad_details":
        told["details"] = {"nested": {}}
    elif FAULT == "bad_offers":
        told["offers"] = "check"
    elif FAULT == "no_check":
        told["offers"] = []
    elif FAULT == "changes" and Path("started").exists():
        told["device"] = "u250"
    elif FAULT == "environment":
        told["details"] = {"value": os.environ.get("JOULEWATCH_TEST", ""), "cwd": Path.cwd().name, "pid": os.getpid()}
    return told


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


def spoiled(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer to run with the fault in it."""
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
    return spoiled(answer)


def misbehave(request: dict[str, Any]) -> None:
    """What goes wrong with the answer to run; after those of ``ANSWERED`` there is no other one."""
    if FAULT == "crash":
        moan("allocating 3 GiB")
        moan("\x1b[31mfatal: device lost\x1b[0m")
        os.kill(os.getpid(), signal.SIGSEGV)
    elif FAULT == "oom_killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif FAULT == "exit":
        moan("giving up")
        sys.exit(3)
    elif FAULT == "exit_zero":
        sys.exit(0)
    elif FAULT == "hang":
        Path("grandchild").write_text(str(subprocess.Popen(["sleep", "600"]).pid))
        moan("waiting for the card")
        time.sleep(600)
    elif FAULT == "half_line":
        os.write(1, b'{"id":')
        time.sleep(600)
    elif FAULT == "garbage":
        say("INFO: loading model")
    elif FAULT == "list":
        say("[1, 2]")
    elif FAULT == "deep":
        say("[" * 200_000)
    elif FAULT == "bytes":
        os.write(1, b"\xff\xfe\x00\n")
    elif FAULT == "long_line":
        os.write(1, b"x" * (5 << 20))
    elif FAULT == "close_stdout":
        os.close(1)
        time.sleep(600)
    elif FAULT == "other_id":
        say(json.dumps({"id": request["id"] + 1, "ok": True}))
    elif FAULT == "no_ok":
        say(json.dumps({"id": request["id"]}))
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
        moan("no such device: u280")
        sys.exit(7)
    if FAULT == "never_starts":
        time.sleep(600)
    if FAULT == "slow_start":
        time.sleep(0.3)
    if FAULT == "talkative":
        for number in range(60_000):
            moan(f"debug line {number} of very many that nobody reads")


def main() -> int:
    size = 0
    start()
    for line in sys.stdin:
        request = json.loads(line)
        op = request["op"]
        answer: dict[str, Any] = {"id": request["id"], "ok": True}
        here = BATCH in (0, size)
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
            if here and FAULT == "changes":
                return 0
            if here:
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
        say(json.dumps(answer))
        if op == "close":
            break
    # The status says nothing: programs exist that exit with 1 when all went well.
    return 1 if FAULT == "status_one" else 0


if __name__ == "__main__":
    sys.exit(main())
