"""Jobs in recorded output of ``sacct`` (Slurm 22.05; the last field was added by hand), and lists of nodes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from joulewatch_harness.clients.slurm import (
    FIELDS,
    Allocation,
    allocations_of,
    expand_hostlist,
    job_allocations,
    spans_by_node,
)
from joulewatch_harness.errors import ConfigError, QueryError

RECORDED = {
    "9": "9|test|COMPLETED|1795912008|1795912010|n[1-3]|9\n",
    # An array of three tasks on one node, which ran one after the other.
    "2": "2_1|test|COMPLETED|1795911950|1795911951|vm|4\n2_2|test|COMPLETED|1795911952|1795911953|vm|5\n"
    "2_3|test|COMPLETED|1795911953|1795911954|vm|2\n",
    # A heterogeneous job: two nodes and one node.
    "10": "10+0|test|COMPLETED|1795912013|1795912016|n[1-2]|10\n10+1|test|COMPLETED|1795912013|1795912016|n3|11\n",
    # Requeued, and waiting again.
    "12": "12|test|REQUEUED|1795912020|1795912023|n1|12\n12|test|PENDING|Unknown|Unknown|None assigned|12\n",
    "13": "13|test|RUNNING|1795912025|Unknown|n[1-2]|13\n",
    "3": "3+0|test|CANCELLED by 0|None|1795911980|None assigned|3\n"
    "3+1|test|CANCELLED by 0|None|1795911980|None assigned|4\n",
    "14": "14|test|PENDING|Unknown|Unknown|None assigned|14\n",
}


def spans(job: str, now_s: float = 1795912200.5) -> dict[str, tuple[tuple[float, float], ...]]:
    return spans_by_node(allocations_of(job, RECORDED[job]), now_s)


def test_a_job_has_its_nodes_and_times() -> None:
    (one,) = allocations_of("9", RECORDED["9"])
    assert one == Allocation(
        job="9",
        cluster="test",
        state="COMPLETED",
        start_s=1795912008.0,
        end_s=1795912010.0,
        nodes=("n1", "n2", "n3"),
        number="9",
    )
    assert spans("9") == dict.fromkeys(("n1", "n2", "n3"), ((1795912008.0, 1795912010.0),))


def test_the_tasks_of_an_array_count_once_per_node() -> None:
    """The second and the third task follow each other without a pause."""
    tasks = allocations_of("2", RECORDED["2"])
    assert [(one.job, one.number) for one in tasks] == [("2_1", "4"), ("2_2", "5"), ("2_3", "2")]
    assert spans("2") == {"vm": ((1795911950.0, 1795911951.0), (1795911952.0, 1795911954.0))}
    at_once = "".join(f"7_{task}|c|COMPLETED|{100 + task}|{200 + task}|a,b|{7 + task}\n" for task in range(5))
    assert spans_by_node(allocations_of("7", at_once), 1e9) == {"a": ((100.0, 204.0),), "b": ((100.0, 204.0),)}


def test_the_components_of_a_heterogeneous_job_have_their_nodes() -> None:
    assert spans("10") == dict.fromkeys(("n1", "n2", "n3"), ((1795912013.0, 1795912016.0),))


def test_a_requeued_job_has_the_energy_of_all_its_attempts() -> None:
    (first,) = allocations_of("12", RECORDED["12"])
    assert (first.state, first.nodes) == ("REQUEUED", ("n1",))
    again = RECORDED["12"].replace(
        "12|test|PENDING|Unknown|Unknown|None assigned", "12|test|COMPLETED|1795912030|1795912040|n2"
    )
    assert spans_by_node(allocations_of("12", again), 1e10) == {
        "n1": ((1795912020.0, 1795912023.0),),
        "n2": ((1795912030.0, 1795912040.0),),
    }


def test_a_running_job_counts_until_a_minute_ago() -> None:
    (one,) = allocations_of("13", RECORDED["13"])
    assert one.end_s is None
    assert spans("13") == dict.fromkeys(("n1", "n2"), ((1795912025.0, 1795912140.0),))
    assert spans("13", now_s=1795912080.0) == {}


@pytest.mark.parametrize(
    ("job", "text"),
    [("3", "job 3 has not started: CANCELLED by 0"), ("14", "job 14 has not started: PENDING")],
)
def test_a_job_without_nodes_is_an_error(job: str, text: str) -> None:
    with pytest.raises(QueryError, match=text):
        allocations_of(job, RECORDED[job])


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("", "Slurm does not know job 5"),
        ("5|test|COMPLETED\n", "not a line with JobID"),
        ("5|test|COMPLETED|1|2|n[1-2|5\n", "not a list of nodes"),
        ("5|test|COMPLETED|1|2|n[1-9999999]|5\n", "too many nodes"),
        ("5|test|COMPLETED|1|2|n[1-999][1-999]|5\n", "too many nodes"),
    ],
)
def test_output_that_is_not_understood_is_an_error(output: str, text: str) -> None:
    with pytest.raises(QueryError, match=text):
        allocations_of("5", output)


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("n1", ["n1"]),
        ("n[1-3],gpu-a[01-02,7]", ["n1", "n2", "n3", "gpu-a01", "gpu-a02", "gpu-a7"]),
        ("r[1-2]n[08-10]", ["r1n08", "r1n09", "r1n10", "r2n08", "r2n09", "r2n10"]),
        ("n[1-2]-ib,login", ["n1-ib", "n2-ib", "login"]),
        ("a.example.org,b", ["a.example.org", "b"]),
    ],
)
def test_a_list_of_nodes_is_expanded_as_by_scontrol(text: str, nodes: list[str]) -> None:
    assert expand_hostlist(text) == nodes


@pytest.mark.parametrize("job", ["", "abc", "1;reboot", "--help", "1 2", "1_", "1_2_3", "1.0", "$(id)", "1\n2", "٣"])
def test_what_is_not_a_job_id_never_reaches_sacct(job: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a job's id"):
        job_allocations(job, str(program(tmp_path, "raise SystemExit('called')")))


def program(folder: Path, code: str) -> Path:
    path = folder / "sacct"
    path.write_text(f"#!{sys.executable}\nimport os, sys\n{code}\n")
    path.chmod(0o755)
    return path


def test_sacct_is_called_without_a_shell_and_with_times_as_unix_seconds(tmp_path: Path) -> None:
    code = "assert os.environ['SLURM_TIME_FORMAT'] == '%s'\nopen(__file__ + '.words', 'w').write(repr(sys.argv[1:]))\n"
    path = program(tmp_path, code + f"print({RECORDED['9']!r}, end='')")
    (one,) = job_allocations("9", str(path))
    assert one.nodes == ("n1", "n2", "n3")
    words = (tmp_path / "sacct.words").read_text()
    assert words == repr(
        ["--jobs", "9", "--allocations", "--duplicates", "--noheader", "--parsable2", "--format", ",".join(FIELDS)]
    )


def test_a_sacct_that_fails_or_hangs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(QueryError, match="exit code 1: slurm_persist_conn_open: failed"):
        job_allocations("9", str(program(tmp_path, "raise SystemExit('slurm_persist_conn_open:\\n failed')")))
    with pytest.raises(ConfigError, match="is not installed"):
        job_allocations("9", str(tmp_path / "none"))

    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("sacct", 60)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(QueryError, match="timed out after 60 seconds"):
        job_allocations("9")
