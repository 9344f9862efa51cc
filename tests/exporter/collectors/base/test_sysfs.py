"""Reads of small files, and the error for each failure of the kernel."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from joulewatch_exporter.collectors.base import sysfs
from joulewatch_exporter.collectors.base.sysfs import (
    HeldInt,
    cpuinfo,
    denied_cure,
    list_names,
    read_int,
    read_int_or_none,
    read_text,
    sensor_error,
)
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Host
from support.sysfs import EPYC, FakeSysfs, public_folder, unprivileged


@pytest.mark.parametrize(("text", "value"), [("0\n", 0), ("65532610987\n", 65_532_610_987), ("-5\n", -5), ("7", 7)])
def test_a_number_is_read(tmp_path: Path, text: str, value: int) -> None:
    path = tmp_path / "energy_uj"
    path.write_text(text)
    assert read_int(str(path)) == value


@pytest.mark.parametrize("text", ["", "\n", "garbage\n", "1.5\n", "12 J\n"])
def test_text_that_is_not_a_number_is_a_glitch_that_names_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "energy_uj"
    path.write_text(text)
    with pytest.raises(SensorGlitchError, match="energy_uj"):
        read_int(str(path))
    assert read_int_or_none(str(path)) is None


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, SensorAbsentError),
        (errno.ENODEV, SensorAbsentError),
        (errno.ENXIO, SensorAbsentError),
        (errno.EACCES, SensorDeniedError),
        (errno.EPERM, SensorDeniedError),
        (errno.EIO, SensorGlitchError),
        (errno.ENODATA, SensorGlitchError),
        (errno.EAGAIN, SensorGlitchError),
        (errno.EMFILE, SensorGlitchError),
    ],
)
def test_each_error_of_the_kernel_has_its_class(number: int, kind: type[SensorError]) -> None:
    error = sensor_error("/sys/x", OSError(number, os.strerror(number)))
    assert type(error) is kind
    assert "/sys/x" in str(error)


def test_a_missing_file_is_absent(tmp_path: Path) -> None:
    with pytest.raises(SensorAbsentError, match="nothing"):
        read_int(str(tmp_path / "nothing"))
    with pytest.raises(SensorAbsentError):
        read_text(str(tmp_path / "nothing"))
    with pytest.raises(SensorAbsentError):
        list_names(str(tmp_path / "nothing"))


def test_a_denial_by_the_kernel_names_the_path_and_the_fix() -> None:
    with public_folder() as folder:
        path = folder / "energy_uj"
        path.write_text("1\n")
        path.chmod(0o400 if os.geteuid() == 0 else 0)
        with unprivileged(), pytest.raises(SensorDeniedError, match=f"sudo chmod a\\+r {path}"):
            read_int(str(path))


def test_a_mode_that_grants_access_already_is_not_offered_as_the_fix(tmp_path: Path) -> None:
    """EPERM of a driver, and every denial of root: chmod cannot help."""
    path = tmp_path / "power1_input"
    path.write_text("1\n")
    assert denied_cure(str(path)) == denied_cure(str(path), "rw") == ""
    error = sensor_error(str(path), PermissionError(errno.EPERM, "Operation not permitted"))
    assert isinstance(error, SensorDeniedError)
    assert "something else denies it: its driver" in str(error)
    assert "chmod" not in str(error)


def test_a_folder_that_cannot_be_entered_is_what_the_fix_changes() -> None:
    with public_folder() as folder:
        inner = folder / "debug" / "power"
        inner.mkdir(parents=True)
        (inner / "energy").write_text("1\n")
        (folder / "debug").chmod(0o700 if os.geteuid() == 0 else 0)
        with unprivileged():
            cure = denied_cure(str(inner / "energy"))
        (folder / "debug").chmod(0o700)
    assert cure == f"sudo chmod a+x {folder}/debug"


def test_an_input_error_of_the_kernel_is_a_glitch() -> None:
    with pytest.raises(SensorGlitchError, match="Input/output error"):
        read_int("/proc/self/mem")


def test_text_is_stripped_and_empty_text_is_a_glitch(tmp_path: Path) -> None:
    path = tmp_path / "name"
    path.write_text("package-0\n")
    assert read_text(str(path)) == "package-0"
    path.write_text("\n")
    with pytest.raises(SensorGlitchError, match="empty"):
        read_text(str(path))


def test_text_ends_at_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "stat"
    path.write_text("x" * 10_000)
    assert len(read_text(str(path))) == 4096
    assert len(read_text(str(path), 1 << 20)) == 10_000


def test_cpuinfo_of_this_machine_is_not_used_for_a_copied_tree(tmp_path: Path) -> None:
    """A tree from another machine must not be read as a CPU of this machine's vendor."""
    tree = FakeSysfs(tmp_path).cpuinfo(**EPYC)
    assert "AuthenticAMD" in cpuinfo(tree.host)
    assert cpuinfo(Host(sysfs=tree.sys)) == ""
    tree.write("devices/system/cpu", modalias="cpu:type:x86,ven0002fam0019mod0001")
    assert cpuinfo(Host(sysfs=tree.sys)) != ""  # a live sysfs, mounted elsewhere


