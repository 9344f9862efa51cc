"""The runner with a fake clock, which only moves when something works or sleeps: no test takes real time."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from joulewatch_harness.errors import NetworkError, RecordError, UnsupportedBatchError
from joulewatch_harness.network import Phases
from joulewatch_harness.plan.parsing import make_plan
from joulewatch_harness.plan.plan import Plan
from joulewatch_harness.plan.steps import Step, steps
from joulewatch_harness.records import (
    Configuration,
    Edge,
    EdgeCounter,
    Line,
    Note,
    RunEnd,
    SensorRecord,
    Setup,
    Window,
    WindowKind,
)
from joulewatch_harness.runner.runner import Runner
from joulewatch_harness.runner.stopping import StopRequest
from support.clock import NS_PER_S, FakeClock

UNIX_S = 1_700_000_000
"""When the machine started."""


def machine_clock() -> FakeClock:
    """Return a clock whose readings take 100 ns each, as on a real machine."""
    return FakeClock(now_ns=5 * NS_PER_S, unix_ns=(UNIX_S + 5) * NS_PER_S, reading_ns=100)


@dataclass
class FakeEdges:
    """Counters of a machine that draws 100 W; a fetch takes 2 ms."""

    clock: FakeClock
    joules_at: Callable[[float], float] = lambda at_s: 100.0 * at_s
    """The counter, by the seconds since ``UNIX_S``."""
    dead_after: int = 10**9
    fetched: int = 0

    def fetch(self) -> FakeFetched:
        requested_s = self.clock.time_ns() * 1e-9
        self.clock.advance(0.001)
        read_s = self.clock.time_ns() * 1e-9
        self.clock.advance(0.001)
        self.fetched += 1
        return FakeFetched(
            requested_s=requested_s,
            read_s=read_s,
            joules=self.joules_at(read_s - UNIX_S),
            answered_s=self.clock.time_ns() * 1e-9,
            dead=self.fetched > self.dead_after,
        )


@dataclass(kw_only=True)
class FakeFetched:
    requested_s: float
    read_s: float
    joules: float
    answered_s: float
    dead: bool

    def parse(self) -> Edge:
        counter = EdgeCounter(
            exporter="a:1",
            scope="device",
            collector="rapl",
            component="cpu",
            device="s0",
            domain="package",
            energy_joules=self.joules,
            read_at_s=self.read_s,
        )
        return Edge(
            requested_at_s=self.requested_s,
            answered_at_s=self.answered_s,
            counters=() if self.dead else (counter,),
            missing={"a:1": "refused"} if self.dead else {},
        )


class FakeNetwork:
    """A batch takes ``per_batch_s + per_item_s * batch``."""

    def __init__(self, clock: FakeClock, per_batch_s: float = 0.001, per_item_s: float = 0.0001) -> None:
        self.clock = clock
        self.per_batch_s = per_batch_s
        self.per_item_s = per_item_s
        self.batch = 0
        self.batches_run = 0
        self.longest_call_s = 0.0
        self.marks = True
        self.closed = 0
        self.prepare_error: Callable[[int], Exception | None] = lambda _batch: None
        self.load_error: Exception | None = None
        self.on_run: Callable[[], None] = lambda: None

    def describe(self) -> Mapping[str, Any]:
        return {"precision": "fp32", "runtime_version": "9", "provider": "P", "cores": 4}

    def load(self) -> None:
        if self.load_error is not None:
            raise self.load_error

    def prepare(self, batch: int) -> None:
        error = self.prepare_error(batch)
        if error is not None:
            raise error
        self.batch = batch

    def run(self, batches: int, phases: Phases) -> None:
        self.on_run()
        began_ns = self.clock.now_ns
        for _ in range(batches):
            start_ns = self.clock.now_ns
            self.clock.advance(self.per_batch_s + self.per_item_s * self.batch)
            phases.add("execute", start_ns, self.clock.now_ns)
            if self.marks:
                phases.batch_ends_ns.append(self.clock.now_ns)
        self.batches_run += batches
        self.longest_call_s = max(self.longest_call_s, (self.clock.now_ns - began_ns) * 1e-9)

    def close(self) -> None:
        self.closed += 1


@dataclass
class Lines:
    """Journal, recording, delivery and reporter in one; checks the order in which they get a line."""

    lines: list[Line] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    delivered: list[Window] = field(default_factory=list)
    full_after: int = 10**9

    def append(self, line: Line) -> None:
        if len(self.lines) >= self.full_after:
            raise RecordError("journal.jsonl: No space left on device")
        self.lines.append(line)

    def add_line(self, line: Line) -> None:
        assert self.lines[-1] is line, "the recording gets a line after the journal"

    def configuration(self, configuration: Configuration) -> None:
        assert self.lines[-1] is configuration

    def window_opened(self, kind: WindowKind, configuration: str, batch_size: int, at_s: float) -> None:
        self.shown.append(f"opened {kind}")

    def window(self, window: Window) -> None:
        assert window in self.lines, "a window is delivered after the journal has it"
        self.delivered.append(window)

    def end(self, end: RunEnd) -> None:
        assert self.lines[-1] is end

    def begin(self, step: Step, text: str) -> None: ...

    def tick(self) -> None: ...

    def done(self, step: Step, text: str) -> None:
        self.shown.append(text)

    def note(self, text: str) -> None:
        self.shown.append(text)

    def windows(self, kind: str) -> list[Window]:
        return [line for line in self.lines if isinstance(line, Window) and line.kind == kind]

    def notes(self) -> list[Note]:
        return [line for line in self.lines if isinstance(line, Note)]


@dataclass
class Bench:
    """A runner with fakes for everything that it needs."""

    plan: Plan
    clock: FakeClock
    networks: dict[str, FakeNetwork]
    lines: Lines
    edges: FakeEdges
    stop: StopRequest
    refresh_s: float | None = 0.01
    sensors: tuple[SensorRecord, ...] = ()

    def run(self) -> RunEnd:
        pairs = [(item, self.networks[item.name]) for item in self.plan.configurations]
        return Runner(
            self.plan,
            steps(self.plan, self.refresh_s),
            pairs,
            run="20260101T000000Z-abcdef",
            journal=self.lines,
            edges=self.edges,
            delivery=self.lines,
            recording=self.lines,
            reporter=self.lines,
            stop=self.stop,
            refresh_s=self.refresh_s,
            sensors=self.sensors,
            clock=self.clock,
        ).run()


def make_bench(**keys: Any) -> Bench:
    clock = machine_clock()
    plan = make_plan(
        {
            "configurations": [
                {"name": name, "network": f"{name}.onnx", "precision": "fp32"} for name in ("one", "two")
            ],
            "batch_sizes": [1, 8],
            "window_s": 1.0,
            **({} if "max_relative_uncertainty" in keys else {"rounds": 3}),
            **keys,
        },
        "test",
    )
    networks = {item.name: FakeNetwork(clock) for item in plan.configurations}
    return Bench(plan, clock, networks, Lines(), FakeEdges(clock), StopRequest())


def test_a_run_has_three_idle_windows_and_one_window_per_cell_and_round() -> None:
    bench = make_bench()
    end = bench.run()
    assert end.status == "complete"
    assert [window.flags for window in bench.lines.windows("idle")] == [(), ("loaded",), ("loaded",)]
    measured = bench.lines.windows("measure")
    assert sorted((w.configuration, w.batch_size, w.repeat) for w in measured) == [
        (name, size, repeat) for name in ("one", "two") for size in (1, 8) for repeat in range(3)
    ]
    assert len(bench.lines.windows("warmup")) == 4
    windows = [line for line in bench.lines.lines if isinstance(line, Window)]
    assert [window.index for window in windows] == list(range(len(windows)))
    assert bench.lines.delivered == windows
    assert isinstance(bench.lines.lines[-1], RunEnd)
    assert [network.closed for network in bench.networks.values()] == [1, 1]


def test_edges_are_outside_the_window_and_close_to_it() -> None:
    bench = make_bench()
    bench.run()
    for window in bench.lines.windows("measure") + bench.lines.windows("idle"):
        assert window.start_edge is not None
        assert window.end_edge is not None
        before, after = window.start_edge.counters[0].read_at_s, window.end_edge.counters[0].read_at_s
        assert before <= window.start_s < window.end_s <= after
        assert window.start_s - before < 0.005
        assert after - window.end_s < 0.005
        assert window.end_s - window.start_s == pytest.approx(window.duration_s, abs=1e-5)
        assert 0 < window.clock_error_s < 1e-6


def test_windows_have_the_length_of_the_plan_and_calls_take_50_to_100_ms() -> None:
    bench = make_bench()
    bench.run()
    for window in bench.lines.windows("measure"):
        assert 1.0 <= window.duration_s < 1.11
        assert window.inferences == window.batches * window.batch_size
        assert "too_short" not in window.flags
    assert all(0.05 < network.longest_call_s < 0.12 for network in bench.networks.values())


@dataclass
class RunCall:
    """One call of a network's ``run``, in Unix seconds."""

    start_s: float
    end_s: float
    network: str
    batch_size: int
    batches: int


