"""``joulewatch.Meter``: windows of the user's own code, and what can go wrong around them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from joulewatch_harness.analysis.energy.whole_run import measure_whole_run
from joulewatch_harness.analysis.sources.history import History
from joulewatch_harness.errors import ConfigError, ExporterUnreachableError, FindingsError, RecordError
from joulewatch_harness.metering import exporters, shared_conditions
from joulewatch_harness.metering import meter as meter_module
from joulewatch_harness.metering.energies import _needed
from joulewatch_harness.metering.meter import MOST_NAMES, Meter
from joulewatch_harness.metering.window import OPEN_WINDOWS, Measurement
from joulewatch_harness.records import RunRecord, Window
from joulewatch_harness.storage.journal import read_run
from support.counting_exporter import Counter, CountingExporter
from support.servers import free_port

GPU = Counter(component="gpu", device="GPU-1", domain="total", watts=50.0)


def busy(seconds: float = 0.01) -> None:
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        pass


def stored(meter: Meter) -> tuple[Window, ...]:
    return read_run(meter.folder).windows


def reasons(window: Measurement) -> set[str]:
    return {finding.reason for finding in window.findings}


def test_a_window_has_its_energy_with_an_uncertainty(exporter: CountingExporter, meter: Meter) -> None:
    exporter.counters.append(GPU)
    with Meter(exporter.url, output=meter.folder.parent) as both, both.measure("decode", inferences=4) as window:
        busy()
    assert window.joules == pytest.approx(150 * window.seconds, abs=window.uncertainty)
    assert set(window.per_device) == {"cpu/socket0/package", "gpu/GPU-1/total"}
    gpu = window.per_device["gpu/GPU-1/total"]
    assert gpu.joules == pytest.approx(50 * window.seconds, abs=gpu.uncertainty)
    assert window.per_component["cpu"].joules == window.per_device["cpu/socket0/package"].joules
    assert window.joules_per_inference is not None
    assert window.joules == pytest.approx(4 * window.joules_per_inference)
    assert window.watts == pytest.approx(window.joules / window.seconds)
    assert window.net is None
    assert window.covers == ("sampling",)
    assert reasons(window) == {"accuracy_unknown"}


def test_the_uncertainty_includes_a_published_accuracy(tmp_path: Path) -> None:
    with CountingExporter([Counter(accuracy="0.05")]) as exporter:
        meter = Meter(exporter.url, output=tmp_path)
        with meter, meter.measure("a") as window:
            busy()
    assert window.covers == ("sampling", "accuracy")
    assert window.uncertainty is not None
    assert window.joules is not None
    assert window.uncertainty > 0.045 * window.joules


def test_windows_are_in_the_journal_and_the_analysis_agrees(meter: Meter) -> None:
    with meter.measure("decode", inferences=8) as window:
        busy()
    (line,) = stored(meter)
    assert (line.configuration, line.inferences, line.kind) == ("decode", 8, "measure")
    (result,) = meter.results()
    assert result.joules_per_inference == pytest.approx(window.joules_per_inference)
    assert result.uncertainty is None
    assert result.group.configuration.runtime == "python"
    assert repr(result).startswith("<joulewatch result 'decode', batch size 1: ")
    assert repr(result).endswith("J per inference, repeats: 1>")


def test_windows_have_the_run_conditions(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_conditions, "MAX_AGE_NS", 0)
    with meter.measure("step") as window:
        pass
    assert window.window.conditions["seconds"] > 0
    assert window.window.conditions["processors"] >= 1


def test_repeats_of_a_name_are_summarised(meter: Meter) -> None:
    windows = []
    for _ in range(4):
        with meter.measure("decode", inferences=2) as window:
            busy()
        windows.append(window)
    result = meter.results()["decode"]
    assert result.repeats == 4
    assert result.uncertainty is not None
    assert result.joules_per_inference == pytest.approx(
        sum(window.joules_per_inference or 0.0 for window in windows) / 4, rel=0.01
    )
    assert "repeats" in result.covers


def test_a_window_shorter_than_the_refresh_has_no_number(tmp_path: Path) -> None:
    """The other sensors keep their numbers, and nothing is 0."""
    slow = Counter(component="gpu", device="GPU-1", domain="total", refresh_s=5.0)
    with CountingExporter([Counter(), slow]) as exporter:
        meter = Meter(exporter.url, output=tmp_path)
        with meter, meter.measure("short") as window:
            busy()
    assert window.joules is None
    assert window.joules_per_inference is None
    assert window.watts is None
    assert "shorter than the 5 s between two updates" in window.missing
    assert window.per_device["gpu/GPU-1/total"].reason == "below_refresh"
    assert window.per_device["cpu/socket0/package"].joules
    assert str(window.energy) == "no number [below_refresh]"
    with pytest.raises(FindingsError, match="below_refresh"):
        window.raise_for_findings()


def test_a_counter_without_an_update_is_not_0_joules(tmp_path: Path) -> None:
    with CountingExporter([Counter(refresh_s=0.005, still=True)]) as exporter:
        meter = Meter(exporter.url, output=tmp_path)
        with meter, meter.measure("short") as window:
            busy(0.02)
    assert window.joules is None
    assert window.energy.reason == "below_refresh"


def test_findings_below_the_severity_raise_nothing(meter: Meter) -> None:
    with meter.measure("a") as window:
        busy()
    assert window.raise_for_findings() is window
    with pytest.raises(FindingsError, match="accuracy_unknown"):
        window.raise_for_findings("info")
    with pytest.raises(ConfigError, match="severity"):
        window.raise_for_findings("bad")  # type: ignore[arg-type]


def test_nested_windows(meter: Meter) -> None:
    with meter.measure("outer") as outer:
        with meter.measure("inner") as inner:
            busy()
        busy()
    assert inner.joules is not None
    assert outer.joules is not None
    assert inner.joules < outer.joules
    assert [line.configuration for line in stored(meter)] == ["inner", "outer"]
    assert [line.flags for line in stored(meter)] == [(), ()]


def test_windows_of_threads_are_measured_and_marked(meter: Meter) -> None:
    together = threading.Barrier(2, timeout=30)
    windows = [meter.measure(name) for name in ("a", "b")]

    def work(window: Measurement) -> None:
        with window:
            together.wait()
            busy()
            together.wait()

    threads = [threading.Thread(target=work, args=(window,)) for window in windows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {line.configuration for line in stored(meter)} == {"a", "b"}
    for window in windows:
        assert window.joules == pytest.approx(100 * window.seconds, abs=window.uncertainty)
        assert "overlapping" in reasons(window)


def test_windows_of_two_meters_overlap_unless_they_are_nested(
    exporter: CountingExporter, meter: Meter, tmp_path: Path
) -> None:
    with Meter(exporter.url, output=tmp_path / "others") as other:
        outer = meter.begin("outer")
        inner = other.begin("inner")
        inner.end()
        outer.end()
        assert not outer.overlaps and not inner.overlaps, "one inside the other"
        with ThreadPoolExecutor(1) as thread:
            first = meter.begin("first")
            second = thread.submit(other.begin, "second").result()
            first.end()
            second.end()
        assert first.window.flags == second.window.flags == ("overlapping",)
        assert "overlapping" in reasons(first) & reasons(second)
        left = other.begin("left")
    assert left not in OPEN_WINDOWS._windows, "its meter was closed"
    left.end()


def test_windows_of_tasks(meter: Meter) -> None:
    """Tasks at the same time are marked; a window inside another one of the same task is not."""

    async def work(name: str, ready: asyncio.Event, other: asyncio.Event) -> Measurement:
        with meter.measure(name) as window:
            ready.set()
            await other.wait()
            with meter.measure(f"{name} inside"):
                busy()
        return window

    async def both() -> list[Measurement]:
        first, second = asyncio.Event(), asyncio.Event()
        return list(await asyncio.gather(work("a", first, second), work("b", second, first)))

    windows = asyncio.run(both())
    assert [window.flags for window in windows] == [("overlapping",), ("overlapping",)]

    async def alone() -> Measurement:
        with meter.measure("c") as window, meter.measure("d"):
            await asyncio.sleep(0)
        return window

    assert asyncio.run(alone()).flags == ()


def test_an_exception_ends_the_window_and_passes(meter: Meter) -> None:
    with pytest.raises(ZeroDivisionError), meter.measure("a") as window:
        busy()
        raise ZeroDivisionError
    with meter.measure("a"):
        busy()
    assert window.flags == ("interrupted",)
    assert window.joules is not None
    assert "interrupted" in reasons(window)
    assert [line.flags for line in stored(meter)] == [("interrupted",), ()]
    result = meter.results()["a"]
    assert result.repeats == 1
    assert [one.reason for one in result.group.excluded] == ["interrupted"]


def test_a_full_disk_is_an_error_but_hides_no_exception(
    meter: Meter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise RecordError("journal.jsonl: no space left")

    with pytest.raises(RecordError, match="no space left"), meter.measure("a"):
        monkeypatch.setattr("joulewatch_harness.storage.journal.Journal.write", full)
    with pytest.raises(ZeroDivisionError), meter.measure("a"):
        raise ZeroDivisionError
    assert "no space left" in caplog.text
    monkeypatch.undo()
    with meter.measure("a") as window:
        busy()
    assert window.joules is not None
    assert len(stored(meter)) == 1


KILLED = """
import os, signal, sys
from joulewatch_harness.metering.meter import Meter

