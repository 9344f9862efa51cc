"""What to run: a plan from YAML or from the command line, and its ordered list of steps (pure).

A key that is not known is an error that names the file, the key and the nearest valid one. A flag beats the
file, the file beats the preset.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final

import yaml

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.names import unknown
from joulewatch_harness.pinning import cpus_text, parse_cpus
from joulewatch_harness.records import Configuration
from joulewatch_harness.scenario import OFFLINE, Scenario

MINIMUM_WINDOW_S: Final = 1.0
MINIMUM_BATCHES: Final = 10
MINIMUM_ROUNDS: Final = 3
REFRESHES_PER_WINDOW: Final = 20
"""A counter that moves in steps of its refresh period is off by at most 1/20 of the window."""
LARGEST_BATCH: Final = 1 << 24
NATIVE: Final = "native"

MODEL_RUNTIMES: Final = frozenset({"onnxruntime", "openvino", "torch", "tvm", "tensorrt"})
"""Runtimes that take a built-in network or a model file. To the others a network is what its server, program or
accelerator calls it, and its precision is the one it has."""
SERVER_RUNTIMES: Final = frozenset({"kserve", "openai"})
"""Runtimes whose networks have the names that a server gives them, such as ``llama3.2:1b``."""


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


@dataclass(frozen=True, slots=True)
class IdleStep:
    """Nothing runs."""

    loaded: bool
    duration_s: float


@dataclass(frozen=True, slots=True)
class LoadStep:
    """All networks are loaded."""


@dataclass(frozen=True, slots=True)
class MeasureStep:
    """One window of one configuration at one batch size."""

    configuration: str
    batch_size: int
    repeat: int
    """From 0; the first one warms up until steady, the later ones only settle."""
    window_s: float


@dataclass(frozen=True, slots=True)
class PhaseStep:
    """Phases of one configuration at one batch size, outside the energy windows, and what recording them costs."""

    configuration: str
    batch_size: int


Step = IdleStep | LoadStep | MeasureStep | PhaseStep


def window_length_s(plan: Plan, refresh_s: float | None) -> float:
    """How long a window lasts: the plan's length, at least 1 s and 20 refresh periods, at most ``max_window_s``.

    Args:
        plan: The plan.
        refresh_s: Refresh period of the slowest sensor that is summed; None: not known.
    """
    wanted = max(plan.window_s, MINIMUM_WINDOW_S, REFRESHES_PER_WINDOW * (refresh_s or 0.0))
    return min(wanted, plan.max_window_s)


def steps(plan: Plan, refresh_s: float | None = None) -> tuple[Step, ...]:
    """The plan in order: idle, load, idle, the rounds, idle.

    Every round goes over all configurations and batch sizes in an order of its own, drawn from the seed: a
    machine that drifts then spoils all of them alike.
    """
    window_s = window_length_s(plan, refresh_s)
    cells = list(itertools.product((item.name for item in plan.configurations), plan.batch_sizes))
    sorted_cells = tuple(cells)
    shuffle = random.Random(plan.seed).shuffle
    rounds: list[Step] = []
    for repeat in range(plan.rounds):
        shuffle(cells)
        rounds += [MeasureStep(name, batch_size, repeat, window_s) for name, batch_size in cells]
    return (
        IdleStep(loaded=False, duration_s=plan.idle_s),
        LoadStep(),
        IdleStep(loaded=True, duration_s=plan.idle_s),
        *rounds,
        *(PhaseStep(name, size) for name, size in sorted_cells if plan.phases == PHASES_SEPARATE),
        IdleStep(loaded=True, duration_s=plan.idle_s),
    )


def estimate_s(plan: Plan, step: Step) -> float:
    """About how long a step takes, for the time left; a batch so slow that ten need longer is not foreseen."""
    if isinstance(step, IdleStep):
        return step.duration_s + plan.settle_s
    if isinstance(step, LoadStep):
        return 0.5 * len(plan.configurations)
    if isinstance(step, PhaseStep):
        return PHASE_PASS_S + 2 * PHASE_COST_PAIRS * PHASE_COST_S + plan.settle_s
    before_s = 0.5 * (plan.warmup_s + plan.max_warmup_s) if step.repeat == 0 else plan.settle_s
    return before_s + step.window_s + plan.settle_s + 0.1


def batch_sizes(value: Any, where: str) -> tuple[int, ...]:
    """Batch sizes from a list, a number, ``"1,8,64"`` or ``"1..1024"`` (doubling, both ends included).

    Returns:
        The sizes, ascending, each once.

    Raises:
        ConfigError: a size is not a whole number from 1; the text names ``where`` and the size.
    """
    items: Sequence[Any]
    if isinstance(value, str):
        items = [item.strip() for item in value.split(",")]
    elif isinstance(value, Sequence):
        items = value
    else:
        items = [value]
    if not items:
        raise ConfigError(f"{where}: no batch size is given")
    found: set[int] = set()
    for item in items:
        match = re.fullmatch(r"\s*(\d+)\s*\.\.\s*(\d+)\s*", item) if isinstance(item, str) else None
        if match is None:
            found.add(_batch_size(item, where))
            continue
        first, last = (_batch_size(text, where) for text in match.groups())
        if last < first:
            raise ConfigError(f"{where}: {item!r} ends before it begins")
        while first < last:
            found.add(first)
            first *= 2
        found.add(last)
    return tuple(sorted(found))


def _batch_size(item: Any, where: str) -> int:
    text = item if isinstance(item, str) else "" if isinstance(item, (bool, float)) else str(item)
    if not re.fullmatch(r"\d{1,9}", text) or not 1 <= int(text) <= LARGEST_BATCH:
        raise ConfigError(f"{where}: a batch size is a whole number from 1, not {item!r}")
    return int(text)


KEYS: Final = (
    "name", "preset", "configurations", "batch_sizes", "window_s", "max_window_s", "rounds", "seed", "idle_s",
    "settle_s", "warmup_s", "max_warmup_s", "exporters", "exporter_flags", "prometheus", "prometheus_config",
    "pushgateway", "scrape_rate_hz", "output", "isolate", "cpus", "time_limit_s", "scenario",
    "server_rate_per_s", "phases",
)  # fmt: skip
_CONFIGURATION_KEYS: Final = (
    "name", "network", "runtime", "precision", "options", "scenario", "server_rate_per_s",
)  # fmt: skip
_EXPORTER_KEYS: Final = ("url", "name")


def read_plan(path: Path) -> dict[str, Any]:
    """Read a plan file, keys checked; ``make_plan`` takes it.

    Raises:
        ConfigError: the file cannot be read, is no YAML mapping, has an unknown key or the same key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConfigError(f"plan {path}: {reason}") from error
    try:
        data = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"plan {path}: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"plan {path}: a mapping of keys is wanted, such as 'preset: quick'")
    _check_keys(data, KEYS, f"plan {path}")
    return data


