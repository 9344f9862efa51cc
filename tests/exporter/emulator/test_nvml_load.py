"""What runs on an emulated NVIDIA GPU, as the real nvidia-ml-py reads it: compared with the true values."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from joulewatch_exporter.emulator.nvml import GpuSpec, NvmlLibrary
from joulewatch_exporter.emulator.nvml_load import GpuConditions, GpuLoadSpec, GpuProcessSpec
from joulewatch_exporter.emulator.scenario import parse
from joulewatch_exporter.emulator.signals import Constant, Points
from joulewatch_exporter.errors import ConfigError
from support.nvml import H100, GpuMachine

pynvml: Any = importlib.import_module("pynvml")

NOT_SUPPORTED = 3
NOT_FOUND = 6
FUNCTION_NOT_FOUND = 13

LONG = GpuProcessSpec(pid=11, utilisation=Constant(30.0))
SHORT = GpuProcessSpec(pid=12, utilisation=Constant(60.0), start_s=2.0, end_s=4.0)
WINDOW = GpuProcessSpec(pid=13, utilisation=Constant(0.0), kind="graphics")


class Gpu:
    """The only GPU of a machine, with NVML's handle."""

    def __init__(self, machine: GpuMachine) -> None:
        self._machine = machine
        self._is_open = False
        self.handle: Any = None
        self.library: NvmlLibrary

    def load(self, load: GpuLoadSpec, spec: GpuSpec = H100, driver_version: str = "595.10") -> None:
        self.library = self._machine.gpus(replace(spec, load=load), driver_version=driver_version)
        self.library.start_unix_s = 1000.0
        ctypes.CDLL(str(self.library.path), mode=ctypes.RTLD_GLOBAL)
        pynvml.nvmlInit()
        self._is_open = True
        self.handle = pynvml.nvmlDeviceGetHandleByIndex(0)

    def call(self, name: str, *arguments: Any) -> Any:
        return getattr(pynvml, f"nvmlDeviceGet{name}")(self.handle, *arguments)

    def code(self, name: str, *arguments: Any) -> int:
        with pytest.raises(pynvml.NVMLError) as error:
            self.call(name, *arguments)
        return int(error.value.value)

    def pids(self, name: str = "ComputeRunningProcesses") -> list[int]:
        return [process.pid for process in self.call(name)]

    def samples(self, seen_s: float) -> dict[int, tuple[float, int]]:
        samples = self.call("ProcessUtilization", round(seen_s * 1e6))
        return {sample.pid: (sample.timeStamp / 1e6, sample.smUtil) for sample in samples}

    def fields(self, *numbers: int) -> list[int | None]:
        values = self.call("FieldValues", list(numbers))
        return [None if value.nvmlReturn else value.value.ullVal for value in values]

    def close(self) -> None:
        if self._is_open:
            pynvml.nvmlShutdown()


@pytest.fixture
def gpu(gpu_machine: GpuMachine) -> Iterator[Gpu]:
    gpu = Gpu(gpu_machine)
    yield gpu
    gpu.close()


def test_processes_come_and_go(gpu: Gpu) -> None:
    gpu.load(GpuLoadSpec(processes=(LONG, SHORT, WINDOW)))
    assert (gpu.pids(), gpu.pids("GraphicsRunningProcesses")) == ([11], [13])
    gpu.library.advance(3.0)
    assert gpu.pids() == [11, 12]
    gpu.library.advance(4.0)
    assert gpu.pids() == [11]


def test_procfs_shows_the_cgroup_of_a_process_while_it_runs(gpu: Gpu, gpu_machine: GpuMachine) -> None:
    gpu.load(GpuLoadSpec(processes=(LONG, replace(SHORT, cgroup="system.slice/short.service"))))
    shown = gpu_machine.host.procfs / "12/cgroup"
    assert not shown.exists()
    gpu.library.advance(3.0)
    assert shown.read_text() == "0::/system.slice/short.service\n"
    gpu.library.advance(4.0)
    assert not shown.parent.exists()
    assert not (gpu_machine.host.procfs / "11").exists()


