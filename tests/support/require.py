"""Require a program for a test: return its path, or skip the test and name the package to install.

With ``JOULEWATCH_REQUIRE_ALL=1`` (CI), a missing program is a failure, so that no test is skipped unnoticed.
"""

from __future__ import annotations

import importlib.util
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


def require_package(name: str) -> None:
    """Skip the test if a Python package of the test dependencies is missing; a failure as for ``require_program``."""
    if importlib.util.find_spec(name) is not None:
        return
    text = f"the package {name} is not installed: pip install --group test"
    if os.environ.get("JOULEWATCH_REQUIRE_ALL") == "1":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)
