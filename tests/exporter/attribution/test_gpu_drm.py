"""Use of AMD and Intel GPUs by workload, from trees of files in the kernel's layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from joulewatch_exporter.attribution import gpu_drm
from joulewatch_exporter.attribution.gpu import GpuOptions
from joulewatch_exporter.attribution.gpu_drm import DrmUsageSource, parse_fdinfo
from joulewatch_exporter.attribution.model import ROOT, UsageScan
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError
from support.clock import FakeClock
from support.drm import DrmMachine

AMD, INTEL, XE = "0000:83:00.0", "0000:00:02.0", "0000:03:00.0"
TRAIN, SERVE = "system.slice/train.service", "system.slice/serve.service"
NS = 10**9


@pytest.fixture
def machine(tmp_path: Path) -> DrmMachine:
    machine = DrmMachine(tmp_path)
    machine.gpu(AMD, "amdgpu")
    for pid, key in ((11, TRAIN), (12, SERVE), (13, "system.slice/shell.service")):
        machine.process(pid, key)
    return machine


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def seconds(scan: UsageScan, device: str = AMD) -> dict[str, float]:
    assert scan.usages[device][-1].key == ROOT
    return {usage.key: usage.seconds for usage in scan.usages[device]}


def open_source(machine: DrmMachine, clock: FakeClock) -> DrmUsageSource:
    return DrmUsageSource(machine.host, GpuOptions(), clock)


# -- files ---------------------------------------------------------------------------------------------


def test_a_file_of_amdgpu() -> None:
    client = parse_fdinfo(
        "pos:\t0\ndrm-driver:\tamdgpu\ndrm-client-id:\t7568\ndrm-pdev:\t0000:75:00.0\n"
        "drm-engine-gfx:\t123456789 ns\ndrm-engine-compute:\t99 ns\ndrm-engine-enc_1:\t0 ns\n"
        "drm-memory-vram:\t12 KiB\ndrm-total-gds:\t0\n"
    )
    assert client is not None
    assert (client.device, client.number) == ("0000:75:00.0", "7568")
    assert client.engines_ns == {"gfx": 123456789, "compute": 99, "enc_1": 0}
    assert client.cycles == {}


def test_a_file_of_i915_counts_an_engine_of_which_there_are_two_by_half() -> None:
    client = parse_fdinfo(
        "drm-driver:\ti915\ndrm-client-id:\t42\ndrm-pdev:\t0000:00:02.0\ndrm-engine-render:\t9876543 ns\n"
        "drm-engine-video:\t100 ns\ndrm-engine-capacity-video:\t2\n"
    )
    assert client is not None
    assert client.engines_ns == {"render": 9876543, "video": 50}


def test_a_file_of_xe_has_cycles() -> None:
    client = parse_fdinfo(
        "drm-driver:\txe\ndrm-client-id:\t3\ndrm-pdev:\t0000:03:00.0\ndrm-cycles-rcs:\t28257900\n"
        "drm-total-cycles-rcs:\t7655183225\ndrm-cycles-vcs:\t8\ndrm-total-cycles-vcs:\t7655183225\n"
        "drm-engine-capacity-vcs:\t2\n"
    )
    assert client is not None
    assert client.cycles == {"rcs": (28257900, 7655183225), "vcs": (4, 7655183225)}
    assert client.engines_ns == {}


@pytest.mark.parametrize(
    "text",
    [
        "pos:\t0\nflags:\t0100002\n",
        "drm-driver:\tnouveau\ndrm-client-id:\t3\ndrm-pdev:\t0000:03:00.0\n",
        "drm-driver:\tamdgpu\ndrm-pdev:\t0000:03:00.0\ndrm-engine-gfx:\t5 ns\n",
        "drm-driver:\tamdgpu\ndrm-client-id:\t3\n",
        "",
    ],
)
def test_other_files_are_not_clients(text: str) -> None:
    assert parse_fdinfo(text) is None


# -- engine time ---------------------------------------------------------------------------------------


def test_two_users_share_by_the_time_of_the_engines(machine: DrmMachine, clock: FakeClock) -> None:
    """What they used before the start does not count."""
    machine.client(11, AMD, 1, engine_gfx=f"{50 * NS} ns")
    machine.client(12, AMD, 2, engine_gfx=f"{7 * NS} ns", engine_enc="0 ns")
    source = open_source(machine, clock)
    machine.client(11, AMD, 1, engine_gfx=f"{52 * NS} ns")
    machine.client(12, AMD, 2, engine_gfx=f"{8 * NS} ns", engine_enc=f"{NS // 2} ns")
    clock.advance(5.0)
    scan = source.read(())
    assert seconds(scan) == {TRAIN: 2.0, SERVE: 1.5, "system.slice": 3.5, ROOT: 3.5}
    assert scan.weights == {AMD: "gpu_utilisation"}
    assert scan.holders == {AMD: (SERVE, TRAIN)}
    (finding,) = source.findings
    assert (
        finding.text == "amdgpu: shared by the time of the engines; processes: 2; experimental: never run on such a GPU"
    )


def test_a_client_with_several_descriptors_and_processes_counts_once(machine: DrmMachine, clock: FakeClock) -> None:
    """It stays with the process in which it was found; when that ends, another one has it, from where it was."""
    source = open_source(machine, clock)
    for pid, descriptor in ((12, 5), (12, 6), (13, 9)):
        machine.client(pid, AMD, 1, descriptor, engine_gfx=f"{NS} ns")
    assert seconds(source.read(()))[ROOT] == 1.0
    machine.ends(12)
    machine.client(13, AMD, 1, 9, engine_gfx=f"{3 * NS} ns")
    clock.advance(1.0)
    used = seconds(source.read(()))
    assert used[ROOT] == 3.0
    assert used["system.slice/shell.service"] == 2.0


def test_a_client_that_is_passed_to_another_process_does_not_count_twice(machine: DrmMachine, clock: FakeClock) -> None:
    source = open_source(machine, clock)
    machine.client(11, AMD, 1, engine_gfx=f"{5 * NS} ns")
    assert seconds(source.read(()))[TRAIN] == 5.0
    machine.ends(11)
    assert seconds(source.read(()))[ROOT] == 5.0
    machine.client(12, AMD, 1, engine_gfx=f"{6 * NS} ns")
    assert seconds(source.read(()))[ROOT] == 6.0


def test_a_process_that_ends_stays_with_its_parents(machine: DrmMachine, clock: FakeClock) -> None:
    source = open_source(machine, clock)
    machine.process(20, "system.slice/short.service")
    machine.client(20, AMD, 9, engine_gfx=f"{2 * NS} ns")
    machine.client(11, AMD, 1, engine_gfx="0 ns")
    assert seconds(source.read(()))["system.slice/short.service"] == 2.0
    machine.ends(20)
    clock.advance(5.0)
    scan = source.read(())
    assert seconds(scan) == {TRAIN: 0.0, "system.slice": 2.0, ROOT: 2.0}
    assert (scan.holders, scan.weights) == ({AMD: (TRAIN,)}, {AMD: "sole_user"})


def test_a_counter_that_falls_adds_nothing(machine: DrmMachine, clock: FakeClock) -> None:
    machine.client(11, AMD, 1, engine_gfx=f"{5 * NS} ns")
    source = open_source(machine, clock)
    machine.client(11, AMD, 1, engine_gfx=f"{4 * NS} ns")
    assert seconds(source.read(()))[ROOT] == 0.0


def test_cycles_of_xe_are_shares_of_the_time(tmp_path: Path, clock: FakeClock) -> None:
    machine = DrmMachine(tmp_path)
    machine.gpu(XE, "xe")
    machine.process(11, TRAIN)
    machine.client(11, XE, 1, cycles_rcs=1000, total_cycles_rcs=100_000)
    source = open_source(machine, clock)
    clock.advance(10.0)
    machine.client(11, XE, 1, cycles_rcs=1000 + 48_000, total_cycles_rcs=100_000 + 192_000)
    assert seconds(source.read(()), XE)[TRAIN] == pytest.approx(2.5)


def test_each_gpu_has_its_own_users(machine: DrmMachine, clock: FakeClock) -> None:
    machine.gpu(INTEL, "i915")
    source = open_source(machine, clock)
    machine.client(11, AMD, 1, engine_gfx=f"{NS} ns")
    machine.client(12, INTEL, 1, engine_render=f"{3 * NS} ns")
    scan = source.read(())
    assert seconds(scan, AMD)[TRAIN] == seconds(scan, AMD)[ROOT] == 1.0
    assert seconds(scan, INTEL)[SERVE] == seconds(scan, INTEL)[ROOT] == 3.0
    assert scan.holders == {AMD: (TRAIN,), INTEL: (SERVE,)}


def test_a_read_looks_for_open_devices_for_a_limited_time(
    machine: DrmMachine, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round goes on in the next reads, so that each process is found; new ones come first."""
    monkeypatch.setattr(gpu_drm, "WALK_NS", 0)
    source = open_source(machine, clock)
    for pid in (11, 12, 13):
        machine.client(pid, AMD, pid, engine_gfx=f"{NS} ns")
    machine.process(30, "system.slice/new.service")
    machine.client(30, AMD, 30, engine_gfx=f"{NS} ns")
    assert seconds(source.read(()))["system.slice/new.service"] == seconds(source.survey())[ROOT] - 1.0 == 1.0
    for _ in range(2):
        source.read(())
    assert seconds(source.read(()))[ROOT] == 4.0


