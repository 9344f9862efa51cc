"""Tuning and its results: a database per machine, target, network and batch size.

A folder under ``$XDG_CACHE_HOME/joulewatch/tvm`` (``~/.cache``) contains TVM's two tables, with a JSON line for each
kernel and each trial, and ``tuning.json``, a list of completed tunings. TVM appends to the tables during tuning, so the
results of a killed process are kept, except perhaps an incomplete last line. Readers use a copy of the complete lines;
one process at a time writes, under a lock that the operating system releases when the process ends.

The search runs in a separate process (``tuner``), because it prints, starts workers, and its compiler can crash. It
ends with the process that started it, even if that one is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import tvm
from tvm.s_tir import meta_schedule

from joulewatch_exporter.text import count_of
from joulewatch_harness import files
from joulewatch_harness.errors import ConfigError, NetworkError
from joulewatch_harness.runtimes.tvm import vnni

logger = logging.getLogger(__name__)

WORKLOADS: Final = "database_workload.json"
RECORDS: Final = "database_tuning_record.json"
"""TVM's file names."""
FINISHED: Final = "tuning.json"
LOG: Final = "tuning.log"
PROGRESS_S: Final = 30.0

_LOCK: Final = "lock"
_SCRATCH: Final = ".tuning-"
_WAIT_S: Final = 1.0
_CODE: Final = (
    "import sys; sys.path[:] = sys.argv[2].split('\\n'); from joulewatch_harness.runtimes.tvm.tuner import main; "
    "main(sys.argv[1])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """How to tune."""

    trials: int
    """Trials per kernel."""
    threads: int
    """Threads of a kernel while it is timed."""
    cost_model: str
    seed: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The completed tunings."""

    trials: int = 0
    """Largest number of requested trials per kernel."""
    tuning_s: float = 0.0
    cost_model: str = ""


def folder_of(cpu: str, target: Any, model_sha256: str, precision: str, label: str) -> Path:
    """Return the folder of the database of one network, for one batch size on one machine.

    Args:
        cpu: The name of the processor, because schedules are specific to it.
        target: A ``tvm.target.Target``; it contains the number of threads.
        model_sha256: Checksum of the model file.
        precision: The requested precision.
        label: Batch size and other sizes: ``batch8``.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "joulewatch" / "tvm"
    machine = hashlib.sha256(f"{cpu}\n{target}".encode()).hexdigest()[:12]
    name = re.sub(r"[^A-Za-z0-9]+", "-", cpu).strip("-").lower()[:40] or "cpu"
    return root / f"{name}-{machine}" / model_sha256[:16] / f"{precision}-{label}"


def space(target: Any) -> Any:
    """Return the rules that generate schedules.

    TVM's default for AVX-512 without VNNI uses a product of bytes that overflows.
    """
    kind = "from-target" if target.kind.name != "llvm" or has_feature(target, vnni.FEATURE) else "llvm"
    return meta_schedule.space_generator.PostOrderApply(sch_rules=kind, postprocs=kind, mutator_probs=kind)


def has_feature(target: Any, feature: str) -> bool:
    """Return whether the target's processor has the feature."""
    import tvm_ffi

    return bool(tvm_ffi.get_global_func("target.llvm_cpu_has_feature")(feature, target))


# Reading


def open_database(folder: Path) -> Any | None:
    """Return the database, from a copy of its complete lines; None if it does not exist.

    Raises:
        ConfigError: a line other than an incomplete last one is damaged.
    """
    lines = _read(folder)
    if not lines[WORKLOADS]:
        return None
    with tempfile.TemporaryDirectory(prefix="joulewatch-tvm-") as copy:
        for name, entries in lines.items():
            Path(copy, name).write_text("".join(f"{line}\n" for line in entries), encoding="utf-8")
        try:
            return meta_schedule.database.JSONDatabase(work_dir=copy, allow_missing=False)
        except Exception as error:
            reason = " ".join(str(error).split())[-300:]
            raise ConfigError(
                f"the tuning database {folder} cannot be read by TVM {tvm.__version__}: delete that folder ({reason})"
            ) from error


def _read(folder: Path) -> dict[str, list[str]]:
    """Return the complete lines of both tables, without records whose kernel has no complete line."""
    workloads, records = (_whole_lines(folder / name) for name in (WORKLOADS, RECORDS))
    kept = [line for line in records if json.loads(line)[0] < len(workloads)]
    return {WORKLOADS: workloads, RECORDS: kept}


def _whole_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"the tuning database {path}: {error.strerror or error}") from error
    lines = text.splitlines()
    entries = [line for line in lines if _is_entry(line)]
    if len(entries) < len(lines) - 1 or (len(entries) < len(lines) and entries != lines[:-1]):
        number = next(number for number, line in enumerate(lines, start=1) if not _is_entry(line))
        raise ConfigError(f"the tuning database {path} is damaged in line {number}: delete the folder {path.parent}")
    if len(entries) < len(lines):
        logger.warning("%s: the last line is incomplete, perhaps because a process was killed, and is ignored", path)
    return entries


