"""The values of a plan: what to measure, how long and how often. ``parsing`` reads plans, ``steps`` orders them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from joulewatch_harness.binder import Choice, Limits, Parse, Text, Texts, short_for
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.plan.scenario import OFFLINE, Scenario
from joulewatch_harness.records import Configuration, encode

MINIMUM_WINDOW_S: Final = 0.02
"""20 refreshes of the fastest counters (RAPL)."""
MODEL_WINDOW_S: Final = 0.5
"""Shortest window without a sensor that has a refresh period."""
MLPERF_WINDOW_S: Final = 60.0
"""MLPerf Power requires windows of at least 60 s."""
MINIMUM_BATCHES: Final = 10
MINIMUM_ROUNDS: Final = 3
"""The uncertainty comes from the spread between rounds."""
REFRESHES_PER_WINDOW: Final = 20
"""A counter that is updated once per refresh period is then off by at most 1/20 of the window."""
LARGEST_BATCH: Final = 1 << 24
NATIVE: Final = "native"

Seconds = Annotated[float, Limits(ge=0, unit="seconds")]
Rate = Annotated[float, Limits(ge=0, unit="per second")]


def parse_share(value: Any) -> Any:
    """Accept text such as ``5%`` or ``0.05`` as a share; other values stay as they are.

    Raises:
        ValueError: the text is not a number.
    """
    if not isinstance(value, str):
        return value
    number, percent, rest = value.strip().partition("%")
    try:
        return float(number) / (100 if percent else 1) if not rest else float(value)
    except ValueError:
        raise ValueError(f"must be a share such as 5% or 0.05, got {value!r}") from None


Share = Annotated[float, Parse(parse_share), Limits(gt=0, le=0.5)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """The keys of a plan whose defaults depend on the preset; it has ``rounds`` or ``max_relative_uncertainty``."""

    batch_sizes: tuple[int, ...]
    window_s: Annotated[float, Limits(ge=MINIMUM_WINDOW_S, unit="seconds")]
    max_window_s: Seconds
    rounds: Annotated[int, Limits(ge=MINIMUM_ROUNDS)] | None = None
    """Exactly this number of rounds; None: until ``max_relative_uncertainty`` is reached."""
    max_relative_uncertainty: Share | None = None
    """Target for the repeats' part of the relative uncertainty of each energy; None: ``rounds`` rounds."""
    max_run_s: Annotated[float, Limits(gt=0, unit="seconds")] | None = None
    """Time limit of a run without ``rounds``; setups do not count, and every cell gets three rounds. None: no limit."""
    idle_s: Seconds
    settle_s: Seconds
    warmup_s: Seconds
    """Shortest warm-up."""
    max_warmup_s: Seconds
    """Longest warm-up; a load that is not steady by then is measured and flagged."""


_POWERS: Final = tuple(1 << n for n in range(11))
MLPERF: Final = "mlperf"
PRESETS: Final[Mapping[str, Preset]] = {
    "quick": Preset(
        batch_sizes=_POWERS[::2],
        window_s=0.5,
        max_window_s=2.0,
        max_relative_uncertainty=0.05,
        max_run_s=90.0,
        idle_s=2.0,
        settle_s=0.1,
        warmup_s=0.4,
        max_warmup_s=1.0,
    ),
    "normal": Preset(
        batch_sizes=_POWERS,
        window_s=0.5,
        max_window_s=20.0,
        max_relative_uncertainty=0.05,
        max_run_s=360.0,
        idle_s=5.0,
        settle_s=0.2,
        warmup_s=0.9,
        max_warmup_s=2.4,
    ),
    "report": Preset(
        batch_sizes=_POWERS,
        window_s=1.0,
        max_window_s=60.0,
        max_relative_uncertainty=0.02,
        max_run_s=1800.0,
        idle_s=60.0,
        settle_s=0.5,
        warmup_s=2.0,
        max_warmup_s=10.0,
    ),
    MLPERF: Preset(
        batch_sizes=_POWERS,
        window_s=MLPERF_WINDOW_S,
        max_window_s=120.0,
        rounds=MINIMUM_ROUNDS,
        idle_s=60.0,
        settle_s=2.0,
        warmup_s=2.0,
        max_warmup_s=60.0,
    ),
}
DEFAULT_PRESET: Final = "normal"
DEFAULT_OUTPUT: Final = "runs"
DEFAULT_SCRAPE_RATE_HZ: Final = 10.0
DEFAULT_NETWORK: Final = "radioml-vgg10"
DEFAULT_PRECISIONS: Final = ("fp32", "int8")
DEFAULT_TIME_LIMIT_S: Final = 600.0
PHASES_INLINE: Final = "inline"
PHASES_SEPARATE: Final = "separate"
PHASES_OFF: Final = "off"
PHASES: Final = (PHASES_INLINE, PHASES_SEPARATE, PHASES_OFF)
PHASE_PASS_S: Final = 1.0
"""Length of the pass that records phases."""
PHASE_COST_PAIRS: Final = 6
PHASE_COST_S: Final = 0.1
"""The cost of recording phases is measured with this many pairs of this length, without and with recording."""