# -- compute queues of ROCm ----------------------------------------------------------------------------


def test_compute_queues_share_by_the_units_that_they_occupy(machine: DrmMachine, clock: FakeClock) -> None:
    machine.compute_node(1, 4660, AMD, units=304)
    machine.queue(11, 4660, 228)
    machine.queue(12, 4660, 76)
    source = open_source(machine, clock)
    for _ in range(100):
        clock.advance(1.0)
        scan = source.read(())
    used = seconds(scan)
    assert used[TRAIN] == pytest.approx(75.0, rel=0.06)
    assert used[SERVE] == pytest.approx(used[TRAIN] / 3)
    assert scan.holders == {AMD: (SERVE, TRAIN)}
    (finding,) = source.findings
    assert "and of ROCm by the compute units that a process occupies; processes: 2" in finding.text


def test_an_idle_queue_holds_the_gpu_and_uses_nothing(machine: DrmMachine, clock: FakeClock) -> None:
    machine.compute_node(1, 4660, AMD, units=304)
    machine.queue(11, 4660, 304)
    source = open_source(machine, clock)
    for _ in range(3):
        clock.advance(1.0)
        source.read(())
    machine.queue(11, 4660, 0)
    rises = []
    for _ in range(60):
        before = seconds(source.read(()))[ROOT]
        clock.advance(1.0)
        rises.append(seconds(source.read(()))[ROOT] - before)
    assert rises[0] > rises[5] > 0.0 == rises[-1]
    assert source.read(()).holders == {AMD: (TRAIN,)}


