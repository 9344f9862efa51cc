"""Two revisions of a git repository in temporary worktrees, for ``joulewatch ci``."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from joulewatch_harness.errors import ConfigError, JoulewatchError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Repository:
    """A git repository without uncommitted changes."""

    root: Path
    prefix: Path
    """The working directory, relative to the root."""

    @classmethod
    def open(cls) -> Repository:
        """Return the repository of the working directory.

        Raises:
            ConfigError: git is not installed, this is not a repository, or tracked files have uncommitted changes.
        """
        shown = _git("rev-parse", "--show-toplevel", "--show-prefix")
        if shown.returncode:
            raise ConfigError(f"ci: {Path.cwd()}: {_last_line(shown.stderr)}")
        root, prefix = shown.stdout.split("\n")[:2]
        repository = cls(Path(root), Path(prefix))
        # Untracked files, such as the results of earlier runs, are in neither worktree.
        changes = _git("status", "--porcelain", "--untracked-files=no", folder=repository.root)
        if changes.returncode:
            raise ConfigError(f"ci: {_last_line(changes.stderr)}")
        files = [line[3:] for line in changes.stdout.splitlines()]
        if files:
            more = f" and {len(files) - 1} more" if len(files) > 1 else ""
            raise ConfigError(f"ci: uncommitted changes in {files[0]}{more}: commit or stash them")
        return repository

    def commit(self, revision: str) -> str:
        """Return the commit that a branch, tag or other revision names.

        Raises:
            ConfigError: There is none.
        """
        shown = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", folder=self.root)
        if shown.returncode:
            raise ConfigError(f"ci: unknown revision {revision!r}; if this is a shallow clone, fetch it first")
        return shown.stdout.strip()

    @contextlib.contextmanager
    def worktrees(self, commits: Mapping[str, str]) -> Iterator[dict[str, Path]]:
        """Check out commits in temporary folders, and remove these at the end, however it comes.

        Yields:
            Name -> folder that corresponds to the working directory.

        Raises:
            ConfigError: A commit does not have the working directory.
            JoulewatchError: A commit cannot be checked out.
        """
        parent = Path(tempfile.mkdtemp(prefix="joulewatch-ci-"))
        try:
            folders = {}
            for name, commit in commits.items():
                added = _git("worktree", "add", "--detach", str(parent / name), commit, folder=self.root)
                if added.returncode:
                    raise JoulewatchError(f"ci: {commit[:10]} cannot be checked out: {_last_line(added.stderr)}")
                folders[name] = parent / name / self.prefix
                if not folders[name].is_dir():
                    raise ConfigError(f"ci: the revision {commit[:10]} has no folder {self.prefix}")
            yield folders
        finally:
            for name in commits:
                if (parent / name).exists():
                    _git("worktree", "remove", "--force", str(parent / name), folder=self.root)
            shutil.rmtree(parent, ignore_errors=True)
            if parent.exists():
                logger.warning("%s cannot be removed", parent)


def _git(*words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run git, also to its end when Ctrl-C is typed.

    Raises:
        ConfigError: git is not installed.
    """
    # In a git hook, these name the repository instead of the folder.
    environment = {key: value for key, value in os.environ.items() if key not in ("GIT_DIR", "GIT_WORK_TREE")}
    environment["LC_ALL"] = "C"
    try:
        return subprocess.run(
            ["git", *words],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise ConfigError("ci needs git, which is not installed") from error


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("fatal: ") if lines else "git failed"