meter = Meter(sys.argv[1], output=sys.argv[2]).open()
meter.begin("a")
os.fsync = lambda descriptor: signal.pause()
meter.end()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_loses_no_window_that_has_ended(exporter: CountingExporter, tmp_path: Path) -> None:
    """Even if the disk is still busy."""
    done = subprocess.run([sys.executable, "-c", KILLED, exporter.url, str(tmp_path)], check=False, timeout=30)
    assert done.returncode == -signal.SIGKILL
    (folder,) = tmp_path.iterdir()
    assert [window.configuration for window in read_run(folder).windows] == ["a"]


def test_results_wait_for_the_disk(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    allowed = threading.Event()

    def slow(descriptor: int) -> None:
        allowed.wait(5)
        synced.append(descriptor)

    with meter.measure("a") as window:
        monkeypatch.setattr(os, "fsync", slow)
    assert synced == []
    allowed.set()
    assert window.joules is not None
    assert len(synced) >= 1


def test_begin_and_end(meter: Meter) -> None:
    outer = meter.begin("outer")
    inner = meter.begin("inner", inferences=3)
    busy()
    assert meter.end() is inner
    assert meter.end() is outer
    assert [line.inferences for line in stored(meter)] == [3, 1]
    with pytest.raises(ConfigError, match="without begin"):
        meter.end()
    with pytest.raises(ConfigError, match="is not open"):
        meter.end(inner)
    with pytest.raises(ConfigError, match="opened before"):
        inner.begin()


def test_windows_that_do_not_nest(meter: Meter) -> None:
    first = meter.begin("first")
    second = meter.begin("second")
    meter.end(first)
    assert meter.end() is second
    assert [line.configuration for line in stored(meter)] == ["first", "second"]


def test_the_number_of_inferences_may_be_set_inside(meter: Meter) -> None:
    with meter.measure("decode") as window:
        window.inferences = 7
    assert stored(meter)[0].inferences == 7
    for count in (0, -1, 1.5, True, "2"):
        with pytest.raises(ConfigError, match="whole number"):
            window.inferences = count  # type: ignore[assignment]
        with pytest.raises(ConfigError, match="whole number"):
            meter.measure("a", count)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 201, 5])