def record_load(bench: Bench) -> list[RunCall]:
    load: list[RunCall] = []
    for name, network in bench.networks.items():
        run = network.run

        def recorded(
            batches: int,
            phases: Phases,
            name: str = name,
            network: FakeNetwork = network,
            run: Callable[[int, Phases], None] = run,
        ) -> None:
            start_s = bench.clock.unix_ns / NS_PER_S
            run(batches, phases)
            load.append(RunCall(start_s, bench.clock.unix_ns / NS_PER_S, name, network.batch, batches))

        network.run = recorded  # type: ignore[method-assign]
    return load


def test_every_window_lies_inside_the_load_of_its_own_cell() -> None:
    """The settle time passes under load before and after each window, also in the rounds after the first one."""
    bench = make_bench(settle_s=2, warmup_s=2)
    load = record_load(bench)
    bench.run()
    windows = bench.lines.windows("measure")
    assert {window.repeat for window in windows} == {0, 1, 2}
    for window in windows:
        own = [call for call in load if (call.network, call.batch_size) == (window.configuration, window.batch_size)]
        before = [call for call in own if window.start_s - 2.1 < call.start_s < window.start_s]
        after = [call for call in own if window.end_s <= call.start_s < window.end_s + 2.0]
        before_s = sum(call.end_s - call.start_s for call in before)
        after_s = sum(call.end_s - call.start_s for call in after)
        assert before_s == pytest.approx(2.0, abs=0.11), f"before round {window.repeat + 1}"
        assert after_s == pytest.approx(2.0, abs=0.11), f"after round {window.repeat + 1}"