def test_queues_that_the_driver_does_not_count_leave_only_the_holders(machine: DrmMachine, clock: FakeClock) -> None:
    machine.compute_node(1, 4660, AMD, units=60)
    machine.queue(11, 4660, None)
    machine.client(12, AMD, 1, engine_gfx="0 ns")
    source = open_source(machine, clock)
    machine.client(12, AMD, 1, engine_gfx=f"{NS} ns")
    scan = source.read(())
    assert scan.usages == {}
    assert scan.holders == {AMD: (SERVE, TRAIN)}
    assert "does not count the use of compute queues" in source.findings[1].text


# -- what is missing -----------------------------------------------------------------------------------


def test_without_such_a_gpu_the_source_is_absent(tmp_path: Path, clock: FakeClock) -> None:
    machine = DrmMachine(tmp_path)
    with pytest.raises(SensorAbsentError, match="no GPU with one of the drivers amdgpu, i915, xe"):
        open_source(machine, clock)
    machine.gpu("0000:01:00.0", "nvidia")
    with pytest.raises(SensorAbsentError):
        DrmUsageSource.open(machine.host, GpuOptions())


def test_descriptors_that_cannot_be_read_close_the_source(
    machine: DrmMachine, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The use of a hidden process would be charged to those that can be seen."""

    def denied(link: str) -> bool:
        if "/13/" in link:
            raise PermissionError(13, "Permission denied")
        return False

    monkeypatch.setattr(DrmUsageSource, "_is_device", staticmethod(denied))
    with pytest.raises(SensorDeniedError, match=r"denied for 1 of 3 processes; .* CAP_DAC_READ_SEARCH"):
        open_source(machine, clock)


def test_names(machine: DrmMachine, clock: FakeClock) -> None:
    source = open_source(machine, clock)
    assert source.workload(TRAIN).unit == "train.service"
    source.close()
