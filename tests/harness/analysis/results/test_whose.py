"""Whose energy: parts that add up to the devices, bounds that contain the truth, and the attributed energy of a run."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulewatch_harness.analysis.energy.shares import share_bounds
from joulewatch_harness.analysis.reports import to_csv, to_json, to_text
from joulewatch_harness.analysis.results.audit.other_load import LEAST_LOAD_S
from joulewatch_harness.analysis.results.model import ATTRIBUTION, Consumer, RunResult, WindowShares
from joulewatch_harness.analysis.results.summary import analyze_run
from joulewatch_harness.analysis.results.whose import ROUNDING_S, joined, seconds_of, share_by_time, share_window
from joulewatch_harness.records import ProcessorTime, SensorRecord, Window, decode_line, encode_line
from support.runs import window as window_of
from support.synthetic import T0, ListSource, World, make_world, sensor

NAME = "net/onnxruntime/fp32"
CPU = sensor("socket0", "package")
DRAM = sensor("socket0", "dram", "memory")
GPU = sensor("GPU-0", "board", "gpu", collector="nvml", method="integrated")
CONSUMERS: tuple[Consumer, ...] = ("own", "concurrent", "measuring", "others", "system")
SECONDS = st.floats(0, 1e6) | st.just(0.0)


def used(own_s: float = 6.0, others_s: float = 3.0, measuring_s: float = 0.5, system_s: float = 0.5) -> ProcessorTime:
    """Return the processor time of a window: of the network, of others, of what measures, and of the kernel."""
    return ProcessorTime(
        busy_s=own_s + others_s + measuring_s + system_s,
        own_s=own_s + measuring_s,
        processors=16,
        networks_s={NAME: own_s},
        system_s=system_s,
    )


def measured(time: ProcessorTime | None, duration_s: float = 1.0) -> Window:
    return window_of(3, T0, duration_s, configuration=NAME, processor_time=time)


@given(st.fixed_dictionaries(dict.fromkeys(CONSUMERS, SECONDS)), st.floats(-1e6, 1e9))
def test_the_parts_add_up_and_each_lies_in_its_bound(seconds: dict[Consumer, float], active: float) -> None:
    if sum(seconds.values()) <= 0:
        return
    parts = share_by_time(seconds, active)
    assert math.fsum(part.joules for part in parts.values()) == pytest.approx(active, rel=1e-12, abs=1e-12)
    slack = 1e-12 * abs(active)
    for part in parts.values():
        assert part.low_joules - slack <= part.joules <= part.high_joules + slack


@given(
    st.tuples(*[st.floats(0, 1e3)] * 5).filter(lambda values: sum(values) > 0),
    st.lists(st.tuples(st.sampled_from(["cpu", "memory", "gpu", "fpga"]), st.floats(0, 1e7), st.floats(0, 1e7)),
             min_size=1, max_size=8),
)  # fmt: skip
def test_the_parts_and_idle_of_all_components_add_up_to_the_devices(
    seconds: tuple[float, ...], components: list[tuple[str, float, float]]
) -> None:
    own_s, others_s, measuring_s, system_s, _ = seconds
    window = measured(used(own_s, others_s, measuring_s, system_s))
    shares = [share_window(component, window, joules, idle) for component, joules, idle in components]
    if seconds_of(window) is None:
        assert all(isinstance(one, str) for one in shares)
        return
    whole = joined([one for one in shares if not isinstance(one, str)])
    assert whole.joules == pytest.approx(math.fsum(joules for _, joules, _ in components), rel=1e-12)
    total = math.fsum([whole.idle_joules, *(part.joules for part in whole.parts.values())])
    assert abs(total - whole.joules) <= 1e-9 * max(whole.joules, whole.idle_joules, 1e-300)


def test_the_bound_contains_every_mix_of_powers_within_the_ratio_and_the_rounding_of_the_kernel() -> None:
    """1000 machines: each consumer draws between 1 and 2 W per processor, and the kernel rounds by up to 20 ms."""
    choose = random.Random(7)
    for _ in range(1000):
        true_s = {name: choose.uniform(0.03, 5.0) for name in CONSUMERS}
        watts = {name: choose.uniform(1.0, 2.0) for name in CONSUMERS}
        joules = {name: true_s[name] * watts[name] for name in CONSUMERS}
        read_s = {**true_s, "others": true_s["others"] + choose.uniform(-ROUNDING_S, ROUNDING_S)}
        for name, part in share_by_time(read_s, sum(joules.values())).items():
            assert part.low_joules <= joules[name] <= part.high_joules


def test_a_share_has_the_bound_of_its_formula() -> None:
    seconds: dict[Consumer, float] = {"own": 9e6, "concurrent": 0, "measuring": 0, "others": 1e6, "system": 0}
    parts = share_by_time(seconds, 100.0)
    low, high = share_bounds(0.9)
    assert (parts["own"].joules, parts["own"].low_joules, parts["own"].high_joules) == pytest.approx(
        (90.0, 100 * low, 100 * high), rel=1e-6
    )
    assert parts["concurrent"].joules == parts["concurrent"].high_joules == 0.0


def test_a_gpu_has_one_user_unless_several_networks_run() -> None:
    one = share_window("gpu", measured(used()), 300.0, 50.0)
    assert isinstance(one, WindowShares)
    assert {name: part.joules for name, part in one.parts.items() if part.joules} == {"own": 250.0}
    assert one.parts["own"].low_joules == one.parts["own"].high_joules == 250.0
    both = dataclasses.replace(used(), networks_s={NAME: 3.0, "other": 3.0})
    reason = share_window("gpu", measured(both), 300.0, 50.0)
    assert isinstance(reason, str) and "several networks ran at the same time" in reason
    cpu = share_window("cpu", measured(both), 300.0, 50.0)
    assert isinstance(cpu, WindowShares)
    assert (cpu.parts["own"].joules, cpu.parts["concurrent"].joules) == pytest.approx((75.0, 75.0))


@pytest.mark.parametrize(
    ("time", "component", "reason"),
    [
        (None, "cpu", "the processor time of the network is not known"),
        (ProcessorTime(busy_s=2.0, own_s=1.0, processors=2), "cpu", "the processor time of the network is not known"),
        (dataclasses.replace(used(), networks_s={"another": 1.0}), "cpu", "the processor time of the network"),
        (used(), "other", "nothing shows who uses the component other"),
    ],
    ids=["no times", "a journal of an earlier version", "another network", "unknown component"],
)
def test_there_is_a_reason_instead_of_a_share(time: ProcessorTime | None, component: str, reason: str) -> None:
    result = share_window(component, measured(time), 10.0, 1.0)
    assert isinstance(result, str) and reason in result


def test_the_processor_time_of_the_consumers() -> None:
    time = ProcessorTime(
        busy_s=10.0, own_s=5.0, processors=4, networks_s={NAME: 3.0, "b": 1.0}, services_s=0.5, system_s=0.25
    )
    assert (time.measuring_s, time.others_s) == (1.5, 4.25)
    assert seconds_of(measured(time)) == {
        "own": 3.0, "concurrent": 1.0, "measuring": 1.5, "others": 4.25, "system": 0.25
    }  # fmt: skip
    rounded = dataclasses.replace(time, busy_s=5.0)
    assert rounded.others_s == 0.0, "the machine's time is rounded, the run's is exact"


def test_a_journal_keeps_the_times_and_reads_those_of_an_earlier_version() -> None:
    line = encode_line(measured(used()))
    assert decode_line(line) == measured(used())
    for name in ("networks_s", "services_s", "system_s"):
        del line["processor_time"][name]
    earlier = decode_line(line)
    assert isinstance(earlier, Window) and earlier.processor_time is not None
    assert dict(earlier.processor_time.networks_s) == {}


# Runs

Change = Callable[[World], None]


def run(
    time: ProcessorTime | None, sensors: tuple[SensorRecord, ...] = (CPU,), change: Change = lambda _: None
) -> RunResult:
    """Return the result of a run of one configuration, in whose measure windows each processor time was used."""
    world = make_world(sensors, configurations=(NAME,), batch_sizes=(1,), rounds=3)
    assert world.record is not None
    windows = tuple(
        dataclasses.replace(one, processor_time=time) if one.kind == "measure" else one for one in world.record.windows
    )
    world.record = dataclasses.replace(world.record, windows=windows)
    change(world)
    return analyze_run(world.record, ListSource(world.scrapes()))


def test_attributed_energy_is_the_network_s_part_of_net() -> None:
    result = run(used(), (CPU, DRAM))
    (group,) = result.groups
    total = group.total
    assert total.net is not None and total.attributed is not None and total.attributed_missing == ""
    assert total.attributed.value == pytest.approx(0.6 * total.net.value, rel=1e-9)
    for energy in (total, *group.components):
        assert energy.attributed is not None and energy.attributed.expanded is not None
        own = [(one.parts["own"], count) for one, count in zip(energy.shares, [group.inferences / 3] * 3, strict=True)]
        low = sum(part.low_joules / count for part, count in own) / 3
        high = sum(part.high_joules / count for part, count in own) / 3
        value, expanded = energy.attributed.value, energy.attributed.expanded
        assert value - expanded <= low and high <= value + expanded, "± contains the bound"
        assert ATTRIBUTION in {line.name for line in energy.attributed.budget}
    for index in group.windows:
        (whole,) = (one for one in total.shares if one.window == index)
        parts = [one for component in group.components for one in component.shares if one.window == index]
        assert whole.joules == pytest.approx(sum(one.joules for one in parts), rel=1e-12)


def test_the_bound_is_that_of_a_machine_whose_workloads_were_compared() -> None:
    """The ratio of memory is that of its component: it was not measured."""

    def compared(world: World) -> None:
        assert world.record is not None
        header = world.record.header
        exporters = tuple(dataclasses.replace(one, workload_ratios={"cpu": 1.2}) for one in header.exporters)
        world.record = dataclasses.replace(world.record, header=dataclasses.replace(header, exporters=exporters))

    (cpu,), (narrow,) = (run(used(), (CPU,), change).groups for change in (lambda _: None, compared))
    assert {one.ratio for one in cpu.total.shares} == {2.0} and {one.ratio for one in narrow.total.shares} == {1.2}
    for wide, own in zip(cpu.total.shares, narrow.total.shares, strict=True):
        low, high = share_bounds(0.6, 1.2)
        part = own.parts["own"]
        # The rounding of the kernel is in the bound, too.
        assert (part.low_joules, part.high_joules) == pytest.approx(
            (low * own.active_joules, high * own.active_joules), rel=0.02
        )
        assert wide.parts["own"].low_joules < part.low_joules < part.high_joules < wide.parts["own"].high_joules
    result = run(used(), (CPU, DRAM), compared)
    assert "programs differ by a factor of 2 in watts per processor" in " ".join(to_text.render_table(result).split())
    with_gpu = run(used(), (CPU, GPU), compared)
    assert "programs differ by a factor of 1.2 in watts per processor" in " ".join(
        to_text.render_table(with_gpu).split()
    )
    assert "programs differ" not in to_text.render_table(run(used(), (GPU,), compared))
    by_component = {one.name: {each.ratio for each in one.shares} for one in result.groups[0].components}
    assert by_component == {"cpu": {1.2}, "memory": {2.0}}


def test_a_network_that_has_the_machine_for_itself_has_its_net_energy() -> None:
    result = run(used(1e9, 0.0, 0.0, 0.0))
    total = result.groups[0].total
    assert total.net is not None and total.attributed is not None
    assert total.attributed.value == pytest.approx(total.net.value)
    assert total.attributed.expanded == pytest.approx(total.net.expanded, rel=1e-6)


def _elsewhere(world: World) -> None:
    assert world.record is not None
    header = world.record.header
    provenance = {**header.provenance, "host": "another"}
    world.record = dataclasses.replace(world.record, header=dataclasses.replace(header, provenance=provenance))


def _server(world: World) -> None:
    assert world.record is not None
    items = tuple(dataclasses.replace(item, runtime="openai") for item in world.record.header.configurations)
    header = dataclasses.replace(world.record.header, configurations=items)
    world.record = dataclasses.replace(world.record, header=header, configurations=())


def _without_idle(world: World) -> None:
    assert world.record is not None
    windows = tuple(one for one in world.record.windows if one.kind != "idle")
    windows = tuple(dataclasses.replace(one, index=number) for number, one in enumerate(windows))
    world.record = dataclasses.replace(world.record, windows=windows)


def _busy_idle(world: World) -> None:
    assert world.record is not None
    time = ProcessorTime(busy_s=8.0, own_s=0.0, processors=4)
    windows = tuple(
        dataclasses.replace(one, processor_time=time) if one.kind == "idle" else one for one in world.record.windows
    )
    world.record = dataclasses.replace(world.record, windows=windows)


@pytest.mark.parametrize(
    ("time", "sensors", "change", "reason"),
    [
        (None, (CPU,), lambda _: None, "the processor time of the network is not known"),
        (used(), (CPU,), _elsewhere, "does not measure the machine on which the network runs"),
        (used(), (dataclasses.replace(CPU, method="emulated"),), lambda _: None, "does not measure the machine"),
        (used(), (CPU,), _server, "the network runs in a server, whose processes are not known"),
        (used(), (CPU,), _without_idle, "idle power is not known"),
        (used(), (CPU,), _busy_idle, "the machine was busy in 1 of 1 idle window [idle_busy]"),
    ],
    ids=["earlier version", "remote exporter", "emulated", "server", "no idle window", "busy idle windows"],
)
def test_without_a_usage_or_an_idle_power_there_is_no_number_and_a_reason(
    time: ProcessorTime | None, sensors: tuple[SensorRecord, ...], change: Change, reason: str
) -> None:
    result = run(time, sensors, change)
    (group,) = result.groups
    assert group.total.gross is not None and group.total.attributed is None and group.total.shares == ()
    assert reason in group.total.attributed_missing
    assert reason in " ".join(to_text.render_table(result).split())
    assert reason in to_json.render_json(result)


def test_every_report_has_the_third_basis() -> None:
    result = run(used(), (CPU, DRAM, GPU))
    text = to_text.render_table(result, width=160, budget=True)
    assert "net, attributed: mJ per inference" in text and "Whose energy, mJ per inference" in text
    assert f"{NAME}, batch 1, attributed: " in text
    header = to_csv.render_csv(result).splitlines()[0]
    assert "total_attributed_joules_per_inference,total_attributed_uncertainty_joules_per_inference" in header
    energy: Mapping[str, Any] = to_json.result_document(result)["results"][0]["energy"]["total"]
    assert energy["attributed"]["unit"] == "J"
    for one in energy["shares"]:
        parts = math.fsum([one["idle_joules"], *(one[name]["joules"] for name in CONSUMERS)])
        assert parts == pytest.approx(one["joules"], rel=1e-9)


# Other load


@pytest.mark.parametrize(
    ("share", "severity"),
    [(0.004, None), (0.006, "info"), (0.019, "info"), (0.021, "warning"), (0.099, "warning"), (0.11, "error")],
)
def test_the_severity_of_other_work_is_that_of_its_share_of_the_active_energy(
    share: float, severity: str | None
) -> None:
    others_s = 100.0 * share
    result = run(used(own_s=100.0 - others_s - 1.0, others_s=others_s))
    findings = [item for item in result.findings if item.reason == "other_load"]
    assert {item.severity for item in findings} == ({severity} if severity else set())
    for item in findings:
        (one,) = (one for one in result.groups[0].total.shares if one.window == item.window)
        assert item.evidence["joules"] == pytest.approx(one.parts["others"].joules)
        assert item.evidence["share"] == pytest.approx(share)
        assert float(item.evidence["low_joules"]) < one.parts["others"].joules < float(item.evidence["high_joules"])
        assert " J (" in item.text and "gross and net energy include it, attributed energy does not" in item.text


def test_what_measures_and_the_kernel_are_not_other_work() -> None:
    result = run(used(own_s=1.0, others_s=0.0, measuring_s=5.0, system_s=5.0))
    assert "other_load" not in {item.reason for item in result.findings}
    services = dataclasses.replace(used(1.0, 0.0, 0.0, 0.0), busy_s=6.0, services_s=5.0)
    assert "other_load" not in {item.reason for item in run(services).findings}


def test_the_load_of_a_gpu_is_in_the_active_energy_of_other_work() -> None:
    """Half of the time of the processors, but a small part of the energy: the GPU is the network's."""
    time = used(own_s=5.0, others_s=5.0, measuring_s=0.0, system_s=0.0)
    alone = next(item for item in run(time, (CPU,)).findings if item.reason == "other_load")
    with_gpu = next(item for item in run(time, (CPU, GPU)).findings if item.reason == "other_load")
    assert float(with_gpu.evidence["share"]) < float(alone.evidence["share"]) == pytest.approx(0.5)