def test_the_load_settles_after_a_warm_up_that_is_shorter() -> None:
    """The counter at the start of the first round's windows is as old as in the others."""
    bench = make_bench(settle_s=3, warmup_s=0.3, max_warmup_s=0.9)
    load = record_load(bench)
    bench.run()
    for window in bench.lines.windows("measure"):
        own = [call for call in load if (call.network, call.batch_size) == (window.configuration, window.batch_size)]
        before = [call for call in own if window.start_s - 3.1 < call.start_s < window.start_s]
        assert sum(call.end_s - call.start_s for call in before) >= 3.0, f"before round {window.repeat + 1}"


def test_at_least_three_batches_run_before_every_window() -> None:
    """Also where the plan has no settle time."""
    bench = make_bench(settle_s=0, batch_sizes=[1], max_window_s=5)
    for network in bench.networks.values():
        network.per_batch_s = 2.0
    load = record_load(bench)
    bench.run()
    previous_end_s = 0.0
    for window in bench.lines.windows("measure"):
        before = [call for call in load if previous_end_s <= call.start_s and call.end_s <= window.start_s]
        assert sum(call.batches for call in before) >= 3
        assert {call.network for call in before} == {window.configuration}
        previous_end_s = window.end_s


def test_counts_latencies_and_phases_cover_the_window() -> None:
    bench = make_bench()
    bench.run()
    for window in bench.lines.windows("measure"):
        batch_s = 0.001 + 0.0001 * window.batch_size
        assert window.latency is not None
        assert window.latency.count == window.batches
        assert window.latency.p50_s == pytest.approx(batch_s, rel=1e-3)
        assert window.latency.p99_s == pytest.approx(batch_s, rel=1e-3)
        assert window.duration_s == pytest.approx(window.batches * batch_s, rel=1e-3)
        assert window.phases["execute"].count == window.batches
        assert sum(phase.total_s for phase in window.phases.values()) == pytest.approx(window.duration_s, rel=1e-9)


def test_without_marks_the_latency_is_the_mean_of_each_call() -> None:
    bench = make_bench()
    for network in bench.networks.values():
        network.marks = False
    bench.run()
    for window in bench.lines.windows("measure"):
        assert window.latency is not None
        assert window.latency.count == window.batches
        assert window.latency.p50_s == pytest.approx(0.001 + 0.0001 * window.batch_size, rel=1e-3)


def test_slow_batches_extend_a_window_up_to_the_limit_then_it_is_flagged() -> None:
    bench = make_bench(max_window_s=5)
    bench.networks["one"].per_batch_s = 0.3
    bench.networks["two"].per_batch_s = 2.0
    bench.run()
    for window in bench.lines.windows("measure"):
        if window.configuration == "one":
            assert window.batches == 10
            assert window.flags == ()
        else:
            assert window.duration_s < 7.1
            assert "too_short" in window.flags


def test_a_window_shorter_than_20_refresh_periods_is_flagged() -> None:
    bench = make_bench(max_window_s=2)
    bench.refresh_s = 1.0
    bench.run()
    assert all("too_short" in window.flags for window in bench.lines.windows("measure"))