# -- a file that is kept open ----------------------------------------------------------------------


def test_an_open_file_is_read_again_each_time(tmp_path: Path) -> None:
    """Like files of the kernel: the same file with another text."""
    path = tmp_path / "energy_uj"
    path.write_text("1\n")
    held = HeldInt(str(path))
    assert held.read() == 1
    path.write_text("23456\n")
    assert held.read() == 23456
    held.close()
    held.close()
    assert held.read() == 23456
    held.close()


def test_an_open_file_that_was_replaced_is_reopened(tmp_path: Path) -> None:
    """Programs replace files by renaming; the open file would show its old value for ever."""
    path = tmp_path / "energy_uj"
    path.write_text("1\n")
    held = HeldInt(str(path))
    for value in (1, 2, 3):
        (tmp_path / "new").write_text(f"{value}\n")
        (tmp_path / "new").replace(path)
        assert held.read() == value
    held.close()


def test_only_files_outside_sysfs_are_checked_for_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check takes a third of a read. The kernel never replaces a file: a device that is gone is an error."""
    checked: list[int] = []
    fstat = os.fstat

    def noted(descriptor: int) -> os.stat_result:
        checked.append(descriptor)
        return fstat(descriptor)

    monkeypatch.setattr(sysfs, "_fstat", noted)
    (tmp_path / "uevent_seqnum").write_text("7\n")
    for folder, checks in ((Path("/sys/kernel"), 1), (tmp_path, 3)):
        checked.clear()
        held = HeldInt(str(folder / "uevent_seqnum"))
        for _ in range(3):
            assert held.read() >= 0
        assert len(checked) == checks
        held.close()


@pytest.mark.parametrize("text", [None, "", "22 27 0:21 / /proc rw - proc proc rw\nnonsense\n"])
def test_without_a_sysfs_among_the_mounts_each_file_is_checked(
    monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    def mounts(path: Path) -> bytes:
        if text is None:
            raise OSError
        return text.encode()

    monkeypatch.setattr(Path, "read_bytes", mounts)
    assert sysfs._sysfs_devices.__wrapped__() == frozenset()


def test_an_open_file_that_disappeared_is_absent_until_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "energy_uj"
    path.write_text("1\n")
    held = HeldInt(str(path))
    held.read()
    path.unlink()
    for _ in range(2):
        with pytest.raises(SensorAbsentError, match="energy_uj"):
            held.read()
    path.write_text("garbage\n")
    with pytest.raises(SensorGlitchError, match="garbage"):
        held.read()
    path.write_text("4\n")
    assert held.read() == 4
    held.close()


def test_an_open_file_leaks_no_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "energy_uj"
    path.write_text("1\n")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        HeldInt(str(path)).read()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
