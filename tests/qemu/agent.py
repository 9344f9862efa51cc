"""Runs in the guest and executes calls from the tests on the host.

Each received line is a list of calls, ``[name, argument, ...]``. The answer is a line with the list of their results,
or with the traceback of the call that failed. The agent ends when the host closes the channel.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_CHANNELS = "vport*"
"""Pattern below /dev; the virtual machine has one such device."""
_CHANNEL_LIMIT_S = 30.0
_NOBODY = 65534

_started: dict[str, subprocess.Popen[bytes]] = {}


def read(path: str) -> str:
    return Path(path).read_text(errors="replace")


def write(path: str, text: str) -> None:
    Path(path).write_text(text)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def run(command: Sequence[str], as_root: bool, timeout_s: float) -> tuple[int, str, str]:
    """Run a command to its end; return exit code, stdout and stderr."""
    done = subprocess.run(
        command, **_user(as_root), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, cwd="/"
    )
    return done.returncode, done.stdout, done.stderr


def start(name: str, command: Sequence[str], as_root: bool) -> None:
    """Start a daemon; a running daemon of that name is stopped. Its stderr goes to ``/run/NAME.log``."""
    if (old := _started.pop(name, None)) is not None:
        old.kill()
        old.wait(20)
    with open(f"/run/{name}.log", "wb") as log:
        _started[name] = subprocess.Popen(command, **_user(as_root), stdin=subprocess.DEVNULL, stderr=log, cwd="/")


def stop(name: str) -> int:
    process = _started.pop(name)
    process.terminate()
    return process.wait(20)


def get(url: str) -> str:
    """Return the body of a page of a web server in the guest."""
    with urllib.request.urlopen(url, timeout=20) as response:
        return str(response.read().decode())


def _user(as_root: bool) -> dict[str, Any]:
    return {} if as_root else {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}


_CALLS = {call.__name__: call for call in (read, write, sleep, run, start, stop, get)}


def _open_channel() -> int:
    """Open the channel; wait until the driver has created its device file."""
    end_s = time.monotonic() + _CHANNEL_LIMIT_S
    while not (devices := list(Path("/dev").glob(_CHANNELS))) and time.monotonic() < end_s:
        time.sleep(0.05)
    return os.open(devices[0], os.O_RDWR)


def main() -> int:
    channel = _open_channel()
    os.write(channel, b'["ready"]\n')
    with os.fdopen(channel, "rb", closefd=False) as lines:
        for line in lines:
            answer: Any
            try:
                answer = [_CALLS[name](*arguments) for name, *arguments in json.loads(line)]
            except Exception:
                answer = traceback.format_exc()
            data = json.dumps(answer).encode() + b"\n"
            while data:
                data = data[os.write(channel, data) :]
    return 0


if __name__ == "__main__":
    sys.exit(main())
