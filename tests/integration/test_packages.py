"""What users install: the wheel, the sdist, and the packages of Debian and RPM.

The tests build everything from this tree. pip downloads what the packages carry, so the tests require a package index.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

import joulewatch_exporter
import joulewatch_harness
from support.paths import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

PROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
VERSION: Final[str] = PROJECT["version"]
TOOLS: Final = Path(sys.executable).parent
"""Where the programs of the group ``release`` are."""


def run(*command: object, cwd: Path) -> str:
    """Run a command, without the environment of the tests, that must succeed; return stdout."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "JOULEWATCH"))}
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env=variables,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from the sdist, so that the sdist is known to be complete."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the flags of an emulated node."""
    folder = tmp_path_factory.mktemp("node")
    run(TOOLS / "joulewatch-exporter", "emulate", "epyc-7763-node", folder, "--duration", "0.2", cwd=folder)
    return [f"--path.sysfs={folder / 'sys'}", f"--path.procfs={folder / 'proc'}"]


def data_files() -> set[str]:
    """Return the files of the examples, as they are named below ``share/joulewatch``."""
    folders = ("harness/examples", "harness/children")
    found: Iterable[Path] = (path for folder in folders for path in (ROOT / folder).rglob("*.*") if path.is_file())
    names = {str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts}
    return names | {"harness/example-plan.yaml", "exporter/example.yaml"}


def test_the_version_is_the_same_everywhere() -> None:
    compose = yaml.safe_load((ROOT / "deploy/compose/compose.yaml").read_text("utf-8"))
    assert joulewatch_exporter.__version__ == joulewatch_harness.__version__ == VERSION
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"] == VERSION
    assert compose["services"]["exporter"]["image"] == f"joulewatch-exporter:{VERSION}"


def test_the_citation_is_valid_and_names_the_authors_of_the_package() -> None:
    path = ROOT / "CITATION.cff"
    run(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.citation-file-format", path, cwd=ROOT)
    citation = yaml.safe_load(path.read_text("utf-8"))
    assert citation["authors"] == PROJECT["authors"]
    assert citation["license"] == PROJECT["license"]


def test_the_index_would_accept_both_files(dist: Path) -> None:
    assert {path.name for path in dist.iterdir()} == {
        f"joulewatch-{VERSION}.tar.gz",
        f"joulewatch-{VERSION}-py3-none-any.whl",
    }
    run(TOOLS / "twine", "check", "--strict", *dist.iterdir(), cwd=dist)


def test_wheel_and_sdist_contain_the_examples_the_cards_and_the_manuals(dist: Path) -> None:
    cards = {f"joulewatch_harness/prediction/cards/{path.name}" for path in ROOT.glob("harness/**/cards/*.yaml")}
    assert cards
    manuals = {"share/man/man1/joulewatch.1", "share/man/man1/joulewatch-exporter.1"}
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    data = f"joulewatch-{VERSION}.data/data"
    assert cards <= names
    assert {f"{data}/share/joulewatch/{name}" for name in data_files()} | {
        f"{data}/{name}" for name in manuals
    } <= names
    with tarfile.open(next(dist.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert data_files() | {f"harness/{name}" for name in cards} | {"CITATION.cff", "CHANGELOG.md", "LICENSE"} <= names


def test_the_wheel_runs_without_the_repository(dist: Path, emulated: list[str], tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "--quiet")
    run(*pip, "--no-compile", next(dist.glob("*.whl")), cwd=tmp_path)
    assert run(environment / "bin/joulewatch", "--version", cwd=tmp_path).split() == ["joulewatch", VERSION]
    assert "epyc-7763" in run(environment / "bin/joulewatch", "device", cwd=tmp_path)
    out = run(environment / "bin/joulewatch-exporter", "--once", *emulated, cwd=tmp_path)
    assert re.search(r"^joulewatch_device_energy_joules_total\{.*component=\"cpu\".*\} \d", out, re.MULTILINE)
    assert (environment / "share/joulewatch/harness/example-plan.yaml").is_file()
