"""What pip installs is enough: each runtime's example plan in a fresh environment that has only its extra.

The whole machine of a user is made here: a wheel of this tree, environments by venv and pip, the commands that pip
put there, and an empty folder to run in. pip fetches what the extras name, so this takes a package registry; the
larger ones (gigabytes, minutes) run where JOULEWATCH_EXTRAS=1.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
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
    reason="JOULEWATCH_EXTRAS=1 switches it on: installs a runtime into a fresh environment, takes minutes",
)

TOP = Path(__file__).parents[2]
EXAMPLES = TOP / "harness" / "examples"
FAKE_PYNQ = TOP / "tests" / "support" / "finn" / "site"
SHORT = ("--preset", "quick", "--window", "1", "--idle", "0", "--format", "json")
RUN_LIMIT_S = 600.0
OF_A_REGISTRY = re.compile(r"Could not find a version|No matching distribution|ConnectionError|Failed to establish")


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment as ``venv`` makes one, with one extra of joulewatch in it."""

    folder: Path

    def run(
        self, *words: object, folder: Path, variables: Mapping[str, str] | None = None, limit_s: float = RUN_LIMIT_S
    ) -> Outcome:
        """A command of this environment, as if it were activated; nothing of the tests' own environment is seen."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "JOULEWATCH"))}
        done = subprocess.run(
            [self.folder / "bin" / str(words[0]), *map(str, words[1:])],
            cwd=folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=limit_s,
            # A cache of its own: a model file that another environment has made would hide what is missing here.
            env={
                **kept,
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
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeEnvironment]:
    """Call it with an extra (or none) to get its environment; each is made once, and all are removed at the end."""
    made: dict[str, Environment] = {}

    def make(extra: str) -> Environment:
        if extra not in made:
            folder = tmp_path_factory.mktemp(f"environment-{extra or 'plain'}")
            venv.create(folder, symlinks=True)
            wanted = f"joulewatch[{extra}] @ {wheel.as_uri()}" if extra else str(wheel)
            _pip("--python", str(folder / "bin" / "python"), "install", "--no-compile", wanted)
            made[extra] = Environment(folder)
        return made[extra]

    yield make
    for item in made.values():
        shutil.rmtree(item.folder)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def test_the_exporter_alone_brings_two_packages(environment: MakeEnvironment, empty: Path) -> None:
    """It runs on every node of a datacenter."""
    plain = environment("")
    assert plain.packages() == {"joulewatch", "prometheus-client", "pyyaml"}
    done = plain.run("joulewatch-exporter", "--once", folder=empty)
    assert done.code == 0, done.err
    assert re.search(r"^joulewatch_\w+\{.*\} \d", done.out, re.MULTILINE)
    done = plain.run("joulewatch", "profile", folder=empty)
    assert (done.code, done.out) == (2, "")
    assert re.fullmatch(r"joulewatch: [\w ]+ needs the package \w+: pip install 'joulewatch\[\w+\]'\n", done.err)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch", "tvm", "tensorrt"])
def test_a_runtime_that_is_not_installed_is_one_sentence_that_says_what_to_install(
    environment: MakeEnvironment, empty: Path, runtime: str
) -> None:
    words = ("--runtime", runtime, "--network", "radioml-vgg10", "--precision", "fp32", "--batch-sizes", "1")
    done = environment("harness").run("joulewatch", "profile", *words, folder=empty)
    assert (done.code, done.out) == (2, "")
    assert f"pip install 'joulewatch[{runtime}]'" in done.err
    assert len(done.err.splitlines()) == 1, done.err
    assert not list(empty.iterdir()), "nothing was begun"


def test_a_finn_build_s_missing_packages_are_named(environment: MakeEnvironment, empty: Path) -> None:
    """pynq comes with the board or with XRT; the packing code's bitstring with the extra."""
    build = generated_build(empty / "deploy")
    words = ("--runtime", "finn", "--network", build, "--precision", "int4", "--batch-sizes", "1")
    done = environment("harness").run("joulewatch", "profile", *words, folder=empty)
    assert (done.code, done.out) == (2, "")
    assert "pynq" in done.err
    assert len(done.err.splitlines()) == 1, done.err


