"""The nodes and times of a Slurm job, from ``sacct``."""

from __future__ import annotations

import math
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from joulewatch_harness.errors import ConfigError, QueryError

JOB_ID: Final = re.compile(r"[0-9]{1,18}([_+][0-9]{1,9})?")
"""A job, a task of an array (``12_3``), or a component of a heterogeneous job (``12+1``)."""
TIME_LIMIT_S: Final = 60.0
MOST_NODES: Final = 100_000
NEWEST_S: Final = 60.0
FIELDS: Final = ("JobID", "Cluster", "State", "Start", "End", "NodeList", "JobIDRaw")
_NO_NODES: Final = ("", "None assigned")
_RANGE: Final = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """The time for which a job, or one task, component or attempt of it, had some whole or shared nodes."""

    job: str
    """As ``sacct`` names it: ``12``, ``12_3``, ``12+1``."""
    cluster: str
    state: str
    """``RUNNING``, ``COMPLETED``, ``REQUEUED``, ``CANCELLED by 1000``, ..."""
    start_s: float
    """Unix seconds; Slurm keeps whole seconds."""
    end_s: float | None
    """None: it is not over."""
    nodes: tuple[str, ...]
    number: str
    """Its own number, without that of the array or of the heterogeneous job: the one in the names of cgroups."""


def job_allocations(job: str, program: str = "sacct") -> list[Allocation]:
    """Return the allocations of a job: all tasks of an array, components of a heterogeneous job, and attempts.

    Args:
        job: The job's id.
        program: ``sacct``, for tests.

    Raises:
        ConfigError: The id is not valid, or ``sacct`` is not installed.
        QueryError: ``sacct`` failed, or the job is unknown or has not started.
    """
    if not JOB_ID.fullmatch(job):
        raise ConfigError(f"--slurm-job {job!r}: must be a job's id such as 123, 123_4 or 123+1")
    # Without --starttime, sacct looks for a job that is named at any time.
    command = [program, "--jobs", job, "--allocations", "--duplicates", "--noheader", "--parsable2"]
    command += ["--format", ",".join(FIELDS)]
    environment = {**os.environ, "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=TIME_LIMIT_S, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise ConfigError(f"{program} is not installed: run this on a machine of the Slurm cluster") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise QueryError(f"{program}: {error}") from error
    if done.returncode != 0:
        reason = " ".join(done.stderr.split())[:300]
        raise QueryError(f"{program}: exit code {done.returncode}: {reason or 'no text'}")
    return allocations_of(job, done.stdout)


def allocations_of(job: str, text: str) -> list[Allocation]:
    """Return the allocations in the output of ``sacct``, in order of time; raise the errors of ``job_allocations``."""
    rows = [line.split("|") for line in text.splitlines() if line.strip()]
    for row in rows:
        if len(row) != len(FIELDS):
            raise QueryError(f"sacct: not a line with {', '.join(FIELDS)}: {'|'.join(row)[:120]!r}")
    if not rows:
        raise QueryError(f"Slurm does not know job {job}: is its id right, and is accounting enabled?")
    allocations = [
        Allocation(
            job=name,
            cluster=cluster,
            state=state,
            start_s=float(start),
            end_s=float(end) if end.isdecimal() else None,
            nodes=tuple(expand_hostlist(nodes)),
            number=number,
        )
        for name, cluster, state, start, end, nodes, number in rows
        # A job that waits, or was cancelled before it started, has no nodes.
        if start.isdecimal() and nodes not in _NO_NODES
    ]
    if not allocations:
        states = ", ".join(dict.fromkeys(row[FIELDS.index("State")] for row in rows))
        raise QueryError(f"job {job} has not started: {states}")
    return sorted(allocations, key=lambda one: (one.start_s, one.job))


def expand_hostlist(text: str) -> list[str]:
    """Return the nodes of a list such as ``n[1-3,07],gpu1``, as ``scontrol show hostnames`` does.

    Raises:
        QueryError: It is not a list of nodes, or has more than 100,000.
    """
    nodes: list[str] = []
    for part in _parts(text):
        names = [""]
        for literal, numbers in re.findall(r"([^\[\]]+)|\[([^\[\]]*)\]", part):
            endings = [literal] if literal else list(_numbers(numbers, text))
            if len(names) * len(endings) > MOST_NODES:
                raise QueryError(f"sacct: too many nodes: {text[:80]!r}")
            names = [name + ending for name in names for ending in endings]
        nodes += names
    if len(nodes) > MOST_NODES:
        raise QueryError(f"sacct: too many nodes: {text[:80]!r}")
    return list(dict.fromkeys(nodes))


def _parts(text: str) -> Iterator[str]:
    """Yield what is between the commas outside of brackets."""
    parts = re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text)
    if not parts or ",".join(parts) != text:
        raise QueryError(f"sacct: not a list of nodes: {text[:80]!r}")
    yield from parts


def _numbers(text: str, whole: str) -> Iterator[str]:
    """Yield the numbers of ``1-3,07`` with their leading zeros."""
    for piece in text.split(","):
        match = _RANGE.fullmatch(piece)
        if match is None:
            raise QueryError(f"sacct: not a list of nodes: {whole[:80]!r}")
        first, last = match[1], match[2] or match[1]
        if int(last) - int(first) >= MOST_NODES:
            raise QueryError(f"sacct: too many nodes: {whole[:80]!r}")
        yield from (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))


def spans_by_node(allocations: Sequence[Allocation], now_s: float) -> dict[str, tuple[tuple[float, float], ...]]:
    """Return node -> the times at which the job had it, as spans of Unix seconds that do not overlap.

    Several tasks of an array may be on one node at once: the energy of the node counts once. An allocation that is not
    over counts until a minute ago, because the newest samples are not stored yet.
    """
    spans: dict[str, list[tuple[float, float]]] = {}
    for allocation in allocations:
        end_s = math.floor(now_s - NEWEST_S) if allocation.end_s is None else allocation.end_s
        if end_s > allocation.start_s:
            for node in allocation.nodes:
                spans.setdefault(node, []).append((allocation.start_s, end_s))
    return {node: tuple(_union(parts)) for node, parts in sorted(spans.items())}


def _union(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    union: list[tuple[float, float]] = []
    for start_s, end_s in sorted(spans):
        if union and start_s <= union[-1][1]:
            union[-1] = (union[-1][0], max(union[-1][1], end_s))
        else:
            union.append((start_s, end_s))
    return union
