"""One child process with JSON lines on stdin and stdout: start it, send requests, time the answers, end it.

This module does not interpret messages. A child that breaks the protocol (ends, hangs, writes an invalid message,
answers another request) is ended with its process group; the error states what happened and the last lines of stderr.
Its exit status is reported but does not count, because some programs exit with 1 after success.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from joulewatch_harness import files
from joulewatch_harness.errors import NetworkError

logger = logging.getLogger(__name__)

LONGEST_LINE_BYTES: Final = 4 << 20
KEPT_STDERR_BYTES: Final = 64 << 10
LARGEST_STDERR_BYTES: Final = 1 << 20
"""Above this size, stderr is cut to its last ``KEPT_STDERR_BYTES``, unless it goes to a file of the user."""
LAST_LINES: Final = 5
LONGEST_QUOTE: Final = 160
_EXIT_GRACE_S: Final = 1.0
"""Time for a child that has closed its stdout to end, so that its exit status can be reported."""
_KILLED_WITHIN_S: Final = 10.0
_SLICE_S: Final = 1.0
_parse: Final = json.JSONDecoder().raw_decode
"""Text -> its first JSON value and where that ends; takes half the time of json.loads for a short answer."""

# Runs between fork and exec as a separate program, because subprocess's preexec_fn is not safe in a process with
# threads. The child ends with joulewatch (1 is PR_SET_PDEATHSIG), even if joulewatch is killed. With -S and -I it
# starts in about 20 ms. Python ignores SIGPIPE, and exec keeps ignored signals.
_LAUNCHER: Final = """\
import os, signal, sys
try:
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
except Exception:
    pass
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
try:
    os.execv(sys.argv[2], sys.argv[3:])
except OSError as error:
    os.write(2, f"{sys.argv[2]} cannot be executed: {error.strerror}\\n".encode())
    os._exit(127)