def test_a_warm_up_that_ends_with_a_trend_is_flagged_and_its_measure_windows_are_not() -> None:
    """Whether the trend changes the result follows from the rounds, in the analysis."""
    bench = make_bench(batch_sizes=[8])
    slowing = bench.networks["one"]

    def slow_down() -> None:
        slowing.per_batch_s *= 1.05

    slowing.on_run = slow_down
    bench.run()
    assert {w.configuration: w.flags for w in bench.lines.windows("warmup")} == {"one": ("not_steady",), "two": ()}
    assert {w.flags for w in bench.lines.windows("measure") if w.configuration == "two"} == {()}
    assert not any("not_steady" in window.flags for window in bench.lines.windows("measure"))


PACKAGE = SensorRecord(
    exporter="a:1", scope="device", collector="rapl", component="cpu", device="s0", domain="package", method="counter",
    refresh_s=0.001,
)  # fmt: skip
RAMP_S = 1.5


def warm_up_of_a_slow_ramp(*, refresh_s: float) -> Window:
    """Return the warm-up of a load with a constant rate whose power rises for some time after its start."""
    bench = make_bench(batch_sizes=[8], idle_s=0, warmup_s=0.6, max_warmup_s=6.0)
    bench.sensors = (dataclasses.replace(PACKAGE, refresh_s=refresh_s),)

    def joules(at_s: float) -> float:
        ramp_s = min(at_s - 5.0, RAMP_S)
        return 50.0 * at_s + 50.0 * (ramp_s * ramp_s / (2 * RAMP_S) + max(at_s - 5.0 - RAMP_S, 0.0))

    bench.edges.joules_at = joules
    bench.run()
    return bench.lines.windows("warmup")[0]


def test_a_warm_up_lasts_until_the_power_is_steady() -> None:
    """Where a device sensor is fast enough for the spans: 0.6 s / 40 = 15 ms."""
    assert RAMP_S < warm_up_of_a_slow_ramp(refresh_s=0.001).duration_s < RAMP_S + 0.8
    assert warm_up_of_a_slow_ramp(refresh_s=0.015).duration_s > RAMP_S
    assert warm_up_of_a_slow_ramp(refresh_s=0.016).duration_s < 1.0


def test_a_warm_up_without_its_counter_is_judged_by_the_rates() -> None:
    bench = make_bench(batch_sizes=[8], idle_s=0)
    bench.sensors = (PACKAGE,)
    bench.edges.dead_after = 7
    assert bench.run().status == "complete"
    assert all(window.flags == () for window in bench.lines.windows("warmup"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UnsupportedBatchError("fixed batch axis of 1"), "unsupported_batch"),
        (NetworkError("gone"), "network_error"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("vendor says no"), "runtime_error"),
        (OSError("device lost"), "runtime_error"),
    ],
)
def test_a_batch_size_that_fails_has_one_note_and_the_others_are_measured(error: Exception, reason: str) -> None:
    bench = make_bench()
    bench.networks["one"].prepare_error = lambda batch: error if batch == 8 else None
    assert bench.run().status == "complete"
    (note,) = bench.lines.notes()
    assert (note.reason, note.configuration, note.batch_size) == (reason, "one", 8)
    assert len(bench.lines.windows("measure")) == 9


def test_an_error_during_a_window_discards_the_window() -> None:
    bench = make_bench()
    network = bench.networks["one"]

    def fail() -> None:
        if network.batches_run > 3000:
            raise RuntimeError("device lost")

    network.on_run = fail
    assert bench.run().status == "complete"
    assert bench.lines.notes()[0].reason == "runtime_error"
    assert {(w.configuration, w.batch_size) for w in bench.lines.windows("measure")} >= {("two", 1), ("two", 8)}
    assert all(window.batches > 0 for window in bench.lines.windows("measure"))


def test_a_network_that_does_not_load_is_excluded() -> None:
    bench = make_bench()
    bench.networks["one"].load_error = NetworkError("no device")
    assert bench.run().status == "complete"
    assert bench.lines.notes()[0].reason == "network_error"
    assert {window.configuration for window in bench.lines.windows("measure")} == {"two"}


def test_a_run_without_a_measured_window_has_failed() -> None:
    bench = make_bench()
    for network in bench.networks.values():
        network.prepare_error = lambda _batch: UnsupportedBatchError("no")
    assert bench.run().status == "failed"


