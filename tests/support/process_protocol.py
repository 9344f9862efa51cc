"""Shared by the tests of the process protocol: the schema, the faulty child, a wait for the end of a process."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from joulewatch_harness.runtimes.process import network as process

TOP = Path(__file__).parents[2]
CHILD = TOP / "tests" / "support" / "faulty_child.py"
SCHEMA: dict[str, Any] = json.loads(Path(process.__file__).with_name("process.schema.json").read_text())
WAIT_S = 20.0


def gone(pid: int) -> bool:
    """Wait for a process to end; return whether it did. A zombie has ended."""
    until_s = time.monotonic() + WAIT_S
    while time.monotonic() < until_s:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def errors_in(message: Any, name: str) -> list[str]:
    validator = Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": SCHEMA["$defs"]})
    return [error.message for error in validator.iter_errors(message)]


def validate_transcript(text: str) -> list[str]:
    """Check every message against the schema; return the operations."""
    ops: dict[int, str] = {}
    loaded = False
    for line in text.splitlines():
        message = json.loads(line[2:])
        if line.startswith("> "):
            assert errors_in(message, "request") == [], line
            ops[message["id"]] = message["op"]
            continue
        assert line.startswith("< ")
        op = ops[message["id"]]
        name = "error" if not message["ok"] else "answer_loaded" if op == "describe" and loaded else f"answer_{op}"
        assert errors_in(message, name) == [], line
        loaded = loaded or op == "load"
    return list(ops.values())
