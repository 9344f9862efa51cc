"""Run the commands as a user does, as child processes, and return their output."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SLEEPER = f"{Path(__file__).with_name('sleeper.py')}:Sleeper"


@dataclass(frozen=True, slots=True)
class Outcome:
    code: int
    out: str
    err: str


def joulewatch(*words: object, folder: Path, limit_s: float = 90.0, module: str = "joulewatch_harness") -> Outcome:
    """Run ``joulewatch WORDS`` in ``folder`` and wait for it."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", module, *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=limit_s,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "80"},
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def start_joulewatch(*words: object, folder: Path) -> subprocess.Popen[str]:
    """Start ``joulewatch WORDS`` in ``folder`` with piped stderr, to be interrupted or killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "joulewatch_harness", *map(str, words)],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