def test_the_progress_shows_each_step_with_its_result() -> None:
    bench = make_bench(batch_sizes=[8], phases="separate", idle_s=5)
    bench.networks["one"].prepare_error = lambda _batch: UnsupportedBatchError("fixed batch axis")
    bench.run()
    assert [text for text in bench.lines.shown if not text.startswith("opened")] == [
        "idle, no network loaded: 5 s",
        "2 of 2 networks loaded",
        "idle, networks loaded: 5 s",
        "one batch 8 excluded: fixed batch axis",
        "one batch 8 round 1: excluded",
        "two batch 8 round 1: 4,444 inferences/s, p50 1.8 ms",
        "two batch 8 round 2: 4,444 inferences/s, p50 1.8 ms",
        "two batch 8 round 3: 4,444 inferences/s, p50 1.8 ms",
        "one batch 8 phases: skipped",
        "two batch 8: recording phases changes throughput by +0.0 ± 0.0 %; the energy windows record no phases",
        "two batch 8 phases: recording changes throughput by +0.0 ± 0.0 %",
        "idle, networks loaded: 5 s",
    ]


def test_configurations_are_written_as_loaded() -> None:
    bench = make_bench()
    bench.run()
    loaded = [line for line in bench.lines.lines if isinstance(line, Configuration)]
    assert [item.name for item in loaded] == ["one", "two"]
    assert (loaded[0].actual_precision, loaded[0].provider, loaded[0].details) == ("fp32", "P", {"cores": "4"})


def test_a_stop_during_a_window_keeps_the_window_with_a_flag_and_ends_the_run() -> None:
    bench = make_bench()
    calls = iter(range(10**9))

    def stop_later() -> None:
        if next(calls) == 26:
            bench.stop.requested = True

    for network in bench.networks.values():
        network.on_run = stop_later
    end = bench.run()
    assert end.status == "interrupted"
    last = bench.lines.windows("measure")[-1]
    assert "interrupted" in last.flags
    assert last.batches > 0
    assert last.end_edge is not None
    assert bench.lines.lines[-1] is end
    assert all(network.closed for network in bench.networks.values())


def test_a_stop_during_an_idle_window_keeps_the_window() -> None:
    bench = make_bench(idle_s=60)
    slept = iter(range(10**9))
    sleep = bench.clock.sleep

    def stop_later(duration_s: float) -> None:
        sleep(duration_s)
        bench.stop.requested = next(slept) >= 100

    bench.clock.sleep = stop_later  # type: ignore[method-assign]
    assert bench.run().status == "interrupted"
    (window,) = bench.lines.windows("idle")
    assert window.flags == ("interrupted",)
    assert 5 < window.duration_s < 15


def test_a_stop_during_a_warm_up_discards_the_warm_up() -> None:
    bench = make_bench()
    bench.networks["one"].on_run = bench.networks["two"].on_run = lambda: setattr(bench.stop, "requested", True)
    assert bench.run().status == "interrupted"
    assert bench.lines.windows("warmup") == bench.lines.windows("measure") == []


def test_an_exporter_that_stops_answering_has_one_note_and_the_run_continues() -> None:
    bench = make_bench()
    bench.edges.dead_after = 9
    assert bench.run().status == "complete"
    assert [note.reason for note in bench.lines.notes()] == ["exporter_lost"]
    last = bench.lines.windows("measure")[-1]
    assert last.end_edge is not None
    assert last.end_edge.missing == {"a:1": "refused"}
    assert len(bench.lines.windows("measure")) == 12


def test_an_exporter_that_answers_again_has_a_note() -> None:
    bench = make_bench()
    fetch = bench.edges.fetch

    def flaky() -> FakeFetched:
        edge = fetch()
        edge.dead = 9 <= bench.edges.fetched < 15
        return edge

    bench.edges.fetch = flaky  # type: ignore[method-assign]
    bench.run()
    assert [note.reason for note in bench.lines.notes()] == ["exporter_lost", "exporter_back"]


def test_a_full_disk_ends_the_run_and_keeps_the_lines_before() -> None:
    bench = make_bench()
    bench.lines.full_after = 12
    with pytest.raises(RecordError, match="No space left"):
        bench.run()
    assert len(bench.lines.lines) == 12
    assert all(network.closed for network in bench.networks.values())


def test_a_wall_clock_that_is_set_during_a_window_has_a_note() -> None:
    bench = make_bench()
    calls = iter(range(10**9))

    def set_clock() -> None:
        if next(calls) == 60:
            bench.clock.step_wall_clock(2.0)

    bench.networks["one"].on_run = set_clock
    bench.run()
    assert [note.reason for note in bench.lines.notes()] == ["clock_stepped"]
    assert all(window.duration_s < 1.2 for window in bench.lines.windows("measure"))


def test_an_idle_time_of_zero_gives_no_idle_window() -> None:
    bench = make_bench(idle_s=0)
    bench.run()
    assert bench.lines.windows("idle") == []


# Scenarios


