"""Turn a plan file and the command line into a checked ``Plan``."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.names import unknown
from joulewatch_harness.plan.cpus import cpus_text, parse_cpus
from joulewatch_harness.plan.plan import (
    DEFAULT_NETWORK,
    DEFAULT_OUTPUT,
    DEFAULT_PRECISIONS,
    DEFAULT_PRESET,
    DEFAULT_SCRAPE_RATE_HZ,
    DEFAULT_TIME_LIMIT_S,
    LARGEST_BATCH,
    NATIVE,
    PHASES,
    PHASES_INLINE,
    PRESETS,
    ExporterTarget,
    Plan,
    default_runtime,
    name_configurations,
)
from joulewatch_harness.plan.runtimes import takes_model_files
from joulewatch_harness.plan.scenario import OFFLINE, Scenario
from joulewatch_harness.records import Configuration


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
        builtin = takes_model_files(runtime) and "." not in network and ":" not in network
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