@dataclass(frozen=True, slots=True)
class ExporterTarget:
    """An exporter that is read at the edges of windows."""

    url: Text
    name: Text = ""
    """Label ``instance`` of the exporter in Prometheus, if it is not ``host:port``."""

    def __post_init__(self) -> None:
        scheme, _, rest = self.url.partition("://")
        is_http = scheme in ("http", "https") and rest.strip("/")
        if not is_http and not self.url.startswith("unix:/"):
            raise ConfigError(f"{self.url!r} is not a valid URL: write it as http://node1:10717 or unix:/path")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanKeys(Preset):
    """The keys of a plan file that a plan contains unchanged."""

    name: Text = ""
    preset: Annotated[str, Choice(tuple(PRESETS))] = DEFAULT_PRESET
    seed: Annotated[int, Limits(ge=0)] = 0
    exporters: tuple[Annotated[ExporterTarget, short_for("url")], ...] = ()
    exporter_flags: Texts = ()
    """Flags for the exporter that local mode starts."""
    sources: Texts = ()
    """Exporters whose series in Prometheus are read: names of mappings, ``joulewatch``, or mapping files; empty:
    joulewatch's own."""
    prometheus: Text = ""
    prometheus_config: Text = ""
    pushgateway: Text = ""
    scrape_rate_hz: Annotated[float, Limits(ge=0.1, le=1000)] = DEFAULT_SCRAPE_RATE_HZ
    output: Text = DEFAULT_OUTPUT
    cpus: Text = ""
    """Processors of the networks' processes, such as ``0-3``; empty: all."""
    time_limit_s: Annotated[float, Limits(ge=1, unit="seconds")] = DEFAULT_TIME_LIMIT_S
    """Time limit of one call of an isolated network."""
    phases: Annotated[str, Choice(PHASES)] = PHASES_INLINE


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(PlanKeys):
    """A whole sweep, with all defaults filled in and all values checked."""

    configurations: tuple[Configuration, ...]
    isolate: bool = False
    """Run each configuration in a separate process."""
    concurrent: bool = False
    """Also measure all configurations at the same time."""
    default_batch_sizes: bool = False
    """Whether the batch sizes are the preset's, so that a network with a fixed batch axis may replace them."""

    def __post_init__(self) -> None:
        if not self.configurations:
            raise ConfigError("the plan has no configuration")
        if (self.rounds is None) == (self.max_relative_uncertainty is None):
            raise ConfigError("the plan needs either rounds or max_relative_uncertainty")
        if self.rounds is not None and self.max_run_s is not None:
            raise ConfigError("max_run_s limits max_relative_uncertainty; a plan with rounds has exactly these rounds")
        if self.preset == MLPERF and self.window_s < MLPERF_WINDOW_S:
            raise ConfigError(f"window_s is {self.window_s:g}; the preset {MLPERF} needs at least {MLPERF_WINDOW_S:g}")
        if self.max_window_s < self.window_s:
            raise ConfigError(f"max_window_s is {self.max_window_s:g}, less than window_s, {self.window_s:g}")
        if self.max_warmup_s < self.warmup_s:
            raise ConfigError(f"max_warmup_s is {self.max_warmup_s:g}, less than warmup_s, {self.warmup_s:g}")
        if self.cpus and not self.isolate:
            raise ConfigError("cpus requires isolate: true, because it applies to the processes of the networks")
        if self.concurrent:
            self._check_concurrent()
        names = [configuration.name for configuration in self.configurations]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"two configurations have the name {name!r}: give each a different name")

    def _check_concurrent(self) -> None:
        if len(self.configurations) < 2:
            raise ConfigError("concurrent needs at least two configurations")
        if not self.isolate:
            raise ConfigError("concurrent requires isolate: true, because each network needs its own process")
        for item in self.configurations:
            if item.scenario == "server":
                raise ConfigError(f"concurrent: {item.name} has the scenario server; use offline or single_stream")

    def to_mapping(self) -> dict[str, Any]:
        """Return the plan for the journal: JSON values, including every default."""
        values: dict[str, Any] = encode(self)
        del values["default_batch_sizes"]
        if not self.concurrent:
            # The fingerprint of a plan without it stays that of earlier versions.
            del values["concurrent"]
        if not self.sources:
            del values["sources"]  # so that the fingerprint of a plan without them stays the same
        values["configurations"] = [
            {
                "name": configuration.name,
                "network": configuration.target,
                "runtime": configuration.runtime,
                "precision": configuration.precision,
                "options": dict(configuration.options),
                "scenario": configuration.scenario or OFFLINE,
                **({"server_rate_per_s": rate} if (rate := configuration.server_rate_per_s) else {}),
            }
            for configuration in self.configurations
        ]
        return values

    def sha256(self) -> str:
        """Return the fingerprint of ``to_mapping``."""
        text = json.dumps(self.to_mapping(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def default_runtime(network: str) -> str:
    """Return the runtime of a network for which none is given; a user-defined network has its own."""
    return "python" if ":" in network else "onnxruntime"


def name_configurations(configurations: Sequence[Configuration]) -> Iterator[Configuration]:
    """Name the configurations without a name: network/runtime/precision, options that differ, scenario."""
    keys = [(item.network, item.runtime, item.precision) for item in configurations]
    for configuration, key in zip(configurations, keys, strict=True):
        if configuration.name:
            yield configuration
            continue
        same_key = [other.options for other, other_key in zip(configurations, keys, strict=True) if other_key == key]
        differing = sorted(
            {name for options in same_key for name in options if any(o.get(name) != options[name] for o in same_key)}
        )
        parts = list(key)
        parts += [f"{name}={configuration.options[name]}" for name in differing if name in configuration.options]
        suffix = scenario_of(configuration).suffix
        yield dataclasses.replace(configuration, name="/".join([*parts, suffix] if suffix else parts))


def scenario_of(configuration: Configuration) -> Scenario:
    """Return the scenario of a configuration."""
    rate_per_s = configuration.server_rate_per_s or None
    return Scenario.make(configuration.scenario or OFFLINE, rate_per_s, configuration.name or configuration.network)