def test_each_query_of_a_single_stream_is_a_call_of_its_own() -> None:
    bench = make_bench(scenario="single_stream")
    calls: list[int] = []
    for network in bench.networks.values():
        run = network.run
        network.run = lambda batches, phases, run=run: (calls.append(batches), run(batches, phases))[1]  # type: ignore[misc, method-assign]
    assert [item.name for item in bench.plan.configurations] == ["one/single_stream", "two/single_stream"]
    assert bench.run().status == "complete"
    # Warm-ups run back to back in every scenario.
    assert calls.count(1) > 0.9 * len(calls)
    for window in bench.lines.windows("measure"):
        batch_s = 0.001 + 0.0001 * window.batch_size
        assert window.latency is not None and window.latency.count == window.batches
        assert window.latency.p99_s == pytest.approx(batch_s, rel=1e-2)


def test_a_server_waits_for_queries_and_measures_latency_from_their_arrival() -> None:
    bench = make_bench(scenario="server", server_rate_per_s=100, window_s=4)
    assert bench.run().status == "complete"
    for window in bench.lines.windows("measure"):
        batch_s = 0.001 + 0.0001 * window.batch_size
        assert window.flags == ()
        assert window.batches / window.duration_s == pytest.approx(100, rel=0.25)
        assert window.latency is not None and window.latency.count == window.batches
        assert window.latency.min_s == pytest.approx(batch_s, rel=1e-2)
        assert window.latency.max_s > 1.2 * batch_s
        assert window.phases["idle"].total_s == pytest.approx(window.duration_s * (1 - 100 * batch_s), rel=0.15)
    first = {window.repeat: window.batches for window in bench.lines.windows("measure") if window.batch_size == 1}
    assert len(set(first.values())) > 1, "each round has its own arrivals"
    again = make_bench(scenario="server", server_rate_per_s=100, window_s=4)
    again.run()
    assert [w.batches for w in again.lines.windows("measure")] == [w.batches for w in bench.lines.windows("measure")]


def test_a_server_that_cannot_keep_up_is_flagged_and_noted_once_per_cell() -> None:
    bench = make_bench(scenario="server", server_rate_per_s=600)
    assert bench.run().status == "complete"
    flagged = {(w.batch_size, "overloaded" in w.flags) for w in bench.lines.windows("measure")}
    assert flagged == {(1, False), (8, True)}, "1.8 ms a query is too slow for 600/s, 1.1 ms is not"
    notes = [note for note in bench.lines.notes() if note.reason == "overloaded"]
    assert [(note.configuration, note.batch_size) for note in notes] == [("one/server-600", 8), ("two/server-600", 8)]
    assert "is invalid: 600 queries/s were requested, 55" in notes[0].text


def test_the_scenarios_of_one_network_are_separate_configurations() -> None:
    bench = make_bench(scenario=["offline", "server"], server_rate_per_s=50, batch_sizes=[1])
    for name in list(bench.networks):
        bench.networks[name] = FakeNetwork(bench.clock)
    assert bench.run().status == "complete"
    loaded = {item.name: item.scenario for item in bench.lines.lines if isinstance(item, Configuration)}
    assert loaded == {"one": "", "one/server-50": "server", "two": "", "two/server-50": "server"}
    assert {w.configuration for w in bench.lines.windows("measure")} == set(loaded)


# Rounds until the target


def test_a_cell_has_rounds_until_its_energy_is_known_to_the_target_and_the_journal_has_the_reason() -> None:
    """``two`` needs 8 % more time and energy in every second round."""
    bench = make_bench(max_relative_uncertainty=0.05, batch_sizes=[8])
    two = bench.networks["two"]

    def alternate() -> None:
        rounds = sum(window.configuration == "two" for window in bench.lines.windows("measure"))
        two.per_batch_s = 0.00115 if rounds % 2 else 0.001

    two.on_run = alternate
    assert bench.run().status == "complete"
    measured = [window.configuration for window in bench.lines.windows("measure")]
    assert (measured.count("one"), measured.count("two")) == (5, 8)
    notes = [(note.reason, note.configuration, note.batch_size, note.text) for note in bench.lines.notes()]
    assert notes == [
        ("rounds_ended", "one", 8, "±0.0 % after 5 rounds"),
        ("rounds_ended", "two", 8, "±4.1 % after 8 rounds"),
    ]
    assert not any("after 5 rounds" in text for text in bench.lines.shown), "for the analysis, not for the display"


