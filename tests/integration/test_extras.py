"""Each extra installs everything that its runtime requires: example plans run in new environments with one extra.

The tests build a wheel of this tree, create environments with venv and pip, and run the installed commands in an empty
folder. pip downloads the dependencies of the extras, so the tests require a package registry; extras that take
gigabytes and minutes are tested only with JOULEWATCH_EXTRAS=1.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from joulewatch_harness.plan.parsing import make_plan
from support.commands import Outcome
from support.finn.builds import generated_build
from support.require import require_program

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
takes_minutes = pytest.mark.skipif(
    os.environ.get("JOULEWATCH_EXTRAS") != "1",
    reason="set JOULEWATCH_EXTRAS=1 to run it: it installs a runtime into a new environment, which takes minutes",
)

TOP = Path(__file__).parents[2]
EXAMPLES = TOP / "harness" / "examples"
FAKE_PYNQ = TOP / "tests" / "support" / "finn" / "site"
SHORT = ("--preset", "quick", "--rounds", "3", "--window", "1", "--idle", "0", "--format", "json")
RUN_LIMIT_S = 600.0
REGISTRY_ERROR = re.compile(r"Could not find a version|No matching distribution|ConnectionError|Failed to establish")


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment with one extra of joulewatch."""

    folder: Path

    def run(
        self, *words: object, folder: Path, variables: Mapping[str, str] | None = None, limit_s: float = RUN_LIMIT_S
    ) -> Outcome:
        """Run a command of this environment as if it were activated, isolated from the environment of the tests."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "JOULEWATCH"))}
        done = subprocess.run(
            [self.folder / "bin" / str(words[0]), *map(str, words[1:])],
            cwd=folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=limit_s,
            # A separate cache, because a model file built by another environment would hide a missing package.
            env={
                **inherited,
                "VIRTUAL_ENV": str(self.folder),
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "XDG_CACHE_HOME": str(self.folder / "cache"),
                **(variables or {}),
            },
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def packages(self) -> set[str]:
        code = "import importlib.metadata as m; print(*(d.metadata['Name'] for d in m.distributions()))"
        done = self.run("python", "-c", code, folder=self.folder)
        return {name.lower().replace("_", "-") for name in done.out.split()}


MakeEnvironment = Callable[[str], Environment]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(TOP))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeEnvironment]:
    """Return a function that returns the environment of an extra (or of none); each is created once."""
    environments: dict[str, Environment] = {}

    def make(extra: str) -> Environment:
        if extra not in environments:
            folder = tmp_path_factory.mktemp(f"environment-{extra or 'plain'}")
            venv.create(folder, symlinks=True)
            requirement = f"joulewatch[{extra}] @ {wheel.as_uri()}" if extra else str(wheel)
            _pip("--python", str(folder / "bin" / "python"), "install", "--no-compile", requirement)
            environments[extra] = Environment(folder)
        return environments[extra]

    yield make
    for created in environments.values():
        shutil.rmtree(created.folder)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def test_the_wheel_contains_the_device_cards(wheel: Path) -> None:
    folder = "harness/joulewatch_harness/prediction/cards"
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name).name for name in archive.namelist() if name.endswith(".yaml") and "/cards/" in name}
    assert names == {path.name for path in (TOP / folder).glob("*.yaml")}


def test_the_exporter_alone_installs_two_packages(environment: MakeEnvironment, empty: Path) -> None:
    """It runs on every node of a data center, so it must stay small."""
    plain = environment("")
    assert plain.packages() == {"joulewatch", "prometheus-client", "pyyaml"}
    done = plain.run("joulewatch-exporter", "--once", folder=empty)
    assert done.code == 0, done.err
    assert re.search(r"^joulewatch_\w+\{.*\} \d", done.out, re.MULTILINE)
    done = plain.run("joulewatch", "profile", folder=empty)
    assert (done.code, done.out) == (2, "")
    assert re.fullmatch(r"joulewatch: [\w ]+ needs the package \w+: pip install 'joulewatch\[\w+\]'\n", done.err)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch", "tvm", "tensorrt"])
def test_a_runtime_that_is_not_installed_is_an_error_of_one_line_with_the_command_to_install_it(
    environment: MakeEnvironment, empty: Path, runtime: str
) -> None:
    words = ("--runtime", runtime, "--network", "radioml-vgg10", "--precision", "fp32", "--batch-sizes", "1")
    done = environment("harness").run("joulewatch", "profile", *words, folder=empty)
    assert (done.code, done.out) == (2, "")
    assert f"pip install 'joulewatch[{runtime}]'" in done.err
    assert len(done.err.splitlines()) == 1, done.err
    assert not list(empty.iterdir()), "nothing may be written"


def test_the_missing_packages_of_a_finn_build_are_in_the_error(environment: MakeEnvironment, empty: Path) -> None:
    """pynq is part of the board or of XRT; bitstring, which the packing code requires, is in the extra."""
    build = generated_build(empty / "deploy")
    words = ("--runtime", "finn", "--network", build, "--precision", "int4", "--batch-sizes", "1")
    done = environment("harness").run("joulewatch", "profile", *words, folder=empty)
    assert (done.code, done.out) == (2, "")
    assert "pynq" in done.err
    assert len(done.err.splitlines()) == 1, done.err


def test_children_run_with_the_harness_alone(environment: MakeEnvironment, empty: Path) -> None:
    """They are built and run in the top folder, as the comment in the example describes."""
    for program, package in (("g++", "g++"), ("rustc", "rustc")):
        require_program(program, package)
    shutil.copytree(TOP / "harness" / "children", empty / "harness" / "children", ignore=shutil.ignore_patterns("__*"))
    for command in re.findall(r"^# +((?:g\+\+|rustc) .*)$", (EXAMPLES / "process.yaml").read_text(), re.MULTILINE):
        subprocess.run(command, shell=True, cwd=empty, check=True)
    result = profiled(environment("harness"), "process.yaml", empty, batch_sizes=(1,))
    assert {row["configuration"]["actual_precision"] for row in result["results"]} == {"fp32"}


def test_onnxruntime_runs_with_its_extra(environment: MakeEnvironment, empty: Path) -> None:
    """The first command of the harness's README."""
    installed = environment("onnxruntime")
    assert not {"openvino", "torch", "apache-tvm"} & installed.packages()
    done = installed.run("joulewatch", "profile", *SHORT, "--batch-sizes", "1", folder=empty)
    assert done.code == 0, done.err
    precisions = {row["configuration"]["actual_precision"] for row in json.loads(done.out)["results"]}
    assert precisions == {"fp32", "int8"}, done.err


