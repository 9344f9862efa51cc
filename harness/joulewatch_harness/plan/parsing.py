"""Read plans: from a plan file, with the flags of the command line on top, to a checked ``Plan``.

A flag has precedence over the file, the file over the preset.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from joulewatch_harness.binder import (
    Parse,
    Text,
    Texts,
    Word,
    as_list,
    as_text,
    bind,
    keys,
    read_yaml,
    short_for,
)
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.plan.cpus import cpus_text, parse_cpus
from joulewatch_harness.plan.network_names import name_networks
from joulewatch_harness.plan.plan import (
    DEFAULT_NETWORK,
    DEFAULT_PRECISIONS,
    DEFAULT_PRESET,
    LARGEST_BATCH,
    NATIVE,
    PRESETS,
    Plan,
    PlanKeys,
    Rate,
    default_runtime,
    name_configurations,
)
from joulewatch_harness.plan.runtimes import takes_model_files
from joulewatch_harness.plan.scenario import OFFLINE, Scenario
from joulewatch_harness.records import Configuration


def parse_batch_sizes(value: Any, where: str = "") -> tuple[int, ...]:
    """Convert a list, a number, ``"1,8,64"`` or ``"1..1024"`` (doubling, including both ends) to batch sizes.

    Returns:
        The sizes, ascending, without duplicates.

    Raises:
        ConfigError: a size is not an integer >= 1; the error begins with ``where``.
    """
    source = f"{where}: " if where else ""
    items: Sequence[Any]
    if isinstance(value, str):
        items = [item.strip() for item in value.split(",")]
    elif isinstance(value, Sequence):
        items = value
    else:
        items = [value]
    if not items:
        raise ConfigError(f"{source}must contain at least one batch size")
    sizes: set[int] = set()
    for item in items:
        match = re.fullmatch(r"\s*(\d+)\s*\.\.\s*(\d+)\s*", item) if isinstance(item, str) else None
        if match is None:
            sizes.add(_batch_size(item, source))
            continue
        size, last = (_batch_size(text, source) for text in match.groups())
        if last < size:
            raise ConfigError(f"{source}the range {item!r} ends before it starts")
        while size < last:
            sizes.add(size)
            size *= 2
        sizes.add(last)
    return tuple(sorted(sizes))


def _batch_size(item: Any, source: str) -> int:
    text = item if isinstance(item, str) else "" if isinstance(item, (bool, float)) else str(item)
    if not re.fullmatch(r"\d{1,9}", text) or not 1 <= int(text) <= LARGEST_BATCH:
        raise ConfigError(f"{source}a batch size must be an integer from 1 to {LARGEST_BATCH}, got {item!r}")
    return int(text)


def _normalized_cpus(value: Any) -> str:
    return cpus_text(parse_cpus(str(as_text(value))))


@dataclass(frozen=True, slots=True, kw_only=True)
class _ConfigurationKeys:
    """The keys of one entry of ``configurations``; lists give several configurations."""

    network: Text
    name: Text = ""
    runtime: Text = ""
    precision: Texts = ()
    options: Mapping[str, Annotated[tuple[Word, ...], Parse(as_list)]] | None = None
    scenario: Texts | None = None
    server_rate_per_s: Rate | None = None

    def __post_init__(self) -> None:
        if not self.network:
            raise ConfigError("network: must not be empty")


_DEFAULT_CONFIGURATIONS: Final = (_ConfigurationKeys(network=DEFAULT_NETWORK, precision=DEFAULT_PRECISIONS),)


@dataclass(frozen=True, slots=True, kw_only=True)
class _PlanFile(PlanKeys):
    """The keys of a plan file."""

    batch_sizes: Annotated[tuple[int, ...], Parse(parse_batch_sizes)]
    configurations: tuple[Annotated[_ConfigurationKeys, short_for("network")], ...] | None = None
    isolate: bool | None = None
    """Default: true if there are several configurations, or processors are given."""
    concurrent: bool = False
    cpus: Annotated[str, Parse(_normalized_cpus)] = ""
    scenario: Texts = ()
    server_rate_per_s: Rate | None = None


KEYS: Final = keys(_PlanFile)


def read_plan(path: Path) -> dict[str, Any]:
    """Read a plan file for ``make_plan``, which checks the keys.

    Raises:
        ConfigError: the file cannot be read, is not a YAML mapping, or has a key twice.
    """
    if path.suffix == ".onnx":
        raise ConfigError(f"{path}: is not a plan; a model file is named with --model {path}")
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ConfigError(f"plan {path}: must be a mapping of keys to values, such as 'preset: quick'")
    return data


def make_plan(data: Mapping[str, Any], where: str) -> Plan:
    """Make a plan from keys, with the preset's values for the others.

    Args:
        data: From ``read_plan``, overridden by the flags of the command line.
        where: The beginning of error messages: ``plan FILE`` or ``command line``.

    Raises:
        ConfigError: an unknown key or a bad value; the text contains ``where`` and the key.
    """
    preset = data.get("preset")
    file = bind(_PlanFile, data, where, defaults=PRESETS[preset if preset in tuple(PRESETS) else DEFAULT_PRESET])
    configurations = tuple(_configurations(file, where))
    values = {name: getattr(file, name) for name in keys(PlanKeys)}
    for limit, least in (("max_window_s", "window_s"), ("max_warmup_s", "warmup_s")):
        if limit not in data:
            values[limit] = max(values[limit], values[least])
    # The key that is given replaces the preset's rule for the end of the rounds.
    if data.get("rounds") is not None:
        for name in ("max_relative_uncertainty", "max_run_s"):
            values[name] = getattr(file, name) if name in data else None
    elif data.get("max_relative_uncertainty") is not None:
        values["rounds"] = None
    isolate = len(configurations) > 1 or bool(file.cpus) if file.isolate is None else file.isolate
    for item in configurations:
        if item.alone:
            raise ConfigError(
                f"{where}: the name {item.name!r} is that of a network that runs at the same time as others"
            )
    try:
        return Plan(
            **values,
            configurations=configurations,
            isolate=isolate,
            concurrent=file.concurrent,
            default_batch_sizes=data.get("batch_sizes") is None,
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _configurations(file: _PlanFile, where: str) -> Iterator[Configuration]:
    entries = _DEFAULT_CONFIGURATIONS if file.configurations is None else file.configurations
    configurations: list[Configuration] = []
    for number, entry in enumerate(entries):
        configurations += _expanded(entry, file, f"{where}: configurations[{number}]")
    yield from name_configurations(name_networks(configurations))


def _expanded(entry: _ConfigurationKeys, file: _PlanFile, where: str) -> list[Configuration]:
    """Return the configurations of one entry: every combination of its lists."""
    runtime = entry.runtime or default_runtime(entry.network)
    # A built-in network has a first precision; a file or an object has a fixed one.
    is_builtin = takes_model_files(runtime) and "." not in entry.network and ":" not in entry.network
    if "" in entry.precision:
        raise ConfigError(f"{where}.precision: must not be empty")
    precisions = entry.precision or (DEFAULT_PRECISIONS[:1] if is_builtin else (NATIVE,))
    options = entry.options or {}
    for key, values in options.items():
        if not values:
            raise ConfigError(f"{where}.options.{key}: must contain at least one value")
    scenarios = _scenarios(entry, file, where)
    combinations = list(itertools.product(precisions, itertools.product(*options.values()), scenarios))
    if entry.name and len(combinations) > len(scenarios):
        raise ConfigError(
            f"{where}: one name for {len(combinations)} configurations: remove the name, or write one entry for each"
        )
    return [
        Configuration(
            name=_with_suffix(entry.name, scenario.suffix),
            network=entry.network,
            runtime=runtime,
            precision=precision,
            options=dict(zip(options, values, strict=True)),
            scenario="" if scenario.name == OFFLINE else scenario.name,
            server_rate_per_s=scenario.rate_per_s,
        )
        for precision, values, scenario in combinations
    ]


def _scenarios(entry: _ConfigurationKeys, file: _PlanFile, where: str) -> list[Scenario]:
    """Return the scenarios of an entry: its own, else the plan's, else offline."""
    names = (file.scenario if entry.scenario is None else entry.scenario) or (OFFLINE,)
    rate_per_s = file.server_rate_per_s if entry.server_rate_per_s is None else entry.server_rate_per_s
    scenarios = [Scenario.make(name, rate_per_s, where) for name in dict.fromkeys(names)]
    if entry.server_rate_per_s is not None and not any(scenario.name == "server" for scenario in scenarios):
        raise ConfigError(f"{where}: server_rate_per_s requires the scenario server, not {', '.join(names)}")
    return scenarios


def _with_suffix(name: str, suffix: str) -> str:
    """Append the scenario to a user's name: results of different scenarios must not have the same name."""
    if not name or not suffix or name.endswith(f"/{suffix}"):
        return name
    return f"{name}/{suffix}"
