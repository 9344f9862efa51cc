"""Real NVIDIA GPUs: idle, under a steady load and under bursts; energy counter against integrated power, refresh, cost.

Without a GPU, the benchmark reports this and keeps the results of the last machine with one. The load is a matrix
multiplication in torch; without torch, fused multiply-adds as PTX for the driver, which require no package.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from joulewatch_exporter.collectors.nvml.collector import NvmlCollector, NvmlOptions
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError
from joulewatch_exporter.model import Host, Reading, Sensor
from joulewatch_exporter.sampling.counter import EnergyCounter, PowerIntegrator, RefreshEstimator

PHASE_S, QUICK_PHASE_S = 30.0, 5.0
LEAD_S = 2.0
"""Wait before each phase, so that an average over 1 s does not include the previous phase."""
FAST_S = 3.0
"""Duration of reading as fast as possible, for the refresh time and the cost of a read."""
READ_S = 0.1
SLOW_EVERY = 10
"""Power is integrated from all readings, and from every tenth: once per second, as in the exporter."""
BURST_S, PAUSE_S = 0.03, 0.07
"""Shorter than the 100 ms in which many GPUs sample their power once."""

PTX = b"""
.version 6.0
.target sm_50
.address_size 64
.visible .entry burn(.param .u64 result, .param .u32 rounds)
{
    .reg .pred %more;
    .reg .f32 %a, %b, %c, %d, %x, %y;
    .reg .b32 %i, %n;
    .reg .b64 %to;
    ld.param.u64 %to, [result];
    ld.param.u32 %n, [rounds];
    mov.f32 %a, 0f3F800000;
    mov.f32 %b, 0f3F000000;
    mov.f32 %c, 0f3E800000;
    mov.f32 %d, 0f3F400000;
    mov.f32 %x, 0f3F7FFFFE;
    mov.f32 %y, 0f33D6BF95;
    mov.u32 %i, 0;
AGAIN:
    fma.rn.f32 %a, %a, %x, %y;
    fma.rn.f32 %b, %b, %x, %y;
    fma.rn.f32 %c, %c, %x, %y;
    fma.rn.f32 %d, %d, %x, %y;
    fma.rn.f32 %a, %a, %x, %y;
    fma.rn.f32 %b, %b, %x, %y;
    fma.rn.f32 %c, %c, %x, %y;
    fma.rn.f32 %d, %d, %x, %y;
    add.u32 %i, %i, 1;
    setp.lt.u32 %more, %i, %n;
    @%more bra AGAIN;
    add.f32 %a, %a, %b;
    add.f32 %c, %c, %d;
    add.f32 %a, %a, %c;
    cvta.to.global.u64 %to, %to;
    st.global.f32 [%to], %a;
    ret;
}
\0"""


class Load(Protocol):
    """A load for one GPU."""

    name: str

    def work(self, seconds: float) -> None:
        """Keep the GPU busy for about this time; return when it is idle again."""
        ...


class TorchLoad:
    """Matrix multiplications by torch."""

    def __init__(self, torch: Any, uuid: str) -> None:
        self._torch = torch
        index = _torch_index(torch, uuid)
        self.name = f"matrix multiplication, torch {torch.__version__}, bfloat16, 8192"
        self._device = torch.device("cuda", index)
        self._a = torch.randn(8192, 8192, device=self._device, dtype=torch.bfloat16)
        self._b = torch.randn(8192, 8192, device=self._device, dtype=torch.bfloat16)

    def work(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(4):
                self._torch.matmul(self._a, self._b)
            self._torch.cuda.synchronize(self._device)


def _torch_index(torch: Any, uuid: str) -> int:
    for index in range(torch.cuda.device_count()):
        if str(getattr(torch.cuda.get_device_properties(index), "uuid", "")) in uuid:
            return index
    raise RuntimeError(f"torch does not see {uuid}")


class PtxLoad:
    """Fused multiply-adds on all cores, with the driver only."""

    name = "fused multiply-adds (PTX)"
    THREADS = 256

    def __init__(self, address: str) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._call("cuInit", 0)
        device, context, module = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._function, self._result = ctypes.c_void_p(), ctypes.c_uint64()
        self._call("cuDeviceGetByPCIBusId", ctypes.byref(device), address.encode())
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._context = context
        self._call("cuCtxSetCurrent", context)
        self._call("cuModuleLoadData", ctypes.byref(module), PTX)
        self._call("cuModuleGetFunction", ctypes.byref(self._function), module, b"burn")
        self._call("cuMemAlloc_v2", ctypes.byref(self._result), ctypes.c_size_t(4))
        processors = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(processors), 16, device)  # MULTIPROCESSOR_COUNT
        self._blocks = processors.value * 8
        self._rounds = 1000
        # A launch takes about 5 ms, so that the length of bursts can be controlled.
        while self._launch() < 0.005 and self._rounds < 2**30:
            self._rounds *= 2

    def work(self, seconds: float) -> None:
        self._call("cuCtxSetCurrent", self._context)  # for this thread
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._launch()

    def _launch(self) -> float:
        rounds = ctypes.c_uint32(self._rounds)
        pointers = [ctypes.cast(ctypes.byref(value), ctypes.c_void_p) for value in (self._result, rounds)]
        parameters = (ctypes.c_void_p * 2)(*pointers)
        started = time.monotonic()
        size = (self._blocks, 1, 1, self.THREADS, 1, 1)
        self._call("cuLaunchKernel", self._function, *map(ctypes.c_uint, size), 0, None, parameters, None)
        self._call("cuCtxSynchronize")
        return time.monotonic() - started

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code:
            raise RuntimeError(f"{name}: CUDA error {code}")


def make_load(uuid: str, address: str) -> tuple[Load | None, str]:
    """Return the best available load for a GPU, or the reason why there is none."""
    try:
        import torch  # type: ignore[import-not-found, unused-ignore]

        return TorchLoad(torch, uuid), ""
    except Exception as error:
        why = f"torch: {type(error).__name__}: {error}"
    try:
        return PtxLoad(address), ""
    except (OSError, AttributeError, RuntimeError) as error:
        return None, f"{why}; driver: {error}"


@contextlib.contextmanager
def busy(step: Callable[[], None]) -> Iterator[None]:
    """Repeat ``step`` on another thread until the end of the block."""
    stop = threading.Event()
    failures: list[Exception] = []

    def repeat() -> None:
        try:
            while not stop.is_set():
                step()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


def collect(sensor: Sensor, seconds: float) -> list[Sequence[Reading]]:
    """Read a GPU every 0.1 s, on absolute deadlines."""
    scans: list[Sequence[Reading]] = []
    start = time.monotonic()
    for step in range(round(seconds / READ_S) + 1):
        time.sleep(max(0.0, start + step * READ_S - time.monotonic()))
        try:
            scans.append(sensor.read())
        except SensorError as error:
            sys.stderr.write(f"{sensor.device}: {error}\n")
    return scans


def energies(scans: Sequence[Sequence[Reading]]) -> dict[str, float]:
    """Return joules between the first and the last scan by domain; for power also from every tenth reading."""
    by_domain: dict[str, list[Reading]] = defaultdict(list)
    for scan in scans:
        for reading in scan:
            by_domain[reading.quantity.domain].append(reading)
    joules = {}
    for domain, readings in by_domain.items():
        joules[domain] = _joules(readings)
        if readings[0].energy_joules is None:
            joules[f"{domain}, read once a second"] = _joules(readings[::SLOW_EVERY])
    return joules


def _joules(readings: Sequence[Reading]) -> float:
    counter = EnergyCounter(wrap_joules=None, max_power_watts=5000.0)
    integrator = PowerIntegrator(max_power_watts=5000.0, max_gap_s=5.0)
    for reading in readings:
        if reading.energy_joules is not None:
            counter.update(reading.read_at_ns, reading.energy_joules)
        elif reading.power_watts is not None:
            integrator.update(reading.read_at_ns, reading.power_watts)
    return counter.total_joules or integrator.total_joules


def refresh_and_cost(sensor: Sensor, seconds: float) -> tuple[dict[str, float | None], dict[str, float]]:
    """Read as fast as possible; return the refresh time of each domain and the cost of a read in milliseconds."""
    estimators = {info.quantity.domain: RefreshEstimator(is_counter=info.method == "counter") for info in sensor.infos}
    costs_ms = []
    end = time.monotonic() + seconds
    while (started := time.monotonic()) < end:
        readings = sensor.read()
        costs_ms.append((time.monotonic() - started) * 1e3)
        for reading in readings:
            value = reading.power_watts if reading.energy_joules is None else reading.energy_joules
            if value is not None:
                estimators[reading.quantity.domain].update(reading.read_at_ns, value)
    cost = {"median_ms": statistics.median(costs_ms), "p99_ms": statistics.quantiles(costs_ms, n=100)[98]}
    return {domain: estimator.refresh_s for domain, estimator in estimators.items()}, cost


def measure(sensor: Sensor, phase_s: float) -> dict[str, Any]:
    """Measure all phases of one GPU."""
    model = sensor.infos[0].model
    address = model.partition(" @ ")[2].partition(",")[0]
    load, why_not = make_load(sensor.device, address)
    phases: list[tuple[str, Callable[[], None] | None]] = [("idle", None)]
    if load is not None:

        def bursts(load: Load = load) -> None:
            load.work(BURST_S)
            time.sleep(PAUSE_S)

        phases += [("load", lambda load=load: load.work(0.2)), ("bursts", bursts)]  # type: ignore[misc]
    else:
        sys.stderr.write(f"{sensor.device}: idle only, because no load is available: {why_not}\n")
    result: dict[str, Any] = {
        "device": sensor.device,
        "model": model,
        "limit_watts": sensor.infos[0].limit_watts,
        "load": load.name if load is not None else why_not,
        "phases": {},
    }
    for name, step in phases:
        if step is None:
            time.sleep(LEAD_S)
            scans = collect(sensor, phase_s)
        else:
            with busy(step):
                time.sleep(LEAD_S)
                scans = collect(sensor, phase_s)
                if name == "load":
                    # Under a load, every refresh changes the value.
                    result["refresh_s"], result["cost"] = refresh_and_cost(sensor, FAST_S)
        span_s = (scans[-1][0].read_at_ns - scans[0][0].read_at_ns) / 1e9
        result["phases"][name] = {"seconds": span_s, "joules": energies(scans)}
    if "cost" not in result:
        result["refresh_s"], result["cost"] = refresh_and_cost(sensor, FAST_S)
    return result


def table(result: dict[str, Any]) -> str:
    rows, rhythms = [], []
    for gpu in result["gpus"]:
        for name, phase in gpu["phases"].items():
            total = phase["joules"].get("total", 0.0)
            for domain, joules in phase["joules"].items():
                watts = joules / phase["seconds"]
                ratio = f"{joules / total:.4f}" if total and not domain.startswith("memory") else ""
                rows.append([gpu["model"], name, domain, f"{watts:.2f}", ratio])
        refresh = ", ".join(
            f"{domain} {refresh_s * 1e3:.1f} ms" if refresh_s is not None else f"{domain} not detected"
            for domain, refresh_s in gpu["refresh_s"].items()
        )
        cost = gpu["cost"]
        rhythms.append([gpu["model"], gpu["load"], refresh, f"{cost['median_ms']:.3f}", f"{cost['p99_ms']:.3f}"])
    return (
        "# NVIDIA GPUs: energy counter against integrated power\n\n"
        + host_line(result["machine"])
        + "\n"
        + markdown_table(["GPU", "phase", "domain", "mean W", "of the total"], rows)
        + "\n"
        + f"Bursts: {BURST_S * 1e3:.0f} ms of work, {PAUSE_S * 1e3:.0f} ms of pause. "
        + "Power is integrated from a reading every 100 ms, or once a second.\n\n"
        + markdown_table(["GPU", "load", "refresh", "read, median ms", "99 % ms"], rhythms)
    )


def run(*, quick: bool = False, library: Path | None = None) -> None:
    """Measure every GPU of this machine, one after the other.

    Args:
        quick: Use short phases, for a test of the benchmark.
        library: Another libnvidia-ml.so.1, such as an emulated one; its results are printed but not written.
    """
    try:
        collector = NvmlCollector.open(Host(), NvmlOptions(library=library))
    except (SensorAbsentError, SensorDeniedError) as error:
        sys.stdout.write(f"gpu: not run, no result written: {error}\n")
        return
    try:
        machine = describe_machine()
        with contextlib.suppress(PackageNotFoundError):
            machine["versions"]["nvidia-ml-py"] = version("nvidia-ml-py")
        phase_s = QUICK_PHASE_S if quick else PHASE_S
        result = {"machine": machine, "gpus": [measure(sensor, phase_s) for sensor in collector.sensors]}
    finally:
        collector.close()
    if library is not None:
        sys.stdout.write(table(result))
    else:
        write_result("gpu", result, table(result))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short phases, for a test of the benchmark")
    parser.add_argument("--library", type=Path, help="another libnvidia-ml.so.1; its results are not written")
    args = parser.parse_args()
    run(quick=args.quick, library=args.library)
    return 0


if __name__ == "__main__":
    sys.exit(main())
