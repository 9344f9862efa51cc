"""Record a Slurm job as a run: ``python -m joulewatch_harness.delivery.slurm_job start|end``.

The prolog and the epilog in ``deploy/slurm`` start it in the background, with the environment of slurmctld and the
time in ``JOULEWATCH_AT``. At the start of the job it writes a journal and delivers that the run is running; at the end
it adds one window with the job's time, delivers it, and removes the journal if Prometheus has everything. Energies come
from the exporters' samples later: ``joulewatch energy --slurm-job ID``.

A user is recorded as a hash of the user id with the cluster's secret salt, so that the runs of one user belong together
and nobody without the salt can tell whose they are. Without a salt, there is no user.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from joulewatch_exporter.text import count_of
from joulewatch_harness import __version__
from joulewatch_harness.clients.options import load_options
from joulewatch_harness.clients.slurm import expand_hostlist
from joulewatch_harness.delivery.delivery import push_run
from joulewatch_harness.errors import ConfigError, JoulewatchError
from joulewatch_harness.records import (
    SCHEMA_VERSION,
    Configuration,
    ExporterRecord,
    RunEnd,
    RunHeader,
    Window,
    encode_line,
)
from joulewatch_harness.storage.journal import Journal, journal_path, new_run_id, read_run

FOLDER: Final = Path("/var/spool/joulewatch/slurm")
PROMETHEUS: Final = Path("/etc/joulewatch/prometheus.yaml")
SALT: Final = Path("/etc/joulewatch/slurm.salt")
LEAST_SALT_BYTES: Final = 16
HASH_DIGITS: Final = 12
DELIVERY_S: Final = 60.0
PROLOG_S: Final = 10.0
"""How long the epilog of a short job waits for what its prolog writes."""
_JOB: Final = re.compile(r"[0-9]{1,18}")
_CLUSTER: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def user_hash(uid: str, salt: Path = SALT) -> str:
    """Return a name for a user that only the owner of the salt can compute; empty without a salt.

    Raises:
        ConfigError: Others than the owner may read the salt, or it is too short.
    """
    try:
        secret = salt.read_bytes().strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError(f"{salt}: cannot be read: {error.strerror}") from error
    if salt.stat().st_mode & 0o077:
        raise ConfigError(f"{salt}: others may read it: chmod 600 {salt}")
    if len(secret) < LEAST_SALT_BYTES:
        raise ConfigError(f"{salt}: needs at least {LEAST_SALT_BYTES} bytes")
    return hmac.new(secret, uid.encode(), hashlib.sha256).hexdigest()[:HASH_DIGITS]


def header_of(environment: Mapping[str, str], now_s: float, salt: Path = SALT) -> RunHeader:
    """Return the first line of a job's journal.

    Raises:
        ConfigError: The environment is not that of a prolog or epilog of slurmctld.
        QueryError: The list of nodes is not valid.
    """
    job = _job(environment)
    cluster = environment.get("SLURM_CLUSTER_NAME", "")
    nodes = expand_hostlist(environment.get("SLURM_JOB_NODELIST", ""))
    user = user_hash(environment.get("SLURM_JOB_UID", ""), salt)
    task = environment.get("SLURM_ARRAY_JOB_ID", ""), environment.get("SLURM_ARRAY_TASK_ID", "")
    name = "_".join(task) if all(map(_JOB.fullmatch, task)) else job
    configuration = Configuration(
        name="/".join(filter(None, ("slurm", name, user and f"user-{user}"))),
        network=f"job {name}",
        runtime="slurm",
        precision="",
    )
    known = cluster if _CLUSTER.fullmatch(cluster) else ""
    return RunHeader(
        run=new_run_id(now_s),
        started_at_s=now_s,
        schema=SCHEMA_VERSION,
        command=("slurm", "job", name),
        plan={},
        plan_sha256=hashlib.sha256(b"").hexdigest(),
        configurations=(configuration,),
        exporters=tuple(ExporterRecord(name=node, url="", nodename=node) for node in nodes),
        sensors=(),
        provenance={
            "hardware": count_of(len(nodes), "node") + (f" of {known}" if known else ""),
            "versions": {"joulewatch": __version__},
            "slurm": {"job": job, "name": name, "cluster": known, "nodes": nodes, "user": user},
        },
    )


def _job(environment: Mapping[str, str]) -> str:
    job = environment.get("SLURM_JOB_ID", "")
    if not _JOB.fullmatch(job):
        raise ConfigError(f"SLURM_JOB_ID is {job!r}: this program is for PrologSlurmctld and EpilogSlurmctld")
    return job


def start(environment: Mapping[str, str], folder: Path, now_s: float, salt: Path = SALT) -> Path:
    """Write the journal of a job that starts; return its folder."""
    job = _job(environment)
    header = header_of(environment, now_s, salt)
    with _locked(folder):
        with Journal.create(folder / "runs", header) as journal:
            journal.append(header.configurations[0])
        # A requeued job starts again: its earlier run has ended, or was lost with slurmctld.
        (folder / f"{job}.run").write_text(header.run, encoding="ascii")
    return folder / "runs" / header.run


def end(
    environment: Mapping[str, str], folder: Path, now_s: float, sleep: Callable[[float], None] = time.sleep
) -> Path:
    """Add the window and the end of a job to its journal; return its folder.

    Raises:
        ConfigError: The job has no journal.
    """
    known = folder / f"{_job(environment)}.run"
    for _ in range(round(PROLOG_S / 0.1)):
        if known.exists():
            break
        sleep(0.1)
    with _locked(folder):
        try:
            run = known.read_text(encoding="ascii")
        except FileNotFoundError:
            raise ConfigError("it has no run: did its prolog run?") from None
        path = folder / "runs" / run
        header = read_run(path).header
        window = Window(
            run=run,
            index=0,
            kind="measure",
            start_s=header.started_at_s,
            end_s=now_s,
            duration_s=now_s - header.started_at_s,
            clock_error_s=0.0,
            configuration=header.configurations[0].name,
        )
        failed = environment.get("SLURM_JOB_EXIT_CODE", "0") != "0"
        with journal_path(path).open("ab") as file:
            for line in (window, RunEnd(ended_at_s=now_s, status="failed" if failed else "complete")):
                file.write(json.dumps(encode_line(line), separators=(",", ":")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        known.unlink()
    return path


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder, because the prologs and epilogs of many jobs run at once."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(words: list[str], environment: Mapping[str, str] = os.environ) -> int:
    """Record the start or the end of a job; report a problem in one line, and return 0 in every case."""
    folder = Path(environment.get("JOULEWATCH_SLURM_FOLDER", FOLDER))
    salt = Path(environment.get("JOULEWATCH_SLURM_SALT", SALT))
    prometheus = Path(environment.get("JOULEWATCH_SLURM_PROMETHEUS", PROMETHEUS))
    try:
        at_s = float(environment.get("JOULEWATCH_AT") or time.time())
        ended = words == ["end"]
        path = end(environment, folder, at_s) if ended else start(environment, folder, at_s, salt)
        options = load_options(None, prometheus)
        assert options is not None
        if push_run(path, options, timeout_s=DELIVERY_S).complete and ended:
            shutil.rmtree(path)
    except (JoulewatchError, OSError, ValueError, KeyError) as error:
        job = environment.get("SLURM_JOB_ID", "")
        print(f"joulewatch: Slurm job {job!r}: {error}", file=sys.stderr)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
