"""The reference children, built and run as a user does: Python, C++ (g++) and Rust (rustc)."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from joulewatch_harness.errors import ConfigError, NetworkError, UnsupportedBatchError
from joulewatch_harness.network import Phases
from joulewatch_harness.runtimes.process.network import OutOfMemoryError, ProcessNetwork, open_network
from support.commands import joulewatch
from support.process_protocol import CHILD, TOP, gone, validate_transcript
from support.require import require_program

pytestmark = pytest.mark.integration

CHILDREN = TOP / "harness" / "children"
LANGUAGES = ("python", "cpp", "rust")
NEEDED = {"cpp": ("g++", "g++"), "rust": ("rustc", "rustc")}
SOURCES = {"cpp": CHILDREN / "cpp" / "child.cpp", "rust": CHILDREN / "rust" / "child.rs"}
ONE_THREAD = {"env.OPENBLAS_NUM_THREADS": "1", "env.OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def built() -> dict[str, str]:
    """Return the commands of the children that are already built, by language."""
    return {"python": f"{sys.executable} {CHILDREN / 'python' / 'child.py'}"}


@pytest.fixture(params=LANGUAGES)
def command(request: pytest.FixtureRequest, built: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the command of a child; a compiled child is built as the comment in its source describes."""
    language: str = request.param
    if language not in built:
        require_program(*NEEDED[language])
        source = SOURCES[language]
        match = re.search(r"build:\s+(.*)", source.read_text())
        assert match is not None
        folder = tmp_path_factory.mktemp(language)
        for file in source.parent.glob("*.*"):
            (folder / file.name).write_bytes(file.read_bytes())
        done = subprocess.run(shlex.split(match[1]), cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not done.stderr, "the build must not have warnings"
        built[language] = str(folder / "child")
    return built[language]


@pytest.fixture
def network(command: str, tmp_path: Path) -> Iterator[ProcessNetwork]:
    options = {"command": command, "transcript": str(tmp_path / "transcript"), "time_limit_s": "30", **ONE_THREAD}
    opened = open_network("matmul", "fp32", options)
    yield opened
    opened.close()


def test_a_child_computes_correctly_and_every_message_is_valid(network: ProcessNetwork, tmp_path: Path) -> None:
    network.load()
    assert network.describe()["precision"] == "fp32"
    assert network.check()
    for batch in (1, 64):
        network.prepare(batch)
        for batches in (1, 20):
            longer_in_execute = 0
            for _ in range(20):
                phases = Phases()
                start_ns = time.monotonic_ns()
                network.run(batches, phases)
                end_ns = time.monotonic_ns()
                assert {name: count for name, (count, _) in phases.spans.items()} == {
                    "copy_in": batches,
                    "execute": batches,
                    "copy_out": batches,
                }
                assert len(phases.batch_ends_ns) == batches
                assert start_ns < phases.batch_ends_ns[0] <= phases.batch_ends_ns[-1] < end_ns
                execute_ns, copy_out_ns = (phases.spans[name][1] for name in ("execute", "copy_out"))
                assert copy_out_ns > 0
                longer_in_execute += execute_ns > copy_out_ns
            # A busy machine may take the processor from the child in copy_out, about a tenth of a run or less: in two
            # runs in 20 at most. This is stricter than the check of a single run, which would miss a rare mistake.
            assert longer_in_execute >= 18
    with pytest.raises(UnsupportedBatchError, match="at most 65536"):
        network.prepare(1 << 17)
    network.prepare(2)
    network.run(1500, Phases())
    child = network._child
    assert child is not None
    network.close()
    assert gone(child.pid)
    ops = validate_transcript((tmp_path / "transcript").read_text())
    assert ops[-1] == "close"
    answers = [json.loads(line[2:]) for line in (tmp_path / "transcript").read_text().splitlines() if line[0] == "<"]
    assert answers[-1]["ok"], "the child must end on request"


def test_with_phases_disabled_a_child_reports_none(command: str, tmp_path: Path) -> None:
    transcript = tmp_path / "transcript"
    options = {"command": command, "transcript": str(transcript), "phases": "false", **ONE_THREAD}
    network = open_network("matmul", "native", options)
    network.load()
    try:
        network.prepare(8)
        phases = Phases()
        network.run(5, phases)
    finally:
        network.close()
    assert phases.spans == {}
    assert len(phases.batch_ends_ns) == 5
    (answer,) = [line for line in transcript.read_text().splitlines() if line[0] == "<" and "t0_ns" in line]
    assert "phases" not in json.loads(answer[2:])


def test_a_larger_batch_takes_longer(network: ProcessNetwork) -> None:
    """The child computes: a batch of 64 times the size takes longer to execute."""
    network.load()
    times = {}
    for batch in (16, 1024):
        network.prepare(batch)
        network.run(2, Phases())
        phases = Phases()
        network.run(5, phases)
        times[batch] = phases.spans["execute"][1]
    assert times[1024] > 4 * times[16]


def test_a_wrong_precision_or_reference_is_an_error_with_the_reason(command: str) -> None:
    network = open_network("matmul", "int8", {"command": command, **ONE_THREAD})
    with pytest.raises(ConfigError, match="process matmul: load: this child computes in fp32, not in int8"):
        network.load()
    network = open_network("matmul", "native", {"command": command, "reference": "weighted_sum=3050", **ONE_THREAD})
    network.load()
    try:
        assert network.check(), "within 0.001"
    finally:
        network.close()
    network = open_network("matmul", "native", {"command": command, "reference": "weighted_sum=3060", **ONE_THREAD})
    network.load()
    try:
        with pytest.raises(NetworkError, match=r"weighted_sum is 3049\.82031, but the plan's reference is 3060"):
            network.check()
    finally:
        network.close()


def test_an_unknown_operation_gets_an_error_answer(network: ProcessNetwork) -> None:
    network.load()
    child = network._child
    assert child is not None
    answer = child.ask("dance", {}, limit_s=30.0, limit_option="run_limit_s")
    assert answer.message["error"]["code"] == "unknown_op"
    network.prepare(1)


@pytest.mark.parametrize("command", ["cpp", "rust"], indirect=True)
def test_missing_memory_excludes_only_that_batch_size(command: str) -> None:
    limited = shlex.join(["sh", "-c", f"ulimit -v 150000; exec {command}"])
    network = open_network("matmul", "native", {"command": limited})
    network.load()
    try:
        with pytest.raises(OutOfMemoryError, match=r"prepare \(batch size 65536\): "):
            network.prepare(65536)
        network.prepare(64)
        network.run(3, Phases())
    finally:
        network.close()


@pytest.mark.parametrize("command", ["cpp"], indirect=True)
def test_a_child_ends_when_its_stdin_is_closed(command: str) -> None:
    with subprocess.Popen([command], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.close()
        child.wait(20)


@pytest.mark.parametrize("command", ["cpp"], indirect=True)
def test_a_sweep_continues_after_a_child_dies(command: str, tmp_path: Path) -> None:
    """Run a whole profile: one child works, the other dies at batch size 8; the note has its last words on stderr."""
    plan = tmp_path / "plan.json"  # JSON is YAML
    configurations = [
        {"name": "good", "network": "matmul", "runtime": "process", "options": {"command": command}},
        {
            "name": "dies",
            "network": "fake",
            "runtime": "process",
            "options": {"command": f"{sys.executable} -S {CHILD} crash 8"},
        },
    ]
    plan.write_text(
        json.dumps(
            {
                "preset": "quick",
                "rounds": 3,
                "window_s": 1,
                "idle_s": 0,
                "batch_sizes": [4, 8],
                "configurations": configurations,
            }
        )
    )
    done = joulewatch("profile", plan, "--format", "json", folder=tmp_path)
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    result = json.loads(done.out)
    rows = {(row["configuration"]["name"], row["batch_size"]) for row in result["results"]}
    assert rows == {("good", 4), ("good", 8), ("dies", 4)}
    (note,) = [note["text"] for note in result["run"]["notes"] if note.get("configuration") == "dies"]
    assert re.search(
        r"dies batch 8 excluded: .*killed by SIGSEGV before it answered run \(batch size 8\).*device lost", note
    )
    (folder,) = (tmp_path / "runs").iterdir()
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    (loaded,) = [line for line in lines if line["type"] == "configuration" and line["name"] == "good"]
    assert loaded["actual_precision"] == "fp32"
    assert float(loaded["details"]["pipe_us"]) > 0
