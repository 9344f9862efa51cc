"""The custom collector of the exporter's README: packed, installed and scraped."""

from __future__ import annotations

import json
import os
import re
import socketserver
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

README = Path(__file__).parents[2] / "exporter/README.md"
ENTRY_POINTS = "[joulewatch.collectors]\nmeter = joulewatch_meter:MeterCollector\n"


class ScpiMeter(socketserver.ThreadingTCPServer):
    """A power meter that answers every line with its watts."""

    allow_reuse_address = True
    daemon_threads = True
    watts = 312.25


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for _ in self.rfile:
            assert isinstance(self.server, ScpiMeter)
            self.wfile.write(f"{self.server.watts:.6E}\n".encode())


@pytest.fixture
def meter() -> Iterator[ScpiMeter]:
    with ScpiMeter(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def example() -> str:
    """Return the code block of the README that defines the collector."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if "class MeterCollector" in block]
    return str(code)


def install(folder: Path, *, module: str, code: str, entry_points: str) -> Path:
    """Make a wheel of one module and install it with pip; return the folder to put on the path."""
    folder.mkdir()
    info = f"{module}-1.0.dist-info"
    wheel = folder / f"{module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{module}.py", code)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/entry_points.txt", entry_points)
        archive.writestr(f"{info}/RECORD", "")
    target = folder / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True, timeout=60)
    return target


def exporter(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "joulewatch_exporter", *words],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which the collector of the README is installed."""
    folder = tmp_path_factory.mktemp("meter") / "wheel"
    return install(folder, module="joulewatch_meter", code=example(), entry_points=ENTRY_POINTS)


@pytest.fixture
def machine(tmp_path: Path) -> list[str]:
    """Return the flags of a machine without sensors."""
    roots = [tmp_path / name for name in ("sys", "proc", "dev")]
    for root in roots:
        root.mkdir()
    return [f"--path.{name}={root}" for name, root in zip(("sysfs", "procfs", "dev"), roots, strict=True)]


def test_the_collector_of_the_readme_measures_a_meter(
    site: Path, tmp_path: Path, meter: ScpiMeter, machine: list[str]
) -> None:
    host, port = meter.server_address[:2]
    config = tmp_path / "exporter.yaml"
    config.write_text(f"collectors: {{meter: {{address: '{host!s}:{port}'}}}}\n")
    completed = exporter(site, f"--config.file={config}", *machine, "--no-collector.estimate", "--once")
    assert completed.returncode == 0, completed.stderr
    assert (
        'joulewatch_node_power_watts{collector="meter",component="node",device="meter",domain="total"} 312.25'
        in completed.stdout
    )
    assert 'joulewatch_sensor_up{collector="meter",device="meter"} 1.0' in completed.stdout
    completed = exporter(site, f"--config.file={config}", *machine, "check", "--format", "json")
    (reading,) = [entry for entry in json.loads(completed.stdout)["readings"] if entry["collector"] == "meter"]
    assert reading["power_watts"] == 312.25


def test_a_missing_meter_is_down(site: Path, tmp_path: Path, machine: list[str]) -> None:
    """The device is down with a reason, not missing from the scrape, and there is no traceback."""
    config = tmp_path / "exporter.yaml"
    config.write_text("collectors: {meter: {address: '127.0.0.1:9'}}\n")
    completed = exporter(site, f"--config.file={config}", *machine, "--no-collector.estimate", "--once")
    assert 'joulewatch_sensor_up{collector="meter",device="meter"} 0.0' in completed.stdout
    assert 'reason="absent"' in completed.stdout
    assert "127.0.0.1:9: " in completed.stderr and "Traceback" not in completed.stderr


def test_without_its_address_the_collector_of_the_readme_is_absent(site: Path, machine: list[str]) -> None:
    completed = exporter(site, *machine, "--collector.meter", "--once")
    assert completed.returncode == 2
    assert "collectors.meter.address is not set" in completed.stderr
    completed = exporter(site, *machine, "--no-collector.estimate", "--once")
    assert completed.returncode == 1 and "meter" not in completed.stdout


@pytest.mark.parametrize(
    ("code", "entry_points", "text"),
    [
        ("import no_such_module", ENTRY_POINTS, "cannot be imported: ModuleNotFoundError"),
        ("class MeterCollector: name = 'meter'", ENTRY_POINTS, "is not a valid collector: missing Options, sensors"),
        (
            "from joulewatch_exporter.collectors.rapl.collector import RaplCollector as MeterCollector",
            "[joulewatch.collectors]\nrapl = joulewatch_meter:MeterCollector\n",
            "a collector of this name already exists",
        ),
        (
            "from joulewatch_exporter.collectors.rapl.collector import RaplCollector as MeterCollector",
            ENTRY_POINTS,
            "its name must be the lower-case name of its entry point",
        ),
    ],
)
def test_a_package_without_a_valid_collector_is_named(
    tmp_path: Path, machine: list[str], code: str, entry_points: str, text: str
) -> None:
    site = install(tmp_path / "wheel", module="joulewatch_meter", code=code, entry_points=entry_points)
    start_s = time.monotonic()
    completed = exporter(site, *machine, "--once")
    assert (completed.returncode, completed.stdout) == (2, "")
    assert "of the package joulewatch_meter (joulewatch_meter:MeterCollector)" in completed.stderr
    assert text in completed.stderr and "Traceback" not in completed.stderr
    assert time.monotonic() - start_s < 30
