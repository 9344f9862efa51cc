"""The exporter as a child of the harness, for machines where nobody runs one."""

from __future__ import annotations

import logging
import os
import re
import selectors
import subprocess
import sys
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
    """An exporter on a free loopback port, which ends with this process, even when that is killed.

    Args:
        folder: where its log goes (``exporter.log``).
        flags: more flags of ``joulewatch-exporter``, such as ``--path.sysfs=DIR``.
        timeout_s: how long it may take to listen.
        command: how it is started; for tests.
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
        self._command = (*command, "--web.listen-address=127.0.0.1:0", "--exit-on-stdin-close", *flags)
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._pump: threading.Thread | None = None
        self.url = ""
        """``http://127.0.0.1:PORT/metrics`` while it runs."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it and wait until it listens.

        Raises:
            ExporterUnreachableError: it ended, or did not listen in time; the text ends with its last words.
        """
        try:
            log = self._log_path.open("ab")
        except OSError as error:
            raise ExporterUnreachableError(f"{self._log_path}: cannot be written to: {error.strerror}") from error
        # Our end of the pipe is its life line: it closes with this process, however that ends. A session of its
        # own keeps the terminal's Ctrl-C from it: the last windows still need their edges.
        self._process = subprocess.Popen(
            self._command,
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
        self._pump = threading.Thread(
            target=_pump, args=(self._process.stderr, log), name="log of the exporter", daemon=True
        )
        self._pump.start()

    def stop(self) -> None:
        """End it; safe to call twice."""
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
            logger.warning("the exporter (pid %d) does not end, and is killed", process.pid)
            process.kill()
            process.wait()
        if self._pump is not None:
            self._pump.join()
        process.stderr.close()
        self.url = ""

    def _wait(self, stderr: IO[bytes], log: IO[bytes]) -> str:
        """Copy its log until a line names the URL it listens on."""
        deadline_s = time.monotonic() + self._timeout_s
        descriptor = stderr.fileno()
        said = b""
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while True:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise ExporterUnreachableError(
                        f"the local exporter does not listen after {self._timeout_s:g} s{_last_words(said)}"
                    )
                if not selector.select(left_s):
                    continue
                piece = os.read(descriptor, 65536)
                if not piece:
                    raise ExporterUnreachableError(f"the local exporter ended at once{_last_words(said)}")
                said += piece
                log.write(piece)
                log.flush()
                found = _LISTENING.search(said[: said.rfind(b"\n") + 1])
                if found is not None:
                    return found[1].decode()


def _pump(source: IO[bytes], log: IO[bytes]) -> None:
    with log:
        while piece := os.read(source.fileno(), 65536):
            log.write(piece)
            log.flush()


def _last_words(said: bytes) -> str:
    text = " | ".join(said.decode("utf-8", "replace").strip().splitlines()[-3:])
    return f": {text}" if text else ": it said nothing"
