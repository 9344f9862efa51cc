"""What is shown of the names of workloads."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from joulewatch_exporter.attribution.cgroups import CgroupsOptions, CgroupsSource
from joulewatch_exporter.attribution.model import ROOT, Workload
from joulewatch_exporter.attribution.names import Names
from joulewatch_exporter.attribution.privacy import KEY_NAME, NameOptions, Privacy, digest_key
from joulewatch_exporter.model import Host
from support.cgroups import FakeTree

NGINX = "system.slice/nginx.service"
ANNA, BERT = "user.slice/user-1000.slice", "user.slice/user-1001.slice"
SESSION = f"{ANNA}/session-3.scope"
UNIT = f"{ANNA}/user@1000.service/app.slice/mpd.service"
JOB = "slurm/uid_1000/job_42"
KEYS = (NGINX, ANNA, SESSION, UNIT, JOB)


@pytest.fixture
def names(tmp_path: Path) -> Names:
    machine = FakeTree(tmp_path)
    machine.write("etc/passwd", "anna:x:1000:1000::/home/anna:/bin/sh\n")
    return Names(machine.host)


def key_k() -> tuple[bytes, str]:
    return b"k", ""


def shown(privacy: Privacy, names: Names) -> dict[str, Workload]:
    return {key: privacy.shown(key, names.workload(key)) for key in KEYS}


def hidden(privacy: Privacy, names: Names) -> set[str]:
    return {key for key, workload in shown(privacy, names).items() if workload.workload.startswith("anon-")}


def test_names_are_plain_while_there_is_one_user(names: Names) -> None:
    privacy = Privacy(NameOptions(), key_k)
    privacy.note([NGINX, ANNA, SESSION, "user.slice/user-0.slice", "user.slice/user-120.slice/session-c1.scope"])
    assert shown(privacy, names) == {key: names.workload(key) for key in KEYS}


def test_names_of_users_are_hidden_from_the_second_user_on(names: Names) -> None:
    privacy = Privacy(NameOptions(), key_k)
    privacy.note([ANNA, BERT])
    privacy.note([ANNA])  # and stay so
    assert hidden(privacy, names) == {ANNA, SESSION, UNIT}
    workloads = shown(privacy, names)
    assert workloads[NGINX] == names.workload(NGINX)
    session = workloads[SESSION]
    assert (session.kind, session.unit, session.workload == session.unit) == ("session", session.workload, True)
    # The job keeps its number, but not its user; one user has one digest.
    assert (workloads[JOB].workload, workloads[JOB].job) == ("42", "42")
    assert workloads[JOB].user == session.user
    assert session.user.startswith("anon-")


@pytest.mark.parametrize(("setting", "expected"), [("plain", set()), ("hash", set(KEYS))])
def test_names_are_all_plain_or_all_hidden_if_wanted(names: Names, setting: Any, expected: set[str]) -> None:
    privacy = Privacy(NameOptions(workload_names=setting), key_k)
    privacy.note([ANNA, BERT])
    assert hidden(privacy, names) == expected
    text = " ".join(str(workload) for workload in shown(privacy, names).values())
    assert ("anna" in text, "nginx" in text, "1000" in text) == (not expected,) * 3


def test_a_digest_depends_on_the_key_only(names: Names) -> None:
    options = NameOptions(workload_names="hash")
    first, again = Privacy(options, key_k), Privacy(options, key_k)
    other = Privacy(options, lambda: (b"other", ""))
    assert shown(first, names) == shown(again, names)
    assert shown(first, names)[NGINX] != shown(other, names)[NGINX]
    assert len({workload.workload for workload in shown(first, names).values()}) == len(KEYS)


@pytest.mark.parametrize(
    ("allow", "deny", "expected"),
    [
        ((), (), set(KEYS)),
        ((), ("nginx.*",), set(KEYS) - {NGINX}),
        ((), ("user.slice/*",), {NGINX, JOB}),
        (("nginx.service", "42"), (), {NGINX, JOB}),
        (("*.service", "slurm/*"), ("nginx*",), {UNIT, JOB}),
        (("nothing",), (), set()),
    ],
)
def test_patterns_of_names_and_paths(
    names: Names, allow: tuple[str, ...], deny: tuple[str, ...], expected: set[str]
) -> None:
    privacy = Privacy(NameOptions(allow=allow, deny=deny), key_k)
    assert {key for key in KEYS if privacy.may_show(key, names.workload(key))} == expected


def test_a_key_is_made_once_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    environment = {"STATE_DIRECTORY": f"{tmp_path}:/other"}
    key, missing = digest_key(environment, Host())
    assert (len(key), missing) == (32, "")
    assert digest_key(environment, Host()) == (key, "")
    path = tmp_path / KEY_NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == [KEY_NAME]


@pytest.mark.parametrize("text", ["", "xyz", "00"])
def test_without_a_key_the_identifier_of_the_machine_is_used(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "state"
    environment = {"STATE_DIRECTORY": str(folder)}
    host = Host(procfs=tmp_path / "proc")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text("3d1219c7c4c5404aaa1f6d2a48adfda4\n")
    key, missing = digest_key(environment, host)
    assert missing == str(folder)
    assert digest_key(environment, host) == (key, missing)
    folder.mkdir()
    (folder / KEY_NAME).write_text(text)  # damaged
    assert digest_key(environment, host) == (key, missing)
    (tmp_path / "etc/machine-id").unlink()
    assert digest_key(environment, host)[0] not in (key, b"")


def test_a_denied_workload_stays_in_the_use_of_its_parent(tmp_path: Path) -> None:
    machine = FakeTree(tmp_path)
    for key, used in (("", 10), ("system.slice", 4), (NGINX, 3)):
        machine.use(key, used)
    source = CgroupsSource.open(machine.host, CgroupsOptions(workload_names="plain", deny=("nginx.service",)))
    assert {usage.key: usage.seconds for usage in source.survey().usages[""]} == {"system.slice": 4, ROOT: 10}
    everything = CgroupsSource.open(machine.host, CgroupsOptions(workload_names="plain", deny=("*",)))
    assert [usage.key for usage in everything.survey().usages[""]] == [ROOT]
    # What is directly below the root is still read, so that it does not count as the kernel's.
    assert [usage.key for usage in everything.read([]).usages[""]] == ["system.slice", ROOT]


def test_a_source_hides_users_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "missing"))
    machine = FakeTree(tmp_path)
    for key in (SESSION, f"{BERT}/session-4.scope"):
        machine.use(key, 1)
    source = CgroupsSource.open(machine.host, CgroupsOptions())
    assert source.workload(SESSION).workload.startswith("anon-")
    assert "digests stand for names" in source.findings[0].text
    (finding,) = [finding for finding in source.findings if finding.subject.endswith(KEY_NAME)]
    assert "StateDirectory=joulewatch" in finding.cure
