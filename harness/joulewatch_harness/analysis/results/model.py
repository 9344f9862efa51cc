"""The results of an analyzed run, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from joulewatch_harness.analysis.results.audit.findings import Finding
from joulewatch_harness.analysis.sources.series import SensorId
from joulewatch_harness.gum import NORMAL_95
from joulewatch_harness.records import Configuration, RunRecord, SensorRecord

TOTAL: Final = "total"
COMPONENTS: Final = ("cpu", "memory", "gpu", "fpga", "other")
OTHER_PHASE: Final = "other"
IDLE_BASELINE: Final = "idle baseline"
REPEATS: Final = "repeats"
"""Names of two budget components; a comparison treats them specially."""
ATTRIBUTION: Final = "attribution"
"""Name of the budget component of a share of energy."""
Consumer = Literal["own", "concurrent", "measuring", "others", "system"]
"""Who uses active energy, see ``whose``."""
Coverage = Literal["sampling", "repeats", "accuracy"]
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
    """The same in every repeat, so repeats do not reduce it."""
    text: str
    counted: bool = True
    """False: the scatter of the repeats includes it, or is smaller than what is known within a repeat."""
    sign: Literal[1, -1] = 1
    """-1: the same error raises other results of this sensor and lowers this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its uncertainty."""

    value: float
    standard: float
    """Combined standard uncertainty."""
    expanded: float | None
    """At 95 % coverage; None: not known, because a single usable round does not show the repeatability."""
    dof: float
    budget: tuple[BudgetLine, ...]
    rounds: Mapping[int, float] = field(default_factory=dict)
    """Round -> value of that round; ``value`` is their mean. A comparison pairs these."""
    covers: tuple[Coverage, ...] = ()
    """What the uncertainty includes; ``accuracy`` only if every sensor has a published one."""

    @property
    def factor(self) -> float | None:
        """Coverage factor k; None: the expanded uncertainty is not known."""
        if self.expanded is None:
            return None
        return self.expanded / self.standard if self.standard > 0 else NORMAL_95

    def divided_by(self, count: float) -> Estimate:
        """Return this value per unit of a count that is known exactly."""
        return replace(
            self,
            value=self.value / count,
            standard=self.standard / count,
            expanded=None if self.expanded is None else self.expanded / count,
            budget=tuple(replace(line, standard=line.standard / count) for line in self.budget),
            rounds={number: value / count for number, value in self.rounds.items()},
        )

    @property
    def inverse(self) -> Estimate:
        """Return 1/value with the same relative uncertainty.

        Raises:
            ZeroDivisionError: The value is 0.
        """
        scale = 1 / self.value**2
        return Estimate(
            value=1 / self.value,
            standard=self.standard * scale,
            expanded=None if self.expanded is None else self.expanded * scale,
            dof=self.dof,
            budget=tuple(replace(line, standard=line.standard * scale) for line in self.budget),
            covers=self.covers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IdlePower:
    """Power of some sensors while the machine was idle."""

    watts: float
    standard_watts: float
    """Without the accuracy of the sensors, which the gross energy includes already."""
    dof: float
    basis: IdleBasis
    windows: tuple[int, ...]
    text: str
    calibration_watts: Mapping[str, float] = field(default_factory=dict)
    """Component of a calibration -> signed standard uncertainty, which the gross energy has as well."""


@dataclass(frozen=True, slots=True)
class Part:
    """The part of an energy that one consumer used, with its bound."""

    joules: float
    low_joules: float
    high_joules: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowShares:
    """Whose energy it was, in one window: ``joules`` is the sum of ``idle_joules`` and the parts."""

    window: int
    joules: float
    """Of the devices."""
    idle_joules: float
    """Idle power times the length of the window."""
    ratio: float
    """The bounds hold if the watts per processor of two programs differ by this factor at most; 1: one user."""
    parts: Mapping[Consumer, Part]

    @property
    def active_joules(self) -> float:
        return self.joules - self.idle_joules


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyResult:
    """Energy per inference of one component, all devices, one node sensor or one kind of part."""

    name: str
    gross: Estimate | None
    """Joules per inference; None: missing, see ``missing``."""
    net: Estimate | None
    idle: IdlePower | None
    missing: str
    """Why the energy is not known; empty if it is."""
    windows: tuple[int, ...]
    """Indexes of the windows used."""
    sensors: tuple[SensorId, ...]
    methods: tuple[str, ...]
    """Methods of the sensors: counter, integrated, estimated, emulated or unknown."""
    sources: tuple[str, ...]
    """How the energies of the windows were obtained: edges, history."""
    net_missing: str = ""
    """Why net energy is not reported although ``idle`` was measured; empty otherwise."""
    attributed: Estimate | None = None
    """Joules per inference that the processes of the network used, of the energy above idle power."""
    attributed_missing: str = ""
    """Why ``attributed`` is not known; empty if it is."""
    shares: tuple[WindowShares, ...] = ()
    """Of each window, where ``attributed`` is known."""

    @property
    def inferences_per_joule(self) -> Estimate | None:
        return self.gross.inverse if self.gross is not None and self.gross.value > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySummary:
    """Latency of a batch in seconds: the mean over the windows of each window's percentile."""

    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float
    standard_s: Mapping[str, float] = field(default_factory=dict)
    """Percentile -> standard uncertainty of its mean, from the scatter between rounds; empty with one round."""
    rounds_s: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """Percentile -> round -> value of that round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountResult:
    """Energy of another unit of work than the inference, such as ``output_tokens``."""

    name: str
    count: float
    """Over all windows used."""
    per_inference: float
    rate: Estimate | None
    """Per second."""
    gross: Estimate | None
    """Joules per unit over all device sensors; None: the total is missing."""
    net: Estimate | None
    attributed: Estimate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseShare:
    """Share of the time that a batch spends in one phase, and its energy where the sensors resolve it."""

    name: str
    share: Estimate
    """Share of the time in all phases including ``other``, which is the window's length unless batches overlap."""
    per_batch_s: float
    energies: Mapping[str, Estimate] = field(default_factory=dict)
    """Component or total -> joules per inference; missing where they are not resolved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupEnergy:
    """Energy of one setup, of a component, all devices or a node sensor."""

    name: str
    gross: Estimate | None
    """Joules; None: missing."""
    missing: str
    methods: tuple[str, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupResult:
    """Loading, or the first preparation of a batch size; its time and energy are in no other result."""

    configuration: str
    phase: str
    """``load`` or ``prepare``."""
    batch_size: int
    """0 for ``load``."""
    duration_s: float
    window: int | None = None
    """Number of the window; None if it was too short for a window, so its energy is unknown."""
    components: tuple[SetupEnergy, ...] = ()
    total: SetupEnergy | None = None
    """All device sensors; None without a window."""
    nodes: tuple[SetupEnergy, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)
    """Details that differ from those after loading, such as the state of tuning."""


@dataclass(frozen=True, slots=True)
class ExcludedWindow:
    """A window that is not used, and why."""

    window: int
    reason: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupResult:
    """One configuration at one batch size: one row of the table, one point in the figure."""

    configuration: Configuration
    batch_size: int
    windows: tuple[int, ...]
    excluded: tuple[ExcludedWindow, ...]
    rounds: int
    """Rounds of the windows used."""
    measured_rounds: int
    """Rounds that were measured, including those whose windows are all excluded."""
    rounds_ended: str
    """Why the rounds ended, for people; empty if unknown."""
    inferences: int
    duration_s: float
    throughput: Estimate | None
    """Inferences per second."""
    latency: LatencySummary | None
    components: tuple[EnergyResult, ...]
    total: EnergyResult
    nodes: tuple[EnergyResult, ...]
    """Whole servers; never added to the devices."""
    parts: tuple[EnergyResult, ...]
    """Parts of devices; never added to them."""
    counts: tuple[CountResult, ...] = ()
    """Other units of work that the network counted."""
    phases: tuple[PhaseShare, ...] = ()
    """Shares of the time, from the windows themselves or from a separate pass."""
    unresolved_phases: Mapping[str, Estimate] = field(default_factory=dict)
    """Component or total -> joules per inference of all phases without an energy; with those of the other phases they
    add up to the gross energy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interference:
    """One network at one batch size: on its own, and at the same time as others."""

    configuration: str
    """As it is called at the same time as others."""
    alone: str
    batch_size: int
    energy_alone: Estimate | None
    """Attributed joules per inference; None: not known."""
    energy_together: Estimate | None
    energy_percent: Estimate | None
    """Change of the energy in percent of that alone."""
    rate_alone: Estimate | None
    """Inferences per second."""
    rate_together: Estimate | None
    rate_percent: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """An analyzed run."""

    record: RunRecord
    source: str
    """Source of the samples, for people; empty: only the edges in the journal."""
    sensors: tuple[SensorRecord, ...]
    groups: tuple[GroupResult, ...]
    idle: Mapping[str, IdlePower] = field(default_factory=dict)
    """Component or total -> idle power of the machine, over all idle windows of the preferred kind."""
    findings: tuple[Finding, ...] = ()
    setups: tuple[SetupResult, ...] = ()
    """Setup results of each configuration, loading first."""
    interference: tuple[Interference, ...] = ()
    """Of the networks that were measured at the same time."""
    powers: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """Window -> component -> mean power in watts, where every device sensor of the component has an energy."""

    @property
    def methods(self) -> frozenset[str]:
        """Methods of all device sensors whose energy is in a result."""
        return frozenset(
            method for group in self.groups for component in group.components for method in component.methods
        )

    @property
    def hardware(self) -> str:
        """The machine, for titles."""
        header = self.record.header
        return header.hardware or header.provenance_text("host")
