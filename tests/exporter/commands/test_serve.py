"""What ``serve`` sets for its process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

ARENAS = """
import ctypes, sys, threading
from joulewatch_exporter.commands.serve import use_few_arenas

libc = ctypes.CDLL(None)
if "few" in sys.argv:
    use_few_arenas()
barrier = threading.Barrier(9)

def hold():
    memory = bytearray(50_000)
    barrier.wait()
    barrier.wait()

for _ in range(8):
    threading.Thread(target=hold).start()
barrier.wait()
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(libc.fdopen(1, b"w")))
libc.fflush(None)
barrier.wait()
"""


def arenas(*words: str) -> int:
    done = subprocess.run([sys.executable, "-c", ARENAS, *words], capture_output=True, text=True, check=True)
    return done.stdout.count("<heap nr=")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are those of glibc")
def test_threads_share_two_arenas() -> None:
    assert arenas("few") == 2 < arenas()
