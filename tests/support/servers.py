"""Real servers on loopback: Prometheus, Pushgateway and the exporter, started and stopped by tests and benchmarks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

START_LIMIT_S = 20.0


_RESERVED: Final[list[socket.socket]] = []


def free_port() -> int:
    """Return a TCP port that stays reserved for the caller, also while its server is down.

    A socket that is bound but does not listen keeps the kernel from giving the port to anybody who does not ask for
    it. A server with SO_REUSEADDR can listen on it, and without a server, connections are refused. The port is free on
    all addresses, because some servers (Slurm's) cannot be bound to loopback.
    """
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind(("", 0))
    _RESERVED.append(reservation)
    return int(reservation.getsockname()[1])


def wait_for_http(url: str, process: subprocess.Popen[bytes], log: Path, limit_s: float = START_LIMIT_S) -> None:
    """Wait until ``url`` answers 200.

    Raises:
        RuntimeError: The process ended, or the limit passed; the text contains the end of its log.
    """
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{url}: process ended with {process.returncode}: {log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(url, timeout=1) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        time.sleep(0.02)
    raise RuntimeError(f"{url}: no response within {limit_s} s: {log.read_text()[-2000:]}")


class Server:
    """One child process with a log file; after ``stop`` it can be restarted with the same folder and port."""

    def __init__(
        self, command: Sequence[str], folder: Path, ready_url: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.command = tuple(command)
        self.environment = environment
        self.folder = folder
        self.ready_url = ready_url
        self.log = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.environment
            )
        try:
            wait_for_http(self.ready_url, self.process, self.log)
        except RuntimeError:
            self.stop()
            raise

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        self.process = None


class PrometheusServer(Server):
    """A real Prometheus, by default with the remote-write receiver enabled.

    Args:
        scrape_jobs: Name of a further job -> its targets with their labels.
    """

    def __init__(
        self,
        program: str,
        folder: Path,
        *,
        scrape_targets: Sequence[str] = (),
        scrape_jobs: Mapping[str, Sequence[tuple[str, Mapping[str, str]]]] = MappingProxyType({}),
        scrape_interval: str = "1s",
        evaluation_interval: str = "1m",
        pushgateway: str = "",
        receiver: bool = True,
        out_of_order: bool = False,
        rule_files: Sequence[Path] = (),
        extra_args: Sequence[str] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        jobs = f"""
  - job_name: joulewatch
    static_configs: [{{targets: [{", ".join(repr(target) for target in scrape_targets)}]}}]"""
        for name, targets in scrape_jobs.items():
            configs = [{"targets": [target], "labels": dict(labels)} for target, labels in targets]
            jobs += f"""
  - job_name: {name}
    static_configs: {json.dumps(configs)}"""
        if pushgateway:
            jobs += f"""
  - job_name: pushgateway
    honor_labels: true
    static_configs: [{{targets: [{pushgateway!r}]}}]"""
        config = f"""global: {{scrape_interval: {scrape_interval}, evaluation_interval: {evaluation_interval}}}
rule_files: [{", ".join(repr(str(path)) for path in rule_files)}]
scrape_configs:{jobs}
"""
        if out_of_order:
            config += "storage: {tsdb: {out_of_order_time_window: 7d}}\n"
        (folder / "prometheus.yml").write_text(config)
        self.url = f"http://127.0.0.1:{port}"
        command = [
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--storage.tsdb.retention.time=10y",
            *(["--web.enable-remote-write-receiver"] if receiver else []),
            *extra_args,
        ]
        super().__init__(command, folder, f"{self.url}/-/ready")


class VictoriaMetricsServer(Server):
    """A real VictoriaMetrics, which has the query API of Prometheus, and its receiver of remote write."""

    def __init__(
        self,
        program: str,
        folder: Path,
        *,
        scrape_targets: Sequence[str] = (),
        scrape_interval: str = "1s",
        extra_args: Sequence[str] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        address = f"127.0.0.1:{free_port()}"
        job = {"job_name": "joulewatch", "static_configs": [{"targets": list(scrape_targets)}]}
        config = {"global": {"scrape_interval": scrape_interval}, "scrape_configs": [job]}
        (folder / "scrape.yaml").write_text(json.dumps(config))
        self.url = f"http://{address}"
        command = [
            program,
            f"-storageDataPath={folder / 'data'}",
            f"-httpListenAddr={address}",
            f"-promscrape.config={folder / 'scrape.yaml'}",
            "-retentionPeriod=10y",
            *extra_args,
        ]
        super().__init__(command, folder, f"{self.url}/health")


class PushgatewayServer(Server):
    """A real Pushgateway."""

    def __init__(self, program: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.address}"
        super().__init__([program, f"--web.listen-address={self.address}"], folder, f"{self.url}/-/ready")


EXPORTER: Final = (sys.executable, "-m", "joulewatch_exporter")


class ExporterServer(Server):
    """A real joulewatch-exporter, usually on an emulated tree."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = EXPORTER,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.address}"
        command = [*program, f"--web.listen-address={self.address}", *flags]
        super().__init__(command, folder, f"{self.url}/-/healthy", environment)


MEMORY = Path("/dev/shm")


class Emulator:
    """``joulewatch-exporter emulate``, which writes a machine whose energy is known.

    Its tree is in memory if possible, because the journal of a disk would delay its updates.
    """

    def __init__(self, scenario: str | Path, program: Sequence[str] = (*EXPORTER, "emulate")) -> None:
        self.program = tuple(program)
        self.folder = Path(tempfile.mkdtemp(prefix="joulewatch-machine-", dir=MEMORY if MEMORY.is_dir() else None))
        self.sysfs = self.folder / "sys"
        self.procfs = self.folder / "proc"
        self.scenario = str(scenario)
        self.process: subprocess.Popen[str] | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags that make an exporter read this machine."""
        return (f"--path.sysfs={self.sysfs}", f"--path.procfs={self.procfs}")

    def start(self) -> None:
        self.process = subprocess.Popen(
            [*self.program, self.scenario, str(self.folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stderr is not None
        lines = []
        for line in self.process.stderr:
            lines.append(line)
            if "emulating" in line:
                self._raise_priority()
                return
        self.process.wait(5)
        raise RuntimeError(f"emulate {self.scenario}: ended with {self.process.returncode}: {''.join(lines)}")

    def _raise_priority(self) -> None:
        """Give the emulator real-time priority if permitted, because hardware does not wait for a free core."""
        assert self.process is not None
        try:
            os.sched_setscheduler(self.process.pid, os.SCHED_FIFO, os.sched_param(1))
        except PermissionError:
            return

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
        if self.process.stderr is not None:
            self.process.stderr.close()
        self.process = None

    def remove(self) -> None:
        """Stop the emulator and delete its tree, including the truth."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