"""


class Answer(NamedTuple):
    """The answer to one request, and the times of request and answer (monotonic ns)."""

    message: Mapping[str, Any]
    sent_ns: int
    received_ns: int


class Child:
    """A running child; made by ``Child.start``."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], stderr: Stderr, transcript: IO[bytes] | None):
        assert process.stdin is not None
        assert process.stdout is not None
        self._name = name
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout
        self._stdin_fd, self._stdout_fd = process.stdin.fileno(), process.stdout.fileno()
        self._stderr = stderr
        self._transcript = transcript
        self._poll = select.poll()
        self._poll.register(self._stdout, select.POLLIN)
        self._buffer = bytearray()
        self._id = 0
        self._asked = False
        self.ended = False
        self.last_words = ""
        """The last lines of stderr, as the end of a sentence; known after the end."""

    @classmethod
    def start(
        cls,
        name: str,
        words: Sequence[str],
        *,
        cwd: Path | None,
        environment: Mapping[str, str],
        stderr: Path | None,
        transcript: Path | None,
    ) -> Child:
        """Start a program in a new session and process group.

        Call it from a thread that lives at least as long as the child: Linux ends the child with that thread.

        Args:
            name: Name of the child in errors.
            words: The full path of the program, then its arguments, beginning with its name.
            cwd: Working directory.
            environment: All variables of the environment.
            stderr: File to which stderr is appended; None: the last lines are kept for errors.
            transcript: File to which every message is appended, for authors of children.

        Raises:
            ConfigError: one of the two files cannot be written.
            NetworkError: the process cannot be started.
        """
        with contextlib.ExitStack() as stack:
            tail = stack.enter_context(contextlib.closing(Stderr(stderr)))
            copy: IO[bytes] | None = None
            if transcript is not None:
                try:
                    copy = stack.enter_context(transcript.open("ab"))
                except OSError as error:
                    text = f"process: option transcript: {transcript}: {error.strerror or error}"
                    raise files.write_error(text, error) from error
            try:
                process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *words],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=tail.fileno(),
                    cwd=cwd,
                    env=dict(environment),
                    bufsize=0,
                    start_new_session=True,
                )
            except OSError as error:
                raise NetworkError(f"{name} cannot be started: {error.strerror or error}") from error
            stack.pop_all()
        return cls(name, process, tail, copy)

    @property
    def pid(self) -> int:
        """The id of the process and of its group."""
        return self._process.pid

    def usable(self) -> bool:
        """Return whether the child runs and has answered every request, also one that Ctrl-C interrupted."""
        return not self.ended and not self._asked and not self._has_exited()

    def ask(
        self, op: str, fields: Mapping[str, str | int | bool], *, limit_s: float, limit_option: str, what: str = ""
    ) -> Answer:
        """Send a request and wait for its answer.

        Args:
            op: The operation.
            fields: Its arguments.
            limit_s: Time limit of the answer.
            limit_option: The option that sets this limit, for errors.
            what: Description of the operation in errors; default: ``op``.

        Raises:
            NetworkError: no valid answer; the child has been ended.
        """
        what = what or op
        if self.ended:
            raise NetworkError(f"{self._name} has ended and cannot {what}; {self.last_words}")
        if self._asked:
            raise self.failed(f"has not answered an earlier request and cannot {what}")
        if self._buffer:
            raise self.failed(f"wrote more than one line in answer to a request: {_quoted(bytes(self._buffer))}")
        self._id += 1
        line = request(self._id, op, fields)
        if self._transcript is not None:
            self._note(b"> ", line)
        self._asked = True
        sent_ns = time.monotonic_ns()
        try:
            os.write(self._stdin_fd, line)
        except BrokenPipeError:
            raise self._gone(what) from None
        answer = self._line(what, sent_ns + int(limit_s * 1e9), limit_s, limit_option)
        received_ns = time.monotonic_ns()
        if self._transcript is not None:
            self._note(b"< ", answer)
        message = self._message(answer, what)
        self._asked = False
        return Answer(message, sent_ns, received_ns)

    def failed(self, text: str) -> NetworkError:
        """End a child that broke the protocol, and return the error."""
        self.end()
        return NetworkError(f"{self._name} {text}; {self.last_words}")

    def end(self, grace_s: float = 0.0) -> None:
        """Close stdin, wait ``grace_s`` for the end, kill what remains of the process group, and reap the child.

        Safe to call twice; never raises.
        """
        if self.ended:
            return
        self.ended = True
        with contextlib.suppress(OSError):
            self._stdin.close()
        self._wait_for_exit(grace_s)
        # Kill the group before the child is reaped: until then the system does not reuse its id.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        try:
            self._process.wait(_KILLED_WITHIN_S)
        except subprocess.TimeoutExpired:
            logger.warning("%s: process %d is stuck in the kernel and cannot be killed", self._name, self.pid)
        self._stdout.close()
        self.last_words = self._stderr.last_words()
        self._stderr.close()
        if self._transcript is not None:
            self._transcript.close()

    def _line(self, what: str, deadline_ns: int, limit_s: float, limit_option: str) -> bytes:
        """Return the next line without its end."""
        while True:
            left_s = (deadline_ns - time.monotonic_ns()) * 1e-9
            if left_s <= 0.0:
                incomplete = f" (it wrote {_quoted(bytes(self._buffer))} without a line's end)" if self._buffer else ""
                raise self.failed(
                    f"did not answer {what} within {limit_s:g} s (option {limit_option}) and was killed{incomplete}"
                )
            if not self._poll.poll(min(left_s, _SLICE_S) * 1e3 + 1.0):
                self._stderr.trim()
                continue
            chunk = os.read(self._stdout_fd, 1 << 16)
            if not chunk:
                raise self._gone(what)
            if not self._buffer and chunk.find(b"\n") == len(chunk) - 1:
                return chunk[:-1]
            searched = len(self._buffer)
            self._buffer += chunk
            end = self._buffer.find(b"\n", searched)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                return line
            if len(self._buffer) > LONGEST_LINE_BYTES:
                raise self.failed(
                    f"wrote a line of more than {LONGEST_LINE_BYTES >> 20} MiB in answer to {what}: "
                    f"{_quoted(bytes(self._buffer[:LONGEST_QUOTE]))}"
                )

    def _message(self, line: bytes, what: str) -> Mapping[str, Any]:
        try:
            text = line.strip().decode()
            message, end = _parse(text)
        except (ValueError, RecursionError):
            message, text, end = None, "", 0
        if not isinstance(message, dict) or end != len(text):
            raise self.failed(
                f"wrote an invalid message in answer to {what}: {_quoted(line)}: stdout is for messages, one JSON "
                "object on each line; write everything else to stderr"
            )
        if message.get("id") != self._id or isinstance(message.get("id"), bool):
            raise self.failed(f"answered request {message.get('id')!r}, but {what} was request {self._id}")
        if not isinstance(message.get("ok"), bool):
            raise self.failed(f'answered {what} without "ok": true or false')
        return message

    def _gone(self, what: str) -> NetworkError:
        """Return the error for a child that has closed its stdout or stdin."""
        exited = self._wait_for_exit(_EXIT_GRACE_S)
        self.end()
        code = self._process.returncode
        if not exited:
            how = f"closed its stdin or stdout instead of answering {what}, and was killed"
        elif code is not None and code < 0:
            name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
            hint = " (perhaps out of memory: see the kernel's log)" if -code == signal.SIGKILL else ""
            how = f"was killed by {name} before it answered {what}{hint}"
        else:
            how = f"ended before it answered {what} (exit status {code})"
        return self.failed(how)

    def _has_exited(self) -> bool:
        try:
            # WNOWAIT: the child is not reaped, so that its id is not reused.
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def _wait_for_exit(self, limit_s: float) -> bool:
        until_s = time.monotonic() + limit_s
        while not self._has_exited():
            if time.monotonic() >= until_s:
                return False
            time.sleep(0.002)
        return True

    def _note(self, mark: bytes, line: bytes) -> None:
        if self._transcript is not None:
            self._transcript.write(mark + line.rstrip(b"\n") + b"\n")
            self._transcript.flush()