def test_children_run_with_the_harness_alone(environment: MakeEnvironment, empty: Path) -> None:
    """As the head of the example says: built in the top folder, run from there."""
    for program, package in (("g++", "g++"), ("rustc", "rustc")):
        require_program(program, package)
    shutil.copytree(TOP / "harness" / "children", empty / "harness" / "children", ignore=shutil.ignore_patterns("__*"))
    for command in re.findall(r"^# +((?:g\+\+|rustc) .*)$", (EXAMPLES / "process.yaml").read_text(), re.MULTILINE):
        subprocess.run(command, shell=True, cwd=empty, check=True)
    result = profiled(environment("harness"), "process.yaml", empty, batch_sizes=(1,))
    assert {row["configuration"]["actual_precision"] for row in result["results"]} == {"fp32"}


def test_onnxruntime_runs_with_its_extra(environment: MakeEnvironment, empty: Path) -> None:
    """The command at the head of the harness's README."""
    only = environment("onnxruntime")
    assert not {"openvino", "torch", "apache-tvm"} & only.packages()
    done = only.run("joulewatch", "profile", *SHORT, "--batch-sizes", "1", folder=empty)
    assert done.code == 0, done.err
    precisions = {row["configuration"]["actual_precision"] for row in json.loads(done.out)["results"]}
    assert precisions == {"fp32", "int8"}, done.err


@takes_minutes
@pytest.mark.parametrize("example", ["../example-plan.yaml", "compare.yaml"])
def test_plans_of_onnxruntime_run_with_its_extra(environment: MakeEnvironment, empty: Path, example: str) -> None:
    profiled(environment("onnxruntime"), example, empty, "--rounds", "3", batch_sizes=(1, 8))
    (run,) = (empty / "runs").iterdir()
    done = environment("onnxruntime").run("joulewatch", "compare", run, "--format", "json", folder=empty)
    assert done.code == 0, done.err


@takes_minutes
@pytest.mark.parametrize("name", ["openvino", "torch", "tvm"])
def test_a_large_runtime_runs_with_its_extra(environment: MakeEnvironment, empty: Path, name: str) -> None:
    (empty / f"{name}.yaml").write_text((EXAMPLES / f"{name}.yaml").read_text().replace("trials: 16", "trials: 1"))
    only = environment(name)
    others = {"openvino": {"torch", "apache-tvm"}, "torch": {"openvino", "apache-tvm"}, "tvm": {"openvino", "torch"}}
    assert not others[name] & only.packages()
    # TVM tunes for each batch size: one size, and one trial for each kernel.
    profiled(only, str(empty / f"{name}.yaml"), empty, batch_sizes=(1,) if name == "tvm" else (1, 8))


@takes_minutes
def test_kserve_runs_with_the_harness_alone(environment: MakeEnvironment, empty: Path) -> None:
    """The server is in the tests' own environment."""
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
def test_finn_runs_with_its_extra_and_a_board_s_pynq(environment: MakeEnvironment, empty: Path) -> None:
    """pynq is the fake of the tests: no package has a board."""
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
    """Run an example plan, shortened; every configuration must have a result at every batch size.

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
    wanted = {item.name for item in make_plan(yaml.safe_load(path.read_text()), example).configurations}
    rows = {(row["configuration"]["name"], row["batch_size"]) for row in result["results"]}
    assert rows == {(name, size) for name in wanted for size in batch_sizes}, done.err
    assert all(row["inferences"] >= row["batch_size"] for row in result["results"])
    return result


def _pip(*words: str) -> None:
    """The tests' own pip; no registry is a reason to skip, except in CI."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return
    said = done.stderr or done.stdout
    if OF_A_REGISTRY.search(said) and os.environ.get("JOULEWATCH_REQUIRE_ALL") != "1":
        pytest.skip(f"pip can install nothing here: {said.strip().splitlines()[-1]}")
    pytest.fail(f"pip {' '.join(words)}: {said}", pytrace=False)
