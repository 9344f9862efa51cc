"""The values that all steps of a run share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from joulewatch_harness.clocktime import Clock
from joulewatch_harness.plan.plan import Plan
from joulewatch_harness.records import SensorRecord
from joulewatch_harness.runner.bracket import Bracket, EdgeSource
from joulewatch_harness.runner.conditions import ConditionsSource
from joulewatch_harness.runner.other_workloads import OtherWorkloads
from joulewatch_harness.runner.processor_time import ProcessorSource
from joulewatch_harness.runner.run_log import Reporter, RunLog
from joulewatch_harness.runner.stopping import StopRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """The plan, what a step measures with and writes to, and the request to stop."""

    plan: Plan
    clock: Clock
    edges: EdgeSource
    log: RunLog
    reporter: Reporter
    stop: StopRequest
    refresh_s: float | None = None
    """Refresh period of the slowest sensor."""
    processors: ProcessorSource | None = None
    conditions: ConditionsSource | None = None
    others: OtherWorkloads | None = None
    """None: the names of other workloads are not known."""
    sensors: Sequence[SensorRecord] = ()
    """The energy sensors of the exporters that ``edges`` reads."""

    def bracket(self, networks: Mapping[str, str] | None = None) -> Bracket:
        """Return a bracket that reads the energy counters, and counts the time of the networks that are measured."""
        return Bracket(self.clock, self.edges, self.processors, networks, conditions=self.conditions)

    def bracket_without_edges(self) -> Bracket:
        """Return a bracket for a window whose energy is not evaluated: warm-up, phases."""
        return Bracket(self.clock, processors=self.processors)
