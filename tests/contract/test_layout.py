"""The root of the repository has only known files and folders."""

from __future__ import annotations

import subprocess
from typing import Final

import pytest

from support.paths import ROOT
from support.require import require_program

KNOWN: Final = {
    *(".ci", ".github", "dashboards", "deploy", "exporter", "harness", "tests"),
    *(".gitignore", ".yamllint", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md"),
    *("SECURITY.md", "constraints-dev.txt", "pyproject.toml"),
}


def test_the_root_has_only_known_files_and_folders() -> None:
    """A configuration file that a test had written was once committed there."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: the files that belong to the repository are not known")
    git = require_program("git", "git")
    # The checkout may belong to another user, as in a container.
    command = [git, "-c", "safe.directory=*", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert listed.returncode == 0, listed.stderr
    assert {path.partition("/")[0] for path in listed.stdout.split("\0") if path} == KNOWN
