"""Build the packages of the exporter for Debian and RPM.

    python deploy/packages/build.py [FOLDER]    # default: dist

The packages carry the exporter and the Python packages that it needs in /usr/lib/joulewatch, so that an installation
downloads nothing. Compiled modules are removed: each of these packages works without them, and the rest runs on every
architecture and every Python from 3.11 on.
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
DEPLOY: Final = HERE.parent
ROOT: Final = DEPLOY.parent
NAME: Final = "joulewatch-exporter"
CARRIED: Final = (
    *("prometheus-client", "PyYAML", "nvidia-ml-py"),
    *("requests", "certifi", "charset-normalizer", "idna", "urllib3"),  # Redfish
    *("pyghmi", "python-dateutil", "six"),  # IPMI, with the system's python3-cryptography
)
"""What the exporter uses and what that needs, except packages that are nothing without compiled modules."""
UNUSED: Final = ("joulewatch", "joulewatch_harness", "bin", "share")


def main() -> None:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "dist").resolve()
    target.mkdir(parents=True, exist_ok=True)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder)
        lay_out(stage)
        shutil.copytree(HERE, stage / "packages")
        for packager in ("deb", "rpm"):
            command = ["nfpm", "package", "--config", "packages/nfpm.yaml", "--packager", packager, "--target", target]
            environment = {
                **os.environ,
                "VERSION": version,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            }
            subprocess.run(command, cwd=stage, env=environment, check=True)


def lay_out(stage: Path) -> None:
    """Write all files of the packages below ``stage``, except what differs between the packages."""
    install_modules(stage / "usr/lib/joulewatch")
    copy(HERE / NAME, stage / "usr/bin" / NAME, mode=0o755)
    unit = (DEPLOY / "systemd" / f"{NAME}.service").read_text("utf-8")
    write(stage / f"usr/lib/systemd/system/{NAME}.service", unit.replace("/opt/joulewatch/bin/", "/usr/bin/"))
    man = stage / f"usr/share/man/man1/{NAME}.1.gz"
    man.parent.mkdir(parents=True)
    man.write_bytes(gzip.compress((DEPLOY / "man" / f"{NAME}.1").read_bytes(), mtime=0))
    completions = DEPLOY / "completions"
    copy(completions / "bash" / NAME, stage / "usr/share/bash-completion/completions" / NAME)
    copy(completions / "fish" / f"{NAME}.fish", stage / f"usr/share/fish/vendor_completions.d/{NAME}.fish")
    copy(completions / "zsh" / f"_{NAME}", stage / f"zsh/_{NAME}")
    documents = stage / "usr/share/doc" / NAME
    copy(ROOT / "LICENSE", documents / "copyright")
    copy(ROOT / "exporter/example.yaml", documents / "example.yaml")
    for path in (DEPLOY / "systemd").rglob("*.*"):
        if path.is_file() and path.suffix in (".conf", ".rules"):
            copy(path, documents / "systemd" / path.name)


def install_modules(folder: Path) -> None:
    """Install the exporter and what it carries in ``folder``, without compiled modules."""
    command: list[str | Path] = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-compile", "--no-build-isolation"]
    command += ["--constraint", ROOT / "constraints-dev.txt", "--target", folder, ROOT, *CARRIED]
    subprocess.run(command, check=True)
    for name in UNUSED:
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in folder.rglob("*.so"):
        path.unlink()


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def copy(source: Path, target: Path, mode: int = 0o644) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


if __name__ == "__main__":
    os.umask(0o022)
    main()