def make_plan(data: Mapping[str, Any], where: str) -> Plan:
    """Settle a plan from the keys that are given and the preset for the others.

    Args:
        data: Keys of ``KEYS``; from ``read_plan``, with the command line's values laid over them.
        where: What an error names: ``plan FILE``, or ``command line``.

    Raises:
        ConfigError: an unknown key or a bad value; the text names ``where`` and the key.
    """
    _check_keys(data, KEYS, where)
    preset_name = _text(data, "preset", where, DEFAULT_PRESET)
    preset = PRESETS.get(preset_name)
    if preset is None:
        raise ConfigError(f"{where}: {unknown('preset', preset_name, PRESETS)}")
    sizes = preset.batch_sizes
    if "batch_sizes" in data:
        sizes = batch_sizes(data["batch_sizes"], f"{where}: batch_sizes")
    window_s = _seconds(data, "window_s", where, preset.window_s)
    warmup_s = _seconds(data, "warmup_s", where, preset.warmup_s)
    cpus = parse_cpus(_text(data, "cpus", where, ""), f"{where}: cpus")
    configurations = tuple(_configurations(data.get("configurations"), where, data))
    phases = _text(data, "phases", where, PHASES_INLINE)
    if phases not in PHASES:
        raise ConfigError(f"{where}: phases: {unknown('value', phases, PHASES)}")
    try:
        return Plan(
            configurations=configurations,
            batch_sizes=sizes,
            preset=preset_name,
            window_s=window_s,
            max_window_s=_seconds(data, "max_window_s", where, max(preset.max_window_s, window_s)),
            rounds=_whole(data, "rounds", where, preset.rounds),
            seed=_whole(data, "seed", where, 0),
            idle_s=_seconds(data, "idle_s", where, preset.idle_s),
            settle_s=_seconds(data, "settle_s", where, preset.settle_s),
            warmup_s=warmup_s,
            max_warmup_s=_seconds(data, "max_warmup_s", where, max(preset.max_warmup_s, warmup_s)),
            name=_text(data, "name", where, ""),
            exporters=tuple(_exporters(data.get("exporters", ()), where)),
            exporter_flags=_texts(data, "exporter_flags", where),
            prometheus=_text(data, "prometheus", where, ""),
            prometheus_config=_text(data, "prometheus_config", where, ""),
            pushgateway=_text(data, "pushgateway", where, ""),
            scrape_rate_hz=_seconds(data, "scrape_rate_hz", where, DEFAULT_SCRAPE_RATE_HZ, least=0.1),
            output=_text(data, "output", where, DEFAULT_OUTPUT),
            # Of one configuration alone there is nobody to disturb.
            isolate=_flag(data, "isolate", where, len(configurations) > 1 or bool(cpus)),
            cpus=cpus_text(cpus),
            time_limit_s=_seconds(data, "time_limit_s", where, DEFAULT_TIME_LIMIT_S, least=1.0),
            phases=phases,
        )
    except ConfigError as error:
        text = str(error)
        raise error if text.startswith(where) else ConfigError(f"{where}: {text}") from error


