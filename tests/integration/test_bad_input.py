"""Bad input gives a message with the wrong value, exit code 2 and no traceback."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.commands import SLEEPER, Outcome, joulewatch
from support.loopback import page_server
from support.servers import free_port

pytestmark = pytest.mark.integration


@pytest.fixture
def html_server() -> Iterator[str]:
    """Yield the URL of a server that answers every request with an HTML page."""
    with page_server("<html><body>It works!</body></html>") as server:
        yield server.url


def assert_refused(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 2, outcome.err
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err, outcome.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model", "missing.onnx"], ["missing.onnx"]),
        (["--model", "broken.onnx"], ["broken.onnx"]),
        (["--network", "radioml-vgg11"], ["radioml-vgg11", "radioml-vgg10"]),
        (["--runtime", "onnxruntim"], ["onnxruntim", "onnxruntime"]),
        (["--precision", "fp23"], ["fp23", "fp32"]),
        (["--network", SLEEPER, "--batch-sizes", "0"], ["0"]),
        (["--network", SLEEPER, "--batch-sizes", "eight"], ["eight"]),
        (["--preset", "quik"], ["quik", "quick"]),
        (["plan.yaml"], ["plan.yaml", "batchsizes", "batch_sizes"]),
        (["nowhere.yaml"], ["nowhere.yaml"]),
        (["--network", "nowhere.py:Thing"], ["nowhere.py"]),
        (["--network", SLEEPER, "--exporter.flags=--path.sysfs=/nonexistent"], ["/nonexistent"]),
    ],
    ids=lambda value: " ".join(value)[-40:],
)
def test_profile_refuses_bad_arguments_and_plans(words: list[str], expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"this is no model")
    (tmp_path / "plan.yaml").write_text("batchsizes: [1]\n")
    outcome = joulewatch("profile", *words, folder=tmp_path)
    assert_refused(outcome, *expected)


def test_a_prometheus_url_without_a_prometheus_is_refused(tmp_path: Path, html_server: str) -> None:
    port = free_port()
    cases = [
        ([*words, url], part)
        for words in (
            ["runs", "--prometheus"],
            ["energy", "--start", "-1m", "--prometheus"],
            ["profile", "--network", SLEEPER, "--prometheus"],
            ["analyze", "20260101T000000Z-000000", "--prometheus"],
        )
        for url, part in (
            (f"http://127.0.0.1:{port}", str(port)),
            (html_server, html_server),
            ("nonsense", "nonsense"),
        )
    ]
    # Four at a time, because a command waits between its attempts to connect.
    with ThreadPoolExecutor(4) as pool:
        outcomes = pool.map(lambda case: joulewatch(*case[0], folder=tmp_path), cases)
        for outcome, (_, part) in zip(outcomes, cases, strict=True):
            assert_refused(outcome, part)


def test_an_exporter_url_without_an_exporter_is_refused(tmp_path: Path, html_server: str) -> None:
    for url in (f"http://127.0.0.1:{free_port()}", html_server):
        assert_refused(joulewatch("profile", "--network", SLEEPER, "--exporter", url, folder=tmp_path), url)


@pytest.mark.parametrize(
    ("start", "end", "word"),
    [
        ("now", "-1m", "end"),
        ("2999-01-01T00:00:00Z", "2999-01-02T00:00:00Z", "future"),
        ("yesterdayish", "now", "start"),
    ],
)
def test_an_impossible_time_span_is_refused(start: str, end: str, word: str, tmp_path: Path, html_server: str) -> None:
    outcome = joulewatch("energy", f"--start={start}", f"--end={end}", "--prometheus", html_server, folder=tmp_path)
    assert_refused(outcome, word)


def test_an_unknown_run_is_refused(tmp_path: Path) -> None:
    assert_refused(joulewatch("analyze", "20260101T000000Z-000000", folder=tmp_path), "20260101T000000Z-000000")


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = joulewatch("profile", "--network", SLEEPER, "--output", "file/runs", folder=tmp_path)
    assert_refused(outcome, "file")


def test_a_full_disk_keeps_the_windows_measured_so_far(tmp_path: Path) -> None:
    """On a file system of 256 KiB the run ends with an error that has the name of the file."""
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small]).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        outcome = joulewatch(
            *(
                "profile",
                "--network",
                SLEEPER,
                "--batch-sizes",
                "1",
                "--preset",
                "quick",
                "--rounds",
                "3",
                "--output",
                small,
            ),
            folder=tmp_path,
        )
        assert outcome.code in (1, 2), outcome.err
        assert "Traceback" not in outcome.err
        assert str(small) in outcome.err
        assert "No space left" in outcome.err or "full" in outcome.err
        (journal,) = small.glob("*/journal.jsonl")
        assert journal.stat().st_size > 0
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        outcome = joulewatch(f"--web.listen-address={address}", folder=tmp_path, module="joulewatch_exporter")
    assert_refused(outcome, address)


def test_bad_roots_and_configurations_of_the_exporter_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("collectors: {rapl: {pol_seconds: 1}}\n")
    for flag, word in (
        ("--path.sysfs=/nonexistent", "/nonexistent"),
        ("--config.file=nowhere.yaml", "nowhere.yaml"),
        ("--config.file=config.yaml", "poll_seconds"),
    ):
        assert_refused(joulewatch(flag, folder=tmp_path, module="joulewatch_exporter"), word)
