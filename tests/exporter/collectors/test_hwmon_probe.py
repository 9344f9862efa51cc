"""A file that hangs while the family is opened costs its chip only."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from joulewatch_exporter.collectors.base import probe
from joulewatch_exporter.collectors.base.sysfs import HeldInt, path_read_by, read_text
from joulewatch_exporter.collectors.hwmon.collector import HwmonCollector, HwmonOptions
from joulewatch_exporter.emulator.files import HangingFile, Writer
from joulewatch_exporter.errors import SensorTimeoutError
from joulewatch_exporter.sampling.family import Family
from support.collectors import findings, infos
from support.sysfs import EPYC, FakeSysfs
from support.waiting import wait_until

RAIL = "platform/axi/i2c-3/3-0040"
GOOD = "platform/axi/i2c-3/3-0041"
MONITOR = "platform/axi/i2c-4/4-0042"


class Hangs:
    """Files that hang until they are released."""

    def __init__(self, sysfs: FakeSysfs, stack: ExitStack) -> None:
        self._sysfs = sysfs
        self._stack = stack
        self._hanging: dict[str, HangingFile] = {}

    def at(self, path: str) -> str:
        """Replace a file by one that hangs; return its path."""
        file = str(self._sysfs.sys / path)
        self._hanging[path] = Writer(self._sysfs.root).put_hanging(file)
        self._stack.callback(self._hanging[path].close)
        return file

    def release(self, path: str, text: str) -> None:
        (self._sysfs.sys / path).unlink()
        (self._sysfs.sys / path).write_text(text)
        self._hanging[path].release()
        self._hanging[path].close()


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    sysfs = FakeSysfs(tmp_path).cpuinfo(**EPYC)
    sysfs.hwmon(3, "ina226_bad", device=RAIL, power1_input=31_000_000, power1_label="12v")
    sysfs.hwmon(4, "ina226_good", device=GOOD, power1_input=5_000_000, power1_label="5v")
    return sysfs.iio(0, "ina219", device=MONITOR, in_power2_raw="700", in_power2_scale="1")


@pytest.fixture
def hangs(sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hangs]:
    monkeypatch.setattr(probe, "PROBE_S", 0.05)
    monkeypatch.setattr(probe, "LEAST_S", 0.05)
    with ExitStack() as stack:
        yield Hangs(sysfs, stack)


def collect(sysfs: FakeSysfs) -> HwmonCollector:
    return HwmonCollector.open(sysfs.host, HwmonOptions())


@pytest.mark.parametrize(
    ("path", "left"),
    [
        (f"devices/{RAIL}/hwmon/hwmon3/name", {"i2c-3-3-0041/5v", "i2c-4-4-0042/power2"}),
        (f"devices/{RAIL}/hwmon/hwmon3/power1_label", {"i2c-3-3-0041/5v", "i2c-4-4-0042/power2"}),
        (f"devices/{RAIL}/hwmon/hwmon3/power1_input", {"i2c-3-3-0041/5v", "i2c-4-4-0042/power2"}),
        (f"devices/{MONITOR}/iio:device0/name", {"i2c-3-3-0040/12v", "i2c-3-3-0041/5v"}),
        (f"devices/{MONITOR}/iio:device0/in_power2_raw", {"i2c-3-3-0040/12v", "i2c-3-3-0041/5v"}),
    ],
)
def test_the_other_chips_are_served_and_the_file_is_named(
    sysfs: FakeSysfs, hangs: Hangs, path: str, left: set[str]
) -> None:
    file = hangs.at(path)
    collector = collect(sysfs)
    assert set(infos(collector)) == left
    (finding,) = findings(collector, "broken")
    assert finding.text == f"{file}: the read hangs; its device is skipped until the read returns"
    again = collect(sysfs)
    assert set(infos(again)) == left
    wait_until(lambda: [thread.name for thread in threading.enumerate()].count("probe-hwmon") == 1)
    hangs.release(path, "1000000")
    wait_until(lambda: len(infos(collect(sysfs))) == 3)


def test_its_device_is_down_and_comes_back(sysfs: FakeSysfs, hangs: Hangs) -> None:
    path = f"devices/{RAIL}/hwmon/hwmon3/power1_input"
    hangs.at(path)
    family = Family(collect(sysfs))
    for _ in range(2):
        scan = family.scan()
        assert dict(zip(scan.layout.devices, scan.states, strict=True))["i2c-3-3-0040"] == "error"
        family.replace(collect(sysfs))
    hangs.release(path, "1000000")
    wait_until(lambda: len(infos(collect(sysfs))) == 3)
    family.replace(collect(sysfs))
    assert set(family.scan().states) == {"ok"}
    family.close()


def test_if_every_chip_hangs_the_family_times_out_with_the_paths(tmp_path: Path, hangs: Hangs) -> None:
    sysfs = FakeSysfs(tmp_path / "alone").cpuinfo(**EPYC)
    sysfs.hwmon(3, "ina226", device=RAIL, power1_input=1)
    file = str(sysfs.sys / f"devices/{RAIL}/hwmon/hwmon3/power1_input")
    hanging = Writer(sysfs.root).put_hanging(file)
    with pytest.raises(SensorTimeoutError, match="power1_input: the read hangs") as caught:
        collect(sysfs)
    assert caught.value.devices == ("i2c-3-3-0040",)
    Path(file).unlink()
    hanging.release()
    hanging.close()


@pytest.mark.parametrize("read", [read_text, lambda path: HeldInt(path).read()])
def test_the_file_that_another_thread_reads(tmp_path: Path, read: object) -> None:
    hanging = Writer(tmp_path).put_hanging(str(tmp_path / "value"))
    assert callable(read)

    def ignore_errors() -> None:
        try:
            read(str(tmp_path / "value"))
        except Exception:
            return

    thread = threading.Thread(target=ignore_errors)
    thread.start()
    wait_until(lambda: path_read_by(thread.ident) == str(tmp_path / "value"))
    (tmp_path / "value").unlink()
    hanging.release()
    hanging.close()
    thread.join(10)
    assert path_read_by(thread.ident) == ""
    assert path_read_by(None) == ""