def test_names_that_are_not_valid(meter: Meter, name: str) -> None:
    with pytest.raises(ConfigError, match="printable"):
        meter.measure(name)


def test_a_run_has_at_most_100_names(meter: Meter) -> None:
    for number in range(MOST_NAMES):
        meter.begin(f"step {number}").end()
    with pytest.raises(ConfigError, match="leave numbers of steps"):
        meter.begin("one more")
    meter.begin("step 5").end()
    assert len(stored(meter)) == MOST_NAMES + 1


def test_a_result_before_the_end(meter: Meter) -> None:
    window = meter.measure("a")
    assert repr(window) == "<joulewatch 'a': not opened>"
    with window:
        assert repr(window) == "<joulewatch 'a': open>"
        with pytest.raises(ConfigError, match="no result before its end"):
            _ = window.joules
    assert window.joules is not None


def test_an_exporter_that_dies_inside_a_window(exporter: CountingExporter, meter: Meter) -> None:
    with meter.measure("a") as window:
        exporter.down = True
    assert window.joules is None
    assert "edge_missing" in reasons(window)
    assert "503" in window.missing
    exporter.down = False
    with meter.measure("a") as window:
        busy()
    assert window.joules is not None
    assert [note.reason for note in read_run(meter.folder).notes] == ["exporter_lost", "exporter_back"]
    assert meter.results()["a"].repeats == 1