def test_a_run_ends_at_its_time_limit_which_excludes_setups() -> None:
    bench = make_bench(max_relative_uncertainty="1%", max_run_s=60, idle_s=2, batch_sizes=[8])
    noise = random.Random(1)
    for network in bench.networks.values():

        def tune_once(
            batch: int, network: FakeNetwork = network, prepare: Callable[[int], None] = network.prepare
        ) -> None:
            if network.batch == 0:
                bench.clock.advance(400.0)
            network.per_batch_s = 0.001 * noise.uniform(0.2, 1.8)
            prepare(batch)

        network.prepare = tune_once  # type: ignore[method-assign]
    begin_ns = bench.clock.now_ns
    assert bench.run().status == "complete"
    run_s = (bench.clock.now_ns - begin_ns) * 1e-9 - 2 * 400.0
    assert 55 < run_s < 60
    texts = [note.text for note in bench.lines.notes() if note.reason == "rounds_ended"]
    assert len(texts) == 2
    assert all(text.startswith("target not reached after 60 s: ") for text in texts)
    assert bench.lines.windows("idle")[-1].index == max(w.index for w in bench.lines.windows("measure")) + 1


def test_every_cell_has_three_rounds_whatever_the_time_limit() -> None:
    bench = make_bench(max_relative_uncertainty=0.05, max_run_s=1)
    bench.run()
    assert {window.repeat for window in bench.lines.windows("measure")} == {0, 1, 2}
    assert len(bench.lines.windows("measure")) == 12


def test_a_run_that_the_user_stops_states_after_how_many_rounds_each_cell_ended() -> None:
    bench = make_bench(max_relative_uncertainty=0.01, batch_sizes=[8])
    noise = random.Random(1)

    def vary_and_stop(network: FakeNetwork) -> None:
        network.per_batch_s = 0.001 * noise.uniform(0.2, 1.8)
        bench.stop.requested = len(bench.lines.windows("measure")) == 13

    for network in bench.networks.values():
        network.on_run = functools.partial(vary_and_stop, network)
    assert bench.run().status == "interrupted"
    texts = [note.text for note in bench.lines.notes() if note.reason == "rounds_ended"]
    assert sorted(texts) == ["stopped by the user after 6 rounds", "stopped by the user after 7 rounds"]


def test_without_energies_the_scatter_of_the_throughput_decides() -> None:
    bench = make_bench(max_relative_uncertainty=0.05, batch_sizes=[8])
    bench.edges.dead_after = 9
    bench.run()
    texts = {note.text for note in bench.lines.notes() if note.reason == "rounds_ended"}
    assert texts == {"±0.0 % of the throughput after 5 rounds"}


# The phase pass


@pytest.mark.parametrize("how", ["separate", "off"])
def test_energy_windows_record_phases_only_inline(how: str) -> None:
    bench = make_bench(phases=how)
    assert bench.run().status == "complete"
    for window in bench.lines.windows("measure"):
        assert window.phases == {}
        assert window.latency is not None and window.latency.count == window.batches
    assert len(bench.lines.windows("phase")) == (4 if how == "separate" else 0)


def test_the_phase_pass_measures_the_cost_of_recording() -> None:
    """Recording costs 0.05 ms of each batch of 1.1 or 1.8 ms; no energy window contains it."""
    bench = make_bench(phases="separate")
    for network in bench.networks.values():
        run = network.run

        def slower(batches: int, phases: Phases, run: Callable[..., None] = run) -> None:
            run(batches, phases)
            if type(phases) is Phases:
                bench.clock.advance(0.00005 * batches)

        network.run = slower  # type: ignore[method-assign]
    bench.run()
    passes = bench.lines.windows("phase")
    assert [(w.configuration, w.batch_size) for w in passes] == [("one", 1), ("one", 8), ("two", 1), ("two", 8)]
    for window in passes:
        assert 1.0 <= window.duration_s < 1.2
        assert window.phases["execute"].count == window.batches
        assert window.start_edge is None, "the energy of a phase window is not evaluated"
    texts = [note.text for note in bench.lines.notes() if note.reason == "phase_cost"]
    assert "one batch 1: recording phases changes throughput by -4.3 ± 0.0 %" in texts[0]
    assert "-2.7 ± 0.0 %" in texts[1]
    assert max(w.index for w in bench.lines.windows("measure")) < min(w.index for w in passes)


# Isolated networks


def test_a_network_that_is_busy_while_another_is_measured_has_one_note() -> None:
    bench = make_bench()
    bench.networks["one"].cpu_time_s = lambda: bench.clock.now_ns * 0.4e-9  # type: ignore[attr-defined]
    bench.networks["two"].cpu_time_s = lambda: 7.0  # type: ignore[attr-defined]
    bench.run()
    notes = [note for note in bench.lines.notes() if note.reason == "not_idle"]
    assert [note.configuration for note in notes] == ["one"]
    assert "one used 40 % of a processor while two was measured" in notes[0].text


