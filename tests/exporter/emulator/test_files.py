"""Tests of the faults of emulated files, which any program sees as those of the kernel."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from joulewatch_exporter.collectors.base.sysfs import HeldInt, read_int
from joulewatch_exporter.emulator.faults import Fault
from joulewatch_exporter.emulator.files import MovingFile, Vanishing, Writer
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError, SensorGlitchError
from support.sysfs import public_folder, unprivileged


@pytest.fixture
def folder() -> Iterator[Path]:
    """A tree and a scratch directory that every user can access."""
    with public_folder() as path:
        (path / "tree").mkdir()
        (path / "scratch").mkdir()
        yield path


@pytest.fixture
def make(folder: Path) -> Iterator[Callable[..., MovingFile]]:
    """Return a function that makes a moving file of (kind, at_s, for_s) triples."""
    files = []

    def make_file(*faults: tuple[str, float, float], text: str | None = None, in_place: bool = False) -> MovingFile:
        file = MovingFile(
            Writer(folder / "scratch"),
            str(folder / "tree/value"),
            [Fault(kind=kind, at_s=at_s, for_s=for_s, text=text) for kind, at_s, for_s in faults],
            in_place=in_place,
        )
        file.show(1, 0.0)
        files.append(file)
        return file

    yield make_file
    for file in files:
        file.close()
    assert not list((folder / "scratch").iterdir())


def test_an_open_reader_sees_every_new_value(make: Callable[..., MovingFile], folder: Path) -> None:
    """The exporter keeps the file open; the emulator replaces the file."""
    file = make()
    held = HeldInt(str(folder / "tree/value"))
    for value in (1, 2, 3, 3, 4):
        file.show(value, value)
        assert held.read() == value


def test_a_counter_is_written_in_place(make: Callable[..., MovingFile], folder: Path) -> None:
    """Many programs open the file once and seek to its start."""
    file = make(in_place=True)
    with (folder / "tree/value").open() as held:
        for value in (2, 123, 2**64 - 1, 4):
            file.show(value, value)
            held.seek(0)
            line = held.readline()
            assert int(line) == value
            assert line.endswith("\n")
            assert held.read() == ""


@pytest.mark.parametrize("kind", ["eio", "absent", "denied", "glitch", "hang"])
def test_a_counter_in_place_returns_after_a_fault(make: Callable[..., MovingFile], folder: Path, kind: str) -> None:
    file = make((kind, 1, 1), in_place=True)
    file.show(2, 1.0)
    for value in (3, 4):
        file.show(value, float(value))
        assert read_int(str(folder / "tree/value")) == value


def test_a_counter_in_place_continues_after_its_file_was_copied(make: Callable[..., MovingFile], folder: Path) -> None:
    """A directory that vanishes and returns has copies of its files."""
    file = make(in_place=True)
    path = folder / "tree/value"
    Writer(folder / "scratch").put(str(path), path.read_bytes())
    file.show(2, 1.0)
    assert read_int(str(path)) == 2


def test_eio_is_an_input_output_error(make: Callable[..., MovingFile], folder: Path) -> None:
    file = make(("eio", 1, 1))
    path = folder / "tree/value"
    held = HeldInt(str(path))
    assert held.read() == 1
    file.show(2, 1.0)
    with path.open("rb", buffering=0) as raw, pytest.raises(OSError, match="Input/output") as caught:
        raw.read(10)
    assert caught.value.errno == errno.EIO
    for read in (held.read, lambda: read_int(str(path))):
        with pytest.raises(SensorGlitchError, match="Input/output"):
            read()
    file.show(3, 2.0)
    assert held.read() == read_int(str(path)) == 3
    assert not path.is_symlink()


def test_a_file_that_hangs_blocks_until_the_fault_ends(make: Callable[..., MovingFile], folder: Path) -> None:
    file = make(("hang", 1, 1))
    path = str(folder / "tree/value")
    held = HeldInt(path)
    assert held.read() == 1
    file.show(2, 1.0)
    outcomes: dict[str, object] = {}

    def read(name: str, function: Callable[[], int]) -> None:
        try:
            outcomes[name] = function()
        except SensorError as error:
            outcomes[name] = error

    threads = [
        threading.Thread(target=read, args=("held", held.read), daemon=True),
        threading.Thread(target=read, args=("once", lambda: read_int(path)), daemon=True),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(0.03)
        assert thread.is_alive()
    file.show(2, 1.5)
    assert not outcomes
    file.show(3, 2.0)
    assert read_int(path) == 3  # the file is back, although the blocked readers may still wait
    file.show(3, 2.01)
    for thread in threads:
        thread.join(5.0)
        assert not thread.is_alive()
    assert isinstance(outcomes["held"], SensorGlitchError)
    assert isinstance(outcomes["once"], SensorGlitchError)
    assert held.read() == 3


def test_close_releases_blocked_readers(make: Callable[..., MovingFile], folder: Path) -> None:
    file = make(("hang", 1, 1))
    file.show(2, 1.0)
    path = folder / "tree/value"
    read: list[bytes] = []
    thread = threading.Thread(target=lambda: read.append(path.read_bytes()), daemon=True)
    thread.start()
    thread.join(0.03)
    assert thread.is_alive()
    file.close()
    thread.join(5.0)
    assert read == [b""]
    assert not path.exists()
    file.close()


def test_an_absent_value_returns(make: Callable[..., MovingFile], folder: Path) -> None:
    file = make(("absent", 1, 1))
    held = HeldInt(str(folder / "tree/value"))
    assert held.read() == 1
    file.show(2, 1.0)
    with pytest.raises(SensorAbsentError):
        held.read()
    file.show(2, 1.5)
    file.show(3, 2.0)
    assert held.read() == 3


def test_garbage_is_a_register_of_ones(make: Callable[..., MovingFile], folder: Path) -> None:
    file = make(("garbage", 1, 1))
    file.show(2, 1.0)
    assert (folder / "tree/value").read_text() == "4294967295\n"


def test_denied_permissions_return(make: Callable[..., MovingFile], folder: Path) -> None:
    file = make(("denied", 1, 1))
    held = HeldInt(str(folder / "tree/value"))
    with unprivileged():
        assert held.read() == 1
    file.show(2, 1.0)
    with unprivileged(), pytest.raises(SensorDeniedError):
        held.read()
    file.show(2, 2.0)
    with unprivileged():
        assert held.read() == 2


def test_glitch_text_and_a_stuck_value(make: Callable[..., MovingFile], folder: Path) -> None:
    file = make(("glitch", 1, 1), ("stuck", 3, 1), text="-61")
    path = folder / "tree/value"
    shown = []
    for t_s in (0.5, 1.5, 2.5, 3.5, 4.5):
        file.show(b"%g W\n" % t_s, t_s)
        shown.append(path.read_text())
    assert shown == ["0.5 W\n", "-61\n", "2.5 W\n", "2.5 W\n", "4.5 W\n"]


def test_faults_without_a_pause_between_them(make: Callable[..., MovingFile], folder: Path) -> None:
    kinds = ("eio", "hang", "absent", "hang", "eio", "garbage")
    file = make(*((kind, 1 + i, 1) for i, kind in enumerate(kinds)))
    path = folder / "tree/value"
    states = []
    for i in range(len(kinds)):
        file.show(i, 1 + i)
        states.append("link" if path.is_symlink() else "fifo" if path.is_fifo() else path.exists())
    assert states == ["link", "fifo", False, "fifo", "link", True]
    file.show(9, 10)
    assert read_int(str(path)) == 9


def test_faults_continue_after_the_directory_was_missing(make: Callable[..., MovingFile], folder: Path) -> None:
    file = make(("hang", 1, 1), ("eio", 2, 1))
    (folder / "tree").rename(folder / "away")
    for t_s in (0.5, 1.0, 2.0):
        file.show(5, t_s)
    (folder / "away").rename(folder / "tree")
    file.show(5, 2.5)
    with pytest.raises(SensorGlitchError):
        read_int(str(folder / "tree/value"))


def test_an_open_file_of_a_vanished_device_is_absent(folder: Path) -> None:
    """A real driver reports ENODEV: the open file must not show the last value any longer."""
    device = folder / "tree/device"
    (device / "deep").mkdir(parents=True)
    link = folder / "tree/link"
    link.symlink_to("device")
    writer = Writer(folder / "scratch")
    faults = (Fault(kind="vanish", at_s=1, for_s=1), Fault(kind="eio", at_s=0, for_s=9))
    vanishing = Vanishing(writer, device, [link], folder / "hidden", faults)
    for name in ("value", "deep/value"):
        writer.put(str(device / name), b"5\n", 0o440)
    (device / "self").symlink_to("deep")
    writer.put(str(device / "denied"), b"6\n", 0)
    held = [HeldInt(str(device / name)) for name in ("value", "deep/value")]
    assert [file.read() for file in held] == [5, 5]
    vanishing.advance(1.0)
    assert not os.path.lexists(link)
    for file in held:
        with pytest.raises(SensorAbsentError):
            file.read()
    vanishing.advance(1.5)
    vanishing.advance(2.0)
    assert [file.read() for file in held] == [5, 5]
    assert (device / "value").stat().st_mode & 0o777 == 0o440
    assert (device / "self").is_symlink()
    assert (device / "denied").stat().st_mode & 0o777 == 0
    assert link.is_symlink()


def test_writers_with_the_same_scratch_do_not_mix_their_values(folder: Path) -> None:
    writers = [Writer(folder / "scratch") for _ in range(2)]
    stop = threading.Event()
    wrong: list[bytes] = []

    def write(number: int) -> None:
        path, text = str(folder / f"tree/{number}"), b"%d" % number * 20
        while not stop.is_set():
            writers[number].put(path, text)
            if (seen := Path(path).read_bytes()) != text:
                wrong.append(seen)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    stop.wait(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
