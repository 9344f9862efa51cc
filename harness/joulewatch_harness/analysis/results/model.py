"""The values that an analyzed run consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from joulewatch_harness.analysis.results.audit import Finding
from joulewatch_harness.analysis.sources.series import SensorId
from joulewatch_harness.records import Configuration, RunRecord, SensorRecord

TOTAL: Final = "total"


COMPONENTS: Final = ("cpu", "memory", "gpu", "fpga", "other")


OTHER_PHASE: Final = "other"


IdleBasis = Literal["loaded", "unloaded", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetLine:
    """One line of the budget of a mean."""

    name: str
    kind: Literal["A", "B"]
    standard: float
    """Standard uncertainty, in the unit of the value."""
    dof: float
    """Degrees of freedom; inf for type B."""
    systematic: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its uncertainty."""

    value: float
    standard: float
    """Combined standard uncertainty."""
    expanded: float
    """At 95 % coverage."""
    factor: float
    dof: float
    budget: tuple[BudgetLine, ...]
    rounds: Mapping[int, float] = field(default_factory=dict)
    """Round -> its own value, of which ``value`` is the mean: what a comparison pairs."""

    @property
    def inverse(self) -> Estimate:
        """1/value with the same relative uncertainty.

        Raises:
            ZeroDivisionError: The value is 0.
        """
        scale = 1 / self.value**2
        return Estimate(
            value=1 / self.value,
            standard=self.standard * scale,
            expanded=self.expanded * scale,
            factor=self.factor,
            dof=self.dof,
            budget=tuple(
                BudgetLine(
                    name=item.name,
                    kind=item.kind,
                    standard=item.standard * scale,
                    dof=item.dof,
                    systematic=item.systematic,
                    text=item.text,
                )
                for item in self.budget
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IdlePower:
    """Power of some sensors while nothing ran."""

    watts: float
    standard_watts: float
    """Without the sensors' accuracy, which is in the gross already."""
    dof: float
    basis: IdleBasis
    windows: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyResult:
    """Energy per inference of one component, of all devices, of one node sensor or of one kind of part."""

    name: str
    gross: Estimate | None
    """Joules per inference; None: missing, see ``missing``."""
    net: Estimate | None
    idle: IdlePower | None
    missing: str
    """Why there is no number, empty if there is one."""
    windows: tuple[int, ...]
    """Indexes of the windows that count."""
    sensors: tuple[SensorId, ...]
    methods: tuple[str, ...]
    """Of the sensors: counter, integrated, estimated, emulated or unknown."""
    sources: tuple[str, ...]
    """How the windows' energies came about: edges, history."""

    @property
    def inferences_per_joule(self) -> Estimate | None:
        return self.gross.inverse if self.gross is not None and self.gross.value > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySummary:
    """Latency of a batch in seconds: means over the windows of each window's percentile."""

    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float
    standard_s: Mapping[str, float] = field(default_factory=dict)
    """Percentile -> standard uncertainty of its mean, from the scatter of the rounds; empty with one round."""
    rounds_s: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """Percentile -> round -> its own value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountResult:
    """Another unit of work than the inference, such as ``output_tokens``, and what one of it costs."""

    name: str
    count: float
    """Over all windows that count."""
    per_inference: float
    rate: Estimate | None
    """Per second."""
    gross: Estimate | None
    """Joules each, all device sensors; None: the total is missing."""
    net: Estimate | None


@dataclass(frozen=True, slots=True)
class PhaseShare:
    """How much of the time a batch spends in one phase.

    No energy is told of a phase: phases are mostly far shorter than a sensor's refresh period, and when each of
    them began is not kept.
    """

    name: str
    share: Estimate
    """Of the time in all phases, ``other`` among them. That is the window's length, unless batches overlap."""
    per_batch_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupEnergy:
    """Energy of one span of setting up: of a component, of all devices, of a node sensor."""

    name: str
    gross: Estimate | None
    """Joules; None: missing."""
    missing: str
    methods: tuple[str, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupResult:
    """Loading, or preparing a batch size for the first time; its time and energy are in no other result."""

    configuration: str
    phase: str
    """``load`` or ``prepare``."""
    batch_size: int
    """0 for ``load``."""
    duration_s: float
    window: int | None = None
    """None: it was too short for a window, and nothing is claimed of its energy."""
    components: tuple[SetupEnergy, ...] = ()
    total: SetupEnergy | None = None
    """All device sensors; None without a window."""
    nodes: tuple[SetupEnergy, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)
    """What the network then said otherwise than after loading, such as the state of its tuning."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A window that does not count, and why."""

    window: int
    reason: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupResult:
    """One configuration at one batch size: one line of the table, one point of the figure."""

    configuration: Configuration
    batch_size: int
    windows: tuple[int, ...]
    left_out: tuple[LeftOut, ...]
    rounds: int
    inferences: int
    duration_s: float
    throughput: Estimate | None
    """Inferences per second."""
    latency: LatencySummary | None
    components: tuple[EnergyResult, ...]
    total: EnergyResult
    nodes: tuple[EnergyResult, ...]
    """Whole servers, beside the devices and never added to them."""
    parts: tuple[EnergyResult, ...]
    """Parts of devices, never added to them."""
    counts: tuple[CountResult, ...] = ()
    """Other units of work that the network told."""
    phases: tuple[PhaseShare, ...] = ()
    """Shares of the time; of the windows themselves, or of a pass of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A run, analysed."""

    record: RunRecord
    source: str
    """Where counters came from, for people; empty: edges of the journal only."""
    sensors: tuple[SensorRecord, ...]
    groups: tuple[GroupResult, ...]
    idle: Mapping[str, IdlePower] = field(default_factory=dict)
    """Component or total -> idle power of the machine, all idle windows of the preferred kind."""
    findings: tuple[Finding, ...] = ()
    setups: tuple[SetupResult, ...] = ()
    """By configuration, loading first."""

    @property
    def methods(self) -> frozenset[str]:
        """Methods of all device sensors whose energy is in a result."""
        return frozenset(method for group in self.groups for item in group.components for method in item.methods)

    @property
    def hardware(self) -> str:
        """The machine, for titles."""
        header = self.record.header
        return header.hardware or header.provenance_text("host")