def test_samples_are_means_since_the_last_seen_one(gpu: Gpu) -> None:
    gpu.load(GpuLoadSpec(processes=(LONG, SHORT, WINDOW)))
    assert gpu.code("ProcessUtilization", 0) == NOT_FOUND
    gpu.library.advance(3.0)
    assert gpu.samples(0) == {11: (1003.0, 30), 12: (1003.0, 20)}
    assert gpu.samples(1002.0) == {11: (1003.0, 30), 12: (1003.0, 60)}
    gpu.library.advance(13.0)
    assert gpu.samples(0) == {11: (1013.0, 30), 12: (1004.0, 6)}, "a sample is returned until it is 10 s old"
    gpu.library.advance(15.0)
    assert gpu.samples(0) == {11: (1015.0, 30)}
    assert gpu.code("ProcessUtilization", 1015 * 10**6) == NOT_FOUND


def test_garbage_samples_are_stale_unset_or_absurd(gpu: Gpu) -> None:
    gpu.load(GpuLoadSpec(processes=(LONG,), has_garbage_samples=True))
    gpu.library.advance(3.0)
    samples = gpu.call("ProcessUtilization", 1002 * 10**6)
    assert [(sample.pid, sample.timeStamp, sample.smUtil) for sample in samples] == [
        (11, 1003 * 10**6, 30),
        (11, 1002 * 10**6, 30),
        (0, 0, 0),
        (4194303, 1003 * 10**6, 2**32 - 1),
    ]


def test_accounting_survives_the_process(gpu: Gpu) -> None:
    """The sum is in units of 0.01 %: times the period of the samples it is the true use."""
    gpu.load(GpuLoadSpec(processes=(LONG, SHORT), accounting=True))
    gpu.library.advance(10.0)
    assert gpu.call("AccountingMode") == 1
    assert gpu.call("AccountingPids") == [11, 12]
    for process, is_running, time_ms in ((LONG, 1, 0), (SHORT, 0, 2000)):
        stats = gpu.call("AccountingStats_v2", process.pid)
        assert stats.sumGpuUtil / 1e4 * 0.2 == pytest.approx(process.gpu_seconds(0.0, 10.0))
        assert (stats.isRunning, stats.time) == (is_running, time_ms)
        assert stats.startTime == (1000 + process.start_s) * 1e6
    assert gpu.code("AccountingStats_v2", 99) == NOT_FOUND


def test_accounting_that_is_off_or_unknown(gpu: Gpu) -> None:
    gpu.load(GpuLoadSpec(processes=(LONG,), accounting=False))
    assert gpu.call("AccountingMode") == 0
    assert gpu.code("AccountingPids") == NOT_SUPPORTED
    assert gpu.code("AccountingStats_v2", 11) == NOT_SUPPORTED


def test_slices_have_processes_and_multiprocessors_and_neither_power_nor_utilisation(gpu: Gpu) -> None:
    first, second = replace(LONG, slice=0), replace(SHORT, slice=1)
    gpu.load(GpuLoadSpec(processes=(first, second), slices=(56, 28), accounting=True), replace(H100, mig=True))
    gpu.library.advance(3.0)
    assert gpu.call("AccountingMode") == 0
    assert gpu.code("ProcessUtilization", 0) == NOT_SUPPORTED
    slices = [gpu.call("MigDeviceHandleByIndex", index) for index in range(2)]
    assert gpu.code("MigDeviceHandleByIndex", 2) == NOT_FOUND
    assert [pynvml.nvmlDeviceGetAttributes(handle).multiprocessorCount for handle in slices] == [56, 28]
    listed = [pynvml.nvmlDeviceGetComputeRunningProcesses(handle) for handle in slices]
    assert [[process.pid for process in processes] for processes in listed] == [[11], [12]]
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetPowerUsage(slices[0])


