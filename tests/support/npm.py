"""Packages of npm for tests and for the demo, installed once into the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from support.paths import ROOT

NPM: Final = "npm@10.9.4"
NPMRC: Final = ROOT / "tests" / "browser" / ".npmrc"


def install(manifest: Path, name: str, npm: str = "npm") -> Path:
    """Return the folder with node_modules for ``manifest``, a package.json; the first call installs it.

    Raises:
        RuntimeError: npm cannot install it.
    """
    content = manifest.read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "joulewatch"
    folder = cache / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = cache / f"unfinished-{os.getpid()}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        for source in (manifest, NPMRC):
            shutil.copy(source, unfinished)
        done = subprocess.run(
            # Debian's npm 9.2 cannot override a dependency on a git repository, so it runs a newer npm.
            [npm, "exec", "--yes", "--", NPM, "install", "--ignore-scripts", "--legacy-peer-deps"],
            cwd=unfinished,
            capture_output=True,
            text=True,
            timeout=500,
        )
        if done.returncode != 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise RuntimeError(f"npm cannot install {manifest}: {done.stderr[-500:]}")
        unfinished.rename(folder)
    return folder


def installed(manifest: Path, name: str) -> Path:
    """Return what ``install`` does.

    Without npm, or if it cannot install, the test is skipped with the reason; JOULEWATCH_REQUIRE_ALL=1 makes it fail.
    """
    import pytest  # the demo has no pytest

    from support.require import require_program

    npm = require_program("npm", "npm")
    try:
        return install(manifest, name, npm)
    except RuntimeError as error:
        if os.environ.get("JOULEWATCH_REQUIRE_ALL") == "1":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
