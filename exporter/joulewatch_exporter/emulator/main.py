"""Run an emulated machine: write its trees, update them at absolute deadlines, and record the truth.

``exporter.yaml``, next to the trees, is the configuration of an exporter that reads the whole machine.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TextIO, TypeAlias

import yaml

from joulewatch_exporter.collectors.base.proc_stat import read_busy
from joulewatch_exporter.emulator import scenario as scenarios
from joulewatch_exporter.emulator.devices import DeviceThread, Place, Running, exporter_collectors, open_devices
from joulewatch_exporter.emulator.scenario import Scenario
from joulewatch_exporter.emulator.signals import CpuLoad, UtilisationMeter
from joulewatch_exporter.emulator.tree import EXPORTER_FILE, Tree, remove
from joulewatch_exporter.emulator.truth import SCENARIO_FILE, TRACE_FILE
from joulewatch_exporter.emulator.workloads import WorkloadLoad, WorkloadMeter, find_top, link_top, workload_joules
from joulewatch_exporter.errors import ConfigError, ExporterError
from joulewatch_exporter.model import EMULATION_MARKER

logger = logging.getLogger(__name__)

builtin_names = scenarios.builtin_names

_Workloads: TypeAlias = Sequence[tuple[WorkloadLoad, WorkloadMeter]]
_TRACE_S = 1.0
"""Time between two lines of the trace if every signal is deterministic, so the trace is not needed."""
_NAP_S = 0.1
"""Longest sleep before checking whether to stop."""
_SETTLE_S = 5.0
"""Longest wait for the first update of a device."""


def run(scenario: str, directory: Path, duration_s: float | None) -> int:
    """Emulate a machine until SIGTERM, SIGINT or the end of ``duration_s``.

    Args:
        scenario: Name of a built-in scenario, or path of a YAML file.
        directory: For ``sys``, ``proc``, ``dev``, ``exporter.yaml``, ``scenario.json``, ``truth.jsonl`` and the files
            of the devices; new, empty, or used by an emulator before.
        duration_s: Seconds to run; None: until a signal.

    Returns:
        0.

    Raises:
        ConfigError: The scenario is invalid, or the directory cannot be used.
    """
    spec = scenarios.load(scenario)
    with _locked(directory):
        stop = threading.Event()
        with _stopped_by_signals(stop):
            _emulate(spec, directory, duration_s, stop)
    return 0


def _emulate(spec: Scenario, directory: Path, duration_s: float | None, stop: threading.Event) -> None:
    start_unix_s, start_ns = _read_clocks()
    with contextlib.ExitStack() as stack:
        tree = Tree(spec, directory, directory / ".scratch", boot_unix_s=int(start_unix_s))
        stack.callback(tree.close)
        running, spec, excluded_keys = _open_devices(spec, directory)
        meter = UtilisationMeter(lambda: read_busy("/proc/stat")) if spec.loads else None
        workloads = stack.enter_context(_metered_workloads(spec, directory))
        # The scenario starts now, not when the first file was written.
        start_unix_s, start_ns = _read_clocks()
        stack.enter_context(_updated(running, start_ns))
        tree.advance(0.0)
        start = {"start_unix_s": start_unix_s, "start_monotonic_ns": start_ns}
        document = {**start, "left_out": excluded_keys, "scenario": spec.document}
        _put(directory, SCENARIO_FILE, json.dumps(document, indent=1))
        _put(directory, EXPORTER_FILE, _exporter_settings(directory, running))
        trace = stack.enter_context((directory / TRACE_FILE).open("w", encoding="utf-8"))
        sys.stderr.write(
            f"emulating {spec.name} in {directory}; "
            f"read it with: joulewatch-exporter --config.file {directory / EXPORTER_FILE}\n"
        )
        sys.stderr.flush()
        _move(spec, tree, (meter, workloads), trace, _Span(start_unix_s, start_ns, duration_s), stop)


@contextlib.contextmanager
def _metered_workloads(spec: Scenario, directory: Path) -> Iterator[_Workloads]:
    """Show the cgroups that the scenario follows in its sysfs, and open their counters."""
    if not spec.workload_loads:
        yield ()
        return
    top = find_top(spec.workload_loads)
    link_top(directory / "sys", top)
    workloads = [(load, WorkloadMeter(top, load.watts_per_core)) for load in spec.workload_loads]
    try:
        yield workloads
    finally:
        for _, meter in workloads:
            meter.close()


def _open_devices(spec: Scenario, directory: Path) -> tuple[list[Running], Scenario, list[str]]:
    """Open the devices that can be emulated on this machine.

    Returns:
        The devices, the scenario without the excluded ones, and the keys of the excluded ones.
    """
    is_one_machine = bool(spec.zones or spec.chips or spec.devices.are_local)
    running, excluded = open_devices(spec.devices, Place(directory.absolute(), spec.refresh_s, is_one_machine))
    if excluded and spec.is_required_whole:
        for opened in running:
            opened.device.close()
        raise ConfigError(f"{spec.name}: {excluded[0].name}: {excluded[0].reason}")
    for device in excluded:
        sys.stderr.write(f"without {device.name}: {device.reason}\n")
    # A zone or a hwmon channel may show the same quantity; then its truth stays.
    kept = {zone.key for zone in spec.zones} | {channel.key for chip in spec.chips for channel in chip.channels}
    keys = [key for device in excluded for key in device.keys if key not in kept]
    return running, spec.without(keys), keys


@contextlib.contextmanager
def _updated(running: Sequence[Running], start_ns: int) -> Iterator[None]:
    """Update the devices on their threads, and close them at the end."""
    threads = [DeviceThread(device, start_ns) for device in running]
    try:
        for thread in threads:
            thread.settle(_SETTLE_S)
        yield
    finally:
        for thread in threads:
            thread.stop()
        for thread in threads:
            thread.join()


@dataclass(frozen=True, slots=True)
class _Span:
    """Start of the emulation, on both clocks, and its duration."""

    start_unix_s: float
    start_ns: int
    duration_s: float | None


def _move(
    spec: Scenario,
    tree: Tree,
    meters: tuple[UtilisationMeter | None, _Workloads],
    trace: TextIO,
    span: _Span,
    stop: threading.Event,
) -> None:
    """Move the files and write the trace until ``stop`` is set or the span ends."""
    meter, workloads = meters
    start_ns = span.start_ns
    refresh_ns = round(spec.refresh_s * 1e9)
    end_ns = None if span.duration_s is None else start_ns + round(span.duration_s * 1e9)
    next_trace_s = 0.0
    trace_s = spec.refresh_s if workloads else CpuLoad.SAMPLE_S if spec.loads else _TRACE_S
    while not stop.is_set():
        now_ns = time.monotonic_ns()
        t_s = (now_ns - start_ns) / 1e9
        for workload_load, workload_meter in workloads:
            workload_load.follow(t_s, workload_meter.read())
        if t_s >= next_trace_s:
            # The line comes before the next sample of the load: up to now the energy is exact.
            _write_trace(trace.write, spec, t_s, now_ns, span.start_unix_s)
            trace.flush()
            if meter is not None:
                utilisation = meter.utilisation(t_s)
                for load in spec.loads:
                    load.follow(t_s, utilisation)
            next_trace_s = (int(t_s / trace_s) + 1) * trace_s
        tree.advance(t_s)
        if end_ns is not None and now_ns >= end_ns:
            break
        # Multiples of the refresh since the start, so delays do not add up; missed ticks are skipped.
        deadline_ns = start_ns + ((time.monotonic_ns() - start_ns) // refresh_ns + 1) * refresh_ns
        if end_ns is not None:
            deadline_ns = min(deadline_ns, end_ns)
        while not stop.is_set() and (left_ns := deadline_ns - time.monotonic_ns()) > 0:
            time.sleep(min(_NAP_S, left_ns / 1e9))
    now_ns = time.monotonic_ns()
    _write_trace(trace.write, spec, (now_ns - start_ns) / 1e9, now_ns, span.start_unix_s)


def _exporter_settings(directory: Path, running: Iterable[Running]) -> str:
    """Return the configuration with which an exporter reads the emulated machine, and nothing of the real one."""
    root = directory.absolute()
    collectors = exporter_collectors(running)
    settings = {
        "exporter": {"path": {"sysfs": str(root / "sys"), "procfs": str(root / "proc"), "dev": str(root / "dev")}},
        "collectors": collectors,
    }
    head = f"# The emulated machine in {root}; written by joulewatch-exporter emulate at each start.\n"
    return head + yaml.safe_dump(settings, sort_keys=False)


def _put(directory: Path, name: str, text: str) -> None:
    temporary = directory / ".scratch" / name
    temporary.write_text(text, "utf-8")
    temporary.replace(directory / name)


def _write_trace(write: Callable[[str], object], spec: Scenario, t_s: float, now_ns: int, start_unix_s: float) -> None:
    joules = {key: power.energy_joules(0.0, t_s) for key, power in spec.signals_by_key.items()}
    line: dict[str, object] = {"unix_s": start_unix_s + t_s, "monotonic_ns": now_ns, "joules": joules}
    if spec.workload_loads:
        line["workloads"] = {key: by for key, power in spec.signals_by_key.items() if (by := workload_joules(power))}
    write(json.dumps(line, separators=(",", ":")) + "\n")


def _read_clocks() -> tuple[float, int]:
    """Return Unix seconds and monotonic nanoseconds of the same instant: the closest of several pairs."""
    pairs = []
    for _ in range(10):
        before_ns = time.monotonic_ns()
        unix_s = time.time()
        after_ns = time.monotonic_ns()
        pairs.append((after_ns - before_ns, unix_s, (before_ns + after_ns) // 2))
    _, unix_s, monotonic_ns = min(pairs)
    return unix_s, monotonic_ns


def _write_error(directory: Path, error: OSError) -> ExporterError:
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return (ExporterError if is_full else ConfigError)(f"{directory}: cannot be written: {error}")


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Prepare the directory and lock it; a directory that no emulator has used is only taken if it is empty."""
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory}: is a file; choose a new or empty directory")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        is_emulated = (directory / "sys" / EMULATION_MARKER).exists() or (directory / ".scratch").is_dir()
        if not is_emulated and any(directory.iterdir()):
            raise ConfigError(f"{directory}: is not empty and was not written by an emulator; choose another directory")
        scratch = directory / ".scratch"
        lock_path = directory / ".lock"
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _write_error(directory, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"{directory}: is used by another emulator; stop it or choose another directory"
            ) from error
        remove(directory)
        scratch.mkdir()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                for path in scratch.glob("value-*"):
                    path.unlink()
    except OSError as error:
        raise _write_error(directory, error) from error
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """Let SIGTERM and SIGINT set ``stop``; only the main thread can set handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