def test_the_latency_in_another_process_excludes_the_message() -> None:
    """The message (here 5 ms) is part of the window, but not of a latency."""
    bench = make_bench(batch_sizes=[1])
    for network in bench.networks.values():
        run = network.run

        def remote(batches: int, phases: Phases, run: Callable[..., None] = run) -> None:
            bench.clock.advance(0.005)
            start_ns = bench.clock.now_ns
            run(batches, phases)
            phases.call_ns = (start_ns, bench.clock.now_ns)

        network.run = remote  # type: ignore[method-assign]
    bench.run()
    for window in bench.lines.windows("measure"):
        assert window.latency is not None
        assert window.latency.max_s == pytest.approx(0.0011, rel=1e-2)


# Setup


def test_loading_and_first_preparing_that_take_a_second_have_setup_windows() -> None:
    """Loading takes 3 s; tuning for batch size 8 takes 7 s, once: both are outside the measure windows."""
    bench = make_bench()
    network = bench.networks["one"]
    loaded, prepared = network.load, network.prepare
    tuned: set[int] = set()

    def slow_load() -> None:
        bench.clock.advance(3.0)
        loaded()

    def tune(batch: int) -> None:
        if batch == 8 and batch not in tuned:
            tuned.add(batch)
            bench.clock.advance(7.0)
        prepared(batch)

    network.load, network.prepare = slow_load, tune  # type: ignore[method-assign]
    bench.run()
    setups = bench.lines.windows("setup")
    assert [(w.configuration, w.phase, w.batch_size) for w in setups] == [("one", "load", 0), ("one", "prepare", 8)]
    for window, length_s in zip(setups, (3.0, 7.0), strict=True):
        assert window.duration_s == pytest.approx(length_s, abs=1e-3)
        assert window.start_edge is not None and window.end_edge is not None
        assert window.start_edge.counters[0].read_at_s <= window.start_s
        assert window.end_s <= window.end_edge.counters[0].read_at_s
        assert (window.batches, window.inferences) == (0, 0)
    assert bench.lines.delivered == [line for line in bench.lines.lines if isinstance(line, Window)]
    for window in bench.lines.windows("measure"):
        assert all(window.end_s <= setup.start_s or setup.end_s <= window.start_s for setup in setups)
        assert window.duration_s < 1.11


def test_a_short_setup_has_a_line_with_its_duration() -> None:
    bench = make_bench()
    bench.networks["two"].load = lambda: bench.clock.advance(0.25)  # type: ignore[method-assign]
    bench.run()
    assert bench.lines.windows("setup") == []
    lines = [line for line in bench.lines.lines if isinstance(line, Setup)]
    assert sorted((line.configuration, line.phase, line.batch_size) for line in lines) == [
        (name, phase, size) for name in ("one", "two") for phase, size in (("load", 0), ("prepare", 1), ("prepare", 8))
    ]
    assert next(line for line in lines if line.configuration == "two").duration_s == pytest.approx(0.25, abs=1e-4)


def test_facts_that_change_when_a_batch_size_is_prepared_are_written() -> None:
    """A network knows the state of its tuning for each batch size only then."""
    bench = make_bench()
    network = bench.networks["one"]
    loaded = network.describe()
    network.describe = lambda: (  # type: ignore[method-assign]
        {**loaded, "cores": 4, "tuning": "UNTUNED" if network.batch == 8 else "16 trials"} if network.batch else loaded
    )
    bench.run()
    lines = [line for line in bench.lines.lines if isinstance(line, Setup) and line.configuration == "one"]
    assert {line.batch_size: dict(line.details) for line in lines} == {
        0: {},
        1: {"tuning": "16 trials"},
        8: {"tuning": "UNTUNED"},
    }


def test_a_batch_size_that_computes_in_another_precision_is_excluded() -> None:
    bench = make_bench()
    network = bench.networks["one"]
    loaded = network.describe()
    network.describe = lambda: {**loaded, "precision": "bf16" if network.batch == 8 else "fp32"}  # type: ignore[method-assign]
    bench.run()
    measured = {(w.configuration, w.batch_size) for w in bench.lines.windows("measure")}
    assert measured == {("one", 1), ("two", 1), ("two", 8)}


def test_a_setup_that_fails_has_no_window() -> None:
    bench = make_bench()

    def fail(batch: int) -> Exception | None:
        bench.clock.advance(5.0)
        return UnsupportedBatchError("no engine") if batch == 8 else None

    bench.networks["one"].prepare_error = fail
    bench.run()
    assert [(w.configuration, w.batch_size) for w in bench.lines.windows("setup")] == [("one", 1)]
