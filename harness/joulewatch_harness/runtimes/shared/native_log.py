"""Log lines that a library writes to stderr: kept from the terminal, for errors and the log at level debug."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import Final

logger = logging.getLogger(__name__)

_LINE: Final = re.compile(
    r"(?:\x1b\[[\d;]*m)*"
    r"(?:\d{4}-\d\d-\d\d [\d:.]+ \[[VIWEF]:onnxruntime:[^\]]*\]"
    r"|\[[\d:]{8}\] \S+tvm\S+:\d+: (?:Warning|Error):)"
    r" ?(?P<text>.*)"
)
"""Lines of ONNX Runtime and TVM."""


@contextlib.contextmanager
def captured() -> Iterator[list[str]]:
    """Redirect stderr; give back the texts of the library's lines, and write all other lines to stderr at the end.

    Yields:
        A list that is filled at the end.
    """
    texts: list[str] = []
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        terminal = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield texts
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            file.seek(0)
            for line in file.read().decode(errors="replace").splitlines(keepends=True):
                match = _LINE.match(line)
                if match is None:
                    sys.stderr.write(line)
                else:
                    texts.append(re.sub(r"\x1b\[[\d;]*m", "", match["text"]).strip())
                    logger.debug("%s", line.rstrip())