def _is_entry(line: str) -> bool:
    """Return whether a line is a JSON array that begins with a hash or with the number of a kernel, as TVM's do."""
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], (str, int))


def finished(folder: Path) -> Finished:
    """Return the completed tunings.

    Raises:
        ConfigError: their file is damaged.
    """
    path = folder / FINISHED
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))
        return Finished(
            trials=max((int(run["trials"]) for run in runs), default=0),
            tuning_s=sum(float(run["tuning_s"]) for run in runs),
            cost_model=str(runs[-1]["cost_model"]) if runs else "",
        )
    except FileNotFoundError:
        return Finished()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} is damaged: delete the folder {folder} ({error})") from error


# Tuning


def tune(folder: Path, module: Any, target: Any, request: Request, name: str) -> None:
    """Tune every kernel of a module, unless it has been tuned as much, perhaps by another process meanwhile.

    Args:
        folder: From ``folder_of``.
        module: From ``importing.fused``.
        target: A ``tvm.target.Target``.
        request: How to tune.
        name: Name of the network in the log.

    Raises:
        ConfigError: the folder cannot be written.
        NetworkError: the search failed; the text contains the file of its log.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, name):
            if finished(folder).trials >= request.trials:
                return
            _remove_remains(folder)
            started_s = time.monotonic()
            _search(folder, module, target, request, name)
            _note(folder, request, time.monotonic() - started_s)
    except OSError as error:
        raise files.write_error(
            f"the tuning database {folder} cannot be written ({error.strerror or error}): "
            "set XDG_CACHE_HOME to a folder that can be written",
            error,
        ) from error


@contextlib.contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    """Lock the folder for one process; the operating system releases the lock when the process ends."""
    with (folder / _LOCK).open("w") as file:
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    logger.warning("%s: waiting for another process that tunes it", name)
                waiting = True
                time.sleep(_WAIT_S)
        yield


def _remove_remains(folder: Path) -> None:
    """Remove what a killed process has left: the incomplete last line of a table, and scratch folders."""
    for name, lines in _read(folder).items():
        path = folder / name
        text = "".join(f"{line}\n" for line in lines)
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace") != text:
            fresh = path.with_suffix(".repaired")
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(path)
    for left in folder.glob(f"{_SCRATCH}*"):
        shutil.rmtree(left, ignore_errors=True)


def _search(folder: Path, module: Any, target: Any, request: Request, name: str) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix=_SCRATCH) as scratch, (folder / LOG).open("wb") as log:
        settings = {
            "folder": str(folder),
            "target": str(target),
            "trials": request.trials,
            "cost_model": request.cost_model,
            "seed": request.seed,
        }
        Path(scratch, "module.json").write_text(tvm.ir.save_json(module), encoding="utf-8")
        Path(scratch, "request.json").write_text(json.dumps(settings), encoding="utf-8")
        child = subprocess.Popen(
            [sys.executable, "-c", _CODE, scratch, "\n".join(sys.path)],
            # The end of the pipe shows the child that this process has ended.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            # The workers' modules are in this folder, and no tvm.py of the user.
            cwd=scratch,
            env={**os.environ, "TVM_NUM_THREADS": str(request.threads), "TMPDIR": scratch},
            start_new_session=True,
        )
        try:
            assert child.stdout is not None
            _follow(child.stdout, name)
            status = child.wait()
        finally:
            # With all workers, which are in its process group and still work after Ctrl-C.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
    if status != 0:
        how = f"was ended by signal {-status}" if status < 0 else f"failed with status {status}"
        raise NetworkError(f"{name}: tuning {how}: {_last_words(folder / LOG)} (complete log: {folder / LOG})")


def _follow(lines: IO[bytes], name: str) -> None:
    """Log the progress of the search."""
    logged_s = started_s = time.monotonic()
    for line in lines:
        progress = json.loads(line)
        now_s = time.monotonic()
        if progress["done"] == 0 or now_s - logged_s >= PROGRESS_S:
            logged_s = now_s
            kernels = count_of(progress["tasks"], "kernel")
            logger.info("%s: tuned %d of %s, %.0f s", name, progress["done"], kernels, now_s - started_s)


def _last_words(path: Path) -> str:
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " ".join((lines or ["it wrote nothing"])[-1].split())[:300]


def _note(folder: Path, request: Request, tuning_s: float) -> None:
    path = folder / FINISHED
    runs: list[Mapping[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    run = {
        "trials": request.trials,
        "tuning_s": round(tuning_s, 1),
        "cost_model": request.cost_model,
        "seed": request.seed,
        "tvm": tvm.__version__,
    }
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps([*runs, run]) + "\n", encoding="utf-8")
    fresh.replace(path)
