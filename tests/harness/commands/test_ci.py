"""``joulewatch ci``: two revisions are measured alternately, and the worktrees are gone whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from joulewatch_harness import cli
from joulewatch_harness.metering.ci_report import code
from joulewatch_harness.storage.journal import list_runs
from support.counting_exporter import Counter, CountingExporter
from support.require import require_program

COMMAND = ("--", sys.executable, "-S", "bench.py")
BENCH = """
import os, time, urllib.request
print("mine", flush=True)
time.sleep(0.3)
urllib.request.urlopen(os.environ["JOULEWATCH_EXPORTER"] + "/burn?{}").read()
time.sleep(0.3)
"""
"""Its energy does not depend on its time, and so not on the load of the machine."""


def git(*words: str) -> str:
    return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout


def commit(joules: int) -> None:
    Path("bench.py").write_text(BENCH.format(joules))
    git("add", "bench.py")
    git("commit", "--quiet", "--allow-empty", "--message", f"{joules} J")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository whose branch ``main`` needs 100 J and whose HEAD needs 1000 J."""
    require_program("git", "git")
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    for key in [key for key in os.environ if key.startswith("GIT_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "me")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "me@localhost")
    git("init", "--quiet", "--initial-branch=main")
    commit(100)
    git("checkout", "--quiet", "-b", "slower")
    commit(1000)
    with CountingExporter([Counter(watts=1.0)]) as server:
        monkeypatch.setenv("JOULEWATCH_EXPORTER", server.url)
        yield folder
    assert list(temporary.iterdir()) == []
    assert len(git("worktree", "list").splitlines()) == 1


def ci(*words: str) -> int:
    return cli.main(["ci", *words])


def test_an_increase_fails(repository: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Both revisions run once in each round; stdout has only the report."""
    assert ci("--base", "main", "-r", "4", *COMMAND) == 3
    out, err = capfd.readouterr()
    assert out.startswith("### Energy per execution: **above the limit**\n\n`")
    head = git("rev-parse", "HEAD")[:10]
    assert f"head `{head}` | head / base |" in out
    assert "\n| total | " in out
    assert "\n| executions per second | " in out
    assert "FAILED: energy per execution: +" in out
    assert "Both revisions ran in each of 4 rounds" in out
    assert "mine" not in out
    assert err.count("mine\n") == 10
    (run,) = list_runs(Path("runs")).values()
    names = [window.configuration for window in run.windows]
    assert [sorted(names[at : at + 2]) for at in range(0, 8, 2)] == [["base", "head"]] * 4


def test_the_limit_and_the_direction(repository: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        ci("--base", "main", "-r", "3", "--fail-above", "5000%", "--inferences", "10", "--out", "a.md", *COMMAND) == 0
    )
    assert Path("a.md").read_text().startswith("### Energy per inference: not above the limit\n")
    assert capfd.readouterr().out == ""
    git("checkout", "--quiet", "main")
    assert ci("--base", "slower", "-r", "3", *COMMAND) == 0
    assert "passed: energy per execution: -" in capfd.readouterr().out


def test_a_window_without_a_number_is_undecided(repository: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with CountingExporter() as exporter:
        exporter.counters[0].refresh_s = 60.0
        assert ci("--base", "main", "-r", "2", "--exporter", exporter.url, *COMMAND) == 4
        exporter.counters[0].refresh_s = 1e-6
    out = capfd.readouterr().out
    assert "Energy per execution: undecided" in out
    assert "no number" in out
    (finding,) = [line for line in out.splitlines() if line.startswith("- ") and "[below" in line]
    assert finding.endswith("(3 more like this)")


def test_the_build_runs_in_each_worktree_and_in_the_same_folder(
    repository: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("inner").mkdir()
    Path("inner/work.sh").write_text("test -f built && sleep 0.01")
    git("add", "inner")
    git("commit", "--quiet", "--message", "inner")
    os.chdir("inner")
    try:
        words = (
            "--base",
            "HEAD",
            "-r",
            "2",
            "--fail-above",
            "1000",
            "--build",
            "pwd; touch built",
            "--",
            "sh",
            "work.sh",
        )
        assert ci(*words) in (0, 4)
        err = capfd.readouterr().err
        assert [line.endswith("/inner") for line in err.splitlines() if line.startswith("/")] == [True, True]
        assert not Path("built").exists()
        assert ci("--base", "main", *COMMAND) == 2
        assert "has no folder inner" in capfd.readouterr().err
    finally:
        os.chdir(repository)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--base", "main"], 2, "no command"),
        (["--base", "nothing", *COMMAND], 2, "unknown revision 'nothing'"),
        (["--base=--help", *COMMAND], 2, "unknown revision '--help'"),
        (["--base", "main", "-r", "1", *COMMAND], 2, "--rounds 1: must be at least 2"),
        (["--base", "main", "--inferences", "0", *COMMAND], 2, "--inferences 0"),
        (["--base", "main", "--out", "no/such/file", *COMMAND], 2, "--out no/such/file"),
        (["--base", "main", "--build", "exit 7", *COMMAND], 1, "--build 'exit 7', base: failed with exit code 7"),
        (["--base", "main", "--", "false"], 1, "the command, base: failed with exit code 1"),
        (["--base", "main", "--", "./nothing"], 1, "the command, base: ./nothing: No such file"),
        (["--base", "main", "--", "sh", "-c", "! grep 1000 bench.py"], 1, "the command, head: failed with exit"),
    ],
)
def test_each_fault_is_one_line(
    repository: Path, words: list[str], code: int, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ci(*words) == code
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("joulewatch: ")]
    assert out == ""
    assert text in lines[-1]
    assert not any(word in lines[-2] for word in ("failed", "unknown")) if len(lines) > 1 else True


def test_uncommitted_changes(repository: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("untracked").touch()
    Path("bench.py").write_text("")
    assert ci("--base", "main", *COMMAND) == 2
    assert "uncommitted changes in bench.py: commit or stash them" in capfd.readouterr().err
    git("checkout", "--quiet", "bench.py")


def test_outside_a_repository_and_without_git(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        assert ci("--base", "main", *COMMAND) == 2
        assert "not a git repository" in capfd.readouterr().err
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        assert ci("--base", "main", *COMMAND) == 2
    assert "ci needs git, which is not installed" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_command_and_removes_the_worktrees(repository: Path, number: signal.Signals) -> None:
    """The fixture checks that nothing is left."""
    command = [
        sys.executable,
        "-m",
        "joulewatch_harness",
        "ci",
        "--base",
        "main",
        "--",
        "sh",
        "-c",
        "echo on; exec sleep 60",
    ]
    environment = {**os.environ, "TMPDIR": tempfile.gettempdir()}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line == "on\n":
            break
    started_s = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (1, "", f"joulewatch: ended by {number.name}\n")
    assert time.monotonic() - started_s < 20


def test_code_spans() -> None:
    assert code("a  b\nc") == "`a b c`"
    assert code("echo `date`") == "`` echo `date` ``"