@takes_minutes
@pytest.mark.parametrize("example", ["../example-plan.yaml", "compare.yaml"])
def test_plans_of_onnxruntime_run_with_its_extra(environment: MakeEnvironment, empty: Path, example: str) -> None:
    profiled(environment("onnxruntime"), example, empty, batch_sizes=(1, 8))
    (run,) = (empty / "runs").iterdir()
    done = environment("onnxruntime").run("joulewatch", "compare", run, "--format", "json", folder=empty)
    assert done.code == 0, done.err


@takes_minutes
@pytest.mark.parametrize("name", ["openvino", "torch", "tvm"])
def test_a_large_runtime_runs_with_its_extra(environment: MakeEnvironment, empty: Path, name: str) -> None:
    (empty / f"{name}.yaml").write_text((EXAMPLES / f"{name}.yaml").read_text().replace("trials: 16", "trials: 1"))
    installed = environment(name)
    excluded = {"openvino": {"torch", "apache-tvm"}, "torch": {"openvino", "apache-tvm"}, "tvm": {"openvino", "torch"}}
    assert not excluded[name] & installed.packages()
    # TVM tunes for each batch size, so only one size and one trial per kernel are used.
    profiled(installed, str(empty / f"{name}.yaml"), empty, batch_sizes=(1,) if name == "tvm" else (1, 8))


@takes_minutes
def test_kserve_runs_with_the_harness_alone(environment: MakeEnvironment, empty: Path) -> None:
    """The server runs in the environment of the tests."""
    pytest.importorskip("onnxruntime")
    from joulewatch_harness import networks
    from support.kserve_server import KServeServer, Settings

    model = networks.build("radioml-vgg10", "fp32", {}).path
    with KServeServer(model, Settings(name="radioml-vgg10")) as server:
        profiled(environment("harness"), "kserve.yaml", empty, "--option", f"url={server.url}", batch_sizes=(1, 8))


@takes_minutes
def test_openai_runs_with_the_harness_alone(environment: MakeEnvironment, empty: Path) -> None:
    from support.openai_server import OpenAIServer, OpenAISettings

    with OpenAIServer(OpenAISettings(model="llama3.2:1b")) as server:
        result = profiled(
            environment("harness"), "openai.yaml", empty, "--option", f"url={server.url}", batch_sizes=(1, 4)
        )
    assert all("output_tokens" in row["counts"] for row in result["results"])


@takes_minutes
def test_finn_runs_with_its_extra_and_the_pynq_of_a_board(environment: MakeEnvironment, empty: Path) -> None:
    """The tests use their fake of pynq, because they have no board."""
    generated_build(empty / "build" / "deploy", bitfile="finn-accel.bit")
    profiled(environment("finn"), "finn.yaml", empty, batch_sizes=(1, 8), variables={"PYTHONPATH": str(FAKE_PYNQ)})


def profiled(
    environment: Environment,
    example: str,
    folder: Path,
    *words: str,
    batch_sizes: tuple[int, ...],
    variables: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run a shortened example plan; every configuration must have a result at every batch size.

    Returns:
        The result as JSON.
    """
    path = (EXAMPLES / example).resolve()
    sizes = ",".join(map(str, batch_sizes))
    done = environment.run(
        "joulewatch", "profile", path, *SHORT, "--batch-sizes", sizes, *words, folder=folder, variables=variables
    )
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    result: dict[str, Any] = json.loads(done.out)
    names = {
        configuration.name for configuration in make_plan(yaml.safe_load(path.read_text()), example).configurations
    }
    rows = {(row["configuration"]["name"], row["batch_size"]) for row in result["results"]}
    assert rows == {(name, size) for name in names for size in batch_sizes}, done.err
    assert all(row["inferences"] >= row["batch_size"] for row in result["results"])
    return result


def _pip(*words: str) -> None:
    """Run the pip of the tests; skip the test without a registry, except in CI."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return
    output = done.stderr or done.stdout
    if REGISTRY_ERROR.search(output) and os.environ.get("JOULEWATCH_REQUIRE_ALL") != "1":
        pytest.skip(f"pip cannot install packages: {output.strip().splitlines()[-1]}")
    pytest.fail(f"pip {' '.join(words)}: {output}", pytrace=False)
