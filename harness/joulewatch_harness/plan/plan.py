"""What to run: a plan from YAML or from the command line, and its ordered list of steps (pure).

A key that is not known is an error that names the file, the key and the nearest valid one. A flag beats the
file, the file beats the preset.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.plan.runtimes import is_server
from joulewatch_harness.plan.scenario import OFFLINE, Scenario
from joulewatch_harness.records import Configuration

MINIMUM_WINDOW_S: Final = 1.0
MINIMUM_BATCHES: Final = 10
MINIMUM_ROUNDS: Final = 3
REFRESHES_PER_WINDOW: Final = 20
"""A counter that moves in steps of its refresh period is off by at most 1/20 of the window."""
LARGEST_BATCH: Final = 1 << 24
NATIVE: Final = "native"


@dataclass(frozen=True, slots=True)
class Preset:
    """Values for whatever a plan leaves out."""

    window_s: float
    max_window_s: float
    rounds: int
    idle_s: float
    settle_s: float
    warmup_s: float
    """Least length of a warm-up."""
    max_warmup_s: float
    """After this a load that is not steady is measured all the same, and flagged."""
    batch_sizes: tuple[int, ...]


_POWERS: Final = tuple(1 << n for n in range(11))
PRESETS: Final[Mapping[str, Preset]] = {
    "quick": Preset(1.0, 2.0, 3, 2.0, 0.1, 0.4, 1.0, _POWERS[::2]),
    "normal": Preset(2.5, 20.0, 3, 5.0, 0.2, 0.9, 2.4, _POWERS),
    # MLPerf Power asks for 60 s at least.
    "report": Preset(60.0, 120.0, 3, 60.0, 2.0, 2.0, 60.0, _POWERS),
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
"""Of the pass that records phases."""
PHASE_COST_PAIRS: Final = 6
PHASE_COST_S: Final = 0.1
"""Then so many times so long without and with recording them."""


@dataclass(frozen=True, slots=True)
class ExporterTarget:
    """An exporter to read at the edges of windows."""

    url: str
    name: str = ""
    """Its ``instance`` in Prometheus, where that is not host:port."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole sweep, every value settled and checked."""

    configurations: tuple[Configuration, ...]
    batch_sizes: tuple[int, ...]
    preset: str
    window_s: float
    max_window_s: float
    rounds: int
    seed: int
    idle_s: float
    settle_s: float
    warmup_s: float
    max_warmup_s: float
    name: str = ""
    exporters: tuple[ExporterTarget, ...] = ()
    exporter_flags: tuple[str, ...] = ()
    """Flags for the exporter that the local mode starts."""
    prometheus: str = ""
    prometheus_config: str = ""
    pushgateway: str = ""
    scrape_rate_hz: float = DEFAULT_SCRAPE_RATE_HZ
    output: str = DEFAULT_OUTPUT
    isolate: bool = False
    """Each configuration in a process of its own."""
    cpus: str = ""
    """Processors of those processes, such as ``0-3``; empty: all."""
    time_limit_s: float = DEFAULT_TIME_LIMIT_S
    """For one call of an isolated network."""
    phases: str = PHASES_INLINE

    def __post_init__(self) -> None:
        if not self.configurations:
            raise ConfigError("the plan has no configuration")
        if self.window_s < MINIMUM_WINDOW_S:
            raise ConfigError(f"window_s is {self.window_s:g}: at least {MINIMUM_WINDOW_S:g} s")
        if self.max_window_s < self.window_s:
            raise ConfigError(f"max_window_s is {self.max_window_s:g}, less than window_s, {self.window_s:g}")
        if self.max_warmup_s < self.warmup_s:
            raise ConfigError(f"max_warmup_s is {self.max_warmup_s:g}, less than warmup_s, {self.warmup_s:g}")
        if self.rounds < MINIMUM_ROUNDS:
            raise ConfigError(
                f"rounds is {self.rounds}: at least {MINIMUM_ROUNDS}, for the spread between rounds is the uncertainty"
            )
        if self.cpus and not self.isolate:
            raise ConfigError("cpus needs isolate: true, for it is the networks' own processes that are kept there")
        names = [item.name for item in self.configurations]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"two configurations are called {name!r}: give each a name of its own")

    def to_mapping(self) -> dict[str, Any]:
        """The plan as it goes into the journal: plain JSON values, every default spelled out."""
        values: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name == "configurations":
                value = [
                    {
                        "name": one.name,
                        "network": one.network,
                        "runtime": one.runtime,
                        "precision": one.precision,
                        "options": dict(one.options),
                        "scenario": one.scenario or OFFLINE,
                        **({"server_rate_per_s": one.server_rate_per_s} if one.server_rate_per_s else {}),
                    }
                    for one in self.configurations
                ]
            elif item.name == "exporters":
                value = [{"url": one.url, "name": one.name} for one in self.exporters]
            elif isinstance(value, tuple):
                value = list(value)
            values[item.name] = value
        return values

    def sha256(self) -> str:
        """Fingerprint of ``to_mapping``."""
        text = json.dumps(self.to_mapping(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def network_label(network: str, runtime: str = "") -> str:
    """What a network is called in a name: the built-in name, the file without folder and suffix, the object."""
    if is_server(runtime):
        return network
    if ":" in network:
        return network.rpartition(":")[2]
    return PurePath(network).stem if network.endswith(".onnx") else network


def default_runtime(network: str) -> str:
    """The runtime of a network that names none: a network of one's own brings its own."""
    return "python" if ":" in network else "onnxruntime"


def name_configurations(found: Sequence[Configuration]) -> Iterator[Configuration]:
    """Name those that have no name: network/runtime/precision, the options that tell equals apart, the scenario."""
    keys = [(item.network, item.runtime, item.precision) for item in found]
    for item, key in zip(found, keys, strict=True):
        if item.name:
            yield item
            continue
        equals = [other.options for other, its_key in zip(found, keys, strict=True) if its_key == key]
        differing = sorted(
            {option for one in equals for option in one if any(other.get(option) != one[option] for other in equals)}
        )
        parts = [network_label(item.network, item.runtime), item.runtime, item.precision]
        parts += [f"{option}={item.options[option]}" for option in differing if option in item.options]
        parts += [part for part in (scenario_of(item).suffix,) if part]
        yield dataclasses.replace(item, name="/".join(parts))


def scenario_of(configuration: Configuration) -> Scenario:
    """How a configuration is asked."""
    rate_per_s = configuration.server_rate_per_s or None
    return Scenario.make(configuration.scenario or OFFLINE, rate_per_s, configuration.name or configuration.network)
