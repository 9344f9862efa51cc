"""Require a program for a test: return its path, or skip the test and name the package to install.

With ``JOULEWATCH_REQUIRE_ALL=1`` (CI), a missing program is a failure, so that no test is skipped unnoticed.
"""

from __future__ import annotations

import os
import shutil

import pytest


def require_program(program: str, package: str) -> str:
    """Return the path of ``program``.

    Args:
        program: Name looked up on PATH.
        package: Debian package that contains it, for the reason of the skip.
    """
    path = shutil.which(program)
    if path is not None:
        return path
    text = f"{program} is not installed: apt-get install {package}"
    if os.environ.get("JOULEWATCH_REQUIRE_ALL") == "1":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)
