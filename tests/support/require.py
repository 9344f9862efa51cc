"""A program a test needs: its path, or a skip that says what to install.

Where ``JOULEWATCH_REQUIRE_ALL=1`` (CI), a missing program is a failure: nothing is skipped silently there.
"""

from __future__ import annotations

import os
import shutil

import pytest


def require_program(program: str, package: str) -> str:
    """Path of ``program``.

    Args:
        program: Name looked up on PATH.
        package: Debian package that has it, for the reader of the skip.
    """
    path = shutil.which(program)
    if path is not None:
        return path
    text = f"{program} is not installed: apt-get install {package}"
    if os.environ.get("JOULEWATCH_REQUIRE_ALL") == "1":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)
