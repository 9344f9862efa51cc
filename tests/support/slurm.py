"""A real Slurm on this machine with one node, without systemd: munge, MariaDB, slurmdbd, slurmctld and slurmd."""

from __future__ import annotations

import getpass
import os
import secrets
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from support.servers import free_port
from support.waiting import wait_until

PROGRAMS: Final = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacct")
PACKAGES: Final = "munge mariadb-server slurmdbd slurmctld slurmd slurm-client"
NODE: Final = socket.gethostname().partition(".")[0]


class SlurmCluster:
    """One controller and one node, whose name is that of this machine; stopped by ``stop``."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder = folder
        for name in ("mysql", "spool", "state", "log"):
            (folder / name).mkdir(parents=True)
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._munge = folder / "munge.sock"
        self._sql = folder / "mysql.sock"
        self._database, accounting, controller, node = (free_port() for _ in range(4))
        user = getpass.getuser()
        (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
        (folder / "munge.key").chmod(0o400)
        dbd = {
            "AuthType": "auth/munge", "AuthInfo": f"socket={self._munge}", "DbdHost": "localhost",
            "DbdPort": str(accounting), "SlurmUser": user, "StorageType": "accounting_storage/mysql",
            "StorageHost": "127.0.0.1", "StoragePort": str(self._database), "StorageUser": "slurm",
            "StoragePass": "slurm", "StorageLoc": "slurm", "PidFile": str(folder / "slurmdbd.pid"),
        }  # fmt: skip
        conf = {
            "ClusterName": "test", "SlurmctldHost": f"{NODE}(127.0.0.1)", "SlurmctldPort": str(controller),
            "SlurmdPort": str(node), "AuthType": "auth/munge", "AuthInfo": f"socket={self._munge}",
            "CredType": "cred/munge", "SlurmUser": user, "SlurmdUser": user, "StateSaveLocation": str(folder / "state"),
            "SlurmdSpoolDir": str(folder / "spool"), "SlurmctldPidFile": str(folder / "slurmctld.pid"),
            "SlurmdPidFile": str(folder / "slurmd.pid"), "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none", "MpiDefault": "none", "ReturnToService": "2",
            "AccountingStorageType": "accounting_storage/slurmdbd", "AccountingStorageHost": "localhost",
            "AccountingStoragePort": str(accounting), "AccountingStoragePass": str(self._munge),
            "JobAcctGatherType": "jobacct_gather/none", "SchedulerParameters": "sched_interval=1,bf_interval=1",
            **settings,
        }  # fmt: skip
        nodes = (
            f"NodeName={NODE} NodeAddr=127.0.0.1 CPUs=1 RealMemory=100\nPartitionName=main Nodes={NODE} Default=YES\n"
        )
        for name, values, more in (("slurmdbd.conf", dbd, ""), ("slurm.conf", conf, nodes)):
            (folder / name).write_text("".join(f"{key}={value}\n" for key, value in values.items()) + more)
            (folder / name).chmod(0o600)

    def start(self) -> None:
        """Start all servers, and wait until the node is idle."""
        user = getpass.getuser()
        self._serve("munged", "--foreground", "--force", f"--key-file={self.folder / 'munge.key'}",
                    f"--socket={self._munge}", f"--pid-file={self.folder / 'munged.pid'}",
                    f"--log-file={self.folder / 'log' / 'munged'}",
                    f"--seed-file={self.folder / 'munge.seed'}")  # fmt: skip
        data = f"--datadir={self.folder / 'mysql'}"
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", f"--user={user}", data, "--auth-root-authentication-method=normal",
             "--skip-test-db"],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        self._serve("mariadbd", "--no-defaults", f"--user={user}", data, f"--socket={self._sql}",
                    f"--port={self._database}", "--bind-address=127.0.0.1", "--innodb-flush-log-at-trx-commit=0",
                    f"--pid-file={self.folder / 'mysql.pid'}")  # fmt: skip
        statements = ["CREATE DATABASE slurm"]
        for host in ("localhost", "127.0.0.1"):
            statements += [
                f"CREATE USER 'slurm'@'{host}' IDENTIFIED BY 'slurm'",
                f"GRANT ALL ON slurm.* TO 'slurm'@'{host}'",
            ]
        sql = ("mariadb", "--no-defaults", "--user=root", f"--socket={self._sql}")
        wait_until(lambda: self._succeeds(*sql, "--execute=SELECT 1"), "MariaDB answers", limit_s=60)
        self.run(*sql, f"--execute={';'.join(statements)}")
        self._serve("slurmdbd", "-D")
        wait_until(lambda: self._succeeds("sacctmgr", "-n", "show", "cluster"), "slurmdbd answers", limit_s=120)
        self._succeeds("sacctmgr", "-i", "add", "cluster", "test")
        self._serve("slurmctld", "-D", "-i")
        self._serve("slurmd", "-D")
        wait_until(lambda: "idle" in self.run("sinfo", "--noheader", "--format=%T"), "the node is idle", limit_s=60)

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)

    def run(self, *command: str) -> str:
        """Run a command of Slurm; return its output, which is empty if it fails."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL
        )
        return done.stdout

    def _succeeds(self, *command: str) -> bool:
        done = subprocess.run(command, env=self.environment, capture_output=True, timeout=30, stdin=subprocess.DEVNULL)
        return done.returncode == 0

    def _serve(self, *command: str) -> None:
        with (self.folder / "log" / f"{command[0]}.out").open("ab") as log:
            self._processes.append(
                subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            )
