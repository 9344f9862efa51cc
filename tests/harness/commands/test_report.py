"""``joulewatch report`` as typed on the command line."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import responses

from joulewatch_harness.cli import main
from joulewatch_harness.storage.journal import Journal
from support.fake_prometheus import URL, FakePrometheus
from support.paths import ROOT
from support.synthetic import RUN, TWO_SOCKETS, World, make_world, raw_of, run_samples, write_recording

FINN_DESIGNS = ROOT / "tests" / "benchmarks" / "data" / "prediction" / "finn_rfsoc2x2_measured.csv"
OTHER = "20260922T141320Z-1b2c3d"
WITHOUT_LINUX = """
import importlib.abc, sys
sys.path[:0] = {path!r}
LINUX_ONLY = "fcntl grp pwd resource termios tty pty posix_ipc spwd syslog".split()
for name in LINUX_ONLY:
    sys.modules.pop(name, None)

class Forbid(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in LINUX_ONLY:
            raise ModuleNotFoundError(f"{{name}} is not on this system", name=name)

sys.meta_path.insert(0, Forbid())
import os
for name in ("sched_getaffinity", "sched_setaffinity", "geteuid", "getloadavg", "fork"):
    delattr(os, name)
from joulewatch_harness.cli import main
for words in {commands!r}:
    assert main(words) == 0, words
rooms = ("joulewatch_harness.runner", "joulewatch_harness.runtimes")
assert not [name for name in sys.modules if name.startswith(rooms)]
assert not set(LINUX_ONLY) & set(sys.modules)
"""


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(TWO_SOCKETS, batch_sizes=(1, 8), rounds=2, noise=0.01)


@pytest.fixture(scope="module")
def runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "runs"
    for one in (world, make_world(TWO_SOCKETS, batch_sizes=(1, 8), rounds=2, noise=0.01, seed=1, run=OTHER)):
        assert one.record is not None and one.record.end is not None
        with Journal.create(folder, one.record.header) as journal:
            for line in (*one.record.configurations, *one.record.windows, one.record.end):
                journal.append(line)
        write_recording(one, folder / one.record.header.run / "recording.sqlite")
    return folder


@pytest.fixture
def fake(world: World) -> Iterator[FakePrometheus]:
    assert world.record is not None
    server = FakePrometheus([*world.scrapes(), *raw_of(run_samples(world.record))])
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mocked:
        server.install(mocked)
        yield server


def test_the_page_is_written(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "report.html"
    assert main(["report", RUN, f"--output={runs}", f"--out={page}"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == f"report: {page}\n"
    assert RUN in page.read_text(encoding="utf-8")
    assert main(["report", RUN, OTHER, f"--output={runs}", f"--out={page}"]) == 0
    assert f"Run {OTHER}" in page.read_text(encoding="utf-8")


def test_predictions_of_the_command_predict_are_drawn(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(FINN_DESIGNS), "--device", "rfsoc2x2", "--format", "json"]) == 0
    (tmp_path / "predictions.json").write_text(capsys.readouterr().out, "utf-8")
    page = tmp_path / "report.html"
    words = [f"--output={runs}", f"--out={page}", f"--predictions={tmp_path / 'predictions.json'}"]
    assert main(["report", RUN, *words]) == 0
    assert "on RFSoC 2x2 (predicted, power rails)" in page.read_text(encoding="utf-8")


def test_a_comparison_has_a_figure(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = tmp_path / "figure.svg"
    assert main(["compare", RUN, OTHER, f"--output={runs}", f"--figure={figure}"]) == 0
    captured = capsys.readouterr()
    assert OTHER in captured.out
    assert captured.err == f"figure: {figure}\n"
    assert f"runs {RUN}, {OTHER}" in " ".join(figure.read_text("utf-8").split())


@pytest.fixture
def unlike(tmp_path: Path) -> Path:
    """Two runs without a common configuration."""
    for run, names in ((RUN, ("net/tvm/fp32", "net/tvm/int8")), (OTHER, ("net/tensorrt/fp16", "net/tensorrt/int8"))):
        record = make_world(TWO_SOCKETS, batch_sizes=(1, 8), rounds=2, run=run, configurations=names).record
        assert record is not None and record.end is not None
        with Journal.create(tmp_path / "runs", record.header) as journal:
            for line in (*record.configurations, *record.windows, record.end):
                journal.append(line)
    return tmp_path / "runs"


def test_a_figure_needs_no_common_configuration(
    unlike: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first configuration is then the baseline of all others; without a figure it stays an error."""
    figure = tmp_path / "figure.svg"
    words = ["compare", RUN, OTHER, f"--output={unlike}"]
    assert main([*words, f"--figure={figure}", "--main-device", "--format=csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["a_configuration"] for row in rows} == {"net/tvm/fp32"}
    assert {row["b_configuration"] for row in rows} == {"net/tvm/int8", "net/tensorrt/fp16", "net/tensorrt/int8"}
    text = figure.read_text("utf-8")
    assert all(f"net/{name}" in text for name in ("tvm/fp32", "tvm/int8", "tensorrt/fp16", "tensorrt/int8"))
    assert main(words) == 2
    assert "have no configuration in common" in capsys.readouterr().err


def test_the_option_of_the_figure_needs_the_figure(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", RUN, OTHER, f"--output={runs}", "--main-device"]) == 2
    assert "--main-device is for the figure: add --figure FILE" in capsys.readouterr().err


def parts(page: Path) -> dict[str, str]:
    """Return the sections of a page: id of the heading, HTML."""
    text = page.read_text(encoding="utf-8")
    return dict(re.findall(r'<section aria-labelledby="(\w+)">(.*?)</section>', text, re.DOTALL))


def test_prometheus_alone_gives_the_same_report(
    runs: Path, fake: FakePrometheus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = tmp_path / "here.html", tmp_path / "there.html"
    assert main(["report", RUN, f"--output={runs}", f"--out={here}"]) == 0
    assert main(["report", RUN, f"--output={tmp_path}", f"--prometheus={URL}", f"--out={there}"]) == 0
    mine, theirs = parts(here), parts(there)
    assert set(mine) == set(theirs) == {"figure", "results", "power", "budget", "audit", "provenance", "method", "cite"}
    for name in ("figure", "results", "power", "budget", "audit", "method"):
        assert mine[name] == theirs[name], name


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([RUN, RUN], f"run {RUN} is given twice"),
        (["nothing"], "unknown run 'nothing'"),
        ([RUN, "--out=missing/report.html"], "--out missing/report.html: the directory missing does not exist"),
        ([RUN, "--out=report.pdf"], "--out report.pdf: the page is HTML; write --pdf report.pdf for a PDF"),
        ([RUN, "--out=."], "--out .: cannot be written: Is a directory"),
    ],
)
def test_bad_input_is_an_error_with_exit_code_2(
    runs: Path, words: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words, f"--output={runs}"]) == 2
    assert text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_pdf_without_a_browser_is_an_error_before_anything_is_written(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    page = tmp_path / "report.html"
    assert main(["report", RUN, f"--output={runs}", f"--out={page}", f"--pdf={tmp_path / 'report.pdf'}"]) == 2
    assert "--pdf needs Chromium or Chrome on the PATH" in capsys.readouterr().err
    assert not page.exists()


@pytest.mark.parametrize(
    ("script", "text"),
    [("echo no display >&2; exit 1", "wrote no PDF: no display"), ("exit 0", "wrote no PDF: no error message")],
)
def test_a_browser_that_fails_is_an_error(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    script: str, text: str,
) -> None:  # fmt: skip
    browser = tmp_path / "chromium"
    browser.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    browser.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("joulewatch_harness.commands.report.BROWSERS", ("chromium",))
    words = [f"--output={runs}", f"--out={tmp_path / 'report.html'}", f"--pdf={tmp_path / 'report.pdf'}"]
    assert main(["report", RUN, *words]) == 1
    assert text in capsys.readouterr().err
    assert not (tmp_path / "report.pdf").exists()


def test_the_analysis_needs_nothing_that_only_linux_has(runs: Path, tmp_path: Path) -> None:
    """A laptop with macOS or Windows reads what a cluster recorded."""
    where = f"--output={runs}"
    commands = [
        ["analyze", RUN, where, f"--figure={tmp_path / 'figure.svg'}"],
        ["compare", RUN, OTHER, where],
        ["report", RUN, OTHER, where, f"--out={tmp_path / 'report.html'}"],
    ]
    script = WITHOUT_LINUX.format(path=sys.path, commands=commands)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").stat().st_size > 10_000