def test_without_joules_other_work_is_a_share_of_the_processor_time_and_the_reason_is_stated() -> None:
    result = run(used(), (CPU,), _without_idle)
    finding = next(item for item in result.findings if item.reason == "other_load")
    assert (finding.severity, finding.evidence["share"]) == ("error", pytest.approx(0.3))
    assert "joules" not in finding.evidence
    assert "(its energy is not known, because idle power is not known" in finding.text


def test_other_work_is_named_if_the_exporter_knows_it() -> None:
    def named(world: World) -> None:
        assert world.record is not None
        largest = {"nginx.service": 2.5, "session-3.scope": 0.25}
        windows = tuple(dataclasses.replace(one, other_workloads=largest) for one in world.record.windows)
        world.record = dataclasses.replace(world.record, windows=windows)

    finding = next(item for item in run(used(), (CPU,), named).findings if item.reason == "other_load")
    assert "Largest: nginx.service (2.5 s of a processor), session-3.scope (0.25 s of a processor)" in finding.text
    assert (finding.evidence["workload_1"], finding.evidence["workload_2"]) == ("nginx.service", "session-3.scope")


def test_less_than_the_kernel_counts_is_no_finding() -> None:
    result = run(used(own_s=0.1, others_s=LEAST_LOAD_S - 1e-6, measuring_s=0.0, system_s=0.0))
    assert "other_load" not in {item.reason for item in result.findings}
