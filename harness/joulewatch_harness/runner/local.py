"""Run the exporter as a child process, for machines without a running exporter."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final, Self

from joulewatch_harness.errors import ExporterUnreachableError

logger = logging.getLogger(__name__)

START_TIMEOUT_S: Final = 15.0
STOP_TIMEOUT_S: Final = 3.0
LOG_NAME: Final = "exporter.log"
COMMAND: Final = (sys.executable, "-m", "joulewatch_exporter")

_LISTENING: Final = re.compile(rb"listening on (https?://[^\s\"]+)")


class LocalExporter:
    """An exporter on a free loopback port; it ends with this process, even if this process is killed.

    Args:
        folder: Folder of its log file, ``exporter.log``.
        flags: Further flags of ``joulewatch-exporter``, for example ``--path.sysfs=DIR``.
        timeout_s: Limit for the time until it listens.
        command: Command without flags; for tests.
    """

    def __init__(
        self,
        folder: Path,
        flags: Sequence[str] = (),
        *,
        timeout_s: float = START_TIMEOUT_S,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._log_path = folder / LOG_NAME
        self._command = (*command, "--web.listen-address=127.0.0.1:0", "--exit-on-stdin-close")
        self._flags = tuple(flags)
        # Not in the run's folder, whose path may be longer than that of a socket may be.
        self._socket_folder: tempfile.TemporaryDirectory[str] | None = None
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._log_thread: threading.Thread | None = None
        self.url = ""
        """``http://127.0.0.1:PORT/metrics`` while it is running."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Process id of the exporter; None while it is not running."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the exporter and wait until it listens.

        Raises:
            ExporterUnreachableError: it ended, or did not listen in time; the text contains its last output.
        """
        try:
            log = self._log_path.open("ab", buffering=0)
        except OSError as error:
            raise ExporterUnreachableError(f"{self._log_path}: cannot be written to: {error.strerror}") from error
        # The exporter ends when its stdin closes, which the kernel does when this process ends, for any reason. In
        # its own session it does not get the terminal's Ctrl-C: the last window still needs its edges.
        self._socket_folder = tempfile.TemporaryDirectory(prefix="joulewatch-")
        self._process = subprocess.Popen(
            (*self._command, f"--web.edge-socket={self._socket_folder.name}/edge.sock", *self._flags),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stderr is not None
        try:
            self.url = self._wait(self._process.stderr, log)
        except BaseException:
            log.close()
            self.stop()
            raise
        self._log_thread = threading.Thread(
            target=_copy_log, args=(self._process.stderr, log), name="exporter log", daemon=True
        )
        self._log_thread.start()

    def stop(self) -> None:
        """End the exporter; safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.close()
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            logger.warning("the local exporter (pid %d) does not end; killing it", process.pid)
            process.kill()
            process.wait()
        if self._log_thread is not None:
            self._log_thread.join()
        process.stderr.close()
        if self._socket_folder is not None:
            self._socket_folder.cleanup()
        self.url = ""

    def _wait(self, stderr: IO[bytes], log: IO[bytes]) -> str:
        """Copy its output to the log until a line names the URL on which it listens; return the URL."""
        deadline_s = time.monotonic() + self._timeout_s
        descriptor = stderr.fileno()
        output = b""
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while True:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise ExporterUnreachableError(
                        f"the local exporter did not listen within {self._timeout_s:g} s{_last_lines(output)}"
                    )
                if not selector.select(left_s):
                    continue
                piece = os.read(descriptor, 65536)
                if not piece:
                    raise ExporterUnreachableError(f"the local exporter ended during its start{_last_lines(output)}")
                output += piece
                _write(log, piece)
                match = _LISTENING.search(output[: output.rfind(b"\n") + 1])
                if match is not None:
                    return match[1].decode()


def _copy_log(source: IO[bytes], log: IO[bytes]) -> None:
    with log:
        while piece := os.read(source.fileno(), 65536):
            _write(log, piece)


def _write(log: IO[bytes], piece: bytes) -> None:
    # A full disk must not end this thread: the exporter would wait for ever with a full pipe.
    with contextlib.suppress(OSError):
        log.write(piece)


def _last_lines(output: bytes) -> str:
    text = " | ".join(output.decode("utf-8", "replace").strip().splitlines()[-3:])
    return f": {text}" if text else "; it printed nothing"
