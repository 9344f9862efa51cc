"""The order of the reads around a window, and the window that they give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from joulewatch_harness.records import Edge
from joulewatch_harness.runner.bracket import Bracket
from joulewatch_harness.runner.clocks import MAPPING_TRIES
from joulewatch_harness.runner.conditions import ConditionsReading
from joulewatch_harness.runner.processor_time import ProcessorReading
from support.clock import NS_PER_S, FakeClock

MAPPING = ["monotonic", "wall", "monotonic"] * MAPPING_TRIES


@dataclass
class Reads(FakeClock):
    """A clock and a source of edges that remember the order in which they are read."""

    reading_ns: int = 100
    order: list[str] = field(default_factory=list)
    edges: int = 0

    def monotonic_ns(self) -> int:
        self.order.append("monotonic")
        return super().monotonic_ns()

    def time_ns(self) -> int:
        self.order.append("wall")
        return super().time_ns()

    def fetch(self) -> FetchedEdge:
        self.order.append("counters")
        self.edges += 1
        self.advance(0.002)
        return FetchedEdge(self, self.edges)


@dataclass
class Processors:
    """A machine with two processors, one of which is always busy with the run."""

    reads: Reads

    def read(self) -> ProcessorReading:
        self.reads.order.append("processors")
        at_s = self.reads.now_ns / NS_PER_S
        return ProcessorReading(at_ns=self.reads.now_ns, idle_s=at_s, counted_s=2 * at_s, own_s=at_s / 2, processors=2)


@dataclass
class FetchedEdge:
    reads: Reads
    number: int

    def parse(self) -> Edge:
        self.reads.order.append(f"parse {self.number}")
        return Edge(requested_at_s=self.number, answered_at_s=self.number, counters=())


@dataclass
class Conditions:
    reads: Reads

    def read(self) -> ConditionsReading:
        self.reads.order.append("conditions")
        return ConditionsReading(
            at_ns=self.reads.now_ns, counters={}, processors=2, throttled_ms={}, throttle_counts={}, settings={}
        )

    def between(self, start: ConditionsReading, end: ConditionsReading) -> dict[str, float]:
        return {"seconds": (end.at_ns - start.at_ns) / NS_PER_S}


def test_the_run_conditions_are_read_outside_everything() -> None:
    reads = Reads()
    with Bracket(reads, reads, conditions=Conditions(reads)) as bracket:
        reads.order.append("work")
        reads.advance(1.0)
    assert reads.order[0] == reads.order[-1] == "conditions"
    assert reads.order.count("conditions") == 2
    conditions = bracket.window(run="r", index=0, kind="measure").conditions
    assert conditions == {"seconds": pytest.approx(1.0, abs=0.01)}


def test_mapping_counters_time_work_time_counters_mapping() -> None:
    reads = Reads()
    with Bracket(reads, reads) as bracket:
        reads.order.append("work")
    assert reads.order == [*MAPPING, "counters", "monotonic", "work", "monotonic", "counters", "parse 1", *MAPPING]
    window = bracket.window(run="r", index=3, kind="idle")
    assert reads.order[-1] == "parse 2"
    assert window.start_edge is not None and window.start_edge.requested_at_s == 1
    assert window.end_edge is not None and window.end_edge.requested_at_s == 2
    assert (window.run, window.index, window.kind) == ("r", 3, "idle")


def test_the_processor_times_are_read_outside_the_counters() -> None:
    reads = Reads()
    with Bracket(reads, reads, Processors(reads)) as bracket:
        reads.order.append("work")
        reads.advance(1.0)
    inside = ["processors", "counters", "monotonic", "work", "monotonic", "counters", "processors", "parse 1"]
    assert reads.order == [*MAPPING, *inside, *MAPPING]
    used = bracket.window(run="r", index=0, kind="idle").processor_time
    assert used is not None
    assert (used.busy_s, used.own_s, used.processors) == (pytest.approx(1.0), pytest.approx(0.5), 2)
    with Bracket(reads, reads) as bracket:
        pass
    assert bracket.window(run="r", index=0, kind="idle").processor_time is None


class WaitingReads(Reads):
    """Waits for its counters."""

    def fetch_start(self, meanwhile: Callable[[], None]) -> FetchedEdge:
        self.order.append("ask")
        meanwhile()
        return self.fetch()

    fetch_end = fetch_start


def test_while_an_exporter_waits_the_rest_is_done() -> None:
    reads = WaitingReads()
    with Bracket(reads, reads, Processors(reads), settle=lambda: reads.order.append("settle")):
        reads.order.append("work")
    assert reads.order == [
        *(*MAPPING, "ask", "settle", "processors", "counters", "monotonic"),
        *("work", "monotonic", "ask", "processors", "parse 1", "counters", *MAPPING),
    ]


def test_the_edges_may_be_noted_next_to_the_work() -> None:
    reads = Reads()
    bracket = Bracket(reads, reads)
    bracket.__enter__()
    reads.advance(0.001)
    bracket.start()
    start_ns = bracket.start_ns
    reads.advance(0.25)
    bracket.stop(start_ns + NS_PER_S // 5)
    bracket.__exit__(None)
    assert bracket.window(run="r", index=0, kind="measure").duration_s == pytest.approx(0.2, abs=1e-12)


def test_a_window_lasts_as_long_as_the_work() -> None:
    reads = Reads(now_ns=5 * NS_PER_S, unix_ns=1_700_000_005 * NS_PER_S)
    with Bracket(reads, reads) as bracket:
        assert bracket.start_ns == reads.now_ns
        start_s = reads.unix_ns / NS_PER_S
        reads.advance(1.5)
    window = bracket.window(run="r", index=0, kind="measure", batches=3, batch_size=8, flags=("too_short",))
    assert bracket.duration_ns == 1_500_000_100
    assert window.duration_s == bracket.duration_s == pytest.approx(1.5000001, abs=1e-12)
    assert window.start_s == pytest.approx(start_s, abs=1e-6)
    assert window.end_s == pytest.approx(start_s + 1.5, abs=1e-6)
    assert window.clock_error_s == pytest.approx(100e-9)
    assert (window.batches, window.batch_size, window.inferences, window.flags) == (3, 8, 24, ("too_short",))


def test_each_edge_is_mapped_with_the_mapping_of_its_own_side() -> None:
    """The wall clock is set forward by 2 s during the work: the end has the new time, the start keeps the old one."""
    reads = Reads()
    with Bracket(reads, reads) as bracket:
        start_s = reads.unix_ns / NS_PER_S
        reads.advance(1.0)
        reads.step_wall_clock(2.0)
        end_s = reads.unix_ns / NS_PER_S
    window = bracket.window(run="r", index=0, kind="measure")
    assert window.start_s == pytest.approx(start_s, abs=1e-6)
    assert window.end_s == pytest.approx(end_s, abs=1e-6)
    assert window.end_s - window.start_s == pytest.approx(3.0, abs=1e-6)
    assert window.duration_s == pytest.approx(1.0, abs=1e-6)
    assert window.clock_step_s == bracket.clock_step_s == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize("slow_side", ["start", "end"])
def test_the_clock_error_is_that_of_the_worse_side(slow_side: str) -> None:
    reads = Reads()
    if slow_side == "start":
        reads.reading_ns = 900
    with Bracket(reads, reads) as bracket:
        reads.reading_ns = 100 if slow_side == "start" else 900
    assert bracket.window(run="r", index=0, kind="measure").clock_error_s == pytest.approx(900e-9)


def test_a_window_whose_energy_is_not_evaluated_has_no_edges() -> None:
    reads = Reads()
    with Bracket(reads) as bracket:
        reads.order.append("work")
    assert reads.order == [*MAPPING, "monotonic", "work", "monotonic", *MAPPING]
    window = bracket.window(run="r", index=0, kind="warmup")
    assert (window.start_edge, window.end_edge) == (None, None)


def test_after_an_error_nothing_more_is_read() -> None:
    reads = Reads()
    with pytest.raises(RuntimeError, match="device lost"), Bracket(reads, reads):
        reads.order.append("work")
        raise RuntimeError("device lost")
    assert reads.order == [*MAPPING, "counters", "monotonic", "work"]


def test_without_batches_or_their_size_there_are_no_inferences() -> None:
    reads = Reads()
    with Bracket(reads) as bracket:
        pass
    assert bracket.window(run="r", index=0, kind="idle", batch_size=8).inferences == 0
    assert bracket.window(run="r", index=0, kind="setup", batches=3).inferences == 0
