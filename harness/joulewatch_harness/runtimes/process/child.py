"""One child process that is asked by JSON lines: how it is started, asked, timed and ended, whatever it does.

Nothing here knows what the messages mean. A child that breaks the rules (ends, hangs, writes what is no
message, answers another request) is ended with its whole process group, and the error says what happened and
what it last wrote on stderr. Its exit status is told, and never believed: programs exist that exit with 1 when
all went well.
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

from joulewatch_harness.errors import ConfigError, NetworkError

logger = logging.getLogger(__name__)

LONGEST_LINE_BYTES: Final = 4 << 20
KEPT_STDERR_BYTES: Final = 64 << 10
LARGEST_STDERR_BYTES: Final = 1 << 20
"""Above this all but the last ``KEPT_STDERR_BYTES`` of a stderr that goes to no file of the user's are let go."""
LAST_LINES: Final = 5
LONGEST_QUOTE: Final = 160
_EXIT_GRACE_S: Final = 1.0
"""How long a child that closed its stdout may take to end by itself, so that its exit status can be told."""
_KILLED_WITHIN_S: Final = 10.0
_SLICE_S: Final = 1.0
_parse: Final = json.JSONDecoder().raw_decode
"""From a text that begins with a value, to that and where it ended: half the time of json.loads for a short answer."""

# Runs between fork and exec, as a program of its own: what subprocess calls preexec_fn is not safe in a process with
# threads. The child dies with joulewatch (1 is PR_SET_PDEATHSIG), also when joulewatch is killed; -S and -I keep it
# at some 20 ms. Python ignores SIGPIPE, and what is ignored stays so across exec.
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
    """What the child said to one request, and when it was asked and had answered (monotonic ns)."""

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
        """What it last wrote on stderr, as the end of a sentence; known once it has ended."""

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
        """Start a program in a session and process group of its own.

        It must be called by a thread that lives as long as the child may: Linux ends the child with that thread.

        Args:
            name: What errors call it.
            words: The program's full path, then the arguments as the program sees them, its own name first.
            cwd: The folder it runs in.
            environment: The whole of it.
            stderr: File that its stderr is appended to; None: the last of it is kept for errors.
            transcript: File that every message is appended to, for somebody who writes a child.

        Raises:
            ConfigError: one of the two files cannot be written.
            NetworkError: no process can be started.
        """
        with contextlib.ExitStack() as stack:
            tail = stack.enter_context(contextlib.closing(Stderr(stderr)))
            copy: IO[bytes] | None = None
            if transcript is not None:
                try:
                    copy = stack.enter_context(transcript.open("ab"))
                except OSError as error:
                    raise ConfigError(f"process: option transcript: {transcript}: {error.strerror or error}") from error
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
        """Of the child, and of its process group."""
        return self._process.pid

    def usable(self) -> bool:
        """Whether it runs and owes no answer (to a request from which Ctrl-C called us away)."""
        return not self.ended and not self._asked and not self._has_exited()

    def ask(
        self, op: str, fields: Mapping[str, str | int | bool], *, limit_s: float, limit_option: str, what: str = ""
    ) -> Answer:
        """Send a request and wait for its answer.

        Args:
            op: The operation.
            fields: What it takes.
            limit_s: How long the answer may take.
            limit_option: What the user sets this limit with, for the error.
            what: The operation for errors; default: ``op``.

        Raises:
            NetworkError: no valid answer came; the child has been ended.
        """
        what = what or op
        if self.ended:
            raise NetworkError(f"{self._name} is gone and cannot be asked to {what}; {self.last_words}")
        if self._asked:
            raise self.failed(f"owes the answer to an earlier request and cannot be asked to {what}")
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
        """End a child that broke the rules, and make the error that says so."""
        self.end()
        return NetworkError(f"{self._name} {text}; {self.last_words}")

    def end(self, grace_s: float = 0.0) -> None:
        """Close its stdin, wait for ``grace_s`` that it goes, kill what is left of its process group, reap it.

        Safe to call twice; never raises.
        """
        if self.ended:
            return
        self.ended = True
        with contextlib.suppress(OSError):
            self._stdin.close()
        self._wait_for_exit(grace_s)
        # The group is killed before the child is reaped: until then its number belongs to nobody else.
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
        """The next line without its end."""
        while True:
            left_s = (deadline_ns - time.monotonic_ns()) * 1e-9
            if left_s <= 0.0:
                begun = f" (it wrote {_quoted(bytes(self._buffer))} without a line's end)" if self._buffer else ""
                raise self.failed(
                    f"did not answer {what} within {limit_s:g} s (option {limit_option}) and was killed{begun}"
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
                f"wrote what is no message in answer to {what}: {_quoted(line)}: stdout is for messages, one JSON "
                "object on each line; everything else belongs on stderr"
            )
        if message.get("id") != self._id or isinstance(message.get("id"), bool):
            raise self.failed(f"answered request {message.get('id')!r} where {what} was request {self._id}")
        if not isinstance(message.get("ok"), bool):
            raise self.failed(f'answered {what} without "ok": true or false')
        return message

    def _gone(self, what: str) -> NetworkError:
        """The error for a child whose stdout or stdin is closed."""
        exited = self._wait_for_exit(_EXIT_GRACE_S)
        self.end()
        code = self._process.returncode
        if not exited:
            how = f"closed its stdin or stdout instead of answering {what}, and was killed"
        elif code is not None and code < 0:
            name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
            hint = " (perhaps for want of memory: the kernel's log would say so)" if -code == signal.SIGKILL else ""
            how = f"was killed by {name} before it answered {what}{hint}"
        else:
            how = f"ended before it answered {what} (exit status {code})"
        return self.failed(how)

    def _has_exited(self) -> bool:
        try:
            # WNOWAIT: it stays unreaped, so that its number stays its own.
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
    """A request as its line; a flat object is put together here in a third of the time of json.dumps."""
    text = f'{{"id":{number},"op":"{op}"'
    for key, value in fields.items():
        if value is True or value is False:
            text += f',"{key}":true' if value else f',"{key}":false'
        else:
            text += f',"{key}":{encode_basestring_ascii(value) if isinstance(value, str) else value}'
    return text.encode() + b"}\n"


class Stderr:
    """Where a child's stderr goes: a file, so that the child never waits and nobody here is woken up by it."""

    def __init__(self, path: Path | None) -> None:
        """Open it.

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
                raise ConfigError(f"process: option stderr: {path}: {error.strerror or error}") from error
        self._start = os.fstat(self._file.fileno()).st_size

    def fileno(self) -> int:
        return self._file.fileno()

    def trim(self) -> None:
        """Keep the disk from filling up with what a talkative child says."""
        if self._own and os.fstat(self.fileno()).st_size > LARGEST_STDERR_BYTES:
            kept = self._tail()
            os.ftruncate(self.fileno(), 0)
            os.write(self.fileno(), kept)

    def last_words(self) -> str:
        """The last lines as the end of a sentence."""
        where = f" (all of it: {self._path})" if self._path is not None else ""
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