def test_a_clock_that_is_set_inside_a_window(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    offset_ns = 0
    clock = SimpleNamespace(monotonic_ns=time.monotonic_ns, time_ns=lambda: time.time_ns() + offset_ns)
    monkeypatch.setattr(meter_module, "time", clock)
    with meter.measure("a") as window:
        busy()
        offset_ns = 10_000_000_000
    assert window.joules is None
    assert window.energy.reason == "clock_stepped"
    assert "clock_stepped" in reasons(window)


def test_a_wrong_exporter(tmp_path: Path) -> None:
    """It is an error before the first window, and leaves no run behind."""
    meter = Meter(f"http://127.0.0.1:{free_port()}", output=tmp_path / "runs")
    with pytest.raises(ExporterUnreachableError, match="is joulewatch-exporter running there"):
        meter.open()
    assert list((tmp_path / "runs").iterdir()) == []
    with pytest.raises(ConfigError, match="not a valid URL"):
        Meter("ftp://node1", output=tmp_path).open()


def test_a_machine_without_sensors(tmp_path: Path) -> None:
    with CountingExporter([]) as exporter, pytest.raises(ExporterUnreachableError, match="joulewatch-exporter check"):
        Meter(exporter.url, output=tmp_path).open()


def test_the_environment_names_the_exporter(
    exporter: CountingExporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(exporters.ENVIRONMENT, f" {exporter.url} , ")
    with Meter(output=tmp_path) as meter:
        assert meter.header.exporters[0].nodename == "node1"
    for wrong, kind in ((f"http://127.0.0.1:{free_port()}", ExporterUnreachableError), ("ftp://x", ConfigError)):
        monkeypatch.setenv(exporters.ENVIRONMENT, wrong)
        with pytest.raises(kind, match=r"\$JOULEWATCH_EXPORTER: exporter"):
            Meter(output=tmp_path).open()


def test_without_a_given_exporter_the_first_that_answers_is_used(
    exporter: CountingExporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporters, "candidates", lambda: (f"http://127.0.0.1:{free_port()}", exporter.url))
    with Meter(output=tmp_path) as meter:
        assert meter.header.plan["exporters"] == [f"{exporter.url}/metrics"]


def test_the_socket_comes_before_the_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporters, "SOCKET", tmp_path / "edge.sock")
    assert exporters.candidates() == ("http://127.0.0.1:10717",)
    (tmp_path / "edge.sock").touch()
    assert exporters.candidates() == (f"unix:{tmp_path}/edge.sock", "http://127.0.0.1:10717")


def test_two_exporters_have_their_names_in_the_keys(tmp_path: Path) -> None:
    with CountingExporter() as first, CountingExporter(nodename="node2") as second:
        meter = Meter([first.url, second.url], output=tmp_path)
        with meter, meter.measure("a") as window:
            busy()
    assert set(window.per_device) == {
        f"{server.url.removeprefix('http://')}/cpu/socket0/package" for server in (first, second)
    }
    assert window.joules == pytest.approx(200 * window.seconds, abs=window.uncertainty)


def test_a_folder_that_cannot_be_written(exporter: CountingExporter, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="output folder"):
        Meter(exporter.url, output=tmp_path / "file").open()


def test_the_energies_are_those_with_all_recent_windows(meter: Meter) -> None:
    """Only the windows with the smallest and largest power matter, and the idle ones."""
    for _ in range(4):
        with meter.measure("a") as window:
            busy(0.005)
    header, windows = window._result()
    needed = _needed(header, windows)
    assert len(windows) == 4
    assert 2 <= len(needed) <= 3
    assert needed[-1] is windows[-1]
    run = measure_whole_run(RunRecord(header=header, configurations=(), windows=windows), History(source=""))
    (energy,) = (result.energy for result in run.windows[-1].sensors.values())
    assert energy is not None
    assert window.joules == pytest.approx(energy.joules)
    assert window.uncertainty == pytest.approx(1.96 * energy.standard_joules, rel=1e-3)
    gauges = tuple(replace(sensor, reads="power") for sensor in header.sensors)
    assert _needed(replace(header, sensors=gauges), windows) == windows


def test_idle_power_gives_net_energy(
    exporter: CountingExporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a constant power, nothing remains net of idle."""
    monkeypatch.setattr(meter_module, "IDLE_S", 0.05)
    monkeypatch.setattr("joulewatch_harness.metering.energies.is_busy", lambda _: False)
    with Meter(exporter.url, output=tmp_path, idle="measured") as meter, meter.measure("a") as window:
        busy(0.05)
    assert window.net is not None
    assert window.net.joules == pytest.approx(0.0, abs=window.net.uncertainty)
    assert [line.kind for line in stored(meter)] == ["idle", "measure"]
    monkeypatch.setattr("joulewatch_harness.metering.energies.is_busy", lambda _: True)
    monkeypatch.setattr("joulewatch_harness.metering.energies.measures_this_machine", lambda *_: True)
    with Meter(exporter.url, output=tmp_path, idle="measured") as meter, meter.measure("a") as window:
        busy()
    assert window.net is None
    with pytest.raises(ConfigError, match="idle"):
        Meter(idle="guessed")  # type: ignore[arg-type]


def test_a_closed_meter(exporter: CountingExporter, tmp_path: Path) -> None:
    meter = Meter(exporter.url, output=tmp_path)
    with pytest.raises(ConfigError, match="not open"):
        _ = meter.folder
    window = meter.begin("a")
    meter.close()
    meter.close()
    window.end()
    with pytest.raises(ConfigError, match="the meter was closed inside the window"):
        _ = window.joules
    with pytest.raises(ConfigError, match="create another one"):
        meter.begin("a")
    record = read_run(meter.folder)
    assert record.end is not None
    assert record.end.status == "complete"
    assert [note.reason for note in record.notes] == ["interrupted"]


def test_two_windows_that_end_in_one_millisecond(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prometheus cannot hold both: the second has its energy, and the journal has a note."""
    monkeypatch.setattr(meter_module, "to_ms", lambda _: 1)
    windows = [meter.begin("a").end() for _ in range(2)]
    assert all(window.joules is not None for window in windows)
    with meter.measure("b"):
        pass
    assert [line.index for line in stored(meter)] == [0, 1]
    assert [note.reason for note in read_run(meter.folder).notes] == ["not_stored"]


def test_work_on_a_gpu_is_waited_for_at_both_edges(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    cuda = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=lambda: 3,
        current_device=lambda: 0,
        memory_reserved=lambda device: 1024 if device == 2 else 0,
        synchronize=lambda device: waited.append(f"cuda {device}"),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    with meter.measure("a", sync="torch"):
        assert waited == ["cuda 0", "cuda 2"]
        waited.clear()
    assert waited == ["cuda 0", "cuda 2"]
    waited.clear()
    runtime = SimpleNamespace(deviceSynchronize=lambda: waited.append("cupy"))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    with meter.measure("a", sync="cupy"):
        pass
    assert waited == ["cupy", "cupy"]
    with meter.measure("a"):
        pass
    assert waited == ["cupy", "cupy"]


def test_computations_of_jax_are_waited_for_on_each_device(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []

    class Array:
        def __init__(self, device: str) -> None:
            self.device = device

        def __add__(self, other: int) -> Array:
            return self

        def block_until_ready(self) -> None:
            waited.append(self.device)

    jax = SimpleNamespace(local_devices=lambda: ["gpu 0", "gpu 1"], device_put=lambda _, device: Array(device))
    monkeypatch.setitem(sys.modules, "jax", jax)
    with meter.measure("a", sync="jax"):
        assert waited == ["gpu 0", "gpu 1"]
    assert waited == ["gpu 0", "gpu 1"] * 2


def test_a_library_that_is_not_loaded_or_not_known(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    with meter.measure("a", sync="jax"):
        pass
    assert "jax" not in sys.modules
    with pytest.raises(ConfigError, match="did you mean torch"):
        meter.measure("a", sync="torhc")


def test_an_error_of_the_gpu_passes_and_ends_the_window(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    window = meter.measure("a", sync="cupy").begin()
    runtime = SimpleNamespace(deviceSynchronize=fail)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    with pytest.raises(RuntimeError, match="out of memory"):
        window.end()
    assert window.flags == ("interrupted",)
    assert len(stored(meter)) == 1


def test_html_for_notebooks(meter: Meter) -> None:
    with meter.measure("<b>", inferences=2) as window:
        busy()
    text = window._repr_html_()
    assert "<caption>&lt;b&gt;" in text
    assert "per inference" in text
    assert "accuracy_unknown" in text
    assert "<pre>" in meter.results()._repr_html_()


def test_the_lock_is_not_held_while_the_user_works(meter: Meter) -> None:
    """A window that is open in one thread does not block those of another."""
    with meter.measure("a"):
        done: list[bool] = []
        thread = threading.Thread(target=lambda: done.append(meter.begin("b").end().joules is not None))
        thread.start()
        thread.join(30)
    assert done == [True]
    assert meter.pid == os.getpid()