def request(number: int, op: str, fields: Mapping[str, str | int | bool]) -> bytes:
    """Return a request as its line; this takes a third of the time of json.dumps for a flat object."""
    text = f'{{"id":{number},"op":"{op}"'
    for key, value in fields.items():
        if value is True or value is False:
            text += f',"{key}":true' if value else f',"{key}":false'
        else:
            text += f',"{key}":{encode_basestring_ascii(value) if isinstance(value, str) else value}'
    return text.encode() + b"}\n"


class Stderr:
    """The stderr of a child: a file, so that the child never waits and does not wake up joulewatch."""

    def __init__(self, path: Path | None) -> None:
        """Open the file.

        Raises:
            ConfigError: the file cannot be written.
        """
        self._own = path is None
        self._path = path
        if path is None:
            self._file: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by close()
            flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags | os.O_APPEND)
        else:
            try:
                self._file = path.open("ab+", buffering=0)
            except OSError as error:
                raise files.write_error(f"process: option stderr: {path}: {error.strerror or error}", error) from error
        self._start = os.fstat(self._file.fileno()).st_size

    def fileno(self) -> int:
        return self._file.fileno()

    def trim(self) -> None:
        """Cut the file if it has grown too large."""
        if self._own and os.fstat(self.fileno()).st_size > LARGEST_STDERR_BYTES:
            kept = self._tail()
            os.ftruncate(self.fileno(), 0)
            os.write(self.fileno(), kept)

    def last_words(self) -> str:
        """Return the last lines as the end of a sentence."""
        where = f" (complete: {self._path})" if self._path is not None else ""
        try:
            lines = [text for text in (_printable(line) for line in self._tail().splitlines()) if text]
        except OSError as error:
            return f"its stderr cannot be read: {error.strerror or error}"
        if not lines:
            return "it wrote nothing on stderr"
        return f"it last wrote on stderr{where}: {' / '.join(line[:LONGEST_QUOTE] for line in lines[-LAST_LINES:])}"

    def close(self) -> None:
        self._file.close()

    def _tail(self) -> bytes:
        size = os.fstat(self.fileno()).st_size
        start = max(min(self._start, size), size - KEPT_STDERR_BYTES)
        return os.pread(self.fileno(), KEPT_STDERR_BYTES, start)


def _printable(line: bytes) -> str:
    return "".join(char if char.isprintable() else " " for char in line.decode(errors="replace")).strip()


def _quoted(line: bytes) -> str:
    text = _printable(line[: 4 * LONGEST_QUOTE])
    return repr(text[:LONGEST_QUOTE] + ("..." if len(text) > LONGEST_QUOTE or len(line) > 4 * LONGEST_QUOTE else ""))
