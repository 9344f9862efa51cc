"""Lists of targets in files that change while the exporter runs, and password files."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import pytest

from joulewatch_exporter.collectors.base.targets import TargetList, read_secret
from joulewatch_exporter.errors import ConfigError, SensorDeniedError


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    address: str
    password_file: Path | None = None
    port: int = 623

    def __post_init__(self) -> None:
        if self.port < 1:
            raise ValueError(f"port: must be above 0, not {self.port}")


def listed(file: Path | None, *inline: Target) -> TargetList[Target]:
    return TargetList(Target, inline, file, where="collectors.fake")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "targets.yaml"


def test_targets_of_the_configuration_come_before_those_of_the_file(file: Path) -> None:
    file.write_text("targets:\n  - {name: n2, address: b}\n")
    first = Target("n1", "a")
    assert listed(file, first).read() == (first, Target("n2", "b"))
    assert listed(None, first).read() == (first,)
    assert listed(None).read() == ()


def test_defaults_are_shared_and_overridden(file: Path) -> None:
    file.write_text("defaults: {port: 664, address: x}\ntargets:\n  - {name: n1}\n  - {name: n2, port: 1}\n")
    assert listed(file).read() == (Target("n1", "x", port=664), Target("n2", "x", port=1))


def test_relative_paths_are_below_the_file(file: Path, tmp_path: Path) -> None:
    file.write_text(
        "defaults: {address: x, password_file: secrets/bmc}\n"
        "targets:\n  - name: n1\n  - {name: n2, password_file: /run/pw}\n"
    )
    assert [target.password_file for target in listed(file).read()] == [tmp_path / "secrets/bmc", Path("/run/pw")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("target: []", "unknown key target; did you mean targets?"),
        ("{}", "targets: must be a list of targets"),
        ("targets: {n1: x}", "targets: must be a list of targets"),
        ("targets: [n1]", "targets[0]: must be a mapping"),
        ("targets: [{name: n1, address: a, prot: 1}]", "unknown key targets[0].prot; did you mean port?"),
        ("targets: [{name: n1}]", "targets[0]: needs address"),
        ("targets: [{name: n1, address: a, port: x}]", "targets[0].port: must be a whole number"),
        ("targets: [{name: n1, address: a, port: 0}]", "targets[0].port: must be above 0, not 0"),
        ("defaults: 3\ntargets: []", "defaults: must be a mapping"),
        ("targets: [{name: n1, address: a}, {name: n1, address: b}]", "target n1 is listed twice"),
        ("targets: [{name: n1, name: n2, address: a}]", "is given twice"),
        ("targets: [", "is not valid YAML"),
    ],
)
def test_an_invalid_file_is_refused_with_name_and_key(file: Path, text: str, message: str) -> None:
    file.write_text(text + "\n")
    with pytest.raises(ConfigError) as raised:
        listed(file).read()
    assert str(raised.value).startswith(str(file))
    assert message in str(raised.value)


def test_a_missing_file_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        listed(file).read()


def test_a_name_in_configuration_and_file_is_refused(file: Path) -> None:
    file.write_text("targets: [{name: n1, address: b}]\n")
    with pytest.raises(ConfigError, match="target n1 is listed twice"):
        listed(file, Target("n1", "a")).read()
    with pytest.raises(ConfigError, match=r"^collectors\.fake: target n1 is listed twice"):
        listed(None, Target("n1", "a"), Target("n1", "b")).read()


def test_a_change_is_reported_once_and_a_missing_file_is_unchanged(file: Path) -> None:
    file.write_text("targets: []\n")
    targets = listed(file)
    targets.read()
    assert not targets.has_changed()
    file.write_text("targets: [{name: n1, address: a}]\n")
    assert targets.has_changed()
    assert len(targets.read()) == 1
    assert not targets.has_changed()
    file.unlink()
    assert not targets.has_changed(), "an editor that replaces the file leaves a moment without it"
    file.write_text("targets: [\n")
    assert targets.has_changed()
    with pytest.raises(ConfigError):
        targets.read()
    assert not targets.has_changed(), "an invalid file is read once"
    assert not listed(None).has_changed()


def test_a_file_replaced_by_one_of_the_same_size_has_changed(file: Path, tmp_path: Path) -> None:
    file.write_text("targets: [{name: n1, address: a}]\n")
    targets = listed(file)
    targets.read()
    other = tmp_path / "new"
    other.write_text("targets: [{name: n2, address: a}]\n")
    other.replace(file)
    assert targets.has_changed()


def test_a_password_that_all_users_can_read_is_logged(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = tmp_path / "pw"
    secret.write_text("hunter2\n")
    secret.chmod(0o644)
    file.write_text("defaults: {address: a, password_file: pw}\ntargets: [{name: n1}, {name: n2}]\n")
    with caplog.at_level(logging.WARNING):
        listed(file).read()
    assert [record.getMessage() for record in caplog.records] == [
        f"{secret}: all users can read this password; run: chmod o-r {secret}"
    ]
    caplog.clear()
    secret.chmod(0o600)
    listed(file).read()
    secret.unlink()
    listed(file).read()  # the login reports that it is missing
    assert not caplog.records


@pytest.mark.parametrize(
    ("written", "secret"),
    [(b"hunter2", "hunter2"), (b"hunter2\n", "hunter2"), (b"hunter2\r\n", "hunter2"), (b" a b \n", " a b ")],
)
def test_a_password_is_its_file_without_the_final_newline(tmp_path: Path, written: bytes, secret: str) -> None:
    path = tmp_path / "pw"
    path.write_bytes(written)
    assert read_secret(path) == secret


@pytest.mark.parametrize(
    ("written", "text"),
    [(None, "No such file"), (b"", "is empty"), (b"\n", "is empty"), (b"hunter2\xff", "is not valid UTF-8")],
)
def test_an_invalid_password_file_is_named_and_not_shown(tmp_path: Path, written: bytes | None, text: str) -> None:
    path = tmp_path / "pw"
    if written is not None:
        path.write_bytes(written)
    with pytest.raises(SensorDeniedError) as raised:
        read_secret(path)
    assert str(raised.value).startswith(f"{path}: password file: {text}")
    assert "hunter2" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_password_file_without_end_is_named(endless: Path) -> None:
    path = endless / "pw"
    path.symlink_to("/dev/zero")
    with pytest.raises(SensorDeniedError, match=r"password file: longer than 16 MiB$"):
        read_secret(path)


def test_a_rotated_password_is_used_at_the_next_login(tmp_path: Path) -> None:
    path = tmp_path / "pw"
    path.write_text("old\n")
    assert read_secret(path) == "old"
    path.write_text("new\n")
    assert read_secret(path) == "new"