def network_label(network: str, runtime: str = "") -> str:
    """What a network is called in a name: the built-in name, the file without folder and suffix, the object."""
    if runtime in SERVER_RUNTIMES:
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


def _scenarios(item: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> list[Scenario]:
    """The scenarios of a configuration: its own, else the plan's, else offline."""
    keys = {
        key: source[key] for key in ("scenario", "server_rate_per_s") for source in (defaults, item) if key in source
    }
    rate_per_s = _seconds(keys, "server_rate_per_s", where, 0.0) if "server_rate_per_s" in keys else None
    names = dict.fromkeys(_texts(keys, "scenario", where) or (OFFLINE,))
    found = [Scenario.make(name, rate_per_s, where) for name in names]
    if "server_rate_per_s" in item and not any(one.name == "server" for one in found):
        raise ConfigError(f"{where}: server_rate_per_s belongs to the scenario server, not to {', '.join(names)}")
    return found


def _with_suffix(name: str, suffix: str) -> str:
    """A person's own name, with the scenario: results of different ones must never share a name."""
    if not name or not suffix or name.endswith(f"/{suffix}"):
        return name
    return f"{name}/{suffix}"


def _configurations(value: Any, where: str, defaults: Mapping[str, Any]) -> Iterator[Configuration]:
    if value is None:
        value = [{"network": DEFAULT_NETWORK, "precision": list(DEFAULT_PRECISIONS)}]
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{where}: configurations: a list is wanted, with at least one network")
    found: list[Configuration] = []
    for number, item in enumerate(value):
        place = f"{where}: configurations[{number}]"
        if isinstance(item, str):
            item = {"network": item}
        if not isinstance(item, Mapping):
            raise ConfigError(f"{place}: a mapping is wanted, such as 'network: {DEFAULT_NETWORK}'")
        _check_keys(item, _CONFIGURATION_KEYS, place)
        network = _text(item, "network", place, "")
        if not network:
            raise ConfigError(f"{place}: the key network is missing")
        runtime = _text(item, "runtime", place, default_runtime(network))
        # A built-in network has a first precision; a file or an object has the one it has.
        builtin = runtime in MODEL_RUNTIMES and "." not in network and ":" not in network
        precisions = _texts(item, "precision", place) or (DEFAULT_PRECISIONS[:1] if builtin else (NATIVE,))
        name = _text(item, "name", place, "")
        scenarios = _scenarios(item, defaults, place)
        made = [
            Configuration(
                name=_with_suffix(name, scenario.suffix),
                network=network,
                runtime=runtime,
                precision=precision,
                options=options,
                scenario="" if scenario.name == OFFLINE else scenario.name,
                server_rate_per_s=scenario.rate_per_s,
            )
            for precision, options, scenario in itertools.product(
                precisions, _options(item.get("options"), place), scenarios
            )
        ]
        if name and len(made) > len(scenarios):
            raise ConfigError(
                f"{place}: one name for {len(made)} configurations: leave it out, or write them one by one"
            )
        found += made
    yield from name_configurations(found)


def _options(value: Any, where: str) -> list[Mapping[str, str]]:
    """Every combination of the options that are lists."""
    if value is None:
        return [{}]
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: options: a mapping is wanted, such as 'threads: 2'")
    choices = []
    for key, item in value.items():
        values = item if isinstance(item, list) else [item]
        if not values or any(isinstance(one, (dict, list)) or one is None for one in values):
            raise ConfigError(f"{where}: options: {key}: a value is wanted, or a list of them")
        choices.append([(str(key), str(one).lower() if isinstance(one, bool) else str(one)) for one in values])
    return [dict(choice) for choice in itertools.product(*choices)]


def _exporters(value: Any, where: str) -> Iterator[ExporterTarget]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: exporters: a list of URLs is wanted")
    for number, item in enumerate(value):
        place = f"{where}: exporters[{number}]"
        if isinstance(item, str):
            item = {"url": item}
        if not isinstance(item, Mapping):
            raise ConfigError(f"{place}: a URL is wanted, or a mapping with url and name")
        _check_keys(item, _EXPORTER_KEYS, place)
        url = _text(item, "url", place, "")
        if not re.match(r"https?://[^/]", url):
            raise ConfigError(f"{place}: {url!r} is no URL such as http://node1:10717")
        yield ExporterTarget(url, _text(item, "name", place, ""))


def _check_keys(data: Mapping[Any, Any], keys: Sequence[str], where: str) -> None:
    for key in data:
        if key not in keys:
            raise ConfigError(f"{where}: {unknown('key', str(key), keys)}")


def _text(data: Mapping[str, Any], key: str, where: str, default: str) -> str:
    value = data.get(key, default)
    if isinstance(value, (dict, list, bool)) or value is None:
        raise ConfigError(f"{where}: {key}: a text is wanted, not {value!r}")
    return str(value)


def _texts(data: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = data.get(key, ())
    items = value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(item, (dict, list, bool)) or item is None for item in items):
        raise ConfigError(f"{where}: {key}: a text or a list of texts is wanted, not {value!r}")
    return tuple(str(item) for item in items)


def _seconds(data: Mapping[str, Any], key: str, where: str, default: float, *, least: float = 0.0) -> float:
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < least:
        raise ConfigError(f"{where}: {key}: a number from {least:g} is wanted, not {value!r}")
    return float(value)


def _whole(data: Mapping[str, Any], key: str, where: str, default: int) -> int:
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"{where}: {key}: a whole number from 0 is wanted, not {value!r}")
    return value


def _flag(data: Mapping[str, Any], key: str, where: str, default: bool) -> bool:
    value = data.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: {key}: true or false is wanted, not {value!r}")
    return value


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML lets a later key silently replace an earlier one; here it is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} stands there twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep=deep)
