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
from support.require import require_program

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
    for name in ("Dockerfile", "joulewatch-exporter.container"):
        text = (ROOT / "deploy/container" / name).read_text("utf-8")
        assert set(re.findall(r"joulewatch-exporter:(\S+)", text)) == {VERSION}, name


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
    assert run(environment / "bin/python", "-c", "import joulewatch; print(joulewatch.__version__)", cwd=tmp_path)


# Debian and RPM


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    run(sys.executable, ROOT / "deploy/packages/build.py", folder, cwd=folder)
    return folder


ETC: Final = {"/etc/default/joulewatch-exporter", "/etc/joulewatch/exporter.yaml"}
FILES: Final = {
    "/usr/bin/joulewatch-exporter",
    "/usr/lib/systemd/system/joulewatch-exporter.service",
    "/usr/lib/joulewatch/joulewatch_exporter/cli.py",
    "/usr/share/bash-completion/completions/joulewatch-exporter",
    "/usr/share/fish/vendor_completions.d/joulewatch-exporter.fish",
    "/usr/share/man/man1/joulewatch-exporter.1.gz",
    "/usr/share/doc/joulewatch-exporter/copyright",
    "/usr/share/doc/joulewatch-exporter/example.yaml",
    "/usr/share/doc/joulewatch-exporter/systemd/nvidia.conf",
}


def check_paths(paths: set[str]) -> None:
    assert paths >= FILES | ETC
    allowed = ("/usr/lib/joulewatch/", "/usr/share/")
    assert {path for path in paths - FILES - ETC if not path.startswith(allowed)} == set()
    unwanted = ("joulewatch_harness", "lib/joulewatch/joulewatch/")
    assert [path for path in paths if path.endswith((".so", ".pyc")) or any(name in path for name in unwanted)] == []


def test_the_debian_package_runs_with_what_it_carries(packages: Path, emulated: list[str], tmp_path: Path) -> None:
    dpkg_deb = require_program("dpkg-deb", "dpkg")
    (package,) = packages.glob(f"joulewatch-exporter_{VERSION}-1_all.deb")
    listing = run(dpkg_deb, "--contents", package, cwd=tmp_path).splitlines()
    assert {line.split()[1] for line in listing} == {"root/root"}
    check_paths({line.split()[5].removeprefix(".") for line in listing if not line.startswith("d")})
    run(dpkg_deb, "--control", package, tmp_path / "control", cwd=tmp_path)
    assert set((tmp_path / "control/conffiles").read_text("utf-8").split()) == ETC
    for script in ("postinst", "prerm", "postrm"):
        run("sh", "-n", tmp_path / "control" / script, cwd=tmp_path)
    run(dpkg_deb, "--extract", package, tmp_path / "root", cwd=tmp_path)
    unit = (tmp_path / "root/usr/lib/systemd/system/joulewatch-exporter.service").read_text("utf-8")
    assert "ExecStart=/usr/bin/joulewatch-exporter $ARGS\n" in unit and "/opt/" not in unit
    # No Python package of the test environment may help: the launcher isolates itself, and this Python is not of it.
    launcher = tmp_path / "root/usr/bin/joulewatch-exporter"
    text = launcher.read_text("utf-8").replace('"/usr/lib/joulewatch"', repr(str(tmp_path / "root/usr/lib/joulewatch")))
    launcher.write_text(text, "utf-8")
    python = (sys.executable, "-S", "-I", launcher)
    settings = tmp_path / "root/etc/joulewatch/exporter.yaml"
    assert VERSION in run(*python, "--version", cwd=tmp_path)
    out = run(*python, f"--config.file={settings}", "--once", *emulated, cwd=tmp_path)
    assert re.search(r"^joulewatch_device_energy_joules_total\{.*component=\"cpu\".*\} \d", out, re.MULTILINE)
    run(sys.executable, "-S", "-I", "-c", IMPORTS, tmp_path / "root/usr/lib/joulewatch", cwd=tmp_path)


IMPORTS: Final = "import sys; sys.path.insert(0, sys.argv[1]); import pynvml, requests, joulewatch_exporter.cli"


def test_the_rpm_has_the_same_files(packages: Path, tmp_path: Path) -> None:
    rpm = require_program("rpm", "rpm")
    (package,) = packages.glob(f"joulewatch-exporter-{VERSION}-1.noarch.rpm")
    query = (rpm, "--dbpath", tmp_path, "--query", "--package")
    entries = run(*query, "--queryformat", "[%{FILEMODES:perms} %{FILENAMES}\n]", package, cwd=tmp_path).splitlines()
    check_paths({entry.partition(" ")[2] for entry in entries if not entry.startswith("d")})
    assert set(run(*query, "--configfiles", package, cwd=tmp_path).split()) == ETC
    assert "python3 >= 3.11" in run(*query, "--requires", package, cwd=tmp_path)