def test_conditions(gpu: Gpu) -> None:
    conditions = GpuConditions(
        throttled={"power": Constant(25.0), "hardware_thermal": Points(times_s=(0.0, 2.0), watts=(0.0, 100.0))},
        sm_clock_mhz=Constant(1410.0),
        temperature_celsius=Constant(71.0),
        ecc_uncorrected=Points(times_s=(0.0, 5.0), watts=(0.0, 1.0)),
        power_smoothing=True,
        power_floor_watts=300,
        power_profiles=(0, 6),
        compute_mode="exclusive_process",
        pcie_generation=3,
    )
    gpu.load(GpuLoadSpec(conditions=conditions, default_limit_watts=320.0))
    gpu.library.advance(1.0)
    assert gpu.call("CurrentClocksEventReasons") == 0x4
    gpu.library.advance(8.0)
    assert gpu.call("CurrentClocksEventReasons") == 0x44
    assert gpu.call("ViolationStatus", 0).violationTime == 2 * 10**9
    assert gpu.fields(74, 75, 270, 251, 275) == [2 * 10**9, 0, 6 * 10**9, 1, 300]
    assert [gpu.call("ClockInfo", 1), gpu.call("MaxClockInfo", 1)] == [1410, 1980]
    assert [gpu.call("Temperature", 0), gpu.call("TemperatureThreshold", 1)] == [71, 87]
    assert gpu.call("TotalEccErrors", 1, 0) == 1
    assert gpu.call("PowerManagementDefaultLimit") == 320_000
    assert gpu.call("ComputeMode") == 3
    assert [gpu.call("CurrPcieLinkGeneration"), gpu.call("MaxPcieLinkGeneration")] == [3, 5]
    profiles = pynvml.c_nvmlWorkloadPowerProfileCurrentProfiles_v1_t()
    pynvml.nvmlDeviceWorkloadPowerProfileGetCurrentProfiles(gpu.handle, ctypes.byref(profiles))
    assert profiles.enforcedProfilesMask.mask[0] == 0b1000001


def test_an_old_driver_lacks_functions(gpu: Gpu) -> None:
    gpu.load(GpuLoadSpec(processes=(LONG,), accounting=True), driver_version="470.82")
    assert gpu.code("ComputeRunningProcesses_v3") == FUNCTION_NOT_FOUND
    assert gpu.pids("ComputeRunningProcesses_v2") == [11]
    assert gpu.code("AccountingStats_v2", 11) == FUNCTION_NOT_FOUND
    assert gpu.code("CurrentClocksEventReasons") == FUNCTION_NOT_FOUND
    assert gpu.call("CurrentClocksThrottleReasons") == 0
    assert gpu.fields(74, 251, 269) == [0, None, None]


def test_what_a_gpu_does_not_support(gpu: Gpu) -> None:
    gpu.load(GpuLoadSpec(unsupported=("process_utilisation", "violations", "violation_fields", "pcie")))
    assert gpu.code("ProcessUtilization", 0) == NOT_SUPPORTED
    assert gpu.code("ViolationStatus", 0) == NOT_SUPPORTED
    assert gpu.code("CurrPcieLinkWidth") == NOT_SUPPORTED
    assert gpu.code("AccountingMode") == NOT_SUPPORTED
    assert gpu.fields(74) == [None]


def test_a_scenario_describes_the_load() -> None:
    document = {
        "name": "one",
        "gpus": [
            {
                "uuid": "GPU-1",
                "bus_id": "0000:17:00.0",
                "signal": 100,
                "load": {
                    "processes": [{"pid": 11, "utilisation": {"kind": "step", "points": [[0, 0], [5, 80]]}}],
                    "conditions": {"throttled": {"power": 25}},
                },
            }
        ],
    }
    (spec,) = parse(document, where="test", folder=None).devices.gpus
    assert spec.load.processes[0].gpu_seconds(0.0, 10.0) == 4.0
    assert spec.load.conditions.throttled["power"] == Constant(25.0)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ({"processes": [{"pid": 0, "utilisation": 1}]}, r"load\.processes\[0\]\.pid: must be 1 to"),
        ({"processes": [{"pid": 1, "utilisation": 1, "slice": 0}]}, r"load\.processes: there is no slice 0"),
        ({"processes": [{"pid": 1, "utilisation": 1, "cgroup": "/a"}]}, r"load\.processes\[0\]\.cgroup: '/a' must be"),
        ({"slices": [14]}, r"gpus\[0\]\.load\.slices: needs mig: true"),
        ({"unsupported": ["fans"]}, r"load\.unsupported: 'fans' is not one of processes"),
        ({"conditions": {"throttled": {"heat": 1}}}, r"conditions\.throttled\.heat: is not one of power"),
        (
            {"conditions": {"sm_clock": 1}},
            r"unknown key gpus\[0\]\.load\.conditions\.sm_clock; did you mean sm_clock_mhz",
        ),
    ],
)
def test_an_invalid_load_is_named_by_its_key(load: dict[str, Any], message: str) -> None:
    gpu = {"uuid": "GPU-1", "bus_id": "0000:17:00.0", "signal": 100, "load": load}
    with pytest.raises(ConfigError, match=message):
        parse({"name": "one", "gpus": [gpu]}, where="test", folder=None)
