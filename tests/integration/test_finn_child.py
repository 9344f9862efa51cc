"""The child for FINN's C++ driver, built with a fake of its library and run as a user does."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from joulewatch_harness.errors import ConfigError, NetworkError, UnsupportedBatchError
from joulewatch_harness.network import Phases
from joulewatch_harness.runtimes.process import network as process
from support.require import require_program

pytestmark = pytest.mark.integration
TOP = Path(__file__).parents[2]
CHILD = TOP / "harness" / "children" / "finn_cpp" / "child.cpp"
LIBRARY = TOP / "tests" / "support" / "finn" / "cpp_library"


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = require_program("g++", "g++")
    program = tmp_path_factory.mktemp("finn_cpp") / "joulewatch_child"
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{LIBRARY}"]
    built = subprocess.run(
        [compiler, *flags, "-o", str(program), str(CHILD)], capture_output=True, text=True, timeout=100
    )
    assert built.returncode == 0, built.stderr
    return program


@pytest.fixture
def network(child: Path, tmp_path: Path) -> Iterator[Any]:
    config = tmp_path / "acceleratorconfig.json"
    config.write_text("[]")
    opened = process.open_network("vgg10", "native", {"command": f"{child} {config}"})
    try:
        yield opened
    finally:
        opened.close()


def test_the_child_times_the_steps_of_each_inference(network: Any) -> None:
    network.load()
    description = network.describe()
    assert (description["precision"], description["provider"], description["device"]) == ("int8-input", "xrt", "fpga 0")
    assert network.check()
    for batch in (1, 64):
        network.prepare(batch)
        phases = Phases()
        network.run(5, phases)
        assert {name: count for name, (count, _) in phases.spans.items() if name != "other"} == dict.fromkeys(
            ("pack", "copy_in", "execute", "copy_out", "unpack"), 5
        )
        assert len(phases.batch_ends_ns) == 5


def test_a_batch_size_above_the_output_buffer_of_the_library_is_refused(network: Any) -> None:
    """The buffer always has 4096 bytes; a batch size that exceeds it is refused, and the next size runs."""
    network.load()
    with pytest.raises(UnsupportedBatchError, match="at most 1365: the library's output buffer has 4096 bytes"):
        network.prepare(1366)
    network.prepare(1365)
    network.run(1, Phases())


@pytest.mark.parametrize(
    ("content", "text"), [(None, r'File ".*" not found. Abort.'), ("[no-output]", "one input and one output is wanted")]
)
def test_bad_configurations_are_errors_with_the_reason(
    child: Path, tmp_path: Path, content: str | None, text: str
) -> None:
    config = tmp_path / "acceleratorconfig.json"
    if content is not None:
        config.write_text(content)
    network = process.open_network("vgg10", "native", {"command": f"{child} {config}"})
    with pytest.raises((ConfigError, NetworkError), match=text):
        network.load()
    network.close()


def test_a_precision_that_the_child_was_not_built_for_is_refused(child: Path, tmp_path: Path) -> None:
    config = tmp_path / "acceleratorconfig.json"
    config.write_text("[]")
    network = process.open_network("vgg10", "int5", {"command": f"{child} {config}"})
    with pytest.raises((ConfigError, NetworkError), match="built as int8-input, not int5"):
        network.load()
    network.close()
